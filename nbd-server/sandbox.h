/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox: what the process gives up before it opens the first image.
 *
 *	options ─▶ sandbox_start (main thread) ─▶ threads, which inherit ─▶ images
 *	        ─▶ user_drop ─▶ ready
 *
 * No new privileges; system calls outside a list fail, and the dangerous ones end
 * the process (seccomp); files outside the directories given cannot be opened
 * (Landlock); no core file, which would hold guests' data.  Images and clients are
 * hostile, so all of it is in place before either is looked at.
 */
#ifndef MERINO_SANDBOX_H
#define MERINO_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "nbd-server/user.h"

struct sandbox {
	bool off;			/* --sandbox off */
	bool core;			/* --core */
	const char *user;		/* --user; NULL: stay */
	bool late;			/* no monitor: shut in when all is open */
	const char **dirs;		/* --allow-dir */
	unsigned n_dirs;
};

/* What Landlock lets be done below a path. */
enum sandbox_access {
	ALLOW_READ = 1,			/* open files and directories for reading */
	ALLOW_WRITE = 2,		/* write, create and remove files */
	ALLOW_SOCKET = 4,		/* make and remove unix sockets */
	ALLOW_REMOVE = 8,		/* remove files */
	ALLOW_DIRS = 16,		/* make and remove directories */
};

/* On the main thread, before there are others. */
int sandbox_start(const struct sandbox *s, struct error *err);
/* Coroutine, on the main loop, when all is open. */
int sandbox_finish(const struct sandbox *s, struct error *err);
/* Nothing is filtered: --sandbox off, or under valgrind. */
bool sandbox_is_off(const struct sandbox *s);
/* A path that the process itself needs, beside --allow-dir; before sandbox_start, or
 * sandbox_finish.
 * Paths that are not there are passed over.  PATH is copied. */
int sandbox_allow(const char *path, unsigned access, struct error *err);
/* The same for the directory that PATH is in. */
int sandbox_allow_parent(const char *path, unsigned access, struct error *err);

/* All of them, and what libraries need, into a ruleset; they are forgotten then. */
void sandbox_allow_all(int ruleset);
void sandbox_forget(void);

/* sandbox-seccomp.c.  Before any thread; irrevocable.  SETUID: the process still
 * has to change its user. */
int seccomp_start(bool setuid, struct error *err);

/* sandbox-landlock.c.  A ruleset, or -ENOSYS where the kernel has none. */
int landlock_open(struct error *err);
/* ACCESS to PATH and below; -errno. */
int landlock_allow(int ruleset, const char *path, unsigned access);
/* This thread, and those that it starts.  Irrevocable. */
int landlock_start(int ruleset, struct error *err);

#endif
