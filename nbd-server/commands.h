/* SPDX-License-Identifier: BSD-3-Clause */
/* commands: what the files that implement commands share.  commands.c has the
 * table; the others are named after their subject.  Main loop, in coroutines.
 */
#ifndef MERINO_COMMANDS_H
#define MERINO_COMMANDS_H

#include <json-c/json.h>

#include "common/error.h"
#include "nbd-server/qmp.h"

struct loop;
struct node;

#define COMMAND(name) \
	int name(struct json_object *args, struct json_object **ret, struct error *err)

/* commands-node.c */
COMMAND(command_blockdev_add);
COMMAND(command_blockdev_del);
/* commands-info.c */
COMMAND(command_query_named_block_nodes);
/* commands-device.c */
COMMAND(command_query_block);
COMMAND(command_query_blockstats);
/* commands-block.c */
COMMAND(command_block_resize);
COMMAND(command_write_threshold);
COMMAND(command_bitmap_sha256);
/* commands-fd.c */
COMMAND(command_getfd);
COMMAND(command_closefd);
COMMAND(command_add_fd);
COMMAND(command_remove_fd);
COMMAND(command_query_fdsets);
/* The descriptor that getfd named so, which is the caller's then; -ENOENT. */
int named_fd_take(const char *name);
int add_fd_option(struct json_object *opts, struct error *err);	/* --add-fd */
void fds_close_all(void);
/* commands-reopen.c */
COMMAND(command_blockdev_reopen);
COMMAND(command_set_active);
/* Makes the node active, as an export needs it. */
int command_node_activate(const char *name, struct error *err);
/* commands-job.c */
COMMAND(command_query_jobs);
COMMAND(command_job_pause);
COMMAND(command_job_resume);
COMMAND(command_job_cancel);
COMMAND(command_job_complete);
COMMAND(command_job_finalize);
COMMAND(command_job_dismiss);
void commands_job_init(void);
/* commands-block-job.c */
COMMAND(command_query_block_jobs);
COMMAND(command_block_job_pause);
COMMAND(command_block_job_resume);
COMMAND(command_block_job_cancel);
COMMAND(command_block_job_complete);
COMMAND(command_block_job_finalize);
COMMAND(command_block_job_dismiss);
COMMAND(command_block_job_change);
COMMAND(command_block_job_set_speed);
void commands_block_job_init(void);
/* commands-backup.c */
COMMAND(command_blockdev_backup);
/* drive-backup.c */
COMMAND(command_drive_backup);
/* commands-create.c */
COMMAND(command_blockdev_create);
/* commands-checkpoint.c */
COMMAND(command_checkpoint_begin);
COMMAND(command_checkpoint_end);
COMMAND(command_checkpoint_renew);
COMMAND(command_checkpoint_delete);
COMMAND(command_query_checkpoints);
/* commands-qom.c */
COMMAND(command_qom_list);
COMMAND(command_qom_get);
COMMAND(command_qom_set);
struct export;
/* The export, or the device that it is (its id, or its path), has the node VALUE from now on. */
int command_set_drive(struct export *e, const char *value, struct error *err);
int command_set_drive_of(const char *device, const char *value, struct error *err);
/* commands-replace.c */
COMMAND(command_blockdev_replace);
/* commands-machine.c */
COMMAND(command_query_status);
COMMAND(command_query_name);
COMMAND(command_query_tpm);
COMMAND(command_stop);
COMMAND(command_cont);
COMMAND(command_query_iothreads);
/* An export that was just added waits, too, while the machine is stopped. */
int machine_stop_new(const char *id);
/* commands-export.c */
COMMAND(command_nbd_server_start);
COMMAND(command_nbd_server_stop);
COMMAND(command_block_export_add);
COMMAND(command_block_export_del);
COMMAND(command_query_block_exports);
/* commands-object.c */
COMMAND(command_object_add);
COMMAND(command_object_del);
/* commands-transaction.c */
COMMAND(command_bitmap_add);
COMMAND(command_bitmap_remove);
COMMAND(command_bitmap_clear);
COMMAND(command_bitmap_enable);
COMMAND(command_bitmap_disable);
COMMAND(command_bitmap_merge);
COMMAND(command_transaction);

extern const struct qmp_arg args_checkpoint_begin[];
extern const struct qmp_arg args_checkpoint_end[];
extern const struct qmp_arg args_checkpoint_renew[];
extern const struct qmp_arg args_checkpoint_delete[];
extern const struct qmp_arg args_bitmap[];		/* node, name */
extern const struct qmp_arg args_bitmap_add[];
extern const struct qmp_arg args_bitmap_merge[];
extern const struct qmp_arg args_object_add[];
extern const struct qmp_arg args_object_del[];
extern const char *const tls_values[];
extern const struct qmp_arg args_nothing[];
extern const struct qmp_arg args_blockstats[];
extern const struct qmp_arg args_job[];
extern const struct qmp_arg args_blockdev_backup[];
extern const struct qmp_arg args_drive_backup[];
extern const struct qmp_arg args_block_job[];
extern const struct qmp_arg args_block_job_id[];
extern const struct qmp_arg args_block_job_cancel[];
extern const struct qmp_arg args_block_job_speed[];
extern const struct qmp_arg args_block_job_change[];
extern const struct qmp_arg args_blockdev_reopen[];
extern const struct qmp_arg args_set_active[];
extern const struct qmp_arg args_fdname[];
extern const struct qmp_arg args_add_fd[];
extern const struct qmp_arg args_remove_fd[];
extern const struct qmp_arg args_block_resize[];
extern const struct qmp_arg args_write_threshold[];
extern const struct qmp_arg args_blockdev_create[];
extern const struct qmp_arg args_qom_list[];
extern const struct qmp_arg args_qom_get[];
extern const struct qmp_arg args_qom_set[];
extern const struct qmp_arg args_blockdev_replace[];
extern const struct qmp_arg args_nbd_server_start[];
extern const struct qmp_arg args_blockdev_add[];
extern const struct qmp_arg args_flat_address[];

/* Cases of addr.type, blockdev-add's driver, object-add's qom-type and an action's type. */
const struct qmp_case *address_cases(void);
const struct qmp_case *blockdev_cases(void);
const struct qmp_case *object_cases(void);
const struct qmp_case *action_cases(void);

/* --nbd-server: nbd-server-start with strings and a flat addr.  O is consumed in place. */
int nbd_server_start_keyval(struct json_object *o, struct error *err);

/* commands-info.c: QEMU's BlockDeviceInfo; on the node's loop. */
struct json_object *block_device_info(struct node *n, bool flat);
/* All nodes that there are now, each with one more reference; malloc'd. */
struct node **command_all_nodes(unsigned *n);

/* commands-node.c: where the next disk goes. */
struct loop *command_loop_in_turn(void);
/* Brings the nodes that OPTS refers to by name to the loop TO. */
int command_move_children(struct json_object *opts, struct loop *to, struct error *err);
/* A node with one more reference, or NULL. */
struct node *command_node_find(const char *name);
/* Gives the reference back on the node's loop; NULL is fine. */
void command_node_unref(struct node *n);
/* Runs FN on the node's loop. */
int command_node_call(struct node *n, int (*fn)(struct node *n, void *arg, struct error *err),
		      void *arg, struct error *err);
/* Forgets all nodes that blockdev-add made, at the end of the process. */
void command_nodes_close(void);

/* commands-export.c: --send-timeout, the default of send-timeout. */
extern unsigned nbd_server_send_timeout;

#endif
