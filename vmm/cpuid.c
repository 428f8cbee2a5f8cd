/* SPDX-License-Identifier: BSD-3-Clause */
/* cpuid: what the guest is told of its CPUs.
 *
 * The host's own features as KVM offers them, one socket of so many cores, and the
 * frequencies of the TSC and the APIC timer, so that no guest needs to measure them.  What
 * could not be saved with a machine (performance counters, AMX, SGX) is left out.
 */
#include "vmm/vcpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/machine.h"

#define ENTRIES 256u
#define APIC_BUS_KHZ 1000000u		/* KVM's local APIC timer runs at 1 GHz */

struct table {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entry[ENTRIES];
};

static struct kvm_cpuid_entry2 *find(struct table *t, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < t->head.nent; i++)
		if (t->entry[i].function == function && t->entry[i].index == index)
			return &t->entry[i];
	return NULL;
}

static void drop(struct table *t, uint32_t function)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < t->head.nent; i++)
		if (t->entry[i].function != function)
			t->entry[n++] = t->entry[i];
	t->head.nent = n;
}

static struct kvm_cpuid_entry2 *add(struct table *t, uint32_t function, uint32_t index, uint32_t flags)
{
	struct kvm_cpuid_entry2 *e = find(t, function, index);

	if (!e && t->head.nent < ENTRIES)
		e = &t->entry[t->head.nent++];
	if (e)
		*e = (struct kvm_cpuid_entry2){ .function = function, .index = index, .flags = flags };
	return e;
}

/* Bits of an APIC id that tell N cores apart. */
static unsigned id_bits(unsigned n)
{
	unsigned bits = 0;

	while ((1u << bits) < n)
		bits++;
	return bits;
}

static void topology_levels(struct table *t, uint32_t function, unsigned id, unsigned n)
{
	struct kvm_cpuid_entry2 *e;

	drop(t, function);
	for (uint32_t level = 0; level < 3; level++) {
		e = add(t, function, level, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
		if (!e)
			return;
		e->ecx = level;
		e->edx = id;
		if (level == 0) {		/* threads: one for each core */
			e->ebx = 1;
			e->ecx |= 1u << 8;
		} else if (level == 1) {	/* cores */
			e->eax = id_bits(n);
			e->ebx = n;
			e->ecx |= 2u << 8;
		}
	}
}

/* Caches of levels 1 and 2 are a core's own, level 3 is everybody's. */
static void caches(struct table *t, unsigned n)
{
	for (uint32_t i = 0; i < t->head.nent; i++) {
		struct kvm_cpuid_entry2 *e = &t->entry[i];
		unsigned level = (e->eax >> 5) & 7;
		unsigned sharing = level >= 3 ? (1u << id_bits(n)) - 1 : 0;

		if ((e->function != 4 && e->function != 0x8000001d) || !(e->eax & 31))
			continue;
		e->eax = (e->eax & ~0x03ffc000u) | sharing << 14;
		if (e->function == 4)
			e->eax = (e->eax & 0x03ffffffu) | ((1u << id_bits(n)) - 1) << 26;
	}
}

static void topology(struct table *t, unsigned id, unsigned n)
{
	struct kvm_cpuid_entry2 *e = find(t, 1, 0);

	if (e) {
		e->ebx = (e->ebx & 0xffff) | n << 16 | id << 24;
		e->edx = n > 1 ? e->edx | 1u << 28 : e->edx & ~(1u << 28);
	}
	topology_levels(t, 0xb, id, n);
	if (find(t, 0x1f, 0))
		topology_levels(t, 0x1f, id, n);
	caches(t, n);
	e = find(t, 0x80000008, 0);
	if (e)
		e->ecx = id_bits(n) << 12 | (n - 1);
	e = find(t, 0x8000001e, 0);
	if (e) {
		e->eax = id;
		e->ebx = id;
		e->ecx = 0;
	}
}

static void features(struct machine *m, struct table *t)
{
	struct kvm_cpuid_entry2 *e = find(t, 1, 0);

	if (e) {
		e->ecx |= 1u << 31;		/* a hypervisor */
		if (ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
			e->ecx |= 1u << 24;
		e->ecx |= 1u << 21;		/* x2APIC */
	}
	e = find(t, 6, 0);
	if (e)
		*e = (struct kvm_cpuid_entry2){ .function = 6, .eax = 1u << 2 };	/* ARAT */
	e = find(t, 7, 0);
	if (e) {
		e->ebx &= ~(1u << 2);		/* SGX */
		e->edx &= ~(1u << 22 | 1u << 24 | 1u << 25);	/* AMX */
	}
	e = find(t, 0xd, 0);
	if (e)
		e->eax &= ~(3u << 17);		/* AMX's state */
	e = find(t, 0xa, 0);
	if (e)
		*e = (struct kvm_cpuid_entry2){ .function = 0xa };
	drop(t, 0x12);
	drop(t, 0x1d);
	drop(t, 0x1e);
}

static void frequencies(struct machine *m, struct table *t)
{
	struct kvm_cpuid_entry2 *e = find(t, 0, 0);

	if (!m->tsc_khz)
		return;
	e = find(t, 0x40000000, 0);
	if (e)
		e->eax = 0x40000010;
	e = add(t, 0x40000010, 0, 0);
	if (e) {
		e->eax = m->tsc_khz;
		e->ebx = APIC_BUS_KHZ;
	}
	/* Intel's own: TSC = crystal * ebx / eax; the APIC timer runs by the crystal. */
	e = find(t, 0, 0);
	if (!e || e->eax < 0x15 || e->ebx != 0x756e6547)
		return;
	e = add(t, 0x15, 0, 0);
	if (e) {
		e->eax = APIC_BUS_KHZ;
		e->ebx = m->tsc_khz;
		e->ecx = APIC_BUS_KHZ * 1000u;
	}
}

int cpuid_set(struct vcpu *v, struct error *err)
{
	struct machine *m = v->machine;
	struct table *t = calloc(1, sizeof(*t));
	int khz, rc = 0;

	if (!t)
		return error_set(err, -ENOMEM, "Out of memory");
	khz = ioctl(v->fd, KVM_GET_TSC_KHZ);
	m->tsc_khz = khz > 0 ? (uint32_t)khz : 0;
	t->head.nent = ENTRIES;
	if (ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, t) < 0) {
		rc = error_errno(err, -errno, "KVM_GET_SUPPORTED_CPUID");
	} else {
		features(m, t);
		topology(t, v->index, m->config->vcpus);
		frequencies(m, t);
		if (ioctl(v->fd, KVM_SET_CPUID2, t) < 0)
			rc = error_errno(err, -errno, "KVM_SET_CPUID2");
	}
	free(t);
	return rc;
}
