/* SPDX-License-Identifier: BSD-3-Clause */
/* Closing and opening a gate: see gate.h. */
#include "format/gate.h"

#include <assert.h>
#include <errno.h>

#include "common/loop.h"

int gate_close(struct gate *g, uint64_t timeout_ns)
{
	uint64_t end = timeout_ns ? loop_now() + timeout_ns : UINT64_MAX;
	bool early = true;

	g->closed++;
	while (g->inside && early)
		early = loop_queue_wait(&g->closing, end);
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
