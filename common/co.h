/* SPDX-License-Identifier: BSD-3-Clause */
/* co: stackful coroutines on pooled, guard-paged stacks.
 *
 * A request is a coroutine, so that it reads top to bottom.  A coroutine
 * belongs to the thread that started it and never changes thread.  It runs
 * until it suspends; whoever wakes it only puts it on the ready list of its
 * scheduler (`struct sched`), which a loop, or a test's simulation, drains.
 *
 * Outside a coroutine (the tools on the blocking table) nothing may suspend:
 * co_suspend() there is a bug and aborts.
 */
#ifndef MERINO_CO_H
#define MERINO_CO_H

#include <stdbool.h>
#include <stddef.h>

struct co;

/* Who resumes the coroutines of one thread. */
struct sched {
	struct co *head, *tail;		/* ready to go on, in the order they were woken */
};

/* Makes S the calling thread's scheduler (NULL: none).  Returns the former one. */
struct sched *sched_set(struct sched *s);

/* Resumes what was ready when the call began (not what that makes ready).
 * Returns how many were resumed. */
unsigned sched_run(struct sched *s);

static inline bool sched_idle(const struct sched *s)
{
	return !s->head;
}

/* The running coroutine, or NULL. */
struct co *co_self(void);

/* Starts FN(ARG) in a new coroutine at once; returns when it first suspends or
 * ends.  May be called from a coroutine or from the scheduler's side. */
void co_start(void (*fn)(void *arg), void *arg);

/* Suspends the running coroutine until co_wake().  A wake that came before is
 * not remembered: the caller checks its condition in a loop. */
void co_suspend(void);

/* Puts CO, which is suspended or about to suspend, on its scheduler's ready
 * list; a second wake before it ran is a no-op.  Same thread only. */
void co_wake(struct co *co);

/* Lets everything else that is ready run first. */
void co_yield(void);

/* Gives pooled stacks of the calling thread back to the system. */
void co_pool_drain(void);

/* A list of coroutines that wait for something; FIFO. */
struct co_waiter;
struct co_queue {
	struct co_waiter *head, *tail;
};

void co_queue_wait(struct co_queue *q);
void co_queue_wake_one(struct co_queue *q);
void co_queue_wake_all(struct co_queue *q);

/* Held across suspends; fair.  Outside coroutines it must be free. */
struct co_mutex {
	bool held;
	struct co_queue waiters;
};

void co_mutex_lock(struct co_mutex *m);
void co_mutex_unlock(struct co_mutex *m);

#endif
