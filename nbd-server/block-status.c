/* SPDX-License-Identifier: BSD-3-Clause */
/* BLOCK_STATUS: one chunk of descriptors for each context the client selected.
 *
 * A shorter answer is a right answer: the number of extents in a reply is
 * bounded, and extents never pass the range that was asked for.
 */
#include <errno.h>
#include <stdlib.h>

#include "bitmaps/bitmap.h"
#include "common/bytes.h"
#include "nbd-server/conn.h"

#define STATUS_EXTENTS_MAX 16384u	/* in one chunk: 128 KiB */
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
	default:
		return e->flags & EXTENT_DIRTY ? NBD_STATE_DIRTY : 0;
	}
}

static int collect(struct request *rq, const struct export_context *ctx, struct extents *x)
{
	int rc;

	if (ctx->kind == CONTEXT_BITMAP) {
		bitmap_extents(ctx->bitmap, rq->off, rq->len, x);
		return x->n ? 0 : -EIO;
	}
	rc = node_map_chain(rq->conn->node, rq->off, rq->len, x);
	return !rc && !x->n ? -EIO : rc;
}

/* Writes descriptors into P, merging runs that are equal in this context.
 * Returns their number. */
static uint32_t describe(const struct export_context *ctx, const struct extents *x, bool one,
			 uint8_t *p)
{
	uint32_t n = 0, len = 0, flags = 0;

	for (uint32_t i = 0; i < x->n; i++) {
		uint32_t f = descriptor_flags(ctx, &x->v[i]);

		if (n && f == flags) {
			len += (uint32_t)x->v[i].len;
		} else {
			if (n && one)
				break;
			n++;
			len = (uint32_t)x->v[i].len;
			flags = f;
		}
		put_be32(p + (size_t)(n - 1) * 8, len);
		put_be32(p + (size_t)(n - 1) * 8 + 4, flags);
	}
	return n;
}

/* The chunk for context ID; X has room. */
static int status_reply(struct request *rq, unsigned id, bool last, struct extents *x)
{
	struct conn *c = rq->conn;
	const struct export_context *ctx = &c->export->contexts[id];
	int rc = collect(rq, ctx, x);
	uint8_t be_id[4];
	struct reply *r;
	uint32_t n;

	if (rc)
		return rc;
	r = reply_new(c, x->n * 8);
	if (!r)
		return -ENOMEM;
	n = describe(ctx, x, rq->flags & NBD_CMD_FLAG_REQ_ONE, reply_payload(r));
	put_be32(be_id, id);
	reply_head_chunk(r, rq->cookie, last ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_BLOCK_STATUS,
			 n * 8 + 4, be_id, 4, n * 8);
	reply_queue(c, r);
	return 0;
}

static int status_of(struct request *rq, unsigned id, bool last)
{
	struct extents x = { .max = rq->flags & NBD_CMD_FLAG_REQ_ONE ? STATUS_FOR_ONE
								     : STATUS_EXTENTS_MAX };
	uint32_t cost = x.max * (uint32_t)sizeof(struct extent);
	int rc;

	request_wait_room(rq, NULL, cost);
	conn_charge(rq->conn, cost);
	x.v = malloc(cost);
	rc = x.v ? status_reply(rq, id, last, &x) : -ENOMEM;
	free(x.v);
	conn_credit(rq->conn, cost);
	return rc;
}

void request_block_status(struct request *rq)
{
	struct conn *c = rq->conn;
	int rc = 0;

	for (unsigned i = 0; i < c->a.n_contexts && !rc && !c->dead; i++)
		rc = status_of(rq, c->a.contexts[i], i + 1 == c->a.n_contexts);
	if (rc)
		reply_status(rq, nbd_error(rc));
}
