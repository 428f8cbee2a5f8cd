/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-device: query-block and query-blockstats.
 *
 * Every writable export shows as a device, so that programs which were written for
 * a whole QEMU find its disks.  Members are those of QEMU's BlockInfo and
 * BlockStats.  A device counts its clients' requests, a node what reaches it.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <stdlib.h>

#include "common/loop.h"
#include "format/node.h"
#include "nbd-server/export.h"

const struct qmp_arg args_blockstats[] = {
	{ "query-nodes", QMP_BOOL, false, "all nodes by name, not devices" },
	{ NULL },
};

static void add_str(struct json_object *o, const char *key, const char *v)
{
	json_object_object_add(o, key, json_object_new_string(v));
}

static void add_bool(struct json_object *o, const char *key, bool v)
{
	json_object_object_add(o, key, json_object_new_boolean(v));
}

static void add_u64(struct json_object *o, const char *key, uint64_t v)
{
	json_object_object_add(o, key, json_object_new_uint64(v));
}

/* Runs FN for each device on its export's loop; what it returns goes into LIST. */
struct device_call {
	struct export *export;
	struct json_object *(*fn)(struct export *e);
	struct json_object *result;
};

static void device_on_loop(void *arg)
{
	struct device_call *c = arg;

	c->result = c->fn(c->export);
}

static struct json_object *each_device(struct json_object *(*fn)(struct export *e))
{
	struct json_object *list = json_object_new_array();
	uint64_t serial = 0;

	for (struct export *e = export_next(0); e; e = export_next(serial)) {
		struct device_call c = { e, fn };

		serial = e->serial;
		if (!e->writable)
			continue;
		export_ref(e);
		loop_call(e->loop, device_on_loop, &c);
		export_unref(e);
		json_object_array_add(list, c.result);
	}
	return list;
}

/* -- query-block ------------------------------------------------------------------ */

static struct json_object *device_info(struct export *e)
{
	struct json_object *o = json_object_new_object();
	char path[EXPORT_QDEV_SIZE];

	add_str(o, "device", "");
	add_str(o, "qdev", export_qdev(e, path, sizeof(path)));
	add_str(o, "type", "unknown");
	add_bool(o, "removable", false);
	add_bool(o, "locked", false);
	json_object_object_add(o, "inserted", block_device_info(e->node, false));
	return o;
}

COMMAND(command_query_block)
{
	*ret = each_device(device_info);
	return 0;
}

/* -- query-blockstats --------------------------------------------------------------- */

/* BlockDeviceStats.  Merging, latencies and idle time are not measured. */
static struct json_object *stats_json(const struct io_stats *s, uint64_t highest, bool device)
{
	static const struct {
		enum io_kind kind;
		const char *bytes, *ops, *ns, *failed, *invalid, *merged;
	} names[] = {
		{ IO_KIND_READ, "rd_bytes", "rd_operations", "rd_total_time_ns",
		  "failed_rd_operations", "invalid_rd_operations", "rd_merged" },
		{ IO_KIND_WRITE, "wr_bytes", "wr_operations", "wr_total_time_ns",
		  "failed_wr_operations", "invalid_wr_operations", "wr_merged" },
		{ IO_KIND_UNMAP, "unmap_bytes", "unmap_operations", "unmap_total_time_ns",
		  "failed_unmap_operations", "invalid_unmap_operations", "unmap_merged" },
		{ IO_KIND_FLUSH, NULL, "flush_operations", "flush_total_time_ns",
		  "failed_flush_operations", "invalid_flush_operations", NULL },
	};
	struct json_object *o = json_object_new_object();

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		enum io_kind k = names[i].kind;

		if (names[i].bytes)
			add_u64(o, names[i].bytes, s->bytes[k]);
		add_u64(o, names[i].ops, s->ops[k]);
		add_u64(o, names[i].ns, s->ns[k]);
		add_u64(o, names[i].failed, s->failed[k]);
		add_u64(o, names[i].invalid, 0);
		if (names[i].merged)
			add_u64(o, names[i].merged, 0);
	}
	add_u64(o, "wr_highest_offset", highest);
	add_bool(o, "account_invalid", false);
	add_bool(o, "account_failed", device);
	json_object_object_add(o, "timed_stats", json_object_new_array());
	return o;
}

static struct json_object *node_stats(const struct node *n);

static void add_children(struct json_object *o, const struct node *n)
{
	if (n->child[CHILD_FILE])
		json_object_object_add(o, "parent", node_stats(n->child[CHILD_FILE]));
	if (n->child[CHILD_BACKING])
		json_object_object_add(o, "backing", node_stats(n->child[CHILD_BACKING]));
}

static struct json_object *node_stats(const struct node *n)
{
	struct json_object *o = json_object_new_object();

	add_str(o, "node-name", n->name);
	json_object_object_add(o, "stats", stats_json(&n->stats, n->wr_highest, false));
	add_children(o, n);
	return o;
}

static struct json_object *device_stats(struct export *e)
{
	struct json_object *o = json_object_new_object();
	char path[EXPORT_QDEV_SIZE];

	add_str(o, "device", "");
	add_str(o, "qdev", export_qdev(e, path, sizeof(path)));
	add_str(o, "node-name", e->node->name);
	json_object_object_add(o, "stats", stats_json(&e->stats, e->node->wr_highest, true));
	add_children(o, e->node);
	return o;
}

static int node_stats_on_loop(struct node *n, void *arg, struct error *err)
{
	struct json_object **result = arg;

	*result = node_stats(n);
	node_unref(n);
	return 0;
}

static int query_nodes(struct json_object **ret, struct error *err)
{
	unsigned n;
	struct node **v = command_all_nodes(&n);

	if (!v)
		return error_set(err, -ENOMEM, "Out of memory");
	*ret = json_object_new_array();
	for (unsigned i = 0; i < n; i++) {
		struct json_object *one;

		command_node_call(v[i], node_stats_on_loop, &one, NULL);
		json_object_array_add(*ret, one);
	}
	free(v);
	return 0;
}

COMMAND(command_query_blockstats)
{
	if (qmp_bool(args, "query-nodes", false))
		return query_nodes(ret, err);
	*ret = each_device(device_stats);
	return 0;
}
