/* SPDX-License-Identifier: BSD-3-Clause */
/* backup: the job that copies a disk as it is at one instant to another node (QEMU's
 * blockdev-backup).
 *
 *	new ─▶ begin ─▶ start ─▶ the copier drains what is left ─▶ bitmaps follow ─▶ gone
 *	  │      └ fails, or undo
 *	  └────────┴──▶ cancel
 *
 * A view keeps what the disk was, and the copier reads it: a slow or dead target costs
 * the backup, never the guest.  With sync=none the job copies nothing by itself.  Where
 * the target is an image that stands on the disk, all stays in the view, and a node
 * between the two shows it; else what is kept is drained into the target.
 */
#ifndef MERINO_BACKUP_H
#define MERINO_BACKUP_H

#include <stdbool.h>
#include <stdint.h>

#include "backup/job.h"
#include "common/error.h"

struct backup;
struct node;

#define BACKUP_CLUSTER_MAX (1u << 30)	/* bytes that can be copied whole */

enum backup_sync { BACKUP_FULL, BACKUP_TOP, BACKUP_NONE, BACKUP_BITMAP };
/* What becomes of the bitmap. */
enum backup_bitmap_mode { BACKUP_ON_SUCCESS, BACKUP_NEVER, BACKUP_ALWAYS };

struct backup_options {
	const char *id;			/* the job's */
	struct node *source, *target;	/* borrowed */
	enum backup_sync sync;
	const char *bitmap;		/* of the source; NULL: none */
	bool bitmap_is_there;		/* nothing before begin makes it */
	enum backup_bitmap_mode bitmap_mode;
	bool compress, discard_source;
	enum job_on_error on_source_error, on_target_error;
	uint64_t speed;			/* bytes a second; 0: no limit */
	unsigned workers;		/* 0: as the copier thinks best */
	uint64_t max_chunk;		/* bytes; 0: the same */
	uint64_t cluster_min;		/* bytes, a power of two; 0: no wish */
	bool auto_finalize, auto_dismiss;
	const char *filter_name;	/* of the node that shows the view; NULL: made up */
};

/* Main loop, gates open: all that can be checked, and a job in state created.  The
 * backup belongs to the job: it is gone after start or cancel. */
int backup_new(const struct backup_options *o, struct backup **out, struct error *err);
struct job *backup_job(struct backup *b);
/* The image that stands on the source, whose gates have to be closed as well; NULL: none. */
struct node *backup_overlay(struct backup *b);

/* The source's loop, gates closed.  This is the instant. */
int backup_begin(struct backup *b, struct error *err);
void backup_undo(struct backup *b);

/* Main loop, gates open. */
void backup_start(struct backup *b);
void backup_cancel(struct backup *b);

#endif
