/* SPDX-License-Identifier: BSD-3-Clause */
/* quick: `merinod disk.qcow2`, for people: opens the images named, exports them
 * on a private unix socket and prints URIs to paste.
 */
#ifndef MERINO_QUICK_H
#define MERINO_QUICK_H

#include <stdbool.h>

#include "common/error.h"

struct quick {
	char **files;			/* images; pointers into argv */
	unsigned n_files;
	const char *format;		/* NULL: see quick.c */
	const char *socket;		/* NULL: a private one */
	const char **bitmaps;		/* to offer, on every disk */
	unsigned n_bitmaps;
	bool read_only;
};

/* Before the sandbox: makes the directory of the private socket; *DIR is ours. */
int quick_private_dir(const char **dir, struct error *err);

/* Coroutine on the main loop. */
int quick_run(const struct quick *q, struct error *err);

/* Removes the private socket's directory. */
void quick_end(void);

#endif
