/* SPDX-License-Identifier: BSD-3-Clause */
/* pull-plan: from what a server says about its blocks to what is to be done.
 *
 * The plan walks the export from its start.  It asks for the status of a piece,
 * is told the extents of one or two metadata contexts, and turns them into runs
 * that are skipped, zeroed or read.  It holds a bounded number of runs: more of
 * the export is asked for only when there is room, so that ten million extents
 * cost no more memory than ten.
 *
 * Everything a server says is doubted here and nowhere else: a lie ends the
 * copy, it never shortens it.
 */
#ifndef MERINO_PULL_PLAN_H
#define MERINO_PULL_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

enum {
	PLAN_ENTRIES = 32768,		/* extents kept of one context in one reply */
	PLAN_RUNS = 4 * PLAN_ENTRIES,	/* runs that wait to be worked on */
};

enum plan_context {
	PLAN_DIRTY,			/* qemu:dirty-bitmap:NAME, or merino:changes:NAME */
	PLAN_ALLOCATION,		/* base:allocation */
	PLAN_CONTEXTS,
};

enum run_kind {
	RUN_SKIP,			/* clean: not part of this copy */
	RUN_ZERO,			/* part of it, and reads as zeroes */
	RUN_READ,			/* part of it, and must be read */
};

struct run {
	uint64_t off, len;		/* bytes; len > 0; inside the export */
	enum run_kind kind;
};

/* What one context said in the reply at hand. */
struct plan_list {
	bool used;			/* the context was negotiated */
	bool seen;			/* the reply told about it */
	uint32_t *v;			/* pairs of length and flags; owned */
	size_t n;			/* pairs */
	uint64_t total;			/* bytes they cover */
};

struct plan {
	uint64_t size;			/* of the export, bytes */
	uint64_t block;			/* the server's minimum block; power of two */
	bool changes;			/* PLAN_DIRTY is merino:changes: set after plan_init() */
	uint64_t all_from;		/* from here on everything counts as dirty */
	bool unsaid;			/* of something there the server did not say that it is */
	uint64_t at;			/* how far the runs reach */
	uint64_t asked;			/* length of the request in flight; 0: none */
	struct plan_list list[PLAN_CONTEXTS];
	struct error lie;		/* the first wrong thing in the reply at hand */
	struct run *ring;		/* PLAN_RUNS of them; owned */
	size_t head, n;
};

/* SIZE and BLOCK as the server says.  DIRTY, ALLOCATION: which contexts were
 * negotiated; without DIRTY all is dirty, with neither all is read.  ALL_FROM:
 * where the previous backup ends.  -ENOMEM. */
int plan_init(struct plan *p, uint64_t size, uint64_t block, bool dirty, bool allocation,
	      uint64_t all_from);
void plan_clear(struct plan *p);

/* True when the status of [*OFF, *OFF + *LEN) should be asked for now; then a
 * call of plan_reply_end() must follow before the next one is asked for. */
bool plan_ask(struct plan *p, uint64_t *off, uint64_t *len);

/* The server's N numbers (pairs of length and flags) for context C, which start
 * at OFF.  What is wrong with them is remembered for plan_reply_end(). */
void plan_reply(struct plan *p, enum plan_context c, uint64_t off, const uint32_t *v, size_t n);

/* The reply is complete.  0, or -EPROTO with what the server did wrong. */
int plan_reply_end(struct plan *p, struct error *err);

/* No reply will come to what was asked for: it may be asked for again. */
void plan_forget(struct plan *p);

/* The run to work on next, or NULL: wait for a reply, or all is planned. */
const struct run *plan_next(const struct plan *p);

/* LEN bytes from the start of that run are dealt with. */
void plan_take(struct plan *p, uint64_t len);

/* True when nothing is left to ask for and nothing to work on. */
bool plan_done(const struct plan *p);

#endif
