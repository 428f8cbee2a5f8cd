/* SPDX-License-Identifier: BSD-3-Clause */
/* One request: validated, served in its own coroutine, answered once.
 */
#include "nbd-server/conn.h"

#include <errno.h>

#include "common/checked.h"

uint32_t nbd_error(int rc)
{
	switch (-rc) {
	case 0:
		return NBD_OK;
	case EPERM:
	case EACCES:
	case EROFS:
		return NBD_EPERM;
	case ENOMEM:
		return NBD_ENOMEM;
	case EINVAL:
		return NBD_EINVAL;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return NBD_ENOSPC;
	case EOVERFLOW:
		return NBD_EOVERFLOW;
	case ENOTSUP:
		return NBD_ENOTSUP;
	case ESHUTDOWN:
		return NBD_ESHUTDOWN;
	default:
		return NBD_EIO;
	}
}

/* Flags that may come with a command; FUA may come with any. */
static uint16_t flags_allowed(const struct conn *c, uint16_t type)
{
	switch (type) {
	case NBD_CMD_READ:
		return NBD_CMD_FLAG_FUA | (c->a.structured ? NBD_CMD_FLAG_DF : 0);
	case NBD_CMD_WRITE_ZEROES:
		return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
	case NBD_CMD_BLOCK_STATUS:
		return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
	default:
		return NBD_CMD_FLAG_FUA;
	}
}

static bool is_write(uint16_t type)
{
	return type == NBD_CMD_WRITE || type == NBD_CMD_TRIM || type == NBD_CMD_WRITE_ZEROES;
}

/* All refusals, in the order of the specification ("Transmission phase"). */
uint32_t request_check(const struct request *rq)
{
	const struct conn *c = rq->conn;
	const struct export *e = c->export;

	if (rq->type > NBD_CMD_BLOCK_STATUS || rq->type == NBD_CMD_DISC)
		return NBD_EINVAL;
	if (rq->flags & ~flags_allowed(c, rq->type))
		return NBD_EINVAL;
	if (is_write(rq->type) && !e->writable)
		return NBD_EPERM;
	if (rq->type == NBD_CMD_FLUSH)
		return NBD_OK;
	/* The disk may have another size by now than the client was told. */
	if (!checked_range(rq->off, rq->len, c->node->size))
		return is_write(rq->type) && rq->type != NBD_CMD_TRIM ? NBD_ENOSPC : NBD_EINVAL;
	if ((rq->off | rq->len) & (e->block_min - 1))
		return NBD_EINVAL;
	if (rq->type == NBD_CMD_READ && rq->len > NBD_REQUEST_MAX)
		return c->a.extended ? NBD_EOVERFLOW : NBD_EINVAL;
	if (rq->type == NBD_CMD_BLOCK_STATUS && (!rq->len || !c->a.n_contexts))
		return NBD_EINVAL;
	return NBD_OK;
}

/* Commands that are answered with a status alone. */
static int serve(struct request *rq)
{
	struct node *n = rq->conn->node;

	switch (rq->type) {
	case NBD_CMD_WRITE:
		return node_write(n, rq->payload, rq->off, (size_t)rq->len,
				  rq->flags & NBD_CMD_FLAG_FUA ? NODE_FUA : 0);
	case NBD_CMD_FLUSH:
		return node_flush(n);
	case NBD_CMD_TRIM:
		return request_trim(rq);
	case NBD_CMD_CACHE:
		return request_cache(rq);
	case NBD_CMD_WRITE_ZEROES:
		return request_zeroes(rq);
	default:
		return -EINVAL;
	}
}

uint32_t request_wait_room(struct request *rq, const struct reply *stream, uint32_t want)
{
	struct conn *c = rq->conn;

	if (conn_has_room(c, want))
		return want;
	conn_leave(c);
	want = conn_wait_room(c, stream, want);
	conn_enter(c);
	return want;
}

void request_breathe(struct request *rq)
{
	conn_leave(rq->conn);
	co_yield();
	conn_enter(rq->conn);
}

static void request_done(struct request *rq, uint64_t begun)
{
	struct conn *c = rq->conn;
	struct loop_guests *g = loop_guests();

	if (c->export->writable) {
		g->ended++;
		g->ended_ns = loop_now();
		g->ns += g->ended_ns - begun;
	}

	if (rq->rx)
		rxbuf_unref(c, rq->rx);
	if (rq->block)
		reply_free(c, rq->block);
	conn_request_ended(c);
}

static enum io_kind kind_of(uint16_t type)
{
	switch (type) {
	case NBD_CMD_WRITE:
	case NBD_CMD_WRITE_ZEROES:
		return IO_KIND_WRITE;
	case NBD_CMD_FLUSH:
		return IO_KIND_FLUSH;
	case NBD_CMD_TRIM:
		return IO_KIND_UNMAP;
	default:
		return IO_KIND_READ;
	}
}

void request_run(void *arg)
{
	struct request rq = *(struct request *)arg;
	struct conn *c = rq.conn;
	uint64_t begun = loop_now();
	int rc;

	if (c->dead) {
		/* It had to wait, and nobody waits for it any more: it was never begun. */
	} else if (rq.type == NBD_CMD_BLOCK_STATUS) {
		request_block_status(&rq);
	} else if (rq.type == NBD_CMD_READ) {
		rc = request_read(&rq);
		export_account(c->export, IO_KIND_READ, rq.len, begun, rc);
	} else {
		rc = serve(&rq);
		export_account(c->export, kind_of(rq.type), rq.len, begun, rc);
		reply_status(&rq, nbd_error(rc));
	}
	conn_leave(c);
	request_done(&rq, begun);
}
