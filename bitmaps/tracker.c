/* SPDX-License-Identifier: BSD-3-Clause */
/* tracker: the tap through which a node's bitmaps learn of its writes.
 *
 * One per node, there as long as the node has bitmaps.  It marks the granules of
 * every enabled bitmap before the write is issued: a crash between the two leaves
 * a bit too many, never one too few, and a write that fails may still have changed
 * something.  It never suspends and never refuses a write.
 *
 * A write past the end of a bitmap means that the node grew: the bitmap follows.
 * Where there is no memory for that, the bitmap is given up, not the write.
 */

#include "bitmaps/bitmap-int.h"

#include <errno.h>
#include <stdlib.h>

#include "bitmaps/changes.h"
#include "bitmaps/live.h"
#include "common/log.h"

static bool follow_growth(struct bitmap *b)
{
	int rc = bitmap_resize(b, b->node->size);

	if (rc == 0)
		return true;
	log_warning("bitmap cannot follow the growth of its node and is given up "
		    "node=%s bitmap=%s rc=%d", b->node->name, b->name, rc);
	bitmap_set_inconsistent(b);
	return false;
}

/* A bitmap that does not record keeps its bits, but what it says of zeroes is about now. */
static void forget_zeroes(struct bitmap *b, const struct tap_request *rq)
{
	uint64_t end = min_u64(rq->off + rq->len, b->size);

	if (rq->off < end)
		changes_written(b, rq->off >> b->granularity_bits,
				(end - 1) >> b->granularity_bits);
}

static void tracker_before(struct tap *t, const struct tap_request *rq)
{
	struct tracker *tr = (struct tracker *)t;
	bool live = false;

	for (struct bitmap *b = tr->node->bitmaps; b; b = b->next) {
		if (!b->enabled) {
			if (__builtin_expect(b->changes != NULL, 0))
				forget_zeroes(b, rq);
			continue;
		}
		if (__builtin_expect(rq->off + rq->len > b->size, 0) && !follow_growth(b))
			continue;
		if (rq->kind == TAP_WRITE)
			bitmap_set(b, rq->off, rq->len);
		else
			bitmap_mark(b, rq->off, rq->len);
		live |= b->live;
	}
	if (rq->kind != TAP_WRITE)
		changes_before(tr->node, rq);
	live_stamp(tr->node);
	if (live && tr->node->live)
		live_mark(tr->node, rq->off, rq->len);
}

static void tracker_after(struct tap *t, const struct tap_request *rq, int rc)
{
	struct node *n = ((struct tracker *)t)->node;

	live_stamp(n);
	if (rq->kind != TAP_WRITE)
		changes_after(n, rq, rc);
}

static const struct tap_ops tracker_ops = {
	.name = "bitmaps",
	.before = tracker_before,
	.after = tracker_after,
};

static struct tracker *tracker_new(struct node *n)
{
	struct tracker *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->tap.ops = &tracker_ops;
	t->node = n;
	node_tap_add(n, &t->tap);
	return t;
}

int tracker_attach(struct bitmap *b)
{
	struct node *n = b->node;
	struct tracker *t = n->bitmaps ? n->bitmaps->tracker : tracker_new(n);

	if (!t)
		return -ENOMEM;
	t->refs++;
	b->tracker = t;
	b->next = n->bitmaps;
	n->bitmaps = b;
	return 0;
}

void tracker_detach(struct bitmap *b)
{
	struct tracker *t = b->tracker;
	struct bitmap **p = &b->node->bitmaps;

	while (*p != b)
		p = &(*p)->next;
	*p = b->next;
	b->tracker = NULL;
	if (--t->refs)
		return;
	node_tap_remove(t->node, &t->tap);
	free(t);
}
