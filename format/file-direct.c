/* SPDX-License-Identifier: BSD-3-Clause */
/* Requests on O_DIRECT files that the file's alignment does not allow.
 *
 * They go through aligned memory; a write that covers blocks only in part reads
 * them first.  No write may come between that read and its write, or bytes that
 * nobody asked to change would go back in time: such a write is alone on its
 * blocks, aligned ones only keep away from it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "format/file-int.h"

bool file_direct_aligned(const struct file *s, const void *buf, uint64_t off, size_t len)
{
	return !((off | len | (uintptr_t)buf) & (s->f->align - 1));
}

/* The blocks that hold [off, off+len). */
struct window {
	uint64_t off;
	size_t len;
	char *mem;			/* aligned; owned */
};

static int window_make(struct window *w, const struct file *s, uint64_t off, size_t len)
{
	w->off = align_down(off, s->f->align);
	w->len = (size_t)(align_up(off + len, s->f->align) - w->off);
	return posix_memalign((void **)&w->mem, 4096, w->len) ? -ENOMEM : 0;
}

static int window_read(struct window *w, struct file *s)
{
	ssize_t got = io_pread(s->f, w->mem, w->len, w->off);

	if (got < 0)
		return (int)got;
	memset(w->mem + got, 0, w->len - (size_t)got);
	return 0;
}

int file_direct_read(struct file *s, void *buf, uint64_t off, size_t len)
{
	struct window w;
	int rc = window_make(&w, s, off, len);

	if (rc)
		return rc;
	rc = window_read(&w, s);
	if (!rc)
		memcpy(buf, w.mem + (off - w.off), len);
	free(w.mem);
	return rc;
}

/* Writes whole blocks.  The end of a raw image may lie inside the last of them:
 * the file is cut back to it.  Not where writes may pass the end (under a format):
 * cutting would race with them, and the format knows its size by itself. */
static int window_write(struct window *w, struct node *n, unsigned how)
{
	struct file *s = n->state;
	int rc = io_pwrite(s->f, w->mem, w->len, w->off, how);

	if (rc || n->may_grow || s->f->is_block_device || w->off + w->len <= n->size)
		return rc;
	return io_truncate(s->f, n->size);
}

static int direct_write_part(struct node *n, const void *buf, uint64_t off, size_t len,
			     unsigned how)
{
	struct file *s = n->state;
	bool whole = is_aligned(off | len, s->f->align);	/* only the memory is not aligned */
	struct range r;
	struct window w;
	int rc = window_make(&w, s, off, len);

	if (rc)
		return rc;
	range_enter(&s->direct_writes, &r, w.off, w.len, whole ? RANGE_WRITE : RANGE_EXCL);
	if (!whole)
		rc = window_read(&w, s);
	if (!rc) {
		memcpy(w.mem + (off - w.off), buf, len);
		rc = window_write(&w, n, how);
	}
	range_leave(&s->direct_writes, &r);
	free(w.mem);
	return rc;
}

int file_direct_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned how)
{
	struct file *s = n->state;
	struct range r;
	int rc;

	if (!file_direct_aligned(s, buf, off, len))
		return direct_write_part(n, buf, off, len, how);
	range_enter(&s->direct_writes, &r, off, len, RANGE_WRITE);
	rc = io_pwrite(s->f, buf, len, off, how);
	range_leave(&s->direct_writes, &r);
	return rc;
}
