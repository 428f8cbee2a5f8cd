/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-checkpoint: checkpoint-begin and -end, -renew, -delete, query-checkpoints. */
#include "nbd-server/commands.h"

#include <errno.h>
#include <stdlib.h>

#include "backup/view.h"
#include "common/checked.h"
#include "nbd-server/checkpoints.h"

#define WAIT_MAX 3600000u		/* ms */

static const struct qmp_arg args_disk[] = {
	{ "node", QMP_STR, false, "the disk, by its node …" },
	{ "export", QMP_STR, false, "… or by the id of its export" },
	{ "name", QMP_STR, false, "of the NBD export; default: DISK@ID" },
	{ "since", QMP_STR, false, "offer what changed of this disk since that checkpoint; "
	  "default: the one for all" },
	{ NULL },
};

static const struct qmp_arg item_disk = { "null", QMP_OBJECT, .members = args_disk };

static const struct qmp_arg args_view[] = {
	{ "directory", QMP_STR, false, "where what the guest overwrites is kept; default: beside the image" },
	{ "max-size", QMP_UINT, false, "bytes of it, for each disk; default 0: all the space there is" },
	{ "max-wait", QMP_UINT, false, "milliseconds that a guest's write waits for room, 0: any time; default 40" },
	{ "granularity", QMP_UINT, false, "bytes that are kept at least, a power of two; default 4096" },
	{ NULL },
};

const struct qmp_arg args_checkpoint_begin[] = {
	{ "disks", QMP_ARRAY, true, "all of them at one instant", .item = &item_disk },
	{ "id", QMP_STR, false, "the checkpoint's name, up to 255 bytes; default: the time" },
	{ "since", QMP_STR, false, "offer what changed since this checkpoint; default: all" },
	{ "lease", QMP_UINT, false, "seconds that the clients may be silent; default 300" },
	{ "view", QMP_OBJECT, false, "limits of what is kept for the clients", .members = args_view },
	{ NULL },
};

const struct qmp_arg args_checkpoint_end[] = {
	{ "id", QMP_STR, true, "the checkpoint" },
	{ "success", QMP_BOOL, true, "true: what was read is safe; false: as if it had not begun" },
	{ NULL },
};

const struct qmp_arg args_checkpoint_renew[] = {
	{ "id", QMP_STR, true, "the checkpoint" },
	{ "lease", QMP_UINT, false, "seconds from now on; default: as before" },
	{ NULL },
};

const struct qmp_arg args_checkpoint_delete[] = {
	{ "id", QMP_STR, true, "the checkpoint" },
	{ NULL },
};

/* *OUT stays as it is when the member is absent. */
static int take_u64(struct json_object *o, const char *key, uint64_t min, uint64_t max,
		    uint64_t *out, struct error *err)
{
	uint64_t v = qmp_u64(o, key);

	if (!o || !json_object_object_get_ex(o, key, NULL))
		return 0;
	if (v < min || v > max)
		return error_set(err, -EINVAL, "Parameter '%s' expects a number from %llu to %llu", key,
				 (unsigned long long)min, (unsigned long long)max);
	*out = v;
	return 0;
}

static int take_view(struct json_object *o, struct view_options *v, struct error *err)
{
	uint64_t wait = VIEW_WAIT_DEFAULT / 1000000, granularity = VIEW_GRANULARITY_MIN;
	int rc = take_u64(o, "max-size", 0, INT64_MAX, &v->log_max, err);

	if (!rc)
		rc = take_u64(o, "max-wait", 0, WAIT_MAX, &wait, err);
	if (!rc)
		rc = take_u64(o, "granularity", VIEW_GRANULARITY_MIN, 1u << 26, &granularity, err);
	if (!rc && !is_pow2(granularity))
		rc = error_set(err, -EINVAL, "Parameter 'granularity' expects a power of two");
	v->wait_ns = wait * 1000000;
	v->granularity = (uint32_t)granularity;
	v->log_dir = o ? qmp_str(o, "directory") : NULL;
	return rc;
}

static int take_disks(struct json_object *list, struct checkpoint_options *o, struct error *err)
{
	size_t n = json_object_array_length(list);

	if (!n || n > CHECKPOINT_DISKS_MAX)
		return error_set(err, -EINVAL, "Parameter 'disks' expects 1 to %d disks",
				 CHECKPOINT_DISKS_MAX);
	o->disks = calloc(n, sizeof(*o->disks));
	if (!o->disks)
		return error_set(err, -ENOMEM, "Out of memory");
	for (size_t i = 0; i < n; i++) {
		struct json_object *d = json_object_array_get_idx(list, i);
		struct checkpoint_disk_options *x = &o->disks[o->n++];

		*x = (struct checkpoint_disk_options){
			.node = qmp_str(d, "node"), .export = qmp_str(d, "export"),
			.since = qmp_str(d, "since"), .name = qmp_str(d, "name"),
		};
		if (!x->node == !x->export)
			return error_set(err, -EINVAL, "Each of 'disks' has either 'node' or 'export'");
	}
	return 0;
}

COMMAND(command_checkpoint_begin)
{
	struct view_options view = { 0 };
	struct checkpoint_options o = {
		.name = qmp_str(args, "id"), .since = qmp_str(args, "since"),
		.lease = LEASE_DEFAULT, .view = &view,
	};
	struct checkpoint *c;
	int rc = take_u64(args, "lease", 1, LEASE_MAX, &o.lease, err);

	if (!rc)
		rc = take_view(json_object_object_get(args, "view"), &view, err);
	if (!rc)
		rc = take_disks(json_object_object_get(args, "disks"), &o, err);
	if (!rc)
		rc = checkpoint_begin(&o, &c, err);
	free(o.disks);
	if (!rc)
		*ret = checkpoint_describe(c);
	return rc;
}

static struct checkpoint *find(struct json_object *args, struct error *err)
{
	struct checkpoint *c = checkpoint_find(qmp_str(args, "id"));

	if (!c)
		error_set(err, -ENOENT, "Checkpoint '%s' is not pending", qmp_str(args, "id"));
	return c;
}

/* A client that has missed the answer asks again. */
COMMAND(command_checkpoint_end)
{
	bool success = qmp_bool(args, "success", false);
	struct checkpoint *c = find(args, err);

	if (c)
		return checkpoint_end(c, success, "command", err);
	if (!success || !checkpoint_is_active(qmp_str(args, "id")))
		return -ENOENT;
	*err = ERROR_INIT;
	return 0;
}

COMMAND(command_checkpoint_renew)
{
	struct checkpoint *c = find(args, err);
	uint64_t lease = 0;
	int rc = c ? take_u64(args, "lease", 1, LEASE_MAX, &lease, err) : -ENOENT;

	if (!rc)
		checkpoint_renew(c, lease);
	return rc;
}

COMMAND(command_checkpoint_delete)
{
	return checkpoint_delete(qmp_str(args, "id"), err);
}

COMMAND(command_query_checkpoints)
{
	return checkpoint_query(ret, err);
}
