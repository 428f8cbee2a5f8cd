/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-backup: what blockdev-backup and drive-backup share. */
#ifndef MERINO_COMMANDS_BACKUP_H
#define MERINO_COMMANDS_BACKUP_H

#include "backup/backup.h"
#include "common/error.h"
#include "nbd-server/transaction.h"

struct json_object;

/* All of O that the two commands have in common, but the nodes. */
int backup_arguments(struct json_object *args, struct backup_options *o, struct error *err);
/* "device" becomes the action's node and O's source; its name, if need be, the job's id. */
int backup_source(struct action *a, struct backup_options *o, struct error *err);
/* The checks that need both nodes, and the job, which is the action's own from then on. */
int backup_prepare(struct action *a, const struct backup_options *o, struct error *err);

/* verbs.c's. */
int blockdev_backup_prepare(struct action *a, struct error *err);
int drive_backup_prepare(struct action *a, struct error *err);
int backup_apply(struct action *a, struct error *err);
void backup_apply_undo(struct action *a);
void backup_action_clean(struct action *a, bool done);

#endif
