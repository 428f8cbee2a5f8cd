/* SPDX-License-Identifier: BSD-3-Clause */
/* Worker threads of a loop: calls that the ring lacks (fallocate with its many
 * errors, SEEK_HOLE, ftruncate, ioctls) and CPU work above 50 us.  A worker
 * touches only what its argument points to; the waiting coroutine owns that.
 */
#include "common/loop-int.h"

#include <signal.h>
#include <stdlib.h>

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
		loop_post(job->loop, &job->msg);
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

/* Starts another worker when none is free for one more job; with none at all the
 * call is made here. */
static bool loop_worker_ready(struct loop_workers *w)
{
	sigset_t all, old;

	if (w->idle > w->queued || w->n == LOOP_WORKERS_MAX)
		return true;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (!pthread_create(&w->threads[w->n], NULL, loop_worker, w))
		w->n++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return w->n > 0;
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
	pthread_mutex_lock(&w->lock);
	if (!loop_worker_ready(w)) {
		pthread_mutex_unlock(&w->lock);
		fn(arg);
		return;
	}
	if (w->tail)
		w->tail->next = &job;
	else
		w->head = &job;
	w->tail = &job;
	w->queued++;
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->lock);
	while (!job.done)
		co_suspend();
}

void loop_workers_init(struct loop_workers *w)
{
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->wake, NULL);
}

void loop_workers_renew(void)
{
	struct loop_workers *w = &loop_self()->workers;

	loop_workers_stop(w);
	w->stop = false;
}

void loop_workers_stop(struct loop_workers *w)
{
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_broadcast(&w->wake);
	pthread_mutex_unlock(&w->lock);
	for (unsigned i = 0; i < w->n; i++)
		pthread_join(w->threads[i], NULL);
	w->n = 0;
}
