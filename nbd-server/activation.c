// SPDX-License-Identifier: BSD-3-Clause
/* activation: see activation.h. */
#include "nbd-server/activation.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_FD 3			/* SD_LISTEN_FDS_START */
#define ACTIVATION_MAX 1024

static unsigned n_fds;
static char *names;			/* "a:b:c"; NULL: none were given */

unsigned activation_count(void)
{
	return n_fds;
}

bool activation_has(int fd)
{
	return fd >= FIRST_FD && (unsigned)(fd - FIRST_FD) < n_fds;
}

/* A number of decimal digits up to MAX; -1 for anything else. */
static long number(const char *text, long max)
{
	char *end;
	long n;

	if (!text || *text < '0' || *text > '9')
		return -1;
	errno = 0;
	n = strtol(text, &end, 10);
	return errno || *end || n > max ? -1 : n;
}

static int take(const char *fds, struct error *err)
{
	long n = number(fds, ACTIVATION_MAX);

	if (n < 0)
		return error_set(err, -EINVAL, "LISTEN_FDS=%s is not a number from 0 to %d", fds,
				 ACTIVATION_MAX);
	for (int fd = FIRST_FD; fd < FIRST_FD + n; fd++) {
		if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
			return error_errno(err, -errno, "LISTEN_FDS=%s: descriptor %d", fds, fd);
	}
	n_fds = (unsigned)n;
	return 0;
}

int activation_take(struct error *err)
{
	const char *fds = getenv("LISTEN_FDS"), *all = getenv("LISTEN_FDNAMES");
	int rc = 0;

	/* Meant for another process, which forgot to take them away: not ours. */
	if (fds && number(getenv("LISTEN_PID"), 1l << 30) == (long)getpid()) {
		rc = take(fds, err);
		names = all ? strdup(all) : NULL;
	}
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return rc;
}

unsigned activation_find(const char *name, int *fds, unsigned max)
{
	const char *p = names;
	size_t len = strlen(name);
	unsigned found = 0;

	for (unsigned i = 0; p && i < n_fds; i++) {
		size_t n = strcspn(p, ":");

		if (n == len && !memcmp(p, name, n)) {
			if (found < max)
				fds[found] = FIRST_FD + (int)i;
			found++;
		}
		p = p[n] ? p + n + 1 : NULL;
	}
	return found;
}
