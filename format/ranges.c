// SPDX-License-Identifier: BSD-3-Clause
/* ranges: the slow half, waiting.
 *
 * A waiter sleeps on the range that stands in its way; when that is left, it
 * looks again from the beginning.  Nothing that was seen before the sleep is
 * used after it: the blocker's memory is gone by then.
 */
#include "format/ranges.h"

static bool conflicts(enum range_kind a, enum range_kind b)
{
	enum range_kind strong = a > b ? a : b, weak = a > b ? b : a;

	if (strong == RANGE_EXCL)
		return true;
	return strong == RANGE_ALLOC && weak != RANGE_READ;
}

static struct range *blocker(struct ranges *rs, struct range *r)
{
	for (struct range *o = rs->head; o != r; o = o->next)
		if (o->off < r->end && r->off < o->end && conflicts(o->kind, r->kind))
			return o;
	return NULL;
}

bool range_wait(struct ranges *rs, struct range *r)
{
	bool waited = false;
	struct range *o;

	for (; (o = blocker(rs, r)); waited = true)
		co_queue_wait(&o->waiters);
	return waited;
}
