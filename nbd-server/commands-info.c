/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-info: query-named-block-nodes.
 *
 * Members are those of QEMU's BlockDeviceInfo and ImageInfo.  What Merino has
 * no such thing as (throttling of devices, encryption) is there with the
 * value that says so.  A node's answer is made on its loop, from what is in
 * memory and from its image's bitmap directory.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bitmaps/bitmap.h"
#include "format/node.h"
#include "nbd-server/daemon.h"

static void add_str(struct json_object *o, const char *key, const char *v)
{
	json_object_object_add(o, key, json_object_new_string(v ? v : ""));
}

static void add_bool(struct json_object *o, const char *key, bool v)
{
	json_object_object_add(o, key, json_object_new_boolean(v));
}

static void add_u64(struct json_object *o, const char *key, uint64_t v)
{
	json_object_object_add(o, key, json_object_new_uint64(v));
}

/* Bytes of storage below N, its backing images left out. */
static uint64_t actual_size(const struct node *n)
{
	uint64_t sum = 0;
	struct stat st;

	if (n->child[CHILD_FILE] || n->child[CHILD_DATA_FILE]) {
		sum += n->child[CHILD_FILE] ? actual_size(n->child[CHILD_FILE]) : 0;
		sum += n->child[CHILD_DATA_FILE] ? actual_size(n->child[CHILD_DATA_FILE]) : 0;
		return sum;
	}
	if (!n->filename || stat(n->filename, &st) < 0)
		return 0;
	return (uint64_t)st.st_blocks * 512;
}

/* The bitmaps that the image holds, beside the driver's own format-specific data. */
static void add_stored_bitmaps(struct node *n, struct json_object *image)
{
	struct json_object *specific, *data, *stored;

	if (!json_object_object_get_ex(image, "format-specific", &specific) ||
	    !json_object_object_get_ex(specific, "data", &data))
		return;
	stored = bitmaps_query_stored(n);
	if (stored)
		json_object_object_add(data, "bitmaps", stored);
}

/* ImageInfo; FLAT: without the images behind it. */
static struct json_object *image_info(struct node *n, bool flat)
{
	struct json_object *o = json_object_new_object();
	struct node *backing = n->child[CHILD_BACKING];

	add_str(o, "filename", n->filename);
	add_str(o, "format", n->driver->name);
	add_u64(o, "virtual-size", n->size);
	add_u64(o, "actual-size", actual_size(n));
	add_bool(o, "dirty-flag", false);
	if (n->driver->info)
		n->driver->info(n, o);
	add_stored_bitmaps(n, o);
	if (backing && json_object_object_get_ex(o, "backing-filename", NULL))
		add_str(o, "full-backing-filename", backing->filename);
	if (backing && !flat)
		json_object_object_add(o, "backing-image", image_info(backing, flat));
	return o;
}

static void add_throttling(struct json_object *o)
{
	static const char *const limits[] = { "bps", "bps_rd", "bps_wr", "iops", "iops_rd",
					      "iops_wr" };

	for (unsigned i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
		add_u64(o, limits[i], 0);
}

static void add_cache(const struct node *n, struct json_object *o)
{
	struct json_object *cache = json_object_new_object();

	add_bool(cache, "writeback", true);
	add_bool(cache, "direct", n->cache_direct);
	add_bool(cache, "no-flush", n->cache_no_flush);
	json_object_object_add(o, "cache", cache);
}

static void add_children(const struct node *n, struct json_object *o)
{
	static const char *const names[] = {
		[CHILD_FILE] = "file", [CHILD_BACKING] = "backing",
		[CHILD_DATA_FILE] = "data-file", [CHILD_TARGET] = "target",
	};
	struct json_object *list = json_object_new_array();

	for (unsigned c = 0; c < CHILD_COUNT; c++) {
		struct json_object *child;

		if (!n->child[c])
			continue;
		child = json_object_new_object();
		add_str(child, "child", names[c]);
		add_str(child, "node-name", n->child[c]->name);
		json_object_array_add(list, child);
	}
	json_object_object_add(o, "children", list);
}

static unsigned backing_depth(const struct node *n)
{
	unsigned depth = 0;

	for (; (n = node_below(n)); depth++)
		;
	return depth;
}

struct json_object *block_device_info(struct node *n, bool flat)
{
	struct json_object *o = json_object_new_object(), *bitmaps = bitmaps_query(n);
	const struct node *backing = n->child[CHILD_BACKING];

	add_str(o, "node-name", n->name);
	add_str(o, "drv", n->driver->name);
	add_str(o, "file", n->filename);
	add_bool(o, "ro", n->read_only && !n->wants_write);
	add_bool(o, "active", !n->inactive);
	add_bool(o, "encrypted", false);
	add_str(o, "detect_zeroes", !n->detect_zeroes ? "off" : n->detect_unmap ? "unmap" : "on");
	add_throttling(o);
	add_u64(o, "write_threshold", n->write_threshold);
	add_cache(n, o);
	if (backing)
		add_str(o, "backing_file", backing->filename);
	add_u64(o, "backing_file_depth", flat ? 0 : backing_depth(n));
	add_children(n, o);
	json_object_object_add(o, "image", image_info(n, flat));
	if (bitmaps)
		json_object_object_add(o, "dirty-bitmaps", bitmaps);
	return o;
}

struct info_call {
	bool flat;
	struct json_object *info;
};

static int info_on_loop(struct node *n, void *arg, struct error *err)
{
	struct info_call *c = arg;

	c->info = block_device_info(n, c->flat);
	node_unref(n);
	return 0;
}

struct node **command_all_nodes(unsigned *n)
{
	struct graph *g = &the_daemon.graph;
	struct node **v = NULL;
	unsigned count = 0;

	pthread_mutex_lock(&g->lock);
	for (struct node *p = g->nodes; p; p = p->next)
		count++;
	v = calloc(count + 1, sizeof(struct node *));
	*n = 0;
	for (struct node *p = v ? g->nodes : NULL; p; p = p->next) {
		p->refs++;
		v[(*n)++] = p;
	}
	pthread_mutex_unlock(&g->lock);
	return v;
}

COMMAND(command_query_named_block_nodes)
{
	struct info_call c = { .flat = qmp_bool(args, "flat", false) };
	unsigned n;
	struct node **v = command_all_nodes(&n);

	if (!v)
		return error_set(err, -ENOMEM, "Out of memory");
	*ret = json_object_new_array();
	for (unsigned i = 0; i < n; i++) {
		command_node_call(v[i], info_on_loop, &c, NULL);
		json_object_array_add(*ret, c.info);
	}
	free(v);
	return 0;
}
