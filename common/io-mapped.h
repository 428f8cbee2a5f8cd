/* SPDX-License-Identifier: BSD-3-Clause */
/* io-mapped: memory that outlives the process, and nothing more: a small file,
 * mapped shared, that belongs to one image.
 *
 * What is stored there survives a kill -9 without a system call, and is worth
 * nothing after a power loss: nobody syncs it.  So whoever reads it compares the
 * boot id and the image's identity with what he wrote there.
 *
 * The file lies beside the image as ".NAME.crash-log", or in a directory that was
 * given, as "crash-log-DEVICE-INODE".  It is made anew each time (mode 0600; a link
 * in its place is removed, not followed), with all its blocks allocated, so that
 * storing into it cannot fail on a full disk (but where the file system copies on
 * write it may: SIGBUS).  It is removed only while it is the one that was made.
 *
 * It is read as a file, not mapped, and only when it is ours: the owner is this user,
 * root, or the image's owner.
 */
#ifndef MERINO_IO_MAPPED_H
#define MERINO_IO_MAPPED_H

#include "common/io.h"

struct io_identity {
	uint8_t boot[16];		/* of the running kernel */
	uint64_t dev, ino;		/* of the image's file */
	uint64_t size;			/* bytes; 0 of a block device */
	int64_t mtime;			/* of its last write, ns since 1970; 0 of a block device */
	int64_t ctime;			/* the same of its inode: nobody can set it */
	int64_t booted;			/* when the kernel started, ns since 1970, as of now */
};

struct io_mapped {
	struct io *io;
	uint8_t *mem;
	size_t len;
	char *path;
	uint64_t dev, ino;		/* of the file: PATH may be another's by now */
	void *sim;			/* io-sim.c's own */
};

/* All of these may suspend.  0 or -errno. */
static inline int io_identity(struct io_file *f, struct io_identity *id)
{
	return f->io->ops->identity(f, id);
}

/* Makes the file of the image F: LEN bytes, zero.  DIR NULL: beside the image. */
static inline int io_mapped_make(struct io_file *f, const char *dir, size_t len,
				 struct io_mapped **out, struct error *err)
{
	return f->io->ops->mapped_make(f, dir, len, out, err);
}

/* What an earlier process left there, malloc'd: LEN bytes exactly.  -ENOENT: nothing;
 * -EPERM: not ours; -EINVAL: something else. */
static inline int io_mapped_read(struct io_file *f, const char *dir, size_t len, uint8_t **data)
{
	return f->io->ops->mapped_read(f, dir, len, data);
}

/* Unmaps it, and removes the file or leaves it for the next process.  NULL is fine. */
static inline void io_mapped_end(struct io_mapped *m, bool remove)
{
	if (m)
		m->io->ops->mapped_end(m, remove);
}

/* What io-block.c and io-uring.c's workers call (io-mapped.c). */
int io_sys_identity(struct io_file *f, struct io_identity *id);
int io_sys_mapped_make(struct io_file *f, const char *dir, size_t len, struct io_mapped **out,
		       struct error *err);
int io_sys_mapped_read(struct io_file *f, const char *dir, size_t len, uint8_t **data);
void io_sys_mapped_end(struct io_mapped *m, bool remove);

#endif
