/* SPDX-License-Identifier: BSD-3-Clause */
/* unix: the VMM's unix sockets, all of which are its owner's alone. */
#ifndef MERINO_VMM_UNIX_H
#define MERINO_VMM_UNIX_H

#include "common/error.h"

/* A socket that listens at PATH (0600), in place of one that nobody serves any more:
 * the descriptor, non-blocking, or -errno. */
int unix_listen(const char *path, struct error *err);

/* A connected socket, non-blocking, or -errno.  Does not wait. */
int unix_connect(const char *path);

#endif
