/* SPDX-License-Identifier: BSD-3-Clause */
/* state-active: which nodes are inactive, so that the next process does not write to
 * storage that was handed to another one.
 *
 * It follows what format/activate.c does with the nodes: a node takes along what is
 * below it; when it goes, those stay that something else still uses.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "nbd-server/state-int.h"

static const char *const child_keys[] = { "file", "image", "backing", "data-file", "target", NULL };

/* A boolean, or a command line's word for one. */
static bool is_set(struct json_object *args, const char *key, bool absent)
{
	struct json_object *v;

	if (!json_object_object_get_ex(args, key, &v))
		return absent;
	if (json_object_is_type(v, json_type_string))
		return !strcmp(json_object_get_string(v), "on");
	return json_object_get_boolean(v);
}

/* Whether a node with ARGS has NAME as a child, or something that it describes has. */
static bool has_child(struct json_object *args, const char *name)
{
	for (const char *const *key = child_keys; *key; key++) {
		struct json_object *v = json_object_object_get(args, *key);

		if (json_object_is_type(v, json_type_string) &&
		    !strcmp(json_object_get_string(v), name))
			return true;
		if (json_object_is_type(v, json_type_object) && has_child(v, name))
			return true;
	}
	return false;
}

/* What is described inside follows the node. */
static void forget_active(struct json_object *args)
{
	json_object_object_del(args, "active");
	for (const char *const *key = child_keys; *key; key++) {
		struct json_object *v = json_object_object_get(args, *key);

		if (json_object_is_type(v, json_type_object))
			forget_active(v);
	}
}

static int put_active(struct json_object *graph, struct json_object *entry, bool active)
{
	struct json_object *args = opts_copy(state_entry_args(entry));
	int rc;

	if (!args)
		return -ENOMEM;
	forget_active(args);
	if (!active)
		json_object_object_add(args, "active", json_object_new_boolean(false));
	rc = state_put(graph, STATE_NODE, state_entry_key(entry), args);
	json_object_put(args);
	return rc;
}

/* An active node above NAME, or an export that needs it active. */
static bool has_active_user(struct json_object *graph, const char *name)
{
	for (size_t i = 0; i < json_object_array_length(graph); i++) {
		struct json_object *e = json_object_array_get_idx(graph, i);
		struct json_object *args = state_entry_args(e);
		const char *exported = json_object_get_string(json_object_object_get(args, "node-name"));

		if (state_entry_is(e, STATE_NODE) && has_child(args, name) &&
		    is_set(args, "active", true))
			return true;
		if (state_entry_is(e, STATE_EXPORT) && exported && !strcmp(exported, name) &&
		    !is_set(args, "allow-inactive", false))
			return true;
	}
	return false;
}

static bool has_parent_in(struct json_object *graph, const bool *in, const char *name)
{
	for (size_t i = 0; i < json_object_array_length(graph); i++) {
		if (in[i] && has_child(state_entry_args(json_object_array_get_idx(graph, i)), name))
			return true;
	}
	return false;
}

int state_set_active(struct json_object *graph, const char *name, bool active)
{
	size_t n = json_object_array_length(graph);
	bool *done = calloc(n + 1, sizeof(*done)), more = true;
	int rc = done ? 0 : -ENOMEM;

	while (!rc && more) {
		more = false;
		for (size_t i = 0; i < n && !rc; i++) {
			struct json_object *e = json_object_array_get_idx(graph, i);
			const char *key = state_entry_key(e);

			if (done[i] || !state_entry_is(e, STATE_NODE))
				continue;
			if (name && strcmp(key, name) &&
			    (!has_parent_in(graph, done, key) ||
			     (!active && has_active_user(graph, key))))
				continue;
			rc = put_active(graph, e, active);
			done[i] = more = true;
		}
	}
	free(done);
	return rc;
}

int state_activate_for(struct json_object *graph, struct json_object *args)
{
	const char *node = json_object_get_string(json_object_object_get(args, "node-name"));

	if (!node || is_set(args, "allow-inactive", false))
		return 0;
	return state_set_active(graph, node, true);
}
