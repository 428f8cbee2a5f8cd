/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-types: what commands return, for query-qmp-schema.
 *
 * Names of types are QEMU's (its QMP reference manual).  tests/qmp holds every
 * result that it sees against these tables.
 */
#include "nbd-server/qmp-types.h"

#include <stddef.h>

static const struct qmp_arg item_str = { "null", QMP_STR };
static const struct qmp_arg item_int = { "null", QMP_INT };

/* -- the process ----------------------------------------------------------------- */

static const struct qmp_arg version_triple[] = {
	{ "major", QMP_INT, true },
	{ "minor", QMP_INT, true },
	{ "micro", QMP_INT, true },
	{ NULL },
};

static const struct qmp_arg version_info[] = {
	{ "qemu", QMP_OBJECT, true, .members = version_triple },
	{ "package", QMP_STR, true },
	{ NULL },
};

const struct qmp_arg ret_version = { "null", QMP_OBJECT, .members = version_info };

static const struct qmp_arg command_info[] = {
	{ "name", QMP_STR, true },
	{ NULL },
};

static const struct qmp_arg item_command = { "null", QMP_OBJECT, .members = command_info };

const struct qmp_arg ret_commands = { "null", QMP_ARRAY, .item = &item_command };

static const char *const meta_types[] = {
	"builtin", "enum", "array", "object", "alternate", "command", "event", NULL,
};

static const char *const json_types[] = {
	"string", "number", "int", "boolean", "null", "object", "array", "value", NULL,
};

static const struct qmp_arg schema_enum_member[] = {
	{ "name", QMP_STR, true },
	{ "features", QMP_ARRAY, false, .item = &item_str },
	{ NULL },
};

static const struct qmp_arg item_enum_member = {
	"null", QMP_OBJECT, .members = schema_enum_member,
};

static const struct qmp_arg schema_member[] = {
	{ "name", QMP_STR, true },
	{ "type", QMP_STR, true },
	{ "default", QMP_ANY, false },
	{ NULL },
};

static const struct qmp_arg item_schema_member = {
	"null", QMP_OBJECT, .members = schema_member,
};

static const struct qmp_arg schema_variant[] = {
	{ "case", QMP_STR, true },
	{ "type", QMP_STR, true },
	{ NULL },
};

static const struct qmp_arg item_schema_variant = {
	"null", QMP_OBJECT, .members = schema_variant,
};

static const struct qmp_arg schema_alternative[] = {
	{ "type", QMP_STR, true },
	{ NULL },
};

static const struct qmp_arg item_schema_alternative = {
	"null", QMP_OBJECT, .members = schema_alternative,
};

static const struct qmp_arg schema_builtin[] = {
	{ "json-type", QMP_STR, true, .values = json_types },
	{ NULL },
};

static const struct qmp_arg schema_enum[] = {
	{ "members", QMP_ARRAY, true, .item = &item_enum_member },
	{ "values", QMP_ARRAY, true, .item = &item_str },
	{ NULL },
};

static const struct qmp_arg schema_array[] = {
	{ "element-type", QMP_STR, true },
	{ NULL },
};

static const struct qmp_arg schema_object[] = {
	{ "members", QMP_ARRAY, true, .item = &item_schema_member },
	{ "tag", QMP_STR, false },
	{ "variants", QMP_ARRAY, false, .item = &item_schema_variant },
	{ NULL },
};

static const struct qmp_arg schema_alternate[] = {
	{ "members", QMP_ARRAY, true, .item = &item_schema_alternative },
	{ NULL },
};

static const struct qmp_arg schema_command[] = {
	{ "arg-type", QMP_STR, true },
	{ "ret-type", QMP_STR, true },
	{ "allow-oob", QMP_BOOL, false },
	{ NULL },
};

static const struct qmp_arg schema_event[] = {
	{ "arg-type", QMP_STR, true },
	{ NULL },
};

static const struct qmp_case *schema_cases(void)
{
	static const struct qmp_case cases[] = {
		{ "builtin", schema_builtin }, { "enum", schema_enum }, { "array", schema_array },
		{ "object", schema_object }, { "alternate", schema_alternate },
		{ "command", schema_command }, { "event", schema_event }, { NULL },
	};

	return cases;
}

static const struct qmp_arg schema_info[] = {
	{ "name", QMP_STR, true },
	{ "meta-type", QMP_STR, true, .values = meta_types, .cases = schema_cases },
	{ NULL },
};

static const struct qmp_arg item_schema = { "null", QMP_OBJECT, .members = schema_info };

const struct qmp_arg ret_schema = { "null", QMP_ARRAY, .item = &item_schema };

/* -- nodes ------------------------------------------------------------------------ */

extern const struct qmp_arg image_info[];

static const struct qmp_arg snapshot_info[] = {
	{ "id", QMP_STR, true },
	{ "name", QMP_STR, true },
	{ "vm-state-size", QMP_INT, true },
	{ "date-sec", QMP_INT, true },
	{ "date-nsec", QMP_INT, true },
	{ "vm-clock-sec", QMP_INT, true },
	{ "vm-clock-nsec", QMP_INT, true },
	{ "icount", QMP_INT, false },
	{ NULL },
};

static const struct qmp_arg item_snapshot = { "null", QMP_OBJECT, .members = snapshot_info };

static const struct qmp_arg stored_bitmap[] = {
	{ "name", QMP_STR, true },
	{ "granularity", QMP_INT, true },
	{ "flags", QMP_ARRAY, true, .item = &item_str },
	{ NULL },
};

static const struct qmp_arg item_stored_bitmap = {
	"null", QMP_OBJECT, .members = stored_bitmap,
};

static const struct qmp_arg qcow2_specific[] = {
	{ "compat", QMP_STR, true },
	{ "data-file", QMP_STR, false },
	{ "data-file-raw", QMP_BOOL, false },
	{ "extended-l2", QMP_BOOL, false },
	{ "lazy-refcounts", QMP_BOOL, false },
	{ "corrupt", QMP_BOOL, false },
	{ "refcount-bits", QMP_INT, true },
	{ "compression-type", QMP_STR, true },
	{ "bitmaps", QMP_ARRAY, false, .item = &item_stored_bitmap },
	{ NULL },
};

static const struct qmp_arg qcow2_wrapper[] = {
	{ "data", QMP_OBJECT, true, .members = qcow2_specific },
	{ NULL },
};

static const struct qmp_case *specific_cases(void)
{
	static const struct qmp_case cases[] = { { "qcow2", qcow2_wrapper }, { NULL } };

	return cases;
}

static const struct qmp_arg image_specific[] = {
	{ "type", QMP_STR, true, .cases = specific_cases },
	{ NULL },
};

const struct qmp_arg image_info[] = {
	{ "filename", QMP_STR, true },
	{ "format", QMP_STR, true },
	{ "dirty-flag", QMP_BOOL, false },
	{ "actual-size", QMP_INT, false },
	{ "virtual-size", QMP_INT, true },
	{ "cluster-size", QMP_INT, false },
	{ "encrypted", QMP_BOOL, false },
	{ "compressed", QMP_BOOL, false },
	{ "backing-filename", QMP_STR, false },
	{ "full-backing-filename", QMP_STR, false },
	{ "backing-filename-format", QMP_STR, false },
	{ "snapshots", QMP_ARRAY, false, .item = &item_snapshot },
	{ "backing-image", QMP_OBJECT, false, .members = image_info },
	{ "format-specific", QMP_OBJECT, false, .members = image_specific },
	{ NULL },
};

static const struct qmp_arg cache_info[] = {
	{ "writeback", QMP_BOOL, true },
	{ "direct", QMP_BOOL, true },
	{ "no-flush", QMP_BOOL, true },
	{ NULL },
};

static const struct qmp_arg dirty_info[] = {
	{ "name", QMP_STR, false },
	{ "count", QMP_INT, true },
	{ "granularity", QMP_INT, true },
	{ "recording", QMP_BOOL, true },
	{ "busy", QMP_BOOL, true },
	{ "persistent", QMP_BOOL, true },
	{ "inconsistent", QMP_BOOL, false },
	{ "crash-safe", QMP_BOOL, false },
	{ NULL },
};

static const struct qmp_arg item_dirty = { "null", QMP_OBJECT, .members = dirty_info };

static const struct qmp_arg child_info[] = {
	{ "child", QMP_STR, true },
	{ "node-name", QMP_STR, true },
	{ NULL },
};

static const struct qmp_arg item_child = { "null", QMP_OBJECT, .members = child_info };

static const char *const detect_zeroes_values[] = { "off", "on", "unmap", NULL };

static const struct qmp_arg device_info[] = {
	{ "file", QMP_STR, true },
	{ "node-name", QMP_STR, false },
	{ "ro", QMP_BOOL, true },
	{ "drv", QMP_STR, true },
	{ "backing_file", QMP_STR, false },
	{ "backing_file_depth", QMP_INT, true },
	{ "encrypted", QMP_BOOL, true },
	{ "detect_zeroes", QMP_STR, true, .values = detect_zeroes_values },
	{ "bps", QMP_INT, true },
	{ "bps_rd", QMP_INT, true },
	{ "bps_wr", QMP_INT, true },
	{ "iops", QMP_INT, true },
	{ "iops_rd", QMP_INT, true },
	{ "iops_wr", QMP_INT, true },
	{ "image", QMP_OBJECT, true, .members = image_info },
	{ "bps_max", QMP_INT, false },
	{ "bps_rd_max", QMP_INT, false },
	{ "bps_wr_max", QMP_INT, false },
	{ "iops_max", QMP_INT, false },
	{ "iops_rd_max", QMP_INT, false },
	{ "iops_wr_max", QMP_INT, false },
	{ "bps_max_length", QMP_INT, false },
	{ "bps_rd_max_length", QMP_INT, false },
	{ "bps_wr_max_length", QMP_INT, false },
	{ "iops_max_length", QMP_INT, false },
	{ "iops_rd_max_length", QMP_INT, false },
	{ "iops_wr_max_length", QMP_INT, false },
	{ "iops_size", QMP_INT, false },
	{ "group", QMP_STR, false },
	{ "cache", QMP_OBJECT, true, .members = cache_info },
	{ "write_threshold", QMP_INT, true },
	{ "active", QMP_BOOL, false },
	{ "children", QMP_ARRAY, false, .item = &item_child },
	{ "dirty-bitmaps", QMP_ARRAY, false, .item = &item_dirty },
	{ NULL },
};

static const struct qmp_arg item_device = { "null", QMP_OBJECT, .members = device_info };

const struct qmp_arg ret_named_nodes = { "null", QMP_ARRAY, .item = &item_device };

static const struct qmp_arg block_info[] = {
	{ "device", QMP_STR, true },
	{ "qdev", QMP_STR, false },
	{ "type", QMP_STR, true },
	{ "removable", QMP_BOOL, true },
	{ "locked", QMP_BOOL, true },
	{ "inserted", QMP_OBJECT, false, .members = device_info },
	{ "tray_open", QMP_BOOL, false },
	{ NULL },
};

static const struct qmp_arg item_block = { "null", QMP_OBJECT, .members = block_info };

const struct qmp_arg ret_blocks = { "null", QMP_ARRAY, .item = &item_block };

static const char *const export_kinds[] = { "nbd", NULL };

static const struct qmp_arg export_info[] = {
	{ "id", QMP_STR, true },
	{ "type", QMP_STR, true, .values = export_kinds },
	{ "node-name", QMP_STR, true },
	{ "shutting-down", QMP_BOOL, true },
	{ NULL },
};

static const struct qmp_arg item_export = { "null", QMP_OBJECT, .members = export_info };

const struct qmp_arg ret_exports = { "null", QMP_ARRAY, .item = &item_export };

/* -- counters ---------------------------------------------------------------------- */

extern const struct qmp_arg block_stats[];

static const struct qmp_arg latency_histogram[] = {
	{ "boundaries", QMP_ARRAY, true, .item = &item_int },
	{ "bins", QMP_ARRAY, true, .item = &item_int },
	{ NULL },
};

static const struct qmp_arg timed_stats[] = {
	{ "interval_length", QMP_INT, true },
	{ "min_rd_latency_ns", QMP_INT, true },
	{ "max_rd_latency_ns", QMP_INT, true },
	{ "avg_rd_latency_ns", QMP_INT, true },
	{ "min_wr_latency_ns", QMP_INT, true },
	{ "max_wr_latency_ns", QMP_INT, true },
	{ "avg_wr_latency_ns", QMP_INT, true },
	{ "min_flush_latency_ns", QMP_INT, true },
	{ "max_flush_latency_ns", QMP_INT, true },
	{ "avg_flush_latency_ns", QMP_INT, true },
	{ "avg_rd_queue_depth", QMP_NUMBER, true },
	{ "avg_wr_queue_depth", QMP_NUMBER, true },
	{ NULL },
};

static const struct qmp_arg item_timed = { "null", QMP_OBJECT, .members = timed_stats };

static const struct qmp_arg device_stats[] = {
	{ "rd_bytes", QMP_INT, true },
	{ "wr_bytes", QMP_INT, true },
	{ "unmap_bytes", QMP_INT, true },
	{ "rd_operations", QMP_INT, true },
	{ "wr_operations", QMP_INT, true },
	{ "flush_operations", QMP_INT, true },
	{ "unmap_operations", QMP_INT, true },
	{ "rd_total_time_ns", QMP_INT, true },
	{ "wr_total_time_ns", QMP_INT, true },
	{ "flush_total_time_ns", QMP_INT, true },
	{ "unmap_total_time_ns", QMP_INT, true },
	{ "wr_highest_offset", QMP_INT, true },
	{ "rd_merged", QMP_INT, true },
	{ "wr_merged", QMP_INT, true },
	{ "unmap_merged", QMP_INT, true },
	{ "idle_time_ns", QMP_INT, false },
	{ "failed_rd_operations", QMP_INT, true },
	{ "failed_wr_operations", QMP_INT, true },
	{ "failed_flush_operations", QMP_INT, true },
	{ "failed_unmap_operations", QMP_INT, true },
	{ "invalid_rd_operations", QMP_INT, true },
	{ "invalid_wr_operations", QMP_INT, true },
	{ "invalid_flush_operations", QMP_INT, true },
	{ "invalid_unmap_operations", QMP_INT, true },
	{ "account_invalid", QMP_BOOL, true },
	{ "account_failed", QMP_BOOL, true },
	{ "timed_stats", QMP_ARRAY, true, .item = &item_timed },
	{ "rd_latency_histogram", QMP_OBJECT, false, .members = latency_histogram },
	{ "wr_latency_histogram", QMP_OBJECT, false, .members = latency_histogram },
	{ "flush_latency_histogram", QMP_OBJECT, false, .members = latency_histogram },
	{ NULL },
};

const struct qmp_arg block_stats[] = {
	{ "device", QMP_STR, false },
	{ "qdev", QMP_STR, false },
	{ "node-name", QMP_STR, false },
	{ "stats", QMP_OBJECT, true, .members = device_stats },
	{ "parent", QMP_OBJECT, false, .members = block_stats },
	{ "backing", QMP_OBJECT, false, .members = block_stats },
	{ NULL },
};

static const struct qmp_arg item_stats = { "null", QMP_OBJECT, .members = block_stats };

const struct qmp_arg ret_stats = { "null", QMP_ARRAY, .item = &item_stats };

/* -- the machine that there is not ---------------------------------------------------- */

static const char *const run_states[] = { "running", "paused", NULL };

static const struct qmp_arg status_info[] = {
	{ "running", QMP_BOOL, true },
	{ "singlestep", QMP_BOOL, true },
	{ "status", QMP_STR, true, .values = run_states },
	{ NULL },
};

const struct qmp_arg ret_status = { "null", QMP_OBJECT, .members = status_info };

static const struct qmp_arg name_info[] = {
	{ "name", QMP_STR, false },
	{ NULL },
};

const struct qmp_arg ret_name = { "null", QMP_OBJECT, .members = name_info };

static const struct qmp_arg tpm_info[] = {
	{ "id", QMP_STR, true },
	{ NULL },
};

static const struct qmp_arg item_tpm = { "null", QMP_OBJECT, .members = tpm_info };

const struct qmp_arg ret_tpm = { "null", QMP_ARRAY, .item = &item_tpm };

static const struct qmp_arg iothread_info[] = {
	{ "id", QMP_STR, true },
	{ "thread-id", QMP_INT, true },
	{ "poll-max-ns", QMP_INT, true },
	{ "poll-grow", QMP_INT, true },
	{ "poll-shrink", QMP_INT, true },
	{ "aio-max-batch", QMP_INT, true },
	{ NULL },
};

static const struct qmp_arg item_iothread = { "null", QMP_OBJECT, .members = iothread_info };

const struct qmp_arg ret_iothreads = { "null", QMP_ARRAY, .item = &item_iothread };

static const struct qmp_arg property_info[] = {
	{ "name", QMP_STR, true },
	{ "type", QMP_STR, true },
	{ NULL },
};

static const struct qmp_arg item_property = { "null", QMP_OBJECT, .members = property_info };

const struct qmp_arg ret_qom_list = { "null", QMP_ARRAY, .item = &item_property };

const struct qmp_arg ret_any = { "null", QMP_ANY };

/* -- jobs -------------------------------------------------------------------------------- */

const char *const qmp_job_types[] = { "backup", "create", NULL };

const char *const qmp_job_states[] = {
	"undefined", "created", "running", "paused", "ready", "standby", "waiting", "pending",
	"aborting", "concluded", "null", NULL,
};

static const struct qmp_arg job_info[] = {
	{ "id", QMP_STR, true },
	{ "type", QMP_STR, true, .values = qmp_job_types },
	{ "status", QMP_STR, true, .values = qmp_job_states },
	{ "current-progress", QMP_INT, true },
	{ "total-progress", QMP_INT, true },
	{ "error", QMP_STR, false },
	{ NULL },
};

static const struct qmp_arg item_job = { "null", QMP_OBJECT, .members = job_info };

const struct qmp_arg ret_jobs = { "null", QMP_ARRAY, .item = &item_job };

static const char *const io_statuses[] = { "ok", "failed", "nospace", NULL };

static const struct qmp_arg block_job_info[] = {
	{ "type", QMP_STR, true, .values = qmp_job_types },
	{ "device", QMP_STR, true },
	{ "len", QMP_INT, true },
	{ "offset", QMP_INT, true },
	{ "busy", QMP_BOOL, true },
	{ "paused", QMP_BOOL, true },
	{ "speed", QMP_INT, true },
	{ "io-status", QMP_STR, true, .values = io_statuses },
	{ "ready", QMP_BOOL, true },
	{ "status", QMP_STR, true, .values = qmp_job_states },
	{ "auto-finalize", QMP_BOOL, true },
	{ "auto-dismiss", QMP_BOOL, true },
	{ "error", QMP_STR, false },
	{ NULL },
};

static const struct qmp_arg item_block_job = { "null", QMP_OBJECT, .members = block_job_info };

const struct qmp_arg ret_block_jobs = { "null", QMP_ARRAY, .item = &item_block_job };

static const struct qmp_arg sha256_info[] = {
	{ "sha256", QMP_STR, true },
	{ NULL },
};

const struct qmp_arg ret_sha256 = { "null", QMP_OBJECT, .members = sha256_info };

/* -- descriptors --------------------------------------------------------------------------- */

static const struct qmp_arg add_fd_info[] = {
	{ "fdset-id", QMP_INT, true },
	{ "fd", QMP_INT, true },
	{ NULL },
};

const struct qmp_arg ret_add_fd = { "null", QMP_OBJECT, .members = add_fd_info };

static const struct qmp_arg fdset_fd[] = {
	{ "fd", QMP_INT, true },
	{ "opaque", QMP_STR, false },
	{ NULL },
};

static const struct qmp_arg item_fd = { "null", QMP_OBJECT, .members = fdset_fd };

static const struct qmp_arg fdset_info[] = {
	{ "fdset-id", QMP_INT, true },
	{ "fds", QMP_ARRAY, true, .item = &item_fd },
	{ NULL },
};

static const struct qmp_arg item_fdset = { "null", QMP_OBJECT, .members = fdset_info };

const struct qmp_arg ret_fdsets = { "null", QMP_ARRAY, .item = &item_fdset };

/* -- checkpoints ------------------------------------------------------------------------- */

static const struct qmp_arg checkpoint_view[] = {
	{ "kept", QMP_INT, true },
	{ "memory", QMP_INT, true },
	{ "stored", QMP_INT, true },
	{ "longest-wait", QMP_INT, true },
	{ NULL },
};

/* Of a pending one; those that count have neither export nor view. */
static const struct qmp_arg checkpoint_disk[] = {
	{ "node-name", QMP_STR, true },
	{ "persistent", QMP_BOOL, true },
	{ "changed", QMP_INT, false },
	{ "reason", QMP_STR, false },
	{ "export", QMP_STR, false },
	{ "uris", QMP_ARRAY, false, .item = &item_str },
	{ "contexts", QMP_ARRAY, false, .item = &item_str },
	{ "size", QMP_INT, false },
	{ "incremental", QMP_BOOL, false },
	{ "view", QMP_OBJECT, false, .members = checkpoint_view },
	{ "parent", QMP_STR, false },
	{ "usable", QMP_BOOL, false },
	{ NULL },
};

static const struct qmp_arg item_checkpoint_disk = {
	"null", QMP_OBJECT, .members = checkpoint_disk,
};

static const struct qmp_arg checkpoint_begun[] = {
	{ "id", QMP_STR, true },
	{ "time", QMP_STR, true },
	{ "since", QMP_STR, false },
	{ "lease", QMP_INT, true },
	{ "disks", QMP_ARRAY, true, .item = &item_checkpoint_disk },
	{ NULL },
};

const struct qmp_arg ret_checkpoint = { "null", QMP_OBJECT, .members = checkpoint_begun };

static const char *const checkpoint_states[] = {
	"pending", "broken", "active", "incomplete", NULL,
};

static const struct qmp_arg checkpoint_info[] = {
	{ "id", QMP_STR, true },
	{ "time", QMP_STR, true },
	{ "state", QMP_STR, true, .values = checkpoint_states },
	{ "since", QMP_STR, false },
	{ "lease", QMP_INT, false },
	{ "lease-left", QMP_INT, false },
	{ "disks", QMP_ARRAY, true, .item = &item_checkpoint_disk },
	{ NULL },
};

static const struct qmp_arg item_checkpoint = { "null", QMP_OBJECT, .members = checkpoint_info };

const struct qmp_arg ret_checkpoints = { "null", QMP_ARRAY, .item = &item_checkpoint };
