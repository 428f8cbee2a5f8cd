// SPDX-License-Identifier: BSD-3-Clause
/* snapshot-access: a node that shows a view.
 *
 * Its child is a copy-before-write filter, as in QEMU.  It can be read; a discard gives
 * back what the reader is done with.  (view-node.c shows a view that has no filter.)
 */
#include <errno.h>
#include <string.h>

#include "backup/copy-before-write.h"

static struct view *view_of(const struct node *n)
{
	return cbw_view(n->child[CHILD_FILE]);
}

static int snapshot_open(struct node *n, struct json_object *opts, struct error *err)
{
	struct node *child;
	int rc;

	rc = node_open_child(n, opts, "file", CHILD_FILE, err);
	if (rc == -ENOENT && !err->code)
		rc = error_set(err, -EINVAL, "Parameter 'file' is missing");
	if (rc)
		return rc;
	child = n->child[CHILD_FILE];
	if (!cbw_view(child))
		return error_set(err, -EINVAL, "Node '%s' has no snapshot: it is not a copy-before-write filter",
				 child->name);
	n->size = view_size(view_of(n));
	n->instant = view_opened(view_of(n));
	if (child->filename)
		n->filename = strdup(child->filename);
	return 0;
}

static int snapshot_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	return view_read(view_of(n), buf, off, len);
}

static int snapshot_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	return -ENOTSUP;
}

static int snapshot_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	return -EPERM;		/* not -ENOTSUP: there is no slower way */
}

static int snapshot_discard(struct node *n, uint64_t off, uint64_t len)
{
	view_release(view_of(n), off, len);
	return 0;
}

static int snapshot_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	return view_map(view_of(n), off, len, x);
}

static int snapshot_reopen(struct node *n, struct error *err)
{
	return error_set(err, -EINVAL, "Block format '%s' used by node '%s' does not support reopening files",
			 n->driver->name, n->name);
}

/* Nothing is asked of the filter: what is read was kept by it, or is read below it. */
static void snapshot_child_perm(struct node *n, enum node_child c, unsigned perm, unsigned shared,
				unsigned *cperm, unsigned *cshared)
{
	*cperm = 0;
	*cshared = PERM_ALL;
}

static const char *const snapshot_options[] = { "file", NULL };

const struct node_driver snapshot_access_driver = {
	.name = "snapshot-access",
	.options = snapshot_options,
	.open = snapshot_open,
	.read = snapshot_read,
	.write = snapshot_write,
	.zero = snapshot_zero,
	.discard = snapshot_discard,
	.map = snapshot_map,
	.reopen = snapshot_reopen,
	.child_perm = snapshot_child_perm,
};

void views_init(void)
{
	node_driver_add(&cbw_driver);
	node_driver_add(&snapshot_access_driver);
}
