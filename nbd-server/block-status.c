/* SPDX-License-Identifier: BSD-3-Clause */
/* BLOCK_STATUS: one chunk of descriptors for each context the client selected.
 *
 * A shorter answer is a right answer: the number of extents in a reply is
 * bounded, so is the time it takes to find them, and extents never pass the range
 * that was asked for.  With extended headers a request may cover the whole disk;
 * the gate is left now and then.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "bitmaps/bitmap.h"
#include "common/bytes.h"
#include "common/checked.h"
#include "nbd-server/conn.h"

#define STATUS_EXTENTS_MAX 16384u	/* in one chunk: 128 KiB, or 256 */
#define STATUS_STEP (16ull << 30)	/* bytes of the disk that are looked at between two breaths */
#define STATUS_NS 1000000000u		/* then what was found is answer enough */
#define STATUS_FOR_ONE 16u		/* looked at for REQ_ONE: equal ones are joined */

/* What a run means in a context. */
static uint32_t descriptor_flags(const struct export_context *ctx, const struct extent *e)
{
	switch (ctx->kind) {
	case CONTEXT_ALLOCATION:
		return (e->flags & EXTENT_HOLE ? NBD_STATE_HOLE : 0) |
		       (e->flags & EXTENT_ZERO ? NBD_STATE_ZERO : 0);
	case CONTEXT_DEPTH:
		return e->depth;
	case CONTEXT_CHANGES:
		return (e->flags & EXTENT_DIRTY ? NBD_CHANGES_DIRTY : 0) |
		       (e->flags & EXTENT_ZERO ? NBD_CHANGES_ZERO : 0) |
		       (e->flags & EXTENT_HOLE ? NBD_CHANGES_HOLE : 0);
	default:
		return e->flags & EXTENT_DIRTY ? NBD_STATE_DIRTY : 0;
	}
}

/* Whether N shows the bytes of WHAT: as they are (*INSTANT is 0), or as they were then.
 * Not through a layer of its own data, of which a bitmap further down knows nothing. */
static bool shows(const struct node *n, const struct node *what, uint64_t *instant)
{
	*instant = 0;
	for (; n && n != what; n = n->child[CHILD_FILE]) {
		if (n->instant)
			*instant = n->instant;
		else if (!n->driver->filter)
			return false;
	}
	return n;
}

/* Appends what is known of [off, off+len). */
static int collect_step(struct request *rq, const struct export_context *ctx, uint64_t off,
			uint64_t len, struct extents *x)
{
	const struct bitmap *b = ctx->bitmap;
	uint64_t instant;

	if (!b)
		return node_map_chain(rq->conn->node, off, len, x);
	if (ctx->kind == CONTEXT_CHANGES && shows(rq->conn->node, b->node, &instant))
		bitmap_changes(b, off, len, instant, x);
	else
		bitmap_extents(b, off, len, x);
	return 0;
}

static int collect(struct request *rq, const struct export_context *ctx, struct extents *x)
{
	uint64_t begun = loop_now();

	for (;;) {
		uint64_t now = min_u64(rq->len - x->total, STATUS_STEP), want = x->total + now;
		int rc = collect_step(rq, ctx, rq->off + x->total, now, x);

		if (rc || !x->n)
			return x->n ? 0 : rc ? rc : -EIO;
		if (x->total < want || want == rq->len || rq->conn->dead ||
		    loop_now() - begun > STATUS_NS)
			return 0;
		request_breathe(rq);
	}
}

static uint32_t descriptor_size(const struct request *rq)
{
	return rq->conn->a.extended ? 16 : 8;
}

static void put_descriptor(uint8_t *p, bool extended, uint64_t len, uint32_t flags)
{
	if (extended) {
		put_be64(p, len);
		put_be64(p + 8, flags);
	} else {
		put_be32(p, (uint32_t)len);
		put_be32(p + 4, flags);
	}
}

/* Writes descriptors into P, merging runs that are equal in this context.
 * Returns their number. */
static uint32_t describe(const struct request *rq, const struct export_context *ctx,
			 const struct extents *x, uint8_t *p)
{
	bool one = rq->flags & NBD_CMD_FLAG_REQ_ONE, extended = rq->conn->a.extended;
	uint32_t n = 0, flags = 0, size = descriptor_size(rq);
	uint64_t len = 0;

	for (uint32_t i = 0; i < x->n; i++) {
		uint32_t f = descriptor_flags(ctx, &x->v[i]);

		if (n && f == flags) {
			len += x->v[i].len;
		} else {
			if (n && one)
				break;
			n++;
			len = x->v[i].len;
			flags = f;
		}
		put_descriptor(p + (size_t)(n - 1) * size, extended, len, flags);
	}
	return n;
}

/* The chunk for context ID; X has room. */
static int status_reply(struct request *rq, unsigned id, bool last, struct extents *x)
{
	struct conn *c = rq->conn;
	const struct export_context *ctx = &c->export->contexts[id];
	int rc = collect(rq, ctx, x);
	uint32_t size = descriptor_size(rq), n;
	uint8_t head[8];
	struct reply *r;

	if (rc)
		return rc;
	r = reply_new(c, x->n * size);
	if (!r)
		return -ENOMEM;
	n = describe(rq, ctx, x, reply_payload(r));
	put_be32(head, id);
	put_be32(head + 4, n);
	if (c->a.extended)
		reply_head_chunk(rq, r, last ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_BLOCK_STATUS_EXT,
				 n * size + 8, head, 8, n * size);
	else
		reply_head_chunk(rq, r, last ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_BLOCK_STATUS,
				 n * size + 4, head, 4, n * size);
	reply_queue(c, r);
	return 0;
}

static int status_of(struct request *rq, unsigned id, bool last)
{
	struct extents x = { .max = rq->flags & NBD_CMD_FLAG_REQ_ONE ? STATUS_FOR_ONE
								     : STATUS_EXTENTS_MAX };
	uint32_t cost = x.max * (uint32_t)sizeof(struct extent);
	int rc;

	cost = request_wait_room(rq, NULL, cost);
	x.max = cost / (uint32_t)sizeof(struct extent);
	conn_charge(rq->conn, cost);
	x.v = malloc(cost);
	rc = x.v ? status_reply(rq, id, last, &x) : -ENOMEM;
	free(x.v);
	conn_credit(rq->conn, cost);
	return rc;
}

bool request_parse_contexts(struct request *rq, const uint8_t *p, uint32_t len)
{
	const struct agreement *a = &rq->conn->a;

	rq->len = get_be64(p);
	rq->contexts = 0;
	for (uint32_t at = 8; at < len; at += 4) {
		uint32_t id = get_be32(p + at);
		unsigned i = 0;

		while (i < a->n_contexts && a->contexts[i] != id)
			i++;
		if (i == a->n_contexts || rq->contexts & 1ull << i)
			return false;
		rq->contexts |= 1ull << i;
	}
	return true;
}

void request_block_status(struct request *rq)
{
	struct conn *c = rq->conn;
	unsigned last = 0;
	int rc = 0;

	static_assert(CONTEXTS_MAX <= 64, "request.contexts has a bit for each");
	for (unsigned i = 0; i < c->a.n_contexts; i++)
		last = rq->contexts & 1ull << i ? i + 1 : last;
	for (unsigned i = 0; i < last && !rc && !c->dead; i++) {
		if (rq->contexts & 1ull << i)
			rc = status_of(rq, c->a.contexts[i], i + 1 == last);
	}
	if (rc || !last)
		reply_status(rq, nbd_error(rc));
}
