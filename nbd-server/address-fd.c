// SPDX-License-Identifier: BSD-3-Clause
/* address-fd: listening sockets that others made: by number, or by the name that
 * systemd (see activation.h) or QMP's getfd gave them.
 *
 * Others may be listening on the same socket, now or later.  So the end must not
 * shut it down, which ends the waiting for our own: acceptors wait on an epoll
 * descriptor that holds the socket, and the end adds something to it that is
 * always ready.  The same serves vsock, where a shutdown wakes nobody.
 */
#include "nbd-server/address-int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/options.h"
#include "nbd-server/activation.h"
#include "nbd-server/commands.h"

static int watch(int epoll, int fd)
{
	struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };

	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

int address_add_watched(struct address *a, int fd)
{
	unsigned i = a->n_fds++;

	a->fds[i] = fd;
	a->waits[i] = epoll_create1(EPOLL_CLOEXEC);
	if (a->waits[i] < 0)
		return -errno;
	if (!a->end_fd)
		a->end_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	return a->end_fd < 0 ? -errno : watch(a->waits[i], fd);
}

void address_end_watched(struct address *a)
{
	for (unsigned i = 0; i < a->n_fds; i++)
		watch(a->waits[i], a->end_fd);
}

/* Non-blocking: whoever shares it may be quicker to accept. */
static int adopt(int given, struct address *a, struct error *err)
{
	int listens = 0, flags, fd;
	socklen_t len = sizeof(listens);

	if (getsockopt(given, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0 || !listens)
		return error_set(err, -ENOTSOCK, "File descriptor %d is not a listening socket",
				 given);
	fd = activation_has(given) ? fcntl(given, F_DUPFD_CLOEXEC, 0) : given;
	if (fd < 0)
		return error_errno(err, -errno, "File descriptor %d", given);
	if (address_add_watched(a, fd))
		return error_errno(err, -errno, "File descriptor %d", given);
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
	    fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return error_errno(err, -errno, "File descriptor %d", given);
	return 0;
}

/* What TEXT stands for: a number, or a name; how many, or -errno.  *TAKEN: it is ours to
 * close. */
static int find(const char *text, int *fds, bool *taken, struct error *err)
{
	unsigned n;
	char *end;
	long fd;

	errno = 0;
	fd = strtol(text, &end, 10);
	if (!errno && *text >= '0' && *text <= '9' && !*end && fd >= 3 && fd <= INT_MAX) {
		fds[0] = (int)fd;
		return 1;
	}
	fds[0] = named_fd_take(text);
	*taken = fds[0] >= 0;
	if (*taken)
		return 1;
	n = activation_find(text, fds, ADDRESS_FDS_MAX);
	if (!n)
		return error_set(err, -EINVAL, "File descriptor named '%s' not found", text);
	if (n > ADDRESS_FDS_MAX)
		return error_set(err, -E2BIG, "more than %u descriptors are named '%s'",
				 ADDRESS_FDS_MAX, text);
	return (int)n;
}

static int adopt_all(const char *text, struct address *a, struct error *err)
{
	bool taken = false;
	int fds[ADDRESS_FDS_MAX], n = find(text, fds, &taken, err), rc = n < 0 ? n : 0;

	if (rc)
		return rc;
	for (int i = 0; i < n && !rc; i++)
		rc = adopt(fds[i], a, err);
	if (rc && taken && !a->n_fds)
		close(fds[0]);		/* what A has, its owner closes */
	return rc;
}

int address_fd(struct json_object *o, struct address *a, struct error *err)
{
	char *text = NULL;
	int rc = opts_require(o, "str", err);

	if (!rc)
		rc = opts_str(o, "str", &text, err);
	if (!rc)
		rc = opts_end(o, err);
	if (!rc)
		rc = adopt_all(text, a, err);
	free(text);
	return rc;
}
