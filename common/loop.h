/* SPDX-License-Identifier: BSD-3-Clause */
/* loop: one thread with one io_uring (DESIGN.md, idea 1).
 *
 * A turn of the loop: run the coroutines that are ready, run the hooks that
 * asked for the end of the turn, submit everything in one system call and wait
 * in it, then note what completed, the timers and the messages.  Nothing here
 * is locked but the mailbox that other threads post to.
 */
#ifndef MERINO_LOOP_H
#define MERINO_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "common/co.h"
#include "common/error.h"

struct loop;
struct io;

/* A message to another loop; lives until its function runs. */
struct loop_msg {
	struct loop_msg *next;
	void (*fn)(struct loop_msg *m);
};

struct loop_timer {
	struct loop_timer *next;	/* sorted by deadline; owned by the loop while armed */
	uint64_t deadline;		/* loop_now() time, ns */
	void (*fn)(struct loop_timer *t);
	bool armed;
};

/* Called once at the end of the current turn, before the submission. */
struct loop_hook {
	struct loop_hook *next;
	void (*fn)(struct loop_hook *h);
	bool queued;
};

/* A loop whose thread is the caller (loop_run runs it) … */
struct loop *loop_new(const char *name, struct error *err);
int loop_run(struct loop *l);			/* until loop_stop() */
/* … or a thread of its own, already running when this returns. */
struct loop *loop_spawn(const char *name, struct error *err);

void loop_stop(struct loop *l);			/* any thread */
void loop_free(struct loop *l);			/* stops, joins a spawned thread; NULL is fine */

struct loop *loop_self(void);			/* NULL outside loops */
struct io *loop_io(struct loop *l);		/* its io_uring table */
uint64_t loop_now(void);			/* CLOCK_MONOTONIC, ns */

unsigned loop_turn(void);			/* how often this loop has turned */

/* The caller waits for a peer that usually answers within microseconds (one
 * request at a time): the loop may look for it that long before it sleeps, which
 * costs the peer no wake-up.  Holds for the wait at the end of this turn. */
void loop_expect_soon(void);

/* What guests ask of this loop: requests of its writable exports, counted by who serves
 * them.  Who copies in the background makes room by it. */
struct loop_guests {
	uint64_t begun, ended;		/* requests */
	uint64_t ns;			/* that those which ended took, all in all, */
	uint64_t kept_ns;		/* and of that, what a view took to keep what they overwrote */
	uint64_t ended_ns;		/* when the last one ended, of loop_now() */
};
struct loop_guests *loop_guests(void);

/* Runs M->fn on L's thread; any thread may post.  M must stay valid until then. */
void loop_post(struct loop *l, struct loop_msg *m);

/* From a coroutine: runs FN(ARG) in a coroutine on L and waits for its end.
 * On the own loop this is a plain call. */
void loop_call(struct loop *l, void (*fn)(void *arg), void *arg);

/* On a loop's thread: ends its workers, after what they have to do; the next ones
 * lack what this thread has given up. */
void loop_workers_renew(void);

/* From a coroutine: runs FN(ARG) on a worker thread and waits for its end.
 * For calls that the ring lacks and CPU work above 50 us. */
void loop_work(void (*fn)(void *arg), void *arg);

void loop_timer_set(struct loop_timer *t, uint64_t deadline_ns, void (*fn)(struct loop_timer *));
void loop_timer_cancel(struct loop_timer *t);
/* From a coroutine: waits on Q until it is woken, at DEADLINE (of loop_now()) at the latest;
 * then all that wait on Q are.  False: it is past.  UINT64_MAX: as long as it takes. */
bool loop_queue_wait(struct co_queue *q, uint64_t deadline);
void loop_hook_queue(struct loop_hook *h, void (*fn)(struct loop_hook *));
/* FN is called on this loop's thread when the loop ends, for what the thread has
 * pooled; queueing H twice is one call. */
void loop_end_hook_queue(struct loop_hook *h, void (*fn)(struct loop_hook *));

/* Calls FN(signo) on the loop L (from its thread) for SIGTERM, SIGINT, SIGHUP;
 * blocks them for the process.  Call before any thread is started. */
int loop_signals(struct loop *l, void (*fn)(int signo), struct error *err);

#endif
