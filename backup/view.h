/* SPDX-License-Identifier: BSD-3-Clause */
/* view: a disk as it was at one instant, readable while it goes on changing.
 *
 * A view starts in O(1) with the gates above its node closed.  From then on each
 * write, zero and discard first has what it overwrites kept, in blocks of the
 * view's granularity, and only where nobody kept it before, the reader still wants
 * it, and it is inside the view's bitmap.  What is kept goes to memory, and from
 * there, behind the guest's back, into the view's store: an append-only fleece log
 * (an unnamed file; nothing is ever synced) or a node that was given.
 *
 *	guest write ─▶ keep: old data ─▶ memory ─▶ (later) store
 *	                  └─▶ the write itself: it waits for the read alone
 *	reader ─▶ kept? memory or store.  Else the disk, and once more if it was kept
 *	          meanwhile
 *
 * The guest comes first: when the store is full, fails or is slower than what a write
 * may wait, the view is given up ("broken"): reads say -EIO, writes go on.
 *
 * All on the loop of the node; functions may suspend unless they say otherwise.
 */
#ifndef MERINO_VIEW_H
#define MERINO_VIEW_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/extents.h"

struct bitmap;
struct node;
struct view;

#define VIEW_GRANULARITY_MIN 4096u		/* bytes; also the default */
#define VIEW_WAIT_DEFAULT 40000000ull		/* ns that a write waits for room at most */
#define VIEW_MEMORY_DEFAULT (16u << 20)		/* bytes kept in memory; four times that when the log is slow */

struct view_options {
	uint32_t granularity;		/* bytes, a power of two; 0: VIEW_GRANULARITY_MIN */
	const struct bitmap *bitmap;	/* copied: only its dirty granules are in the view; NULL: all */
	struct node *store;		/* what is kept goes there, to its own offset; NULL: a log */
	const char *log_dir;		/* where the log is made; NULL: the default of the process */
	uint64_t log_max;		/* bytes of the log; 0: no limit but the space there is */
	uint64_t wait_ns;		/* that a write may wait for room; 0: any time */
	bool break_guest;		/* rather fail the write than give the view up (QEMU's
					 * break-guest-write; only view_keep() can say so) */
	/* Somebody else taps the writes (the copy-before-write filter calls view_keep()). */
	bool no_tap;
	/* Readers come through the gate of a node above (an export of view-node.c): they must
	 * not wait at the disk's gate inside of it. */
	bool readers_in_gate;
};

/* The gates above N are closed.  Takes a reference of N and none of its permissions. */
int view_open(struct node *n, const struct view_options *o, struct view **out, struct error *err);
/* Ends it; readers have left.  The gates above may be open.  NULL is fine. */
void view_close(struct view *v);

/* [off, off+len) is about to be overwritten.  0, or -errno with break_guest only. */
int view_keep(struct view *v, uint64_t off, uint64_t len);

uint64_t view_size(const struct view *v);	/* bytes, of the node at the instant */
uint64_t view_opened(const struct view *v);	/* ns, CLOCK_MONOTONIC: for node->instant */
bool view_is_broken(const struct view *v);	/* does not suspend */
/* Why, for people; "" while it is not. */
const char *view_broken_why(const struct view *v);

/* As it was.  -EACCES outside the bitmap, and what view_release() has given back;
 * -EIO once broken. */
int view_read(struct view *v, void *buf, uint64_t off, size_t len);
/* Extents of [off, off+len) as of then, the backing chain looked through as
 * node_map_chain() does. */
int view_map(struct view *v, uint64_t off, uint64_t len, struct extents *x);
/* The reader is done with it: nothing in it is kept any more, and its space is given
 * back.  Whole granules. */
void view_release(struct view *v, uint64_t off, uint64_t len);

/* Told of each range that was kept, after it was: a copier that still wants it may take
 * it while it is in memory.  Must not suspend.  One listener. */
void view_listen(struct view *v, void (*kept)(void *arg, uint64_t off, uint64_t len), void *arg);

struct view_stats {
	uint64_t kept;			/* bytes kept since the instant */
	uint64_t memory, stored;	/* bytes held now: in memory, in the store */
	uint64_t waited_ns;		/* the longest that a write waited */
};
void view_stats(const struct view *v, struct view_stats *s);

/* Adds the drivers copy-before-write and snapshot-access.  Once, at start. */
void views_init(void);

/* For the process: where logs are made when nobody says (copied), and how large they
 * may get.  NULL: beside the image, or /var/tmp where it has no directory. */
void view_defaults(const char *log_dir, uint64_t log_max);

#endif
