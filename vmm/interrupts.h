/* SPDX-License-Identifier: BSD-3-Clause */
/* interrupts: KVM's routing table, the message-signalled part of it, and doorbells.
 *
 * What devices call is in machine.h (machine_irq, machine_msi_*, machine_doorbell).
 */
#ifndef MERINO_VMM_INTERRUPTS_H
#define MERINO_VMM_INTERRUPTS_H

#include <linux/kvm.h>
#include <stdint.h>

#include "common/error.h"

struct machine;

/* PIC, IOAPIC and PIT in the kernel, and the routes of their lines. */
int interrupts_start(struct machine *m, struct error *err);
void interrupts_reset(struct machine *m);	/* as they were at the start; no vCPU runs */
void interrupts_end(struct machine *m);

/* What is saved with the machine: PIC, PIC, IOAPIC, and the timer.  Routes come from devices. */
struct interrupts_state {
	uint32_t version;		/* 1 */
	struct kvm_irqchip chip[3];
	struct kvm_pit_state2 pit;
};

/* No vCPU runs. */
int interrupts_save(struct machine *m, struct interrupts_state *s, struct error *err);
int interrupts_load(struct machine *m, const struct interrupts_state *s, struct error *err);

#endif
