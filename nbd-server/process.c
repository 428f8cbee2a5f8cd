/* SPDX-License-Identifier: BSD-3-Clause */
/* process: going to the background, and the pid file.
 *
 * The pid file is taken at the start, so that a second daemon fails before it
 * touches an image, and written at the end, so that who waits for it finds all
 * in place.  Its lock tells a living holder from a file that was left behind.
 * The working directory stays: paths in QMP commands are relative to it.
 */
#include "nbd-server/process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static bool is_daemon;
static int ready_fd = -1;		/* the parent waits at the other end */
static int pidfile_fd = -1;
static char *pidfile_path;		/* absolute */

/* -- background -------------------------------------------------------------- */

static void wait_for_child(pid_t child, int fd)
	__attribute__((noreturn));

static void wait_for_child(pid_t child, int fd)
{
	char ok = 0;
	ssize_t n;

	do {
		n = read(fd, &ok, 1);
	} while (n < 0 && errno == EINTR);
	/* Without a word the child has ended, and has said why on our stderr. */
	if (n != 1)
		waitpid(child, NULL, 0);
	_exit(n == 1 ? 0 : 1);
}

int process_daemonize(struct error *err)
{
	int fds[2];
	pid_t child;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "pipe");
	fflush(NULL);
	child = fork();
	if (child < 0) {
		int rc = error_errno(err, -errno, "fork");

		close(fds[0]);
		close(fds[1]);
		return rc;
	}
	if (child) {
		close(fds[1]);
		wait_for_child(child, fds[0]);
	}
	close(fds[0]);
	ready_fd = fds[1];
	is_daemon = true;
	setsid();
	return 0;
}

bool process_is_daemon(void)
{
	return is_daemon;
}

void process_ready(void)
{
	int null;
	ssize_t n;

	if (ready_fd < 0)
		return;
	fflush(NULL);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
		close(null);
	}
	do {
		n = write(ready_fd, "", 1);
	} while (n < 0 && errno == EINTR);
	close(ready_fd);
	ready_fd = -1;
}

/* -- the pid file ------------------------------------------------------------ */

/* An fd on PATH, locked; -EAGAIN when somebody has it, -ESTALE when the file was
 * removed between open and lock. */
static int open_locked(const char *path)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	struct stat ours, there;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	int rc;

	if (fd < 0)
		return -errno;
	if (fcntl(fd, F_SETLK, &lock) < 0)
		rc = errno == EACCES ? -EAGAIN : -errno;
	else if (fstat(fd, &ours) < 0 || stat(path, &there) < 0 ||
		 ours.st_dev != there.st_dev || ours.st_ino != there.st_ino)
		rc = -ESTALE;
	else
		return fd;
	close(fd);
	return rc;
}

int pidfile_take(const char *path, struct error *err)
{
	int fd;

	do {
		fd = open_locked(path);
	} while (fd == -ESTALE);
	if (fd == -EAGAIN)
		return error_set(err, fd, "cannot create PID file: '%s' is held by another process",
				 path);
	if (fd < 0)
		return error_errno(err, fd, "cannot create PID file: Could not create '%s'", path);
	pidfile_fd = fd;
	pidfile_path = realpath(path, NULL);
	if (ftruncate(fd, 0) < 0 || !pidfile_path)
		return error_errno(err, -errno, "cannot create PID file: '%s'", path);
	return 0;
}

int pidfile_write(struct error *err)
{
	char text[32];
	int n = snprintf(text, sizeof(text), "%ld\n", (long)getpid());

	if (pidfile_fd < 0)
		return 0;
	if (pwrite(pidfile_fd, text, (size_t)n, 0) != n)
		return error_errno(err, -errno, "cannot write PID file '%s'", pidfile_path);
	return 0;
}

void pidfile_drop(void)
{
	if (pidfile_path)
		unlink(pidfile_path);
	if (pidfile_fd >= 0)
		close(pidfile_fd);
	free(pidfile_path);
	pidfile_path = NULL;
	pidfile_fd = -1;
}
