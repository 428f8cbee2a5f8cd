/* SPDX-License-Identifier: BSD-3-Clause */
/* bitmap: which granules of a node changed (QEMU's docs/interop/bitmaps).
 *
 * A bitmap belongs to a node and is touched on the node's loop only.  The bits
 * are one flat array (anonymous memory, or a mapped file: live.h), one bit per granule, least significant bit first.  Counts
 * are 64 bits wide.
 *
 * A tap (tracker.c) on the node sets bits before each write is issued, of the
 * byte range that is written; a bit is never taken back when the write fails.
 *
 * Because a bit is set before its write and not after it, whoever adds, removes,
 * clears, enables, disables or merges a bitmap does it with the gates above its
 * node closed: else a write in flight would be in neither the old nor the new
 * state.  Functions that may reach storage (they suspend; in a coroutine, or
 * under the blocking table) say so.
 */
#ifndef MERINO_BITMAP_H
#define MERINO_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/extents.h"

struct changes;
struct json_object;
struct node;
struct tracker;

#define BITMAP_NAME_MAX 1023			/* bytes (qcow2 specification) */
#define BITMAP_GRANULARITY_MIN 512u		/* bytes */
#define BITMAP_GRANULARITY_MAX (1ull << 31)
#define BITMAP_BYTES_MAX (512ull << 20)		/* memory of one bitmap */
#define BITMAPS_MAX 65535			/* of one node */

struct bitmap {
	struct bitmap *next;		/* in node->bitmaps, the newest first */
	struct node *node;
	struct tracker *tracker;	/* the node's, shared by its bitmaps (tracker.c) */
	char *name;			/* owned, UTF-8, 1 … BITMAP_NAME_MAX bytes */
	unsigned granularity_bits;
	uint64_t size;			/* bytes of the node that it covers */
	uint64_t *bits;			/* mmap'd; bits past the end are 0; NULL when inconsistent */
	uint64_t bits_len;		/* bytes mapped at bits */
	uint64_t dirty;			/* set bits (granules) */
	struct changes *changes;	/* which dirty granules are zeroed (changes.h); NULL: none */
	bool enabled;			/* records writes */
	bool persistent;		/* stored in the image at a clean close */
	bool shrunk;			/* since it was cleared the disk was larger than now, or may have
					 * been: what grows again changed */
	bool inconsistent;		/* was in use when its owner died: only removal is allowed */
	bool read_only;			/* the image is read only: no change may be stored */
	unsigned busy;			/* exports and jobs that hold it */
	bool changed;			/* the bits differ from what is stored */
	bool ended;			/* nobody wants it any more: goes when the gates close */
	bool live;			/* bits are in a mapped file (live.h) … */
	uint64_t live_off;		/* … from this byte on */
	char *stored_name;		/* what the image calls it; owned; NULL: by its name */
};

/* QEMU's block-dirty-bitmap-add.  GRANULARITY in bytes; 0: the cluster size of a
 * qcow2 node within 4 KiB … 64 KiB, else 64 KiB (QMP, where a 0 that was given is
 * an error, checks for it before).  Errors in QEMU's words. */
int bitmap_add(struct node *n, const char *name, uint64_t granularity, bool persistent,
	       bool disabled, struct bitmap **out, struct error *err);

/* By name on this node; NULL with "Dirty bitmap 'x' not found" (GenericError) in ERR. */
struct bitmap *bitmap_find(struct node *n, const char *name, struct error *err);
/* On this node or, as for exports, further down its backing chain; NULL with
 * "Bitmap 'x' is not found". */
struct bitmap *bitmap_find_chain(struct node *n, const char *name, struct error *err);

/* Checks of QEMU's bdrv_dirty_bitmap_check(): busy, read only, inconsistent. */
enum bitmap_check { BITMAP_NOT_BUSY = 1, BITMAP_NOT_RO = 2, BITMAP_NOT_INCONSISTENT = 4,
		    BITMAP_CHECK_DEFAULT = 7 };
int bitmap_check(const struct bitmap *b, unsigned checks, struct error *err);

/* Frees the bitmap.  A persistent one vanishes from the image first, durably (may
 * suspend; meanwhile it counts as busy); on an error it is still there.  Until
 * bitmaps_commit() a power loss may bring it back. */
int bitmap_remove(struct bitmap *b, struct error *err);
int bitmap_clear(struct bitmap *b, struct error *err);
int bitmap_set_enabled(struct bitmap *b, bool enabled, struct error *err);
/* dst |= each of src; granularities may differ; all or nothing.  Sizes must match. */
int bitmap_merge(struct bitmap *dst, struct bitmap *const *src, unsigned n, struct error *err);

/* dst |= src, of the same size, whoever else uses SRC.  One without bits is all dirty. */
void bitmap_or(struct bitmap *dst, const struct bitmap *src);
/* The first half of removing a persistent bitmap, for which the gates may be open: it
 * vanishes from the image, durably, and is in memory only from then on.  May suspend. */
int bitmap_unstore(struct bitmap *b, struct error *err);
/* "Bitmap already exists: x".  In the image with the next bitmaps_commit().  Does not suspend. */
int bitmap_rename(struct bitmap *b, const char *name, struct error *err);
/* What was done to the persistent bitmaps of N before the call outlives the process (it does
 * so at once) and the machine when it returns, where that is possible at all: live.h.
 * Before a client is told, with the gates open: it waits for storage. */
int bitmaps_commit(struct node *n, struct error *err);

/* A copy of the bits, the count and the enabled state, so that a transaction can
 * undo: the gates stay closed from one to the other.  NULL: out of memory. */
struct bitmap_backup;
struct bitmap_backup *bitmap_save(const struct bitmap *b);
void bitmap_restore(struct bitmap *b, struct bitmap_backup *s);		/* frees S */
void bitmap_backup_free(struct bitmap_backup *s);			/* NULL is fine */

/* Marks [off, off+len) dirty (bytes; whole granules; clipped to the size).  Hot path. */
void bitmap_set(struct bitmap *b, uint64_t off, uint64_t len);
/* Cleans the granules that lie wholly in [off, off+len) (the last one ends with the
 * size): what else changed in a granule is not forgotten. */
void bitmap_reset(struct bitmap *b, uint64_t off, uint64_t len);
bool bitmap_get(const struct bitmap *b, uint64_t off);
/* First dirty (clean) byte at or after OFF and before END; END when none.  Granule exact. */
uint64_t bitmap_next_dirty(const struct bitmap *b, uint64_t off, uint64_t end);
uint64_t bitmap_next_clean(const struct bitmap *b, uint64_t off, uint64_t end);
/* Appends runs (EXTENT_DIRTY or 0) that cover [off, off+len) or as many as fit. */
void bitmap_extents(const struct bitmap *b, uint64_t off, uint64_t len, struct extents *x);
/* The same, with EXTENT_ZERO for what reads as zeroes, and EXTENT_HOLE for what needs no
 * space either.  INSTANT (ns, CLOCK_MONOTONIC) is that of the view through which the disk
 * is seen; 0: it is seen as it is. */
void bitmap_changes(const struct bitmap *b, uint64_t off, uint64_t len, uint64_t instant,
		    struct extents *x);

static inline uint64_t bitmap_granularity(const struct bitmap *b)
{
	return 1ull << b->granularity_bits;
}

/* Bytes of the node in dirty granules: what a backup has to copy at most. */
static inline uint64_t bitmap_dirty_bytes(const struct bitmap *b)
{
	uint64_t bytes = b->dirty << b->granularity_bits;

	return bytes < b->size ? bytes : b->size;
}

/* The node, which still says its old size, is about to have SIZE bytes: its bitmaps
 * follow.  What is new is clean (it reads as zeroes in the older backup too).  All or
 * nothing: -EFBIG past the memory limit. */
int bitmaps_resize(struct node *n, uint64_t size, struct error *err);
/* It is about to be made smaller: a power loss from here on finds that what is behind SIZE
 * changed.  May suspend. */
void bitmaps_will_shrink(struct node *n, uint64_t size);

/* What is changed between hold and release (they do not suspend) is there after a kill -9
 * as a whole or not at all. */
void bitmaps_hold(struct node *n);
void bitmaps_release(struct node *n);
/* Before the gates close: what a persistent bitmap of N, and the first one, needs is made, so
 * that bitmap_add() finds it there and waits for nothing.  May suspend. */
void bitmaps_expect(struct node *n, uint64_t granularity);
/* The same for bitmap_clear(). */
void bitmaps_expect_clear(struct node *n, const char *name);
/* What was made and not used is given back. */
void bitmaps_expect_end(struct node *n);

/* QEMU's BlockDirtyInfo of each bitmap of N as a JSON array (NULL when none),
 * and Qcow2BitmapInfo of the stored ones (reads storage: may suspend; NULL when
 * none, or when the directory is damaged). */
struct json_object *bitmaps_query(struct node *n);
struct json_object *bitmaps_query_stored(struct node *n);

/* Hooks bitmaps/ into format/ (node_bitmap_hooks).  Call once at start. */
void bitmaps_init(void);

#endif
