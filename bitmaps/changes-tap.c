/* SPDX-License-Identifier: BSD-3-Clause */
/* changes-tap: zeroes and discards on their way past a node's bitmaps.
 *
 * Before the request, the granules that lie wholly in it become pending; where another
 * request is under way, they are written: nobody knows which of the two comes first.
 * Whatever passes later and touches them makes them written, too.  So what is pending in
 * a request's range is its own, and what is still pending when it has ended changed in no
 * other way: it is zeroed.  A discard is a hint, and what it leaves behind is the node's
 * business: the node is asked which parts read as zeroes.
 *
 * A granule that is zeroed stays so when a part of it is zeroed again; not when a part of
 * it is discarded.
 */

#include "bitmaps/changes.h"

#include "bitmaps/bitmap-int.h"
#include "bitmaps/bits.h"

#define EXTENTS_AT_ONCE 64u
#define EXTENTS_LOOKED_AT 4096u		/* then the rest of a discard counts as written */

/* Granules [FIRST, END). */
struct span {
	uint64_t first, end;
};

/* What [off, off+len) touches of B. */
static struct span touched(const struct bitmap *b, uint64_t off, uint64_t len)
{
	uint64_t end = off + min_u64(len, b->size - min_u64(off, b->size));

	if (off >= end)
		return (struct span){ 0, 0 };
	return (struct span){ off >> b->granularity_bits,
			      DIV_ROUND_UP(end, bitmap_granularity(b)) };
}

/* What lies wholly in it; the last granule ends with the bitmap. */
static struct span whole(const struct bitmap *b, uint64_t off, uint64_t len)
{
	struct span t = touched(b, off, len);
	uint64_t end = off + len >= b->size ? t.end : (off + len) >> b->granularity_bits;

	t.first = DIV_ROUND_UP(off, bitmap_granularity(b));
	t.end = min_u64(end, t.end);
	return t.first < t.end ? t : (struct span){ 0, 0 };
}

static void span_written(struct bitmap *b, struct span s)
{
	if (s.first < s.end)
		changes_written(b, s.first, s.end - 1);
}

/* The granule in which an end of a zero lies: zeroed it was, zeroed it stays, but it may
 * take space again. */
static void partly(struct bitmap *b, uint64_t g, const struct tap_request *rq)
{
	bool stays = rq->kind == TAP_ZERO && bits_test(b->changes->zero, g);

	if (!stays)
		changes_written(b, g, g);
	else if (!(rq->flags & NODE_MAY_UNMAP))
		bits_clear(b->changes->hole, g, g);
}

static void begin(struct bitmap *b, const struct tap_request *rq)
{
	struct span t = touched(b, rq->off, rq->len), w = whole(b, rq->off, rq->len);

	if (t.first >= t.end || (w.first == w.end && !b->changes) || changes_make(b) < 0)
		return;
	if (w.first == w.end) {
		partly(b, t.first, rq);
		partly(b, t.end - 1, rq);
		return;
	}
	if (t.first < w.first)
		partly(b, t.first, rq);
	if (w.end < t.end)
		partly(b, t.end - 1, rq);
	changes_pending(b, w.first, w.end - 1);
}

/* Where RQ meets OTHER. */
static void meet(struct bitmap *b, const struct tap_request *rq, const struct tap_request *other)
{
	struct span a = touched(b, rq->off, rq->len), o = touched(b, other->off, other->len);

	span_written(b, (struct span){ max_u64(a.first, o.first), min_u64(a.end, o.end) });
}

void changes_before(struct node *n, const struct tap_request *rq)
{
	for (struct bitmap *b = n->bitmaps; b; b = b->next) {
		if (!b->bits || !b->enabled)
			continue;		/* the tracker has seen to those */
		begin(b, rq);
		for (const struct tap_request *o = b->changes ? n->passing : NULL; o; o = o->next)
			if (o != rq)
				meet(b, rq, o);
	}
}

/* [off, off+len) reads as zeroes. */
static void claim(struct node *n, uint64_t off, uint64_t len, bool hole)
{
	for (struct bitmap *b = n->bitmaps; b && len; b = b->next) {
		struct span w = whole(b, off, len);

		if (b->enabled && w.first < w.end)
			changes_claim(b, w.first, w.end - 1, hole);
	}
}

/* Claims what the node says reads as zeroes after a discard.  Runs are joined: a granule
 * may lie in two of them. */
static void claim_discarded(struct node *n, const struct tap_request *rq)
{
	struct extent v[EXTENTS_AT_ONCE];
	uint64_t at = rq->off, from = at, end = rq->off + rq->len;
	unsigned seen = 0;

	while (at < end && seen < EXTENTS_LOOKED_AT) {
		struct extents x = { .v = v, .max = EXTENTS_AT_ONCE };

		if (node_map_chain(n, at, end - at, &x) < 0 || !x.n)
			break;
		for (uint32_t i = 0; i < x.n && at < end; i++, seen++) {
			if (!(v[i].flags & EXTENT_ZERO)) {
				claim(n, from, at - from, true);
				from = at + v[i].len;
			}
			at += v[i].len;
		}
	}
	if (from < at)
		claim(n, from, min_u64(at, end) - from, true);
}

static bool has_changes(const struct node *n)
{
	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->changes)
			return true;
	return false;
}

/* What is pending still is written; after a failure all that was touched is. */
static void finish(struct node *n, const struct tap_request *rq, int rc)
{
	for (struct bitmap *b = n->bitmaps; b; b = b->next) {
		struct span t = touched(b, rq->off, rq->len);

		if (t.first >= t.end)
			continue;
		if (rc)
			changes_written(b, t.first, t.end - 1);
		else
			changes_give_up(b, t.first, t.end - 1);
	}
}

void changes_after(struct node *n, const struct tap_request *rq, int rc)
{
	if (!has_changes(n))
		return;
	if (!rc && rq->kind == TAP_ZERO)
		claim(n, rq->off, rq->len, rq->flags & NODE_MAY_UNMAP);
	else if (!rc)
		claim_discarded(n, rq);
	finish(n, rq, rc);
}
