/* SPDX-License-Identifier: BSD-3-Clause */
/* changes: what became of a dirty granule: written, or zeroed since.
 *
 * Beside the dirty bits a bitmap may have two more planes of bits, one bit each per
 * granule:
 *
 *	zero	hole
 *	 0	 0	clean, or written: nothing is known of what it holds
 *	 0	 1	pending: a request that zeroes all of it is under way
 *	 1	 0	zeroed: all of it reads as zeroes
 *	 1	 1	the same, and whoever did it wanted no space to be kept for it
 *
 * Only a dirty granule has anything but 0 0.  "Written" is always right, so whatever is
 * in doubt is written: a range of which a part was zeroed, what two requests change at
 * the same time, a request that failed, a discard after which the node does not say that
 * it reads as zeroes, memory that could not be had, and all that was known before a
 * restart.  The planes are in memory alone.
 *
 * A claim is about the node as it is now: a write ends it, whether the bitmap records
 * (is enabled) or not.  LAST_CLAIM lets who reads the node as it was at an instant see
 * whether all claims are older than that.
 */
#ifndef MERINO_CHANGES_H
#define MERINO_CHANGES_H

#include <stdbool.h>
#include <stdint.h>

struct bitmap;
struct extents;
struct node;
struct tap_request;

struct changes {
	uint64_t *zero, *hole;		/* one mapping: HOLE follows ZERO */
	uint64_t len;			/* bytes of each plane */
	uint64_t last_claim;		/* ns, CLOCK_MONOTONIC; 0: there was none */
};

/* B has planes, of zeroes if it had none.  -ENOMEM: it goes without. */
int changes_make(struct bitmap *b);
void changes_drop(struct bitmap *b);		/* none is fine */
/* A copy for somebody else than B, or NULL: none, or no memory. */
struct changes *changes_copy(const struct bitmap *b);
void changes_free(struct changes *c);		/* NULL is fine */

/* Granules, both inclusive.  All of these are nothing where there are no planes. */
void changes_written(struct bitmap *b, uint64_t first, uint64_t last);
void changes_pending(struct bitmap *b, uint64_t first, uint64_t last);
/* What is pending is zeroed, or written after all. */
void changes_claim(struct bitmap *b, uint64_t first, uint64_t last, bool hole);
void changes_give_up(struct bitmap *b, uint64_t first, uint64_t last);

/* Before B's bits follow: B will have GRANULES, the last of which may be another one
 * than it was. */
void changes_resize(struct bitmap *b, uint64_t granules);
/* Before the bits are merged: dst's planes after it.  Written wins. */
void changes_merge(struct bitmap *dst, const struct bitmap *src);

/* changes-tap.c: what the tracker does for N's bitmaps when a zero or discard passes;
 * the dirty bits are set.  After may suspend. */
void changes_before(struct node *n, const struct tap_request *rq);
void changes_after(struct node *n, const struct tap_request *rq, int rc);

#endif
