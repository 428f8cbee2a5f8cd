/* SPDX-License-Identifier: BSD-3-Clause */
/* fdset: descriptors of files that another process opened for us (QEMU's add-fd).
 *
 * A set stands for one file, opened in several ways; the file name /dev/fdset/N means
 * "the one of set N that was opened as I would".  What comes out of a set is a
 * duplicate: sets and files live apart.  Sets are changed on the main loop; any thread
 * may open.
 */
#ifndef MERINO_FDSET_H
#define MERINO_FDSET_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#define FDSET_FDS_MAX 1024		/* descriptors in all sets together */

/* Puts FD, which becomes the set's, into set ID (made when there is none; -1: a new
 * one).  OPAQUE (NULL: none) is a text for people.  *OUT is the set's id.  On failure
 * FD stays the caller's. */
int fdset_add(int64_t id, int fd, const char *opaque, int64_t *out, struct error *err);

/* Closes FD of set ID (-1: all of them); an empty set is gone.  -ENOENT. */
int fdset_remove(int64_t id, int fd);

/* Closes the sets that nobody has opened anything of. */
void fdset_remove_unused(void);
void fdset_remove_all(void);

/* PATH is /dev/fdset/N. */
bool fdset_is_name(const char *path);
/* A duplicate with the access mode of OFLAGS (O_RDONLY, O_RDWR) and O_DIRECT as they
 * say: its descriptor, -ENOENT, or -EACCES when none was opened so.  Any thread. */
int fdset_open(const char *path, int oflags);

/* Calls FN for each descriptor, set by set, in the order they came. */
void fdset_each(void (*fn)(int64_t id, int fd, const char *opaque, void *arg), void *arg);

#endif
