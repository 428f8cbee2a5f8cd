/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-qom: qom-list, qom-get and qom-set for what there is of QEMU's tree.
 *
 *	/objects/ID                              what object-add made
 *	/machine/peripheral/ID/virtio-backend    a writable export, as a device
 *
 * A device's property "drive" is its node; setting it gives the export another one
 * under its clients: that is how backup programs put a filter above a disk.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "common/objects.h"
#include "format/node.h"
#include "nbd-server/export.h"

#define SET_LIMIT 100000000ull		/* ns that clients' requests may take to end … */
#define SET_PAUSE 50000000ull		/* … before it is tried again, after this */
#define SET_TRIES 40

const struct qmp_arg args_qom_list[] = {
	{ "path", QMP_STR, true, "such as /machine/peripheral" },
	{ NULL },
};

const struct qmp_arg args_qom_get[] = {
	{ "path", QMP_STR, true, "the device: qdev of query-block" },
	{ "property", QMP_STR, true, "such as drive" },
	{ NULL },
};

const struct qmp_arg args_qom_set[] = {
	{ "path", QMP_STR, true, "the device: qdev of query-block" },
	{ "property", QMP_STR, true, "drive" },
	{ "value", QMP_ANY, true, "name of the node that takes the place of the present one" },
	{ NULL },
};

/* -- paths ------------------------------------------------------------------------- */

enum place { NOWHERE, ROOT, MACHINE, PERIPHERAL, SLOT, DEVICE, OBJECTS, OBJECT };

static const char *const type_names[] = {
	[ROOT] = "container", [MACHINE] = "container", [PERIPHERAL] = "container",
	[SLOT] = "virtio-blk-pci", [DEVICE] = "virtio-blk-device", [OBJECTS] = "container",
};

struct where {
	enum place place;
	struct export *export;		/* SLOT, DEVICE */
	const char *type;
};

struct object_look {
	const char *id;
	const char *type;
	struct json_object *list;
};

static void look_at_object(const char *id, const struct object_class *c, void *data, void *arg)
{
	struct object_look *l = arg;

	if (l->id && !strcmp(id, l->id))
		l->type = c->name;
}

static struct export *device_of(const char *id, size_t len)
{
	for (struct export *e = export_next(0); e; e = export_next(e->serial)) {
		if (e->writable && strlen(e->id) == len && !memcmp(e->id, id, len))
			return e;
	}
	return NULL;
}

static void find_below_peripheral(const char *rest, struct where *w)
{
	size_t n = strcspn(rest, "/");

	w->export = device_of(rest, n);
	if (!w->export)
		return;
	if (!rest[n])
		w->place = SLOT;
	else if (!strcmp(rest + n, "/virtio-backend"))
		w->place = DEVICE;
}

static int find(const char *path, struct where *w, struct error *err)
{
	static const char peripheral[] = "/machine/peripheral/", objects[] = "/objects/";

	*w = (struct where){ 0 };
	if (!strcmp(path, "/")) {
		w->place = ROOT;
	} else if (!strcmp(path, "/machine")) {
		w->place = MACHINE;
	} else if (!strcmp(path, "/machine/peripheral")) {
		w->place = PERIPHERAL;
	} else if (!strcmp(path, "/objects")) {
		w->place = OBJECTS;
	} else if (!strncmp(path, peripheral, sizeof(peripheral) - 1)) {
		find_below_peripheral(path + sizeof(peripheral) - 1, w);
	} else if (!strncmp(path, objects, sizeof(objects) - 1)) {
		struct object_look l = { .id = path + sizeof(objects) - 1 };

		object_each(look_at_object, &l);
		w->type = l.type;
		w->place = l.type ? OBJECT : NOWHERE;
	}
	if (w->place == NOWHERE)
		return error_set_class(err, ERROR_DEVICE_NOT_FOUND, -ENOENT,
				       "Device '%s' not found", path);
	if (!w->type)
		w->type = type_names[w->place];
	return 0;
}

/* -- qom-list and qom-get ------------------------------------------------------------ */

static void add_property(struct json_object *list, const char *name, const char *type)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "name", json_object_new_string(name));
	json_object_object_add(o, "type", json_object_new_string(type));
	json_object_array_add(list, o);
}

static void add_child(struct json_object *list, const char *name, const char *type)
{
	char text[128];

	snprintf(text, sizeof(text), "child<%.100s>", type);
	add_property(list, name, text);
}

static void list_object(const char *id, const struct object_class *c, void *data, void *arg)
{
	struct object_look *l = arg;

	add_child(l->list, id, c->name);
}

COMMAND(command_qom_list)
{
	struct where w;
	int rc = find(qmp_str(args, "path"), &w, err);
	struct object_look l = { 0 };

	if (rc)
		return rc;
	*ret = l.list = json_object_new_array();
	add_property(*ret, "type", "string");
	if (w.place == ROOT) {
		add_child(*ret, "objects", "container");
		add_child(*ret, "machine", "container");
	} else if (w.place == MACHINE) {
		add_child(*ret, "peripheral", "container");
	} else if (w.place == PERIPHERAL) {
		for (struct export *e = export_next(0); e; e = export_next(e->serial)) {
			if (e->writable)
				add_child(*ret, e->id, type_names[SLOT]);
		}
	} else if (w.place == SLOT) {
		add_child(*ret, "virtio-backend", type_names[DEVICE]);
	} else if (w.place == OBJECTS) {
		object_each(list_object, &l);
	}
	if (w.place == SLOT || w.place == DEVICE)
		add_property(*ret, "drive", "str");
	return 0;
}

static int no_property(const struct where *w, const char *name, struct error *err)
{
	return error_set(err, -ENOENT, "Property '%s.%s' not found", w->type, name);
}

COMMAND(command_qom_get)
{
	const char *name = qmp_str(args, "property");
	struct where w;
	int rc = find(qmp_str(args, "path"), &w, err);

	if (rc)
		return rc;
	if (!strcmp(name, "type"))
		*ret = json_object_new_string(w.type);
	else if (w.export && !strcmp(name, "drive"))
		*ret = json_object_new_string(w.export->node_name);
	else
		rc = no_property(&w, name, err);
	return rc;
}

/* -- qom-set --------------------------------------------------------------------------- */

struct setting {
	struct export *export;
	struct node *node;		/* the new one, and then the former one */
	struct error *err;
	int rc;
};

static void set_on_loop(void *arg)
{
	struct setting *s = arg;

	s->rc = export_stop(s->export, SET_LIMIT);
	if (s->rc)
		return;
	s->rc = export_set_node(s->export, &s->node, s->err);
	export_resume(s->export);
}

static int set_node(struct setting *s)
{
	s->rc = -ETIMEDOUT;
	for (unsigned try = 0; try < SET_TRIES && s->rc == -ETIMEDOUT; try++) {
		if (try)
			io_sleep(loop_io(loop_self()), SET_PAUSE);
		loop_call(s->export->loop, set_on_loop, s);
	}
	if (s->rc == -ETIMEDOUT)
		return error_set(s->err, s->rc, "The disk of export '%s' was busy all the time; nothing was changed",
				 s->export->id);
	return s->rc;
}

int command_set_drive(struct export *e, const char *value, struct error *err)
{
	struct setting s = { .export = e, .err = err };
	char name[sizeof(e->node_name)];
	int rc;

	s.node = command_node_find(value);
	if (!s.node)
		return error_set(err, -ENOENT, "Cannot find device='' nor node-name='%s'", value);
	if (e->writable && s.node->read_only && !s.node->wants_write) {
		command_node_unref(s.node);
		return error_set(err, -EROFS, "Block node is read-only");
	}
	strcpy(name, s.node->name);
	export_ref(e);
	rc = node_move(s.node, e->loop, err);
	if (!rc && s.node->inactive && !e->use->allow_inactive)
		rc = command_node_activate(name, err);
	if (!rc)
		rc = set_node(&s);
	if (!rc)
		strcpy(e->node_name, name);
	command_node_unref(s.node);
	export_unref(e);
	return rc;
}

int command_set_drive_of(const char *device, const char *value, struct error *err)
{
	struct where w = { .export = device_of(device, strlen(device)) };
	int rc = w.export ? 0 : find(device, &w, err);

	if (!rc && !w.export)
		rc = error_set_class(err, ERROR_DEVICE_NOT_FOUND, -ENOENT, "Device '%s' not found", device);
	return rc ? rc : command_set_drive(w.export, value, err);
}

COMMAND(command_qom_set)
{
	struct json_object *value = json_object_object_get(args, "value");
	const char *name = qmp_str(args, "property");
	struct where w;
	int rc = find(qmp_str(args, "path"), &w, err);

	if (rc)
		return rc;
	if (!w.export || strcmp(name, "drive"))
		return no_property(&w, name, err);
	if (!json_object_is_type(value, json_type_string))
		return error_set(err, -EINVAL, "Invalid parameter type for 'drive', expected: string");
	return command_set_drive(w.export, json_object_get_string(value), err);
}
