/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoint: named instants of a disk, from which an incremental backup can start.
 *
 * A checkpoint is kept with the image, as one standard bitmap: its epoch, which holds
 * what changed from its instant to that of the next checkpoint.  The newest epoch
 * records.  What changed since a checkpoint is the union of its epoch and all later
 * ones.  All else (name, time, group, state) is the bitmap's name; see struct label.
 *
 *	begin     a new epoch, "pending", records; the former goes on to record as well
 *	success   "pending" becomes "active", durably; then the former stops recording
 *	failure   the pending epoch is removed: all that is in it is in the former, too
 *	delete    the epoch is added to the older one next to it, then removed
 *
 * Nothing is ever in an epoch alone that may vanish: whatever a crash leaves covers all
 * that changed.  That the former epoch records on until the new one counts costs nothing:
 * whoever asks since the former one gets the new one's changes as well.
 *
 * Epochs have numbers without gaps, so that one which somebody else removed is missed,
 * and the older ones are not trusted any more.
 *
 * All here is touched on the node's loop, like the bitmaps.
 */
#ifndef MERINO_CHECKPOINT_H
#define MERINO_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bitmaps/bitmap.h"
#include "common/error.h"

struct node;
struct view;
struct view_options;

#define CHECKPOINT_NAME_MAX 255			/* bytes */
#define CHECKPOINTS_PER_NODE_MAX 1024
#define CHECKPOINT_DISKS_MAX 256

/* -- names (checkpoint-label.c) ------------------------------------------------- */

enum checkpoint_state {
	CHECKPOINT_PENDING,		/* begun: does not count */
	CHECKPOINT_READY,		/* counts if all disks of its group are ready or active */
	CHECKPOINT_ACTIVE,
};

/* "merino:STATE:FIRST-LAST:TIME:GROUP-DISKS:NAME": a bitmap's name as an epoch's.
 * All numbers are decimal, GROUP is 16 hexadecimal digits. */
struct label {
	enum checkpoint_state state;
	uint64_t first, last;		/* number of the epoch; several, when others were added */
	uint64_t time;			/* of the instant, microseconds since 1970 */
	uint64_t group;			/* the same for all disks of a checkpoint */
	unsigned disks;			/* how many of them hold it */
	char name[CHECKPOINT_NAME_MAX + 1];
};

bool label_parse(const char *bitmap, struct label *l);
/* BUF has LABEL_SIZE bytes. */
#define LABEL_SIZE (CHECKPOINT_NAME_MAX + 160)
void label_format(const struct label *l, char *buf);
const char *checkpoint_state_name(enum checkpoint_state s);
int checkpoint_name_check(const char *name, struct error *err);
/* Nobody else may say what is in a checkpoint's bitmap: refuses its name. */
int checkpoint_guard(const char *bitmap, struct error *err);

/* -- the epochs of a node (checkpoint-epochs.c) ----------------------------------- */

struct epoch {
	struct label label;
	struct bitmap *bitmap;
};

/* The oldest first.  A snapshot: worth nothing after bitmaps were added or removed. */
struct epochs {
	struct epoch *v;
	unsigned n;
};

/* The node that has the checkpoints of the disk N: what is below its filters. */
struct node *checkpoint_node(struct node *n);

int epochs_list(struct node *n, struct epochs *e, struct error *err);
void epochs_free(struct epochs *e);
/* By the checkpoint's name, pending ones too; -1: none. */
int epochs_find(const struct epochs *e, const char *name);
/* The newest that is not pending; -1: none. */
int epochs_newest(const struct epochs *e);
/* A pending one; -1. */
int epochs_pending(const struct epochs *e);
/* Whether the epochs from number I on cover all that changed since its instant; why
 * not is in WHY. */
bool epochs_cover(const struct epochs *e, int i, struct error *why);
/* DST |= all epochs from number I on. */
int epochs_union(const struct epochs *e, int i, struct bitmap *dst, struct error *err);
/* Bytes of the disk that changed since each, into BYTES[e->n]; 0 for pending ones. */
int epochs_changed(const struct epochs *e, uint64_t *bytes);
/* How many of the oldest are of no use: something after them is missing or damaged. */
unsigned epochs_useless(const struct epochs *e);

/* Of an epoch that begins: numbers go on without a gap as long as those before can be
 * trusted. */
uint64_t epochs_next_number(const struct epochs *e);

/* -- one disk of a checkpoint that begins (checkpoint-disk.c) --------------------- */

struct checkpoint_request {
	const char *name, *since;	/* since NULL: all of the disk */
	uint64_t time, group;
	unsigned disks;
	const struct view_options *view;	/* its bitmap is ours */
};

struct checkpoint_disk {
	struct node *node;		/* that has the bitmaps; the owner's reference */
	struct node *view;		/* view-node.h, one reference; NULL: gone */
	struct bitmap *epoch;		/* the new one; NULL: gone */
	struct bitmap *changes;		/* the view node's: what changed since; NULL: full */
	uint64_t changed;		/* bytes in CHANGES */
	struct label label;
	bool persistent;		/* kept with the image */
	bool held;			/* the epoch is busy on our account */
	char reason[512];	/* why it is full, when SINCE was asked for; "" */
};

/* All that takes time, with the gates open: a new epoch, the view's node, the union of the
 * epochs so far.  On failure nothing is left but what drop takes. */
int checkpoint_disk_prepare(struct checkpoint_disk *d, const struct checkpoint_request *r,
			    struct error *err);
/* The instant; the gates above the node are closed. */
int checkpoint_disk_begin(struct checkpoint_disk *d, const struct checkpoint_request *r,
			  struct error *err);
void checkpoint_disk_undo(struct checkpoint_disk *d);
/* Says on storage, durably, what the checkpoint is from now on. */
int checkpoint_disk_mark(struct checkpoint_disk *d, enum checkpoint_state state,
			 struct error *err);
/* The view is open and the disk's guest has not outrun it: 0, or why not. */
int checkpoint_disk_check(const struct checkpoint_disk *d, struct error *err);
/* The epoch of N that has this label, whatever it says of the state, is in STATE from now
 * on, durably. */
int checkpoint_settle(struct node *n, const struct label *l, enum checkpoint_state state,
		      struct error *err);
/* The epochs before the newest active one stop recording. */
void checkpoint_freeze(struct node *n);
/* The view goes; readers have left.  The epoch is nobody's any more. */
void checkpoint_disk_release(struct checkpoint_disk *d);

/* -- ends (checkpoint-fold.c) ------------------------------------------------------ */

/* May the checkpoint NAME of N be deleted now?  -ENOENT: N has none. */
int checkpoint_may_fold(struct node *n, const char *name, struct error *err);
/* What changed in its epoch is the older one's from now on; it goes with
 * checkpoint_end_leftovers().  The gates above are closed. */
int checkpoint_fold(struct node *n, const char *name, struct error *err);
/* Ends what is pending and not busy: left by a process that died, or by a disk whose part
 * was given up; and what is of no use any more.  It is gone from the image when this
 * returns, durably; *COUNT bitmaps are still in memory, until checkpoint_drop_ended(), for
 * which the gates above are closed. */
int checkpoint_end_leftovers(struct node *n, bool useless_too, unsigned *count,
			     struct error *err);
void checkpoint_drop_ended(struct node *n);

#endif
