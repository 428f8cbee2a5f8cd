// SPDX-License-Identifier: BSD-3-Clause
/* own-daemon: see own-daemon.h. */
#include "clients/own-daemon.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"

enum { NAP_NS = 5000000, NAPS_PER_SECOND = 200, PARENT_MAX = 70 };

/* -- its directory --------------------------------------------------------------- */

/* Whoever made a directory holds a lock on it as long as he lives: what is not locked was
 * left by one that was killed.  One so young may be about to be locked. */
enum { LOCK_SOON_S = 60, RANDOM_LEN = 6, TRIES = 100 };

/* Opened at PARENT, and locked by us; -1: it is none of ours, or in use. */
static int open_stale(int parent, const char *name)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_uid == geteuid() && (st.st_mode & 07777) == 0700 &&
	    st.st_mtime + LOCK_SOON_S < time(NULL) && flock(fd, LOCK_EX | LOCK_NB) == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

/* Sockets, a log, overlays: there are no directories in it.  Takes FD. */
static void remove_stale(int parent, const char *name, int fd)
{
	DIR *d = fdopendir(fd);
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			unlinkat(fd, e->d_name, 0);
	unlinkat(parent, name, AT_REMOVEDIR);
	if (d)
		closedir(d);
	else
		close(fd);
}

/* Those that runs before ours have left in PARENT. */
static void sweep(const char *parent, const char *name)
{
	size_t len = strlen(name);
	DIR *d = opendir(parent);
	struct dirent *e;
	int fd;

	while (d && (e = readdir(d)))
		if (strncmp(e->d_name, name, len) == 0 && e->d_name[len] == '-' &&
		    strlen(e->d_name) == len + 1 + RANDOM_LEN && (fd = open_stale(dirfd(d), e->d_name)) >= 0)
			remove_stale(dirfd(d), e->d_name, fd);
	if (d)
		closedir(d);
}

/* The lock is held until this process ends.  False: PATH was swept away before it was ours. */
static bool hold(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct stat st;

	if (fd >= 0 && flock(fd, LOCK_SH) == 0 && fstat(fd, &st) == 0 && st.st_nlink)
		return true;
	if (fd >= 0)
		close(fd);
	return false;
}

int own_daemon_dir(const char *parent, const char *fallback, const char *name, char **out, struct error *err)
{
	int rc = -EAGAIN;

	if (!parent || !*parent || strlen(parent) > PARENT_MAX || access(parent, W_OK | X_OK) < 0)
		parent = fallback;
	sweep(parent, name);
	for (unsigned i = 0; i < TRIES && rc == -EAGAIN; i++) {
		if (asprintf(out, "%s/%s-XXXXXX", parent, name) < 0) {
			*out = NULL;
			return error_errno(err, -ENOMEM, "%s", parent);
		}
		if (!mkdtemp(*out))
			rc = -errno;
		else if (hold(*out))
			return 0;
		if (rc == -EAGAIN && i + 1 < TRIES)
			free(*out);
	}
	rc = error_errno(err, rc, "%s", *out);
	free(*out);
	*out = NULL;
	return rc;
}

/* -- its life -------------------------------------------------------------------- */

char *own_daemon_program(const char *given)
{
	char self[PATH_MAX], *slash, *out;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (given)
		return strdup(given);
	self[n > 0 ? n : 0] = 0;
	slash = strrchr(self, '/');
	if (slash && asprintf(&out, "%.*s/merinod", (int)(slash - self), self) >= 0) {
		if (access(out, X_OK) == 0)
			return out;
		free(out);
	}
	return strdup("merinod");
}

/* Ours only remember a signal: one that came before exec(2) would be lost. */
static void reset_signals(void)
{
	static const int caught[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction old;
	sigset_t none;

	for (unsigned i = 0; i < sizeof(caught) / sizeof(*caught); i++)
		if (sigaction(caught[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			signal(caught[i], SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGXFSZ, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* In the child.  A ^C in the terminal is ours to act on: it gets its own group. */
static void become(char **argv, const char *log, pid_t parent)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int to = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : STDERR_FILENO;

	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(126);
	dup2(null, STDIN_FILENO);
	dup2(log ? null : STDERR_FILENO, STDOUT_FILENO);
	dup2(to, STDERR_FILENO);
	reset_signals();
	execvp(argv[0], argv);
	dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

int own_daemon_start(char **argv, const char *log, pid_t *pid, struct error *err)
{
	pid_t self = getpid();

	*pid = fork();
	if (*pid == 0)
		become(argv, log, self);
	if (*pid > 0)
		return 0;
	*pid = 0;
	return error_errno(err, -errno, "fork");
}

bool own_daemon_ended(pid_t *pid, int *status)
{
	if (*pid && waitpid(*pid, status, WNOHANG) == *pid)
		*pid = 0;
	return !*pid;
}

int own_daemon_end(pid_t *pid, unsigned seconds)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };
	int status = 0;

	if (!*pid)
		return 0;
	kill(*pid, SIGTERM);
	for (unsigned i = 0; i < seconds * NAPS_PER_SECOND; i++) {
		if (own_daemon_ended(pid, &status))
			return status;
		nanosleep(&nap, NULL);
	}
	kill(*pid, SIGKILL);
	while (waitpid(*pid, &status, 0) < 0 && errno == EINTR)
		continue;
	*pid = 0;
	return status;
}
