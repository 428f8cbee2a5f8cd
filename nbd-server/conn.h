/* SPDX-License-Identifier: BSD-3-Clause */
/* conn: one NBD connection in transmission, on the loop of its export's disk.
 *
 * conn.c        its life, and the requests that arrive (the reader coroutine)
 * conn-rx.c     the bytes that arrive
 * conn-room.c   who may hold how much memory, and who is dropped for it
 * request.c     validation and service of one request (a coroutine each)
 * request-read.c  reads: small, from the page cache without a copy, in pieces
 * request-range.c  CACHE, TRIM and WRITE_ZEROES: as long as the disk, in pieces
 * block-status.c  BLOCK_STATUS
 * reply.c       what leaves: blocks, the queue, the sender coroutine
 *
 * Bounds: a connection has at most CONN_REQUESTS_MAX requests in flight and waits
 * while it holds CONN_MEM_MAX bytes of payloads and replies; all connections of all
 * loops together wait above SERVER_MEM_MAX, but everybody may hold CONN_MEM_MIN; those
 * of one loop wait above LOOP_REQUESTS_MAX requests.  Large requests are served in
 * pieces, and memory is asked for before each, outside the gate: a client that does
 * not read makes nobody wait.
 */
#ifndef MERINO_CONN_H
#define MERINO_CONN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/co.h"
#include "common/io.h"
#include "common/loop.h"
#include "common/stream.h"
#include "nbd-server/export.h"
#include "common/nbd-proto.h"
#include "nbd-server/transmission.h"

#define CONN_REQUESTS_MAX 128
#define LOOP_REQUESTS_MAX 4096		/* each has a stack */
#define CONN_MEM_MAX (12u << 20)
#define CONN_MEM_MIN (384u << 10)
#define SERVER_MEM_MAX (160u << 20)
#define REQUEST_PIECE (2u << 20)	/* bytes of a large read or write handled at a time … */
#define PIECE_SMALL (64u << 10)		/* … and when memory is short */
#define RX_SIZE (256u << 10)		/* bytes that one receive may bring … */
#define RX_SMALL (8u << 10)		/* … and the first one of several */
#define RX_INLINE_MAX (64u << 10)	/* longest write payload used where it was received */
#define RX_TURN 32			/* requests of one client before others have their turn */
#define TX_EARLY 8			/* replies that leave before the turn ends: the peer goes to work */
#define READ_NOCOPY_MIN (32u << 10)	/* shortest read sent straight from the page cache */
#define READ_HOLES_MIN (64u << 10)	/* shortest read that is searched for holes */
#define REPLY_HEAD_MAX (NBD_EXTENDED_CHUNK_SIZE + 12)	/* an OFFSET_HOLE chunk, whole */

/* What receives fill.  Writes that are still in flight hold a reference to the
 * buffer that their payload lies in. */
struct rxbuf {
	struct rxbuf *next;		/* in the pool */
	unsigned refs;
	uint32_t size;			/* RX_SIZE or RX_SMALL */
	uint8_t data[];
};

enum reply_kind {
	REPLY_DATA,			/* iov */
	REPLY_FILE,			/* iov, then a range of a file (sendfile) */
	REPLY_STREAM,			/* iov, then pieces that are still being read */
};

/* Something to send; at the head of a pooled block that also holds the bytes. */
struct reply {
	struct reply *next;
	struct iovec iov;
	uint32_t cost;			/* bytes charged to the connection until it is sent */
	uint8_t class;			/* of the block: see reply.c */
	uint8_t kind;			/* enum reply_kind */
	bool ended;			/* REPLY_STREAM: no more pieces will come */
	struct io_file *file;		/* REPLY_FILE: one reference */
	uint64_t file_off, file_len;
	unsigned turn;			/* REPLY_FILE: of the loop, when the range was cached */
	struct reply *pieces, **pieces_end;	/* REPLY_STREAM */
};

struct conn {
	struct conn *next;		/* in export->conns */
	struct agreement a;
	struct export *export;
	struct node *node;
	struct stream stream;
	bool dead;			/* the socket is of no use any more */
	bool gone;			/* its peer hung up, and a younger connection waits for its end */
	uint64_t number;		/* counts the export's connections */
	/* Receiving */
	struct rxbuf *rx;
	uint32_t rx_start, rx_end;	/* bytes of rx->data not parsed yet */
	unsigned rx_requests;		/* parsed since the last receive */
	bool rx_short;			/* large writes come: receive headers alone */
	bool rx_large;			/* much comes at a time: receive into a large buffer */
	bool rx_waits;			/* in a large one, which an idle connection gives back */
	uint8_t rx_looks;		/* how often it was seen waiting like that */
	/* Requests */
	unsigned in_flight;		/* request coroutines */
	uint32_t mem;			/* bytes charged: replies, payloads, receive buffers */
	struct co_queue room;		/* waits for in_flight or mem to fall */
	struct conn *here_next, *here_prev;	/* conn-room.c: this thread's connections … */
	struct conn *short_next;	/* … and those that wait for the server's share */
	bool is_short;
	uint64_t sent_seen, stuck_ns;	/* stream.sent at the last look; how long it was the same */
	/* Sending */
	struct reply *tx, **tx_end;
	unsigned tx_ready;		/* replies queued since the last send */
	bool sending;			/* the sender coroutine exists */
	bool tx_reads;			/* the sender waits for the storage, not for the client */
	struct co_queue tx_more;	/* the sender waits for a stream's next piece … */
	struct reply *tx_dry;		/* … of this stream: it needs no room for that one */
	struct loop_hook tx_hook;
};

/* A request as it came, validated.  Copied onto its coroutine's stack. */
struct request {
	struct conn *conn;
	uint16_t type, flags;
	uint64_t cookie;		/* as on the wire */
	uint64_t off, len;
	uint64_t contexts;		/* BLOCK_STATUS: which of conn->a.contexts; bit i is the i-th */
	const uint8_t *payload;		/* WRITE */
	struct rxbuf *rx;		/* holds the payload, or … */
	struct reply *block;		/* … does, from the pool of replies; both may be NULL */
};

/* request.c: 0, or the NBD error to reply with. */
uint32_t request_check(const struct request *rq);
/* Body of a request's coroutine, inside the gate, which it leaves; ARG is copied
 * before anything else. */
void request_run(void *arg);
/* Before a request holds WANT bytes more: waits for room, outside the gate.  What its
 * caller holds meanwhile is queued: sending frees it.  STREAM, and what it returns, as
 * for conn_wait_room(). */
uint32_t request_wait_room(struct request *rq, const struct reply *stream, uint32_t want);
/* Between two pieces of a long request: out of the gate, and others run. */
void request_breathe(struct request *rq);
uint32_t nbd_error(int rc);		/* NBD's number for an -errno */

/* The gate of the export's node, as clients' requests pass it: the node may become
 * another one, and the export may be stopped, while they wait (export-parent.c). */
void conn_enter_slow(struct conn *c);

static inline void conn_enter(struct conn *c)
{
	if (__builtin_expect(c->export->stopped || c->node->gate.closed, 0))
		conn_enter_slow(c);
	else
		c->node->gate.inside++;
}

static inline void conn_leave(struct conn *c)
{
	gate_leave(&c->node->gate);
}

/* request-read.c: serves and replies; what was replied as an error. */
int request_read(struct request *rq);
/* request-range.c: 0 or -errno. */
int request_cache(struct request *rq);
int request_trim(struct request *rq);
int request_zeroes(struct request *rq);
/* block-status.c.  Takes RQ's length and contexts out of a payload of LEN bytes, at
 * least 8; false when an id is unknown or comes twice. */
bool request_parse_contexts(struct request *rq, const uint8_t *p, uint32_t len);
void request_block_status(struct request *rq);

/* reply.c.  A block with room for LEN bytes of payload behind the header. */
struct reply *reply_new(struct conn *c, uint32_t len);
uint8_t *reply_payload(struct reply *r);
/* Sets the header for LEN bytes of payload to come (any kind) … */
void reply_head_simple(struct reply *r, uint64_t cookie, uint32_t error, uint32_t len);
void reply_head_chunk(const struct request *rq, struct reply *r, uint16_t flags, uint16_t type,
		      uint32_t chunk_len, const void *extra, uint32_t extra_len, uint32_t len);
/* … and hands it to the sender. */
void reply_queue(struct conn *c, struct reply *r);
void reply_free(struct conn *c, struct reply *r);
/* A piece of stream S, and its end. */
void reply_stream_add(struct conn *c, struct reply *s, struct reply *piece);
void reply_stream_end(struct conn *c, struct reply *s);
/* The whole answer to a request that has no payload. */
void reply_status(struct request *rq, uint32_t error);
/* The sender has nothing left to do.  On a dead connection it only frees. */
bool conn_tx_idle(const struct conn *c);
/* Gives what this thread pooled back to the system. */
void reply_pool_drain(void);

/* conn.c.  A request of this connection has ended. */
void conn_request_ended(struct conn *c);
/* Ends the connection from inside: the socket is shut down, the reader notices. */
void conn_kill(struct conn *c);

/* conn-rx.c.  At least BYTES unparsed bytes lie in one piece at rx->data + rx_start;
 * false when the stream has ended.  They have to fit: */
bool rx_need(struct conn *c, uint32_t bytes);
bool rx_fits(const struct conn *c, uint32_t bytes);
/* Takes LEN bytes into BUF (NULL: nowhere). */
bool rx_take(struct conn *c, uint8_t *buf, uint32_t len);
/* A look at a connection that may be idle with a large buffer, which it then gives
 * back; false when it is not. */
bool rx_look(struct conn *c);
struct rxbuf *rxbuf_new(uint32_t size);
void rxbuf_unref(struct conn *c, struct rxbuf *b);
void rx_pools_drain(void);

/* conn-room.c. */
void conn_room_join(struct conn *c);
void conn_room_leave(struct conn *c);	/* it holds nothing any more */
void conn_charge(struct conn *c, uint32_t bytes);
void conn_credit(struct conn *c, uint32_t bytes);
bool conn_has_room(const struct conn *c, uint32_t bytes);
/* Waits until the connection may hold more: how many of WANT bytes, at least
 * PIECE_SMALL of them.  STREAM (NULL: none) gets its next piece without room when the
 * sender waits for it: memory held by answers behind it only comes back after it. */
uint32_t conn_wait_room(struct conn *c, const struct reply *stream, uint32_t want);
/* The connection waits in a way that must not last: it will be looked at. */
void conn_watch(struct conn *c);

#endif
