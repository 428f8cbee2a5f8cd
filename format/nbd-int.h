/* SPDX-License-Identifier: BSD-3-Clause */
/* The nbd driver's parts: a remote export as a node.
 *
 * nbd.c            the driver's table: options, open, close, data calls
 * nbd-address.c    the server's address: options, resolving, connecting
 * nbd-handshake.c  from a connected socket to a session
 * nbd-link.c       requests on a connection: sending, receiving, losing it
 * nbd-reconnect.c  life without a connection
 *
 * A link is one connection that came as far as transmission.  It is counted: a
 * lost one goes away with the last request that was on it, while the node may
 * have another one already.  Requests that were on it are sent again on the next,
 * as long as reconnect-delay lasts; all of NBD's commands may be repeated.
 *
 * The server is a stranger.  What it announces is checked in the handshake, every
 * reply against the request that it answers; what does not fit ends the link.
 */
#ifndef MERINO_NBD_INT_H
#define MERINO_NBD_INT_H

#include "common/co.h"
#include "common/loop.h"
#include "common/nbd-proto.h"
#include "common/objects.h"
#include "common/stream.h"
#include "common/tls-creds.h"
#include "format/node.h"
#include "format/ranges.h"

#define NBD_HANDSHAKE_NS 10000000000ull	/* to connect and agree: then the server is given up */
#define NBD_PATIENCE_NS 5000000000ull	/* without an answer, when somebody waits for the end */
#define NBD_LINK_RX (64u << 10)		/* bytes of a link's receive buffer */
#define NBD_PAYLOAD_MAX NBD_REQUEST_MAX
#define NBD_EXTENTS_MAX 2048u		/* of one BLOCK_STATUS; the rest is asked for again */

enum nbd_server_type { NBD_SERVER_INET, NBD_SERVER_UNIX, NBD_SERVER_FD, NBD_SERVER_VSOCK };

/* Whom to connect to, and what for.  Counted: attempts outlive the node. */
struct nbd_target {
	_Atomic unsigned refs;		/* an attempt may be left on another loop */
	enum nbd_server_type type;
	char *path;			/* unix: path or name; inet: host */
	char *port;			/* inet, vsock */
	char *cid;			/* vsock */
	bool abstract, tight, numeric, ipv4, ipv6, has_ipv4, has_ipv6;
	int fd;				/* NBD_SERVER_FD: the socket, until it is used; -1 */
	char *export;
	char *tls_hostname;
	struct object *tls;		/* a reference; NULL: in the clear */
	const struct tls_creds *tls_creds;
};

/* What the server said of the export. */
struct nbd_info {
	uint64_t size;			/* bytes */
	uint16_t flags;			/* enum nbd_transmission_flags */
	uint32_t block_min, block_max;	/* bytes */
	bool structured, has_context;
	uint32_t context;		/* id of base:allocation */
};

struct nbd_request;

struct nbd_link {
	unsigned refs;			/* the node's, and one per request */
	struct stream stream;
	struct nbd_info info;
	bool dead;			/* nothing more is sent or expected */
	struct co_mutex send_lock;
	uint64_t replies;		/* that came whole or in part */
	bool receiving;			/* one of the requests receives, for all */
	struct nbd_request *requests, **requests_end;
	uint64_t cookies;
	uint32_t rx_start, rx_end;
	uint8_t rx[NBD_LINK_RX];
};

/* On its coroutine's stack. */
struct nbd_request {
	struct nbd_request *next;
	struct co_queue turn;		/* waits to be done, or to receive */
	uint64_t cookie;
	uint16_t cmd, flags;
	uint64_t off;
	uint32_t len;
	const void *payload;		/* WRITE */
	uint8_t *buf;			/* READ: where to; */
	uint32_t filled;		/* … bytes that have come, … */
	bool wiped;			/* … not in order: what was missing is zeroes */
	struct extents *x;		/* BLOCK_STATUS: what came */
	bool has_status;
	bool done, lost;
	int rc;				/* the server's answer: 0 or -errno */
};

/* One try to get a link, on the heap: it may outlive the node that wanted it. */
struct nbd_attempt {
	struct nbd *owner;		/* NULL: nobody wants the link any more */
	struct nbd_target *target;
	struct io *io;
	int fd;				/* what is being connected or agreed on; -1 */
	bool cancelled;
	struct loop_timer limit;	/* of connecting and the handshake */
	struct loop_timer nap;		/* between two tries */
	struct co_queue napping;
	struct parting *parting;	/* who cancelled it waits a moment for its end; NULL: nobody */
	struct error err;
};

struct nbd {
	struct node *node;
	struct nbd_target *target;
	struct nbd_link *link;		/* NULL: none at present */
	struct nbd_attempt *attempt;	/* running, for the next one */
	struct nbd_info info;		/* of the first link: a later one must fit */
	uint64_t reconnect_delay, open_timeout;	/* ns */
	uint64_t give_up_at;		/* loop time: until then requests wait for a link */
	struct loop_timer give_up;
	struct co_queue waiting;	/* requests without a link */
	bool closing;
	unsigned hurried;		/* nbd_hurry() calls in force */
	struct loop_timer patience;	/* then the server, which did not answer, is given up: */
	uint64_t replies;		/* … it did not since this many had come */
	bool hopeless;
	struct ranges writes;		/* keeps read-modify-writes apart */
};

/* nbd-address.c.  Reads {"type":…,…}; O is consumed.  */
int nbd_target_parse(struct nbd_target *t, struct json_object *o, struct error *err);
void nbd_target_unref(struct nbd_target *t);
/* What query commands show; malloc'd. */
char *nbd_target_uri(const struct nbd_target *t);
/* A connected socket or -errno; A->fd is it while it is being made. */
int nbd_connect(struct nbd_attempt *a);

/* nbd-handshake.c: 0 with *INFO filled, or -errno with an error. */
int nbd_handshake(struct stream *s, const struct nbd_target *t, struct nbd_info *info,
		  struct error *err);

/* nbd-link.c */
struct nbd_link *nbd_link_new(void);
void nbd_link_unref(struct nbd_link *l);
/* Sends RQ and waits for its answer, which is rq->rc; -ECONNRESET when the link
 * was lost before.  Coroutine, or the blocking table. */
int nbd_link_run(struct nbd_link *l, struct nbd_request *rq);
/* Tells the server, without waiting: one that does not read shall not stop us. */
void nbd_link_goodbye(struct nbd_link *l);
/* Nothing more comes of L: its requests are told. */
void nbd_link_lose(struct nbd_link *l);

/* nbd-reconnect.c.  A link, made by A; NULL with A->err. */
struct nbd_link *nbd_establish(struct nbd_attempt *a);
struct nbd_attempt *nbd_attempt_new(struct nbd *s);
void nbd_attempt_free(struct nbd_attempt *a);
/* The link, with one more reference; waits for one.  NULL: there will be none in time. */
struct nbd_link *nbd_link_get(struct nbd *s);
/* L was lost: the search for another begins. */
void nbd_link_lost(struct nbd *s, struct nbd_link *l);
/* No attempt goes on for S. */
void nbd_attempt_cancel(struct nbd *s);

#endif
