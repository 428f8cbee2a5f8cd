/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox: in which order the process gives up what it does not need. */
#include "nbd-server/sandbox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define RUNNING_ON_VALGRIND 0
#endif

#include "common/log.h"

/* What the C library and gnutls read while they run: names of hosts and services,
 * policies, plug-ins, the number of processors; what drivers ask about devices, and
 * which boot of the kernel this is. */
static const char *const system_paths[] = {
	"/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/gai.conf",
	"/etc/services", "/etc/protocols", "/etc/localtime", "/etc/ld.so.cache", "/etc/gnutls",
	"/etc/crypto-policies", "/run/systemd/resolve", "/lib", "/lib64", "/usr/lib", "/usr/lib64",
	"/usr/share/zoneinfo", "/sys/dev", "/sys/devices", "/proc/stat", "/proc/self",
	"/proc/sys/kernel/random/boot_id", "/proc/sys/vm/overcommit_memory",
	"/dev/urandom", "/dev/random", "/dev/zero", NULL
};

struct allowed {
	struct allowed *next;
	char *path;
	unsigned access;
};

static struct allowed *allowed_paths;

int sandbox_allow(const char *path, unsigned access, struct error *err)
{
	struct allowed *a = calloc(1, sizeof(*a));

	if (a)
		a->path = strdup(path);
	if (!a || !a->path) {
		free(a);
		return error_set(err, -ENOMEM, "Out of memory");
	}
	a->access = access;
	a->next = allowed_paths;
	allowed_paths = a;
	return 0;
}

int sandbox_allow_parent(const char *path, unsigned access, struct error *err)
{
	const char *slash = strrchr(path, '/');
	char *dir;
	int rc;

	if (!slash)
		return sandbox_allow(".", access, err);
	dir = strndup(path, slash == path ? 1 : (size_t)(slash - path));
	rc = dir ? sandbox_allow(dir, access, err) : error_set(err, -ENOMEM, "Out of memory");
	free(dir);
	return rc;
}

void sandbox_forget(void)
{
	while (allowed_paths) {
		struct allowed *a = allowed_paths;

		allowed_paths = a->next;
		free(a->path);
		free(a);
	}
}

void sandbox_allow_all(int ruleset)
{
	for (const char *const *p = system_paths; *p; p++)
		landlock_allow(ruleset, *p, ALLOW_READ);
	for (struct allowed *a = allowed_paths; a; a = a->next)
		landlock_allow(ruleset, a->path, a->access);
	landlock_allow(ruleset, "/dev/null", ALLOW_READ | ALLOW_WRITE);
	sandbox_forget();
}

bool sandbox_is_off(const struct sandbox *s)
{
	return s->off || RUNNING_ON_VALGRIND;
}

/* A limit of one byte: no kernel writes or pipes away a core then. */
static void no_core(void)
{
	struct rlimit one = { 1, 1 };

	if (setrlimit(RLIMIT_CORE, &one) < 0)
		log_warning("cannot limit core files: %s", strerror(errno));
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
		no_core();
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
