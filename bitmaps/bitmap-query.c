/* SPDX-License-Identifier: BSD-3-Clause */
/* bitmap-query: bitmaps as QMP shows them.
 *
 * BlockDirtyInfo says what is in memory, Qcow2BitmapInfo what the image holds at
 * this moment (marked as in use while it is open read-write), as in QEMU.  Members
 * that are optional in the schema are there only when they say something.
 */

#include <json-c/json.h>

#include "bitmaps/live.h"
#include "bitmaps/store-int.h"

static void add_bool(struct json_object *o, const char *key, bool v)
{
	json_object_object_add(o, key, json_object_new_boolean(v));
}

static struct json_object *dirty_info(const struct bitmap *b)
{
	struct json_object *o = json_object_new_object();

	if (b->name[0])			/* a successor has none, as in QEMU */
		json_object_object_add(o, "name", json_object_new_string(b->name));
	add_bool(o, "recording", b->enabled);
	add_bool(o, "persistent", b->persistent);
	add_bool(o, "busy", b->busy != 0);
	json_object_object_add(o, "granularity", json_object_new_uint64(bitmap_granularity(b)));
	/* QEMU counts whole granules, also past the end of the disk. */
	json_object_object_add(o, "count", json_object_new_uint64(b->dirty << b->granularity_bits));
	if (b->inconsistent)
		add_bool(o, "inconsistent", true);
	if (live_has(b))
		add_bool(o, "crash-safe", true);	/* Merino's own */
	return o;
}

struct json_object *bitmaps_query(struct node *n)
{
	struct json_object *list;

	if (!n->bitmaps)
		return NULL;
	list = json_object_new_array();
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		json_object_array_add(list, dirty_info(b));
	return list;
}

static struct json_object *stored_info(const struct dir_entry *e)
{
	struct json_object *o = json_object_new_object(), *flags = json_object_new_array();

	if (e->flags & DIR_IN_USE)
		json_object_array_add(flags, json_object_new_string("in-use"));
	if (e->flags & DIR_AUTO)
		json_object_array_add(flags, json_object_new_string("auto"));
	json_object_object_add(o, "flags", flags);
	json_object_object_add(o, "name", json_object_new_string(e->name));
	json_object_object_add(o, "granularity",
			       json_object_new_uint64(1ull << min_u64(e->granularity_bits, 63)));
	return o;
}

struct json_object *bitmaps_query_stored(struct node *n)
{
	struct qcow2_bitmap_ext ext;
	struct json_object *list;
	struct dir_entry e;
	struct directory d;

	if (!node_is_qcow2(n) || store_read_dir(n, &ext, &d, NULL) < 0)
		return NULL;
	list = json_object_new_array();
	for (uint32_t i = 0; i < d.n; i++) {
		dir_get(&d, i, &e);
		json_object_array_add(list, stored_info(&e));
	}
	dir_free(&d);
	return list;
}
