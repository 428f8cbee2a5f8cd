/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-node: blockdev-add and blockdev-del.
 *
 * A node opens on the disk loop that has the fewest; one that refers to nodes that
 * exist opens on theirs, since a disk belongs to one loop: where they are on several,
 * those that nobody uses move.  What was made by
 * blockdev-add is held by one reference, the monitor's.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <string.h>

#include "common/loop.h"
#include "format/node.h"
#include "format/throttle.h"
#include "nbd-server/checkpoints.h"
#include "nbd-server/daemon.h"
#include "nbd-server/export.h"

#define CHILDREN_MAX 16			/* nodes that one blockdev-add may refer to by name */

/* -- nodes from the main loop ------------------------------------------------ */

struct node_call {
	struct node *node;
	int (*fn)(struct node *n, void *arg, struct error *err);
	void *arg;
	struct error *err;
	int rc;
};

static void node_call_on_loop(void *arg)
{
	struct node_call *c = arg;

	c->rc = c->fn(c->node, c->arg, c->err);
}

int command_node_call(struct node *n, int (*fn)(struct node *n, void *arg, struct error *err),
		      void *arg, struct error *err)
{
	struct node_call c = { n, fn, arg, err, 0 };

	loop_call(n->loop, node_call_on_loop, &c);
	return c.rc;
}

static int unref_on_loop(struct node *n, void *arg, struct error *err)
{
	node_unref(n);
	return 0;
}

struct node *command_node_find(const char *name)
{
	return node_find(&the_daemon.graph, name);
}

void command_node_unref(struct node *n)
{
	if (n)
		command_node_call(n, unref_on_loop, NULL, NULL);
}

/* -- blockdev-add ------------------------------------------------------------ */

/* What OPTS refers to: nodes and throttle groups that exist. */
struct referred {
	struct node *nodes[CHILDREN_MAX];	/* one reference each */
	unsigned n;
	struct loop *group;		/* of a throttle group; NULL: none */
};

static void find_referred(struct json_object *opts, struct referred *r)
{
	static const char *const keys[] = { "file", "backing", "data-file", "image", "target" };
	const char *group = json_object_get_string(json_object_object_get(opts, "throttle-group"));

	if (group && throttle_group_loop(group))
		r->group = throttle_group_loop(group);
	for (unsigned i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		struct json_object *v = json_object_object_get(opts, keys[i]);

		if (json_object_is_type(v, json_type_object)) {
			find_referred(v, r);
		} else if (json_object_is_type(v, json_type_string) && r->n < CHILDREN_MAX) {
			struct node *n = command_node_find(json_object_get_string(v));

			if (n)
				r->nodes[r->n++] = n;
		}
	}
}

static bool move_all(struct referred *r, struct loop *to, struct error *err)
{
	for (unsigned i = 0; i < r->n; i++)
		if (node_move(r->nodes[i], to, err))
			return false;
	return true;
}

int command_move_children(struct json_object *opts, struct loop *to, struct error *err)
{
	struct referred r = { .n = 0 };
	bool moved;

	find_referred(opts, &r);
	moved = move_all(&r, to, err);
	while (r.n)
		command_node_unref(r.nodes[--r.n]);
	return moved ? 0 : -EBUSY;
}

/* A disk's nodes are on one loop: where those that cannot move are.  NULL: nothing
 * is referred to. */
static int settle_loop(struct json_object *opts, struct loop **out, struct error *err)
{
	struct referred r = { .n = 0 };
	bool settled;

	find_referred(opts, &r);
	*out = r.group ? r.group : r.n ? r.nodes[0]->loop : NULL;
	settled = move_all(&r, *out, err);
	for (unsigned i = 0; i < r.n && !settled && !r.group; i++) {
		*out = r.nodes[i]->loop;
		*err = ERROR_INIT;
		settled = move_all(&r, *out, err);
	}
	while (r.n)
		command_node_unref(r.nodes[--r.n]);
	return settled ? 0 : -EBUSY;
}

static unsigned roots_on(const struct loop *l)
{
	struct graph *g = &the_daemon.graph;
	unsigned roots = 0;

	pthread_mutex_lock(&g->lock);
	for (struct node *n = g->nodes; n; n = n->next)
		roots += n->loop == l && !n->level;
	pthread_mutex_unlock(&g->lock);
	return roots;
}

struct loop *command_loop_in_turn(void)
{
	struct loop *best = NULL;
	unsigned least = 0;

	for (unsigned i = 0; i < the_daemon.n_disk_loops; i++) {
		unsigned roots = roots_on(the_daemon.disk_loops[i]);

		if (best && roots >= least)
			continue;
		best = the_daemon.disk_loops[i];
		least = roots;
	}
	return best;
}

struct node_adding {
	struct node_place place;
	struct json_object *opts;
	struct node *node;
	struct error *err;
	int rc;
};

static void add_on_loop(void *arg)
{
	struct node_adding *a = arg;

	a->rc = node_open(&a->place, a->opts, &a->node, a->err);
	if (!a->rc)
		a->node->monitor_owned = true;
}

COMMAND(command_blockdev_add)
{
	struct node_adding a = { .opts = args, .err = err };
	int rc;

	if (!node_driver_find(qmp_str(args, "driver")))
		return error_set(err, -EINVAL, "Parameter 'driver' does not accept value '%s'",
				 qmp_str(args, "driver"));
	if (!qmp_str(args, "node-name"))
		return error_set(err, -EINVAL, "'node-name' must be specified for the root node");
	a.place.graph = &the_daemon.graph;
	rc = settle_loop(args, &a.place.loop, err);
	if (rc)
		return rc;
	if (!a.place.loop)
		a.place.loop = command_loop_in_turn();
	a.place.io = loop_io(a.place.loop);
	loop_call(a.place.loop, add_on_loop, &a);
	if (!a.rc)
		checkpoint_node_opened(a.node);
	return a.rc;
}

/* -- blockdev-del ------------------------------------------------------------ */

/* One reference is the monitor's, one our caller's. */
static int del_on_loop(struct node *n, void *arg, struct error *err)
{
	if (!n->monitor_owned)
		return error_set(err, -EPERM, "Node %s is not owned by the monitor", n->name);
	if (n->uses || n->refs > 2)
		return error_set(err, -EBUSY, "Block device %s is in use", n->name);
	n->monitor_owned = false;
	node_unref(n);
	return 0;
}

static bool is_exported(const char *node)
{
	for (struct export *e = export_list(); e; e = e->next) {
		if (!strcmp(e->node_name, node))
			return true;
	}
	return false;
}

COMMAND(command_blockdev_del)
{
	const char *name = qmp_str(args, "node-name");
	struct node *n = command_node_find(name);
	int rc;

	if (!n)
		return error_set(err, -ENOENT, "Failed to find node with node-name='%s'", name);
	if (is_exported(name))
		rc = error_set(err, -EBUSY, "Node %s is in use", name);
	else
		rc = command_node_call(n, del_on_loop, NULL, err);
	command_node_unref(n);
	return rc;
}

static struct node *any_owned_node(void)
{
	struct graph *g = &the_daemon.graph;
	struct node *n;

	pthread_mutex_lock(&g->lock);
	for (n = g->nodes; n && !n->monitor_owned; n = n->next)
		;
	if (n)
		n->refs++;
	pthread_mutex_unlock(&g->lock);
	return n;
}

static int disown_on_loop(struct node *n, void *arg, struct error *err)
{
	n->monitor_owned = false;
	node_unref(n);
	return 0;
}

/* The list has the newest first: parents go before what they refer to. */
void command_nodes_close(void)
{
	struct node *n;

	while ((n = any_owned_node())) {
		command_node_call(n, disown_on_loop, NULL, NULL);
		command_node_unref(n);
	}
}
