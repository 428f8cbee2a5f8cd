/* SPDX-License-Identifier: BSD-3-Clause */
/* conn: the life of a connection in transmission, and what arrives on it.
 *
 * One reader coroutine per connection receives as much as there is, parses
 * requests where they lie and starts a coroutine for each.  It stops reading
 * while the connection holds its share of requests or memory, so that a client
 * that does not read its replies ends up waiting for itself alone.
 */
#include "nbd-server/conn.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/log.h"
#include "nbd-server/daemon.h"
#include "nbd-server/listener.h"

static __thread unsigned requests_here;	/* in flight on this thread */

static void pools_drain(struct loop_hook *h)
{
	rx_pools_drain();
	reply_pool_drain();
}

/* -- requests --------------------------------------------------------------- */

/* Specification: "Request message", compact and extended.  false: it is none. */
static bool parse(struct conn *c, struct request *rq)
{
	bool extended = c->a.extended;
	const uint8_t *p;

	if (!rx_need(c, extended ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE))
		return false;
	p = c->rx->data + c->rx_start;
	if (get_be32(p) != (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) {
		log_info("connection dropped reason='bad request magic' export='%s'", c->export->name);
		return false;
	}
	*rq = (struct request){
		.conn = c,
		.flags = get_be16(p + 4),
		.type = get_be16(p + 6),
		.off = get_be64(p + 16),
		.len = extended ? get_be64(p + 24) : get_be32(p + 24),
		.contexts = UINT64_MAX,
	};
	memcpy(&rq->cookie, p + 8, 8);
	c->rx_start += extended ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE;
	c->rx_requests++;
	return true;
}

/* The last of a loop's requests are for those who have none. */
static bool may_start(const struct conn *c)
{
	return !c->in_flight || c->dead ||
	       (c->in_flight < CONN_REQUESTS_MAX && requests_here < LOOP_REQUESTS_MAX);
}

/* Waits until the request may start, then starts it.  At the gate it is the reader
 * that waits: requests that have not begun hold no memory that was counted. */
static void dispatch(struct conn *c, struct request *rq)
{
	while (!may_start(c))
		co_queue_wait(&c->room);
	conn_enter(c);
	c->in_flight++;
	requests_here++;
	if (c->export->writable)
		loop_guests()->begun++;
	co_start(request_run, rq);
}

void conn_request_ended(struct conn *c)
{
	c->in_flight--;
	requests_here--;
	if (c->room.head)
		co_queue_wake_all(&c->room);
}

/* A write that is too long to hold: received and written piece by piece, in
 * the reader itself.  Durability is asked for each piece. */
static bool write_in_pieces(struct conn *c, struct request *rq)
{
	struct reply *block;
	uint32_t left = (uint32_t)rq->len, piece;
	uint64_t off = rq->off, begun = loop_now();
	bool ok = true;
	int rc;

	piece = conn_wait_room(c, NULL, (uint32_t)min_u64(left, REQUEST_PIECE));
	block = reply_new(c, piece);
	rc = block ? 0 : -ENOMEM;
	while (left && ok) {
		uint32_t now = (uint32_t)min_u64(left, piece);

		ok = rx_take(c, rc ? NULL : reply_payload(block), now);
		if (ok && !rc) {
			conn_enter(c);
			rc = c->dead ? -ESHUTDOWN
				     : node_write(c->node, reply_payload(block), off, now,
						  rq->flags & NBD_CMD_FLAG_FUA ? NODE_FUA : 0);
			conn_leave(c);
		}
		off += now;
		left -= now;
	}
	if (block)
		reply_free(c, block);
	export_account(c->export, IO_KIND_WRITE, rq->len, begun, rc);
	if (ok)
		reply_status(rq, nbd_error(rc));
	return ok;
}

/* A payload in a block of its own, received straight into place. */
static bool write_from_block(struct conn *c, struct request *rq)
{
	uint32_t len = (uint32_t)rq->len;

	if (conn_wait_room(c, NULL, len) < len)
		return write_in_pieces(c, rq);
	rq->block = reply_new(c, len);
	if (!rq->block)
		return false;
	rq->payload = reply_payload(rq->block);
	if (!rx_take(c, reply_payload(rq->block), len)) {
		reply_free(c, rq->block);
		return false;
	}
	dispatch(c, rq);
	return true;
}

/* Refusals cost memory too when the client does not read them. */
static void refuse(struct request *rq, uint32_t error)
{
	conn_wait_room(rq->conn, NULL, 0);
	reply_status(rq, error);
}

/* The same, for one whose payload is still to come. */
static bool refuse_payload(struct conn *c, struct request *rq, uint32_t error)
{
	if (!rx_take(c, NULL, (uint32_t)rq->len))
		return false;
	refuse(rq, error);
	return true;
}

static bool take_write(struct conn *c, struct request *rq)
{
	uint32_t error = request_check(rq);

	if (rq->len > NBD_REQUEST_MAX)
		return false;		/* no telling what follows: the stream is lost */
	c->rx_short = rq->len > RX_INLINE_MAX;
	if (error)
		return refuse_payload(c, rq, error);
	if (rq->len > REQUEST_PIECE)
		return write_in_pieces(c, rq);
	if (!rx_fits(c, (uint32_t)rq->len))
		return write_from_block(c, rq);
	if (!rx_need(c, (uint32_t)rq->len))
		return false;
	conn_wait_room(c, NULL, 0);
	rq->payload = c->rx->data + c->rx_start;
	rq->rx = c->rx;
	rq->rx->refs++;
	c->rx_start += (uint32_t)rq->len;
	dispatch(c, rq);
	return true;
}

/* A command without payload. */
static void take_plain(struct conn *c, struct request *rq)
{
	uint32_t error = request_check(rq);

	if (error) {
		refuse(rq, error);
		return;
	}
	conn_wait_room(c, NULL,
		       rq->type == NBD_CMD_READ ? (uint32_t)min_u64(rq->len, REQUEST_PIECE) : 0);
	dispatch(c, rq);
}

/* BLOCK_STATUS that names the contexts it wants: 64 bits of length, then their ids. */
static bool take_status(struct conn *c, struct request *rq)
{
	uint32_t len = (uint32_t)rq->len;
	bool good;

	if (len < 8 || (len - 8) % 4 || (len - 8) / 4 > c->a.n_contexts)
		return refuse_payload(c, rq, NBD_EINVAL);
	if (!rx_need(c, len))
		return false;
	good = request_parse_contexts(rq, c->rx->data + c->rx_start, len);
	c->rx_start += len;
	if (good)
		take_plain(c, rq);
	else
		refuse(rq, NBD_EINVAL);
	return true;
}

/* With extended headers it is the flag that says whether a payload follows: it is
 * taken in any case, and refused where the command has none. */
static bool take_extended(struct conn *c, struct request *rq)
{
	bool payload = rq->flags & NBD_CMD_FLAG_PAYLOAD_LEN;

	rq->flags &= (uint16_t)~NBD_CMD_FLAG_PAYLOAD_LEN;
	if (payload && rq->type == NBD_CMD_WRITE)
		return take_write(c, rq);
	c->rx_short = false;
	if (payload && rq->len > NBD_REQUEST_MAX)
		return false;
	if (payload && rq->type == NBD_CMD_BLOCK_STATUS)
		return take_status(c, rq);
	if (payload)
		return refuse_payload(c, rq, NBD_EINVAL);
	if (rq->type == NBD_CMD_WRITE)
		refuse(rq, NBD_EINVAL);
	else
		take_plain(c, rq);
	return true;
}

/* One loop writes it; the main loop looks whether it has changed. */
static inline void count_request(struct export *e)
{
	uint64_t n = atomic_load_explicit(&e->requests, memory_order_relaxed);

	atomic_store_explicit(&e->requests, n + 1, memory_order_relaxed);
}

/* Reads and parses one request; false at the end of the connection. */
static bool take_request(struct conn *c)
{
	struct request rq;

	if (!parse(c, &rq) || rq.type == NBD_CMD_DISC)
		return false;
	count_request(c->export);
	if (c->a.extended)
		return take_extended(c, &rq);
	if (rq.type == NBD_CMD_WRITE)
		return take_write(c, &rq);
	c->rx_short = false;
	take_plain(c, &rq);
	return true;
}

/* -- life ------------------------------------------------------------------- */

void conn_kill(struct conn *c)
{
	if (c->dead)
		return;
	c->dead = true;
	stream_shutdown(&c->stream);
	co_queue_wake_all(&c->room);
	co_queue_wake_all(&c->tx_more);
	co_queue_wake_all(&c->export->left);
}

/* The clients of an export that ends come in although it is stopped, to end: all of them
 * are dead, and who is dead begins nothing. */
static bool must_wait(const struct conn *c)
{
	return c->export->stopped && !c->export->hurried;
}

void conn_enter_slow(struct conn *c)
{
	for (;;) {
		struct node *n;

		while (must_wait(c))
			co_queue_wait(&c->export->resume);
		n = c->node;
		gate_enter(&n->gate);
		if (n == c->node && !must_wait(c))
			return;
		gate_leave(&n->gate);
	}
}

static void conn_unlink(struct conn *c)
{
	for (struct conn **p = &c->export->conns; *p; p = &(*p)->next) {
		if (*p == c) {
			*p = c->next;
			break;
		}
	}
	co_queue_wake_all(&c->export->left);
}

/* -- who comes back ---------------------------------------------------------- */

/* Those whose peers have hung up by now.  They may still have requests, begun or not even read. */
static void find_gone(struct export *e)
{
	for (struct conn *c = e->conns; c; c = c->next) {
		struct pollfd p = { .fd = c->stream.fd, .events = POLLRDHUP };

		if (!c->gone && poll(&p, 1, 0) > 0) {
			c->gone = true;
			conn_watch(c);
		}
	}
}

static bool is_older_gone(const struct conn *c)
{
	for (const struct conn *o = c->export->conns; o; o = o->next)
		if (o->gone && o->number < c->number)
			return true;
	return false;
}

/* A client that lost its connection sends what was not answered again, on a new one, and then
 * newer writes of the same blocks: the old connection's must not come after these.  So what
 * was sent before others hung up is done before anything of C is begun. */
static void wait_for_gone(struct conn *c)
{
	if (!c->export->writable)
		return;
	find_gone(c->export);
	while (!c->dead && is_older_gone(c))
		co_queue_wait(&c->export->left);
}

struct conn_end {
	struct loop_msg msg;
	struct export *export;
	struct listener *listener;
};

/* On the main loop. */
static void conn_ended(struct loop_msg *m)
{
	struct conn_end *e = (struct conn_end *)m;

	listener_connection_ended(e->listener);
	export_unref(e->export);
	free(e);
}

/* Waits for what is in flight, frees everything, tells the main loop. */
static void conn_finish(struct conn *c, struct conn_end *end)
{
	while (c->in_flight || !conn_tx_idle(c))
		co_queue_wait(&c->room);
	conn_unlink(c);
	stream_close(&c->stream);
	rxbuf_unref(c, c->rx);
	conn_room_leave(c);
	*end = (struct conn_end){
		.msg.fn = conn_ended, .export = c->export, .listener = c->a.listener,
	};
	free(c);
	loop_post(the_daemon.main, &end->msg);
}

static void conn_reader(void *arg)
{
	struct conn *c = arg;
	struct conn_end *end = malloc(sizeof(*end));

	if (!end)
		abort();		/* a few bytes at the start of a connection */
	wait_for_gone(c);
	/* Requests that are served at once suspend nowhere, and a receive may bring thousands. */
	for (unsigned n = 1; !c->dead && take_request(c); n++)
		if (n % RX_TURN == 0)
			co_yield();
	conn_finish(c, end);
}

struct conn_start {
	struct loop_msg msg;
	struct conn *conn;
	struct rxbuf *rx;
};

/* On the export's loop. */
static void conn_started(struct loop_msg *m)
{
	static __thread struct loop_hook end;
	struct conn_start *s = (struct conn_start *)m;
	struct conn *c = s->conn;

	loop_end_hook_queue(&end, pools_drain);
	c->node = c->export->node;
	c->rx = s->rx;
	conn_charge(c, c->rx->size);
	conn_room_join(c);
	stream_move(&c->stream, loop_io(loop_self()));
	c->tx_end = &c->tx;
	c->number = c->export->n_conns++;
	c->next = c->export->conns;
	c->export->conns = c;
	if (c->a.early_len) {
		memcpy(c->rx->data, c->a.early, c->a.early_len);
		c->rx_end = (uint32_t)c->a.early_len;
	}
	free(c->a.early);
	c->a.early = NULL;
	free(s);
	co_start(conn_reader, c);
}

void transmission_start(struct agreement *a)
{
	struct conn_start *s = malloc(sizeof(*s));
	struct conn *c = calloc(1, sizeof(*c));
	struct rxbuf *rx = rxbuf_new(RX_SMALL);

	if (!s || !c || !rx || a->early_len > RX_SMALL) {
		log_error("connection dropped reason='out of memory'");
		free(s);
		free(c);
		free(rx);
		free(a->early);
		stream_close(&a->stream);
		listener_connection_ended(a->listener);
		export_unref(a->export);
		return;
	}
	c->a = *a;
	c->export = a->export;
	c->stream = a->stream;
	*s = (struct conn_start){ .msg.fn = conn_started, .conn = c, .rx = rx };
	loop_post(c->export->loop, &s->msg);
}

void transmission_shutdown(struct export *e)
{
	for (struct conn *c = e->conns; c; c = c->next)
		conn_kill(c);
	co_queue_wake_all(&e->resume);
}
