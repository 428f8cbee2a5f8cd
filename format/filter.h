/* SPDX-License-Identifier: BSD-3-Clause */
/* filter: nodes that show their child as it is, and do something on the way.
 *
 * A filter has one child (CHILD_FILE), the same size, and no data of its own:
 * node_map_chain() looks through it without counting a layer.  Drivers take the
 * calls that they do not change from here.
 */
#ifndef MERINO_FILTER_H
#define MERINO_FILTER_H

#include "format/node.h"

/* Opens the child that OPTS[KEY] describes, and makes N look like it. */
int filter_open_child(struct node *n, struct json_object *opts, const char *key,
		      struct error *err);

int filter_read(struct node *n, void *buf, uint64_t off, size_t len);
int filter_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags);
int filter_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags);
int filter_discard(struct node *n, uint64_t off, uint64_t len);
int filter_flush(struct node *n);
int filter_map(struct node *n, uint64_t off, uint64_t len, struct extents *x);
int filter_truncate(struct node *n, uint64_t size, struct error *err);
void filter_child_perm(struct node *n, enum node_child c, unsigned perm, unsigned shared,
		       unsigned *cperm, unsigned *cshared);
bool filter_host_range(struct node *n, uint64_t off, uint64_t len, struct io_file **f,
		       uint64_t *host_off);

#endif
