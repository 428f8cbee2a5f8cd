/* SPDX-License-Identifier: BSD-3-Clause */
/* io-sys: one system call's worth of file I/O, done until it is done.
 *
 * What io-block.c and io-uring.c's worker pool share.  Every function blocks,
 * restarts after EINTR, finishes short transfers and returns -errno.  They are
 * safe to call from several threads on one file: what a file system turned out
 * to refuse is remembered in the io_file with relaxed atomics.
 *
 * Ranges are their caller's alone: a concurrent write into a range that is
 * being zeroed ends up as either.  Nothing here shrinks a file by accident:
 * extending never uses ftruncate, which a concurrent write could overtake.
 */
#ifndef MERINO_IO_SYS_H
#define MERINO_IO_SYS_H

#include "common/io.h"

/* Opens a regular file or a block device (anything else is refused, without
 * hanging on it) with io.h's enum io_open_flags.  IO_TRUNC empties the file
 * before the caller can lock it: who needs the lock first opens without it
 * and truncates later. */
struct io_file *io_sys_open(struct io *io, const char *path, unsigned flags, struct error *err);

/* The same for a descriptor that exists (add-fd).  Takes FD over on success
 * and leaves it alone on failure; NAME is for error texts.  FLAGS are checked
 * against the descriptor's mode; IO_CREATE and IO_TRUNC are ignored. */
struct io_file *io_sys_adopt(struct io *io, int fd, const char *name, unsigned flags,
			     struct error *err);

void io_sys_close(struct io_file *f);

ssize_t io_sys_pread(struct io_file *f, void *buf, size_t len, uint64_t off);
int io_sys_pwrite(struct io_file *f, const void *buf, size_t len, uint64_t off, unsigned flags);
int io_sys_fsync(struct io_file *f);

int io_sys_zero(struct io_file *f, uint64_t off, uint64_t len, unsigned flags);
int io_sys_discard(struct io_file *f, uint64_t off, uint64_t len);

/* Holes are EXTENT_ZERO|EXTENT_HOLE, data has no flags; the depth is 0. */
int io_sys_map(struct io_file *f, uint64_t off, uint64_t len, struct extents *x);

int64_t io_sys_size(struct io_file *f);
/* The page cache is all there is of it, but for what was swapped out. */
bool io_sys_is_tmpfs(const struct io_file *f);
int io_sys_truncate(struct io_file *f, uint64_t size);

#endif
