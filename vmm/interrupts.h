/* SPDX-License-Identifier: BSD-3-Clause */
/* interrupts: KVM's routing table, the message-signalled part of it, and doorbells.
 *
 * What devices call is in machine.h (machine_irq, machine_msi_*, machine_doorbell).
 */
#ifndef MERINO_VMM_INTERRUPTS_H
#define MERINO_VMM_INTERRUPTS_H

#include "common/error.h"

struct machine;

/* PIC, IOAPIC and PIT in the kernel, and the routes of their lines. */
int interrupts_start(struct machine *m, struct error *err);
void interrupts_reset(struct machine *m);	/* as they were at the start; no vCPU runs */
void interrupts_end(struct machine *m);

#endif
