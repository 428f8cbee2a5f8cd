/* SPDX-License-Identifier: BSD-3-Clause */
/* negotiate-int: what the files of the handshake share.
 *
 * No reference to an export is held while the handshake waits for the client:
 * what must be remembered of one is its serial number, and it is looked up
 * again after every wait.
 */
#ifndef MERINO_NEGOTIATE_INT_H
#define MERINO_NEGOTIATE_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbd-server/export.h"
#include "common/nbd-proto.h"
#include "nbd-server/negotiate.h"

#define HANDSHAKE_IN 4096		/* bytes received at once */
#define HANDSHAKE_OUT (16u << 10)	/* holds a whole answer to GO, or one export of LIST */
#define HANDSHAKE_OPTIONS_MAX 1024	/* options of one client */
#define HANDSHAKE_DRAIN_MAX (4u << 20)	/* bytes of oversized options that we read and drop */
#define HANDSHAKE_SENT_MAX (64u << 20)	/* bytes of replies to one client */
#define HANDSHAKE_QUERIES_MAX 1024	/* metadata queries in one option */

/* One client's handshake.  On the heap: coroutines have small stacks. */
struct handshake {
	struct agreement *a;
	struct stream *s;		/* the agreement's */
	bool fixed;			/* NBD_FLAG_C_FIXED_NEWSTYLE: more than EXPORT_NAME may come */
	bool no_zeroes;			/* NBD_FLAG_C_NO_ZEROES */

	/* What the client has negotiated so far.  Everything here, and the bytes in
	 * IN, was sent in the clear, perhaps by somebody in the middle: STARTTLS must
	 * forget all of it (HAZARDS.md 1; handshake_forget). */
	bool structured;		/* chunks are replied: STRUCTURED_REPLY or … */
	bool extended;			/* … EXTENDED_HEADERS */
	uint64_t contexts_of;		/* serial of the export they were selected on; 0: none */
	uint32_t contexts[CONTEXTS_MAX];
	unsigned n_contexts;

	/* The option at hand. */
	uint32_t option;
	uint32_t len;			/* bytes of its payload, which lies at DATA */
	uint8_t *data;			/* NBD_OPTION_MAX bytes, allocated at the first payload */

	unsigned options;		/* how many came */
	uint64_t drained, sent;		/* bytes */
	unsigned in_at, in_len;		/* unread bytes: in[in_at .. in_len) */
	unsigned out_len;
	uint8_t in[HANDSHAKE_IN];
	uint8_t out[HANDSHAKE_OUT];
};

/* What an option's handler returns beside -errno, which ends the connection. */
enum { NEGOTIATE_MORE = 0, NEGOTIATE_DONE = 1 };

/* negotiate.c: */
int handshake_flush(struct handshake *h);
/* Queues N bytes (at most HANDSHAKE_OUT) in one piece; sends what is queued when there is no room. */
int handshake_put(struct handshake *h, const void *p, size_t n);
/* Queues one option reply with a payload of N bytes. */
int handshake_reply(struct handshake *h, uint32_t type, const void *payload, size_t n);
/* An error reply with a text for people. */
int handshake_refuse(struct handshake *h, uint32_t type, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Completes the agreement for the export with this serial number: NEGOTIATE_DONE,
 * or -ENOENT when it has gone meanwhile. */
int handshake_agree(struct handshake *h, uint64_t serial);
/* What was negotiated so far never was. */
void handshake_forget(struct handshake *h);
/* The export's flags for this client. */
uint16_t handshake_flags(const struct handshake *h, const struct export *e);

/* A reader of an option's payload; every length is checked against what is there. */
struct payload {
	const uint8_t *at;
	size_t left;
};

bool payload_u16(struct payload *p, uint16_t *out);
bool payload_u32(struct payload *p, uint32_t *out);
/* A 32-bit length and so many bytes. */
bool payload_string(struct payload *p, const char **s, uint32_t *len);
/* The export that a client's string names; NULL, and an error reply queued (*RC
 * is its result), when there is none. */
struct export *handshake_export(struct handshake *h, const char *name, uint32_t len, int *rc);

/* negotiate-options.c: each serves the option at hand. */
int negotiate_export_name(struct handshake *h);
int negotiate_abort(struct handshake *h);
int negotiate_list(struct handshake *h);
int negotiate_info(struct handshake *h);	/* INFO and GO */
int negotiate_structured(struct handshake *h);
int negotiate_extended(struct handshake *h);

/* negotiate-tls.c: */
int negotiate_starttls(struct handshake *h);
/* Nothing but STARTTLS and ABORT is served yet … */
bool handshake_needs_tls(const struct handshake *h);
/* … which this says. */
int negotiate_refuse_plain(struct handshake *h);

/* meta-query.c: LIST_META_CONTEXT and SET_META_CONTEXT. */
int negotiate_meta(struct handshake *h);

#endif
