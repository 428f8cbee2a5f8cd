/* SPDX-License-Identifier: BSD-3-Clause */
/* copier-pace: how fast the copier goes.
 *
 * The limit is bytes a second, over all that is dealt with, zeroes included, as in QEMU:
 * each task moves the time at which the next one may start.  Nothing is saved up.
 */
#include "backup/copier-int.h"

#include <errno.h>

#define SLICE_NS 100000000ull	/* a task takes no longer than this at the limit */
#define SLEEP_MAX (1ull << 60)	/* ns: for ever, but it can be added to a time */

void copier_nap(struct copier *c, uint64_t ns)
{
	uint64_t limits = c->limits, end = loop_now() + ns;
	bool early = true;

	if (!loop_self()) {
		io_sleep(c->o.source->io, ns);
		return;
	}
	while (early && limits == c->limits && !copier_should_stop(c))
		early = loop_queue_wait(c->wake, end);
}

void copier_pace(struct copier *c)
{
	uint64_t now;

	while (c->o.speed && (now = loop_now()) < c->next_ns && !copier_should_stop(c))
		copier_nap(c, c->next_ns - now);
}

void copier_paced(struct copier *c, uint64_t len)
{
	uint64_t now = loop_now(), ns;

	if (!c->o.speed)
		return;
	ns = len > UINT64_MAX / 4000000000u ? SLEEP_MAX : len * 1000000000u / c->o.speed;
	c->next_ns = max_u64(c->next_ns, now) + ns;
}

uint64_t copier_reach(const struct copier *c, enum copier_kind kind)
{
	uint64_t reach = kind == COPIER_DATA ? copier_piece(c) : UINT64_MAX;

	if (c->o.speed)
		reach = min_u64(reach, c->o.speed / (1000000000u / SLICE_NS));
	return reach;
}
