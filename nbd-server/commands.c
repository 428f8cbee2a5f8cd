/* SPDX-License-Identifier: BSD-3-Clause */
/* commands: the table of QMP commands, in the order of the documentation.
 *
 * query-commands, argument checks, the schema and the man page's list come from
 * here.  Names, arguments and meanings are QEMU's (its QMP reference manual).
 */
#include "nbd-server/commands.h"

#include <errno.h>

#include "common/qmp-message.h"
#include "nbd-server/daemon.h"
#include "nbd-server/qmp-types.h"

const struct qmp_arg args_nothing[] = { { NULL } };

static const struct qmp_arg item_string = { "null", QMP_STR };

static const struct qmp_arg args_capabilities[] = {
	{ "enable", QMP_ARRAY, false, "capabilities to enable; none are offered",
	  .item = &item_string },
	{ NULL },
};

static const char *const discard_values[] = { "ignore", "unmap", NULL };
static const char *const detect_zeroes_values[] = { "off", "on", "unmap", NULL };

static const struct qmp_arg args_cache[] = {
	{ "direct", QMP_BOOL, false, "past the host's page cache" },
	{ "no-flush", QMP_BOOL, false, "flushes do nothing" },
	{ NULL },
};

/* What drivers share; they check their own. */
const struct qmp_arg args_blockdev_add[] = {
	{ "driver", QMP_STR, true, "block driver", .cases = blockdev_cases },
	{ "node-name", QMP_STR, false, "name of the new node" },
	{ "active", QMP_BOOL, false, "false: not yet; see blockdev-set-active" },
	{ "read-only", QMP_BOOL, false, "never written to" },
	{ "auto-read-only", QMP_BOOL, false, "read only when it cannot be opened for writing" },
	{ "force-share", QMP_BOOL, false, "no locks are taken; needs read-only" },
	{ "discard", QMP_STR, false, "ignore or unmap", .values = discard_values },
	{ "detect-zeroes", QMP_STR, false, "off, on or unmap", .values = detect_zeroes_values },
	{ "cache", QMP_OBJECT, false, "direct, no-flush", .members = args_cache },
	{ NULL },
};

static const struct qmp_arg args_blockdev_del[] = {
	{ "node-name", QMP_STR, true, "node to delete" },
	{ NULL },
};

static const struct qmp_arg args_query_nodes[] = {
	{ "flat", QMP_BOOL, false, "leave out the backing images inside image" },
	{ NULL },
};

static const char *const address_types[] = { "inet", "unix", "fd", "vsock", NULL };

static const struct qmp_arg args_address[] = {
	{ "type", QMP_STR, true, "inet, unix, fd or vsock",
	  .values = address_types, .cases = address_cases },
	{ "data", QMP_OBJECT, true, "the address; its members depend on type" },
	{ NULL },
};

const struct qmp_arg args_nbd_server_start[] = {
	{ "addr", QMP_OBJECT, true, "where to listen", .members = args_address },
	{ "handshake-max-seconds", QMP_UINT, false, "limit of a handshake, 0: none; default 10" },
	{ "tls-creds", QMP_STR, false, "TLS with these credentials, an object's id" },
	{ "tls-authz", QMP_STR, false, "clients that this object lets in, an authz object's id" },
	{ "tls", QMP_STR, false, "require (the default with tls-creds) or on: clients may go without",
	  .values = tls_values },
	{ "max-connections", QMP_UINT, false, "clients at a time, 0: any number; default 100" },
	{ "send-timeout", QMP_UINT, false,
	  "seconds that a client may take no reply, 0: any time; default --send-timeout" },
	{ NULL },
};

static const char *const export_types[] = { "nbd", NULL };

static const struct qmp_arg args_bitmap_ref[] = {
	{ "node", QMP_STR, true, "node that has the bitmap" },
	{ "name", QMP_STR, true, "the bitmap" },
	{ NULL },
};

static const struct qmp_arg item_bitmap = {
	"null", QMP_STR_OR_OBJECT, .members = args_bitmap_ref, .alternate = "BlockDirtyBitmapOrStr",
};

static const struct qmp_arg args_export_add[] = {
	{ "type", QMP_STR, true, "nbd", .values = export_types },
	{ "id", QMP_STR, true, "name for block-export-del" },
	{ "fixed-iothread", QMP_BOOL, false, "fail when the disk cannot go there" },
	{ "iothread", QMP_STR, false, "the thread that serves the disk; moves its nodes" },
	{ "node-name", QMP_STR, true, "node to export" },
	{ "writable", QMP_BOOL, false, "clients may write; default false" },
	{ "writethrough", QMP_BOOL, false, "true is not supported" },
	{ "allow-inactive", QMP_BOOL, false, "stays while its node is inactive; default: activates it" },
	{ "name", QMP_STR, false, "name on the wire, up to 4096 bytes; default: the node's",
	  .only = "nbd" },
	{ "description", QMP_STR, false, "for people, up to 4096 bytes",
	  .only = "nbd" },
	{ "bitmaps", QMP_ARRAY, false, "dirty bitmaps to offer as qemu:dirty-bitmap:NAME",
	  .item = &item_bitmap, .only = "nbd" },
	{ "max-connections", QMP_UINT, false, "clients at a time, 0 (the default): any number",
	  .only = "nbd" },
	{ "allocation-depth", QMP_BOOL, false, "offer qemu:allocation-depth",
	  .only = "nbd" },
	{ NULL },
};

static const char *const export_del_modes[] = { "safe", "hard", NULL };

static const struct qmp_arg args_export_del[] = {
	{ "id", QMP_STR, true, "export to delete" },
	{ "mode", QMP_STR, false, "safe (the default) refuses when clients are connected; hard",
	  .values = export_del_modes },
	{ NULL },
};

const struct qmp_arg args_bitmap[] = {
	{ "node", QMP_STR, true, "node that has the bitmap" },
	{ "name", QMP_STR, true, "the bitmap" },
	{ NULL },
};

const struct qmp_arg args_bitmap_add[] = {
	{ "node", QMP_STR, true, "node whose writes are recorded" },
	{ "name", QMP_STR, true, "name of the new bitmap" },
	{ "granularity", QMP_UINT, false, "bytes that one bit stands for, a power of two" },
	{ "persistent", QMP_BOOL, false, "stored in the image when it is closed" },
	{ "disabled", QMP_BOOL, false, "does not record writes until it is enabled" },
	{ NULL },
};

const struct qmp_arg args_bitmap_merge[] = {
	{ "node", QMP_STR, true, "node that has the target" },
	{ "target", QMP_STR, true, "bitmap that takes the bits" },
	{ "bitmaps", QMP_ARRAY, true, "bitmaps to merge into it", .item = &item_bitmap },
	{ NULL },
};

static const struct qmp_arg args_action[] = {
	{ "type", QMP_STR, true, "a command's name, or abort", .cases = action_cases },
	{ "data", QMP_OBJECT, true, "its arguments" },
	{ NULL },
};

static const struct qmp_arg item_action = {
	"action", QMP_OBJECT, false, NULL, .members = args_action,
};

static const char *const completion_modes[] = { "individual", "grouped", NULL };

static const struct qmp_arg args_properties[] = {
	{ "completion-mode", QMP_STR, false, "how jobs of the transaction end",
	  .values = completion_modes },
	{ NULL },
};

static const struct qmp_arg args_transaction[] = {
	{ "actions", QMP_ARRAY, true, "what to do, all or nothing", .item = &item_action },
	{ "properties", QMP_OBJECT, false, "completion-mode", .members = args_properties },
	{ NULL },
};

/* -- commands about the process ---------------------------------------------- */

/* The monitor answers the first one itself. */
static COMMAND(command_capabilities)
{
	return error_set_class(err, ERROR_COMMAND_NOT_FOUND, -EINVAL,
			       "Capabilities negotiation is already complete, command ignored");
}

static COMMAND(command_query_version)
{
	*ret = qmp_version();
	return 0;
}

static COMMAND(command_query_commands)
{
	*ret = json_object_new_array();
	for (const struct qmp_command *c = qmp_commands; c->name; c++) {
		struct json_object *o = json_object_new_object();

		json_object_object_add(o, "name", json_object_new_string(c->name));
		json_object_array_add(*ret, o);
	}
	return 0;
}

static COMMAND(command_query_qmp_schema)
{
	*ret = qmp_schema();
	return 0;
}

static COMMAND(command_quit)
{
	daemon_quit();
	return 0;
}

const struct qmp_command qmp_commands[] = {
	{ "qmp_capabilities", args_capabilities, .any_mode = true, .unlocked = true,
	  .run = command_capabilities, .help = "begins a session", .since = "0.1" },
	{ "query-version", NULL, .unlocked = true, .run = command_query_version,
	  .help = "whose interface this is, and who provides it", .since = "0.1", .ret = &ret_version },
	{ "query-commands", NULL, .unlocked = true, .run = command_query_commands,
	  .help = "names of all commands", .since = "0.1", .ret = &ret_commands },
	{ "query-qmp-schema", NULL, .unlocked = true, .run = command_query_qmp_schema,
	  .help = "names and types of all this", .since = "0.1", .ret = &ret_schema },
	{ "quit", NULL, .unlocked = true, .run = command_quit,
	  .help = "ends the daemon, images closed cleanly", .since = "0.1" },
	{ "object-add", args_object_add, .open_args = true, .run = command_object_add,
	  .help = "makes an object", .since = "0.2" },
	{ "object-del", args_object_del, .run = command_object_del,
	  .help = "deletes an object that nobody uses", .since = "0.2" },
	{ "blockdev-add", args_blockdev_add, .open_args = true, .run = command_blockdev_add,
	  .help = "opens an image as a node", .since = "0.1" },
	{ "blockdev-del", args_blockdev_del, .run = command_blockdev_del,
	  .help = "closes a node that nobody uses", .since = "0.1" },
	{ "blockdev-reopen", args_blockdev_reopen, .run = command_blockdev_reopen,
	  .help = "gives nodes other options, all or nothing", .since = "0.2" },
	{ "blockdev-set-active", args_set_active, .run = command_set_active,
	  .help = "lets another process write to nodes' storage for a while, or takes it back",
	  .since = "0.2" },
	{ "blockdev-create", args_blockdev_create, .run = command_blockdev_create,
	  .help = "a job that makes a file, or an image in a node", .since = "0.2" },
	{ "query-jobs", NULL, .unlocked = true, .run = command_query_jobs,
	  .help = "all jobs, their states and progress", .since = "0.2", .ret = &ret_jobs },
	{ "job-pause", args_job, .run = command_job_pause,
	  .help = "makes a job wait", .since = "0.2" },
	{ "job-resume", args_job, .run = command_job_resume,
	  .help = "lets it go on", .since = "0.2" },
	{ "job-cancel", args_job, .run = command_job_cancel,
	  .help = "ends a job that is not needed any more", .since = "0.2" },
	{ "job-complete", args_job, .run = command_job_complete,
	  .help = "asks a job in state ready to come to its end", .since = "0.2" },
	{ "job-finalize", args_job, .run = command_job_finalize,
	  .help = "lets a job in state pending take effect", .since = "0.2" },
	{ "job-dismiss", args_job, .run = command_job_dismiss,
	  .help = "forgets a job in state concluded", .since = "0.2" },
	{ "blockdev-backup", args_blockdev_backup, .run = command_blockdev_backup,
	  .help = "a job that copies a disk as it is at this instant to another node",
	  .since = "0.3" },
	{ "drive-backup", args_drive_backup, .run = command_drive_backup,
	  .help = "blockdev-backup into a file, which it makes", .since = "0.3" },
	{ "query-block-jobs", NULL, .unlocked = true, .run = command_query_block_jobs,
	  .help = "all jobs that work on disks", .since = "0.3", .ret = &ret_block_jobs },
	{ "block-job-pause", args_block_job, .run = command_block_job_pause,
	  .help = "job-pause for such a job", .since = "0.3" },
	{ "block-job-resume", args_block_job, .run = command_block_job_resume,
	  .help = "job-resume for such a job", .since = "0.3" },
	{ "block-job-cancel", args_block_job_cancel, .run = command_block_job_cancel,
	  .help = "job-cancel for such a job", .since = "0.3" },
	{ "block-job-complete", args_block_job, .run = command_block_job_complete,
	  .help = "job-complete for such a job", .since = "0.3" },
	{ "block-job-finalize", args_block_job_id, .run = command_block_job_finalize,
	  .help = "job-finalize for such a job", .since = "0.3" },
	{ "block-job-dismiss", args_block_job_id, .run = command_block_job_dismiss,
	  .help = "job-dismiss for such a job", .since = "0.3" },
	{ "block-job-set-speed", args_block_job_speed, .run = command_block_job_set_speed,
	  .help = "limits how fast it copies", .since = "0.3" },
	{ "block-job-change", args_block_job_change, .run = command_block_job_change,
	  .help = "changes a job while it runs; there is none here that can be changed",
	  .since = "0.3" },
	{ "block_resize", args_block_resize, .run = command_block_resize,
	  .help = "gives a node another size; clients see it when they ask again",
	  .since = "0.2" },
	{ "block-set-write-threshold", args_write_threshold, .run = command_write_threshold,
	  .help = "asks for an event when a write passes an offset", .since = "0.2" },
	{ "query-named-block-nodes", args_query_nodes, .run = command_query_named_block_nodes,
	  .help = "all nodes with their images and bitmaps", .since = "0.1", .ret = &ret_named_nodes },
	{ "query-block", NULL, .run = command_query_block,
	  .help = "every writable export as a device", .since = "0.1", .ret = &ret_blocks },
	{ "query-blockstats", args_blockstats, .run = command_query_blockstats,
	  .help = "what was read and written", .since = "0.2", .ret = &ret_stats },
	{ "query-status", NULL, .unlocked = true, .run = command_query_status,
	  .help = "whether clients' requests are served", .since = "0.2", .ret = &ret_status },
	{ "query-name", NULL, .unlocked = true, .run = command_query_name,
	  .help = "the machine's name: it has none", .since = "0.2", .ret = &ret_name },
	{ "query-tpm", NULL, .unlocked = true, .run = command_query_tpm,
	  .help = "the machine's TPMs: it has none", .since = "0.2", .ret = &ret_tpm },
	{ "query-iothreads", NULL, .unlocked = true, .run = command_query_iothreads,
	  .help = "the iothread objects", .since = "0.2", .ret = &ret_iothreads },
	{ "getfd", args_fdname, .unlocked = true, .run = command_getfd,
	  .help = "names the descriptor that came with it", .since = "0.2" },
	{ "closefd", args_fdname, .unlocked = true, .run = command_closefd,
	  .help = "closes a named descriptor", .since = "0.2" },
	{ "add-fd", args_add_fd, .unlocked = true, .run = command_add_fd,
	  .help = "puts the descriptor that came with it into a set: the file /dev/fdset/ID",
	  .since = "0.2", .ret = &ret_add_fd },
	{ "remove-fd", args_remove_fd, .unlocked = true, .run = command_remove_fd,
	  .help = "closes descriptors of a set", .since = "0.2" },
	{ "query-fdsets", NULL, .unlocked = true, .run = command_query_fdsets,
	  .help = "all sets of descriptors", .since = "0.2", .ret = &ret_fdsets },
	{ "stop", NULL, .run = command_stop,
	  .help = "requests of writable exports' clients wait from now on; those begun have ended",
	  .since = "0.2" },
	{ "cont", NULL, .run = command_cont, .help = "serves them again", .since = "0.2" },
	{ "qom-list", args_qom_list, .run = command_qom_list,
	  .help = "properties of a device, an object or a folder of them", .since = "0.2",
	  .ret = &ret_qom_list },
	{ "qom-get", args_qom_get, .run = command_qom_get,
	  .help = "a device's property, such as drive: the node that it has", .since = "0.2",
	  .ret = &ret_any },
	{ "qom-set", args_qom_set, .run = command_qom_set,
	  .help = "gives a device (a writable export) another node: its property drive",
	  .since = "0.2" },
	{ "blockdev-replace", args_blockdev_replace, .run = command_blockdev_replace,
	  .help = "gives a device, an export or a node another child, under running requests",
	  .since = "0.2" },
	{ "nbd-server-start", args_nbd_server_start, .run = command_nbd_server_start,
	  .help = "listens for NBD clients; may be used more than once", .since = "0.1" },
	{ "nbd-server-stop", NULL, .run = command_nbd_server_stop,
	  .help = "removes all exports and stops listening", .since = "0.1" },
	{ "block-export-add", args_export_add, .run = command_block_export_add,
	  .help = "offers a node over NBD", .since = "0.1" },
	{ "block-export-del", args_export_del, .run = command_block_export_del,
	  .help = "stops offering it", .since = "0.1" },
	{ "query-block-exports", NULL, .run = command_query_block_exports,
	  .help = "all exports", .since = "0.1", .ret = &ret_exports },
	{ "block-dirty-bitmap-add", args_bitmap_add, .run = command_bitmap_add,
	  .help = "starts to record which granules change", .since = "0.1" },
	{ "block-dirty-bitmap-remove", args_bitmap, .run = command_bitmap_remove,
	  .help = "forgets a bitmap, in the image too", .since = "0.1" },
	{ "block-dirty-bitmap-clear", args_bitmap, .run = command_bitmap_clear,
	  .help = "makes every granule clean", .since = "0.1" },
	{ "block-dirty-bitmap-enable", args_bitmap, .run = command_bitmap_enable,
	  .help = "records writes from now on", .since = "0.1" },
	{ "block-dirty-bitmap-disable", args_bitmap, .run = command_bitmap_disable,
	  .help = "stops recording writes", .since = "0.1" },
	{ "block-dirty-bitmap-merge", args_bitmap_merge, .run = command_bitmap_merge,
	  .help = "adds the bits of other bitmaps", .since = "0.1" },
	{ "x-debug-block-dirty-bitmap-sha256", args_bitmap, .run = command_bitmap_sha256,
	  .help = "hash of a bitmap, QEMU's", .since = "0.2", .ret = &ret_sha256 },
	{ "transaction", args_transaction, .run = command_transaction,
	  .help = "several of the bitmap commands at one instant, all or nothing",
	  .since = "0.1" },
	{ "checkpoint-begin", args_checkpoint_begin, .run = command_checkpoint_begin,
	  .help = "a named instant of some disks, and exports of them as they were then",
	  .since = "0.3", .ret = &ret_checkpoint },
	{ "checkpoint-end", args_checkpoint_end, .run = command_checkpoint_end,
	  .help = "the exports go; the checkpoint counts from now on, or had never begun",
	  .since = "0.3" },
	{ "checkpoint-renew", args_checkpoint_renew, .run = command_checkpoint_renew,
	  .help = "its lease begins anew", .since = "0.3" },
	{ "checkpoint-delete", args_checkpoint_delete, .run = command_checkpoint_delete,
	  .help = "forgets a checkpoint; older ones lose nothing", .since = "0.3" },
	{ "query-checkpoints", NULL, .run = command_query_checkpoints,
	  .help = "all checkpoints of all nodes, pending ones too", .since = "0.3",
	  .ret = &ret_checkpoints },
	{ NULL },
};
