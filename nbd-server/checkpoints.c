/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoints: see checkpoints.h.  What happens on a disk's loop is in backup/. */
#include "nbd-server/checkpoints.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "backup/view.h"
#include "common/log.h"
#include "nbd-server/checkpoints-int.h"
#include "nbd-server/commands.h"
#include "nbd-server/export.h"
#include "nbd-server/listener.h"
#include "nbd-server/transaction.h"

static struct checkpoint *checkpoints;
static unsigned n_checkpoints;
static uint64_t serials;

struct checkpoint *checkpoint_list(void)
{
	return checkpoints;
}

struct checkpoint *checkpoint_find(const char *name)
{
	struct checkpoint *c = checkpoints;

	while (c && strcmp(c->name, name))
		c = c->next;
	return c;
}

struct checkpoint *checkpoint_find_serial(uint64_t serial)
{
	struct checkpoint *c = checkpoints;

	while (c && c->serial != serial)
		c = c->next;
	return c;
}

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* -- disks ------------------------------------------------------------------------ */

struct on_disk {
	struct checkpoint_disk *disk;
	const struct checkpoint_request *request;
	enum checkpoint_state state;
	struct error *err;
	int rc;
};

static int call_disk(struct on_disk *x, void (*fn)(void *arg))
{
	loop_call(x->disk->node->loop, fn, x);
	return x->rc;
}

static void prepare_on_loop(void *arg)
{
	struct on_disk *x = arg;

	x->rc = checkpoint_disk_prepare(x->disk, x->request, x->err);
}

static void mark_on_loop(void *arg)
{
	struct on_disk *x = arg;

	x->rc = checkpoint_disk_mark(x->disk, x->state, x->err);
}

static void check_on_loop(void *arg)
{
	struct on_disk *x = arg;

	x->rc = checkpoint_disk_check(x->disk, x->err);
}

static void release_on_loop(void *arg)
{
	struct on_disk *x = arg;

	checkpoint_disk_release(x->disk);
}

static void freeze_on_loop(void *arg)
{
	struct on_disk *x = arg;

	checkpoint_freeze(x->disk->node);
}

static int find_disk(const struct checkpoint_disk_options *o, struct checkpoint_part *p,
		     struct error *err)
{
	struct export *e = o->export ? export_find_id(o->export) : NULL;
	const char *name = o->export ? e ? e->node_name : NULL : o->node;
	struct node *n = name ? command_node_find(name) : NULL;

	if (o->export && !e)
		return error_set(err, -ENOENT, "Export '%s' is not found", o->export);
	if (!n)
		return error_set(err, -ENOENT, "Node '%s' not found", name);
	p->disk.node = checkpoint_base(n);
	command_node_unref(n);
	p->of = strdup(o->export ? o->export : o->node);
	return p->of ? 0 : error_set(err, -ENOMEM, "Out of memory");
}

static int find_disks(struct checkpoint *c, const struct checkpoint_options *o, struct error *err)
{
	for (unsigned i = 0; i < o->n; i++) {
		int rc = find_disk(&o->disks[i], &c->parts[i], err);

		c->n += c->parts[i].disk.node != NULL;
		if (rc)
			return rc;
		for (unsigned k = 0; k < i; k++) {
			if (c->parts[k].disk.node == c->parts[i].disk.node)
				return error_set(err, -EINVAL, "Disks '%s' and '%s' are the same, "
						 "node '%s'", c->parts[k].of, c->parts[i].of,
						 c->parts[i].disk.node->name);
		}
	}
	return 0;
}

/* -- ends -------------------------------------------------------------------------- */

static void free_part(struct checkpoint_part *p)
{
	command_node_unref(p->disk.node);
	free(p->of);
	free(p->export_name);
}

static void checkpoint_free(struct checkpoint *c)
{
	for (unsigned i = 0; i < c->n; i++)
		free_part(&c->parts[i]);
	free(c->parts);
	free(c);
}

/* Exports and views go, the epochs are whatever they are called. */
static void tear_down(struct checkpoint *c)
{
	for (unsigned i = 0; i < c->n; i++) {
		struct checkpoint_part *p = &c->parts[i];
		struct export *e = export_find_serial(p->export);
		struct on_disk x = { .disk = &p->disk };

		if (e)
			export_remove(e);
		p->export = 0;
		call_disk(&x, release_on_loop);
	}
}

static void unlist(struct checkpoint *c)
{
	for (struct checkpoint **p = &checkpoints; *p; p = &(*p)->next) {
		if (*p == c) {
			*p = c->next;
			n_checkpoints--;
			break;
		}
	}
	loop_timer_cancel(&c->timer);
}

/* As if it had not begun. */
static void give_up(struct checkpoint *c)
{
	struct error err = ERROR_INIT;

	tear_down(c);
	if (checkpoint_end_leftovers_of(c, false, &err))
		log_warning("checkpoint '%s' has ended, but not all of it is gone yet: %s", c->name,
			    err.text);
}

static void tell_ended(const struct checkpoint *c, bool success, const char *why)
{
	struct json_object *data = json_object_new_object();

	json_object_object_add(data, "id", json_object_new_string(c->name));
	json_object_object_add(data, "success", json_object_new_boolean(success));
	json_object_object_add(data, "reason", json_object_new_string(why));
	qmp_event("CHECKPOINT_ENDED", data);
}

/* -- success --------------------------------------------------------------------------- */

static int mark_all(struct checkpoint *c, enum checkpoint_state state, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < c->n && !rc; i++) {
		struct on_disk x = { .disk = &c->parts[i].disk, .state = state, .err = err };

		rc = call_disk(&x, mark_on_loop);
	}
	return rc;
}

/* Once all disks are ready it counts; that each says so by itself can be done later. */
static int count_it(struct checkpoint *c, struct error *err)
{
	struct error later = ERROR_INIT;
	unsigned kept = 0;
	int rc = 0;

	for (unsigned i = 0; i < c->n; i++)
		kept += c->parts[i].disk.persistent;
	for (unsigned i = 0; i < c->n; i++) {
		c->parts[i].disk.label.time = c->time;
		c->parts[i].disk.label.disks = kept ? kept : 1;
	}
	if (c->n > 1)
		rc = mark_all(c, CHECKPOINT_READY, err);
	if (rc) {
		mark_all(c, CHECKPOINT_PENDING, NULL);
		return rc;
	}
	rc = mark_all(c, CHECKPOINT_ACTIVE, &later);
	if (rc && c->n > 1) {
		log_warning("checkpoint '%s' counts, but not every disk says so yet: %s", c->name,
			    later.text);
		return 0;
	}
	if (rc)
		*err = later;
	return rc;
}

static void freeze_all(struct checkpoint *c)
{
	for (unsigned i = 0; i < c->n; i++) {
		struct on_disk x = { .disk = &c->parts[i].disk };

		call_disk(&x, freeze_on_loop);
	}
}

int checkpoint_check(struct checkpoint *c, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < c->n && !rc; i++) {
		struct on_disk x = { .disk = &c->parts[i].disk, .err = err };

		rc = call_disk(&x, check_on_loop);
	}
	return rc;
}

static int succeed(struct checkpoint *c, struct error *err)
{
	struct error later = ERROR_INIT;
	int rc = checkpoint_check(c, err);

	if (rc) {
		error_prefix(err, "Checkpoint '%s' cannot succeed: ", c->name);
		return rc;
	}
	rc = count_it(c, err);
	if (rc)
		return rc;
	tear_down(c);
	freeze_all(c);
	if (checkpoint_end_leftovers_of(c, true, &later))
		log_warning("checkpoints that are of no use are not gone yet: %s", later.text);
	return 0;
}

int checkpoint_end(struct checkpoint *c, bool success, const char *why, struct error *err)
{
	int rc = success ? succeed(c, err) : 0;

	if (rc)
		return rc;
	unlist(c);
	if (!success)
		give_up(c);
	tell_ended(c, success, why);
	checkpoint_free(c);
	return 0;
}

void checkpoint_end_all(void)
{
	qmp_lock_take(true);
	while (checkpoints)
		checkpoint_end(checkpoints, false, "quit", NULL);
	qmp_lock_take(false);
}

/* -- the beginning ----------------------------------------------------------------------- */

static void name_by_time(struct checkpoint *c)
{
	time_t seconds = (time_t)(c->time / 1000000);
	struct tm tm;
	char buf[32];

	gmtime_r(&seconds, &tm);
	strftime(buf, sizeof(buf), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(c->name, sizeof(c->name), "%s.%06uZ", buf, (unsigned)(c->time % 1000000));
}

static struct checkpoint *checkpoint_new(const struct checkpoint_options *o)
{
	struct checkpoint *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->parts = calloc(o->n + 1, sizeof(*c->parts));
	if (!c->parts || getrandom(&c->group, sizeof(c->group), 0) != sizeof(c->group)) {
		free(c->parts);
		free(c);
		return NULL;
	}
	c->serial = ++serials;
	c->time = now_us();
	c->lease = o->lease * 1000000000;
	if (o->name)
		snprintf(c->name, sizeof(c->name), "%s", o->name);
	else
		name_by_time(c);
	if (o->since)
		snprintf(c->since, sizeof(c->since), "%s", o->since);
	return c;
}

/* R: one for each disk. */
static int prepare_all(struct checkpoint *c, struct checkpoint_request *r, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < c->n && !rc; i++) {
		struct on_disk x = { .disk = &c->parts[i].disk, .request = &r[i], .err = err };

		rc = call_disk(&x, prepare_on_loop);
	}
	return rc;
}

struct instant {
	struct checkpoint *checkpoint;
	struct checkpoint_disk *disk;
	const struct checkpoint_request *request;
};

static int instant_apply(struct action *a, struct error *err)
{
	struct instant *x = a->own;

	/* One loop at a time, all gates closed. */
	if (x == x->checkpoint->instants)
		x->checkpoint->time = now_us();
	return checkpoint_disk_begin(x->disk, x->request, err);
}

static void instant_undo(struct action *a)
{
	struct instant *x = a->own;

	checkpoint_disk_undo(x->disk);
}

static int instant_run(struct checkpoint *c, struct checkpoint_request *r, struct error *err)
{
	static const struct verb verb = { .name = "checkpoint-begin", .apply = instant_apply,
					  .undo = instant_undo };
	struct action *v = calloc(c->n + 1, sizeof(*v));
	struct instant *x = calloc(c->n + 1, sizeof(*x));
	int rc = v && x ? 0 : error_set(err, -ENOMEM, "Out of memory");

	c->instants = x;
	for (unsigned i = 0; i < c->n && !rc; i++) {
		x[i] = (struct instant){ c, &c->parts[i].disk, &r[i] };
		v[i] = (struct action){ .verb = &verb, .node = node_ref(x[i].disk->node),
					.own = &x[i] };
	}
	if (!rc)
		rc = transaction_run(v, c->n, err);
	c->instants = NULL;
	free(v);
	free(x);
	return rc;
}

static int add_export(struct checkpoint *c, unsigned i, const char *name, const char *since,
		      struct error *err)
{
	struct checkpoint_part *p = &c->parts[i];
	struct json_object *bitmaps = NULL;
	struct export_options o = { .node = p->disk.view };
	char id[64];
	int rc;

	if (name)
		p->export_name = strdup(name);
	else if (asprintf(&p->export_name, "%s@%s", p->of, c->name) < 0)
		p->export_name = NULL;
	if (!p->export_name)
		return error_set(err, -ENOMEM, "Out of memory");
	snprintf(id, sizeof(id), "checkpoint.%llu.%u", (unsigned long long)c->serial, i);
	o.id = id;
	o.name = p->export_name;
	if (p->disk.changes) {
		bitmaps = json_object_new_array();
		json_object_array_add(bitmaps, json_object_new_string(since));
	}
	o.bitmaps = bitmaps;
	rc = export_add(&o, err);
	json_object_put(bitmaps);
	if (!rc)
		p->export = export_find_id(id)->serial;
	return rc;
}

static int begin_with(struct checkpoint *c, const struct checkpoint_options *o,
		      struct checkpoint_request *r, struct error *err)
{
	int rc = find_disks(c, o, err);

	for (unsigned i = 0; i < o->n; i++)
		r[i] = (struct checkpoint_request){
			.name = c->name, .since = o->disks[i].since ? o->disks[i].since : o->since,
			.time = c->time, .group = c->group, .disks = o->n, .view = o->view,
		};
	if (!rc)
		rc = checkpoint_settle_all(c, err);
	if (!rc)
		rc = checkpoint_end_leftovers_of(c, false, err);
	if (!rc)
		rc = prepare_all(c, r, err);
	if (!rc)
		rc = instant_run(c, r, err);
	for (unsigned i = 0; i < c->n && !rc; i++)
		rc = add_export(c, i, o->disks[i].name, r[i].since, err);
	return rc;
}

static int begin(struct checkpoint *c, const struct checkpoint_options *o, struct error *err)
{
	struct checkpoint_request *r = calloc(o->n + 1, sizeof(*r));
	int rc = r ? begin_with(c, o, r, err) : error_set(err, -ENOMEM, "Out of memory");

	free(r);
	return rc;
}

static int check_options(const struct checkpoint_options *o, struct error *err)
{
	int rc = o->name ? checkpoint_name_check(o->name, err) : 0;

	if (!rc && o->since)
		rc = checkpoint_name_check(o->since, err);
	for (unsigned i = 0; i < o->n && !rc; i++)
		rc = o->disks[i].since ? checkpoint_name_check(o->disks[i].since, err) : 0;
	if (rc)
		return rc;
	if (!o->n || o->n > CHECKPOINT_DISKS_MAX)
		return error_set(err, -EINVAL, "A checkpoint has 1 to %d disks", CHECKPOINT_DISKS_MAX);
	if (n_checkpoints >= CHECKPOINTS_PENDING_MAX)
		return error_set(err, -ENOSPC, "%d checkpoints are pending, which is the most there "
				 "can be; end some", CHECKPOINTS_PENDING_MAX);
	if (o->name && checkpoint_find(o->name))
		return error_set(err, -EEXIST, "Checkpoint '%s' is pending", o->name);
	if (!listener_any())
		return error_set(err, -ENOTCONN, "NBD server not running");
	return 0;
}

int checkpoint_begin(const struct checkpoint_options *o, struct checkpoint **out,
		     struct error *err)
{
	struct checkpoint *c;
	int rc = check_options(o, err);

	if (rc)
		return rc;
	c = checkpoint_new(o);
	if (!c)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = begin(c, o, err);
	if (rc) {
		give_up(c);
		checkpoint_free(c);
		return rc;
	}
	c->next = checkpoints;
	checkpoints = c;
	n_checkpoints++;
	checkpoint_watch(c);
	*out = c;
	return 0;
}
