// SPDX-License-Identifier: BSD-3-Clause
/* virtio-blk-work: the thread that serves queues and the connection behind them.
 *
 *	PARKED <-- activate(), reset() --> RUNS <-- pause --> RESTS	any of them --> ENDS
 *
 * Parked, it keeps the connection.  At rest it leaves it alone: an answer to a read would go to
 * the guest's memory.  So it is not dropped either: a server that is slow would do an old write
 * after newer ones.  While it is busy it asks for no doorbells; before it
 * sleeps it asks for them and looks once more.  With few requests under way the server's
 * answer, or the guest's next request, is often nearer than a sleep and the wake-up, which for
 * the guest is an exit: the thread stays awake for as long as that has paid.
 */
#include "vmm/virtio-blk-int.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "vmm/thread.h"

enum { SPIN_US_MAX = 50, SPIN_US_START = 10, SPIN_REQUESTS = 2 };

static int64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void drain(int fd)
{
	uint64_t n;

	while (read(fd, &n, sizeof(n)) < 0 && errno == EINTR)
		;
}

/* --- queues */

static void break_queue(struct blk_worker *w, struct blk_queue *q)
{
	q->q->s.broken = true;
	virtio_needs_reset(&w->blk->v);
}

/* What the guest has offered.  One turn takes no more than the queue holds. */
static bool take(struct blk_worker *w, struct blk_queue *q)
{
	unsigned n = 0;
	int rc = 0;

	while (n < q->q->s.size && (rc = queue_pop(q->q, &w->chain)) == 1) {
		n++;
		if ((rc = blk_request_begin(w, q)))
			break;
	}
	if (rc < 0)
		break_queue(w, q);
	return n > 0;
}

/* One broken queue stops the device. */
static bool has_work(struct blk_worker *w, struct blk_queue *q)
{
	return q->q->s.enabled && !queue_is_empty(q->q) &&
	       !__atomic_load_n(&w->blk->v.needs_reset, __ATOMIC_RELAXED);
}

static bool take_all(struct blk_worker *w)
{
	bool any = false;

	for (unsigned i = 0; i < w->n_queues; i++)
		if (has_work(w, w->queue[i]))
			any |= take(w, w->queue[i]);
	return any;
}

static void interrupt(struct blk_worker *w)
{
	for (unsigned i = 0; i < w->n_queues; i++) {
		struct blk_queue *q = w->queue[i];

		if (q->pushed && queue_wants_interrupt(q->q))
			virtio_interrupt(&w->blk->v, q->index);
		w->busy |= q->pushed;
		q->pushed = false;
	}
}

static void doorbells(struct blk_worker *w, bool on)
{
	for (unsigned i = 0; i < w->n_queues; i++)
		if (w->queue[i]->q->s.enabled)
			queue_notifications(w->queue[i]->q, on);
}

static bool is_idle(struct blk_worker *w)
{
	for (unsigned i = 0; i < w->n_queues; i++)
		if (has_work(w, w->queue[i]))
			return false;
	return true;
}

/* --- waiting */

enum { POLL_CHANNEL = 2, POLL_MAX = POLL_CHANNEL + 1 + BLK_QUEUES_MAX };

struct waiting {
	struct pollfd fd[POLL_MAX];
	int n_channel, n, timeout;
};

static void gather(struct blk_worker *w, struct waiting *p, bool queues)
{
	p->n = p->n_channel = disk_poll(w->channel, p->fd, &p->timeout);
	p->fd[p->n++] = (struct pollfd){ .fd = w->control, .events = POLLIN };
	for (unsigned i = 0; queues && i < w->n_queues; i++)
		p->fd[p->n++] = (struct pollfd){ .fd = w->queue[i]->doorbell, .events = POLLIN };
}

/* Looks at the queues and for answers without sleeping.  True: something came, and P says so as
 * poll() would; what else P waits for can wait a turn.
 *
 * It adapts: what comes within the limit makes the next look as long, what does not makes it
 * shorter, down to none; a sleep that turned out to be short makes looking worth a try again. */
static bool spin(struct blk_worker *w, struct waiting *p)
{
	bool in_flight = disk_in_flight(w->channel), answers = false;
	int64_t end;

	if (!w->spin_us || (in_flight && !disk_may_look(w->channel)))
		return false;
	end = now_us() + w->spin_us;
	do {
		answers = in_flight && disk_has_answers(w->channel);
		if (answers || !is_idle(w)) {
			w->spin_us = SPIN_US_MAX;
			p->fd[p->n_channel - 1].revents = answers ? POLLIN : 0;
			return true;
		}
		__builtin_ia32_pause();
	} while (now_us() < end);
	w->spin_us /= 2;
	return false;
}

/* With many requests under way one sleep brings many answers; with none for a while the guest
 * has nothing to do. */
static bool is_soon(struct blk_worker *w)
{
	unsigned n = disk_in_flight(w->channel);

	return n ? n <= SPIN_REQUESTS : w->busy;
}

static void sleep_until(struct blk_worker *w, struct waiting *p)
{
	bool soon = is_soon(w);
	int64_t start = soon ? now_us() : 0;

	w->busy = false;
	if (p->timeout == 0) {
		poll(p->fd, p->n, 0);
		return;
	}
	if (soon && spin(w, p))
		return;
	doorbells(w, true);
	poll(p->fd, p->n, is_idle(w) ? p->timeout : 0);
	doorbells(w, false);
	if (soon && w->spin_us < SPIN_US_MAX && now_us() - start < 2 * SPIN_US_MAX)
		w->spin_us = w->spin_us ? min_u64(2 * w->spin_us, SPIN_US_MAX) : SPIN_US_START;
}

static void after(struct blk_worker *w, struct waiting *p)
{
	for (int i = p->n_channel; i < p->n; i++)
		if (p->fd[i].revents)
			drain(p->fd[i].fd);
	disk_work(w->channel, p->fd, p->n_channel);
}

/* --- states */

static enum worker_state wanted(struct blk_worker *w)
{
	return __atomic_load_n(&w->wanted, __ATOMIC_ACQUIRE);
}

static void enter(struct blk_worker *w, enum worker_state s)
{
	pthread_mutex_lock(&w->blk->lock);
	w->is = s;
	pthread_cond_broadcast(&w->blk->changed);
	pthread_mutex_unlock(&w->blk->lock);
}

/* What was under way when the machine was saved. */
static void redo(struct blk_worker *w, struct blk_queue *q)
{
	int rc = 0;

	q->redo = false;
	for (unsigned head = 0; head < q->q->s.size && rc >= 0; head++) {
		if (!queue_has_taken(q->q, head))
			continue;
		rc = queue_retake(q->q, head, &w->chain);
		if (rc > 0)
			rc = blk_request_begin(w, q);
	}
	if (rc < 0)
		break_queue(w, q);
}

static void redo_all(struct blk_worker *w)
{
	for (unsigned i = 0; i < w->n_queues; i++)
		if (w->queue[i]->redo)
			redo(w, w->queue[i]);
	disk_work(w->channel, NULL, 0);
}

static void run(struct blk_worker *w)
{
	struct waiting p;

	w->waited = false;
	enter(w, WORKER_RUNS);
	redo_all(w);
	w->spin_us = SPIN_US_START;
	doorbells(w, false);
	while (wanted(w) == WORKER_RUNS) {
		if (take_all(w))
			disk_work(w->channel, NULL, 0);
		interrupt(w);
		gather(w, &p, true);
		sleep_until(w, &p);
		after(w, &p);
		interrupt(w);
	}
}

/* A moment for the server to answer what is under way. */
static void drain_requests(struct blk_worker *w)
{
	int64_t end = now_us() + BLK_DRAIN_MS * 1000;
	struct waiting p;

	if (w->waited)
		return;
	w->waited = true;
	while (disk_in_flight(w->channel) && disk_is_connected(w->channel) && now_us() < end) {
		gather(w, &p, false);
		poll(p.fd, p.n, p.timeout < 0 || p.timeout > 50 ? 50 : p.timeout);
		after(w, &p);
	}
}

/* The requests under way are the old driver's: soon none of them exists any more.
 *
 * A reset waits with machine->lock held, and everybody with it, who wants the machine to end
 * too.  A guest may have many disks whose servers are silent, and reset them all: of these the
 * first waits for a moment, the others do not. */
static void finish(struct blk_worker *w)
{
	int64_t *until = &w->blk->v.machine->silent_until;

	if (now_us() >= __atomic_load_n(until, __ATOMIC_SEQ_CST))
		drain_requests(w);
	if (!disk_in_flight(w->channel))
		return;
	if (disk_is_connected(w->channel))
		__atomic_store_n(until, now_us() + BLK_SILENT_MS * 1000, __ATOMIC_SEQ_CST);
	disk_abandon(w->channel);
}

static void rest(struct blk_worker *w)
{
	struct pollfd p = { .fd = w->control, .events = POLLIN };

	drain_requests(w);
	interrupt(w);
	enter(w, WORKER_RESTS);
	while (wanted(w) == WORKER_RESTS)
		if (poll(&p, 1, -1) > 0)
			drain(w->control);
	disk_go_on(w->channel);
}

static void park(struct blk_worker *w)
{
	struct waiting p;

	finish(w);
	enter(w, WORKER_PARKED);
	while (wanted(w) == WORKER_PARKED) {
		gather(w, &p, false);
		poll(p.fd, p.n, p.timeout);
		after(w, &p);
	}
}

static void *work(void *arg)
{
	struct blk_worker *w = arg;

	for (;;) {
		switch (wanted(w)) {
		case WORKER_PARKED:
			park(w);
			break;
		case WORKER_RUNS:
			run(w);
			break;
		case WORKER_RESTS:
			rest(w);
			break;
		case WORKER_ENDS:
			finish(w);
			enter(w, WORKER_ENDS);
			return NULL;
		}
	}
}

/* The thread takes no signals: those are the main loop's. */
int blk_worker_start(struct blk_worker *w, struct error *err)
{
	sigset_t all, old;
	int rc;

	w->chain.iov = w->iov;
	w->wanted = w->is = WORKER_PARKED;
	w->control = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (w->control < 0)
		return error_errno(err, -errno, "eventfd");
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = thread_start(&w->thread, "disk", NULL, work, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc)
		return error_errno(err, rc, "thread");
	w->started = true;
	return 0;
}

void blk_worker_want(struct blk_worker *w, enum worker_state s)
{
	uint64_t one = 1;

	__atomic_store_n(&w->wanted, s, __ATOMIC_RELEASE);
	while (write(w->control, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void blk_worker_wait(struct blk_worker *w, enum worker_state s)
{
	pthread_mutex_lock(&w->blk->lock);
	while (w->is != s)
		pthread_cond_wait(&w->blk->changed, &w->blk->lock);
	pthread_mutex_unlock(&w->blk->lock);
}
