/* SPDX-License-Identifier: BSD-3-Clause */
/* graph: names, opening and closing of nodes.
 *
 * A node opens its children while it opens.  Children that are described in
 * place inherit from their parent what QEMU lets them inherit (read-only, cache,
 * force-share) and die with it; children given by name were made by somebody
 * else and are only referenced.
 */
#include <assert.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "format/node.h"

#define NODE_DRIVERS_MAX 32

const struct node_bitmap_hooks *node_bitmap_hooks;
const struct node_event_hooks *node_event_hooks;

const struct node_driver *node_drivers[NODE_DRIVERS_MAX + 1] = {
	&file_driver, &host_device_driver, &raw_driver, &qcow2_driver,
	&null_driver, &blkdebug_driver, &nbd_driver,
	&throttle_driver, &cor_driver, &compress_driver,
};

void node_driver_add(const struct node_driver *d)
{
	unsigned i = 0;

	while (node_drivers[i] && node_drivers[i] != d)
		i++;
	assert(i < NODE_DRIVERS_MAX);
	node_drivers[i] = d;
}

static const char *const child_names[CHILD_COUNT] = { "file", "backing", "data-file", "target" };

const struct node_driver *node_driver_find(const char *name)
{
	for (unsigned i = 0; node_drivers[i]; i++)
		if (!strcmp(node_drivers[i]->name, name))
			return node_drivers[i];
	return NULL;
}

void graph_init(struct graph *g)
{
	*g = (struct graph){ 0 };
	pthread_mutex_init(&g->lock, NULL);
}

/* With the lock held. */
static struct node *graph_lookup(struct graph *g, const char *name)
{
	for (struct node *n = g->nodes; n; n = n->next)
		if (!strcmp(n->name, name))
			return n;
	return NULL;
}

struct node *node_find(struct graph *g, const char *name)
{
	struct node *n;

	pthread_mutex_lock(&g->lock);
	n = graph_lookup(g, name);
	if (n)
		n->refs++;
	pthread_mutex_unlock(&g->lock);
	return n;
}

struct node *node_ref(struct node *n)
{
	pthread_mutex_lock(&n->graph->lock);
	n->refs++;
	pthread_mutex_unlock(&n->graph->lock);
	return n;
}

static int name_check(struct graph *g, const char *name, struct error *err)
{
	struct node *twin;

	if (!id_wellformed(name))
		return error_set(err, -EINVAL, "Invalid node-name: '%s'", name);
	if (strlen(name) > NODE_NAME_MAX)
		return error_set(err, -EINVAL, "Node name too long");
	pthread_mutex_lock(&g->lock);
	twin = graph_lookup(g, name);
	pthread_mutex_unlock(&g->lock);
	if (twin)
		return error_set(err, -EEXIST, "Duplicate nodes with node-name='%s'", name);
	return 0;
}

/* Puts N on the list; the name may have been taken while it opened. */
static int graph_add(struct graph *g, struct node *n, struct error *err)
{
	int rc = 0;

	pthread_mutex_lock(&g->lock);
	if (!n->name[0])
		snprintf(n->name, sizeof(n->name), "#block%03u", g->next_auto++);
	if (graph_lookup(g, n->name))
		rc = error_set(err, -EEXIST, "Duplicate nodes with node-name='%s'", n->name);
	if (!rc) {
		n->next = g->nodes;
		g->nodes = n;
		n->refs = 1;
	}
	pthread_mutex_unlock(&g->lock);
	return rc;
}

static void graph_del(struct graph *g, struct node *n)
{
	for (struct node **p = &g->nodes; *p; p = &(*p)->next) {
		if (*p == n) {
			*p = n->next;
			return;
		}
	}
}

static void node_close(struct node *n)
{
	node_hurry(n, true);		/* a last flush, perhaps to a server that is stuck */
	if (n->state && n->driver->close)
		n->driver->close(n);
	node_hurry(n, false);
	if (n->bitmaps && node_bitmap_hooks)
		node_bitmap_hooks->drop(n);
	for (unsigned c = 0; c < CHILD_COUNT; c++) {
		node_use_drop(&n->child_use[c]);
		node_unref(n->child[c]);
	}
	free(n->filename);
	json_object_put(n->options);
	free(n);
}

void node_unref(struct node *n)
{
	bool last;

	if (!n)
		return;
	pthread_mutex_lock(&n->graph->lock);
	last = --n->refs == 0;
	if (last)
		graph_del(n->graph, n);
	pthread_mutex_unlock(&n->graph->lock);
	if (last)
		node_close(n);
}

static int take_cache_options(struct node *n, struct json_object *opts, struct error *err)
{
	struct json_object *cache = NULL;
	int rc = opts_object(opts, "cache", &cache, err);

	if (rc || !cache)
		return rc;
	opts_set_path(cache, opts, "cache");
	rc = opts_bool(cache, "direct", &n->cache_direct, err);
	if (!rc)
		rc = opts_bool(cache, "no-flush", &n->cache_no_flush, err);
	if (!rc)
		rc = opts_end(cache, err);
	json_object_put(cache);
	return rc;
}

static int take_name(struct node *n, struct json_object *opts, struct error *err)
{
	char *name = NULL;
	int rc = opts_str(opts, "node-name", &name, err);

	if (!rc && name) {
		rc = name_check(n->graph, name, err);
		if (!rc)
			snprintf(n->name, sizeof(n->name), "%s", name);
	}
	free(name);
	return rc;
}

/* The options that every driver has (QAPI's BlockdevOptions). */
int node_take_flags(struct node *n, struct json_object *opts, struct error *err)
{
	static const char *const discards[] = { "ignore", "unmap", NULL };
	static const char *const detects[] = { "off", "on", "unmap", NULL };
	int discard = 0, detect = 0, rc;

	rc = opts_bool(opts, "read-only", &n->read_only, err);
	if (!rc)
		rc = opts_bool(opts, "auto-read-only", &n->auto_read_only, err);
	if (!rc)
		rc = opts_bool(opts, "force-share", &n->force_share, err);
	if (!rc)
		rc = opts_enum(opts, "discard", discards, &discard, err);
	if (!rc)
		rc = opts_enum(opts, "detect-zeroes", detects, &detect, err);
	if (!rc)
		rc = take_cache_options(n, opts, err);
	if (rc)
		return rc;
	if (detect == 2 && discard != 1)
		return error_set(err, -EINVAL, "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap");
	if (n->force_share && !n->read_only)
		return error_set(err, -EINVAL, "force-share=on can only be used with read-only images");
	n->discard_unmap = discard == 1;
	n->detect_zeroes = detect != 0;
	n->detect_unmap = detect == 2;
	return 0;
}

static bool is_child_option(const char *key)
{
	return !strcmp(key, "file") || !strcmp(key, "image") || !strcmp(key, "backing") ||
	       !strcmp(key, "data-file") || !strcmp(key, "target");
}

/* For node_reopen(), which has to know what changes.  OPTS itself carries its path,
 * which json-c does not copy. */
static int keep_options(struct node *n, struct json_object *opts, struct error *err)
{
	n->options = json_object_new_object();
	json_object_object_foreach(opts, key, value) {
		struct json_object *copy;

		if (is_child_option(key))
			continue;
		copy = opts_copy(value);
		if (value && !copy)
			return error_set(err, -ENOMEM, "Out of memory");
		json_object_object_add(n->options, key, copy);
	}
	return 0;
}

/* An inactive node is opened read only; see activate.c. */
static int take_active(struct node *n, struct json_object *opts, struct error *err)
{
	bool active = true;
	int rc = opts_bool(opts, "active", &active, err);

	if (rc || active)
		return rc;
	json_object_object_del(n->options, "active");
	n->inactive = true;
	n->wants_write = !n->read_only;
	n->read_only = true;
	return 0;
}

/* A node of DRIVER, which may be one that is not in the table. */
static int open_driver(const struct node_place *where, const struct node_driver *driver,
		       struct json_object *opts, unsigned level, struct node **out,
		       struct error *err)
{
	struct node *n;
	int rc;

	if (level > NODE_CHAIN_MAX)
		return error_set(err, -ELOOP, "The backing chain is longer than %d nodes, or refers to itself",
				 NODE_CHAIN_MAX);
	n = calloc(1, sizeof(*n));
	if (!n)
		return error_set(err, -ENOMEM, "Out of memory");
	n->graph = where->graph;
	n->loop = where->loop;
	n->io = where->io;
	n->driver = driver;
	n->level = level;
	rc = take_name(n, opts, err);
	if (!rc)
		rc = node_take_flags(n, opts, err);
	if (!rc)
		rc = keep_options(n, opts, err);
	if (!rc)
		rc = take_active(n, opts, err);
	if (!rc)
		rc = driver->open(n, opts, err);
	if (!rc)
		rc = opts_end(opts, err);
	if (!rc)
		rc = graph_add(n->graph, n, err);
	if (rc) {
		node_close(n);
		return rc;
	}
	*out = n;
	return 0;
}

static int node_open_at(const struct node_place *where, struct json_object *opts, unsigned level,
			struct node **out, struct error *err)
{
	const struct node_driver *driver;
	char *name = NULL;
	int rc = opts_require(opts, "driver", err);

	if (!rc)
		rc = opts_str(opts, "driver", &name, err);
	if (rc)
		return rc;
	driver = node_driver_find(name);
	if (!driver)
		rc = error_set(err, -EINVAL, "Parameter 'driver' does not accept value '%s'", name);
	free(name);
	return rc ? rc : open_driver(where, driver, opts, level, out, err);
}

int node_open_internal(const struct node_place *where, const struct node_driver *driver,
		       const char *name, struct node **out, struct error *err)
{
	struct json_object *opts = json_object_new_object();
	int rc;

	if (opts && name)
		json_object_object_add(opts, "node-name", json_object_new_string(name));
	rc = opts ? open_driver(where, driver, opts, 0, out, err)
		      : error_set(err, -ENOMEM, "Out of memory");

	json_object_put(opts);
	return rc;
}

int node_open(const struct node_place *where, struct json_object *opts, struct node **out,
	      struct error *err)
{
	return node_open_at(where, opts, 0, out, err);
}

int node_attach_child(struct node *n, struct node *child, enum node_child c, struct error *err)
{
	unsigned perm = 0, shared = PERM_ALL;
	int rc;

	if (child->inactive && !n->inactive) {
		rc = error_set(err, -EPERM, "Inactive '%s' can't be a %s child of active '%s'",
			       child->name, child_names[c], n->name);
		node_unref(child);
		return rc;
	}
	n->child[c] = child;
	if (!n->inactive)		/* else it asks for nothing, as after blockdev-set-active */
		n->driver->child_perm(n, c, 0, PERM_ALL, &perm, &shared);
	rc = node_use_add(&n->child_use[c], child, perm, shared, err, "node '%s' as '%s'",
			  n->name[0] ? n->name : n->driver->name, child_names[c]);
	if (rc) {
		n->child[c] = NULL;
		node_unref(child);
	}
	return rc;
}

static void inherit_bool(struct json_object *o, const char *key, bool v)
{
	if (!json_object_object_get_ex(o, key, NULL))
		json_object_object_add(o, key, json_object_new_boolean(v));
}

static void inherit(struct node *n, struct json_object *o, enum node_child c)
{
	struct json_object *cache;

	inherit_bool(o, "read-only", c == CHILD_BACKING || (n->read_only && !n->wants_write));
	if (n->inactive)
		inherit_bool(o, "active", false);
	if (n->force_share)
		inherit_bool(o, "force-share", true);
	if (n->auto_read_only)
		inherit_bool(o, "auto-read-only", true);
	if (c != CHILD_BACKING && !json_object_object_get_ex(o, "discard", NULL))
		json_object_object_add(o, "discard", json_object_new_string("unmap"));
	if (!json_object_object_get_ex(o, "cache", &cache)) {
		cache = json_object_new_object();
		json_object_object_add(o, "cache", cache);
	}
	if (json_object_is_type(cache, json_type_object)) {
		inherit_bool(cache, "direct", n->cache_direct);
		inherit_bool(cache, "no-flush", n->cache_no_flush);
	}
}

int node_open_child_with(struct node *n, struct json_object *o, enum node_child c,
			 struct error *err)
{
	struct node_place where = { .graph = n->graph, .loop = n->loop, .io = n->io };
	struct node *child;
	int rc;

	inherit(n, o, c);
	rc = node_open_at(&where, o, n->level + 1, &child, err);
	return rc ? rc : node_attach_child(n, child, c, err);
}

/* A child that exists already, by its name. */
static int child_by_name(struct node *n, const char *name, enum node_child c, struct error *err)
{
	struct node *child = node_find(n->graph, name);

	if (!child)
		return error_set(err, -ENOENT, "Cannot find device='%s' nor node-name='%s'",
				 name, name);
	if (child->loop != n->loop) {
		node_unref(child);
		return error_set(err, -EXDEV,
				 "Node '%s' is on another thread than the nodes beside it; start with --loops 1",
				 name);
	}
	return node_attach_child(n, child, c, err);
}

int node_open_child(struct node *n, struct json_object *opts, const char *key,
		    enum node_child c, struct error *err)
{
	struct json_object *o = NULL;
	int rc;

	if (!json_object_object_get_ex(opts, key, NULL))
		return -ENOENT;
	rc = opts_value(opts, key, &o, err);
	if (rc)
		return rc;
	if (json_object_is_type(o, json_type_string))
		rc = child_by_name(n, json_object_get_string(o), c, err);
	else if (json_object_is_type(o, json_type_object))
		rc = opts_set_path(o, opts, key) ? -ENOMEM : node_open_child_with(n, o, c, err);
	else
		rc = error_set(err, -EINVAL, "Invalid parameter type for '%s', expected: BlockdevRef", key);
	json_object_put(o);
	return rc;
}
