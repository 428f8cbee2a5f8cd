/* SPDX-License-Identifier: BSD-3-Clause */
/* state-active: which nodes are inactive, so that the next process does not write to
 * storage that was handed to another one.
 *
 * A command may take many nodes along, and may have taken some when it fails: what is
 * kept is what the nodes say after it (format/activate.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "format/node.h"
#include "nbd-server/commands.h"
#include "nbd-server/state-int.h"

static const char *const child_keys[] = { "file", "image", "backing", "data-file", "target", NULL };

/* ARGS says what its node is; what it describes inside follows it by itself, or says so. */
static void say(struct json_object *args, bool inherited)
{
	const char *name = json_object_get_string(json_object_object_get(args, "node-name"));
	struct node *n = name ? command_node_find(name) : NULL;
	bool active = n ? !n->inactive : inherited;	/* commands alone change it */

	command_node_unref(n);
	json_object_object_del(args, "active");
	if (active != inherited)
		json_object_object_add(args, "active", json_object_new_boolean(active));
	for (const char *const *key = child_keys; *key; key++) {
		struct json_object *v = json_object_object_get(args, *key);

		if (json_object_is_type(v, json_type_object))
			say(v, active);
	}
}

static bool is_here(const char *name)
{
	struct node *n = command_node_find(name);

	command_node_unref(n);
	return n != NULL;
}

int state_follow_nodes(struct json_object *graph, bool *changed)
{
	int rc = 0;

	*changed = false;
	for (size_t i = 0; i < json_object_array_length(graph) && !rc; i++) {
		struct json_object *e = json_object_array_get_idx(graph, i), *args;

		if (!state_entry_is(e, STATE_NODE) || !is_here(state_entry_key(e)))
			continue;	/* this start went on without it */
		args = opts_copy(state_entry_args(e));
		if (args)
			say(args, true);
		if (!args) {
			rc = -ENOMEM;
		} else if (!json_object_equal(args, state_entry_args(e))) {
			rc = state_put(graph, STATE_NODE, state_entry_key(e), args);
			*changed = true;
		}
		json_object_put(args);
	}
	return rc;
}
