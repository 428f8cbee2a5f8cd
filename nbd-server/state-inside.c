/* SPDX-License-Identifier: BSD-3-Clause */
/* state-inside: nodes that are described inside of another's entry.
 *
 * They are kept where they are described, whatever is said of them later.  One that has a
 * name may outlive the node that it was described in, while others use it: then it has
 * an entry of its own, which goes when the node does.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "format/node.h"
#include "nbd-server/commands.h"
#include "nbd-server/state-int.h"

static const struct {
	const char *key;
	enum node_child child;
} children[] = {
	{ "file", CHILD_FILE }, { "image", CHILD_FILE }, { "backing", CHILD_BACKING },
	{ "data-file", CHILD_DATA_FILE }, { "target", CHILD_TARGET },
};

#define N_CHILDREN (sizeof(children) / sizeof(children[0]))

static const char *name_of(struct json_object *args)
{
	struct json_object *v = json_object_object_get(args, "node-name");

	return json_object_is_type(v, json_type_string) ? json_object_get_string(v) : NULL;
}

static bool has_name(struct json_object *args, const char *name)
{
	return name_of(args) && !strcmp(name_of(args), name);
}

void state_each_inside(struct json_object *args, state_inside_fn fn, void *arg)
{
	for (unsigned i = 0; i < N_CHILDREN; i++) {
		struct json_object *v = json_object_object_get(args, children[i].key);

		if (!json_object_is_type(v, json_type_object))
			continue;
		fn(args, children[i].key, v, arg);
		state_each_inside(v, fn, arg);
	}
}

bool state_names_unnamed(struct json_object *args)
{
	for (unsigned i = 0; i < N_CHILDREN; i++) {
		struct json_object *v = json_object_object_get(args, children[i].key);

		if (json_object_is_type(v, json_type_string) && json_object_get_string(v)[0] == '#')
			return true;
		if (json_object_is_type(v, json_type_object) && state_names_unnamed(v))
			return true;
	}
	return false;
}

/* -- where it is described --------------------------------------------------------- */

struct place {
	const char *name;
	struct json_object *holder;	/* has the description as … */
	const char *key;		/* … this; NULL: not found */
};

static void look(struct json_object *holder, const char *key, struct json_object *args, void *arg)
{
	struct place *p = arg;

	if (p->key || !has_name(args, p->name))
		return;
	p->holder = holder;
	p->key = key;
}

static bool find_in(struct json_object *args, const char *name, struct place *p)
{
	*p = (struct place){ .name = name };
	state_each_inside(args, look, p);
	return p->key != NULL;
}

static int find_entry(struct json_object *graph, const char *name, struct place *p)
{
	for (size_t i = 0; i < json_object_array_length(graph); i++) {
		struct json_object *e = json_object_array_get_idx(graph, i);

		if (state_entry_is(e, STATE_NODE) && find_in(state_entry_args(e), name, p))
			return (int)i;
	}
	return -1;
}

struct json_object *state_description(struct json_object *graph, const char *name)
{
	int at = state_find(graph, STATE_NODE, name);
	struct place p;

	if (at >= 0)
		return state_entry_args(json_object_array_get_idx(graph, (size_t)at));
	return find_entry(graph, name, &p) < 0 ? NULL : json_object_object_get(p.holder, p.key);
}

/* A copy of the entry: the graph before has the same one. */
static int put_inside(struct json_object *graph, const char *name, struct json_object *now)
{
	struct place p;
	int at = find_entry(graph, name, &p), rc = -ENOMEM;
	struct json_object *e = json_object_array_get_idx(graph, (size_t)at);
	struct json_object *args = opts_copy(state_entry_args(e));

	if (args && find_in(args, name, &p) &&
	    !json_object_object_add(p.holder, p.key, json_object_get(now)))
		rc = state_put(graph, STATE_NODE, state_entry_key(e), args);
	json_object_put(args);
	return rc;
}

int state_describe(struct json_object *graph, const char *name, struct json_object *now)
{
	if (state_find(graph, STATE_NODE, name) >= 0)
		return state_put(graph, STATE_NODE, name, now);
	return put_inside(graph, name, now);
}

/* -- reopened ---------------------------------------------------------------------- */

static void say(struct json_object *o, const char *key, bool value)
{
	if (!json_object_object_get_ex(o, key, NULL))
		json_object_object_add(o, key, json_object_new_boolean(value));
}

void state_say_inherited(struct json_object *args, const struct node *n)
{
	struct json_object *cache;

	say(args, "read-only", n->read_only && !n->wants_write);
	say(args, "auto-read-only", n->auto_read_only);
	say(args, "force-share", n->force_share);
	if (!json_object_object_get_ex(args, "discard", NULL))
		json_object_object_add(args, "discard",
				       json_object_new_string(n->discard_unmap ? "unmap" : "ignore"));
	if (!json_object_object_get_ex(args, "cache", &cache)) {
		cache = json_object_new_object();
		json_object_object_add(args, "cache", cache);
	}
	if (!json_object_is_type(cache, json_type_object))
		return;
	say(cache, "direct", n->cache_direct);
	say(cache, "no-flush", n->cache_no_flush);
}

/* The child that NAME has as KEY now; NULL: none.  It stays: commands run one at a time. */
static const struct node *child_of(const char *name, const char *key)
{
	struct node *n = name ? command_node_find(name) : NULL;
	const struct node *child = NULL;

	for (unsigned i = 0; n && i < N_CHILDREN; i++) {
		if (!strcmp(children[i].key, key))
			child = n->child[children[i].child];
	}
	command_node_unref(n);
	return child;
}

/* It stays as it is, and does not inherit the parent's new options. */
static int describe_again(struct json_object *o, const char *key, struct json_object *then,
			  const struct node *n)
{
	struct json_object *description = opts_copy(then);

	if (description)
		state_say_inherited(description, n);
	return description ? json_object_object_add(o, key, description) : -ENOMEM;
}

struct json_object *state_with_descriptions(struct json_object *o, struct json_object *before)
{
	struct json_object *copy = opts_copy(o);
	int rc = copy ? 0 : -ENOMEM;

	for (unsigned i = 0; i < N_CHILDREN && !rc; i++) {
		const char *key = children[i].key;
		struct json_object *name = json_object_object_get(o, key);
		struct json_object *then = json_object_object_get(before, key);
		const struct node *n = child_of(name_of(o), key);

		if (n && json_object_is_type(name, json_type_string) &&
		    json_object_is_type(then, json_type_object) &&
		    !strcmp(json_object_get_string(name), n->name))
			rc = describe_again(copy, key, then, n);
	}
	if (rc) {
		json_object_put(copy);
		copy = NULL;
	}
	return copy;
}

/* -- outliving ---------------------------------------------------------------------- */

struct keeping {
	struct json_object *graph;
	bool changed;
	int rc;
};

static int keep(struct json_object *graph, struct node *n, struct json_object *args)
{
	struct json_object *copy = opts_copy(args), *name = json_object_new_string(n->name);
	int rc = copy && name ? 0 : -ENOMEM;

	if (!rc) {
		state_say_inherited(copy, n);
		rc = state_put(graph, STATE_NODE, n->name, copy);
	}
	if (!rc)
		rc = json_object_array_add(the_state.outliving, name) ? -ENOMEM : 0;
	if (rc)
		json_object_put(name);
	json_object_put(copy);
	return rc;
}

static void keep_one(struct json_object *holder, const char *key, struct json_object *args, void *arg)
{
	struct keeping *k = arg;
	const char *name = name_of(args);
	struct node *n;

	if (k->rc || !name || state_description(k->graph, name))
		return;
	n = command_node_find(name);
	if (n) {
		k->rc = keep(k->graph, n, args);
		k->changed = true;
	}
	command_node_unref(n);
}

int state_keep_outliving(struct json_object *graph, struct json_object *lost, bool *changed)
{
	struct keeping k = { .graph = graph };

	if (!the_state.outliving)
		the_state.outliving = json_object_new_array();
	for (size_t i = 0; i < json_object_array_length(lost); i++)
		state_each_inside(json_object_array_get_idx(lost, i), keep_one, &k);
	*changed |= k.changed;
	return k.rc;
}

void state_forget_gone(struct json_object *graph, bool *changed)
{
	struct json_object *names = the_state.outliving;

	for (size_t i = names ? json_object_array_length(names) : 0; i-- > 0;) {
		const char *name = json_object_get_string(json_object_array_get_idx(names, i));
		struct node *n = command_node_find(name);
		int at = state_find(graph, STATE_NODE, name);

		command_node_unref(n);
		if (n)
			continue;
		if (at >= 0)
			json_object_array_del_idx(graph, (size_t)at, 1);
		*changed |= at >= 0;
		json_object_array_del_idx(names, i, 1);
	}
}
