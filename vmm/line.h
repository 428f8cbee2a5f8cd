/* SPDX-License-Identifier: BSD-3-Clause */
/* line: where the bytes of a serial port go to and come from.
 *
 * What the guest sends is kept (64 KiB) until somebody takes it.  A reader that takes
 * nothing for a second loses the oldest bytes, and so does one who is not there yet: the
 * guest never waits for a person.  What people send waits until the guest has room.
 *
 * Opened and closed on the main loop; the other calls with machine->lock held.
 */
#ifndef MERINO_VMM_LINE_H
#define MERINO_VMM_LINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct line;
struct machine;

/* The port's; all called with machine->lock held. */
struct line_user {
	unsigned (*room)(void *arg);	/* how many bytes it would take */
	void (*give)(void *arg, const uint8_t *bytes, unsigned n);
	void (*space)(void *arg);	/* the line is not full any more */
	void *arg;
};

/* WHERE: "stdio", "none", "file:PATH" or "unix:PATH". */
int line_open(struct machine *m, const char *where, const struct line_user *u, struct line **out,
	      struct error *err);
void line_close(struct line *l);	/* coroutine; sends what is left, for a second at most */

bool line_full(const struct line *l);
void line_put(struct line *l, uint8_t byte);
void line_taken(struct line *l);	/* the port has room again */

#endif
