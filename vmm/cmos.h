/* SPDX-License-Identifier: BSD-3-Clause */
/* cmos: a PC's clock and its few bytes of memory (MC146818), ports 70 and 71.
 *
 * The clock is the host's, in UTC; what the guest writes to it is not kept.  Of its interrupts
 * (IRQ 8) there is the periodic one, 1024 times a second: a BIOS waits by it.  It comes again
 * when the last one was seen.  The memory is what firmware reads of the machine; the guest may
 * write to it.
 */
#ifndef MERINO_VMM_CMOS_H
#define MERINO_VMM_CMOS_H

#include <stdint.h>

#include "common/error.h"

struct machine;

#define CMOS_PORT 0x70u
#define CMOS_BYTES 128u
#define CMOS_IRQ 8u

/* What is saved with the machine. */
struct cmos_state {
	uint32_t version;		/* 1 */
	uint8_t index;
	uint8_t periodic, pending;	/* 0 or 1: the interrupt is wanted; it came and was not seen */
	uint8_t byte[CMOS_BYTES];
	int64_t shown;			/* seconds since 1970 that the clock's registers show */
};

int cmos_start(struct machine *m, struct error *err);
void cmos_end(struct machine *m);
void cmos_reset(struct machine *m);
void cmos_save(struct machine *m, struct cmos_state *s);
int cmos_load(struct machine *m, const struct cmos_state *s, struct error *err);

#endif
