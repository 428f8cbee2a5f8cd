/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox: in which order the process gives up what it does not need.  See sandbox.h. */
#include "vmm/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/log.h"
#include "common/sandbox.h"
#include "common/user.h"
#include "vmm/cmdline.h"
#include "vmm/net.h"

static struct sandbox_needs needs;

/* -- descriptors --------------------------------------------------------------------- */

/* 0, 1 and 2 are there, whoever started us: no device becomes standard error. */
static int keep_standard(struct error *err)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	} while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd < 0)
		return error_errno(err, -errno, "/dev/null");
	close(fd);
	return 0;
}

/* The lowest descriptor from FD on that --net names. */
static unsigned next_given(const struct cmdline *c, unsigned fd)
{
	unsigned next = ~0u;

	for (unsigned i = 0; i < c->nets.n; i++) {
		struct net_look l = net_look(c->nets.text[i]);

		if (l.fd >= 0 && (unsigned)l.fd >= fd && (unsigned)l.fd < next)
			next = (unsigned)l.fd;
	}
	return next;
}

/* What whoever started us has left open is nobody's here. */
static void close_inherited(const struct cmdline *c)
{
	unsigned from = STDERR_FILENO + 1;

	while (from != ~0u) {
		unsigned given = next_given(c, from);

		if (given > from)
			close_range(from, given - 1, 0);
		from = given == ~0u ? given : given + 1;
	}
}

/* Standard input and output are the serial line's, or nobody's. */
static int leave_stdio(const struct cmdline *c, struct error *err)
{
	int fd, rc = 0;

	if (!strcmp(c->serial, "stdio"))
		return 0;
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (fd < 0 || dup2(fd, STDIN_FILENO) < 0 || dup2(fd, STDOUT_FILENO) < 0)
		rc = error_errno(err, -errno, "/dev/null");
	if (fd >= 0)
		close(fd);
	return rc;
}

static int tidy(const struct cmdline *c, struct error *err)
{
	int rc = keep_standard(err);

	if (!rc)
		rc = leave_stdio(c, err);
	if (!rc)
		close_inherited(c);
	return rc;
}

/* -- the beginning -------------------------------------------------------------------- */

/* A kernel without Landlock: the rest still holds. */
static int confine(struct error *err)
{
	struct error none = ERROR_INIT;
	int ruleset = landlock_open(&none), rc;

	if (ruleset < 0) {
		log_info("%s: all files of this user stay in reach", none.text);
		sandbox_forget();
		return 0;
	}
	sandbox_allow_all(ruleset);
	rc = landlock_start(ruleset, err);
	close(ruleset);
	return rc;
}

static bool is_off(const struct cmdline *c)
{
	return c->sandbox.off || sandbox_is_traced();
}

static int begin(const struct cmdline *c, const struct disks *d, struct error *err)
{
	int rc = tidy(c, err);

	if (!rc)
		rc = sandbox_look(c, d, &needs, err);
	if (!rc && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		rc = error_errno(err, -errno, "PR_SET_NO_NEW_PRIVS");
	return rc ? rc : confine(err);
}

int sandbox_begin(const struct cmdline *c, const struct disks *d, struct error *err)
{
	int rc = c->sandbox.user ? user_find(c->sandbox.user, err) : 0;

	if (!c->sandbox.core)
		sandbox_no_core();
	return rc || is_off(c) ? rc : begin(c, d, err);
}

/* -- the end --------------------------------------------------------------------------- */

int sandbox_finish(const struct cmdline *c, struct error *err)
{
	struct error none = ERROR_INIT;
	int rc = user_drop(err);

	/* An old kernel, or a container's own filter: the rest still holds. */
	if (!rc && !is_off(c) && sandbox_calls(&needs, &none))
		log_warning("%s", none.text);
	return rc;
}
