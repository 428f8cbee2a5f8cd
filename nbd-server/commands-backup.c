/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-backup: blockdev-backup, as a command and as an action of transactions.
 *
 * What it does is in backup/backup.c; here its arguments are checked, in QEMU's order
 * and with QEMU's texts.
 */
#include "nbd-server/commands-backup.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "common/checked.h"
#include "format/node.h"
#include "nbd-server/commands.h"
#include "nbd-server/export.h"
#include "nbd-server/transaction.h"

enum { SYNC_TOP, SYNC_FULL, SYNC_NONE, SYNC_INCREMENTAL, SYNC_BITMAP };

static const char *const drive_backup_modes[] = { "existing", "absolute-paths", NULL };
static const char *const sync_modes[] = { "top", "full", "none", "incremental", "bitmap", NULL };
static const char *const bitmap_modes[] = { "on-success", "never", "always", NULL };
static const char *const on_errors[] = { "report", "ignore", "enospc", "stop", "auto", NULL };
static const char *const on_cbw_errors[] = { "break-guest-write", "break-snapshot", NULL };

static const struct qmp_arg args_perf[] = {
	{ "use-copy-range", QMP_BOOL, false, "true is not supported" },
	{ "max-workers", QMP_INT, false, "requests at a time" },
	{ "max-chunk", QMP_INT, false, "bytes of one request; 0: no limit" },
	{ "min-cluster-size", QMP_UINT, false, "bytes that are copied whole, a power of two" },
	{ NULL },
};

const struct qmp_arg args_blockdev_backup[] = {
	{ "job-id", QMP_STR, false, "the job's name; default: device, if that is an export" },
	{ "device", QMP_STR, true, "what is copied: a node, or the id of an export" },
	{ "target", QMP_STR, true, "node that it is copied to" },
	{ "sync", QMP_STR, true, "what of it: see BACKUP", .values = sync_modes },
	{ "speed", QMP_INT, false, "bytes a second; 0 (the default): no limit" },
	{ "bitmap", QMP_STR, false, "a bitmap of the source" },
	{ "bitmap-mode", QMP_STR, false, "what becomes of it at the end", .values = bitmap_modes },
	{ "compress", QMP_BOOL, false, "stores compressed clusters (qcow2)" },
	{ "on-source-error", QMP_STR, false, "what is done when a read fails; default report",
	  .values = on_errors },
	{ "on-target-error", QMP_STR, false, "the same for a write", .values = on_errors },
	{ "on-cbw-error", QMP_STR, false, "break-snapshot (the default); break-guest-write is not supported",
	  .values = on_cbw_errors },
	{ "auto-finalize", QMP_BOOL, false, "takes effect by itself; default true" },
	{ "auto-dismiss", QMP_BOOL, false, "is forgotten when it has ended; default true" },
	{ "filter-node-name", QMP_STR, false, "name of the node between a scratch image and the disk: sync mode none only" },
	{ "discard-source", QMP_BOOL, false, "gives back what was copied; of snapshot-access nodes only" },
	{ "x-perf", QMP_OBJECT, false, "how it copies", .members = args_perf },
	{ NULL },
};

const struct qmp_arg args_drive_backup[] = {
	{ "job-id", QMP_STR, false, "the job's name; default: device, if that is an export" },
	{ "device", QMP_STR, true, "what is copied: a node, or the id of an export" },
	{ "target", QMP_STR, true, "name of the file that it is copied to" },
	{ "format", QMP_STR, false, "qcow2 or raw; default: the source's" },
	{ "sync", QMP_STR, true, "what of it: see BACKUP", .values = sync_modes },
	{ "mode", QMP_STR, false, "absolute-paths (the default) makes the file; existing: it is there",
	  .values = drive_backup_modes },
	{ "speed", QMP_INT, false, "bytes a second; 0 (the default): no limit" },
	{ "bitmap", QMP_STR, false, "a bitmap of the source" },
	{ "bitmap-mode", QMP_STR, false, "what becomes of it at the end", .values = bitmap_modes },
	{ "compress", QMP_BOOL, false, "stores compressed clusters (qcow2)" },
	{ "on-source-error", QMP_STR, false, "what is done when a read fails; default report",
	  .values = on_errors },
	{ "on-target-error", QMP_STR, false, "the same for a write", .values = on_errors },
	{ "on-cbw-error", QMP_STR, false, "break-snapshot (the default); break-guest-write is not supported",
	  .values = on_cbw_errors },
	{ "auto-finalize", QMP_BOOL, false, "takes effect by itself; default true" },
	{ "auto-dismiss", QMP_BOOL, false, "is forgotten when it has ended; default true" },
	{ "filter-node-name", QMP_STR, false, "name of the node between a scratch image and the disk: sync mode none only" },
	{ "discard-source", QMP_BOOL, false, "gives back what was copied; of snapshot-access nodes only" },
	{ "x-perf", QMP_OBJECT, false, "how it copies", .members = args_perf },
	{ NULL },
};

/* -- arguments ------------------------------------------------------------------------ */

static int64_t number(struct json_object *o, const char *key)
{
	return json_object_get_int64(json_object_object_get(o, key));
}

/* A node, or what an export shows; with a reference. */
static struct node *find_device(const char *name, bool *is_export)
{
	struct node *n = command_node_find(name);
	struct export *e = n ? NULL : export_find_id(name);

	*is_export = e;
	return e ? command_node_find(e->node_name) : n;
}

static int check_bitmap(struct json_object *args, int sync, struct backup_options *o,
			struct error *err)
{
	const char *name = sync_modes[sync], *mode = qmp_str(args, "bitmap-mode");

	o->bitmap = qmp_str(args, "bitmap");
	if ((sync == SYNC_BITMAP || sync == SYNC_INCREMENTAL) && !o->bitmap)
		return error_set(err, -EINVAL, "must provide a valid bitmap name for '%s' sync mode",
				 name);
	if (sync == SYNC_INCREMENTAL && mode && strcmp(mode, "on-success"))
		return error_set(err, -EINVAL, "Bitmap sync mode must be 'on-success' when using "
				 "sync mode '%s'", name);
	if (sync == SYNC_INCREMENTAL)
		mode = "on-success";
	if (o->bitmap && !mode)
		return error_set(err, -EINVAL, "Bitmap sync mode must be given when providing a bitmap");
	if (o->bitmap && sync == SYNC_NONE)
		return error_set(err, -EINVAL, "sync mode 'none' does not produce meaningful bitmap outputs");
	if (o->bitmap && !strcmp(mode, "never") && sync != SYNC_BITMAP && sync != SYNC_INCREMENTAL)
		return error_set(err, -EINVAL, "Bitmap sync mode 'never' has no meaningful effect when "
				 "combined with sync mode '%s'", name);
	if (!o->bitmap && mode)
		return error_set(err, -EINVAL, "Cannot specify bitmap sync mode without a bitmap");
	o->bitmap_mode = (enum backup_bitmap_mode)qmp_choice(args, "bitmap-mode", bitmap_modes, 0);
	return 0;
}

static int check_perf(struct json_object *args, struct backup_options *o, struct error *err)
{
	struct json_object *perf = json_object_object_get(args, "x-perf");
	uint64_t cluster;

	if (!perf)
		return 0;
	if (qmp_bool(perf, "use-copy-range", false))
		return error_set(err, -ENOTSUP, "x-perf.use-copy-range=true is not supported");
	if (json_object_object_get_ex(perf, "max-workers", NULL) &&
	    (number(perf, "max-workers") < 1 || number(perf, "max-workers") > INT_MAX))
		return error_set(err, -EINVAL, "max-workers must be between 1 and %d", INT_MAX);
	if (number(perf, "max-chunk") < 0)
		return error_set(err, -EINVAL,
				 "max-chunk must be zero (which means no limit) or positive");
	cluster = qmp_u64(perf, "min-cluster-size");
	if (cluster && !is_pow2(cluster))
		return error_set(err, -EINVAL, "min-cluster-size needs to be a power of 2");
	if (cluster > BACKUP_CLUSTER_MAX)
		return error_set(err, -EINVAL, "min-cluster-size too large: %llu > %u",
				 (unsigned long long)cluster, BACKUP_CLUSTER_MAX);
	o->workers = (unsigned)number(perf, "max-workers");
	o->max_chunk = (uint64_t)number(perf, "max-chunk");
	o->cluster_min = cluster;
	return 0;
}

static int check_filters(struct json_object *args, struct backup_options *o, struct error *err)
{
	o->filter_name = qmp_str(args, "filter-node-name");
	if (o->filter_name && o->sync != BACKUP_NONE)
		return error_set(err, -ENOTSUP, "filter-node-name: with this sync mode there is no "
				 "filter above the source");
	if (qmp_choice(args, "on-cbw-error", on_cbw_errors, 1) == 0)
		return error_set(err, -ENOTSUP, "on-cbw-error=break-guest-write is not supported: "
				 "the guest comes first");
	return 0;
}

int backup_arguments(struct json_object *args, struct backup_options *o, struct error *err)
{
	static const enum backup_sync modes[] = {
		[SYNC_TOP] = BACKUP_TOP, [SYNC_FULL] = BACKUP_FULL, [SYNC_NONE] = BACKUP_NONE,
		[SYNC_INCREMENTAL] = BACKUP_BITMAP, [SYNC_BITMAP] = BACKUP_BITMAP,
	};
	int sync = qmp_choice(args, "sync", sync_modes, 0), rc;

	o->id = qmp_str(args, "job-id");
	o->sync = modes[sync];
	o->compress = qmp_bool(args, "compress", false);
	o->discard_source = qmp_bool(args, "discard-source", false);
	o->on_source_error = (enum job_on_error)qmp_choice(args, "on-source-error", on_errors, 0);
	o->on_target_error = (enum job_on_error)qmp_choice(args, "on-target-error", on_errors, 0);
	o->auto_finalize = qmp_bool(args, "auto-finalize", true);
	o->auto_dismiss = qmp_bool(args, "auto-dismiss", true);
	rc = check_bitmap(args, sync, o, err);
	if (!rc)
		rc = check_perf(args, o, err);
	if (!rc)
		rc = check_filters(args, o, err);
	if (!rc && number(args, "speed") < 0)
		rc = error_set(err, -EINVAL, "Parameter 'speed' expects a non-negative value");
	o->speed = (uint64_t)number(args, "speed");
	return rc;
}

/* -- the action ------------------------------------------------------------------------- */

int backup_source(struct action *a, struct backup_options *o, struct error *err)
{
	const char *device = qmp_str(a->data, "device");
	bool is_export;

	a->node = find_device(device, &is_export);
	if (!a->node)
		return error_set(err, -ENOENT, "Cannot find device='%s' nor node-name='%s'",
				 device, device);
	o->source = a->node;
	if (!o->id)
		o->id = is_export ? device : "";
	return 0;
}

int backup_prepare(struct action *a, const struct backup_options *o, struct error *err)
{
	struct backup *b = NULL;
	struct node *overlay;
	int rc = 0;

	if (o->source == o->target)
		rc = error_set(err, -EINVAL, "Source and target cannot be the same");
	if (!rc && o->discard_source && strcmp(o->source->driver->name, "snapshot-access"))
		rc = error_set(err, -ENOTSUP, "discard-source: node '%s' is no snapshot-access node",
			       o->source->name);
	if (!rc)
		rc = backup_new(o, &b, err);
	if (rc)
		return rc;
	a->own = b;
	job_join(backup_job(b), a->group);
	overlay = backup_overlay(b);
	return overlay ? action_other(a, node_ref(overlay), err) : 0;
}

int blockdev_backup_prepare(struct action *a, struct error *err)
{
	const char *target = qmp_str(a->data, "target");
	struct backup_options o = { 0 };
	int rc = backup_arguments(a->data, &o, err);

	o.bitmap_is_there = o.bitmap && a->first;
	if (!rc)
		rc = backup_source(a, &o, err);
	if (rc)
		return rc;
	o.target = command_node_find(target);
	if (!o.target)
		return error_set(err, -ENOENT, "Cannot find device='%s' nor node-name='%s'",
				 target, target);
	rc = backup_prepare(a, &o, err);
	command_node_unref(o.target);
	return rc;
}

int backup_apply(struct action *a, struct error *err)
{
	return backup_begin(a->own, err);
}

void backup_apply_undo(struct action *a)
{
	backup_undo(a->own);
}

void backup_action_clean(struct action *a, bool done)
{
	if (!a->own)
		return;
	if (done)
		backup_start(a->own);
	else
		backup_cancel(a->own);
}

COMMAND(command_blockdev_backup)
{
	struct action a = { .verb = verb_find("blockdev-backup"), .data = args };

	return transaction_run(&a, 1, err);
}
