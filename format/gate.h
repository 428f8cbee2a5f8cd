/* SPDX-License-Identifier: BSD-3-Clause */
/* gate: where requests enter a disk (DESIGN.md, idea 3).
 *
 * The graph under a disk never changes while its gate is open.  Whoever wants
 * to change it closes the gates of all disks concerned, changes, and opens.
 * Closing waits for what is inside; entering waits while it is closed.  Only
 * the thread of the disk's loop touches a gate.
 */
#ifndef MERINO_GATE_H
#define MERINO_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/co.h"

struct gate {
	unsigned inside;		/* requests between enter and leave */
	unsigned closed;		/* how many closers hold it shut */
	struct co_queue entering;	/* wait for closed == 0 */
	struct co_queue closing;	/* wait for inside == 0 */
};

static inline void gate_enter(struct gate *g)
{
	while (__builtin_expect(g->closed, 0))
		co_queue_wait(&g->entering);
	g->inside++;
}

static inline void gate_leave(struct gate *g)
{
	if (--g->inside == 0 && __builtin_expect(g->closed, 0))
		co_queue_wake_all(&g->closing);
}

/* Shuts the gate and waits until nothing is inside; 0, or -ETIMEDOUT after
 * TIMEOUT_NS with the gate as it was (0: wait for as long as it takes). */
int gate_close(struct gate *g, uint64_t timeout_ns);
void gate_open(struct gate *g);

#endif
