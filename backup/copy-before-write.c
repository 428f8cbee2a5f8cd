// SPDX-License-Identifier: BSD-3-Clause
/* copy-before-write: QEMU's filter that keeps what is about to be overwritten.
 *
 * What is kept goes to the target, at its own offset, before the write goes on: whoever
 * reads the target beside us finds it there.  When that fails, or takes longer than
 * cbw-timeout, either the guest's write fails (on-cbw-error=break-guest-write) or the
 * view is given up (break-snapshot).  A snapshot-access node reads the view.
 *
 * Nobody else may write to the disk below while somebody uses the filter: those writes
 * would not be seen.
 */
#include "backup/copy-before-write.h"

#include <errno.h>
#include <stdlib.h>

#include "bitmaps/bitmap.h"
#include "common/checked.h"
#include "common/options.h"
#include "format/filter.h"

struct cbw {
	struct view *view;
};

struct view *cbw_view(const struct node *n)
{
	return n->driver == &cbw_driver ? ((const struct cbw *)n->state)->view : NULL;
}

static int cbw_open_target(struct node *n, struct json_object *opts, struct error *err)
{
	int rc = opts_require(opts, "target", err);

	return rc ? rc : node_open_child(n, opts, "target", CHILD_TARGET, err);
}

/* {"node":…,"name":…}; *OUT belongs to *OF, which carries a reference. */
static int take_bitmap(struct node *n, struct json_object *opts, struct node **of, struct bitmap **out,
		       struct error *err)
{
	struct json_object *o = NULL;
	char *node = NULL, *name = NULL;
	int rc = opts_object(opts, "bitmap", &o, err);

	if (rc || !o)
		return rc;
	opts_set_path(o, opts, "bitmap");
	rc = opts_require(o, "node", err);
	if (!rc)
		rc = opts_require(o, "name", err);
	if (!rc)
		rc = opts_str(o, "node", &node, err);
	if (!rc)
		rc = opts_str(o, "name", &name, err);
	if (!rc)
		rc = opts_end(o, err);
	if (!rc && !(*of = node_find(n->graph, node)))
		rc = error_set(err, -ENOENT, "Node '%s' not found", node);
	if (!rc && (*of)->loop != n->loop)
		rc = error_set(err, -EXDEV, "Node '%s' is on another thread than node '%s'", node,
			       n->child[CHILD_FILE]->name);
	if (!rc && !(*out = bitmap_find(*of, name, err)))
		rc = -ENOENT;
	if (!rc)
		rc = bitmap_check(*out, BITMAP_NOT_INCONSISTENT, err);
	if (!rc && (*out)->size != n->size)
		rc = error_set(err, -EINVAL, "Bitmap '%s' has another size than node '%s'", name,
			       n->child[CHILD_FILE]->name);
	free(node);
	free(name);
	json_object_put(o);
	return rc;
}

static int take_cluster_size(struct json_object *opts, struct view_options *o, struct error *err)
{
	uint64_t least = 0;
	int rc = opts_u64(opts, "min-cluster-size", &least, err);

	if (rc)
		return rc;
	if (least && !is_pow2(least))
		return error_set(err, -EINVAL, "min-cluster-size needs to be a power of 2");
	if (least > NODE_REQUEST_MAX)
		return error_set(err, -EINVAL, "min-cluster-size must be at most %u", NODE_REQUEST_MAX);
	o->granularity = (uint32_t)max_u64(least, VIEW_GRANULARITY_MIN);
	return 0;
}

static int take_options(struct json_object *opts, struct view_options *o, struct error *err)
{
	static const char *const errors[] = { "break-guest-write", "break-snapshot", NULL };
	uint64_t seconds = 0;
	int how = 0, rc;

	rc = opts_enum(opts, "on-cbw-error", errors, &how, err);
	if (!rc)
		rc = opts_u64(opts, "cbw-timeout", &seconds, err);
	if (!rc && seconds > UINT32_MAX)
		rc = error_set(err, -EINVAL, "Parameter 'cbw-timeout' expects uint32_t");
	if (!rc)
		rc = take_cluster_size(opts, o, err);
	o->break_guest = how == 0;
	o->wait_ns = seconds * 1000000000ull;
	return rc;
}

static int cbw_open(struct node *n, struct json_object *opts, struct error *err)
{
	struct view_options o = { .no_tap = true };
	struct cbw *s = calloc(1, sizeof(*s));
	struct node *bitmap_node = NULL;
	struct bitmap *bitmap = NULL;
	int rc;

	if (!s)
		return error_set(err, -ENOMEM, "Out of memory");
	n->state = s;
	rc = take_options(opts, &o, err);
	if (!rc)
		rc = filter_open_child(n, opts, "file", err);
	if (!rc)
		rc = cbw_open_target(n, opts, err);
	if (!rc)
		rc = take_bitmap(n, opts, &bitmap_node, &bitmap, err);
	if (!rc) {
		o.bitmap = bitmap;
		o.store = n->child[CHILD_TARGET];
		rc = view_open(n->child[CHILD_FILE], &o, &s->view, err);
	}
	node_unref(bitmap_node);
	return rc;
}

static void cbw_close(struct node *n)
{
	struct cbw *s = n->state;

	view_close(s->view);
	free(s);
	n->state = NULL;
}

static int cbw_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	int rc = view_keep(cbw_view(n), off, len);

	return rc ? rc : filter_write(n, buf, off, len, flags);
}

static int cbw_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	int rc = view_keep(cbw_view(n), off, len);

	return rc ? rc : filter_zero(n, off, len, flags);
}

static int cbw_discard(struct node *n, uint64_t off, uint64_t len)
{
	int rc = view_keep(cbw_view(n), off, len);

	return rc ? rc : filter_discard(n, off, len);
}

static int cbw_truncate(struct node *n, uint64_t size, struct error *err)
{
	if (size < view_size(cbw_view(n)))
		return error_set(err, -EBUSY, "Node '%s' cannot become smaller: its snapshot has the size that it had",
				 n->name);
	return filter_truncate(n, size, err);
}

static int cbw_reopen(struct node *n, struct error *err)
{
	return error_set(err, -EINVAL, "Block format '%s' used by node '%s' does not support reopening files",
			 n->driver->name, n->name);
}

static bool is_used(const struct node *n)
{
	const struct node_use *u = n->uses;

	while (u && u->aside)
		u = u->next;
	return u;
}

/* QEMU's rules.  The target's backing image may be the disk: guests may go on writing. */
static void cbw_child_perm(struct node *n, enum node_child c, unsigned perm, unsigned shared,
			   unsigned *cperm, unsigned *cshared)
{
	if (c == CHILD_TARGET) {
		*cperm = PERM_WRITE;
		*cshared = PERM_ALL & ~(unsigned)PERM_RESIZE;
		return;
	}
	filter_child_perm(n, c, perm, shared, cperm, cshared);
	if (is_used(n)) {
		*cperm |= PERM_CONSISTENT_READ;
		*cshared &= ~(unsigned)(PERM_WRITE | PERM_RESIZE);
	}
}

static const char *const cbw_options[] = {
	"file", "target", "bitmap", "on-cbw-error", "cbw-timeout", "min-cluster-size", NULL,
};

const struct node_driver cbw_driver = {
	.name = "copy-before-write",
	.options = cbw_options,
	.filter = true,
	.open = cbw_open,
	.close = cbw_close,
	.read = filter_read,
	.write = cbw_write,
	.zero = cbw_zero,
	.discard = cbw_discard,
	.flush = filter_flush,
	.map = filter_map,
	.truncate = cbw_truncate,
	.reopen = cbw_reopen,
	.child_perm = cbw_child_perm,
	.host_range = filter_host_range,
};
