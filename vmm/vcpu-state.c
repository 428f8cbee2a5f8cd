/* SPDX-License-Identifier: BSD-3-Clause */
/* A vCPU's registers: saved, loaded, reset, and set to where a kernel begins.
 *
 * Order of loading: CPUID is set before; sregs before MSRs (the APIC's mode), the local
 * APIC after them, events last.
 */
#include "vmm/vcpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/log.h"
#include "vmm/machine.h"

#define MSR_IA32_TSC 0x10u

/* -- MSRs -------------------------------------------------------------------------- */

struct msr_page {
	struct kvm_msrs head;
	struct kvm_msr_entry entry[1];
};

/* Asked once: /dev/kvm is closed when the machine is built. */
int vcpu_learn_msrs(struct machine *m, struct error *err)
{
	struct kvm_msr_list *list = malloc(sizeof(*list) + VCPU_MSRS_MAX * sizeof(*list->indices));

	m->msrs = list;
	if (!list)
		return error_set(err, -ENOMEM, "Out of memory");
	list->nmsrs = VCPU_MSRS_MAX;
	if (ioctl(m->kvm, KVM_GET_MSR_INDEX_LIST, list) < 0)
		return error_errno(err, -errno, "KVM_GET_MSR_INDEX_LIST");
	return 0;
}

/* Those that KVM knows; the ones that this CPU lacks are left out. */
static void msrs_save(struct vcpu *v, struct vcpu_state *s)
{
	const struct kvm_msr_list *list = v->machine->msrs;

	s->n_msrs = 0;
	for (uint32_t i = 0; i < list->nmsrs; i++) {
		struct msr_page one = { .head.nmsrs = 1, .entry[0].index = list->indices[i] };

		if (ioctl(v->fd, KVM_GET_MSRS, &one) == 1)
			s->msr[s->n_msrs++] = one.entry[0];
	}
}

/* Only those that this host's KVM listed when the vCPU was made are set. */
static int msrs_check(const struct vcpu *v, const struct vcpu_state *s, struct error *err)
{
	if (s->n_msrs > VCPU_MSRS_MAX)
		return error_set(err, -EINVAL, "vCPU %u: %u MSRs", v->index, s->n_msrs);
	for (uint32_t i = 0; i < s->n_msrs; i++) {
		uint32_t j = 0;

		while (j < v->first->n_msrs && v->first->msr[j].index != s->msr[i].index)
			j++;
		if (j == v->first->n_msrs)
			return error_set(err, -EINVAL, "vCPU %u: this host has no MSR 0x%x", v->index,
					 s->msr[i].index);
	}
	return 0;
}

/* The guest was told how fast it counts. */
static int tsc_load(struct vcpu *v, const struct vcpu_state *s, struct error *err)
{
	int khz = ioctl(v->fd, KVM_GET_TSC_KHZ);

	if (khz == (int)s->tsc_khz || !s->tsc_khz)
		return 0;
	if (ioctl(v->fd, KVM_SET_TSC_KHZ, (unsigned long)s->tsc_khz) < 0)
		return error_errno(err, -errno, "vCPU %u: this host's TSC runs at %d kHz, the saved one at %u",
				   v->index, khz, s->tsc_khz);
	return 0;
}

static void msrs_load(struct vcpu *v, const struct vcpu_state *s)
{
	for (uint32_t i = 0; i < s->n_msrs; i++) {
		struct msr_page one = { .head.nmsrs = 1, .entry[0] = s->msr[i] };

		/* Some can be read, but not written: they say what the CPU is. */
		if (ioctl(v->fd, KVM_SET_MSRS, &one) != 1)
			log_debug("vcpu=%u msr=0x%x cannot be set", v->index, s->msr[i].index);
	}
}

/* -- all of it ---------------------------------------------------------------------- */

#define TRY(request, arg)							\
	do {									\
		if (ioctl(v->fd, request, arg) < 0)				\
			return error_errno(err, -errno, "vCPU %u: " #request, v->index); \
	} while (0)

int vcpu_save(struct vcpu *v, struct vcpu_state *s, struct error *err)
{
	int khz;

	*s = (struct vcpu_state){ .version = 1 };
	TRY(KVM_GET_MP_STATE, &s->mp);
	TRY(KVM_GET_REGS, &s->regs);
	TRY(KVM_GET_SREGS, &s->sregs);
	TRY(KVM_GET_XSAVE, &s->xsave);
	TRY(KVM_GET_XCRS, &s->xcrs);
	TRY(KVM_GET_DEBUGREGS, &s->debug);
	TRY(KVM_GET_LAPIC, &s->lapic);
	msrs_save(v, s);
	TRY(KVM_GET_VCPU_EVENTS, &s->events);
	khz = ioctl(v->fd, KVM_GET_TSC_KHZ);
	s->tsc_khz = khz > 0 ? (uint32_t)khz : 0;
	return 0;
}

int vcpu_load(struct vcpu *v, const struct vcpu_state *s, struct error *err)
{
	int rc;

	if (s->version != 1)
		return error_set(err, -EINVAL, "vCPU %u: state of an unknown version", v->index);
	if ((rc = msrs_check(v, s, err)) || (rc = tsc_load(v, s, err)))
		return rc;
	TRY(KVM_SET_REGS, &s->regs);
	TRY(KVM_SET_XSAVE, &s->xsave);
	TRY(KVM_SET_XCRS, &s->xcrs);
	TRY(KVM_SET_SREGS, &s->sregs);
	msrs_load(v, s);
	TRY(KVM_SET_MP_STATE, &s->mp);
	TRY(KVM_SET_LAPIC, &s->lapic);
	TRY(KVM_SET_DEBUGREGS, &s->debug);
	TRY(KVM_SET_VCPU_EVENTS, &s->events);
	pthread_mutex_lock(&v->machine->run_lock);
	v->held = false;
	pthread_mutex_unlock(&v->machine->run_lock);
	return 0;
}

void vcpus_reset(struct machine *m)
{
	for (unsigned i = 0; i < m->n_vcpus; i++) {
		struct vcpu *v = &m->vcpu[i];
		struct error err = ERROR_INIT;

		if (vcpu_load(v, v->first, &err))
			log_error("reset: %s", err.text);
	}
}

/* -- where a kernel begins ------------------------------------------------------------ */

#define CR0_PE 0x1u
#define CR0_ET 0x10u
#define CR0_PG 0x80000000u
#define CR4_PAE 0x20u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u

/* Flat segments as in the table at E->gdt: 0x10 code, 0x18 data, 0x20 TSS. */
static void segments(struct kvm_sregs *s, const struct vcpu_entry *e)
{
	bool wide = e->mode == VCPU_LONG;
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 0x10, .type = 11, .present = 1, .s = 1, .g = 1,
		.db = !wide, .l = wide,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = 0x18, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1,
	};
	struct kvm_segment tss = {
		.limit = 0x67, .selector = 0x20, .type = 11, .present = 1,
	};

	s->cs = code;
	s->ds = s->es = s->fs = s->gs = s->ss = data;
	s->tr = tss;
	s->gdt = (struct kvm_dtable){ .base = e->gdt, .limit = e->gdt_limit };
	s->idt = (struct kvm_dtable){ 0 };
}

int vcpu_enter_at(struct vcpu *v, const struct vcpu_entry *e, struct error *err)
{
	struct kvm_sregs s;
	struct kvm_regs r = {
		.rip = e->rip, .rsp = e->rsp, .rbx = e->rbx, .rsi = e->rsi, .rflags = 2,
	};

	if (e->mode == VCPU_REAL)
		return 0;
	TRY(KVM_GET_SREGS, &s);
	segments(&s, e);
	s.cr0 = CR0_PE | CR0_ET;
	if (e->mode == VCPU_LONG) {
		s.cr0 |= CR0_PG;
		s.cr3 = e->cr3;
		s.cr4 |= CR4_PAE;
		s.efer |= EFER_LME | EFER_LMA;
	}
	TRY(KVM_SET_SREGS, &s);
	TRY(KVM_SET_REGS, &r);
	return 0;
}
