/* SPDX-License-Identifier: BSD-3-Clause */
/* stdio: standard input and output as one socket, for a monitor.
 *
 * They may be pipes, files or a terminal, and their modes are shared with other
 * processes, so they are not made non-blocking: a thread each copies bytes.
 * The one at stdin may wait for ever, and ends with the process.
 */
#include "nbd-server/stdio.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static bool opened;
static int far_end = -1;		/* of the socket pair: the threads' */
static pthread_t writer;

static bool write_all(int fd, const char *p, size_t n)
{
	while (n) {
		ssize_t done = write(fd, p, n);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return false;
		p += done;
		n -= (size_t)done;
	}
	return true;
}

static void copy(int from, int to)
{
	char piece[4096];
	ssize_t n;

	do {
		n = read(from, piece, sizeof(piece));
	} while ((n < 0 && errno == EINTR) || (n > 0 && write_all(to, piece, (size_t)n)));
}

static void *copy_in(void *arg)
{
	copy(STDIN_FILENO, far_end);
	shutdown(far_end, SHUT_WR);
	return NULL;
}

static void *copy_out(void *arg)
{
	copy(far_end, STDOUT_FILENO);
	shutdown(far_end, SHUT_RDWR);
	return NULL;
}

int stdio_open(struct error *err)
{
	pthread_t reader;
	int fds[2], rc;

	if (opened)
		return error_set(err, -EBUSY, "cannot use stdio by multiple character devices");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return error_errno(err, -errno, "socketpair");
	far_end = fds[1];
	rc = pthread_create(&writer, NULL, copy_out, NULL);
	if (!rc) {
		opened = true;
		rc = pthread_create(&reader, NULL, copy_in, NULL);
	}
	if (rc) {
		close(fds[0]);
		return error_errno(err, -rc, "cannot start a thread for stdio");
	}
	pthread_detach(reader);
	return fds[0];
}

void stdio_close(void)
{
	struct timespec until;

	if (!opened)
		return;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec++;
	pthread_timedjoin_np(writer, NULL, &until);
}
