/* SPDX-License-Identifier: BSD-3-Clause */
/* view-node: see view-node.h. */
#include "backup/view-node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/view.h"
#include "bitmaps/bitmap.h"
#include "common/co.h"
#include "format/node.h"

struct view_node {
	struct view *view;		/* NULL: nothing is shown */
	const struct bitmap *in;	/* the view's, if it is this node's; NULL: all, or not known */
	unsigned inside;		/* readers of it */
	struct co_queue leaving;
};

static int view_node_open(struct node *n, struct json_object *opts, struct error *err)
{
	n->state = calloc(1, sizeof(struct view_node));
	n->read_only = true;
	return n->state ? 0 : error_set(err, -ENOMEM, "Out of memory");
}

static void view_node_close(struct node *n)
{
	view_node_end(n);
	free(n->state);
	n->state = NULL;
}

static struct view *enter(struct node *n)
{
	struct view_node *s = n->state;

	s->inside += s->view != NULL;
	return s->view;
}

static int leave(struct node *n, int rc)
{
	struct view_node *s = n->state;

	if (--s->inside == 0)
		co_queue_wake_all(&s->leaving);
	return rc;
}

static int view_node_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	struct view *v = enter(n);

	return v ? leave(n, view_read(v, buf, off, len)) : -EIO;
}

/* What is outside of the view's bitmap cannot be read, but who asks for all of the disk's
 * status, in several contexts at once perhaps, gets an answer: data. */
static int view_node_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	const struct view_node *s = n->state;
	const struct bitmap *in = s->in;
	struct view *v = enter(n);
	uint64_t end = off + len;

	if (!v)
		return -EIO;
	if (in && !bitmap_get(in, off)) {
		extents_add(x, bitmap_next_dirty(in, off, end) - off, 0, 1);
		return leave(n, 0);
	}
	if (in)
		end = bitmap_next_clean(in, off, end);
	return leave(n, view_map(v, off, end - off, x));
}

/* The disk below is read, and what its guest does with it is the guest's affair. */
static void view_node_child_perm(struct node *n, enum node_child c, unsigned perm,
				 unsigned shared, unsigned *cperm, unsigned *cshared)
{
	*cperm = PERM_CONSISTENT_READ;
	*cshared = PERM_ALL;
}

static const char *const view_node_options[] = { NULL };

static const struct node_driver view_node_driver = {
	.name = "view",
	.filter = true,
	.options = view_node_options,
	.open = view_node_open,
	.close = view_node_close,
	.read = view_node_read,
	.map = view_node_map,
	.child_perm = view_node_child_perm,
	.of_an_instant = true,
};

int view_node_new(struct node *disk, const char *name, struct node **out, struct error *err)
{
	struct node_place where = { .graph = disk->graph, .loop = disk->loop, .io = disk->io };
	struct node *n;
	int rc = node_open_internal(&where, &view_node_driver, name, &n, err);

	if (rc)
		return rc;
	n->size = disk->size;
	n->filename = disk->filename ? strdup(disk->filename) : NULL;
	rc = node_attach_child(n, node_ref(disk), CHILD_FILE, err);
	if (rc) {
		node_unref(n);
		return rc;
	}
	*out = n;
	return 0;
}

int view_node_begin(struct node *n, const struct view_options *o, struct error *err)
{
	struct view_node *s = n->state;
	struct view_options mine = *o;
	int rc;

	s->in = o->bitmap && o->bitmap->node == n ? o->bitmap : NULL;
	mine.readers_in_gate = true;
	rc = view_open(n->child[CHILD_FILE], &mine, &s->view, err);
	if (!rc)
		n->instant = view_opened(s->view);
	return rc;
}

void view_node_end(struct node *n)
{
	struct view_node *s = n->state;
	struct view *v = s->view;

	s->view = NULL;
	while (s->inside)
		co_queue_wait(&s->leaving);
	view_close(v);
}

bool node_is_view(const struct node *n)
{
	return n->driver == &view_node_driver;
}

struct view *view_node_view(const struct node *n)
{
	const struct view_node *s = n->state;

	return s->view;
}
