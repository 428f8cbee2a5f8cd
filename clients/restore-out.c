// SPDX-License-Identifier: BSD-3-Clause
/* restore-out: files and devices through pull-sink, exports through restore-nbd. */
#include "clients/restore-out.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "clients/pull-sink.h"
#include "common/checked.h"
#include "common/uri.h"

struct restore_out {
	struct pull_options o;		/* what the sink is told; it keeps a pointer */
	struct sink *sink;		/* a file or a device; else NULL */
	struct nbd_out *nbd;
	bool in_place;			/* the target has no temporary name */
	bool begun, finished;
	uint64_t size;
	uint64_t head_len;		/* bytes at the start that are written last */
	char head[RESTORE_HEAD];
};

static bool is_device(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISBLK(st.st_mode);
}

static struct pull_options sink_options(const char *target, enum pull_format format, bool force)
{
	bool device = is_device(target);

	return (struct pull_options){
		.out = target,
		.format = device ? PULL_RAW : format,
		.format_given = true,
		.onto = device,
		.force = force,
	};
}

int restore_out_check(const char *target, enum pull_format format, bool force, struct error *err)
{
	struct pull_options o = sink_options(target, format, force);
	struct stat st;

	if (uri_is_nbd(target))
		return format == PULL_RAW ? 0 : error_set(err, -EINVAL, "%s: an export takes the disk's bytes, no qcow2 image",
							  target);
	if (o.onto && format != PULL_RAW)
		return error_set(err, -EINVAL, "%s is a device: it takes the disk's bytes, no qcow2 image", target);
	if (!o.onto && lstat(target, &st) == 0) {
		if (!S_ISREG(st.st_mode))
			return error_set(err, -EEXIST, "%s exists, and is neither a file nor a block device", target);
		if (!force)
			return error_set(err, -EEXIST, "%s exists: --force replaces it", target);
	}
	return sink_check(&o, err);
}

/* A place without a temporary name is no disk until it is complete. */
static int begin_in_place(struct restore_out *o, struct error *err)
{
	uint64_t n = min_u64(RESTORE_HEAD, o->size);

	o->begun = true;
	o->head_len = n;
	return o->nbd ? nbd_out_zero(o->nbd, 0, n, err) : sink_zero(o->sink, 0, n, err);
}

int restore_out_open(struct restore_out **out, const char *target, enum pull_format format, bool force,
		     uint64_t size, struct error *err)
{
	struct restore_out *o = calloc(1, sizeof(*o));
	int rc = 0;

	*out = o;
	if (!o)
		return error_errno(err, -ENOMEM, "%s", target);
	o->size = size;
	o->o = sink_options(target, format, force);
	o->in_place = uri_is_nbd(target) || o->o.onto;
	if (uri_is_nbd(target)) {
		rc = nbd_out_open(&o->nbd, target, size, err);
	} else {
		o->sink = sink_open(&o->o, size, err);
		rc = o->sink ? 0 : err->code ? err->code : -EIO;
	}
	if (rc == 0 && o->in_place)
		rc = begin_in_place(o, err);
	return rc;
}

static int write_out(struct restore_out *o, const void *buf, uint64_t off, size_t len, struct error *err)
{
	int64_t rc = o->nbd ? nbd_out_write(o->nbd, buf, off, len, err) : sink_write(o->sink, buf, off, len, err);

	return rc < 0 ? rc : 0;
}

int restore_out_write(struct restore_out *o, const void *buf, uint64_t off, size_t len, struct error *err)
{
	size_t skip = off < o->head_len ? min_u64(o->head_len - off, len) : 0;

	memcpy(o->head + off * (skip != 0), buf, skip);
	return len > skip ? write_out(o, (const char *)buf + skip, off + skip, len - skip, err) : 0;
}

int restore_out_zero(struct restore_out *o, uint64_t off, uint64_t len, struct error *err)
{
	uint64_t skip = off < o->head_len ? min_u64(o->head_len - off, len) : 0;

	if (len == skip)
		return 0;		/* the head begins as zeroes */
	return o->nbd ? nbd_out_zero(o->nbd, off + skip, len - skip, err)
		      : sink_zero(o->sink, off + skip, len - skip, err);
}

static int flush(struct restore_out *o, struct error *err)
{
	return o->nbd ? nbd_out_flush(o->nbd, err) : sink_flush(o->sink, err);
}

int restore_out_finish(struct restore_out *o, struct error *err)
{
	int rc = 0;

	if (o->in_place) {
		rc = flush(o, err);
		if (rc == 0)
			rc = write_out(o, o->head, 0, o->head_len, err);
		if (rc == 0)
			rc = flush(o, err);
	}
	if (rc == 0 && o->sink)
		rc = sink_finish(o->sink, err);
	o->finished = rc == 0;
	return rc;
}

bool restore_out_close(struct restore_out *o)
{
	bool left = o && o->begun && !o->finished;

	if (!o)
		return false;
	sink_close(o->sink);
	nbd_out_close(o->nbd);
	free(o);
	return left;
}
