/* SPDX-License-Identifier: BSD-3-Clause */
/* The daemon's table of operations: suspends the calling coroutine.
 *
 * Try without waiting first: what is in the page cache is read with
 * RWF_NOWAIT, what fits a socket is sent with MSG_DONTWAIT, and only what would
 * wait goes to the ring.  Buffered writes: RWF_NOWAIT where the file system has
 * it (ext4 has not), else a plain pwrite while recent ones were quick, else the
 * ring's workers.  Where the loop has no ring, its own workers do file I/O and
 * poll(2) waits for sockets: the same code, fewer ways.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io-beside.h"
#include "common/extents.h"
#include "common/io-sys.h"
#include "common/loop-int.h"

#define WRITE_NS_MAX 200000u	/* inline writes stop being tried above this average */
#define MAP_NS_MAX 200000u	/* an inline map that takes longer is slow */
#define MAP_STRIKES_MAX 32	/* four slow ones in a row, and workers map this file for a while */
#define MAP_RUNS_INLINE 16	/* longest list of runs that is made inline */

static struct loop *uring_loop(struct io *io)
{
	return (struct loop *)((char *)io - offsetof(struct loop, io));
}

static int uring_wait(struct io_uring_sqe *sqe)
{
	struct loop_op op = { .co = co_self() };

	io_uring_sqe_set_data(sqe, &op);
	return loop_wait(&op);
}

/* -- calls that only the workers make --------------------------------------- */

enum file_call { CALL_OPEN, CALL_PREAD, CALL_PWRITE, CALL_FSYNC, CALL_ZERO, CALL_DISCARD, CALL_MAP,
		 CALL_TRUNCATE };

struct file_job {
	enum file_call call;
	struct io_file *f;
	void *buf;
	uint64_t off, len;
	unsigned flags;
	struct extents *x;
	struct io *io;
	const char *path;
	struct error *err;
	struct io_file *opened;
	ssize_t rc;
	uint64_t ns;			/* CALL_MAP: how long it took */
};

static void file_job_run(void *arg)
{
	struct file_job *j = arg;

	switch (j->call) {
	case CALL_OPEN:
		j->opened = io_sys_open(j->io, j->path, j->flags, j->err);
		break;
	case CALL_PREAD:
		j->rc = io_sys_pread(j->f, j->buf, j->len, j->off);
		break;
	case CALL_PWRITE:
		j->rc = io_sys_pwrite(j->f, j->buf, j->len, j->off, j->flags);
		break;
	case CALL_FSYNC:
		j->rc = io_sys_fsync(j->f);
		break;
	case CALL_ZERO:
		j->rc = io_sys_zero(j->f, j->off, j->len, j->flags);
		break;
	case CALL_DISCARD:
		j->rc = io_sys_discard(j->f, j->off, j->len);
		break;
	case CALL_MAP:
		j->ns = loop_now();
		j->rc = io_sys_map(j->f, j->off, j->len, j->x);
		j->ns = loop_now() - j->ns;
		break;
	case CALL_TRUNCATE:
		j->rc = io_sys_truncate(j->f, j->len);
		break;
	}
}

static ssize_t file_job(struct file_job j)
{
	loop_work(file_job_run, &j);
	return j.rc;
}

static struct io_file *uring_open(struct io *io, const char *path, unsigned flags,
				  struct error *err)
{
	struct file_job j = {
		.call = CALL_OPEN, .io = io, .path = path, .flags = flags, .err = err,
	};

	loop_work(file_job_run, &j);
	return j.opened;
}

static int uring_zero(struct io_file *f, uint64_t off, uint64_t len, unsigned flags)
{
	return (int)file_job((struct file_job){
		.call = CALL_ZERO, .f = f, .off = off, .len = len, .flags = flags });
}

static int uring_discard(struct io_file *f, uint64_t off, uint64_t len)
{
	return (int)file_job((struct file_job){
		.call = CALL_DISCARD, .f = f, .off = off, .len = len });
}

/* A few runs are looked up inline as long as that is quick: the file system has its map in
 * memory, and a read that looks for holes would pay more for two wake-ups.  Some file
 * systems search page by page, and a map may have to be read: then the workers do it. */
static int uring_map(struct io_file *f, uint64_t off, uint64_t len, struct extents *x)
{
	struct file_job j = { .call = CALL_MAP, .f = f, .off = off, .len = len, .x = x };

	if (f->map_strikes < MAP_STRIKES_MAX && x->max - x->n <= MAP_RUNS_INLINE)
		file_job_run(&j);
	else
		loop_work(file_job_run, &j);
	if (j.ns <= MAP_NS_MAX)
		f->map_strikes -= f->map_strikes > 0;
	else if (f->map_strikes < 2 * MAP_STRIKES_MAX)
		f->map_strikes += 8;
	return (int)j.rc;
}

static int uring_truncate(struct io_file *f, uint64_t size)
{
	return (int)file_job((struct file_job){ .call = CALL_TRUNCATE, .f = f, .len = size });
}

static int64_t uring_size(struct io_file *f)
{
	return io_sys_size(f);
}

/* -- memory that outlives the process --------------------------------------- */

enum mapped_call { CALL_IDENTITY, CALL_MAKE, CALL_READ, CALL_END };

struct mapped_job {
	enum mapped_call call;
	struct io_file *f;
	struct io_identity *id;
	const char *dir;
	size_t len;
	struct io_mapped **out, *m;
	uint8_t **data;
	bool remove;
	struct error *err;
	int rc;
};

static void mapped_job_run(void *arg)
{
	struct mapped_job *j = arg;

	switch (j->call) {
	case CALL_IDENTITY:
		j->rc = io_sys_identity(j->f, j->id);
		break;
	case CALL_MAKE:
		j->rc = io_sys_mapped_make(j->f, j->dir, j->len, j->out, j->err);
		break;
	case CALL_READ:
		j->rc = io_sys_mapped_read(j->f, j->dir, j->len, j->data);
		break;
	case CALL_END:
		io_sys_mapped_end(j->m, j->remove);
		break;
	}
}

static int mapped_job(struct mapped_job j)
{
	loop_work(mapped_job_run, &j);
	return j.rc;
}

static int uring_identity(struct io_file *f, struct io_identity *id)
{
	return mapped_job((struct mapped_job){ .call = CALL_IDENTITY, .f = f, .id = id });
}

static int uring_mapped_make(struct io_file *f, const char *dir, size_t len, struct io_mapped **out,
			     struct error *err)
{
	return mapped_job((struct mapped_job){ .call = CALL_MAKE, .f = f, .dir = dir, .len = len,
					       .out = out, .err = err });
}

static int uring_mapped_read(struct io_file *f, const char *dir, size_t len, uint8_t **data)
{
	return mapped_job((struct mapped_job){ .call = CALL_READ, .f = f, .dir = dir, .len = len,
					       .data = data });
}

static void uring_mapped_end(struct io_mapped *m, bool remove)
{
	mapped_job((struct mapped_job){ .call = CALL_END, .m = m, .remove = remove });
}

static void beside_job_run(void *arg)
{
	io_sys_beside(arg);
}

static void uring_beside(struct io_beside_job *j)
{
	if (j->call == BESIDE_MAP || j->call == BESIDE_UNMAP)
		io_sys_beside(j);	/* no I/O */
	else
		loop_work(beside_job_run, j);
}

/* -- reads ------------------------------------------------------------------ */

/* Reads what the page cache has; how much, or -errno (-EAGAIN: nothing). */
static ssize_t uring_pread_now(struct io_file *f, void *buf, size_t len, uint64_t off)
{
	struct iovec v = { .iov_base = buf, .iov_len = len };
	ssize_t n;

	if (f->no_nowait_read)
		n = f->in_memory && io_is_cached(f, off, len) ? pread(f->fd, buf, len, (off_t)off) : 0;
	else
		n = preadv2(f->fd, &v, 1, (off_t)off, RWF_NOWAIT);
	if (n >= 0)
		return n;
	if (errno == EOPNOTSUPP) {
		f->no_nowait_read = true;
		f->in_memory = io_sys_is_tmpfs(f);
	}
	return -errno;
}

static ssize_t uring_pread_ring(struct loop *l, struct io_file *f, char *buf, size_t len,
				uint64_t off)
{
	size_t done = 0;

	while (done < len) {
		struct io_uring_sqe *sqe = loop_sqe(l);
		int n;

		io_uring_prep_read(sqe, f->fd, buf + done, (unsigned)(len - done), off + done);
		n = uring_wait(sqe);
		if (n == -EINTR || n == -EAGAIN)
			continue;
		if (n < 0)
			return n;
		done += (size_t)n;
		if (n == 0 || (f->direct && (unsigned)n % f->align))
			break;		/* the end of the file */
	}
	return (ssize_t)done;
}

static ssize_t uring_pread(struct io_file *f, void *buf, size_t len, uint64_t off)
{
	struct loop *l = uring_loop(f->io);
	ssize_t now = 0, rest;

	if (!f->direct && (!f->no_nowait_read || f->in_memory)) {
		now = uring_pread_now(f, buf, len, off);
		if (now == (ssize_t)len)
			return now;
		if (now < 0)
			now = 0;
	}
	if (l->uring)
		rest = uring_pread_ring(l, f, (char *)buf + now, len - (size_t)now,
					off + (uint64_t)now);
	else
		rest = file_job((struct file_job){
			.call = CALL_PREAD, .f = f, .buf = (char *)buf + now,
			.len = len - (size_t)now, .off = off + (uint64_t)now });
	return rest < 0 ? rest : now + rest;
}

/* -- writes ----------------------------------------------------------------- */

/* A write of LEN bytes took NS: keeps the average that says whether to go on
 * writing inline.  What the copy itself costs (0.5 ns a byte) does not count. */
static void uring_judge(struct io_file *f, uint64_t ns, size_t len)
{
	uint64_t wait = ns > len / 2 ? ns - len / 2 : 0;

	if (wait > 4 * WRITE_NS_MAX)
		wait = 4 * WRITE_NS_MAX;	/* one long one may be the scheduler's doing */
	f->write_ns = (uint32_t)((f->write_ns * 7ull + wait) / 8);
}

/* Writes without suspending, as long as that is quick: how much, or -EAGAIN. */
static ssize_t uring_pwrite_now(struct io_file *f, const void *buf, size_t len, uint64_t off)
{
	struct iovec v = { .iov_base = (void *)buf, .iov_len = len };
	uint64_t t;
	ssize_t n;

	if (!f->no_nowait_write) {
		n = pwritev2(f->fd, &v, 1, (off_t)off, RWF_NOWAIT);
		if (n >= 0 || errno == EAGAIN)
			return n > 0 ? n : -EAGAIN;
		if (errno != EOPNOTSUPP)
			return -errno;
		f->no_nowait_write = true;
	}
	if (f->write_ns > WRITE_NS_MAX) {
		f->write_ns -= f->write_ns / 32;	/* so that it is tried again one day */
		return -EAGAIN;
	}
	t = loop_now();
	n = pwrite(f->fd, buf, len, (off_t)off);
	uring_judge(f, loop_now() - t, len);
	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	return n;
}

static int uring_pwrite_ring(struct loop *l, struct io_file *f, const char *buf, size_t len,
			     uint64_t off, unsigned flags)
{
	size_t done = 0;

	while (done < len) {
		struct io_uring_sqe *sqe = loop_sqe(l);
		int n;

		io_uring_prep_write(sqe, f->fd, buf + done, (unsigned)(len - done), off + done);
		if (flags & IO_DSYNC)
			sqe->rw_flags = RWF_DSYNC;
		n = uring_wait(sqe);
		if (n == -EINTR || n == -EAGAIN)
			continue;
		if (n <= 0)
			return n ? n : -ENOSPC;
		done += (size_t)n;
	}
	return 0;
}

static int uring_pwrite(struct io_file *f, const void *buf, size_t len, uint64_t off,
			unsigned flags)
{
	struct loop *l = uring_loop(f->io);
	const char *p = buf;

	if (!f->direct && !f->no_inline_write && !(flags & IO_DSYNC)) {
		ssize_t now = uring_pwrite_now(f, p, len, off);

		if (now == (ssize_t)len)
			return 0;
		if (now < 0 && now != -EAGAIN)
			return (int)now;
		if (now > 0) {
			p += now;
			off += (uint64_t)now;
			len -= (size_t)now;
		}
	}
	if (l->uring)
		return uring_pwrite_ring(l, f, p, len, off, flags);
	return (int)file_job((struct file_job){
		.call = CALL_PWRITE, .f = f, .buf = (void *)p, .len = len, .off = off,
		.flags = flags });
}

static int uring_fsync(struct io_file *f)
{
	struct loop *l = uring_loop(f->io);
	int rc;

	if (!l->uring)
		return (int)file_job((struct file_job){ .call = CALL_FSYNC, .f = f });
	do {
		struct io_uring_sqe *sqe = loop_sqe(l);

		io_uring_prep_fsync(sqe, f->fd, IORING_FSYNC_DATASYNC);
		rc = uring_wait(sqe);
	} while (rc == -EINTR);
	return rc;
}

/* -- sockets and time ------------------------------------------------------- */

static ssize_t uring_recv(struct io *io, int fd, void *buf, size_t len)
{
	struct loop *l = uring_loop(io);
	ssize_t n;

	for (;;) {
		if (l->uring) {
			/* The ring tries at submission: no need to try before. */
			struct io_uring_sqe *sqe = loop_sqe(l);

			io_uring_prep_recv(sqe, fd, buf, len, 0);
			n = uring_wait(sqe);
		} else {
			n = recv(fd, buf, len, MSG_DONTWAIT);
			if (n < 0)
				n = -errno;
			if (n == -EAGAIN) {
				int rc = loop_poll(l, fd, POLLIN);

				if (rc < 0)
					return rc;
				continue;
			}
		}
		if (n != -EINTR && n != -EAGAIN)
			return n;
	}
}

static ssize_t uring_send(struct io *io, int fd, const struct iovec *iov, int n, bool more)
{
	struct loop *l = uring_loop(io);
	struct msghdr mh = { .msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)n };

	for (;;) {
		ssize_t sent = sendmsg(fd, &mh,
				       MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0));
		int rc;

		if (sent >= 0)
			return sent;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		rc = loop_poll(l, fd, POLLOUT);
		if (rc < 0)
			return rc;
	}
}

static int uring_poll(struct io *io, int fd, short events)
{
	return loop_poll(uring_loop(io), fd, events);
}

static int uring_accept(struct io *io, int fd)
{
	for (;;) {
		int rc = loop_poll(uring_loop(io), fd, POLLIN), s;

		if (rc < 0)
			return rc;
		s = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (s >= 0)
			return s;
		if (errno == EAGAIN && (rc & (POLLHUP | POLLERR)))
			return -EINVAL;		/* shut down: it will never be otherwise */
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			return -errno;
	}
}

static void uring_cancel(struct io *io, int fd)
{
	struct loop *l = uring_loop(io);
	struct io_uring_sqe *sqe;

	if (!l->uring) {
		loop_unwatch_fd(l, fd);
		return;
	}
	sqe = loop_sqe(l);
	io_uring_prep_cancel_fd(sqe, fd, IORING_ASYNC_CANCEL_ALL);
	io_uring_sqe_set_data(sqe, NULL);
}

struct uring_sleeper {
	struct loop_timer timer;
	struct co *co;
	bool done;
};

static void uring_sleep_over(struct loop_timer *t)
{
	struct uring_sleeper *s = (struct uring_sleeper *)t;

	s->done = true;
	co_wake(s->co);
}

static void uring_sleep(struct io *io, uint64_t ns)
{
	struct uring_sleeper s = { .co = co_self() };

	loop_timer_set(&s.timer, loop_now() + ns, uring_sleep_over);
	while (!s.done)
		co_suspend();
}

const struct io_ops io_uring_ops = {
	.name = "io_uring",
	.open = uring_open,
	.close = io_sys_close,
	.pread = uring_pread,
	.pwrite = uring_pwrite,
	.fsync = uring_fsync,
	.zero = uring_zero,
	.discard = uring_discard,
	.map = uring_map,
	.size = uring_size,
	.truncate = uring_truncate,
	.sleep = uring_sleep,
	.recv = uring_recv,
	.send = uring_send,
	.poll = uring_poll,
	.accept = uring_accept,
	.identity = uring_identity,
	.mapped_make = uring_mapped_make,
	.mapped_read = uring_mapped_read,
	.mapped_end = uring_mapped_end,
	.beside = uring_beside,
	.cancel = uring_cancel,
};
