/* SPDX-License-Identifier: BSD-3-Clause */
/* The loop's insides, shared by loop.c (turns, timers, messages), loop-work.c
 * (worker threads) and io-uring.c (the table of operations). */
#ifndef MERINO_LOOP_INT_H
#define MERINO_LOOP_INT_H

#include <liburing.h>
#include <pthread.h>

#include "common/io.h"
#include "common/loop.h"

#define LOOP_SPIN_MAX 32768u	/* ns; as poll-max-ns of QEMU's iothreads */
#define LOOP_WORKERS_MAX 4	/* threads for calls that the ring lacks */

/* One thing that the loop waits for.  Lives on the waiting coroutine's stack,
 * or in the loop; its address is the completion's user data. */
struct loop_op {
	struct co *co;			/* woken when done … */
	void (*fn)(struct loop_op *op);	/* … or called */
	int res;
	bool done;
	/* Without a ring: a descriptor that poll(2) watches. */
	int fd;
	short events;
	struct loop_op *next;
};

struct loop_work {
	struct loop_msg msg;
	struct loop_work *next;
	struct loop *loop;
	struct co *co;
	void (*fn)(void *arg);
	void *arg;
	bool done;
};

/* Threads that run loop_work() calls; started when first needed. */
struct loop_workers {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct loop_work *head, *tail;
	pthread_t threads[LOOP_WORKERS_MAX];
	unsigned n, idle, max;
	unsigned queued;		/* jobs in the list: idle threads that are spoken for */
	bool stop;
	/* The loop's own, without the lock: what goes to the threads at the end of the turn. */
	struct loop_work *fresh, *fresh_tail;
	unsigned n_fresh;
	struct loop_hook hook;
};

struct loop {
	struct sched sched;
	struct io io;
	struct io_uring ring;
	bool uring;			/* false: io_uring is refused here; poll(2) and the workers serve */
	bool stop;			/* this thread's view */
	char name[16];
	unsigned turn;
	bool expect_soon;		/* loop_expect_soon() was called in this turn */
	struct loop_guests guests;
	uint64_t spin_ns;		/* how long looking pays, as far as was seen: 0 … LOOP_SPIN_MAX */
	struct loop_op *polls;		/* without a ring */
	struct loop_timer *timers;
	struct loop_hook *hooks;
	struct loop_hook *end_hooks;
	pthread_mutex_t mail_lock;
	struct loop_msg *mail, **mail_end;
	int mail_fd;			/* eventfd: mail has come */
	uint64_t mail_count;
	struct loop_op mail_op;
	int signal_fd;
	struct loop_op signal_op;
	void (*signal_fn)(int signo);
	struct loop_workers workers;
	pthread_t thread;
	bool spawned;
};

extern const struct io_ops io_uring_ops;

/* The next free submission entry; submits when the queue is full.  The caller
 * fills it and then sets its data to a struct loop_op. */
struct io_uring_sqe *loop_sqe(struct loop *l);

/* Suspends until OP, which is submitted or watched, is done; its result. */
int loop_wait(struct loop_op *op);

/* Waits (coroutine) until FD has EVENTS: revents or -errno. */
int loop_poll(struct loop *l, int fd, short events);

/* loop-ring.c: 0 or -errno. */
int loop_ring_open(struct io_uring *ring);
void loop_ring_close(struct io_uring *ring);

/* Without a ring: ends every wait for FD with -ECANCELED. */
void loop_unwatch_fd(struct loop *l, int fd);

void loop_workers_init(struct loop_workers *w);
/* With a ring, most jobs compute: not many more at a time than there are processors. */
void loop_workers_limit(struct loop_workers *w);
/* On the loop's thread. */
void loop_workers_stop(struct loop_workers *w);
/* loop_post() for a thread that the loop outlives. */
void loop_post_from_worker(struct loop *l, struct loop_msg *m);

#endif
