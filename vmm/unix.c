/* SPDX-License-Identifier: BSD-3-Clause */
/* unix: see unix.h. */
#include "vmm/unix.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 16
#define STALE_TRIES 20
#define STALE_NAP_NS 50000000

/* A socket, and the address of PATH: the descriptor or -errno. */
static int prepare(const char *path, struct sockaddr_un *un)
{
	int fd;

	*un = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (!*path || strlen(path) >= sizeof(un->sun_path))
		return *path ? -ENAMETOOLONG : -EINVAL;
	strcpy(un->sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	return fd < 0 ? -errno : fd;
}

int unix_connect(const char *path)
{
	struct sockaddr_un un;
	int fd = prepare(path, &un), rc;

	if (fd < 0 || connect(fd, (struct sockaddr *)&un, sizeof(un)) == 0)
		return fd;
	rc = -errno;
	close(fd);
	return rc;
}

static int try_bind(int fd, const struct sockaddr_un *un)
{
	mode_t mask = umask(0177);
	int rc = bind(fd, (const struct sockaddr *)un, sizeof(*un)) < 0 ? -errno : 0;

	umask(mask);
	return rc;
}

/* What a VMM that was killed has left.  Its ring may hold the socket open for some tens of
 * milliseconds after its end, so a live one is asked again.  False: it is no socket. */
static bool remove_stale(const char *path)
{
	struct stat st;
	int fd;

	if (lstat(path, &st) < 0)
		return true;
	if (!S_ISSOCK(st.st_mode))
		return false;
	fd = unix_connect(path);
	if (fd == -ECONNREFUSED)
		unlink(path);
	else if (fd >= 0)
		close(fd);
	return true;
}

int unix_listen(const char *path, struct error *err)
{
	const struct timespec nap = { .tv_nsec = STALE_NAP_NS };
	struct sockaddr_un un;
	int fd = prepare(path, &un), rc;

	if (fd < 0)
		return error_errno(err, fd, "%s", path);
	rc = try_bind(fd, &un);
	for (unsigned i = 0; i < STALE_TRIES && rc == -EADDRINUSE && remove_stale(path); i++) {
		rc = try_bind(fd, &un);
		if (rc == -EADDRINUSE)
			nanosleep(&nap, NULL);
	}
	if (!rc && listen(fd, BACKLOG) < 0)
		rc = -errno;
	if (!rc)
		return fd;
	close(fd);
	return error_errno(err, rc, "%s", path);
}
