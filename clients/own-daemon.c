// SPDX-License-Identifier: BSD-3-Clause
/* own-daemon: see own-daemon.h. */
#include "clients/own-daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"

enum { NAP_NS = 5000000, NAPS_PER_SECOND = 200 };

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
void own_daemon_reset_signals(void)
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
	own_daemon_reset_signals();
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
