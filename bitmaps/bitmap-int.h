/* SPDX-License-Identifier: BSD-3-Clause */
/* bitmap-int: what the files of bitmaps/ tell each other. */
#ifndef MERINO_BITMAP_INT_H
#define MERINO_BITMAP_INT_H

#include "bitmaps/bitmap.h"
#include "common/checked.h"
#include "common/co.h"
#include "format/node.h"

/* One per node that has bitmaps (tracker.c). */
struct tracker {
	struct tap tap;			/* in node->taps */
	struct node *node;
	unsigned refs;			/* the node's bitmaps */
	struct co_mutex storing;	/* held while the stored directory is changed */
};

static inline uint64_t bitmap_granules(const struct bitmap *b)
{
	return DIV_ROUND_UP(b->size, bitmap_granularity(b));
}

/* Bytes of memory, and of a stored bitmap's data, for SIZE bytes. */
static inline uint64_t bitmap_data_bytes(uint64_t size, unsigned granularity_bits)
{
	return DIV_ROUND_UP(DIV_ROUND_UP(size, 1ull << granularity_bits), 8);
}

/* Links B, whose node is set, to it and its tap; -ENOMEM. */
int tracker_attach(struct bitmap *b);
/* The reverse; the tap goes with the last bitmap. */
void tracker_detach(struct bitmap *b);

/* A clean, disabled bitmap linked to N; nothing but the memory is checked.
 * WITHOUT_BITS: for one that is inconsistent. */
int bitmap_new(struct node *n, const char *name, unsigned granularity_bits, bool without_bits,
	       struct bitmap **out, struct error *err);
/* Unlinks and frees, whatever its state. */
void bitmap_free(struct bitmap *b);
/* One that does not know any more what changed (no memory to go on, a damaged
 * table) says so; its bits are freed. */
void bitmap_set_inconsistent(struct bitmap *b);

/* Of a new bitmap of N; GRANULARITY 0: the default.  0: there cannot be one. */
uint64_t bitmap_mapped_bytes(const struct node *n, uint64_t granularity);

/* bitmap-range.c: memory.  0 or -ENOMEM. */
uint64_t bitmap_map_len(uint64_t size, unsigned granularity_bits);
int bitmap_alloc_bits(struct bitmap *b);
void bitmap_free_bits(struct bitmap *b);
void bitmap_zero_bits(struct bitmap *b);
/* -EFBIG past BITMAP_BYTES_MAX, -ENOMEM; nothing has changed then. */
int bitmap_resize(struct bitmap *b, uint64_t size);

/* Sets the bits, and leaves alone what is known of zeroes (changes.h). */
void bitmap_mark(struct bitmap *b, uint64_t off, uint64_t len);
/* Its name is that of a checkpoint's epoch (backup/checkpoint.h). */
bool bitmap_is_epoch(const struct bitmap *b);

/* store-live.c: B is new and persistent; its bits survive a crash from now on, if they can.
 * May suspend. */
void store_protect(struct bitmap *b);

/* store.c: may N's image hold one more persistent bitmap, called NAME? */
int store_can_add(struct node *n, const char *name, unsigned granularity_bits,
		  struct error *err);
/* Takes B out of the image, durably.  May suspend. */
int store_remove(struct bitmap *b, struct error *err);

#endif
