/* SPDX-License-Identifier: BSD-3-Clause */
/* Worker threads of a loop: calls that the ring lacks (fallocate with its many
 * errors, SEEK_HOLE, ftruncate, ioctls) and CPU work above 50 us.  A worker
 * touches only what its argument points to; the waiting coroutine owns that.
 *
 * What a turn of the loop brings is handed over in one piece at its end, or when there
 * is enough for all workers: a worker that was woken for each job would often run in
 * the loop's place, and find the lock taken.
 */
#include "common/loop-int.h"

#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>

#include "common/checked.h"

static struct loop_work *loop_work_next(struct loop_workers *w)
{
	struct loop_work *job;

	while (!w->head && !w->stop) {
		w->idle++;
		pthread_cond_wait(&w->wake, &w->lock);
		w->idle--;
	}
	job = w->head;
	if (job) {
		w->head = job->next;
		if (!w->head)
			w->tail = NULL;
		w->queued--;
	}
	return job;
}

static void *loop_worker(void *arg)
{
	struct loop_workers *w = arg;
	struct loop_work *job;

	pthread_mutex_lock(&w->lock);
	while ((job = loop_work_next(w))) {
		pthread_mutex_unlock(&w->lock);
		job->fn(job->arg);
		loop_post_from_worker(job->loop, &job->msg);
		pthread_mutex_lock(&w->lock);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

static void loop_work_done(struct loop_msg *m)
{
	struct loop_work *job = (struct loop_work *)m;

	job->done = true;
	co_wake(job->co);
}

/* Starts workers until there is one for each job that waits. */
static void loop_workers_start(struct loop_workers *w)
{
	unsigned free = w->idle;
	sigset_t all, old;

	if (free >= w->queued || w->n >= w->max)
		return;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (free++ < w->queued && w->n < w->max &&
	       !pthread_create(&w->threads[w->n], NULL, loop_worker, w))
		w->n++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* There is no thread, and none can be had: the calls are made here. */
static void loop_work_here(struct loop_work *job)
{
	while (job) {
		struct loop_work *next = job->next;

		job->fn(job->arg);
		job->done = true;
		if (job->co != co_self())
			co_wake(job->co);
		job = next;
	}
}

static void loop_hand_over(struct loop_workers *w)
{
	struct loop_work *here = NULL;
	unsigned wake;

	if (!w->fresh)
		return;
	pthread_mutex_lock(&w->lock);
	if (w->tail)
		w->tail->next = w->fresh;
	else
		w->head = w->fresh;
	w->tail = w->fresh_tail;
	w->queued += w->n_fresh;
	loop_workers_start(w);
	if (!w->n) {
		here = w->head;
		w->head = w->tail = NULL;
		w->queued = 0;
	}
	wake = (unsigned)min_u64(w->idle, w->n_fresh);
	pthread_mutex_unlock(&w->lock);
	w->fresh = w->fresh_tail = NULL;
	w->n_fresh = 0;
	while (wake--)
		pthread_cond_signal(&w->wake);
	loop_work_here(here);
}

static void loop_work_hook(struct loop_hook *h)
{
	loop_hand_over((struct loop_workers *)((char *)h - offsetof(struct loop_workers, hook)));
}

void loop_work(void (*fn)(void *arg), void *arg)
{
	struct loop *l = loop_self();
	struct loop_work job = {
		.msg.fn = loop_work_done, .loop = l, .co = co_self(), .fn = fn, .arg = arg,
	};
	struct loop_workers *w;

	if (!l || !job.co) {
		fn(arg);
		return;
	}
	w = &l->workers;
	if (w->fresh)
		w->fresh_tail->next = &job;
	else
		w->fresh = &job;
	w->fresh_tail = &job;
	if (++w->n_fresh >= w->max)
		loop_hand_over(w);
	else
		loop_hook_queue(&w->hook, loop_work_hook);
	while (!job.done)
		co_suspend();
}

void loop_workers_init(struct loop_workers *w)
{
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->wake, NULL);
	w->max = LOOP_WORKERS_MAX;
}

/* Two at the least: one may have to wait for the storage. */
void loop_workers_limit(struct loop_workers *w)
{
	cpu_set_t cpus;

	if (!sched_getaffinity(0, sizeof(cpus), &cpus))
		w->max = (unsigned)max_u64(2, min_u64(CPU_COUNT(&cpus), LOOP_WORKERS_MAX));
}

void loop_workers_renew(void)
{
	struct loop_workers *w = &loop_self()->workers;

	loop_workers_stop(w);
	w->stop = false;
}

void loop_workers_stop(struct loop_workers *w)
{
	loop_hand_over(w);
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_broadcast(&w->wake);
	pthread_mutex_unlock(&w->lock);
	for (unsigned i = 0; i < w->n; i++)
		pthread_join(w->threads[i], NULL);
	w->n = 0;
}
