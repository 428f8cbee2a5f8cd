/* SPDX-License-Identifier: BSD-3-Clause */
/* The calls of a filter that changes nothing: see filter.h. */
#include "format/filter.h"

#include <stdlib.h>
#include <string.h>

#include "common/options.h"

int filter_open_child(struct node *n, struct json_object *opts, const char *key,
		      struct error *err)
{
	struct node *child;
	int rc = opts_require(opts, key, err);

	if (!rc)
		rc = node_open_child(n, opts, key, CHILD_FILE, err);
	if (rc)
		return rc;
	child = n->child[CHILD_FILE];
	if (child->read_only && n->auto_read_only)
		n->read_only = true;
	if (!n->filename && child->filename)
		n->filename = strdup(child->filename);
	n->protocol = child->protocol;
	n->size = child->size;
	return 0;
}

int filter_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	return node_read(n->child[CHILD_FILE], buf, off, len);
}

/* A write may have made a protocol node longer. */
static int follow_size(struct node *n, int rc)
{
	n->size = n->child[CHILD_FILE]->size;
	return rc;
}

int filter_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	return follow_size(n, node_write(n->child[CHILD_FILE], buf, off, len, flags));
}

int filter_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	return follow_size(n, node_zero(n->child[CHILD_FILE], off, len, flags));
}

int filter_discard(struct node *n, uint64_t off, uint64_t len)
{
	return node_discard(n->child[CHILD_FILE], off, len);
}

int filter_flush(struct node *n)
{
	return node_flush(n->child[CHILD_FILE]);
}

int filter_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	return node_map(n->child[CHILD_FILE], off, len, x);
}

int filter_truncate(struct node *n, uint64_t size, struct error *err)
{
	return follow_size(n, node_truncate(n->child[CHILD_FILE], size, err));
}

void filter_child_perm(struct node *n, enum node_child c, unsigned perm, unsigned shared,
		       unsigned *cperm, unsigned *cshared)
{
	*cperm = perm;
	*cshared = shared | PERM_WRITE_UNCHANGED;
}

bool filter_host_range(struct node *n, uint64_t off, uint64_t len, struct io_file **f,
		       uint64_t *host_off)
{
	return node_host_range(n->child[CHILD_FILE], off, len, f, host_off);
}
