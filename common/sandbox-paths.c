/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox-paths: the paths that a process and its libraries need, until Landlock has them. */
#include "common/sandbox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

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

bool sandbox_is_traced(void)
{
	return RUNNING_ON_VALGRIND;
}

/* A limit of one byte: no kernel writes or pipes away a core then. */
void sandbox_no_core(void)
{
	struct rlimit one = { 1, 1 };

	if (setrlimit(RLIMIT_CORE, &one) < 0)
		log_warning("cannot limit core files: %s", strerror(errno));
}
