/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads.
 *
 * Three ways: straight into a reply (up to REQUEST_PIECE); from the page cache
 * into the socket without a copy, where the node says which file range it is
 * and the kernel says that it is cached; and in pieces, which bounds what a
 * client that does not read can make us hold.  With structured replies, runs
 * of zeroes in reads of READ_HOLES_MIN and more travel as holes.
 */
#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "nbd-server/conn.h"

#define GIVE_WAY_MIN (64u << 10)	/* bytes: shorter reads give way to nobody */
#define GIVE_WAY_PIECE (128u << 10)
#define GIVE_WAY_NS 10000000u		/* how long a dead connection may go unnoticed */

/* Sets the header of R for LEN bytes of data at OFF. */
static void head_data(struct request *rq, struct reply *r, uint64_t off, uint32_t len, bool last)
{
	uint8_t be_off[8];

	if (!rq->conn->a.structured) {
		reply_head_simple(r, rq->cookie, 0, len);
		return;
	}
	put_be64(be_off, off);
	reply_head_chunk(rq, r, last ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_OFFSET_DATA,
			 len + 8, be_off, 8, len);
}

/* A reply whose data follows its header in another way. */
static struct reply *head_alone(struct request *rq, uint64_t off, uint32_t len, bool last,
				enum reply_kind kind)
{
	struct reply *r = reply_new(rq->conn, 0);

	if (!r)
		return NULL;
	head_data(rq, r, off, len, last);
	r->iov.iov_len -= len;
	r->kind = (uint8_t)kind;
	return r;
}

/* True when it was sent from the page cache. */
static bool read_nocopy(struct request *rq, uint64_t off, uint32_t len, bool last)
{
	struct conn *c = rq->conn;
	struct io_file *f;
	struct reply *r;
	uint64_t host;

	if (len < READ_NOCOPY_MIN || !node_host_range(c->node, off, len, &f, &host) ||
	    !io_is_cached(f, host, len))
		return false;
	r = head_alone(rq, off, len, last, REPLY_FILE);
	if (!r)
		return false;
	r->file = io_file_ref(f);
	r->file_off = host;
	r->file_len = len;
	r->turn = loop_turn();
	reply_queue(c, r);
	return true;
}

/* Waits until LEN bytes more may be read of an export that makes way. */
static void give_way(struct conn *c, uint32_t len)
{
	struct export *e = c->export;
	uint64_t now, ns;

	co_mutex_lock(&e->turn);
	for (;;) {
		now = loop_now();
		ns = c->dead ? 0 : manners_wait(&e->manners, loop_guests(), now, e->reading, len);
		if (!ns)
			break;
		loop_queue_wait(&e->read, now + min_u64(ns, GIVE_WAY_NS));
	}
	e->reading += len;
	manners_began(&e->manners, now, len);
	co_mutex_unlock(&e->turn);
}

/* node_read().  Long reads of a read-only export are somebody's backup, say: while guests
 * ask something of the same loop, they leave them room, and wait outside the gate. */
static int read_disk(struct request *rq, uint8_t *buf, uint64_t off, uint32_t len)
{
	struct conn *c = rq->conn;
	struct export *e = c->export;
	int rc = 0;

	if (e->writable || len < GIVE_WAY_MIN || !manners_look(&e->manners, loop_guests(), loop_now()))
		return node_read(c->node, buf, off, len);
	while (len && !rc) {
		uint32_t now = (uint32_t)min_u64(len, GIVE_WAY_PIECE);
		uint64_t begun;

		conn_leave(c);
		give_way(c, now);
		conn_enter(c);
		begun = loop_now();
		rc = c->dead ? -ESHUTDOWN : node_read(c->node, buf, off, now);
		manners_took(&e->manners, loop_now() - begun);
		e->reading -= now;
		co_queue_wake_all(&e->read);
		buf += now;
		off += now;
		len -= now;
	}
	return rc;
}

/* One piece in one reply: 0 or -errno, with nothing queued then. */
static int read_piece(struct request *rq, uint64_t off, uint32_t len, bool last)
{
	struct conn *c = rq->conn;
	struct reply *r = reply_new(c, len);
	int rc;

	if (!r)
		return -ENOMEM;
	rc = read_disk(rq, reply_payload(r), off, len);
	if (rc || c->dead) {
		reply_free(c, r);
		return rc;
	}
	head_data(rq, r, off, len, last);
	reply_queue(c, r);
	return 0;
}

/* LEN bytes that must be one message, but are too many to hold at once. */
static int read_stream(struct request *rq, uint64_t off, uint32_t len, bool last)
{
	struct conn *c = rq->conn;
	struct reply *s = head_alone(rq, off, len, last, REPLY_STREAM);
	int rc = 0;

	if (!s)
		return -ENOMEM;
	reply_queue(c, s);
	while (len && !rc && !c->dead) {
		uint32_t now = request_wait_room(rq, s, (uint32_t)min_u64(len, REQUEST_PIECE / 2));
		struct reply *p;

		p = reply_new(c, now);
		rc = p ? read_disk(rq, reply_payload(p), off, now) : -ENOMEM;
		if (!rc) {
			p->iov = (struct iovec){ .iov_base = reply_payload(p), .iov_len = now };
			reply_stream_add(c, s, p);
		} else if (p) {
			reply_free(c, p);
		}
		off += now;
		len -= now;
	}
	if (rc)
		conn_kill(c);		/* the header has promised data */
	reply_stream_end(c, s);
	return 0;
}

/* Too many bytes to hold at once, in as many chunks as it takes. */
static int read_chunks(struct request *rq, uint64_t off, uint32_t len, bool last)
{
	int rc = 0;

	while (len && !rc && !rq->conn->dead) {
		uint32_t now = request_wait_room(rq, NULL, (uint32_t)min_u64(len, REQUEST_PIECE));

		rc = read_piece(rq, off, now, last && now == len);
		off += now;
		len -= now;
	}
	return rc;
}

static int read_data(struct request *rq, uint64_t off, uint32_t len, bool last)
{
	if (read_nocopy(rq, off, len, last))
		return 0;
	if (len <= PIECE_SMALL || (len <= REQUEST_PIECE && conn_has_room(rq->conn, len)))
		return read_piece(rq, off, len, last);
	if (rq->conn->a.structured && !(rq->flags & NBD_CMD_FLAG_DF))
		return read_chunks(rq, off, len, last);
	return read_stream(rq, off, len, last);
}

static int read_hole(struct request *rq, uint64_t off, uint32_t len, bool last)
{
	struct reply *r = reply_new(rq->conn, 0);
	uint8_t hole[12];

	if (!r)
		return -ENOMEM;
	put_be64(hole, off);
	put_be32(hole + 8, len);
	reply_head_chunk(rq, r, last ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_OFFSET_HOLE,
			 sizeof(hole), hole, sizeof(hole), 0);
	reply_queue(rq->conn, r);
	return 0;
}

/* Data and holes as the map tells, each in its own chunk. */
static int read_with_holes(struct request *rq)
{
	struct extent v[16];
	uint64_t off = rq->off, end = rq->off + rq->len;
	int rc = 0;

	while (off < end && !rc && !rq->conn->dead) {
		struct extents x = { .v = v, .max = 16 };

		rc = node_map_chain(rq->conn->node, off, end - off, &x);
		if (!rc && !x.n)
			rc = -EIO;
		for (uint32_t i = 0; i < x.n && !rc; i++) {
			uint32_t len = (uint32_t)v[i].len;
			bool last = off + len == end;

			request_wait_room(rq, NULL, (uint32_t)min_u64(len, REQUEST_PIECE));
			rc = v[i].flags & EXTENT_ZERO ? read_hole(rq, off, len, last)
						      : read_data(rq, off, len, last);
			off += len;
		}
	}
	return rc;
}

/* A chunk that ends a structured reply without data: for reads of no bytes. */
static int read_nothing(struct request *rq)
{
	struct reply *r = reply_new(rq->conn, 0);

	if (!r)
		return -ENOMEM;
	if (rq->conn->a.structured)
		reply_head_chunk(rq, r, NBD_REPLY_FLAG_DONE, NBD_REPLY_NONE, 0, NULL, 0, 0);
	else
		reply_head_simple(r, rq->cookie, 0, 0);
	reply_queue(rq->conn, r);
	return 0;
}

int request_read(struct request *rq)
{
	int rc;

	if (!rq->len)
		rc = read_nothing(rq);
	else if (rq->conn->a.structured && !(rq->flags & NBD_CMD_FLAG_DF) &&
		 rq->len >= READ_HOLES_MIN)
		rc = read_with_holes(rq);
	else
		rc = read_data(rq, rq->off, (uint32_t)rq->len, true);
	if (rc)
		reply_status(rq, nbd_error(rc));
	return rc;
}
