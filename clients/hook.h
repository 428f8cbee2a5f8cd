/* SPDX-License-Identifier: BSD-3-Clause */
/* hook: a command of the user's, in a shell, with a time limit. */
#ifndef MERINO_HOOK_H
#define MERINO_HOOK_H

#include "common/error.h"

struct hook_variable {
	const char *name, *value;	/* NULL: ends the list */
};

/* Runs COMMAND by sh -c.  It gets the environment and V besides, reads nothing, writes to OUT (a
 * descriptor), has no other of our descriptors, and no signal is held back from it.  0: it
 * ended with status 0.  -ETIMEDOUT: it and what it started in its process group were killed. */
int hook_run(const char *command, const struct hook_variable *v, unsigned seconds, int out,
	     struct error *err);

#endif
