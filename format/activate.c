/* SPDX-License-Identifier: BSD-3-Clause */
/* activate: nodes that another process may write to for a while (QEMU's inactive
 * nodes, for migration).
 *
 * An inactive node has stored everything, holds no lock and writes nothing; a format's
 * tables are read anew when it becomes active.  While it is so it counts as read only,
 * and ->wants_write remembers what it was.  A child follows its last active parent.
 *
 * The gates of the disks above are closed.
 */
#include <errno.h>

#include "format/node.h"

/* The node that U is an edge of; NULL: somebody else uses it. */
static struct node *parent_of(const struct node *n, const struct node_use *u)
{
	struct graph *g = n->graph;
	struct node *p;

	pthread_mutex_lock(&g->lock);
	for (p = g->nodes; p; p = p->next) {
		if (u >= p->child_use && u < p->child_use + CHILD_COUNT)
			break;
	}
	pthread_mutex_unlock(&g->lock);
	return p;
}

bool node_has_active_parent(const struct node *n)
{
	for (const struct node_use *u = n->uses; u; u = u->next) {
		const struct node *p = parent_of(n, u);

		if (p && !p->inactive)
			return true;
	}
	return false;
}

int node_refresh_parents(const struct node *n, struct error *err)
{
	int rc = 0;

	for (const struct node_use *u = n->uses; u && !rc; u = u->next) {
		struct node *p = parent_of(n, u);

		rc = p ? node_use_refresh(p, err) : 0;
	}
	return rc;
}

/* Others than nodes that use it, and want it active. */
static bool has_active_user(const struct node *n)
{
	for (const struct node_use *u = n->uses; u; u = u->next) {
		if (!u->allow_inactive && !parent_of(n, u))
			return true;
	}
	return false;
}

static int deactivate(struct node *n, struct error *err)
{
	int rc = 0;

	if (n->inactive)
		return 0;
	if (has_active_user(n))
		return error_set(err, -EPERM, "Failed to inactivate node: Operation not permitted");
	n->wants_write = !n->read_only;
	if (n->wants_write)
		rc = node_set_writable(n, false, err);
	if (rc)
		return rc;
	n->inactive = true;
	node_use_refresh(n, NULL);	/* asks for nothing: cannot fail */
	for (unsigned c = 0; c < CHILD_COUNT; c++) {
		struct node *child = n->child[c];

		if (child && !node_has_active_parent(child) && !has_active_user(child))
			deactivate(child, NULL);
	}
	return 0;
}

/* N alone: its children are active. */
static int activate_one(struct node *n, struct error *err)
{
	int rc;

	n->inactive = false;
	rc = node_use_refresh(n, err);
	if (!rc)
		rc = node_set_writable(n, n->wants_write, err);
	if (rc) {
		n->inactive = true;
		node_use_refresh(n, NULL);
		return rc;
	}
	n->wants_write = false;
	return 0;
}

/* All of it or nothing. */
static int activate(struct node *n, struct error *err)
{
	bool was_inactive[CHILD_COUNT] = { false };
	int rc = 0;

	for (unsigned c = 0; c < CHILD_COUNT && !rc; c++) {
		struct node *child = n->child[c];

		was_inactive[c] = child && child->inactive;
		rc = child ? activate(child, err) : 0;
	}
	if (!rc && n->inactive)
		rc = activate_one(n, err);
	for (unsigned c = 0; c < CHILD_COUNT && rc; c++) {
		struct node *child = n->child[c];

		if (was_inactive[c] && !node_has_active_parent(child) && !has_active_user(child))
			deactivate(child, NULL);
	}
	return rc;
}

int node_set_active(struct node *n, bool active, struct error *err)
{
	if (active)
		return activate(n, err);
	if (node_has_active_parent(n))
		return error_set(err, -EPERM, "Node has active parent node");
	return deactivate(n, err);
}
