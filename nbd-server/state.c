/* SPDX-License-Identifier: BSD-3-Clause */
/* state: which commands change what is kept, and the two lists in memory. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "common/log.h"
#include "common/options.h"
#include "format/node.h"
#include "nbd-server/state-int.h"

struct state the_state = { .dir_fd = -1, .lock_fd = -1 };

enum effect {
	ADD,
	REPLACE,			/* "options" is a list of what ADD would be given */
	REMOVE,
	CLEAR,				/* all listeners, all exports */
	ACTIVE,				/* blockdev-set-active */
	MOVE,				/* qom-set of an export's drive: another node */
	EXCHANGE,			/* blockdev-replace: the same, or a child of a node */
};

/* Every command that changes what is kept.  Not kept: jobs, bitmaps that are not
 * in an image, which descriptors were passed, what a client asked to see. */
static const struct recorded {
	const char *command;
	enum effect effect;
	enum state_kind kind;
} recorded[] = {
	{ "object-add", ADD, STATE_OBJECT },
	{ "object-del", REMOVE, STATE_OBJECT },
	{ "blockdev-add", ADD, STATE_NODE },
	{ "blockdev-reopen", REPLACE, STATE_NODE },
	{ "blockdev-del", REMOVE, STATE_NODE },
	{ "blockdev-set-active", ACTIVE, STATE_NODE },
	{ "nbd-server-start", ADD, STATE_SERVER },
	{ "nbd-server-stop", CLEAR, STATE_SERVER },
	{ "block-export-add", ADD, STATE_EXPORT },
	{ "block-export-del", REMOVE, STATE_EXPORT },
	{ "qom-set", MOVE, STATE_EXPORT },
	{ "blockdev-replace", EXCHANGE, STATE_EXPORT },
};

#define N_RECORDED (sizeof(recorded) / sizeof(recorded[0]))

/* The member that things of a kind are known by. */
static const struct {
	const char *name, *command, *key;
} kinds[STATE_KINDS] = {
	[STATE_OBJECT] = { "object", "object-add", "id" },
	[STATE_NODE] = { "blockdev", "blockdev-add", "node-name" },
	[STATE_SERVER] = { "nbd-server", "nbd-server-start", NULL },
	[STATE_EXPORT] = { "export", "block-export-add", "id" },
};

const char *state_kind_name(enum state_kind kind)
{
	return kinds[kind].name;
}

const char *state_kind_command(enum state_kind kind)
{
	return kinds[kind].command;
}

enum state_kind state_kind_of(const char *command)
{
	for (unsigned i = 0; i < N_RECORDED; i++) {
		if (!strcmp(recorded[i].command, command) && recorded[i].effect == ADD)
			return recorded[i].kind;
	}
	return STATE_KINDS;
}

bool state_is_on(void)
{
	return the_state.dir_fd >= 0;
}

bool state_is_replaying(void)
{
	return the_state.replaying;
}

/* -- entries ------------------------------------------------------------------- */

static const char *string_in(struct json_object *o, const char *key)
{
	struct json_object *v = json_object_object_get(o, key);

	return json_object_is_type(v, json_type_string) ? json_object_get_string(v) : NULL;
}

/* A listener is known by its address, nested as QMP has it or flat. */
static char *server_key(struct json_object *args)
{
	struct json_object *addr = json_object_object_get(args, "addr");
	struct json_object *data = json_object_object_get(addr, "data");
	const char *type = string_in(addr, "type");
	const char *parts[5];
	char *key = NULL;

	if (!json_object_is_type(data, json_type_object))
		data = addr;
	for (unsigned i = 0; i < 5; i++) {
		static const char *const members[] = { "path", "host", "port", "cid", "str" };

		parts[i] = string_in(data, members[i]);
	}
	if (!type || asprintf(&key, "%s:%s:%s:%s:%s:%s", type, parts[0] ? parts[0] : "",
			      parts[1] ? parts[1] : "", parts[2] ? parts[2] : "",
			      parts[3] ? parts[3] : "", parts[4] ? parts[4] : "") < 0)
		return NULL;
	return key;
}

char *state_key(enum state_kind kind, struct json_object *args)
{
	const char *key;

	if (kind == STATE_SERVER)
		return server_key(args);
	key = string_in(args, kinds[kind].key);
	return key ? strdup(key) : NULL;
}

struct json_object *state_entry_args(struct json_object *entry)
{
	return json_object_object_get(entry, "args");
}

const char *state_entry_key(struct json_object *entry)
{
	return string_in(entry, "key");
}

bool state_entry_is(struct json_object *entry, enum state_kind kind)
{
	return !strcmp(string_in(entry, "kind"), kinds[kind].name);
}

int state_find(struct json_object *list, enum state_kind kind, const char *key)
{
	size_t n = json_object_array_length(list);

	for (size_t i = 0; i < n; i++) {
		struct json_object *e = json_object_array_get_idx(list, i);

		if (state_entry_is(e, kind) && !strcmp(state_entry_key(e), key))
			return (int)i;
	}
	return -1;
}

int state_put(struct json_object *list, enum state_kind kind, const char *key,
	      struct json_object *args)
{
	struct json_object *entry = json_object_new_object(), *copy = opts_copy(args);
	int at = state_find(list, kind, key);

	if (!entry || !copy) {
		json_object_put(entry);
		json_object_put(copy);
		return -ENOMEM;
	}
	json_object_object_add(entry, "kind", json_object_new_string(kinds[kind].name));
	json_object_object_add(entry, "key", json_object_new_string(key));
	json_object_object_add(entry, "args", copy);
	if (at >= 0)
		json_object_array_put_idx(list, (size_t)at, entry);
	else
		json_object_array_add(list, entry);
	return 0;
}

/* -- what cannot be kept --------------------------------------------------------- */

/* An address {"type":"fd","str":…}: nbd's server. */
static bool is_fd_address(struct json_object *o)
{
	const char *type = string_in(o, "type");

	return type && !strcmp(type, "fd") && string_in(o, "str");
}

static bool has_passed_descriptor(struct json_object *o)
{
	if (json_object_is_type(o, json_type_string))
		return !strncmp(json_object_get_string(o), "/dev/fdset/", 11);
	if (json_object_is_type(o, json_type_array)) {
		for (size_t i = 0; i < json_object_array_length(o); i++) {
			if (has_passed_descriptor(json_object_array_get_idx(o, i)))
				return true;
		}
	}
	if (!json_object_is_type(o, json_type_object))
		return false;
	if (is_fd_address(o))
		return true;
	json_object_object_foreach(o, key, value) {
		(void)key;
		if (has_passed_descriptor(value))
			return true;
	}
	return false;
}

/* A name of our making, "#block000", is another node's in the next process. */
static const char unnamed[] = "a node that has no name";

const char *state_unkeepable(enum state_kind kind, struct json_object *args)
{
	const char *type, *node;

	switch (kind) {
	case STATE_OBJECT:
		type = string_in(args, "qom-type");
		return type && !strncmp(type, "secret", 6) ? "a secret" : NULL;
	case STATE_SERVER:
		type = string_in(json_object_object_get(args, "addr"), "type");
		return type && !strcmp(type, "fd") ? "a passed descriptor" : NULL;
	case STATE_NODE:
		/* The fd-passing forms of file, and of nbd's server. */
		if (has_passed_descriptor(args))
			return "a passed descriptor";
		return state_names_unnamed(args) ? unnamed : NULL;
	case STATE_EXPORT:
		node = string_in(args, "node-name");
		return node && node[0] == '#' ? unnamed : NULL;
	default:
		return NULL;
	}
}

/* -- changes ------------------------------------------------------------------- */

static struct json_object *list_copy(struct json_object *list)
{
	struct json_object *copy = json_object_new_array();

	for (size_t i = 0; copy && i < json_object_array_length(list); i++)
		json_object_array_add(copy, json_object_get(json_object_array_get_idx(list, i)));
	return copy;
}

static int change_add(struct json_object *graph, enum state_kind kind, struct json_object *args,
		      struct error *err)
{
	const char *what = state_unkeepable(kind, args);
	char *key = state_key(kind, args);
	int rc = 0;

	if (what)
		rc = error_set(err, -ENOTSUP, "%s '%s' is made of %s, which --state cannot keep; give it %s",
			       kinds[kind].name, key ? key : "", what,
			       what == unnamed ? "a node-name" : "in the configuration");
	else if (key && state_put(graph, kind, key, args))
		rc = error_set(err, -ENOMEM, "Out of memory");
	free(key);
	return rc;		/* without a key the command will be refused */
}

/* The graph will not have it any more, or otherwise. */
static int lose(struct state_change *c, struct json_object *description)
{
	if (!c->lost)
		c->lost = json_object_new_array();
	return c->lost && !json_object_array_add(c->lost, json_object_get(description)) ? 0 : -ENOMEM;
}

/* The node, which has an entry or is described inside of one, is described otherwise. */
static int change_description(struct state_change *c, const char *name, struct json_object *now,
			      struct error *err)
{
	const char *what = state_unkeepable(STATE_NODE, now);
	struct json_object *then = state_description(c->next, name);

	if (what)
		return change_add(c->next, STATE_NODE, now, err);	/* says why not */
	if (lose(c, then) || state_describe(c->next, name, now))
		return error_set(err, -ENOMEM, "Out of memory");
	return 0;
}

static int replace_one(struct state_change *c, struct json_object *o, struct error *err)
{
	static const struct node plain;		/* what is left out is the default again */
	const char *key = string_in(o, "node-name");
	struct json_object *then = key ? state_description(c->next, key) : NULL, *now;
	int rc;

	if (!then)
		return 0;
	now = state_with_descriptions(o, then);
	if (!now)
		return error_set(err, -ENOMEM, "Out of memory");
	if (state_find(c->next, STATE_NODE, key) < 0)
		state_say_inherited(now, &plain);
	rc = change_description(c, key, now, err);
	json_object_put(now);
	return rc;
}

static int change_replace(struct state_change *c, struct json_object *args, struct error *err)
{
	struct json_object *list = json_object_object_get(args, "options");
	int rc = 0;

	for (size_t i = 0; list && i < json_object_array_length(list) && !rc; i++)
		rc = replace_one(c, json_object_array_get_idx(list, i), err);
	return rc;
}

/* An iothread goes before the exports that it was asked for; the next process serves
 * their disks on another thread. */
static int forget_iothread(struct json_object *graph, const char *id)
{
	int rc = 0;

	for (size_t i = 0; i < json_object_array_length(graph) && !rc; i++) {
		struct json_object *e = json_object_array_get_idx(graph, i), *args;
		const char *of = string_in(state_entry_args(e), "iothread");

		if (!state_entry_is(e, STATE_EXPORT) || !of || strcmp(of, id))
			continue;
		args = opts_copy(state_entry_args(e));
		if (args) {
			json_object_object_del(args, "iothread");
			json_object_object_del(args, "fixed-iothread");
		}
		rc = args ? state_put(graph, STATE_EXPORT, state_entry_key(e), args) : -ENOMEM;
		json_object_put(args);
	}
	return rc;
}

static int change_remove(struct json_object *graph, enum state_kind kind, struct json_object *args,
			 struct state_change *c, struct error *err)
{
	const char *key = string_in(args, kinds[kind].key);
	int at = key ? state_find(graph, kind, key) : -1;

	if (at < 0)
		return 0;
	if (kind == STATE_OBJECT && forget_iothread(graph, key))
		return error_set(err, -ENOMEM, "Out of memory");
	if (kind == STATE_NODE && lose(c, state_entry_args(json_object_array_get_idx(graph, (size_t)at))))
		return error_set(err, -ENOMEM, "Out of memory");
	c->forgets_missing = json_object_object_get_ex(json_object_array_get_idx(graph, (size_t)at),
						       "missing", NULL);
	json_object_array_del_idx(graph, (size_t)at, 1);
	return 0;
}

static void change_clear(struct json_object *graph)
{
	for (size_t i = json_object_array_length(graph); i-- > 0; ) {
		struct json_object *e = json_object_array_get_idx(graph, i);

		if (state_entry_is(e, STATE_SERVER) || state_entry_is(e, STATE_EXPORT))
			json_object_array_del_idx(graph, i, 1);
	}
}

/* The id in /machine/peripheral/ID/virtio-backend; malloc'd, NULL: another path. */
static char *export_of_path(const char *path)
{
	static const char prefix[] = "/machine/peripheral/";

	if (!path || strncmp(path, prefix, sizeof(prefix) - 1))
		return NULL;
	path += sizeof(prefix) - 1;
	return strndup(path, strcspn(path, "/"));
}

/* Clients go on to know it by the same name. */
static int export_has_node(struct json_object *graph, const char *id, const char *node, struct error *err)
{
	int at = id ? state_find(graph, STATE_EXPORT, id) : -1, rc = 0;
	struct json_object *now;

	if (at < 0 || !node)
		return 0;
	now = opts_copy(state_entry_args(json_object_array_get_idx(graph, (size_t)at)));
	if (now && !string_in(now, "name"))
		json_object_object_add(now, "name", json_object_new_string(string_in(now, "node-name")));
	if (now)
		json_object_object_add(now, "node-name", json_object_new_string(node));
	rc = now ? change_add(graph, STATE_EXPORT, now, err) : error_set(err, -ENOMEM, "Out of memory");
	json_object_put(now);
	return rc;
}

static int change_move(struct json_object *graph, struct json_object *args, struct error *err)
{
	char *id = export_of_path(string_in(args, "path"));
	int rc = export_has_node(graph, id, string_in(args, "value"), err);

	free(id);
	return rc;
}

static int node_has_child(struct state_change *c, const char *node, const char *key, const char *child,
			  struct error *err)
{
	struct json_object *then = node ? state_description(c->next, node) : NULL, *now;
	int rc;

	if (!then || !key || !child)
		return 0;
	now = opts_copy(then);
	if (now)
		json_object_object_add(now, key, json_object_new_string(child));
	rc = now ? change_description(c, node, now, err) : error_set(err, -ENOMEM, "Out of memory");
	json_object_put(now);
	return rc;
}

static int change_exchange(struct state_change *c, struct json_object *args, struct error *err)
{
	const char *qdev = string_in(args, "qdev-id"), *id = string_in(args, "export-id");
	const char *with = string_in(args, "new-child");
	char *of_path = qdev && qdev[0] == '/' ? export_of_path(qdev) : NULL;
	int rc;

	if (string_in(args, "node-name"))
		rc = node_has_child(c, string_in(args, "node-name"), string_in(args, "child"), with, err);
	else
		rc = export_has_node(c->next, of_path ? of_path : qdev ? qdev : id, with, err);
	free(of_path);
	return rc;
}

static int change(const struct recorded *r, struct json_object *args, struct state_change *c,
		  struct error *err)
{
	switch (r->effect) {
	case ADD:
		return change_add(c->next, r->kind, args, err);
	case REPLACE:
		return change_replace(c, args, err);
	case ACTIVE:
		return 0;		/* known when it has run */
	case REMOVE:
		return change_remove(c->next, r->kind, args, c, err);
	case CLEAR:
		change_clear(c->next);
		return 0;
	case MOVE:
		return change_move(c->next, args, err);
	case EXCHANGE:
		return change_exchange(c, args, err);
	}
	return 0;
}

int state_prepare(const char *command, struct json_object *args, struct state_change *c,
		  struct error *err)
{
	const struct recorded *r = recorded;
	int rc;

	*c = (struct state_change){ 0 };
	while (r < recorded + N_RECORDED && strcmp(r->command, command))
		r++;
	if (r == recorded + N_RECORDED || !state_is_on() || the_state.starting)
		return 0;
	c->next = list_copy(the_state.graph);
	if (!c->next)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = change(r, args, c, err);
	if (!rc)
		rc = state_file_write(&the_state, c->next, err);
	if (rc) {
		json_object_put(c->lost);
		json_object_put(c->next);
		c->lost = c->next = NULL;
	}
	c->activates = r->effect == ACTIVE || r->kind == STATE_EXPORT;
	return rc;
}

/* A command that failed may have left nodes active; none of the rest has happened. */
static void undo(struct state_change *c)
{
	struct error err = ERROR_INIT;
	bool changed = false;
	int rc = 0;

	json_object_put(c->next);
	c->next = NULL;
	if (c->activates)
		rc = state_follow_nodes(the_state.graph, &changed);
	if (!rc && changed)
		rc = state_file_write(&the_state, the_state.graph, &err);
	if (!rc && changed)
		rc = state_file_commit(&the_state, &err);
	else
		state_file_drop(&the_state);
	if (rc)
		log_error("state not written: %s", err.code ? err.text : "Out of memory");
}

static int commit(struct state_change *c, struct error *err)
{
	bool changed = false, followed = false;
	int rc = 0;

	if (c->lost)
		rc = state_keep_outliving(c->next, c->lost, &changed);
	state_forget_gone(c->next, &changed);
	if (!rc && (c->activates || changed))
		rc = state_follow_nodes(c->next, &followed);
	changed |= followed;
	if (rc)
		error_set(err, rc, "Out of memory");
	if (!rc && changed)
		rc = state_file_write(&the_state, c->next, err);
	json_object_put(the_state.graph);
	the_state.graph = c->next;
	return rc ? rc : state_file_commit(&the_state, err);
}

int state_finish(struct state_change *c, int rc, struct error *err)
{
	if (!c->next)
		return rc;
	if (rc == -ENOENT && c->forgets_missing) {
		rc = 0;
		*err = (struct error)ERROR_INIT;
	}
	if (rc) {
		undo(c);
	} else {
		rc = commit(c, err);
		if (rc)
			error_prefix(err, "done, but it will not outlive this process: ");
	}
	json_object_put(c->lost);
	c->lost = NULL;
	return rc;
}

/* -- beginning and end ------------------------------------------------------------ */

int state_open(const struct state_options *o, struct error *err)
{
	the_state.o = *o;
	if (!o->dir)
		return 0;
	the_state.starting = true;
	return state_file_open(&the_state, err);
}

int state_started(struct error *err)
{
	bool changed;
	int rc;

	if (!state_is_on())
		return 0;
	rc = state_follow_nodes(the_state.graph, &changed);	/* exports activate theirs */
	if (rc)
		return error_set(err, rc, "Out of memory");
	rc = state_file_write(&the_state, the_state.graph, err);
	if (!rc)
		rc = state_file_commit(&the_state, err);
	the_state.starting = false;
	return rc;
}

void state_close(void)
{
	json_object_put(the_state.graph);
	json_object_put(the_state.config);
	json_object_put(the_state.outliving);
	the_state.outliving = the_state.graph = the_state.config = NULL;
	state_file_close(&the_state);
}
