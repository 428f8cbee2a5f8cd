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
#include "common/sandbox.h"
#include "common/user.h"

struct sandbox {
	bool off;			/* --sandbox off */
	bool core;			/* --core */
	const char *user;		/* --user; NULL: stay */
	bool late;			/* no monitor: shut in when all is open */
	const char **dirs;		/* --allow-dir */
	unsigned n_dirs;
};

/* On the main thread, before there are others. */
int sandbox_start(const struct sandbox *s, struct error *err);
/* Coroutine, on the main loop, when all is open. */
int sandbox_finish(const struct sandbox *s, struct error *err);
/* Nothing is filtered: --sandbox off, or under valgrind. */
bool sandbox_is_off(const struct sandbox *s);
/* The paths of common/sandbox.h are for before sandbox_start, or sandbox_finish. */

/* sandbox-seccomp.c.  Before any thread; irrevocable.  SETUID: the process still
 * has to change its user. */
int seccomp_start(bool setuid, struct error *err);

#endif
