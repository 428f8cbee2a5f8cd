/* SPDX-License-Identifier: BSD-3-Clause */
/* view-node: a view as a node, so that it can be exported like any other, or be put
 * below an image that stands on the disk.
 *
 * Read only, the size of its disk at the instant.  Its child is the disk, whose other
 * users may do what they like.  It is made before the instant, so that nothing is left
 * to allocate then, and reads as an error until it has its view, and after it has lost
 * it: the disk of now would be mixed with that of then.
 *
 * On the loop of the disk.
 */
#ifndef MERINO_VIEW_NODE_H
#define MERINO_VIEW_NODE_H

#include <stdbool.h>

#include "common/error.h"

struct node;
struct view;
struct view_options;

/* NAME NULL: made up.  *OUT carries one reference; the last one closes the view. */
int view_node_new(struct node *disk, const char *name, struct node **out, struct error *err);
bool node_is_view(const struct node *n);
/* Opens its view: the gates above the disk are closed.  If O's bitmap is one of N's, it
 * also says what of N can be asked for. */
int view_node_begin(struct node *n, const struct view_options *o, struct error *err);
/* And closes it again, when those who read have left. */
void view_node_end(struct node *n);
/* NULL before view_node_begin(). */
struct view *view_node_view(const struct node *n);

#endif
