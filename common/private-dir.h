/* SPDX-License-Identifier: BSD-3-Clause */
/* private-dir: a directory for sockets and other things of a run, which only this user can
 * enter, and which is found and removed by the next run when this one is killed. */
#ifndef MERINO_PRIVATE_DIR_H
#define MERINO_PRIVATE_DIR_H

#include "common/error.h"

/* A new directory NAME-XXXXXX in PARENT, or in FALLBACK where that is NULL, too long for a
 * socket in it, or cannot be written to; *OUT is malloc'd.  Those that killed runs have
 * left there are removed. */
int private_dir_make(const char *parent, const char *fallback, const char *name, char **out, struct error *err);

#endif
