/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox: what merinod and merino-vmm share of shutting themselves in.
 *
 *	sandbox-paths.c		the paths that the process needs
 *	sandbox-landlock.c	files that can be reached by their names
 *	sandbox-filter.c	system calls
 *
 * Which paths and which calls is for each program to say, and in which order.
 */
#ifndef MERINO_COMMON_SANDBOX_H
#define MERINO_COMMON_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

/* What Landlock lets be done below a path. */
enum sandbox_access {
	ALLOW_READ = 1,			/* open files and directories for reading */
	ALLOW_WRITE = 2,		/* write, create and remove files */
	ALLOW_SOCKET = 4,		/* make and remove unix sockets */
	ALLOW_REMOVE = 8,		/* remove files */
	ALLOW_DIRS = 16,		/* make and remove directories */
};

/* A path that the process itself needs.  Paths that are not there are passed over.  PATH
 * is copied. */
int sandbox_allow(const char *path, unsigned access, struct error *err);
/* The same for the directory that PATH is in. */
int sandbox_allow_parent(const char *path, unsigned access, struct error *err);
/* All of them, and what libraries need, into a ruleset; they are forgotten then. */
void sandbox_allow_all(int ruleset);
void sandbox_forget(void);

/* No core file, nor one for a helper: it would hold guests' data. */
void sandbox_no_core(void);
/* Under valgrind there is no sandbox. */
bool sandbox_is_traced(void);

/* A ruleset, or -ENOSYS where the kernel has none. */
int landlock_open(struct error *err);
/* ACCESS to PATH and below; -errno. */
int landlock_allow(int ruleset, const char *path, unsigned access);
/* This thread, and those that it starts.  Irrevocable. */
int landlock_start(int ruleset, struct error *err);

/* A call that is allowed when (argument ARG & MASK) == VALUE, and so is the second condition;
 * one without a mask always is. */
struct sandbox_call {
	const char *name;
	unsigned arg;
	uint64_t mask, value;
	unsigned arg2;
	uint64_t mask2, value2;
};

#define SANDBOX_WHOLE UINT64_MAX	/* a mask: exactly VALUE */
#define SANDBOX_LISTS 8u

struct sandbox_filter {
	/* Names that are allowed, beside those that every process needs: lists that end in
	 * NULL, and the first list that is NULL ends them. */
	const char *const *allowed[SANDBOX_LISTS];
	const struct sandbox_call *calls[SANDBOX_LISTS];	/* the same; lists end with the name NULL */
	/* Names that end the process; NULL: all that libseccomp knows and that is not allowed.
	 * Anything else gets ENOSYS, which libraries take for an older kernel. */
	const char *const *deadly;
	bool all_threads;		/* those that there are as well */
	bool trap;			/* SIGSYS instead of a silent death */
};

/* Irrevocable.  Needs no_new_privs. */
int sandbox_filter(const struct sandbox_filter *f, struct error *err);

#endif
