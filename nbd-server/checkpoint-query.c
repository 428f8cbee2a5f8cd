/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoint-query: what people see of checkpoints.
 *
 * Each node that has some says what it knows, on its loop: one row for each.  Rows of the
 * same group are the disks of one checkpoint.
 */
#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backup/view-node.h"
#include "backup/view.h"
#include "nbd-server/checkpoints-int.h"
#include "nbd-server/commands.h"
#include "nbd-server/export.h"
#include "nbd-server/listener.h"

struct row {
	struct label label;
	struct json_object *disk;
	bool taken;
};

struct rows {
	struct row *v;
	unsigned n, max;
};

static void add_str(struct json_object *o, const char *key, const char *value)
{
	json_object_object_add(o, key, json_object_new_string(value));
}

static void add_u64(struct json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_uint64(value));
}

static void add_bool(struct json_object *o, const char *key, bool value)
{
	json_object_object_add(o, key, json_object_new_boolean(value));
}

static void add_time(struct json_object *o, uint64_t us)
{
	time_t seconds = (time_t)(us / 1000000);
	char date[64], buf[96];
	struct tm tm;

	/* What a stranger's image says may be no date. */
	if (us / 1000000 > INT64_MAX || !gmtime_r(&seconds, &tm) ||
	    !strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm))
		snprintf(date, sizeof(date), "%" PRIu64, us / 1000000);
	snprintf(buf, sizeof(buf), "%s.%06uZ", date, (unsigned)(us % 1000000));
	add_str(o, "time", buf);
}

/* -- what a node knows ----------------------------------------------------------------- */

static struct row *new_row(struct rows *r)
{
	if (r->n == r->max) {
		unsigned max = r->max ? 2 * r->max : 16;
		struct row *v = reallocarray(r->v, max, sizeof(*v));

		if (!v)
			return NULL;
		r->v = v;
		r->max = max;
	}
	r->v[r->n] = (struct row){ 0 };
	return &r->v[r->n++];
}

static const char *parent_of(const struct epochs *e, unsigned i)
{
	while (i-- > 0) {
		if (e->v[i].label.state != CHECKPOINT_PENDING)
			return e->v[i].label.name;
	}
	return NULL;
}

static struct json_object *describe(const struct node *n, const struct epochs *e, unsigned i,
				    uint64_t changed)
{
	const struct epoch *x = &e->v[i];
	struct json_object *o = json_object_new_object();
	struct error why = ERROR_INIT;
	bool counts = x->label.state != CHECKPOINT_PENDING;
	bool usable = counts && epochs_cover(e, (int)i, &why);

	add_str(o, "node-name", n->name);
	if (parent_of(e, i))
		add_str(o, "parent", parent_of(e, i));
	add_bool(o, "persistent", x->bitmap->persistent);
	if (counts) {
		add_bool(o, "usable", usable);
		add_u64(o, "changed", changed);
	}
	if (why.code)
		add_str(o, "reason", why.text);
	return o;
}

static int rows_of_node(struct node *n, void *arg, struct error *err)
{
	struct rows *r = arg;
	struct epochs e;
	uint64_t *changed;
	int rc = epochs_list(n, &e, err);

	if (rc)
		return rc;
	changed = calloc(e.n + 1, sizeof(*changed));
	rc = changed ? epochs_changed(&e, changed) : -ENOMEM;
	for (unsigned i = 0; i < e.n && !rc; i++) {
		struct row *row = new_row(r);

		rc = row ? 0 : -ENOMEM;
		if (rc)
			break;
		row->label = e.v[i].label;
		row->disk = describe(n, &e, i, changed[i]);
	}
	free(changed);
	epochs_free(&e);
	return rc ? error_set(err, rc, "Out of memory") : 0;
}

/* -- pending ones ------------------------------------------------------------------------- */

struct seen {
	struct view_stats stats;
	bool broken;
	char why[256];
};

static int see_view(struct node *view, void *arg, struct error *err)
{
	struct seen *s = arg;
	struct view *v = view_node_view(view);

	view_stats(v, &s->stats);
	s->broken = view_is_broken(v);
	snprintf(s->why, sizeof(s->why), "%s", s->broken ? view_broken_why(v) : "");
	return 0;
}

static bool add_view(const struct checkpoint_part *p, struct json_object *disk)
{
	struct json_object *view = json_object_new_object();
	struct seen s = { .broken = false };

	command_node_call(p->disk.view, see_view, &s, NULL);
	add_u64(view, "kept", s.stats.kept);
	add_u64(view, "memory", s.stats.memory);
	add_u64(view, "stored", s.stats.stored);
	add_u64(view, "longest-wait", s.stats.waited_ns);
	json_object_object_add(disk, "view", view);
	if (s.broken)
		add_str(disk, "reason", s.why);
	return s.broken;
}

/* Of a disk whose export somebody has removed, nothing is left to read. */
static void add_export(const struct checkpoint_part *p, struct json_object *disk)
{
	struct export *e = export_find_serial(p->export);
	struct json_object *uris = json_object_new_array(), *contexts = json_object_new_array();

	for (struct listener *l = listener_next(NULL); e && l; l = listener_next(l)) {
		char *uri = listener_uri(l, e->name);

		if (uri)
			json_object_array_add(uris, json_object_new_string(uri));
		free(uri);
	}
	for (unsigned i = 0; e && i < e->n_contexts; i++)
		json_object_array_add(contexts, json_object_new_string(e->contexts[i].name));
	add_str(disk, "export", p->export_name);
	json_object_object_add(disk, "uris", uris);
	json_object_object_add(disk, "contexts", contexts);
}

static struct json_object *describe_part(const struct checkpoint_part *p)
{
	struct json_object *o = json_object_new_object();

	add_str(o, "node-name", p->disk.node->name);
	add_export(p, o);
	add_u64(o, "size", p->disk.view->size);
	add_bool(o, "incremental", p->disk.changes != NULL);
	if (p->disk.changes)
		add_u64(o, "changed", p->disk.changed);
	if (p->disk.reason[0])
		add_str(o, "reason", p->disk.reason);
	add_bool(o, "persistent", p->disk.persistent);
	return o;
}

struct json_object *checkpoint_describe(struct checkpoint *c)
{
	struct json_object *o = json_object_new_object(), *disks = json_object_new_array();

	add_str(o, "id", c->name);
	add_time(o, c->time);
	if (c->since[0])
		add_str(o, "since", c->since);
	add_u64(o, "lease", c->lease / 1000000000);
	for (unsigned i = 0; i < c->n; i++)
		json_object_array_add(disks, describe_part(&c->parts[i]));
	json_object_object_add(o, "disks", disks);
	return o;
}

static struct json_object *pending_info(struct checkpoint *c)
{
	struct json_object *o = checkpoint_describe(c);
	struct json_object *disks = json_object_object_get(o, "disks");
	bool broken = false;

	for (unsigned i = 0; i < c->n; i++)
		broken |= add_view(&c->parts[i], json_object_array_get_idx(disks, i));
	add_str(o, "state", broken ? "broken" : "pending");
	add_u64(o, "lease-left", checkpoint_lease_left(c));
	return o;
}

/* -- all of them ---------------------------------------------------------------------------- */

static int by_time(const void *a, const void *b)
{
	const struct row *x = a, *y = b;

	if (x->label.time != y->label.time)
		return x->label.time < y->label.time ? -1 : 1;
	return x->label.group < y->label.group ? -1 : x->label.group > y->label.group;
}

/* Whether it counts is a matter of the group: one that is only ready needs all. */
static const char *state_of(const struct rows *r, const struct label *l)
{
	unsigned here = 0;
	bool active = false;

	for (unsigned i = 0; i < r->n; i++) {
		const struct label *x = &r->v[i].label;

		if (x->group != l->group || strcmp(x->name, l->name))
			continue;
		here += x->state != CHECKPOINT_PENDING;
		active = active || x->state == CHECKPOINT_ACTIVE;
	}
	return active || here >= l->disks ? "active" : "incomplete";
}

static struct json_object *group_info(struct rows *r, unsigned first)
{
	struct json_object *o = json_object_new_object(), *disks = json_object_new_array();
	const struct label *l = &r->v[first].label;

	add_str(o, "id", l->name);
	add_time(o, l->time);
	add_str(o, "state", state_of(r, l));
	for (unsigned i = first; i < r->n; i++) {
		struct row *x = &r->v[i];

		if (x->taken || x->label.group != l->group || strcmp(x->label.name, l->name) ||
		    x->label.state == CHECKPOINT_PENDING)
			continue;
		x->taken = true;
		json_object_array_add(disks, json_object_get(x->disk));
	}
	json_object_object_add(o, "disks", disks);
	return o;
}

static int collect(struct rows *r, struct error *err)
{
	unsigned n;
	struct node **v = command_all_nodes(&n);
	int rc = v ? 0 : error_set(err, -ENOMEM, "Out of memory");

	for (unsigned i = 0; i < n && v; i++) {
		if (!rc)
			rc = command_node_call(v[i], rows_of_node, r, err);
		command_node_unref(v[i]);
	}
	free(v);
	if (r->n)
		qsort(r->v, r->n, sizeof(*r->v), by_time);
	return rc;
}

int checkpoint_query(struct json_object **ret, struct error *err)
{
	struct rows r = { 0 };
	int rc = checkpoint_settle_all(NULL, err);

	if (!rc)
		rc = collect(&r, err);

	*ret = json_object_new_array();
	for (unsigned i = 0; i < r.n && !rc; i++) {
		if (!r.v[i].taken && r.v[i].label.state != CHECKPOINT_PENDING)
			json_object_array_add(*ret, group_info(&r, i));
	}
	for (struct checkpoint *c = checkpoint_list(); c && !rc; c = c->next)
		json_object_array_add(*ret, pending_info(c));
	for (unsigned i = 0; i < r.n; i++)
		json_object_put(r.v[i].disk);
	free(r.v);
	return rc;
}

static int has_it(struct node *n, void *arg, struct error *err)
{
	struct epochs e;
	int rc = epochs_list(n, &e, err), i;

	if (rc)
		return rc;
	i = epochs_find(&e, arg);
	rc = i >= 0 && e.v[i].label.state == CHECKPOINT_ACTIVE;
	epochs_free(&e);
	return rc;
}

bool checkpoint_is_active(const char *name)
{
	unsigned n;
	struct node **v;
	bool found = false;

	if (checkpoint_settle_all(NULL, NULL))
		return false;
	v = command_all_nodes(&n);
	for (unsigned i = 0; i < n && v; i++) {
		found = found || command_node_call(v[i], has_it, (void *)name, NULL) == 1;
		command_node_unref(v[i]);
	}
	free(v);
	return found;
}
