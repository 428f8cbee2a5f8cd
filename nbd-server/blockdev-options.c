/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-options: what blockdev-add's union has beside its common members.
 *
 * A driver says which options it has (struct node_driver); here is one row for
 * each name, whichever driver has it: its type and what it is for.  From both come
 * the cases that query-qmp-schema shows.  The drivers check what they are given.
 */
#include "nbd-server/commands.h"

#include <stdlib.h>
#include <string.h>

#include "format/node.h"

static const char *const aio_values[] = { "threads", "native", "io_uring", NULL };
static const char *const locking_values[] = { "auto", "on", "off", NULL };
static const char *const crash_log_values[] = { "auto", "on", "off", NULL };
static const char *const overlap_values[] = { "none", "constant", "cached", "all", NULL };
static const char *const cbw_error_values[] = { "break-guest-write", "break-snapshot", NULL };
static const char *const blkdebug_events[] = {
	"l1_update", "l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table",
	"l2_load", "l2_update", "l2_update_compressed", "l2_alloc_cow_read", "l2_alloc_write",
	"read_aio", "read_backing_aio", "read_compressed", "write_aio", "write_compressed",
	"vmstate_load", "vmstate_save", "cow_read", "cow_write", "reftable_load", "reftable_grow",
	"reftable_update", "refblock_load", "refblock_update", "refblock_update_part",
	"refblock_alloc", "refblock_alloc_hookup", "refblock_alloc_write",
	"refblock_alloc_write_blocks", "refblock_alloc_write_table",
	"refblock_alloc_switch_table", "cluster_alloc", "cluster_alloc_bytes", "cluster_free",
	"flush_to_os", "flush_to_disk", "pwritev_rmw_head", "pwritev_rmw_after_head",
	"pwritev_rmw_tail", "pwritev_rmw_after_tail", "pwritev", "pwritev_zero", "pwritev_done",
	"empty_image_prepare", "l1_shrink_write_table", "l1_shrink_free_l2_clusters", "cor_write",
	"cluster_alloc_space", "none", NULL,
};
static const char *const blkdebug_iotypes[] = {
	"read", "write", "write-zeroes", "discard", "flush", "block-status", NULL,
};
static const char *const blkdebug_perms[] = {
	"consistent-read", "write", "write-unchanged", "resize", NULL,
};

static const struct qmp_arg item_blkdebug_perm = { "null", QMP_STR, .values = blkdebug_perms };

static const struct qmp_arg inject_error_members[] = {
	{ "event", QMP_STR, true, "when", .values = blkdebug_events },
	{ "iotype", QMP_STR, false, "of these requests only", .values = blkdebug_iotypes },
	{ "state", QMP_INT, false, "in this state only" },
	{ "errno", QMP_INT, false, "the error" },
	{ "sector", QMP_INT, false, "when this sector is touched" },
	{ "once", QMP_BOOL, false, "one time only" },
	{ "immediately", QMP_BOOL, false, "before anything else happens" },
	{ NULL },
};

static const struct qmp_arg item_inject_error = {
	"null", QMP_OBJECT, .members = inject_error_members,
};

static const struct qmp_arg set_state_members[] = {
	{ "event", QMP_STR, true, "when", .values = blkdebug_events },
	{ "state", QMP_INT, false, "in this state only" },
	{ "new_state", QMP_INT, true, "the state that follows" },
	{ NULL },
};

static const struct qmp_arg item_set_state = { "null", QMP_OBJECT, .members = set_state_members };

static const struct qmp_arg bitmap_members[] = {
	{ "node", QMP_STR, true, "node that has the bitmap" },
	{ "name", QMP_STR, true, "the bitmap" },
	{ NULL },
};

#define BLOCKDEV_REF .alternate = "BlockdevRef", .members = args_blockdev_add, .open = true

/* By name.  "path" and its like, of nbd's server, are members of an address. */
static const struct qmp_arg rows[] = {
	{ "aio", QMP_STR, false, "how the file is read and written", .values = aio_values },
	{ "align", QMP_INT, false, "bytes that requests must be multiples of" },
	{ "backing", QMP_STR_OBJECT_NULL, false, "what shows through; null: nothing",
	  .alternate = "BlockdevRefOrNull", .members = args_blockdev_add, .open = true },
	{ "bitmap", QMP_OBJECT, false, "what is copied", .members = bitmap_members },
	{ "bottom", QMP_STR, false, "the node that is not looked below" },
	{ "cache-clean-interval", QMP_INT, false, "seconds" },
	{ "cache-size", QMP_INT, false, "bytes of both caches" },
	{ "cbw-timeout", QMP_INT, false, "seconds that a write waits at most; 0: any time" },
	{ "config", QMP_STR, false, "file with rules" },
	{ "crash-log", QMP_STR, false, "mappings are kept when the process is killed",
	  .values = crash_log_values },
	{ "crash-log-dir", QMP_STR, false, "where they are kept" },
	{ "data-file", QMP_STR_OR_OBJECT, false, "the external data file", BLOCKDEV_REF },
	{ "discard-no-unref", QMP_BOOL, false, "clusters stay where they are" },
	{ "export", QMP_STR, false, "the export's name" },
	{ "file", QMP_STR_OR_OBJECT, true, "the node below", BLOCKDEV_REF },
	{ "filename", QMP_STR, true, "path of the file" },
	{ "image", QMP_STR_OR_OBJECT, true, "the node below", BLOCKDEV_REF },
	{ "inject-error", QMP_ARRAY, false, "errors to make", .item = &item_inject_error },
	{ "internal-snapshot", QMP_STR, false, "shows this snapshot, read only" },
	{ "l2-cache-entry-size", QMP_INT, false, "bytes of a piece of the L2 cache" },
	{ "l2-cache-size", QMP_INT, false, "bytes" },
	{ "latency-ns", QMP_UINT, false, "time that each request takes" },
	{ "lazy-refcounts", QMP_BOOL, false, "reference counts may be late" },
	{ "locking", QMP_STR, false, "whether other processes are kept out",
	  .values = locking_values },
	{ "max-discard", QMP_INT, false, "bytes" },
	{ "max-transfer", QMP_INT, false, "bytes" },
	{ "max-write-zero", QMP_INT, false, "bytes" },
	{ "min-cluster-size", QMP_INT, false, "bytes that are kept at once, at least" },
	{ "offset", QMP_INT, false, "where the disk begins in its file, bytes" },
	{ "on-cbw-error", QMP_STR, false, "what gives way", .values = cbw_error_values },
	{ "open-timeout", QMP_UINT, false, "seconds to go on trying to connect" },
	{ "opt-discard", QMP_INT, false, "bytes" },
	{ "opt-write-zero", QMP_INT, false, "bytes" },
	{ "overlap-check", QMP_STR, false, "which tables are kept from being overwritten",
	  .values = overlap_values },
	{ "pass-discard-other", QMP_BOOL, false, "of other freed clusters" },
	{ "pass-discard-request", QMP_BOOL, false, "of what the guest discards" },
	{ "pass-discard-snapshot", QMP_BOOL, false, "of what deleted snapshots held" },
	{ "prealloc-align", QMP_INT, false, "bytes" },
	{ "prealloc-size", QMP_INT, false, "bytes" },
	{ "read-zeroes", QMP_BOOL, false, "reads give zeroes" },
	{ "reconnect-delay", QMP_UINT, false, "seconds that requests wait for the server" },
	{ "refcount-cache-size", QMP_INT, false, "bytes" },
	{ "server", QMP_OBJECT, true, "where the server is", .members = args_flat_address },
	{ "set-state", QMP_ARRAY, false, "changes of state", .item = &item_set_state },
	{ "sidecar-dir", QMP_STR, false, "where bitmaps are kept, if not beside the image" },
	{ "size", QMP_INT, false, "bytes of the disk" },
	{ "take-child-perms", QMP_ARRAY, false, "permissions", .item = &item_blkdebug_perm },
	{ "target", QMP_STR_OR_OBJECT, true, "where old data goes", BLOCKDEV_REF },
	{ "throttle-group", QMP_STR, true, "the group whose limits hold" },
	{ "tls-creds", QMP_STR, false, "object with credentials" },
	{ "tls-hostname", QMP_STR, false, "the server's name in its certificate" },
	{ "trust-sidecar", QMP_BOOL, false, "nobody else wrote to the device after a crash" },
	{ "unshare-child-perms", QMP_ARRAY, false, "permissions", .item = &item_blkdebug_perm },
	{ NULL },
};

/* Made once; it lasts as long as the process. */
const struct qmp_case *blockdev_cases(void)
{
	static const struct qmp_case none = { NULL };
	static struct qmp_case *cases;
	size_t n = 0;

	if (cases)
		return cases;
	while (node_drivers[n])
		n++;
	cases = calloc(n + 1, sizeof(*cases));
	for (size_t i = 0; cases && i < n; i++)
		cases[i] = (struct qmp_case){ node_drivers[i]->name, qmp_rows(rows, node_drivers[i]->options) };
	return cases ? cases : &none;
}
