// SPDX-License-Identifier: BSD-3-Clause
/* io-block: the blocking table, for tools and fuzzers.
 *
 * Every operation is done when the call returns; it may be used from any
 * thread and inside a coroutine, which it then blocks with its thread.
 * Descriptors that somebody made non-blocking are waited for with poll(2).
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/io-beside.h"
#include "common/io-sys.h"

static void block_sleep(struct io *io, uint64_t ns)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	ns += t.tv_nsec;
	t.tv_sec += ns / 1000000000;
	t.tv_nsec = ns % 1000000000;
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static int block_poll(struct io *io, int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };

	while (poll(&p, 1, -1) < 0)
		if (errno != EINTR)
			return -errno;
	return p.revents;
}

/* Whether the call that just failed with errno is worth another try: at once
 * after EINTR, when FD is ready after EAGAIN. */
static bool again(struct io *io, int fd, short events)
{
	if (errno == EINTR)
		return true;
	return (errno == EAGAIN || errno == EWOULDBLOCK) && block_poll(io, fd, events) > 0;
}

static ssize_t block_recv(struct io *io, int fd, void *buf, size_t len)
{
	ssize_t n;

	do
		n = recv(fd, buf, len, 0);
	while (n < 0 && again(io, fd, POLLIN));
	return n < 0 ? -errno : n;
}

static ssize_t block_send(struct io *io, int fd, const struct iovec *iov, int iovcnt, bool more)
{
	struct msghdr m = { .msg_iov = (struct iovec *)iov, .msg_iovlen = iovcnt };
	ssize_t n;

	do
		n = sendmsg(fd, &m, MSG_NOSIGNAL | (more ? MSG_MORE : 0));
	while (n < 0 && again(io, fd, POLLOUT));
	return n < 0 ? -errno : n;
}

static int block_accept(struct io *io, int fd)
{
	int conn;

	do
		conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	while (conn < 0 && again(io, fd, POLLIN));
	return conn < 0 ? -errno : conn;
}

static const struct io_ops block_ops = {
	.name = "blocking",
	.open = io_sys_open,
	.close = io_sys_close,
	.pread = io_sys_pread,
	.pwrite = io_sys_pwrite,
	.fsync = io_sys_fsync,
	.zero = io_sys_zero,
	.discard = io_sys_discard,
	.map = io_sys_map,
	.size = io_sys_size,
	.truncate = io_sys_truncate,
	.sleep = block_sleep,
	.recv = block_recv,
	.send = block_send,
	.poll = block_poll,
	.accept = block_accept,
	.identity = io_sys_identity,
	.mapped_make = io_sys_mapped_make,
	.mapped_read = io_sys_mapped_read,
	.mapped_end = io_sys_mapped_end,
	.beside = io_sys_beside,
};

struct io *io_blocking(void)
{
	static struct io io = { .ops = &block_ops };

	return &io;
}

int io_recv_all(struct io *io, int fd, void *buf, size_t len)
{
	char *p = buf;

	while (len) {
		ssize_t n = io_recv(io, fd, p, len);

		if (n < 0)
			return n;
		if (n == 0)
			return -ECONNRESET;
		p += n;
		len -= n;
	}
	return 0;
}

int io_send_all(struct io *io, int fd, struct iovec *iov, int n)
{
	while (n) {
		ssize_t sent;

		if (!iov->iov_len) {
			iov++;
			n--;
			continue;
		}
		sent = io_send(io, fd, iov, n < IOV_MAX ? n : IOV_MAX, false);
		if (sent <= 0)
			return sent < 0 ? sent : -EPIPE;
		for (; sent && (size_t)sent >= iov->iov_len; iov++, n--)
			sent -= iov->iov_len;
		if (sent) {
			iov->iov_base = (char *)iov->iov_base + sent;
			iov->iov_len -= sent;
		}
	}
	return 0;
}
