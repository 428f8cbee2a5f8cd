/* SPDX-License-Identifier: BSD-3-Clause */
/* ranges: which byte ranges of a node are being worked on, and who must wait.
 *
 * A request holds at most one range of a struct ranges at a time, in a struct
 * range on its own stack.  Ranges are served in the order in which they came:
 * a newcomer waits for every earlier one that overlaps it and conflicts with
 * its kind, also for those that are waiting themselves.  So nobody starves, and
 * nobody waits in a circle.
 *
 * Entering without a conflict costs a few nanoseconds, does not allocate and
 * does not suspend.  One thread only (the node's loop).
 */
#ifndef MERINO_RANGES_H
#define MERINO_RANGES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/co.h"

enum range_kind {
	RANGE_READ,	/* shared; conflicts with EXCL alone */
	RANGE_WRITE,	/* shared among writes in place; conflicts with ALLOC and EXCL */
	RANGE_ALLOC,	/* conflicts with all but READ: a reader may see the state before */
	RANGE_EXCL,	/* conflicts with everything */
	RANGE_KINDS,
};

struct range {
	struct range *prev, *next;
	uint64_t off, end;
	enum range_kind kind;
	struct co_queue waiters;	/* wait for this range to be left */
};

struct ranges {
	struct range *head, *tail;		/* in the order of arrival */
	unsigned n[RANGE_KINDS];		/* how many of each kind are in the list */
};

/* Waits until nothing earlier conflicts; whether that took a wait (ranges.c). */
bool range_wait(struct ranges *rs, struct range *r);

/* Enters [OFF, OFF+LEN).  Returns whether it had to wait: then what was looked
 * up before is stale and must be looked up again. */
static inline bool range_enter(struct ranges *rs, struct range *r, uint64_t off, uint64_t len,
			       enum range_kind kind)
{
	unsigned others = rs->n[RANGE_EXCL];

	if (kind >= RANGE_WRITE)
		others += rs->n[RANGE_ALLOC];
	if (kind >= RANGE_ALLOC)
		others += rs->n[RANGE_WRITE];
	if (kind == RANGE_EXCL)
		others += rs->n[RANGE_READ];

	r->off = off;
	r->end = off + len;
	r->kind = kind;
	r->waiters = (struct co_queue){ 0 };
	r->next = NULL;
	r->prev = rs->tail;
	if (rs->tail)
		rs->tail->next = r;
	else
		rs->head = r;
	rs->tail = r;
	rs->n[kind]++;
	if (__builtin_expect(!others, 1))
		return false;
	return range_wait(rs, r);
}

static inline void range_leave(struct ranges *rs, struct range *r)
{
	if (r->prev)
		r->prev->next = r->next;
	else
		rs->head = r->next;
	if (r->next)
		r->next->prev = r->prev;
	else
		rs->tail = r->prev;
	rs->n[r->kind]--;
	if (__builtin_expect(r->waiters.head != NULL, 0))
		co_queue_wake_all(&r->waiters);
}

#endif
