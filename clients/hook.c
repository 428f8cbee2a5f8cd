// SPDX-License-Identifier: BSD-3-Clause
/* hook: see hook.h.
 *
 * A hook that goes on in the background has what it was given and nothing of ours: no lock,
 * no connection, no pipe that somebody waits at but the one that it writes to.
 */
#include "clients/hook.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clients/progress.h"

enum { NAP_NS = 5000000, STATUS_NO_SHELL = 127 };

static void default_signals(void)
{
	sigset_t none;

	for (int signo = 1; signo < NSIG; signo++)
		if (signo != SIGKILL && signo != SIGSTOP)
			signal(signo, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void become(const char *command, const struct hook_variable *v, int out)
{
	int null = open("/dev/null", O_RDWR), to = dup(out);

	setpgid(0, 0);
	default_signals();
	dup2(null, 0);
	dup2(to >= 0 ? to : null, 1);
	dup2(to >= 0 ? to : null, 2);
	close_range(3, ~0u, 0);
	for (; v->name; v++)
		setenv(v->name, v->value, 1);
	execl("/bin/sh", "sh", "-c", command, NULL);
	_exit(STATUS_NO_SHELL);
}

static int judge(const char *command, int status, struct error *err)
{
	if (WIFSIGNALED(status))
		return error_set(err, -EIO, "'%s' was killed by signal %d (%s)", command, WTERMSIG(status),
				 strsignal(WTERMSIG(status)));
	if (WEXITSTATUS(status))
		return error_set(err, -EIO, "'%s' ended with status %d", command, WEXITSTATUS(status));
	return 0;
}

int hook_run(const char *command, const struct hook_variable *v, unsigned seconds, int out,
	     struct error *err)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };
	uint64_t until = progress_now() + seconds * 1000000000ull;
	pid_t pid = fork(), got;
	bool late = false;
	int status = 0;

	if (pid < 0)
		return error_errno(err, -errno, "fork");
	if (pid == 0)
		become(command, v, out);
	setpgid(pid, pid);		/* whoever of us two is first */
	while ((got = waitpid(pid, &status, late ? 0 : WNOHANG)) != pid) {
		if (got < 0 && errno != EINTR)
			return error_errno(err, -errno, "'%s'", command);
		late = progress_now() >= until;
		if (late)
			kill(-pid, SIGKILL);
		else
			nanosleep(&nap, NULL);
	}
	if (late)
		return error_set(err, -ETIMEDOUT, "'%s' took longer than %u s", command, seconds);
	return judge(command, status, err);
}
