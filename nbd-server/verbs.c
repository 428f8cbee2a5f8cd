/* SPDX-License-Identifier: BSD-3-Clause */
/* verbs: what each bitmap command does, how it is undone, and what of it waits.
 *
 * Apply, undo and commit run on the node's loop with the gates closed.  The bitmaps
 * that a merge reads may belong to another loop; their gates are closed as well.
 */
#include "nbd-server/transaction.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "backup/checkpoint.h"
#include "bitmaps/bitmap.h"
#include "common/loop.h"
#include "format/node.h"
#include "nbd-server/commands-backup.h"
#include "nbd-server/commands.h"

static int find_bitmap(struct action *a, const char *key, struct error *err)
{
	a->bitmap = bitmap_find(a->node, qmp_str(a->data, key), err);
	return a->bitmap ? 0 : -ENOENT;
}

/* -- nodes -------------------------------------------------------------------- */

static int bitmap_prepare(struct action *a, struct error *err)
{
	return action_node(a, qmp_str(a->data, "node"), err);
}

static int merge_prepare(struct action *a, struct error *err)
{
	struct json_object *bitmaps = json_object_object_get(a->data, "bitmaps");
	int rc = bitmap_prepare(a, err);

	for (size_t i = 0; i < json_object_array_length(bitmaps) && !rc; i++) {
		struct json_object *ref = json_object_array_get_idx(bitmaps, i);
		const char *name = json_object_is_type(ref, json_type_string)
			? a->node->name : qmp_str(ref, "node");
		struct node *n = command_node_find(name);

		rc = n ? action_other(a, n, err)
		       : error_set(err, -ENOENT, "Node '%s' not found", name);
	}
	return rc;
}

static void expect_end_on_loop(void *arg)
{
	bitmaps_expect_end(arg);
}

static void bitmap_clean(struct action *a, bool done)
{
	bitmap_backup_free(a->backup);
	if (a->expects)
		loop_call(a->node->loop, expect_end_on_loop, a->node);
}

/* What a persistent bitmap needs is made while guests go on. */
static void expect_on_loop(void *arg)
{
	struct action *a = arg;
	struct json_object *v;
	int64_t granularity = json_object_object_get_ex(a->data, "granularity", &v) ? json_object_get_int64(v) : 0;

	if (granularity >= 0)
		bitmaps_expect(a->node, (uint64_t)granularity);
}

static void expect_clear_on_loop(void *arg)
{
	struct action *a = arg;

	bitmaps_expect_clear(a->node, qmp_str(a->data, "name"));
}

static int clear_prepare(struct action *a, struct error *err)
{
	int rc = bitmap_prepare(a, err);

	a->expects = !rc;
	if (!rc)
		loop_call(a->node->loop, expect_clear_on_loop, a);
	return rc;
}

static int add_prepare(struct action *a, struct error *err)
{
	int rc = bitmap_prepare(a, err);

	a->expects = !rc && qmp_bool(a->data, "persistent", false);
	if (a->expects)
		loop_call(a->node->loop, expect_on_loop, a);
	return rc;
}

/* -- add and remove ----------------------------------------------------------- */

static int add_apply(struct action *a, struct error *err)
{
	struct json_object *v;
	int64_t granularity = 0;

	if (json_object_object_get_ex(a->data, "granularity", &v)) {
		granularity = json_object_get_int64(v);
		if (granularity < 0 || granularity > UINT32_MAX)
			return error_set(err, -EINVAL, "Parameter 'granularity' expects uint32_t");
		if (granularity == 0)
			return error_set(err, -EINVAL,
					 "Granularity must be power of 2 and at least %u",
					 BITMAP_GRANULARITY_MIN);
	}
	if (checkpoint_guard(qmp_str(a->data, "name"), err))
		return -EPERM;
	return bitmap_add(a->node, qmp_str(a->data, "name"), (uint64_t)granularity,
			  qmp_bool(a->data, "persistent", false),
			  qmp_bool(a->data, "disabled", false), &a->bitmap, err);
}

static void add_undo(struct action *a)
{
	/* It was never stored, so nothing on disk can fail. */
	a->bitmap->persistent = false;
	bitmap_remove(a->bitmap, NULL);
}

/* Until commit the bitmap is only made busy: nothing later in the transaction may
 * use it, and its name stays taken. */
static int remove_apply(struct action *a, struct error *err)
{
	int rc = find_bitmap(a, "name", err);

	if (!rc)
		rc = bitmap_check(a->bitmap, BITMAP_NOT_BUSY | BITMAP_NOT_RO, err);
	if (!rc)
		a->bitmap->busy++;
	return rc;
}

static void remove_undo(struct action *a)
{
	a->bitmap->busy--;
}

static int remove_ahead(struct action *a, struct error *err)
{
	return bitmap_unstore(a->bitmap, err);
}

static int remove_commit(struct action *a, struct error *err)
{
	int rc;

	a->bitmap->busy--;
	rc = bitmap_remove(a->bitmap, err);
	if (rc)
		a->bitmap->busy++;
	return rc;
}

/* -- clear and merge ----------------------------------------------------------- */

static int keep_bits(struct action *a, struct error *err)
{
	a->backup = bitmap_save(a->bitmap);
	return a->backup ? 0 : error_set(err, -ENOMEM, "Out of memory");
}

static void give_bits_back(struct action *a)
{
	bitmap_restore(a->bitmap, a->backup);
	a->backup = NULL;
}

static int clear_apply(struct action *a, struct error *err)
{
	int rc = find_bitmap(a, "name", err);

	if (!rc)
		rc = checkpoint_guard(a->bitmap->name, err);
	if (!rc)
		rc = bitmap_check(a->bitmap, BITMAP_CHECK_DEFAULT, err);
	if (!rc)
		rc = keep_bits(a, err);
	return rc ? rc : bitmap_clear(a->bitmap, err);
}

/* The I-th source: a name on the target's node, or {"node":…,"name":…}. */
static struct bitmap *merge_source(struct action *a, unsigned i, struct error *err)
{
	struct json_object *ref;

	ref = json_object_array_get_idx(json_object_object_get(a->data, "bitmaps"), i);
	return bitmap_find(a->others[i], json_object_is_type(ref, json_type_string)
			   ? json_object_get_string(ref) : qmp_str(ref, "name"), err);
}

static int merge_apply(struct action *a, struct error *err)
{
	struct bitmap **sources = calloc(a->n_others + 1, sizeof(struct bitmap *));
	int rc = sources ? find_bitmap(a, "target", err)
			 : error_set(err, -ENOMEM, "Out of memory");

	if (!rc)
		rc = bitmap_check(a->bitmap, BITMAP_CHECK_DEFAULT, err);
	for (unsigned i = 0; i < a->n_others && !rc; i++) {
		sources[i] = merge_source(a, i, err);
		rc = sources[i] ? 0 : -ENOENT;
	}
	if (!rc)
		rc = keep_bits(a, err);
	if (!rc)
		rc = bitmap_merge(a->bitmap, sources, a->n_others, err);
	free(sources);
	return rc;
}

/* -- enable and disable -------------------------------------------------------- */

static int set_enabled(struct action *a, bool enabled, struct error *err)
{
	int rc = find_bitmap(a, "name", err);

	if (!rc)
		rc = checkpoint_guard(a->bitmap->name, err);
	if (rc)
		return rc;
	a->was_enabled = a->bitmap->enabled;
	return bitmap_set_enabled(a->bitmap, enabled, err);
}

static int enable_apply(struct action *a, struct error *err)
{
	return set_enabled(a, true, err);
}

static int disable_apply(struct action *a, struct error *err)
{
	return set_enabled(a, false, err);
}

static void enabled_undo(struct action *a)
{
	bitmap_set_enabled(a->bitmap, a->was_enabled, NULL);
}

/* -- abort --------------------------------------------------------------------- */

static int abort_apply(struct action *a, struct error *err)
{
	return error_set(err, -ECANCELED, "Transaction aborted using Abort action");
}

#define BITMAP_ACTION .prepare = bitmap_prepare, .clean = bitmap_clean

const struct verb verbs[] = {
	{ "block-dirty-bitmap-add", args_bitmap_add, .prepare = add_prepare, .clean = bitmap_clean,
	  .apply = add_apply, .undo = add_undo },
	{ "block-dirty-bitmap-remove", args_bitmap, BITMAP_ACTION,
	  .apply = remove_apply, .undo = remove_undo, .ahead = remove_ahead, .commit = remove_commit },
	{ "block-dirty-bitmap-clear", args_bitmap, .prepare = clear_prepare, .clean = bitmap_clean,
	  .apply = clear_apply, .undo = give_bits_back },
	{ "block-dirty-bitmap-merge", args_bitmap_merge, .prepare = merge_prepare,
	  .clean = bitmap_clean, .apply = merge_apply, .undo = give_bits_back },
	{ "block-dirty-bitmap-enable", args_bitmap, BITMAP_ACTION,
	  .apply = enable_apply, .undo = enabled_undo },
	{ "block-dirty-bitmap-disable", args_bitmap, BITMAP_ACTION,
	  .apply = disable_apply, .undo = enabled_undo },
	{ "blockdev-backup", args_blockdev_backup, .prepare = blockdev_backup_prepare,
	  .apply = backup_apply, .undo = backup_apply_undo, .clean = backup_action_clean,
	  .starts_job = true },
	{ "drive-backup", args_drive_backup, .prepare = drive_backup_prepare,
	  .apply = backup_apply, .undo = backup_apply_undo, .clean = backup_action_clean,
	  .starts_job = true },
	{ "abort", args_nothing, .apply = abort_apply, .changes_nothing = true },
	{ NULL },
};

const struct verb *verb_find(const char *name)
{
	for (const struct verb *v = verbs; v->name; v++) {
		if (!strcmp(v->name, name))
			return v;
	}
	return NULL;
}
