/* SPDX-License-Identifier: BSD-3-Clause */
/* Closing and opening a gate: see gate.h. */
#include "format/gate.h"

#include <assert.h>
#include <errno.h>

#include "common/loop.h"

/* Wakes the closer when its patience ends. */
struct gate_limit {
	struct loop_timer timer;
	struct gate *gate;
	bool over;
};

static void gate_limit_over(struct loop_timer *t)
{
	struct gate_limit *limit = (struct gate_limit *)t;

	limit->over = true;
	co_queue_wake_all(&limit->gate->closing);
}

int gate_close(struct gate *g, uint64_t timeout_ns)
{
	struct gate_limit limit = { .gate = g };

	g->closed++;
	if (g->inside && timeout_ns)
		loop_timer_set(&limit.timer, loop_now() + timeout_ns, gate_limit_over);
	while (g->inside && !limit.over)
		co_queue_wait(&g->closing);
	loop_timer_cancel(&limit.timer);
	if (!g->inside)
		return 0;
	gate_open(g);
	return -ETIMEDOUT;
}

void gate_open(struct gate *g)
{
	assert(g->closed);
	if (--g->closed == 0)
		co_queue_wake_all(&g->entering);
}
