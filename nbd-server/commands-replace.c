// SPDX-License-Identifier: BSD-3-Clause
/* commands-replace: blockdev-replace, as it was proposed for QEMU: another node in the
 * place of what a device, an export or a node has, under running requests.
 *
 * A device or an export is given its node as qom-set does; a node's child is exchanged by
 * reopening the node with nothing else changed.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <string.h>

#include "format/node.h"
#include "nbd-server/export.h"

static const char *const parent_types[] = { "qdev", "driver", "export", NULL };

const struct qmp_arg args_blockdev_replace[] = {
	{ "parent-type", QMP_STR, true, "what has the child", .values = parent_types },
	{ "qdev-id", QMP_STR, false, "qdev: the device's path or id" },
	{ "export-id", QMP_STR, false, "export: its id" },
	{ "node-name", QMP_STR, false, "driver: the node" },
	{ "child", QMP_STR, false, "driver: which of its children: file, backing, ..." },
	{ "new-child", QMP_STR, true, "name of the node that takes the place" },
	{ NULL },
};

/* Each kind of parent has members of its own, and no others. */
static int check_members(struct json_object *args, const char *type, struct error *err)
{
	static const struct {
		const char *name, *type;
	} members[] = {
		{ "qdev-id", "qdev" }, { "export-id", "export" },
		{ "node-name", "driver" }, { "child", "driver" },
	};

	for (unsigned i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
		bool given = qmp_str(args, members[i].name), wanted = !strcmp(members[i].type, type);

		if (given != wanted)
			return error_set(err, -EINVAL, "Parameter '%s' is %s", members[i].name,
					 given ? "unexpected" : "missing");
	}
	return 0;
}

static int replace_of_export(struct json_object *args, struct error *err)
{
	const char *id = qmp_str(args, "export-id");
	struct export *e = export_find_id(id);

	if (!e || e->opening || e->removed)
		return error_set(err, -ENOENT, "Export '%s' is not found", id);
	return command_set_drive(e, qmp_str(args, "new-child"), err);
}

static int present(struct node *n, void *arg, struct error *err)
{
	*(struct json_object **)arg = node_present_options(n);
	return *(struct json_object **)arg ? 0 : error_set(err, -ENOMEM, "Out of memory");
}

/* What blockdev-reopen is to be told. */
static int options_with_child(struct node *n, const char *child, const char *with, struct json_object **out,
			      struct error *err)
{
	struct json_object *o = NULL, *list;
	int rc = command_node_call(n, present, &o, err);

	if (!rc && !json_object_is_type(json_object_object_get(o, child), json_type_string))
		rc = error_set(err, -ENOENT, "Node '%s' does not have a child '%s'", n->name, child);
	if (rc) {
		json_object_put(o);
		return rc;
	}
	json_object_object_add(o, "node-name", json_object_new_string(n->name));
	json_object_object_add(o, child, json_object_new_string(with));
	list = json_object_new_array();
	json_object_array_add(list, o);
	*out = json_object_new_object();
	json_object_object_add(*out, "options", list);
	return 0;
}

static int replace_of_node(struct json_object *args, struct error *err)
{
	const char *name = qmp_str(args, "node-name");
	struct json_object *reopen = NULL, *ret = NULL;
	struct node *n = command_node_find(name);
	int rc;

	if (!n)
		return error_set(err, -ENOENT, "Cannot find device='' nor node-name='%s'", name);
	rc = options_with_child(n, qmp_str(args, "child"), qmp_str(args, "new-child"), &reopen, err);
	command_node_unref(n);
	if (!rc)
		rc = command_blockdev_reopen(reopen, &ret, err);
	json_object_put(reopen);
	return rc;
}

COMMAND(command_blockdev_replace)
{
	const char *type = qmp_str(args, "parent-type");
	int rc = check_members(args, type, err);

	if (rc)
		return rc;
	if (!strcmp(type, "qdev"))
		return command_set_drive_of(qmp_str(args, "qdev-id"), qmp_str(args, "new-child"), err);
	return strcmp(type, "export") ? replace_of_node(args, err) : replace_of_export(args, err);
}
