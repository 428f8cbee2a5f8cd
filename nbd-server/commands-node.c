/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-node: blockdev-add and blockdev-del.
 *
 * A node opens on one of the disk loops, in turn; one that refers to nodes that
 * exist opens on theirs, since a disk belongs to one loop.  What was made by
 * blockdev-add is held by one reference, the monitor's.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <string.h>

#include "common/loop.h"
#include "format/node.h"
#include "nbd-server/daemon.h"
#include "nbd-server/export.h"

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

/* The loop of the first node that OPTS or an object inside it refers to by name. */
static struct loop *loop_of_children(struct json_object *opts)
{
	static const char *const keys[] = { "file", "backing", "data-file" };

	for (unsigned i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		struct json_object *v = json_object_object_get(opts, keys[i]);
		struct loop *l = NULL;

		if (json_object_is_type(v, json_type_object)) {
			l = loop_of_children(v);
		} else if (json_object_is_type(v, json_type_string)) {
			struct node *n = command_node_find(json_object_get_string(v));

			l = n ? n->loop : NULL;
			command_node_unref(n);
		}
		if (l)
			return l;
	}
	return NULL;
}

struct loop *command_loop_in_turn(void)
{
	static unsigned turn;

	return the_daemon.disk_loops[turn++ % the_daemon.n_disk_loops];
}

struct node_adding {
	struct node_place place;
	struct json_object *opts;
	struct error *err;
	int rc;
};

static void add_on_loop(void *arg)
{
	struct node_adding *a = arg;
	struct node *n;

	a->rc = node_open(&a->place, a->opts, &n, a->err);
	if (!a->rc)
		n->monitor_owned = true;
}

COMMAND(command_blockdev_add)
{
	struct node_adding a = { .opts = args, .err = err };

	if (!node_driver_find(qmp_str(args, "driver")))
		return error_set(err, -EINVAL, "Parameter 'driver' does not accept value '%s'",
				 qmp_str(args, "driver"));
	if (!qmp_str(args, "node-name"))
		return error_set(err, -EINVAL, "'node-name' must be specified for the root node");
	a.place.graph = &the_daemon.graph;
	a.place.loop = loop_of_children(args);
	if (!a.place.loop)
		a.place.loop = command_loop_in_turn();
	a.place.io = loop_io(a.place.loop);
	loop_call(a.place.loop, add_on_loop, &a);
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
