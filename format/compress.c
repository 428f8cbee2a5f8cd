/* SPDX-License-Identifier: BSD-3-Clause */
/* compress: a filter that asks the image below to store what is written compressed.
 *
 * Whole clusters are; what covers one in part is stored as it is.
 */
#include <errno.h>

#include "common/checked.h"
#include "format/filter.h"
#include "format/qcow2.h"

static int compress_open(struct node *n, struct json_object *opts, struct error *err)
{
	int rc = filter_open_child(n, opts, "file", err);

	if (!rc && !node_is_qcow2(n->child[CHILD_FILE]))
		rc = error_set(err, -ENOTSUP, "Compression is not supported for underlying format: %s",
			       n->child[CHILD_FILE]->driver->name);
	return rc;
}

static int compress_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	uint64_t cluster = qcow2_cluster_size(n->child[CHILD_FILE]);
	uint64_t end = off + len, start = min_u64(align_up(off, cluster), end);
	/* The disk's last cluster is whole where the disk ends. */
	uint64_t stop = end == n->size ? end : max_u64(align_down(end, cluster), start);
	const char *p = buf;
	int rc = 0;

	if (off < start)
		rc = filter_write(n, p, off, start - off, flags);
	if (!rc && start < stop)
		rc = filter_write(n, p + (start - off), start, stop - start, flags | NODE_COMPRESS);
	if (!rc && stop < end)
		rc = filter_write(n, p + (stop - off), stop, end - stop, flags);
	return rc;
}

static const char *const compress_options[] = { "file", NULL };

const struct node_driver compress_driver = {
	.name = "compress",
	.options = compress_options,
	.filter = true,
	.open = compress_open,
	.read = filter_read,
	.write = compress_write,
	.zero = filter_zero,
	.discard = filter_discard,
	.flush = filter_flush,
	.map = filter_map,
	.truncate = filter_truncate,
	.child_perm = filter_child_perm,
	.host_range = filter_host_range,
};
