/* SPDX-License-Identifier: BSD-3-Clause */
/* export: the list of exports and their life.
 *
 *	export_add ──▶ opening ──▶ listed ──export_remove──▶ removed ──last unref──▶ gone
 *
 * The list belongs to the main loop.  The list itself holds one reference of
 * each export, every connection in transmission another; the last one to go
 * starts a coroutine that gives back what is held on the export's loop.  An
 * id is taken until then, a name only while clients can see it.
 */
#include "nbd-server/export.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "common/options.h"
#include "common/json.h"
#include "nbd-server/daemon.h"
#include "common/nbd-proto.h"
#include "nbd-server/qmp.h"
#include "nbd-server/transmission.h"

static struct export *exports;
static uint64_t export_serials;
static struct co_queue exports_gone;	/* woken whenever one has gone */

static bool is_visible(const struct export *e)
{
	return !e->opening && !e->removed;
}

const char *export_qdev(const struct export *e, char *buf, size_t size)
{
	snprintf(buf, size, "/machine/peripheral/%.255s/virtio-backend", e->id);
	return buf;
}

void export_set_size(struct export *e, uint64_t size)
{
	struct json_object *data;

	if (e->size == size)
		return;
	e->size = size;
	data = json_object_new_object();
	json_object_object_add(data, "id", json_object_new_string(e->id));
	json_object_object_add(data, "size", json_object_new_uint64(size));
	qmp_event("BLOCK_EXPORT_RESIZED", data);
}

struct export *export_list(void)
{
	return exports;
}

struct export *export_find_name(const char *name, size_t len)
{
	for (struct export *e = exports; e; e = e->next) {
		if (is_visible(e) && strlen(e->name) == len &&
		    (len == 0 || !memcmp(e->name, name, len)))
			return e;
	}
	return NULL;
}

struct export *export_find_id(const char *id)
{
	for (struct export *e = exports; e; e = e->next) {
		if (!strcmp(e->id, id))
			return e;
	}
	return NULL;
}

struct export *export_find_serial(uint64_t serial)
{
	struct export *e = serial ? export_next(serial - 1) : NULL;

	return e && e->serial == serial ? e : NULL;
}

struct export *export_next(uint64_t serial)
{
	for (struct export *e = exports; e; e = e->next) {
		if (e->serial > serial && is_visible(e))
			return e;
	}
	return NULL;
}

/* -- the end of one --------------------------------------------------------- */

static void export_free(struct export *e)
{
	if (!e)
		return;
	free(e->id);
	free(e->name);
	free(e->description);
	free(e);
}

static void export_unlink(struct export *e)
{
	struct export **p = &exports;

	while (*p != e)
		p = &(*p)->next;
	*p = e->next;
}

static void export_close_on_loop(void *arg)
{
	struct export *e = arg;

	if (e->hurried)
		node_hurry(e->node, false);
	export_close_node(e);
}

static void export_tell_deleted(const struct export *e)
{
	struct json_object *data = json_object_new_object();

	json_object_object_add(data, "id", json_object_new_string(e->id));
	qmp_event("BLOCK_EXPORT_DELETED", data);
}

static void export_destroy(void *arg)
{
	struct export *e = arg;

	loop_call(e->loop, export_close_on_loop, e);
	export_unlink(e);
	export_tell_deleted(e);
	export_free(e);
	co_queue_wake_all(&exports_gone);
}

void export_ref(struct export *e)
{
	e->refs++;
}

void export_unref(struct export *e)
{
	if (--e->refs == 0)
		co_start(export_destroy, e);
}

bool export_is_used(const struct export *e)
{
	return e->refs > (e->removed ? 0 : 1);
}

static void export_shutdown_on_loop(void *arg)
{
	struct export *e = arg;

	e->hurried = true;
	transmission_shutdown(e);
	node_hurry(e->node, true);
}

/* Begins the end; E may be gone when this returns. */
static void export_begin_removal(struct export *e)
{
	if (e->removed)
		return;
	e->removed = true;
	loop_call(e->loop, export_shutdown_on_loop, e);
	export_unref(e);
}

static bool is_in_list(uint64_t serial)
{
	for (struct export *e = exports; e; e = e->next) {
		if (e->serial == serial)
			return true;
	}
	return false;
}

void export_remove(struct export *e)
{
	uint64_t serial = e->serial;

	export_begin_removal(e);
	while (is_in_list(serial))
		co_queue_wait(&exports_gone);
}

void export_close_all(void)
{
	struct export *e;

	while ((e = export_next(0)))
		export_begin_removal(e);
	while (exports)
		co_queue_wait(&exports_gone);
}

/* -- the beginning ---------------------------------------------------------- */

static bool name_is_taken(const char *name)
{
	for (struct export *e = exports; e; e = e->next) {
		if (!e->removed && !strcmp(e->name, name))
			return true;
	}
	return false;
}

static int export_check(const struct export_options *o, const char *name, struct error *err)
{
	if (!id_wellformed(o->id))
		return error_set(err, -EINVAL, "Invalid block export id");
	if (export_find_id(o->id))
		return error_set(err, -EEXIST, "Block export id '%s' is already in use", o->id);
	if (strlen(name) > NBD_STRING_MAX)
		return error_set(err, -EINVAL, "export name '%.64s...' too long", name);
	if (o->description && strlen(o->description) > NBD_STRING_MAX)
		return error_set(err, -EINVAL, "description '%.64s...' too long", o->description);
	if (name_is_taken(name))
		return error_set(err, -EEXIST, "NBD server already has export named '%s'", name);
	if (o->writable && o->node->read_only && !o->node->wants_write)
		return error_set(err, -EROFS, "Cannot export read-only node as writable");
	return 0;
}

struct export_opening {
	struct export *e;
	const struct export_options *o;
	struct error *err;
	int rc;
};

static void export_open_on_loop(void *arg)
{
	struct export_opening *x = arg;

	x->rc = export_open_node(x->e, x->o, x->err);
}

static struct export *export_new(const struct export_options *o, const char *name)
{
	struct export *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->id = strdup(o->id);
	e->name = strdup(name);
	e->description = o->description ? strdup(o->description) : NULL;
	if (!e->id || !e->name || (o->description && !e->description)) {
		export_free(e);
		return NULL;
	}
	strcpy(e->node_name, o->node->name);
	e->serial = ++export_serials;
	e->loop = o->node->loop;
	e->writable = o->writable;
	e->max_connections = o->max_connections;
	e->refs = 1;
	e->opening = true;
	return e;
}

int export_add(const struct export_options *o, struct error *err)
{
	const char *name = o->name ? o->name : o->node->name;
	struct export_opening x = { .o = o, .err = err };
	struct export **p = &exports;
	int rc = export_check(o, name, err);

	if (rc)
		return rc;
	x.e = export_new(o, name);
	if (!x.e)
		return error_set(err, -ENOMEM, "Out of memory");
	while (*p)
		p = &(*p)->next;
	*p = x.e;
	loop_call(x.e->loop, export_open_on_loop, &x);
	if (x.rc) {
		export_unlink(x.e);
		export_free(x.e);
		return x.rc;
	}
	x.e->opening = false;
	return 0;
}
