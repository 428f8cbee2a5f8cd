/* SPDX-License-Identifier: BSD-3-Clause */
/* The loop's turns, timers, hooks, messages and signals: see loop.h.
 *
 * Where io_uring is refused (containers, valgrind, MERINO_IO=threads in the
 * environment) the same loop waits in poll(2), and the workers do the file I/O.
 */
#include "common/loop-int.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"

#define LOOP_POLLS_MAX 16384	/* descriptors that one poll(2) watches, without a ring */

static __thread struct loop *loop_current;

struct loop *loop_self(void)
{
	return loop_current;
}

struct io *loop_io(struct loop *l)
{
	return &l->io;
}

uint64_t loop_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

unsigned loop_turn(void)
{
	return loop_current->turn;
}

struct loop_guests *loop_guests(void)
{
	return &loop_current->guests;
}

void loop_expect_soon(void)
{
	loop_current->expect_soon = true;
}

/* -- what the loop waits for ------------------------------------------------ */

struct io_uring_sqe *loop_sqe(struct loop *l)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&l->ring);

	while (!sqe) {
		io_uring_submit(&l->ring);
		sqe = io_uring_get_sqe(&l->ring);
	}
	return sqe;
}

int loop_wait(struct loop_op *op)
{
	while (!op->done)
		co_suspend();
	return op->res;
}

static void loop_op_finish(struct loop_op *op, int res)
{
	op->res = res;
	op->done = true;
	if (op->fn)
		op->fn(op);
	else
		co_wake(op->co);
}

static void loop_watch(struct loop *l, struct loop_op *op, int fd, short events)
{
	op->fd = fd;
	op->events = events;
	op->done = false;
	if (l->uring) {
		struct io_uring_sqe *sqe = loop_sqe(l);

		io_uring_prep_poll_add(sqe, fd, (unsigned)events);
		io_uring_sqe_set_data(sqe, op);
		return;
	}
	op->next = l->polls;
	l->polls = op;
}

int loop_poll(struct loop *l, int fd, short events)
{
	struct loop_op op = { .co = co_self() };

	loop_watch(l, &op, fd, events);
	return loop_wait(&op);
}

/* -- timers and hooks ------------------------------------------------------- */

void loop_timer_set(struct loop_timer *t, uint64_t deadline, void (*fn)(struct loop_timer *))
{
	struct loop_timer **p = &loop_current->timers;

	loop_timer_cancel(t);
	while (*p && (*p)->deadline <= deadline)
		p = &(*p)->next;
	*t = (struct loop_timer){ .next = *p, .deadline = deadline, .fn = fn, .armed = true };
	*p = t;
}

void loop_timer_cancel(struct loop_timer *t)
{
	if (!t->armed)
		return;
	for (struct loop_timer **p = &loop_current->timers; *p; p = &(*p)->next) {
		if (*p == t) {
			*p = t->next;
			break;
		}
	}
	t->armed = false;
}

static void loop_run_timers(struct loop *l)
{
	uint64_t now;

	if (!l->timers)
		return;
	now = loop_now();
	while (l->timers && l->timers->deadline <= now) {
		struct loop_timer *t = l->timers;

		l->timers = t->next;
		t->armed = false;
		t->fn(t);
	}
}

static void hook_queue(struct loop_hook **list, struct loop_hook *h, void (*fn)(struct loop_hook *))
{
	if (h->queued)
		return;
	h->queued = true;
	h->fn = fn;
	h->next = *list;
	*list = h;
}

struct alarm {
	struct loop_timer timer;
	struct co_queue *q;
};

static void alarm_over(struct loop_timer *t)
{
	co_queue_wake_all(((struct alarm *)t)->q);
}

bool loop_queue_wait(struct co_queue *q, uint64_t deadline)
{
	struct alarm a = { .q = q };

	if (deadline != UINT64_MAX)
		loop_timer_set(&a.timer, deadline, alarm_over);
	co_queue_wait(q);
	loop_timer_cancel(&a.timer);
	return loop_now() < deadline;
}

void loop_hook_queue(struct loop_hook *h, void (*fn)(struct loop_hook *))
{
	hook_queue(&loop_current->hooks, h, fn);
}

void loop_end_hook_queue(struct loop_hook *h, void (*fn)(struct loop_hook *))
{
	hook_queue(&loop_current->end_hooks, h, fn);
}

static void loop_run_hooks(struct loop_hook **list)
{
	while (*list) {
		struct loop_hook *h = *list;

		*list = h->next;
		h->queued = false;
		h->fn(h);
	}
}

/* -- messages --------------------------------------------------------------- */

/* True when the loop must be told. */
static bool mail_add(struct loop *l, struct loop_msg *m)
{
	bool first = !l->mail;

	m->next = NULL;
	*l->mail_end = m;
	l->mail_end = &m->next;
	return first;
}

static void mail_tell(struct loop *l)
{
	uint64_t one = 1;

	if (write(l->mail_fd, &one, sizeof(one)) < 0)
		log_error("eventfd: %s", strerror(errno));
}

void loop_post(struct loop *l, struct loop_msg *m)
{
	pthread_mutex_lock(&l->mail_lock);
	/* Inside the lock: the loop cannot be freed between the two. */
	if (mail_add(l, m))
		mail_tell(l);
	pthread_mutex_unlock(&l->mail_lock);
}

/* Outside the lock: the loop, which often runs at once and in our place, finds it free. */
void loop_post_from_worker(struct loop *l, struct loop_msg *m)
{
	bool first;

	pthread_mutex_lock(&l->mail_lock);
	first = mail_add(l, m);
	pthread_mutex_unlock(&l->mail_lock);
	if (first)
		mail_tell(l);
}

static void loop_read_mail(struct loop *l)
{
	struct loop_msg *m;
	uint64_t n;

	if (read(l->mail_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		log_error("eventfd: %s", strerror(errno));
	pthread_mutex_lock(&l->mail_lock);
	m = l->mail;
	l->mail = NULL;
	l->mail_end = &l->mail;
	pthread_mutex_unlock(&l->mail_lock);
	while (m) {
		struct loop_msg *next = m->next;

		m->fn(m);
		m = next;
	}
}

static void loop_mail_came(struct loop_op *op)
{
	struct loop *l = loop_current;

	loop_read_mail(l);
	loop_watch(l, op, l->mail_fd, POLLIN);
}

struct loop_remote {
	struct loop_msg msg;
	void (*fn)(void *arg);
	void *arg;
	struct loop *from;
	struct co *co;
	bool done;
};

static void loop_remote_done(struct loop_msg *m)
{
	struct loop_remote *r = (struct loop_remote *)m;

	r->done = true;
	co_wake(r->co);
}

static void loop_remote_run(void *arg)
{
	struct loop_remote *r = arg;

	r->fn(r->arg);
	r->msg.fn = loop_remote_done;
	loop_post(r->from, &r->msg);
}

static void loop_remote_start(struct loop_msg *m)
{
	co_start(loop_remote_run, m);
}

void loop_call(struct loop *l, void (*fn)(void *arg), void *arg)
{
	struct loop_remote r = {
		.msg.fn = loop_remote_start,
		.fn = fn,
		.arg = arg,
		.from = loop_current,
		.co = co_self(),
	};

	if (l == loop_current || !l) {
		fn(arg);
		return;
	}
	loop_post(l, &r.msg);
	while (!r.done)
		co_suspend();
}

/* -- signals ---------------------------------------------------------------- */

static void loop_signal_came(struct loop_op *op)
{
	struct loop *l = loop_current;
	struct signalfd_siginfo s;

	while (read(l->signal_fd, &s, sizeof(s)) == (ssize_t)sizeof(s))
		l->signal_fn((int)s.ssi_signo);
	loop_watch(l, op, l->signal_fd, POLLIN);
}

int loop_signals(struct loop *l, void (*fn)(int signo), struct error *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	if (pthread_sigmask(SIG_BLOCK, &set, NULL))
		return error_set(err, -EINVAL, "Could not block signals");
	l->signal_fn = fn;
	l->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (l->signal_fd < 0)
		return error_errno(err, -errno, "signalfd");
	return 0;
}

/* -- turns ------------------------------------------------------------------ */

/* How long to wait, ns; UINT64_MAX: for ever. */
static uint64_t loop_patience(struct loop *l)
{
	uint64_t now;

	if (!sched_idle(&l->sched) || l->hooks || l->stop)
		return 0;
	if (!l->timers)
		return UINT64_MAX;
	now = loop_now();
	return l->timers->deadline > now ? l->timers->deadline - now : 0;
}

static void loop_reap(struct loop *l)
{
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;

	io_uring_for_each_cqe(&l->ring, head, cqe) {
		struct loop_op *op = io_uring_cqe_get_data(cqe);

		n++;
		if (op)
			loop_op_finish(op, cqe->res);
	}
	io_uring_cq_advance(&l->ring, n);
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

/* Something has come, or the kernel has something for us when we enter it. */
static inline bool loop_has_come(struct loop *l)
{
	return io_uring_cq_ready(&l->ring) ||
	       (__atomic_load_n(l->ring.sq.kflags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN);
}

/* Looks for a while before it sleeps.  Adapts: what comes within the limit makes
 * the next look as long, what does not makes it shorter, down to none; a sleep
 * that turned out to be short makes looking worth a try again. */
static void loop_spin(struct loop *l)
{
	uint64_t start = loop_now(), now = start;

	io_uring_submit_and_get_events(&l->ring);
	while (!loop_has_come(l)) {
		cpu_relax();
		now = loop_now();
		if (now - start >= l->spin_ns) {
			l->spin_ns /= 2;
			return;
		}
	}
	l->spin_ns = LOOP_SPIN_MAX;
}

static void loop_sleep(struct loop *l, uint64_t patience)
{
	uint64_t start = l->expect_soon ? loop_now() : 0;
	struct io_uring_cqe *cqe;
	struct __kernel_timespec ts;

	if (l->expect_soon && l->spin_ns && patience > LOOP_SPIN_MAX) {
		loop_spin(l);
		if (io_uring_cq_ready(&l->ring))
			return;
	}
	if (patience == UINT64_MAX) {
		io_uring_submit_and_wait(&l->ring, 1);
	} else {
		ts.tv_sec = (long long)(patience / 1000000000u);
		ts.tv_nsec = (long long)(patience % 1000000000u);
		io_uring_submit_and_wait_timeout(&l->ring, &cqe, 1, &ts, NULL);
	}
	if (start && l->spin_ns < LOOP_SPIN_MAX && loop_now() - start < 2 * LOOP_SPIN_MAX)
		l->spin_ns = l->spin_ns ? 2 * l->spin_ns : LOOP_SPIN_MAX / 4;
}

static void loop_turn_ring(struct loop *l, uint64_t patience)
{
	if (io_uring_cq_ready(&l->ring)) {
		loop_reap(l);
		if (!sched_idle(&l->sched))
			patience = 0;
	}
	if (patience == 0) {
		if (io_uring_sq_ready(&l->ring) || (l->turn & 15) == 0)
			io_uring_submit_and_get_events(&l->ring);
	} else {
		loop_sleep(l, patience);
	}
	l->expect_soon = false;
	loop_reap(l);
}

/* Fills V from the list of watched descriptors; returns how many. */
static unsigned loop_gather_polls(struct loop *l, struct pollfd *v, struct loop_op **ops)
{
	unsigned n = 0;

	for (struct loop_op *op = l->polls; op && n < LOOP_POLLS_MAX; op = op->next) {
		v[n] = (struct pollfd){ .fd = op->fd, .events = op->events };
		ops[n++] = op;
	}
	return n;
}

static void loop_unwatch(struct loop *l, struct loop_op *op)
{
	struct loop_op **p = &l->polls;

	while (*p != op)
		p = &(*p)->next;
	*p = op->next;
}

void loop_unwatch_fd(struct loop *l, int fd)
{
	struct loop_op **p = &l->polls;

	while (*p) {
		struct loop_op *op = *p;

		if (op->fd != fd) {
			p = &op->next;
			continue;
		}
		*p = op->next;
		loop_op_finish(op, -ECANCELED);
	}
}

static void loop_turn_poll(struct loop *l, uint64_t patience)
{
	static __thread struct pollfd *v;
	static __thread struct loop_op **ops;
	struct timespec ts = {
		.tv_sec = (time_t)(patience / 1000000000u),
		.tv_nsec = (long)(patience % 1000000000u),
	};
	unsigned n;

	if (!v) {
		v = calloc(LOOP_POLLS_MAX, sizeof(*v));
		ops = calloc(LOOP_POLLS_MAX, sizeof(struct loop_op *));
	}
	n = loop_gather_polls(l, v, ops);
	if (ppoll(v, n, patience == UINT64_MAX ? NULL : &ts, NULL) > 0) {
		for (unsigned i = 0; i < n; i++) {
			if (!v[i].revents)
				continue;
			loop_unwatch(l, ops[i]);
			loop_op_finish(ops[i], v[i].revents);
		}
	}
	if (l->stop) {
		free(v);
		free(ops);
		v = NULL;
		ops = NULL;
	}
}

int loop_run(struct loop *l)
{
	struct sched *former = sched_set(&l->sched);
	int rc = loop_ring_open(&l->ring);

	loop_current = l;
	l->uring = rc == 0;
	if (l->uring)
		loop_workers_limit(&l->workers);
	else
		log_warning("io_uring is not available here (%s): loop %s works with poll and threads, slower",
			    strerror(-rc), l->name);
	loop_watch(l, &l->mail_op, l->mail_fd, POLLIN);
	if (l->signal_fd >= 0)
		loop_watch(l, &l->signal_op, l->signal_fd, POLLIN);
	while (!l->stop) {
		uint64_t patience;

		sched_run(&l->sched);
		loop_run_hooks(&l->hooks);
		patience = loop_patience(l);
		l->turn++;
		if (l->uring)
			loop_turn_ring(l, patience);
		else
			loop_turn_poll(l, patience);
		loop_run_timers(l);
	}
	if (l->uring)
		loop_ring_close(&l->ring);
	loop_workers_stop(&l->workers);
	loop_run_hooks(&l->end_hooks);
	co_pool_drain();
	sched_set(former);
	loop_current = NULL;
	return 0;
}

struct loop *loop_new(const char *name, struct error *err)
{
	struct loop *l = calloc(1, sizeof(*l));

	if (!l) {
		error_set(err, -ENOMEM, "Out of memory");
		return NULL;
	}
	snprintf(l->name, sizeof(l->name), "%s", name);
	l->io.ops = &io_uring_ops;
	l->mail_end = &l->mail;
	l->mail_op.fn = loop_mail_came;
	l->signal_op.fn = loop_signal_came;
	l->signal_fd = -1;
	l->mail_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->mail_fd < 0) {
		error_errno(err, -errno, "eventfd");
		free(l);
		return NULL;
	}
	pthread_mutex_init(&l->mail_lock, NULL);
	loop_workers_init(&l->workers);
	return l;
}

static void *loop_thread(void *arg)
{
	struct loop *l = arg;

	pthread_setname_np(pthread_self(), l->name);
	loop_run(l);
	return NULL;
}

struct loop *loop_spawn(const char *name, struct error *err)
{
	struct loop *l = loop_new(name, err);
	int rc;

	if (!l)
		return NULL;
	rc = pthread_create(&l->thread, NULL, loop_thread, l);
	if (rc) {
		error_errno(err, -rc, "Could not start a thread");
		loop_free(l);
		return NULL;
	}
	l->spawned = true;
	return l;
}

static void loop_stop_msg(struct loop_msg *m)
{
	loop_current->stop = true;
	free(m);
}

void loop_stop(struct loop *l)
{
	struct loop_msg *m = calloc(1, sizeof(*m));

	if (!m)
		abort();
	m->fn = loop_stop_msg;
	loop_post(l, m);
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	if (l->spawned) {
		loop_stop(l);
		pthread_join(l->thread, NULL);
	}
	while (l->mail) {
		struct loop_msg *m = l->mail;

		l->mail = m->next;
		if (m->fn == loop_stop_msg)
			free(m);
	}
	close(l->mail_fd);
	if (l->signal_fd >= 0)
		close(l->signal_fd);
	pthread_mutex_destroy(&l->mail_lock);
	free(l);
}
