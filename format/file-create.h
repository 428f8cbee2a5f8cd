/* SPDX-License-Identifier: BSD-3-Clause */
/* file-create: a new file for an image, as blockdev-create makes it. */
#ifndef MERINO_FILE_CREATE_H
#define MERINO_FILE_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "format/node.h"

enum file_preallocation { FILE_PREALLOC_OFF, FILE_PREALLOC_FALLOC, FILE_PREALLOC_FULL };

struct file_create {
	const char *filename;
	uint64_t size;			/* bytes */
	enum file_preallocation preallocation;
	bool nocow;			/* asks btrfs to write in place; others have no need */
	/* Asked now and then while zeroes are written: not 0 ends it with that. */
	int (*go_on)(void *arg);
	void *arg;
};

/* Makes the file, or empties the one that is there when nobody else uses it (lock
 * bytes), and gives it its size.  Coroutine on WHERE's loop, or the blocking table. */
int file_create(const struct node_place *where, const struct file_create *o, struct error *err);

#endif
