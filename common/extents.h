/* SPDX-License-Identifier: BSD-3-Clause */
/* extents: a bounded list of runs that tell where a range's data comes from.
 *
 * What BLOCK_STATUS replies, holes in reads and the copier are made of.  Runs
 * are in order and without gaps from where the list starts; equal neighbours
 * are merged.  When the list is full, extents_add() says so and the producer
 * stops: a shorter answer is a right answer.
 */
#ifndef MERINO_EXTENTS_H
#define MERINO_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum extent_flags {
	EXTENT_ZERO = 1,	/* reads as zeroes */
	EXTENT_HOLE = 2,	/* takes no space (NBD_STATE_HOLE) */
	EXTENT_UNALLOCATED = 4,	/* this layer has nothing: ask the backing image */
	EXTENT_DIRTY = 8,	/* a dirty bitmap's run */
};

struct extent {
	uint64_t len;		/* bytes, > 0 */
	uint32_t flags;		/* enum extent_flags */
	uint32_t depth;		/* qemu:allocation-depth: 0 unallocated, 1 top layer, 2 … */
};

struct extents {
	struct extent *v;
	uint32_t n, max;
	uint64_t total;		/* sum of the lengths */
};

/* Appends a run (merging); false, without effect, when there is no room. */
static inline bool extents_add(struct extents *x, uint64_t len, uint32_t flags, uint32_t depth)
{
	struct extent *last = x->n ? &x->v[x->n - 1] : NULL;

	if (!len)
		return true;
	if (last && last->flags == flags && last->depth == depth) {
		last->len += len;
	} else {
		if (x->n == x->max)
			return false;
		x->v[x->n++] = (struct extent){ .len = len, .flags = flags, .depth = depth };
	}
	x->total += len;
	return true;
}

#endif
