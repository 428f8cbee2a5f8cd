/* SPDX-License-Identifier: BSD-3-Clause */
/* io-beside: files that we keep beside an image, and memory mapped from them.
 *
 * The image "NAME" has ".NAME.SUFFIX", or "SUFFIX-DEVICE-INODE" in a directory that was
 * given.  Such a file is made under another name, with all its blocks allocated, so that
 * storing into a mapping of it cannot fail on a full disk (but where the file system
 * copies on write it may: bus-guard.h), and takes its place whole, by a rename that is durable
 * when io_beside_keep() returns: at any instant there is the old one or the new one.
 *
 * What is stored into a mapping outlives the process at once, and is durable after the
 * next io_fsync() of the file that began later.  A power loss before that leaves any mixture
 * of what the sectors held in between.
 *
 * The directory may be a stranger's: the last component is never followed when it is a
 * link; a file is read only when its owner is this user, root or the image's owner, and it is
 * read as a file, not mapped.
 */
#ifndef MERINO_IO_BESIDE_H
#define MERINO_IO_BESIDE_H

#include "common/io-mapped.h"

struct io_beside {
	struct io_file *f;		/* NULL: there is none */
	char *path;			/* where it belongs */
	char *made;			/* where it was made, until it is kept; NULL: it is in its place */
	uint64_t dev, ino;		/* of the file: PATH may be another's by now */
};

enum io_beside_call { BESIDE_OPEN, BESIDE_MAKE, BESIDE_KEEP, BESIDE_END, BESIDE_GROW, BESIDE_MAP,
		      BESIDE_UNMAP };

/* The arguments of io_ops.beside. */
struct io_beside_job {
	enum io_beside_call call;
	struct io *io;
	struct io_file *f;		/* the image; the file itself (GROW, MAP) */
	const char *dir, *suffix;
	unsigned flags;			/* enum io_open_flags: IO_DIRECT is a wish */
	bool remove;
	uint64_t off, len;
	struct io_beside *b;
	void *mem;
	int rc;
};

static inline int io_beside_run(struct io_beside_job *j)
{
	j->io->ops->beside(j);
	return j->rc;
}

/* All of these may suspend.  0 or -errno; what could not be opened or made is zeroes. */

/* Opens the one that is there, for reading.  -ENOENT: none; -EPERM: not ours; -ENOTSUP: the
 * image has no name. */
static inline int io_beside_open(struct io_file *image, const char *dir, const char *suffix,
				 struct io_beside *b)
{
	*b = (struct io_beside){ 0 };
	return io_beside_run(&(struct io_beside_job){ .call = BESIDE_OPEN, .io = image->io,
			     .f = image, .dir = dir, .suffix = suffix, .b = b });
}

/* Makes a new one of LEN bytes, zeroes, beside the one that is there. */
static inline int io_beside_make(struct io_file *image, const char *dir, const char *suffix,
				 unsigned flags, uint64_t len, struct io_beside *b)
{
	*b = (struct io_beside){ 0 };
	return io_beside_run(&(struct io_beside_job){ .call = BESIDE_MAKE, .io = image->io,
			     .f = image, .dir = dir, .suffix = suffix, .flags = flags, .len = len,
			     .b = b });
}

/* It takes its place.  The caller has synced it. */
static inline int io_beside_keep(struct io_beside *b)
{
	return io_beside_run(&(struct io_beside_job){ .call = BESIDE_KEEP, .io = b->f->io, .b = b });
}

/* Closes it; one that was not kept goes, and with REMOVE also one that was, unless another
 * took its place.  Mappings stay.  One of zeroes is fine. */
static inline void io_beside_end(struct io_beside *b, bool remove)
{
	if (b->f)
		io_beside_run(&(struct io_beside_job){ .call = BESIDE_END, .io = b->f->io, .b = b,
			      .remove = remove });
	*b = (struct io_beside){ 0 };
}

/* The file has blocks for [off, off+len), which is behind its end. */
static inline int io_beside_grow(struct io_beside *b, uint64_t off, uint64_t len)
{
	return io_beside_run(&(struct io_beside_job){ .call = BESIDE_GROW, .io = b->f->io,
			     .f = b->f, .off = off, .len = len });
}

/* Maps [off, off+len), multiples of 4096; NULL: no memory, or no such thing. */
static inline void *io_beside_map(struct io_beside *b, uint64_t off, uint64_t len)
{
	struct io_beside_job j = { .call = BESIDE_MAP, .io = b->f->io, .f = b->f, .off = off,
				   .len = len };

	return io_beside_run(&j) ? NULL : j.mem;
}

/* Does not suspend; the file may be closed. */
static inline void io_beside_unmap(struct io *io, void *mem, uint64_t len)
{
	io_beside_run(&(struct io_beside_job){ .call = BESIDE_UNMAP, .io = io, .mem = mem, .len = len });
}

/* What io-block.c and io-uring.c's workers call (io-beside.c). */
void io_sys_beside(struct io_beside_job *j);
/* io-mapped.c: ".NAME.SUFFIX" beside the image, or "SUFFIX-DEVICE-INODE" in DIR. */
int io_sys_path_beside(struct io_file *f, const char *dir, const char *suffix, char *path, size_t max);

#endif
