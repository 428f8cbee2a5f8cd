/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-object: object-add, object-del and --object.
 *
 * The classes (common/objects.h) check their own options.  QEMU before 6.0 had
 * those in "props"; both forms are taken.
 */
#include "nbd-server/commands.h"

#include <errno.h>

#include "common/objects.h"

const struct qmp_arg args_object_add[] = {
	{ "qom-type", QMP_STR, true, "class of the object", .cases = object_cases },
	{ "id", QMP_STR, true, "its name" },
	{ "props", QMP_OBJECT, false, "the class's options, as QEMU before 6.0 had them" },
	{ NULL },
};

const struct qmp_arg args_object_del[] = {
	{ "id", QMP_STR, true, "object to delete" },
	{ NULL },
};

/* The members of "props" beside the others. */
static int flatten(struct json_object *args, struct error *err)
{
	struct json_object *props = json_object_get(json_object_object_get(args, "props"));
	int rc = 0;

	json_object_object_del(args, "props");
	if (!props)
		return 0;
	json_object_object_foreach(props, key, value) {
		if (json_object_object_get_ex(args, key, NULL)) {
			rc = error_set(err, -EINVAL, "Parameter 'props.%s' is unexpected", key);
			break;
		}
		json_object_object_add(args, key, json_object_get(value));
	}
	json_object_put(props);
	return rc;
}

COMMAND(command_object_add)
{
	int rc = flatten(args, err);

	return rc ? rc : object_add(args, err);
}

COMMAND(command_object_del)
{
	return object_del(qmp_str(args, "id"), err);
}
