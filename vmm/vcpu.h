/* SPDX-License-Identifier: BSD-3-Clause */
/* vcpu: the machine's CPUs, a thread each.
 *
 * A thread is in the guest (KVM_RUN), serves what the guest left it for, or is parked.
 * It parks only when KVM_RUN says EINTR, because only then is the last access to a
 * register complete: a parked vCPU's state can be saved.
 */
#ifndef MERINO_VMM_VCPU_H
#define MERINO_VMM_VCPU_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

struct machine;

#define VCPU_MSRS_MAX 512u
#define VCPU_CPUID_MAX 128u

/* All of a vCPU that is saved with the machine.  Plain data, to be written as it is. */
struct vcpu_state {
	uint32_t version;		/* 1 */
	uint32_t n_msrs;
	uint32_t tsc_khz;
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debug;
	struct kvm_lapic_state lapic;
	struct kvm_xcrs xcrs;
	struct kvm_xsave xsave;
	struct kvm_msr_entry msr[VCPU_MSRS_MAX];
};

struct vcpu {
	struct machine *machine;
	unsigned index;			/* its APIC id, too */
	int fd;
	struct kvm_run *run;
	size_t run_len;
	pthread_t thread;
	bool started;			/* there is a thread */
	bool held;			/* it told an event: not to run until a reset; run_lock */
	pid_t tid;
	struct vcpu_state *first;	/* as KVM made it */
};

/* Makes all of them, with their CPUIDs; their threads wait. */
int vcpus_make(struct machine *m, struct error *err);
void vcpus_end(struct machine *m);

/* Main loop.  Lets them run; stops them all and waits until they are parked. */
void vcpus_go(struct machine *m);
void vcpus_park(struct machine *m);

/* On a vCPU's thread, in a device's function: it goes no further until a reset.
 * Elsewhere: nothing. */
void vcpu_hold_self(void);

/* The rest only while they are parked. */
void vcpus_reset(struct machine *m);
int vcpu_learn_msrs(struct machine *m, struct error *err);	/* before vcpu_save() */
int vcpu_save(struct vcpu *v, struct vcpu_state *s, struct error *err);
int vcpu_load(struct vcpu *v, const struct vcpu_state *s, struct error *err);	/* S is hostile */

/* What the first CPU begins with: */
enum vcpu_mode { VCPU_REAL, VCPU_PROTECTED, VCPU_LONG };
struct vcpu_entry {
	enum vcpu_mode mode;		/* REAL: at the reset vector, whatever follows */
	uint64_t rip, rsp;
	uint64_t rbx, rsi;		/* where entries take their argument */
	uint64_t gdt, cr3;		/* tables in guest memory; the code's selector is 0x10 */
	uint16_t gdt_limit;
};
int vcpu_enter_at(struct vcpu *v, const struct vcpu_entry *e, struct error *err);

/* cpuid.c: what this vCPU says it is. */
int cpuid_set(struct vcpu *v, struct error *err);

#endif
