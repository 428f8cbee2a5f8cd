/* SPDX-License-Identifier: BSD-3-Clause */
/* view-int: what the files of a view tell each other.
 *
 *	view.c        open and close, the tap, giving it up
 *	view-keep.c   what a write does before it is issued
 *	view-read.c   what a reader does: read, map, release
 *	view-tree.c   what is known of each block
 *	view-log.c    memory and the fleece log
 *	view-aside.c  clusters of a qcow2 image that stay, instead
 *
 * Offsets of blocks are in blocks of the view's granularity unless a name says bytes.
 */
#ifndef MERINO_VIEW_INT_H
#define MERINO_VIEW_INT_H

#include "backup/view.h"
#include "common/checked.h"
#include "common/co.h"
#include "common/io.h"
#include "common/loop.h"
#include "format/node.h"
#include "format/qcow2.h"

#define VIEW_PIECE (1u << 20)		/* bytes: one read of a save, one piece of the log */
#define VIEW_TAPS_MAX NODE_CHAIN_MAX

/* -- view-tree.c ------------------------------------------------------------------- */

enum block_kind {
	BLOCK_DISK,			/* still as it was: on the disk */
	BLOCK_ZERO,			/* was zeroes */
	BLOCK_BELOW,			/* was not in the disk's own layer: the backing image has it */
	BLOCK_GONE,			/* the reader is done with it */
	BLOCK_KEPT,			/* in the log, at .at, or aside (view_aside_at());
					 * or in the store, at its own offset */
};

struct block_run {
	enum block_kind kind;
	uint64_t n;			/* blocks */
	uint64_t at;			/* BLOCK_KEPT: of the first; they follow one another */
};

struct view_tree {
	void *root;
	unsigned levels;		/* of inner nodes */
	uint64_t bytes;			/* of memory */
};

void view_tree_init(struct view_tree *t, uint64_t n_blocks);
void view_tree_free(struct view_tree *t);
/* The run of alike blocks that begins at BLOCK, up to END. */
struct block_run view_tree_run(const struct view_tree *t, uint64_t block, uint64_t end);
/* Some of it, as far as one slot of the tree knows: for who has to go through all of a large
 * one.  It may end behind the disk. */
struct block_run view_tree_slot(const struct view_tree *t, uint64_t block);
/* Blocks [first, first+n) are of KIND from now on.  -ENOMEM: some of them are. */
int view_tree_set(struct view_tree *t, uint64_t first, uint64_t n, enum block_kind kind,
		  uint64_t at);

/* -- view-log.c -------------------------------------------------------------------- */

struct segment;

extern uint64_t view_memory;		/* bytes; tests take less than VIEW_MEMORY_DEFAULT */

/* An endless row of blocks.  The newest are in memory, in segments; older segments are
 * in an unnamed file, at the same place. */
struct view_log {
	struct io_file *file;		/* NULL: nothing is kept in a log */
	uint64_t max;			/* bytes on storage; 0: no limit */
	struct segment **v;		/* by number; NULL: nothing of it is wanted any more */
	uint64_t n, room;		/* of v */
	uint64_t oldest;		/* the first number that may be in memory */
	uint32_t per_segment;		/* blocks */
	uint64_t memory, stored;	/* bytes */
	void *spare[4];			/* segments' memory that is free */
	unsigned n_spare;
	struct co_queue space;		/* wait for memory */
	bool flushing, punching;
	struct segment *punch;		/* have blocks to give back */
};

int view_log_open(struct view *v, const char *dir, uint64_t max, struct error *err);
void view_log_close(struct view *v);	/* its coroutines have ended */
/* Before that: what is in the file goes behind everybody's back, closing it would be slow. */
void view_log_empty(struct view *v);
/* Place for up to N blocks: how many, from *AT on, and where in memory; they are to be
 * filled, and then told by view_log_filled().  Waits for room until *WAIT is over: 0. */
struct patience;
uint32_t view_log_reserve(struct view *v, uint32_t n, uint64_t *at, uint8_t **mem,
			  struct patience *wait);
void view_log_filled(struct view *v, uint64_t at, uint32_t n);
/* The blocks are not wanted any more. */
void view_log_drop(struct view *v, uint64_t at, uint64_t n);
int view_log_read(struct view *v, void *buf, uint64_t at, uint64_t skip, size_t len);
/* Gives back what can be: the view was given up. */
void view_log_give_up(struct view *v);

/* -- view-aside.c ------------------------------------------------------------------ */

#define VIEW_ASIDE (1ull << 63)		/* in .at: the rest is a block of the image's file */

struct view_aside {
	struct qcow2_aside ask;
	struct node *node;		/* qcow2; NULL: nothing stays aside */
	uint64_t cluster;		/* bytes */
	uint64_t held;			/* bytes of clusters that stay */
	bool no_room;			/* no more of them */
	uint64_t flushes, since;	/* of the guests; bytes written to whole clusters since the last */
	bool stream;			/* much was written before that one */
	uint64_t next;			/* once the view is over: blocks before it are free */
};

void view_aside_begin(struct view *v);		/* its tap is there */
/* The view is over: frees all that stayed, a little at a time. */
void view_aside_end(struct view *v);
/* The same behind the back of the caller: for view_break(). */
void view_aside_give_up(struct view *v);
/* A write to [off, off+len) that is to be kept: whether the driver sees to the whole clusters
 * in it, [*first, *end). */
struct tap_request;
bool view_aside_takes(struct view *v, const struct tap_request *rq, uint64_t *first, uint64_t *end);
int view_aside_read(struct view *v, void *buf, const struct block_run *r, uint64_t skip, size_t len);
/* The blocks of R, from FIRST on, are not wanted any more, and the tree says so. */
void view_aside_release(struct view *v, uint64_t first, const struct block_run *r);

static inline bool view_is_aside(const struct block_run *r)
{
	return r->kind == BLOCK_KEPT && r->at & VIEW_ASIDE;
}

/* -- the view ------------------------------------------------------------------------ */

/* Blocks whose old data is being read. */
struct keeping {
	struct keeping *next;
	uint64_t first, end;
	struct co_queue done;
};

struct view_tap {
	struct tap tap;
	struct view *view;
	struct node *node;
	uint64_t begin;			/* bytes: where the view's disk begins in it */
};

struct view {
	struct node *node;
	struct node *store;		/* NULL: the log */
	struct node *below;		/* BLOCK_BELOW is read from it; NULL: that is zeroes */
	struct node_use below_use;
	bool owned;			/* references are held */
	bool readers_in_gate;
	uint64_t size;			/* bytes */
	uint64_t opened;		/* loop_now() time */
	unsigned bits;			/* log2 of the granularity */
	uint64_t n_blocks;
	bool may_be_sparse;		/* ask the disk's map before reading */
	uint64_t *wanted;		/* the bitmap's bits; NULL: all */
	uint64_t wanted_len;		/* bytes mapped */
	unsigned wanted_bits;		/* log2 of its granularity */
	uint64_t wanted_n;		/* granules */
	struct view_tap *taps;
	unsigned n_taps;
	uint64_t wait_ns;
	bool break_guest;
	bool broken, closing;
	char why[160];
	struct view_tree tree;
	struct view_log log;
	struct view_aside aside;
	struct keeping *keeping;
	unsigned inside;		/* calls and coroutines that use the view */
	struct co_queue leaving;
	struct view_stats stats;
	void (*kept)(void *arg, uint64_t off, uint64_t len);
	void *kept_arg;
};

/* A discard, which is a hint, is about to be done.  False: it had better not be, there is
 * more to keep than that is worth. */
bool view_keep_for_discard(struct view *v, uint64_t off, uint64_t len);

/* Whether something of the blocks [first, end) is to be kept, or is being kept. */
bool view_has_to_keep(const struct view *v, uint64_t first, uint64_t end);
/* Blocks [first, first+n) were kept. */
void view_tell(struct view *v, uint64_t first, uint64_t n);

void view_enter(struct view *v);
void view_leave(struct view *v);
/* The view is of no use any more; the guest goes on. */
void view_break(struct view *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* How long a write may still wait.  One per request; waits on several queues in turn. */
struct patience {
	uint64_t left;			/* ns; 0 with NO_END: any time */
	bool no_end;
	bool gives_way;			/* rather than break the view it goes without */
	uint64_t waited;
};

/* Waits on Q; false: the time is over. */
bool patience_wait(struct patience *p, struct co_queue *q);

static inline uint64_t view_bytes(const struct view *v, uint64_t blocks)
{
	return blocks << v->bits;
}

/* Bytes of [first, first+n) that are inside the disk. */
static inline uint64_t view_clip(const struct view *v, uint64_t first, uint64_t n)
{
	return min_u64(view_bytes(v, first + n), v->size) - view_bytes(v, first);
}

/* How many blocks from BLOCK on, before END, are (or are not) in the view's bitmap. */
uint64_t view_wanted_run(const struct view *v, uint64_t block, uint64_t end, bool *wanted);

#endif
