/* SPDX-License-Identifier: BSD-3-Clause */
/* What leaves a connection.
 *
 * A reply is a block: struct reply first, then the bytes to send, header and
 * payload in one piece, the payload aligned for direct reads.  Blocks are pooled
 * by size for each thread.  Replies without payload that follow one another
 * share a block.  Whatever was queued in a turn of the loop leaves at its end,
 * gathered in as few sends as the socket takes.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "nbd-server/conn.h"

/* Classes: 0 is a small block without aligned payload; class n >= 1 has
 * PAYLOAD_MIN << (n - 1) bytes at PAYLOAD_AT. */
enum {
	SMALL_BLOCK = 1024,
	PAYLOAD_AT = 4096,
	PAYLOAD_MIN = 4096,
	CLASSES = 11,			/* up to 2 MiB of payload */
	POOL_BYTES_MAX = 16 << 20,	/* idle blocks kept by a thread */
	IOV_BATCH = 128,
	SEAL_PIECE = 128 << 10,		/* of a file, under TLS: whole records */
	FILE_LOOK = 256 << 10,		/* bytes of a file looked for in the page cache at a time */
	FILE_FRESH = 4,			/* turns of the loop for which what was cached still is */
};

static __thread struct reply *pool[CLASSES];
static __thread size_t pool_bytes;

static size_t class_size(unsigned class)
{
	return class ? PAYLOAD_AT + ((size_t)PAYLOAD_MIN << (class - 1)) : SMALL_BLOCK;
}

static unsigned class_of(uint32_t len)
{
	unsigned class = 0;

	if (len <= SMALL_BLOCK - sizeof(struct reply) - REPLY_HEAD_MAX)
		return 0;
	for (class = 1; ((uint32_t)PAYLOAD_MIN << (class - 1)) < len; class++)
		;
	return class;
}

static char *reply_bytes(struct reply *r)
{
	return (char *)r + (r->class ? PAYLOAD_AT : sizeof(*r) + REPLY_HEAD_MAX);
}

struct reply *reply_new(struct conn *c, uint32_t len)
{
	unsigned class = class_of(len);
	struct reply *r = pool[class];

	if (r) {
		pool[class] = r->next;
		pool_bytes -= class_size(class);
	} else if (posix_memalign((void **)&r, class ? PAYLOAD_AT : 64, class_size(class))) {
		return NULL;
	}
	r->next = NULL;
	r->class = (uint8_t)class;
	r->kind = REPLY_DATA;
	r->ended = false;
	r->file = NULL;
	r->pieces = NULL;
	r->pieces_end = &r->pieces;
	r->cost = (uint32_t)class_size(class);
	conn_charge(c, r->cost);
	return r;
}

static void reply_pool(struct reply *r)
{
	size_t size = class_size(r->class);

	if (pool_bytes + size > POOL_BYTES_MAX) {
		free(r);
		return;
	}
	pool_bytes += size;
	r->next = pool[r->class];
	pool[r->class] = r;
}

void reply_pool_drain(void)
{
	for (unsigned i = 0; i < CLASSES; i++) {
		while (pool[i]) {
			struct reply *r = pool[i];

			pool[i] = r->next;
			free(r);
		}
	}
	pool_bytes = 0;
}

void reply_free(struct conn *c, struct reply *r)
{
	while (r->pieces) {
		struct reply *p = r->pieces;

		r->pieces = p->next;
		reply_free(c, p);
	}
	io_file_unref(r->file);
	conn_credit(c, r->cost);
	reply_pool(r);
}

uint8_t *reply_payload(struct reply *r)
{
	return (uint8_t *)reply_bytes(r);
}

void reply_head_simple(struct reply *r, uint64_t cookie, uint32_t error, uint32_t len)
{
	char *h = reply_bytes(r) - NBD_SIMPLE_REPLY_SIZE;

	put_be32(h, NBD_SIMPLE_REPLY_MAGIC);
	put_be32(h + 4, error);
	memcpy(h + 8, &cookie, 8);
	r->iov = (struct iovec){ .iov_base = h, .iov_len = NBD_SIMPLE_REPLY_SIZE + len };
}

static uint32_t chunk_head_size(const struct request *rq)
{
	return rq->conn->a.extended ? NBD_EXTENDED_CHUNK_SIZE : NBD_STRUCTURED_CHUNK_SIZE;
}

/* Specification: "Structured reply chunk message", "Extended reply chunk message". */
static void put_chunk_head(const struct request *rq, char *h, uint16_t flags, uint16_t type,
			   uint32_t len)
{
	put_be16(h + 4, flags);
	put_be16(h + 6, type);
	memcpy(h + 8, &rq->cookie, 8);
	if (!rq->conn->a.extended) {
		put_be32(h, NBD_STRUCTURED_REPLY_MAGIC);
		put_be32(h + 16, len);
		return;
	}
	put_be32(h, NBD_EXTENDED_REPLY_MAGIC);
	put_be64(h + 16, rq->off);
	put_be64(h + 24, len);
}

void reply_head_chunk(const struct request *rq, struct reply *r, uint16_t flags, uint16_t type,
		      uint32_t chunk_len, const void *extra, uint32_t extra_len, uint32_t len)
{
	uint32_t head = chunk_head_size(rq);
	char *h = reply_bytes(r) - extra_len - head;

	assert(head + extra_len <= REPLY_HEAD_MAX);
	put_chunk_head(rq, h, flags, type, chunk_len);
	if (extra_len)
		memcpy(h + head, extra, extra_len);
	r->iov = (struct iovec){ .iov_base = h, .iov_len = head + extra_len + len };
}

/* -- the queue -------------------------------------------------------------- */

static void conn_sender(void *arg);

static void tx_flush(struct loop_hook *h)
{
	struct conn *c = (struct conn *)((char *)h - offsetof(struct conn, tx_hook));

	if (c->sending || !c->tx) {
		co_queue_wake_all(&c->room);	/* sent early: conn_finish() may wait for us */
		return;
	}
	c->sending = true;
	c->tx_ready = 0;
	if (c->a.send_timeout_ns)
		conn_watch(c);
	co_start(conn_sender, c);
}

/* Something was queued: it leaves at the end of the turn, or when there is enough. */
static void tx_one_more(struct conn *c)
{
	if (c->sending)
		return;
	loop_hook_queue(&c->tx_hook, tx_flush);
	if (++c->tx_ready >= TX_EARLY)
		tx_flush(&c->tx_hook);
}

void reply_queue(struct conn *c, struct reply *r)
{
	r->next = NULL;
	*c->tx_end = r;
	c->tx_end = &r->next;
	tx_one_more(c);
}

void reply_stream_add(struct conn *c, struct reply *s, struct reply *piece)
{
	piece->next = NULL;
	*s->pieces_end = piece;
	s->pieces_end = &piece->next;
	if (c->tx_dry == s)
		c->tx_dry = NULL;
	co_queue_wake_all(&c->tx_more);
}

void reply_stream_end(struct conn *c, struct reply *s)
{
	s->ended = true;
	co_queue_wake_all(&c->tx_more);
}

bool conn_tx_idle(const struct conn *c)
{
	return !c->sending && !c->tx && !c->tx_hook.queued;
}

/* The last queued reply when it is a small block with room for SIZE bytes more. */
static struct reply *tx_tail_with_room(struct conn *c, uint32_t size)
{
	struct reply *r;
	char *end;

	if (!c->tx)
		return NULL;
	r = (struct reply *)((char *)c->tx_end - offsetof(struct reply, next));
	if (r->class || r->kind != REPLY_DATA)
		return NULL;
	end = (char *)r->iov.iov_base + r->iov.iov_len;
	return (char *)r + SMALL_BLOCK - end >= size ? r : NULL;
}

static void reply_simple_status(struct conn *c, uint64_t cookie, uint32_t error)
{
	struct reply *r = tx_tail_with_room(c, NBD_SIMPLE_REPLY_SIZE);
	char *h;

	if (!r) {
		r = reply_new(c, 0);
		if (!r) {
			conn_kill(c);
			return;
		}
		reply_head_simple(r, cookie, error, 0);
		reply_queue(c, r);
		return;
	}
	h = (char *)r->iov.iov_base + r->iov.iov_len;
	put_be32(h, NBD_SIMPLE_REPLY_MAGIC);
	put_be32(h + 4, error);
	memcpy(h + 8, &cookie, 8);
	r->iov.iov_len += NBD_SIMPLE_REPLY_SIZE;
	tx_one_more(c);
}

/* Extended headers know no simple reply: success is a chunk without a payload. */
static void reply_extended_success(struct conn *c, const struct request *rq)
{
	struct reply *r = tx_tail_with_room(c, NBD_EXTENDED_CHUNK_SIZE);

	if (r) {
		put_chunk_head(rq, (char *)r->iov.iov_base + r->iov.iov_len, NBD_REPLY_FLAG_DONE,
			       NBD_REPLY_NONE, 0);
		r->iov.iov_len += NBD_EXTENDED_CHUNK_SIZE;
		tx_one_more(c);
		return;
	}
	r = reply_new(c, 0);
	if (!r) {
		conn_kill(c);
		return;
	}
	reply_head_chunk(rq, r, NBD_REPLY_FLAG_DONE, NBD_REPLY_NONE, 0, NULL, 0, 0);
	reply_queue(c, r);
}

/* Specification: "NBD_REPLY_TYPE_ERROR": error, length of a text, the text. */
static void reply_structured_error(struct conn *c, const struct request *rq, uint32_t error)
{
	struct reply *r = reply_new(c, 0);
	uint8_t body[6];

	if (!r) {
		conn_kill(c);
		return;
	}
	put_be32(body, error);
	put_be16(body + 4, 0);
	reply_head_chunk(rq, r, NBD_REPLY_FLAG_DONE, NBD_REPLY_ERROR, sizeof(body), body,
			 sizeof(body), 0);
	reply_queue(c, r);
}

void reply_status(struct request *rq, uint32_t error)
{
	struct conn *c = rq->conn;

	if (c->dead)
		return;
	if (error && c->a.structured)
		reply_structured_error(c, rq, error);
	else if (c->a.extended)
		reply_extended_success(c, rq);
	else
		reply_simple_status(c, rq->cookie, error);
}

/* -- the sender ------------------------------------------------------------- */

/* Sends all of V; false when the connection is dead. */
static bool send_all(struct conn *c, struct iovec *v, int n, bool more)
{
	if (!c->dead && stream_send_all(&c->stream, v, n, more))
		conn_kill(c);
	return !c->dead;
}

/* LEN bytes of R's file, from where it is at; false when there are fewer, or none. */
static bool read_from_file(struct conn *c, const struct reply *r, void *buf, size_t len)
{
	ssize_t n;

	c->tx_reads = true;
	n = io_pread(r->file, buf, len, r->file_off);
	c->tx_reads = false;
	return n == (ssize_t)len;
}

/* A piece that the page cache does not have any more: sendfile(2) would wait for the
 * storage, and everybody with it. */
static void send_file_piece(struct conn *c, struct reply *r, uint32_t len)
{
	struct reply *p = reply_new(c, len);
	struct iovec v;

	if (!p) {
		conn_kill(c);
		return;
	}
	v = (struct iovec){ .iov_base = reply_payload(p), .iov_len = len };
	if (read_from_file(c, r, v.iov_base, len))
		send_all(c, &v, 1, false);
	else
		conn_kill(c);
	r->file_off += len;
	r->file_len -= len;
	reply_free(c, p);
}

/* From the page cache into the socket, without a copy.  The length was promised
 * in the header: a file that has become shorter ends the connection. */
static void send_file(struct conn *c, struct reply *r)
{
	while (r->file_len && !c->dead) {
		bool fresh = loop_turn() - r->turn <= FILE_FRESH;
		size_t len = fresh ? r->file_len : (size_t)min_u64(r->file_len, FILE_LOOK);
		off_t off = (off_t)r->file_off;
		ssize_t sent;

		if (!fresh && !io_is_cached(r->file, r->file_off, len)) {
			send_file_piece(c, r, (uint32_t)len);
			continue;
		}
		sent = sendfile(c->stream.fd, r->file->fd, &off, len);

		if (sent > 0) {
			r->file_off += (uint64_t)sent;
			r->file_len -= (uint64_t)sent;
			c->stream.sent += (uint64_t)sent;
		} else if (sent < 0 && errno == EAGAIN) {
			if (io_poll(c->stream.io, c->stream.fd, POLLOUT) < 0)
				conn_kill(c);
		} else if (sent == 0 || errno != EINTR) {
			conn_kill(c);
		}
	}
}

/* The same under TLS, header and all: read piece by piece into what stays in the
 * processor's cache until it is sealed. */
static void seal_file(struct conn *c, struct reply *r)
{
	struct reply *block = reply_new(c, SEAL_PIECE);
	size_t head = r->iov.iov_len;

	if (!block)
		conn_kill(c);
	while (r->file_len && !c->dead) {
		size_t now = min_u64(r->file_len, SEAL_PIECE - head);
		struct iovec v[2] = { r->iov, { reply_payload(block), now } };

		if (!read_from_file(c, r, reply_payload(block), now))
			conn_kill(c);
		send_all(c, head ? v : v + 1, head ? 2 : 1, false);
		r->file_off += now;
		r->file_len -= now;
		head = 0;
	}
	if (block)
		reply_free(c, block);
}

static void send_stream(struct conn *c, struct reply *s)
{
	while (!c->dead) {
		struct reply *p = s->pieces;

		if (!p) {
			if (s->ended)
				break;
			c->tx_dry = s;
			co_queue_wake_all(&c->room);
			co_queue_wait(&c->tx_more);
			continue;
		}
		s->pieces = p->next;
		if (!s->pieces)
			s->pieces_end = &s->pieces;
		send_all(c, &p->iov, 1, true);
		reply_free(c, p);
	}
	while (!s->ended)		/* the reading side still refers to it */
		co_queue_wait(&c->tx_more);
	c->tx_dry = NULL;
}

/* Takes plain replies off the queue, up to and with one that has more behind
 * its header; returns that one or NULL. */
static struct reply *send_batch(struct conn *c)
{
	struct iovec v[IOV_BATCH];
	struct reply *batch = c->tx, *last = NULL, *r;
	bool plain = stream_is_plain(&c->stream);
	int n = 0;

	for (r = batch; r && n < IOV_BATCH; r = r->next) {
		if (plain || r->kind != REPLY_FILE)	/* else it goes with the file's bytes */
			v[n++] = r->iov;
		last = r;
		if (r->kind != REPLY_DATA)
			break;
	}
	c->tx = last->next;
	if (!c->tx)
		c->tx_end = &c->tx;
	last->next = NULL;
	send_all(c, v, n, last->kind != REPLY_DATA);
	while (batch != last) {
		r = batch->next;
		reply_free(c, batch);
		batch = r;
	}
	if (last->kind != REPLY_DATA)
		return last;
	reply_free(c, last);
	return NULL;
}

/* The sender coroutine: lives until the queue is empty. */
static void conn_sender(void *arg)
{
	struct conn *c = arg;

	while (c->tx) {
		struct reply *r = send_batch(c);

		if (!r)
			continue;
		if (r->kind == REPLY_FILE && stream_is_plain(&c->stream))
			send_file(c, r);
		else if (r->kind == REPLY_FILE)
			seal_file(c, r);
		else
			send_stream(c, r);
		reply_free(c, r);
	}
	c->sending = false;
	co_queue_wake_all(&c->room);
}
