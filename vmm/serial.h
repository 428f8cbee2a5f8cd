/* SPDX-License-Identifier: BSD-3-Clause */
/* serial: an 8250 (16550A) at ports 3f8, IRQ 4.
 *
 * line.h has where its bytes go.
 */
#ifndef MERINO_VMM_SERIAL_H
#define MERINO_VMM_SERIAL_H

#include "common/error.h"

struct machine;

#define SERIAL_BASE 0x3f8u
#define SERIAL_IRQ 4u

int serial_start(struct machine *m, const char *where, struct error *err);
void serial_reset(struct machine *m);		/* with machine->lock held */
void serial_end(struct machine *m);		/* coroutine; no vCPU runs */

#endif
