/* SPDX-License-Identifier: BSD-3-Clause */
/* file-create: a new file for an image: see file-create.h.
 *
 * The file is made first and opened then as a node like any other, so that the lock
 * bytes of whoever uses an existing one are seen before anything of it is lost.
 */
#include "format/file-create.h"

#include <errno.h>
#include <json-c/json.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/checked.h"

#define PIECE (1u << 20)		/* bytes of zeroes written at a time */

/* Makes it unless it is there already. */
static int make(const struct node_place *where, const struct file_create *o, struct error *err)
{
	struct error mine = ERROR_INIT;
	struct io_file *f = io_open(where->io, o->filename, IO_RDWR | IO_CREATE, &mine);

	io_file_unref(f);
	if (f || mine.code == -EEXIST)
		return 0;
	return error_errno(err, mine.code, "Could not create '%s'", o->filename);
}

static int open_node(const struct node_place *where, const struct file_create *o,
		     struct node **n, struct error *err)
{
	struct json_object *opts = json_object_new_object();
	int rc;

	json_object_object_add(opts, "driver", json_object_new_string("file"));
	json_object_object_add(opts, "filename", json_object_new_string(o->filename));
	rc = node_open(where, opts, n, err);
	json_object_put(opts);
	return rc;
}

/* Where it fails there is no copy on write to switch off. */
static void set_nocow(struct node *n)
{
	struct io_file *f;
	uint64_t off;
	int flags;

	if (!node_host_range(n, 0, 0, &f, &off) || ioctl(f->fd, FS_IOC_GETFLAGS, &flags) < 0)
		return;
	flags |= FS_NOCOW_FL;
	ioctl(f->fd, FS_IOC_SETFLAGS, &flags);
}

static int write_zeroes(struct node *n, const struct file_create *o, struct error *err)
{
	void *zeroes = calloc(1, PIECE);
	int rc = zeroes ? 0 : -ENOMEM;

	for (uint64_t off = 0; off < o->size && !rc; off += PIECE) {
		rc = o->go_on ? o->go_on(o->arg) : 0;
		if (!rc)
			rc = node_write(n, zeroes, off, (size_t)min_u64(PIECE, o->size - off), 0);
	}
	free(zeroes);
	if (!rc)
		rc = node_flush(n);
	return rc ? error_errno(err, rc, "Could not write zeros for preallocation") : 0;
}

static int fill(struct node *n, const struct file_create *o, struct error *err)
{
	int rc = node_truncate(n, 0, err);

	if (!rc && o->nocow)
		set_nocow(n);
	if (!rc)
		rc = node_truncate(n, o->size, err);
	if (rc || !o->size)
		return rc;
	if (o->preallocation == FILE_PREALLOC_FALLOC) {
		rc = node_zero(n, 0, o->size, NODE_NO_FALLBACK);
		return rc ? error_errno(err, rc, "Could not preallocate data for the new file") : 0;
	}
	return o->preallocation == FILE_PREALLOC_FULL ? write_zeroes(n, o, err) : 0;
}

int file_create(const struct node_place *where, const struct file_create *o, struct error *err)
{
	struct node_use use = { 0 };
	struct node *n = NULL;
	int rc = make(where, o, err);

	if (!rc)
		rc = open_node(where, o, &n, err);
	if (!rc)
		rc = node_use_add(&use, n, PERM_WRITE | PERM_RESIZE, 0, err, "blockdev-create");
	if (!rc)
		rc = fill(n, o, err);
	node_use_drop(&use);
	node_unref(n);
	return rc;
}
