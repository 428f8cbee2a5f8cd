/* SPDX-License-Identifier: BSD-3-Clause */
/* The far end of a serial port: see line.h.
 *
 * Two coroutines of the main loop: one writes what the guest sent, one reads what people
 * send, and with "unix:" waits for them first.  vCPU threads wake them by a message.
 */
#include "vmm/line.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/co.h"
#include "common/io.h"
#include "common/log.h"
#include "common/loop.h"
#include "vmm/machine.h"
#include "vmm/terminal.h"
#include "vmm/unix.h"

#define RING 65536u
#define PIECE 1024u
#define HELD 4096u
#define GATHER 500000u			/* ns */
#define PATIENCE 1000000000u		/* ns */
#define ACCEPT_PAUSE 100000000u		/* ns, after an error such as EMFILE */

struct line {
	struct machine *machine;
	struct line_user user;

	/* With machine->lock held: */
	uint8_t ring[RING];
	uint64_t head, tail;		/* bytes ever taken, ever put */
	bool absent, stuck;		/* nobody reads; somebody does not */
	bool waking;
	struct loop_msg wake;

	/* Main loop: */
	struct io *io;
	int in, out, listener;		/* -1: none */
	char *path;			/* the listener's */
	bool terminal, escape, ending, writing;
	uint8_t held[HELD];		/* what was typed, until the guest has room */
	unsigned n_held;
	unsigned running;		/* coroutines */
	struct loop_timer timer, end_timer;
	bool expired;			/* the end has waited long enough */
	struct co_queue waiters;
};

/* -- the guest's side ------------------------------------------------------------------ */

static void give_held(struct line *l);

static void woken(struct loop_msg *msg)
{
	struct line *l = (struct line *)((char *)msg - offsetof(struct line, wake));

	pthread_mutex_lock(&l->machine->lock);
	l->waking = false;
	pthread_mutex_unlock(&l->machine->lock);
	give_held(l);
	co_queue_wake_all(&l->waiters);
}

static void wake(struct line *l)
{
	if (l->waking)
		return;
	l->waking = true;
	l->wake.fn = woken;
	loop_post(l->machine->main, &l->wake);
}

static bool drops(const struct line *l)
{
	return l->absent || l->stuck;
}

bool line_full(const struct line *l)
{
	return l->tail - l->head == RING && !drops(l);
}

void line_put(struct line *l, uint8_t byte)
{
	if (l->tail - l->head == RING)
		l->head++;
	l->ring[l->tail++ % RING] = byte;
	if (l->tail - l->head == 1)
		wake(l);
}

void line_taken(struct line *l)
{
	wake(l);
}

/* -- out ---------------------------------------------------------------------------------- */

static void set_stuck(struct line *l, bool stuck)
{
	pthread_mutex_lock(&l->machine->lock);
	if (stuck && !l->stuck) {
		l->stuck = true;
		l->user.space(l->user.arg);
	} else {
		l->stuck = stuck;
	}
	pthread_mutex_unlock(&l->machine->lock);
}

static void set_absent(struct line *l, bool absent)
{
	pthread_mutex_lock(&l->machine->lock);
	l->absent = absent;
	if (absent)
		l->user.space(l->user.arg);
	pthread_mutex_unlock(&l->machine->lock);
}

static void too_slow(struct loop_timer *t)
{
	set_stuck((struct line *)((char *)t - offsetof(struct line, timer)), true);
}

/* Copies the next bytes; *POS is where they begin. */
static unsigned peek(struct line *l, uint8_t *piece, uint64_t *pos)
{
	unsigned n;

	pthread_mutex_lock(&l->machine->lock);
	*pos = l->head;
	n = (unsigned)min_u64(l->tail - l->head, PIECE);
	for (unsigned i = 0; i < n; i++)
		piece[i] = l->ring[(l->head + i) % RING];
	pthread_mutex_unlock(&l->machine->lock);
	return n;
}

/* What lies before POS was taken; the guest may have pushed out more. */
static void consume(struct line *l, uint64_t pos)
{
	pthread_mutex_lock(&l->machine->lock);
	l->stuck = false;
	if (l->head < pos) {
		bool full = l->tail - l->head == RING;

		l->head = pos;
		if (full)
			l->user.space(l->user.arg);
	}
	pthread_mutex_unlock(&l->machine->lock);
}

/* False: the reader is gone. */
static bool write_piece(struct line *l)
{
	uint8_t piece[PIECE];
	uint64_t pos;
	unsigned n;
	ssize_t done;
	int rc;

	loop_timer_set(&l->timer, loop_now() + PATIENCE, too_slow);
	rc = io_poll(l->io, l->out, POLLOUT);
	loop_timer_cancel(&l->timer);
	if (rc < 0)
		return rc == -EINTR;
	n = peek(l, piece, &pos);
	done = write(l->out, piece, n);
	if (done < 0)
		return errno == EINTR || errno == EAGAIN;
	consume(l, pos + (uint64_t)done);
	return true;
}

static bool is_empty(struct line *l)
{
	bool empty;

	pthread_mutex_lock(&l->machine->lock);
	empty = l->head == l->tail;
	pthread_mutex_unlock(&l->machine->lock);
	return empty;
}

static void writer(void *arg)
{
	struct line *l = arg;

	while (!l->ending) {
		if (l->out < 0 || is_empty(l)) {
			co_queue_wait(&l->waiters);
			/* Guests send byte by byte: more comes with the first. */
			if (!l->ending)
				io_sleep(l->io, GATHER);
			continue;
		}
		l->writing = true;
		if (!write_piece(l)) {
			l->out = -1;
			set_absent(l, true);
		}
		l->writing = false;
		co_queue_wake_all(&l->waiters);
	}
	l->running--;
	co_queue_wake_all(&l->waiters);
}

/* -- in ----------------------------------------------------------------------------------- */

static void help(struct line *l)
{
	static const char text[] = "\r\n^A x ends the machine, ^A ^A sends a ^A\r\n";

	if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
		log_debug("nobody reads the help");
}

/* What of N bytes is the guest's; the rest is for us. */
static unsigned filter(struct line *l, uint8_t *bytes, unsigned n)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < n; i++) {
		switch (terminal_key(&l->escape, bytes[i])) {
		case TERMINAL_SEND:
			bytes[kept++] = bytes[i];
			break;
		case TERMINAL_QUIT:
			machine_tell(l->machine, MACHINE_QUIT);
			break;
		case TERMINAL_HELP:
			help(l);
			break;
		case TERMINAL_NOTHING:
			break;
		}
	}
	return kept;
}

static unsigned room(struct line *l)
{
	unsigned n;

	pthread_mutex_lock(&l->machine->lock);
	n = l->user.room(l->user.arg);
	pthread_mutex_unlock(&l->machine->lock);
	return n;
}

static void give(struct line *l, const uint8_t *bytes, unsigned n)
{
	pthread_mutex_lock(&l->machine->lock);
	l->user.give(l->user.arg, bytes, n);
	pthread_mutex_unlock(&l->machine->lock);
}

static void give_held(struct line *l)
{
	unsigned n;

	if (!l->n_held)
		return;
	pthread_mutex_lock(&l->machine->lock);
	n = (unsigned)min_u64(l->user.room(l->user.arg), l->n_held);
	l->user.give(l->user.arg, l->held, n);
	pthread_mutex_unlock(&l->machine->lock);
	l->n_held -= n;
	memmove(l->held, l->held + n, l->n_held);
}

/* A person can end the machine whether the guest has room or not: on a terminal bytes are
 * read when they come, and held here; what is too much is lost. */
static bool read_terminal(struct line *l)
{
	uint8_t piece[64];
	ssize_t got;
	unsigned n;

	if (io_poll(l->io, l->in, POLLIN) < 0 || l->ending)
		return false;
	got = read(l->in, piece, sizeof(piece));
	if (got <= 0)
		return got < 0 && (errno == EINTR || errno == EAGAIN);
	n = (unsigned)min_u64(filter(l, piece, (unsigned)got), HELD - l->n_held);
	memcpy(l->held + l->n_held, piece, n);
	l->n_held += n;
	give_held(l);
	return true;
}

static bool read_piece(struct line *l)
{
	uint8_t piece[PIECE];
	ssize_t got;
	unsigned n;

	if (l->terminal)
		return read_terminal(l);
	if (io_poll(l->io, l->in, POLLIN) < 0 || l->ending)
		return false;
	n = room(l);
	if (!n)
		return true;
	got = read(l->in, piece, min_u64(n, PIECE));
	if (got <= 0)
		return got < 0 && (errno == EINTR || errno == EAGAIN);
	give(l, piece, (unsigned)got);
	return true;
}

static void read_all(struct line *l)
{
	while (!l->ending) {
		if (!l->terminal && !room(l))
			co_queue_wait(&l->waiters);
		else if (!read_piece(l))
			return;
	}
}

static void reader(void *arg)
{
	struct line *l = arg;

	read_all(l);
	l->running--;
	co_queue_wake_all(&l->waiters);
}

/* One client after the other. */
static void server(void *arg)
{
	struct line *l = arg;

	while (!l->ending) {
		int fd = io_accept(l->io, l->listener);

		if (fd < 0) {
			if (fd != -EINTR && fd != -ECONNABORTED && !l->ending)
				io_sleep(l->io, ACCEPT_PAUSE);
			continue;
		}
		fcntl(fd, F_SETFL, O_NONBLOCK);
		l->in = l->out = fd;
		set_absent(l, false);
		co_queue_wake_all(&l->waiters);
		read_all(l);
		l->in = l->out = -1;
		set_absent(l, true);
		io_cancel(l->io, fd);
		while (l->writing)
			co_queue_wait(&l->waiters);
		close(fd);
	}
	l->running--;
	co_queue_wake_all(&l->waiters);
}

/* -- open, close ---------------------------------------------------------------------------- */

/* Of terminals and pipes a description of our own, which does not wait: the one that we were
 * given is shared.  Files never wait, and their offset has to be shared. */
static int open_again(int fd)
{
	char path[32];
	struct stat st;
	int again = -1;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fstat(fd, &st) == 0 && (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)))
		again = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	return again >= 0 ? again : fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

static int open_stdio(struct line *l, struct error *err)
{
	int rc = 0;

	if (isatty(STDIN_FILENO)) {
		rc = terminal_raw(err);
		l->terminal = !rc;
	}
	l->in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
	l->out = open_again(STDOUT_FILENO);
	return rc;
}

static int open_where(struct line *l, const char *where, struct error *err)
{
	if (!strcmp(where, "stdio"))
		return open_stdio(l, err);
	if (!strncmp(where, "file:", 5)) {
		l->out = open(where + 5, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
			      0600);
		return l->out < 0 ? error_errno(err, -errno, "serial: %s", where + 5) : 0;
	}
	if (!strncmp(where, "unix:", 5)) {
		l->path = strdup(where + 5);
		l->listener = l->path ? unix_listen(l->path, err) : -ENOMEM;
		return l->listener < 0 ? l->listener : 0;
	}
	return error_set(err, -EINVAL, "--serial: expected stdio, none, file:PATH or unix:PATH, not '%s'",
			 where);
}

static void free_line(struct line *l)
{
	if (l->terminal)
		terminal_restore();
	if (l->in >= 0)
		close(l->in);
	if (l->out >= 0)
		close(l->out);
	if (l->listener >= 0) {
		close(l->listener);
		unlink(l->path);
	}
	free(l->path);
	free(l);
}

int line_open(struct machine *m, const char *where, const struct line_user *u, struct line **out,
	      struct error *err)
{
	struct line *l;
	int rc;

	*out = NULL;
	if (!strcmp(where, "none"))
		return 0;
	l = calloc(1, sizeof(*l));
	if (!l)
		return error_set(err, -ENOMEM, "Out of memory");
	l->machine = m;
	l->user = *u;
	l->io = loop_io(m->main);
	l->in = l->out = l->listener = -1;
	rc = open_where(l, where, err);
	if (rc) {
		free_line(l);
		return rc;
	}
	l->absent = l->out < 0;
	*out = l;
	l->running = 1 + (l->in >= 0 || l->listener >= 0);
	co_start(writer, l);
	if (l->listener >= 0)
		co_start(server, l);
	else if (l->in >= 0)
		co_start(reader, l);
	return 0;
}

static void close_expired(struct loop_timer *t)
{
	struct line *l = (struct line *)((char *)t - offsetof(struct line, end_timer));

	l->expired = true;
	co_queue_wake_all(&l->waiters);
}

static void cancel(struct line *l, int fd)
{
	if (fd >= 0)
		io_cancel(l->io, fd);
}

static bool is_busy(struct line *l)
{
	bool waking;

	pthread_mutex_lock(&l->machine->lock);
	waking = l->waking;
	pthread_mutex_unlock(&l->machine->lock);
	return waking || l->running;
}

void line_close(struct line *l)
{
	if (!l)
		return;
	loop_timer_set(&l->end_timer, loop_now() + PATIENCE, close_expired);
	while (!l->expired && l->out >= 0 && !is_empty(l))
		co_queue_wait(&l->waiters);
	loop_timer_cancel(&l->end_timer);
	l->ending = true;
	cancel(l, l->in);
	cancel(l, l->out);
	cancel(l, l->listener);
	co_queue_wake_all(&l->waiters);
	while (is_busy(l))
		co_queue_wait(&l->waiters);
	free_line(l);
}
