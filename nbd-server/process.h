/* SPDX-License-Identifier: BSD-3-Clause */
/* process: going to the background, and the pid file. */
#ifndef MERINO_PROCESS_H
#define MERINO_PROCESS_H

#include <stdbool.h>

#include "common/error.h"

/* Forks; returns in the child.  The parent waits: its exit status is 0 when the
 * child says process_ready(), 1 when it ends before.  Before any thread. */
int process_daemonize(struct error *err);

bool process_is_daemon(void);

/* Lets go of the parent and of the terminal (a no-op without daemonize). */
void process_ready(void);

/* Opens and locks PATH, empty; -EAGAIN when a living process holds it. */
int pidfile_take(const char *path, struct error *err);
/* Writes the process id.  A no-op without a file. */
int pidfile_write(struct error *err);
/* Removes the file. */
void pidfile_drop(void);

#endif
