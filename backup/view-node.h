/* SPDX-License-Identifier: BSD-3-Clause */
/* view-node: a view as a node, so that it can be exported like any other.
 *
 * Read only, the size of its disk at the instant.  Its child is the disk, whose other
 * users may do what they like.  It is made before the instant, so that nothing is left
 * to allocate then, and reads as an error until it has its view.
 *
 * On the loop of the disk.
 */
#ifndef MERINO_VIEW_NODE_H
#define MERINO_VIEW_NODE_H

#include "common/error.h"

struct node;
struct view;
struct view_options;

/* *OUT carries one reference; the last one closes the view. */
int view_node_new(struct node *disk, struct node **out, struct error *err);
/* Opens its view: the gates above the disk are closed. */
int view_node_begin(struct node *n, const struct view_options *o, struct error *err);
/* And closes it again; with the gates closed, or when nobody reads any more. */
void view_node_end(struct node *n);
/* NULL before view_node_begin(). */
struct view *view_node_view(const struct node *n);

#endif
