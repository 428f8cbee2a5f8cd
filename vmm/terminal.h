/* SPDX-License-Identifier: BSD-3-Clause */
/* terminal: standard input in raw mode, and as it was again whatever ends the process. */
#ifndef MERINO_VMM_TERMINAL_H
#define MERINO_VMM_TERMINAL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

int terminal_raw(struct error *err);	/* standard input is a terminal */
void terminal_restore(void);		/* any time, any thread, in a signal handler, too */

/* What a person types is the guest's, but for what follows ^A, as in QEMU:
 *	x	ends the machine	^A	sends a ^A	h	help
 * BYTE goes to the guest when this returns TERMINAL_SEND. */
enum terminal_key { TERMINAL_SEND, TERMINAL_NOTHING, TERMINAL_QUIT, TERMINAL_HELP };
enum terminal_key terminal_key(bool *escape, uint8_t byte);

#endif
