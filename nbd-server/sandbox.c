/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox: in which order the process gives up what it does not need. */
#include "nbd-server/sandbox.h"

#include <errno.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/log.h"

bool sandbox_is_off(const struct sandbox *s)
{
	return s->off || sandbox_is_traced();
}

static int confine(const struct sandbox *s, struct error *err)
{
	int ruleset = landlock_open(err), rc = 0;

	if (ruleset < 0) {
		error_hint(err, "--allow-dir needs Linux 5.13 with Landlock; --sandbox off goes without");
		return ruleset;
	}
	for (unsigned i = 0; i < s->n_dirs && !rc; i++) {
		rc = landlock_allow(ruleset, s->dirs[i], ALLOW_READ | ALLOW_WRITE);
		if (rc)
			error_errno(err, rc, "--allow-dir %s", s->dirs[i]);
	}
	sandbox_allow_all(ruleset);
	if (!rc)
		rc = landlock_start(ruleset, err);
	close(ruleset);
	return rc;
}

static int filter(const struct sandbox *s, struct error *err)
{
	int rc = seccomp_start(s->user, err);

	/* An old kernel, or a container's own filter: the rest still holds. */
	if (rc) {
		log_warning("%s", err->text);
		*err = (struct error)ERROR_INIT;
	}
	return 0;
}

int sandbox_start(const struct sandbox *s, struct error *err)
{
	int rc = 0;

	if (!s->core)
		sandbox_no_core();
	if (sandbox_is_off(s)) {
		sandbox_forget();
		return 0;
	}
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return error_errno(err, -errno, "PR_SET_NO_NEW_PRIVS");
	if (s->n_dirs)
		rc = confine(s, err);
	return rc ? rc : filter(s, err);
}
