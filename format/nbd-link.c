/* SPDX-License-Identifier: BSD-3-Clause */
/* nbd-link: requests on one connection.
 *
 * There is no reader: of the requests that wait, one receives for all, until its
 * own answer is there; then it passes that on.  So nothing has to be ended when
 * the node closes, and the same code runs where there are no coroutines.
 *
 * A buffer that is being received into belongs to its request until the receiver
 * is out of the call: only the receiver itself, or who finds none, tells the
 * requests of a lost link.
 */
#include "format/nbd-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/bytes.h"
#include "common/checked.h"

#define EXTENT_BYTES 8u
#define ERROR_PAYLOAD_MAX (64u << 10)	/* of an error's text */

struct nbd_link *nbd_link_new(void)
{
	struct nbd_link *l = malloc(sizeof(*l));

	if (!l)
		return NULL;
	memset(l, 0, offsetof(struct nbd_link, rx));
	l->refs = 1;
	l->requests_end = &l->requests;
	return l;
}

void nbd_link_unref(struct nbd_link *l)
{
	if (!l || --l->refs)
		return;
	stream_close(&l->stream);
	free(l);
}

static void request_done(struct nbd_request *rq, int rc)
{
	rq->rc = rc;
	rq->done = true;
	co_queue_wake_all(&rq->turn);
}

static void tell_lost(struct nbd_link *l)
{
	for (struct nbd_request *rq = l->requests; rq; rq = rq->next) {
		if (rq->done)
			continue;
		rq->lost = true;
		request_done(rq, -EIO);
	}
}

void nbd_link_lose(struct nbd_link *l)
{
	if (!l->dead) {
		l->dead = true;
		stream_shutdown(&l->stream);
	}
	if (!l->receiving)
		tell_lost(l);
}

/* -- receiving ---------------------------------------------------------------- */

static int rx_take(struct nbd_link *l, void *buf, size_t len)
{
	uint32_t have = l->rx_end - l->rx_start;
	uint32_t now = (uint32_t)min_u64(have, len);

	memcpy(buf, l->rx + l->rx_start, now);
	l->rx_start += now;
	return now == len ? 0 : stream_recv_all(&l->stream, (char *)buf + now, len - now);
}

static int rx_need(struct nbd_link *l, uint32_t len)
{
	if (l->rx_start == l->rx_end) {
		l->rx_start = l->rx_end = 0;
	} else if (NBD_LINK_RX - l->rx_start < len) {
		memmove(l->rx, l->rx + l->rx_start, l->rx_end - l->rx_start);
		l->rx_end -= l->rx_start;
		l->rx_start = 0;
	}
	while (l->rx_end - l->rx_start < len) {
		ssize_t n = stream_recv(&l->stream, l->rx + l->rx_end, NBD_LINK_RX - l->rx_end);

		if (n <= 0)
			return n ? (int)n : -ECONNRESET;
		l->rx_end += (uint32_t)n;
	}
	return 0;
}

static int rx_skip(struct nbd_link *l, uint32_t len)
{
	uint8_t sink[512];
	int rc = 0;

	while (len && !rc) {
		uint32_t now = (uint32_t)min_u64(len, sizeof(sink));

		rc = rx_take(l, sink, now);
		len -= now;
	}
	return rc;
}

static int errno_of(uint32_t nbd)
{
	switch (nbd) {
	case NBD_OK:
		return 0;
	case NBD_EPERM:
		return -EPERM;
	case NBD_ENOMEM:
		return -ENOMEM;
	case NBD_EINVAL:
		return -EINVAL;
	case NBD_ENOSPC:
		return -ENOSPC;
	case NBD_ENOTSUP:
		return -ENOTSUP;
	default:
		return -EIO;
	}
}

static struct nbd_request *request_find(struct nbd_link *l, uint64_t cookie)
{
	for (struct nbd_request *rq = l->requests; rq; rq = rq->next)
		if (rq->cookie == cookie && !rq->done)
			return rq;
	return NULL;
}

/* A piece of a read is to come at [off, off+len): whether it belongs there.  What
 * a server leaves out must not be what the buffer held before. */
static bool read_piece(struct nbd_request *rq, uint64_t off, uint64_t len)
{
	if (rq->cmd != NBD_CMD_READ || !len || off < rq->off ||
	    !checked_range(off - rq->off, len, rq->len))
		return false;
	if (off - rq->off != rq->filled && !rq->wiped) {
		memset(rq->buf + rq->filled, 0, rq->len - rq->filled);
		rq->wiped = true;
	}
	rq->filled += (uint32_t)min_u64(len, UINT32_MAX - rq->filled);
	return true;
}

static int take_data(struct nbd_link *l, struct nbd_request *rq, uint32_t len)
{
	uint8_t head[8];
	uint64_t off;

	if (len <= sizeof(head) || rx_take(l, head, sizeof(head)))
		return -EPROTO;
	off = get_be64(head);
	len -= (uint32_t)sizeof(head);
	if (!read_piece(rq, off, len))
		return -EPROTO;
	return rx_take(l, rq->buf + (off - rq->off), len);
}

static int take_hole(struct nbd_link *l, struct nbd_request *rq, uint32_t len)
{
	uint8_t body[12];
	uint64_t off;
	uint32_t hole;

	if (len != sizeof(body) || rx_take(l, body, sizeof(body)))
		return -EPROTO;
	off = get_be64(body);
	hole = get_be32(body + 8);
	if (!read_piece(rq, off, hole))
		return -EPROTO;
	memset(rq->buf + (off - rq->off), 0, hole);
	return 0;
}

/* Extents up to the request's end, or as many as there is room for. */
static int take_status(struct nbd_link *l, struct nbd_request *rq, uint32_t len)
{
	uint64_t left = rq->len;
	uint8_t b[EXTENT_BYTES];

	if (rq->cmd != NBD_CMD_BLOCK_STATUS || rq->has_status || len < 4 + EXTENT_BYTES ||
	    (len - 4) % EXTENT_BYTES || rx_take(l, b, 4) || get_be32(b) != l->info.context)
		return -EPROTO;
	rq->has_status = true;
	for (len -= 4; len && left && rq->x->n < rq->x->max; len -= EXTENT_BYTES) {
		uint32_t flags, there;

		if (rx_take(l, b, sizeof(b)))
			return -ECONNRESET;
		there = get_be32(b);
		flags = get_be32(b + 4);
		if (!there)
			return -EPROTO;
		extents_add(rq->x, min_u64(there, left),
			    (flags & NBD_STATE_HOLE ? EXTENT_HOLE : 0u) |
			    (flags & NBD_STATE_ZERO ? EXTENT_ZERO : 0u), 1);
		left -= min_u64(there, left);
	}
	return rx_skip(l, len);
}

static int take_error(struct nbd_link *l, struct nbd_request *rq, uint32_t len)
{
	uint8_t b[6];
	int rc;

	if (len < sizeof(b) || len > ERROR_PAYLOAD_MAX || rx_take(l, b, sizeof(b)))
		return -EPROTO;
	rc = errno_of(get_be32(b));
	if (!rq->rc)
		rq->rc = rc ? rc : -EIO;
	return rx_skip(l, len - (uint32_t)sizeof(b));
}

/* All of the answer has come: whether it answers the request. */
static int request_complete(struct nbd_request *rq)
{
	int rc = rq->rc;

	if (!rc && rq->cmd == NBD_CMD_READ && rq->filled != rq->len)
		rc = -EIO;
	if (!rc && rq->cmd == NBD_CMD_BLOCK_STATUS && !rq->has_status)
		rc = -EIO;
	request_done(rq, rc);
	return 0;
}

static int receive_chunk(struct nbd_link *l)
{
	struct nbd_request *rq;
	uint16_t flags, type;
	uint32_t len;
	uint8_t *p;
	int rc = rx_need(l, NBD_STRUCTURED_CHUNK_SIZE);

	if (rc)
		return rc;
	p = l->rx + l->rx_start;
	l->rx_start += NBD_STRUCTURED_CHUNK_SIZE;
	flags = get_be16(p + 4);
	type = get_be16(p + 6);
	len = get_be32(p + 16);
	rq = request_find(l, get_be64(p + 8));
	if (!rq || !l->info.structured)
		return -EPROTO;
	if (type == NBD_REPLY_NONE)
		rc = len || !(flags & NBD_REPLY_FLAG_DONE) ? -EPROTO : 0;
	else if (type == NBD_REPLY_OFFSET_DATA)
		rc = take_data(l, rq, len);
	else if (type == NBD_REPLY_OFFSET_HOLE)
		rc = take_hole(l, rq, len);
	else if (type == NBD_REPLY_BLOCK_STATUS)
		rc = take_status(l, rq, len);
	else
		rc = type & 1u << 15 ? take_error(l, rq, len) : -EPROTO;
	if (!rc && (flags & NBD_REPLY_FLAG_DONE))
		rc = request_complete(rq);
	return rc;
}

static int receive_simple(struct nbd_link *l)
{
	struct nbd_request *rq;
	uint8_t *p = l->rx + l->rx_start;
	int rc;

	l->rx_start += NBD_SIMPLE_REPLY_SIZE;
	rq = request_find(l, get_be64(p + 8));
	if (!rq)
		return -EPROTO;
	rc = errno_of(get_be32(p + 4));
	if (rq->cmd == NBD_CMD_READ && !rc) {
		if (l->info.structured)
			return -EPROTO;
		if (rx_take(l, rq->buf, rq->len))
			return -ECONNRESET;
		rq->filled = rq->len;
	}
	rq->rc = rc;
	return request_complete(rq);
}

static int receive_one(struct nbd_link *l)
{
	int rc = rx_need(l, NBD_SIMPLE_REPLY_SIZE);

	if (rc)
		return rc;
	l->replies++;
	switch (get_be32(l->rx + l->rx_start)) {
	case NBD_STRUCTURED_REPLY_MAGIC:
		return receive_chunk(l);
	case NBD_SIMPLE_REPLY_MAGIC:
		return receive_simple(l);
	default:
		return -EPROTO;
	}
}

/* -- requests ----------------------------------------------------------------- */

static void await(struct nbd_link *l, struct nbd_request *rq)
{
	while (!rq->done) {
		int rc;

		if (l->receiving) {
			co_queue_wait(&rq->turn);
			continue;
		}
		l->receiving = true;
		rc = l->dead ? -ECONNRESET : receive_one(l);
		l->receiving = false;
		if (rc)
			nbd_link_lose(l);
	}
}

static void request_add(struct nbd_link *l, struct nbd_request *rq)
{
	rq->cookie = ++l->cookies;
	rq->next = NULL;
	*l->requests_end = rq;
	l->requests_end = &rq->next;
}

/* Leaves the list; another one receives from now on. */
static void request_remove(struct nbd_link *l, struct nbd_request *rq)
{
	struct nbd_request **p = &l->requests;

	while (*p != rq)
		p = &(*p)->next;
	*p = rq->next;
	if (!*p)
		l->requests_end = p;
	if (l->receiving)
		return;
	for (struct nbd_request *o = l->requests; o; o = o->next) {
		if (!o->done) {
			co_queue_wake_all(&o->turn);
			return;
		}
	}
}

static void put_head(uint8_t head[NBD_REQUEST_SIZE], const struct nbd_request *rq)
{
	put_be32(head, NBD_REQUEST_MAGIC);
	put_be16(head + 4, rq->flags);
	put_be16(head + 6, rq->cmd);
	put_be64(head + 8, rq->cookie);
	put_be64(head + 16, rq->off);
	put_be32(head + 24, rq->len);
}

void nbd_link_goodbye(struct nbd_link *l)
{
	const struct nbd_request rq = { .cmd = NBD_CMD_DISC };
	uint8_t head[NBD_REQUEST_SIZE];

	put_head(head, &rq);
	if (!l->dead && !l->send_lock.held && stream_is_plain(&l->stream) &&
	    send(l->stream.fd, head, sizeof(head), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		l->dead = true;
}

static int send_request(struct nbd_link *l, struct nbd_request *rq)
{
	uint8_t head[NBD_REQUEST_SIZE];
	struct iovec v[2] = {
		{ head, sizeof(head) }, { (void *)rq->payload, rq->payload ? rq->len : 0 },
	};
	int rc;

	put_head(head, rq);
	co_mutex_lock(&l->send_lock);
	rc = l->dead ? -ECONNRESET : stream_send_all(&l->stream, v, 2, false);
	co_mutex_unlock(&l->send_lock);
	return rc;
}

int nbd_link_run(struct nbd_link *l, struct nbd_request *rq)
{
	rq->turn = (struct co_queue){ 0 };
	rq->done = rq->lost = rq->wiped = rq->has_status = false;
	rq->rc = 0;
	rq->filled = 0;
	if (rq->x)			/* a lost link may have told a part */
		rq->x->n = 0, rq->x->total = 0;
	if (l->dead)
		return -ECONNRESET;
	request_add(l, rq);
	if (send_request(l, rq))
		nbd_link_lose(l);
	await(l, rq);
	request_remove(l, rq);
	return rq->lost ? -ECONNRESET : 0;
}
