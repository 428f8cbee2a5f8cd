/* SPDX-License-Identifier: BSD-3-Clause */
/* file and host_device: the bottom of the graph.
 *
 * Reads behind the end give zeroes (a qcow2 file may end inside a cluster).
 * Flushes that arrive while one runs share the next one.  A failed flush stays
 * failed until the file is opened again: nobody can say what was lost.  Lock
 * bytes are in file-lock.c, unaligned requests on O_DIRECT files in
 * file-direct.c.
 */
#include "format/file-int.h"
#include "format/sidecar.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "common/log.h"
#include "common/options.h"

static int file_take_options(struct node *n, struct file *s, struct json_object *opts,
			     struct error *err)
{
	/* The loop picks the way to the storage by itself: every value means that. */
	static const char *const aios[] = { "threads", "native", "io_uring", NULL };
	static const char *const lockings[] = { "auto", "on", "off", NULL };
	int aio = 0, locking = 0, rc;

	rc = opts_require(opts, "filename", err);
	if (!rc)
		rc = opts_str(opts, "filename", &n->filename, err);
	if (!rc)
		rc = opts_enum(opts, "aio", aios, &aio, err);
	if (!rc)
		rc = opts_enum(opts, "locking", lockings, &locking, err);
	if (!rc)
		rc = sidecar_options(n, opts, err);
	if (!rc && aio == 1 && !n->cache_direct)
		rc = error_set(err, -EINVAL, "aio=native was specified, but it requires cache.direct=on, which was not specified.");
	s->locking = locking != 2 && !n->force_share;
	return rc;
}

/* The descriptor, read only where that is allowed and writing is not possible. */
static struct io_file *file_open_either(struct node *n, struct error *err)
{
	unsigned flags = n->cache_direct ? IO_DIRECT : 0;
	struct io_file *f = io_open(n->io, n->filename, flags | (n->read_only ? 0 : IO_RDWR), err);

	if (f || n->read_only || !n->auto_read_only ||
	    (err->code != -EACCES && err->code != -EROFS && err->code != -EPERM))
		return f;
	*err = ERROR_INIT;
	f = io_open(n->io, n->filename, flags, err);
	if (f)
		n->read_only = true;
	return f;
}

static int file_open_common(struct node *n, struct json_object *opts, bool device,
			    struct error *err)
{
	struct error local = ERROR_INIT;
	struct file *s = calloc(1, sizeof(*s));
	int64_t size;
	int rc;

	if (!s)
		return error_set(err, -ENOMEM, "Out of memory");
	if (!err)
		err = &local;
	n->state = s;
	n->protocol = true;
	rc = file_take_options(n, s, opts, err);
	if (rc)
		return rc;
	s->f = file_open_either(n, err);
	if (!s->f)
		return err->code ? err->code : -EIO;
	if (s->f->is_block_device != device)
		return error_set(err, -EINVAL, device
				 ? "'%s' driver requires '%s' to be either a character or block device"
				 : "'%s' driver requires '%s' to be a regular file",
				 n->driver->name, n->filename);
	size = io_size(s->f);
	if (size < 0)
		return error_errno(err, (int)size, "Could not get size of '%s'", n->filename);
	n->size = (uint64_t)size;
	return sidecar_open(n, err);
}

static int file_open(struct node *n, struct json_object *opts, struct error *err)
{
	return file_open_common(n, opts, false, err);
}

static int device_open(struct node *n, struct json_object *opts, struct error *err)
{
	return file_open_common(n, opts, true, err);
}

/* Whether both are one file: its name may stand for another one by now. */
static bool same_file(const struct io_file *a, const struct io_file *b)
{
	struct stat x, y;

	return a->fd < 0 || (!fstat(a->fd, &x) && !fstat(b->fd, &y) && x.st_dev == y.st_dev &&
			     x.st_ino == y.st_ino && x.st_rdev == y.st_rdev);
}

static int file_reopen(struct node *n, struct error *err)
{
	struct file *s = n->state;
	struct io_file *old = s->f, *f = file_open_either(n, err);
	int rc = 0;

	if (!f)
		return err && err->code ? err->code : -EIO;
	if (!same_file(old, f))
		rc = error_set(err, -ESTALE, "Could not reopen '%s': it is another file now", n->filename);
	else if (s->locking && file_lock_copy(s, f))
		rc = error_set(err, -EAGAIN, "Could not reopen '%s': it cannot be locked", n->filename);
	if (rc) {
		io_file_unref(f);
		return rc;
	}
	file_lock_drop(s);
	s->f = f;
	if (io_size(f) >= 0)
		n->size = (uint64_t)io_size(f);
	s->locking = s->locking && !n->force_share;
	s->flush_error = 0;		/* what was lost is lost; from here on it counts again */
	io_file_unref(old);
	return node_use_refresh(n, err);
}

/* The ring may hold the descriptor for a moment after this: locks go first. */
static void file_close(struct node *n)
{
	struct file *s = n->state;

	sidecar_close(n);
	if (s->f)
		file_lock_drop(s);
	io_file_unref(s->f);
	free(s);
	n->state = NULL;
}

static int file_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	struct file *s = n->state;
	ssize_t got;

	if (__builtin_expect(s->f->direct, 0) && !file_direct_aligned(s, buf, off, len))
		return file_direct_read(s, buf, off, len);
	got = io_pread(s->f, buf, len, off);
	if (got < 0)
		return (int)got;
	if ((size_t)got < len)
		memset((char *)buf + got, 0, len - (size_t)got);
	return 0;
}

/* From here on nobody can say what is on storage. */
static void flush_failed(struct node *n, int rc)
{
	struct file *s = n->state;

	if (s->flush_error)
		return;
	s->flush_error = rc;
	log_error("flush failed file='%s' error='%s': all further flushes fail until it is reopened",
		  n->filename, strerror(-rc));
}

static int file_write_how(struct node *n, const void *buf, uint64_t off, size_t len, unsigned how)
{
	struct file *s = n->state;

	if (__builtin_expect(s->f->direct, 0))
		return file_direct_write(n, buf, off, len, how);
	return io_pwrite(s->f, buf, len, off, how);
}

/* A durable write failed with RC.  The kernel tells of a writeback that failed once, to
 * whoever syncs next: that was this write, perhaps of data that others wrote, and the
 * next flush would succeed.  Where the same write goes through without the sync, it was
 * the sync that failed (NFS says ENOSPC like that); where it does not, nothing more than
 * this write is lost, and it goes on when there is room again. */
static void durable_write_failed(struct node *n, const void *buf, uint64_t off, size_t len, int rc)
{
	if (rc == -EIO || !file_write_how(n, buf, off, len, 0))
		flush_failed(n, rc);
}

static int file_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	int rc = file_write_how(n, buf, off, len, flags & NODE_FUA ? IO_DSYNC : 0);

	if (!rc && off + len > n->size)
		n->size = off + len;
	if (rc && (flags & NODE_FUA))
		durable_write_failed(n, buf, off, len, rc);
	return rc;
}

static int file_flush(struct node *n)
{
	struct file *s = n->state;
	uint64_t target = s->flushes + 1 + s->flushing;

	if (n->read_only)
		return 0;
	while (s->flushes < target && !s->flush_error) {
		int rc;

		if (s->flushing) {
			co_queue_wait(&s->flush_waiters);
			continue;
		}
		s->flushing = true;
		rc = io_fsync(s->f);
		s->flushing = false;
		s->flushes++;
		if (rc)
			flush_failed(n, rc);
		co_queue_wake_all(&s->flush_waiters);
	}
	return s->flush_error;
}

static int file_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct file *s = n->state;
	unsigned how = (flags & NODE_MAY_UNMAP ? IO_ZERO_UNMAP : 0) |
		       (flags & NODE_NO_FALLBACK ? IO_ZERO_FAST : 0);
	struct range r;
	int rc;

	if (s->f->direct && !(is_aligned(off, s->f->align) && is_aligned(len, s->f->align)))
		return -ENOTSUP;	/* the waist writes zeroes from memory, read-modify-write */
	range_enter(&s->direct_writes, &r, off, len, RANGE_WRITE);
	rc = io_zero(s->f, off, len, how);
	range_leave(&s->direct_writes, &r);
	if (!rc && off + len > n->size)
		n->size = off + len;
	if (!rc && (flags & NODE_FUA))
		rc = file_flush(n);
	return rc;
}

static int file_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct file *s = n->state;

	return io_discard(s->f, off, len);
}

/* What io_map() appended says nothing of layers: this is layer 1. */
static int file_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	struct file *s = n->state;
	uint32_t first = x->n;
	int rc = io_map(s->f, off, len, x);

	for (uint32_t i = first; i < x->n; i++)
		x->v[i].depth = 1;
	if (first && first < x->n && x->v[first - 1].depth == 1 &&
	    x->v[first - 1].flags == x->v[first].flags) {
		x->v[first - 1].len += x->v[first].len;
		memmove(&x->v[first], &x->v[first + 1], (x->n - first - 1) * sizeof(x->v[0]));
		x->n--;
	}
	return rc;
}

static int file_truncate(struct node *n, uint64_t size, struct error *err)
{
	struct file *s = n->state;
	int rc;

	if (s->f->is_block_device)
		return error_set(err, -ENOTSUP, "Cannot resize device files");
	rc = io_truncate(s->f, size);
	if (rc)
		return error_errno(err, rc, "Failed to resize '%s'", n->filename);
	n->size = size;
	return 0;
}

static int file_set_perm(struct node *n, unsigned perm, unsigned shared, struct error *err)
{
	struct file *s = n->state;

	return s->locking ? file_lock_set(s, n->filename, perm, shared, err) : 0;
}

static bool file_host_range(struct node *n, uint64_t off, uint64_t len, struct io_file **f,
			    uint64_t *host_off)
{
	struct file *s = n->state;

	if (s->f->direct || s->f->fd < 0 || !checked_range(off, len, n->size))
		return false;
	*f = s->f;
	*host_off = off;
	return true;
}

bool node_on_block_device(const struct node *n)
{
	return n->driver == &host_device_driver;
}

struct io_file *node_storage(const struct node *n)
{
	const struct file *s = n->state;

	return n->driver == &file_driver || n->driver == &host_device_driver ? s->f : NULL;
}

static const char *const file_options[] = { "filename", "aio", "locking", "sidecar-dir", "trust-sidecar", NULL };

static void file_moved(struct node *n)
{
	struct file *s = n->state;

	s->f->io = n->io;
}

/* Both drivers do all but the opening alike. */
#define FILE_CALLS \
	.close = file_close, .read = file_read, .write = file_write, .zero = file_zero, \
	.discard = file_discard, .flush = file_flush, .map = file_map, .truncate = file_truncate, \
	.set_perm = file_set_perm, .reopen = file_reopen, .host_range = file_host_range, .moved = file_moved

const struct node_driver file_driver = {
	.name = "file",
	.options = file_options,
	.open = file_open,
	FILE_CALLS,
};

const struct node_driver host_device_driver = {
	.name = "host_device",
	.options = file_options,
	.open = device_open,
	FILE_CALLS,
};
