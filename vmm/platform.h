/* SPDX-License-Identifier: BSD-3-Clause */
/* platform: the ACPI registers, the power button and the reset port.
 *
 *	600	PM1 status, enable	(ACPI 6.4, 4.8.3)
 *	604	PM1 control: 0x2000 powers off
 *	608	PM timer, 3.579545 MHz, 24 bits
 *	64	a write of 0xfe resets, as on a PC's keyboard controller
 */
#ifndef MERINO_VMM_PLATFORM_H
#define MERINO_VMM_PLATFORM_H

#include <stdint.h>

#include "common/error.h"

struct machine;

#define PLATFORM_PM1_EVENT 0x600u
#define PLATFORM_PM1_CONTROL 0x604u
#define PLATFORM_PM_TIMER 0x608u
#define PLATFORM_SCI 9u			/* the interrupt line */
#define PLATFORM_RESET 0x64u
#define PLATFORM_RESET_VALUE 0xfeu
#define PLATFORM_SLEEP_S5 0u		/* SLP_TYP of "off" */

/* What is saved with the machine. */
struct platform_state {
	uint32_t version;		/* 1 */
	uint16_t status, enable, control;
	uint64_t timer;			/* ns: what the timer shows; while it runs, less loop_now() */
};

int platform_start(struct machine *m, struct error *err);
void platform_end(struct machine *m);
void platform_reset(struct machine *m);
void platform_save(struct machine *m, struct platform_state *s);
int platform_load(struct machine *m, const struct platform_state *s, struct error *err);
void platform_button(struct machine *m);	/* with machine->lock held */

#endif
