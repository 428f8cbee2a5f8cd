/* SPDX-License-Identifier: BSD-3-Clause */
/* stdio: standard input and output as one socket, for a monitor. */
#ifndef MERINO_STDIO_H
#define MERINO_STDIO_H

#include "common/error.h"

/* A connected socket whose other end is copied from stdin and to stdout by two
 * threads; -errno. May be opened once. */
int stdio_open(struct error *err);

/* After that socket is closed: waits until stdout has taken what was sent, for a
 * second at most.  A no-op when it was never opened. */
void stdio_close(void);

#endif
