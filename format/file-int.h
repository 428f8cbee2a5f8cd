/* SPDX-License-Identifier: BSD-3-Clause */
/* The file driver's state, shared by file.c, file-lock.c and file-direct.c. */
#ifndef MERINO_FILE_INT_H
#define MERINO_FILE_INT_H

#include <sys/types.h>

#include "format/node.h"
#include "format/ranges.h"

struct file {
	struct io_file *f;
	bool locking;
	unsigned perm_held;		/* lock bytes 100 + bit that are ours */
	unsigned unshared_held;		/* lock bytes 200 + bit */
	struct {			/* file-lock.c's list of all that hold any, under its lock */
		struct file *next;
		dev_t dev;
		ino_t ino;
		unsigned perm, unshared;
	} holder;
	bool flushing;
	uint64_t flushes;		/* how many have ended */
	int flush_error;		/* the first that failed: sticky, -errno */
	struct co_queue flush_waiters;
	struct ranges direct_writes;	/* O_DIRECT: keeps read-modify-writes apart */
};

/* Makes the lock bytes say PERM and SHARED; waits for another's to go, as long as file_lock_patience() says. */
int file_lock_set(struct file *s, const char *filename, unsigned perm, unsigned shared,
		  struct error *err);
void file_lock_drop(struct file *s);
/* Takes the bytes that S holds on F, too: a file that takes the place of S's. */
int file_lock_copy(const struct file *s, struct io_file *f);

bool file_direct_aligned(const struct file *s, const void *buf, uint64_t off, size_t len);
int file_direct_read(struct file *s, void *buf, uint64_t off, size_t len);
int file_direct_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned how);

#endif
