/* SPDX-License-Identifier: BSD-3-Clause */
/* serial: an 8250 (16550A) at ports 3f8, IRQ 4.
 *
 * line.h has where its bytes go.
 */
#ifndef MERINO_VMM_SERIAL_H
#define MERINO_VMM_SERIAL_H

#include <stdint.h>

#include "common/error.h"

struct machine;

#define SERIAL_BASE 0x3f8u
#define SERIAL_IRQ 4u
#define SERIAL_FIFO 16u

/* What is saved with the machine. */
struct serial_state {
	uint32_t version;		/* 1 */
	uint8_t ier, lcr, mcr, fcr, scratch;
	uint8_t divisor[2];
	uint8_t tx_pending;		/* the interrupt "transmitter empty" was not seen yet */
	uint8_t rx[SERIAL_FIFO];
	uint32_t rx_at, rx_n;
};

int serial_start(struct machine *m, const char *where, struct error *err);
void serial_reset(struct machine *m);		/* with machine->lock held; the next two, too */
void serial_save(struct machine *m, struct serial_state *s);
int serial_load(struct machine *m, const struct serial_state *s, struct error *err);
void serial_end(struct machine *m);		/* coroutine; no vCPU runs */

#endif
