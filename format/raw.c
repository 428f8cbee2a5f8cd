/* SPDX-License-Identifier: BSD-3-Clause */
/* raw: an image without a format; with offset and size, a window into one.
 *
 * Never probed: a raw disk's guest may write any format's header into it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/options.h"
#include "format/node.h"
#include "format/sidecar.h"

struct raw {
	uint64_t offset;		/* bytes into the file where the image begins */
	uint64_t size;			/* fixed size, 0: what the file has */
	bool has_size;
};

static int raw_fit(struct node *n, struct raw *r, struct error *err)
{
	uint64_t there = n->child[CHILD_FILE]->size;

	if (r->offset > there)
		return error_set(err, -EINVAL, "Offset (%llu) cannot be greater than size of the containing file (%llu)",
				 (unsigned long long)r->offset, (unsigned long long)there);
	if (r->has_size && r->size > there - r->offset)
		return error_set(err, -EINVAL, "The sum of offset (%llu) and size (%llu) has to be smaller or equal to the actual size of the containing file (%llu)",
				 (unsigned long long)r->offset, (unsigned long long)r->size,
				 (unsigned long long)there);
	n->size = r->has_size ? r->size : there - r->offset;
	return 0;
}

static int raw_open(struct node *n, struct json_object *opts, struct error *err)
{
	struct raw *r = calloc(1, sizeof(*r));
	int rc;

	if (!r)
		return error_set(err, -ENOMEM, "Out of memory");
	n->state = r;
	r->has_size = json_object_object_get_ex(opts, "size", NULL);
	rc = opts_require(opts, "file", err);
	if (!rc)
		rc = opts_u64(opts, "offset", &r->offset, err);
	if (!rc)
		rc = opts_u64(opts, "size", &r->size, err);
	if (!rc)
		rc = sidecar_options(n, opts, err);
	if (!rc)
		rc = node_open_child(n, opts, "file", CHILD_FILE, err);
	if (rc)
		return rc;
	if (n->child[CHILD_FILE]->read_only && n->auto_read_only)
		n->read_only = true;
	if (!n->filename && n->child[CHILD_FILE]->filename)
		n->filename = strdup(n->child[CHILD_FILE]->filename);
	rc = raw_fit(n, r, err);
	if (!rc && node_storage(n->child[CHILD_FILE]) && !r->offset && !r->has_size)
		rc = sidecar_open(n, err);
	return rc;
}

static void raw_close(struct node *n)
{
	sidecar_close(n);
	free(n->state);
	n->state = NULL;
}

static inline uint64_t raw_offset(struct node *n)
{
	return ((struct raw *)n->state)->offset;
}

uint64_t raw_offset_of(const struct node *n)
{
	return n->driver == &raw_driver ? ((const struct raw *)n->state)->offset : 0;
}

static int raw_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	return node_read(n->child[CHILD_FILE], buf, off + raw_offset(n), len);
}

static int raw_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	return node_write(n->child[CHILD_FILE], buf, off + raw_offset(n), len, flags);
}

static int raw_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	return node_zero(n->child[CHILD_FILE], off + raw_offset(n), len, flags);
}

static int raw_discard(struct node *n, uint64_t off, uint64_t len)
{
	return node_discard(n->child[CHILD_FILE], off + raw_offset(n), len);
}

static int raw_flush(struct node *n)
{
	return node_flush(n->child[CHILD_FILE]);
}

static int raw_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	struct node *file = n->child[CHILD_FILE];
	uint32_t first = x->n;
	int rc;

	if (file->protocol)
		return node_map(file, off + raw_offset(n), len, x);
	/* A format or its like below: all its layers are this one layer's data. */
	rc = node_map_chain(file, off + raw_offset(n), len, x);
	for (uint32_t i = first; i < x->n; i++) {
		x->v[i].flags &= ~(uint32_t)EXTENT_UNALLOCATED;
		x->v[i].depth = 1;
	}
	return rc;
}

static int raw_truncate(struct node *n, uint64_t size, struct error *err)
{
	struct raw *r = n->state;
	uint64_t end;
	int rc;

	if (r->has_size)
		return error_set(err, -ENOTSUP, "Cannot resize fixed-size raw disks");
	if (!checked_add(r->offset, size, &end))
		return error_set(err, -EINVAL, "Image size cannot be that large");
	rc = node_truncate(n->child[CHILD_FILE], end, err);
	if (!rc)
		n->size = size;
	return rc;
}

static void raw_child_perm(struct node *n, enum node_child c, unsigned perm, unsigned shared,
			   unsigned *cperm, unsigned *cshared)
{
	*cperm = perm;
	*cshared = shared;
}

static bool raw_host_range(struct node *n, uint64_t off, uint64_t len, struct io_file **f,
			   uint64_t *host_off)
{
	return node_host_range(n->child[CHILD_FILE], off + raw_offset(n), len, f, host_off);
}

static const char *const raw_options[] = { "file", "offset", "size", "sidecar-dir", "trust-sidecar", NULL };

const struct node_driver raw_driver = {
	.name = "raw",
	.options = raw_options,
	.open = raw_open,
	.close = raw_close,
	.read = raw_read,
	.write = raw_write,
	.zero = raw_zero,
	.discard = raw_discard,
	.flush = raw_flush,
	.map = raw_map,
	.truncate = raw_truncate,
	.child_perm = raw_child_perm,
	.host_range = raw_host_range,
};
