/* SPDX-License-Identifier: BSD-3-Clause */
/* state-replay: a start with --state.
 *
 * A first start runs the options in their order, and notes them.  A later one first
 * compares them with what was noted, and refuses before anything is made; then it
 * goes by kind, since things refer to kinds before theirs only: objects, nodes,
 * listeners, exports.  Of each kind it makes what is never kept (secrets, passed
 * descriptors: the options have them), then the graph, then what options have anew.
 * Of what no command makes, --add-fd comes first, monitors come last.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/options.h"
#include "nbd-server/cmdline-int.h"
#include "nbd-server/commands.h"
#include "nbd-server/qmp.h"
#include "nbd-server/state-int.h"

enum item {
	ITEM_FIRST,			/* not of a kind that is kept; others may need it */
	ITEM_LAST,			/* … it may need others: monitors */
	ITEM_UNKEPT,			/* made at every start */
	ITEM_KNOWN,			/* the graph says what became of it */
	ITEM_NEW,
};

/* A setting as the state sees it. */
struct entry {
	const struct setting *setting;
	struct json_object *object;
	enum state_kind kind;
	enum item item;
	char *key;
};

static enum state_kind setting_kind(const struct setting *s)
{
	for (unsigned kind = 0; kind < STATE_KINDS; kind++) {
		if (!strcmp(s->def->name, state_kind_name(kind)))
			return kind;
	}
	return STATE_KINDS;
}

/* -- comparing ----------------------------------------------------------------- */

static int refuse(const struct entry *e, const char *how, struct error *err)
{
	error_set(err, -EEXIST, "--%s %s: %s", e->setting->def->name, e->key, how);
	error_hint(err, "--state-reset forgets the state and begins with what the configuration says");
	return -EEXIST;
}

static int classify(struct entry *e, struct error *err)
{
	int at;

	e->object = cmdline_object(e->setting, err);
	if (!e->object)
		return err->code;
	e->kind = setting_kind(e->setting);
	if (!strcmp(e->setting->def->name, "chardev") || !strcmp(e->setting->def->name, "monitor"))
		e->item = ITEM_LAST;
	if (e->kind == STATE_KINDS)
		return 0;
	e->item = ITEM_UNKEPT;
	if (state_unkeepable(e->kind, e->object))
		return 0;
	e->key = state_key(e->kind, e->object);
	if (!e->key)
		return 0;		/* running it says what is wrong with it */
	e->item = ITEM_NEW;
	at = state_find(the_state.config, e->kind, e->key);
	if (at >= 0) {
		struct json_object *then = json_object_array_get_idx(the_state.config, (size_t)at);

		e->item = ITEM_KNOWN;
		if (!json_object_equal(state_entry_args(then), e->object))
			return refuse(e, "it was changed since the state was recorded", err);
	} else if (state_find(the_state.graph, e->kind, e->key) >= 0) {
		return refuse(e, "the state has one of this name, made by a command", err);
	}
	return 0;
}

static bool is_given(const struct entry *v, unsigned n, enum state_kind kind, const char *key)
{
	for (unsigned i = 0; i < n; i++) {
		if (v[i].kind == kind && v[i].key && !strcmp(v[i].key, key))
			return true;
	}
	return false;
}

/* What options do not say any more is forgotten when the graph has lost it, too;
 * else somebody has to decide. */
static int check_withdrawn(const struct entry *v, unsigned n, struct error *err)
{
	struct json_object *config = the_state.config;

	for (size_t i = json_object_array_length(config); i-- > 0; ) {
		struct json_object *e = json_object_array_get_idx(config, i);
		enum state_kind kind = 0;
		const char *key = state_entry_key(e);

		while (!state_entry_is(e, kind))
			kind++;
		if (is_given(v, n, kind, key))
			continue;
		if (state_find(the_state.graph, kind, key) >= 0) {
			error_set(err, -EEXIST, "--%s %s: the configuration does not have it any more, "
				  "the state does", state_kind_name(kind), key);
			error_hint(err, "--state-reset forgets the state; or remove it by command first");
			return -EEXIST;
		}
		json_object_array_del_idx(config, i, 1);
	}
	return 0;
}

/* -- making -------------------------------------------------------------------- */

static int run_entry(struct cmdline *c, const struct entry *e, struct error *err)
{
	int rc = cmdline_run_setting(c, e->setting, err);

	if (!rc && e->item == ITEM_NEW &&
	    (state_put(the_state.graph, e->kind, e->key, e->object) ||
	     state_put(the_state.config, e->kind, e->key, e->object)))
		rc = error_set(err, -ENOMEM, "Out of memory");
	return rc;
}

static int run_entries(struct cmdline *c, const struct entry *v, unsigned n, enum state_kind kind,
		       enum item item, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < n && !rc; i++) {
		if (v[i].kind == kind && v[i].item == item)
			rc = run_entry(c, &v[i], err);
	}
	return rc;
}

static int make(struct json_object *entry, enum state_kind kind, struct error *err)
{
	struct json_object *args = opts_copy(state_entry_args(entry));
	int rc;

	if (!args)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = kind == STATE_SERVER ? nbd_server_start_keyval(args, err)
				  : qmp_run_keyval(state_kind_command(kind), args, err);
	json_object_put(args);
	return rc;
}

struct names {
	struct json_object *entry_of;	/* node name: the index of the entry that describes it */
	size_t i;			/* the one that is being looked at */
};

static void note_name(struct json_object *holder, const char *key, struct json_object *args, void *arg)
{
	struct names *n = arg;
	const char *name = json_object_get_string(json_object_object_get(args, "node-name"));

	if (name)
		json_object_object_add(n->entry_of, name, json_object_new_int64((int64_t)n->i));
}

static struct json_object *note_names(struct json_object *list)
{
	struct names n = { .entry_of = json_object_new_object() };

	for (; n.i < json_object_array_length(list); n.i++) {
		struct json_object *e = json_object_array_get_idx(list, n.i);

		if (!state_entry_is(e, STATE_NODE))
			continue;
		note_name(NULL, NULL, state_entry_args(e), &n);
		state_each_inside(state_entry_args(e), note_name, &n);
	}
	return n.entry_of;
}

/* Whether a string in O is the name of a node that an entry which is not DONE describes,
 * other than the one at SELF. */
static bool refers(struct json_object *o, struct json_object *entry_of, const bool *done, size_t self)
{
	struct json_object *at;

	if (json_object_is_type(o, json_type_string))
		return json_object_object_get_ex(entry_of, json_object_get_string(o), &at) &&
		       (size_t)json_object_get_int64(at) != self && !done[json_object_get_int64(at)];
	for (size_t i = 0; json_object_is_type(o, json_type_array) && i < json_object_array_length(o);
	     i++) {
		if (refers(json_object_array_get_idx(o, i), entry_of, done, self))
			return true;
	}
	if (!json_object_is_type(o, json_type_object))
		return false;
	json_object_object_foreach(o, key, value) {
		(void)key;
		if (refers(value, entry_of, done, self))
			return true;
	}
	return false;
}

/* The next one to make: what it refers to comes first, whatever the order in which
 * they were made (a reopened node may refer to a younger one). */
static size_t next_entry(struct json_object *list, enum state_kind kind, struct json_object *entry_of,
			 const bool *done)
{
	size_t n = json_object_array_length(list), first = n;

	for (size_t i = 0; i < n; i++) {
		struct json_object *e = json_object_array_get_idx(list, i);

		if (done[i] || !state_entry_is(e, kind))
			continue;
		if (kind != STATE_NODE || !refers(state_entry_args(e), entry_of, done, i))
			return i;
		if (first == n)
			first = i;	/* they refer to each other: the error will tell */
	}
	return first;
}

static int replay_one(struct json_object *entry, enum state_kind kind, struct error *err)
{
	int rc = make(entry, kind, err);

	if (!rc)
		return 0;
	error_prefix(err, "%s '%s' of the state cannot be made again: ", state_kind_name(kind),
		     state_entry_key(entry));
	if (!the_state.o.skip) {
		error_hint(err, "--state-skip starts without it, --state-reset forgets the state");
		return rc;
	}
	log_error("%s", err->text);
	*err = (struct error)ERROR_INIT;
	json_object_object_add(entry, "missing", json_object_new_boolean(true));
	return 0;
}

static int replay(enum state_kind kind, struct error *err)
{
	struct json_object *list = json_object_get(the_state.graph), *entry_of = note_names(list);
	size_t n = json_object_array_length(list), i;
	bool *done = calloc(n + 1, sizeof(*done));
	int rc = done ? 0 : error_set(err, -ENOMEM, "Out of memory");

	the_state.replaying = true;
	while (!rc && (i = next_entry(list, kind, entry_of, done)) < n) {
		rc = replay_one(json_object_array_get_idx(list, i), kind, err);
		done[i] = true;
	}
	the_state.replaying = false;
	free(done);
	json_object_put(entry_of);
	json_object_put(list);
	return rc;
}

static int run_all(struct cmdline *c, const struct entry *v, unsigned n, struct error *err)
{
	bool first = !json_object_array_length(the_state.graph) &&
		     !json_object_array_length(the_state.config);
	int rc = 0;

	for (unsigned i = 0; i < n && !rc && first; i++)
		rc = run_entry(c, &v[i], err);
	if (first)
		return rc;
	rc = run_entries(c, v, n, STATE_KINDS, ITEM_FIRST, err);
	for (unsigned kind = 0; kind < STATE_KINDS && !rc; kind++) {
		rc = run_entries(c, v, n, kind, ITEM_UNKEPT, err);
		if (!rc)
			rc = replay(kind, err);
		if (!rc)
			rc = run_entries(c, v, n, kind, ITEM_NEW, err);
	}
	return rc ? rc : run_entries(c, v, n, STATE_KINDS, ITEM_LAST, err);
}

int state_start(struct cmdline *c, struct error *err)
{
	unsigned n = c->n_settings;
	struct entry *v = calloc(n + 1, sizeof(*v));
	int rc = v ? 0 : error_set(err, -ENOMEM, "Out of memory");

	for (unsigned i = 0; i < n && !rc; i++) {
		v[i].setting = &c->settings[i];
		v[i].kind = STATE_KINDS;
		rc = classify(&v[i], err);
	}
	if (!rc)
		rc = check_withdrawn(v, n, err);
	if (!rc)
		rc = run_all(c, v, n, err);
	for (unsigned i = 0; v && i < n; i++) {
		json_object_put(v[i].object);
		free(v[i].key);
	}
	free(v);
	return rc;
}
