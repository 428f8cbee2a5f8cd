// SPDX-License-Identifier: BSD-3-Clause
/* view-tree: what a view knows of each block.
 *
 * A tree over the blocks' numbers: inner nodes of 512 slots, leaves of 64 blocks.  A
 * slot is a pointer, or says that everything below it is of one kind; a new tree is
 * one such slot.  So a disk of any size costs nothing until it is written to, a range
 * that was released or zeroed costs nothing again, and a block that was kept costs
 * eight bytes and its share of a leaf.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/view-int.h"

#define LEAF_BITS 6u
#define SLOT_BITS 9u
#define SLOTS (1u << SLOT_BITS)
#define LEAF_ALL (~0ull)

struct inner {
	void *slot[SLOTS];
};

/* A block is BLOCK_DISK when no mask has it. */
struct leaf {
	uint64_t mask[BLOCK_KEPT + 1];	/* by kind; [BLOCK_DISK] is not used */
	uint64_t at[];			/* of the kept ones, in their order */
};

static inline void *uniform(enum block_kind kind)
{
	return (void *)(uintptr_t)kind;
}

static inline bool is_uniform(const void *slot)
{
	return (uintptr_t)slot <= BLOCK_GONE;
}

static inline enum block_kind kind_of(const void *slot)
{
	return (enum block_kind)(uintptr_t)slot;
}

/* log2 of the blocks below one slot of an inner node LEVEL levels above the leaves. */
static inline unsigned span_bits(unsigned level)
{
	return LEAF_BITS + SLOT_BITS * level;
}

static inline unsigned count(uint64_t mask)
{
	return (unsigned)__builtin_popcountll(mask);
}

void view_tree_init(struct view_tree *t, uint64_t n_blocks)
{
	*t = (struct view_tree){ .root = uniform(BLOCK_DISK) };
	while (span_bits(t->levels) < 64 && n_blocks > 1ull << span_bits(t->levels))
		t->levels++;
}

static size_t leaf_bytes(unsigned room)
{
	return sizeof(struct leaf) + room * sizeof(uint64_t);
}

/* Room for kept blocks goes in powers of two. */
static unsigned leaf_room(unsigned n)
{
	unsigned room = 1;

	while (room < n)
		room *= 2;
	return n ? room : 0;
}

static void free_slot(struct view_tree *t, void *slot, unsigned level)
{
	if (is_uniform(slot))
		return;
	if (level) {
		struct inner *in = slot;

		for (unsigned i = 0; i < SLOTS; i++)
			free_slot(t, in->slot[i], level - 1);
		t->bytes -= sizeof(*in);
	} else {
		struct leaf *l = slot;

		t->bytes -= leaf_bytes(leaf_room(count(l->mask[BLOCK_KEPT])));
	}
	free(slot);
}

void view_tree_free(struct view_tree *t)
{
	free_slot(t, t->root, t->levels);
	t->root = uniform(BLOCK_DISK);
}

/* -- looking up ----------------------------------------------------------------------- */

static enum block_kind leaf_kind(const struct leaf *l, unsigned i)
{
	for (unsigned k = BLOCK_ZERO; k <= BLOCK_KEPT; k++)
		if (l->mask[k] >> i & 1)
			return k;
	return BLOCK_DISK;
}

static uint64_t leaf_at(const struct leaf *l, unsigned i)
{
	return l->at[count(l->mask[BLOCK_KEPT] & ((1ull << i) - 1))];
}

static uint64_t leaf_mask(const struct leaf *l, enum block_kind k)
{
	if (k != BLOCK_DISK)
		return l->mask[k];
	return ~(l->mask[BLOCK_ZERO] | l->mask[BLOCK_BELOW] | l->mask[BLOCK_GONE] | l->mask[BLOCK_KEPT]);
}

static struct block_run leaf_run(const struct leaf *l, unsigned i)
{
	struct block_run r = { .kind = leaf_kind(l, i) };
	uint64_t other = ~(leaf_mask(l, r.kind) >> i);
	unsigned n = other ? (unsigned)__builtin_ctzll(other) : 64;

	if (n > 64 - i)
		n = 64 - i;
	r.n = n;
	if (r.kind != BLOCK_KEPT)
		return r;
	r.at = leaf_at(l, i);
	for (r.n = 1; r.n < n && leaf_at(l, i + (unsigned)r.n) == r.at + r.n;)
		r.n++;
	return r;
}

struct block_run view_tree_slot(const struct view_tree *t, uint64_t block)
{
	const void *slot = t->root;
	unsigned level = t->levels;

	while (!is_uniform(slot) && level) {
		level--;
		slot = ((const struct inner *)slot)->slot[block >> span_bits(level) & (SLOTS - 1)];
	}
	if (is_uniform(slot)) {
		uint64_t span = span_bits(level) < 64 ? 1ull << span_bits(level) : UINT64_MAX;

		return (struct block_run){ .kind = kind_of(slot), .n = span - (block & (span - 1)) };
	}
	return leaf_run(slot, block % 64);
}

struct block_run view_tree_run(const struct view_tree *t, uint64_t block, uint64_t end)
{
	struct block_run r = view_tree_slot(t, block), more;

	while (r.n < end - block) {
		more = view_tree_slot(t, block + r.n);
		if (more.kind != r.kind || (r.kind == BLOCK_KEPT && more.at != r.at + r.n))
			break;
		r.n += more.n;
	}
	r.n = min_u64(r.n, end - block);
	return r;
}

/* -- changing ------------------------------------------------------------------------- */

static struct inner *make_inner(struct view_tree *t, const void *alike)
{
	struct inner *in = malloc(sizeof(*in));

	if (!in)
		return NULL;
	for (unsigned i = 0; i < SLOTS; i++)
		in->slot[i] = (void *)alike;
	t->bytes += sizeof(*in);
	return in;
}

static struct leaf *make_leaf(struct view_tree *t, const void *alike)
{
	struct leaf *l = calloc(1, leaf_bytes(0));

	if (!l)
		return NULL;
	if (kind_of(alike) != BLOCK_DISK)
		l->mask[kind_of(alike)] = LEAF_ALL;
	t->bytes += leaf_bytes(0);
	return l;
}

/* The kept ones' places: those outside MASK as they were, those inside from AT on. */
static void fill_places(uint64_t *to, const struct leaf *l, uint64_t mask, uint64_t kept, uint64_t at)
{
	for (uint64_t left = kept; left; left &= left - 1) {
		unsigned i = (unsigned)__builtin_ctzll(left);

		*to++ = mask >> i & 1 ? at++ : leaf_at(l, i);
	}
}

/* The blocks of MASK, a run of bits, are of KIND. */
static int leaf_set(struct view_tree *t, void **slot, uint64_t mask, enum block_kind kind, uint64_t at)
{
	struct leaf *l = *slot;
	uint64_t old = l->mask[BLOCK_KEPT];
	uint64_t kept = kind == BLOCK_KEPT ? old | mask : old & ~mask;
	unsigned room = leaf_room(count(kept)), had = leaf_room(count(old));
	uint64_t places[64];

	fill_places(places, l, kind == BLOCK_KEPT ? mask : 0, kept, at);
	if (room != had) {
		l = realloc(l, leaf_bytes(room));
		if (!l)
			return -ENOMEM;
		t->bytes = t->bytes - leaf_bytes(had) + leaf_bytes(room);
		*slot = l;
	}
	memcpy(l->at, places, count(kept) * sizeof(uint64_t));
	for (unsigned k = BLOCK_ZERO; k <= BLOCK_KEPT; k++)
		l->mask[k] = k == (unsigned)kind ? l->mask[k] | mask : l->mask[k] & ~mask;
	return 0;
}

/* A slot whose blocks are all of one kind says so itself. */
static void collapse(struct view_tree *t, void **slot, unsigned level, enum block_kind kind)
{
	bool alike = kind != BLOCK_KEPT;

	if (level) {
		const struct inner *in = *slot;

		for (unsigned i = 0; i < SLOTS && alike; i++)
			alike = in->slot[i] == uniform(kind);
	} else {
		alike = alike && leaf_mask(*slot, kind) == LEAF_ALL;
	}
	if (!alike)
		return;
	free_slot(t, *slot, level);
	*slot = uniform(kind);
}

static int slot_set(struct view_tree *t, void **slot, unsigned level, uint64_t first, uint64_t last,
		    enum block_kind kind, uint64_t at);

/* FIRST and LAST (inclusive) are counted from where the node begins. */
static int inner_set(struct view_tree *t, struct inner *in, unsigned level, uint64_t first,
		     uint64_t last, enum block_kind kind, uint64_t at)
{
	unsigned bits = span_bits(level - 1);
	uint64_t span = 1ull << bits;
	int rc = 0;

	for (uint64_t i = first >> bits; i <= last >> bits && !rc; i++) {
		uint64_t from = max_u64(first, i << bits), to = min_u64(last, (i << bits) + span - 1);

		rc = slot_set(t, &in->slot[i], level - 1, from & (span - 1), to & (span - 1), kind,
			      at + (from - first));
	}
	return rc;
}

static int slot_set(struct view_tree *t, void **slot, unsigned level, uint64_t first, uint64_t last,
		    enum block_kind kind, uint64_t at)
{
	uint64_t all = span_bits(level) < 64 ? (1ull << span_bits(level)) - 1 : UINT64_MAX;
	int rc;

	if (kind != BLOCK_KEPT && *slot == uniform(kind))
		return 0;
	if (kind != BLOCK_KEPT && first == 0 && last == all) {
		free_slot(t, *slot, level);
		*slot = uniform(kind);
		return 0;
	}
	if (is_uniform(*slot)) {
		void *made = level ? (void *)make_inner(t, *slot) : (void *)make_leaf(t, *slot);

		if (!made)
			return -ENOMEM;
		*slot = made;
	}
	if (level)
		rc = inner_set(t, *slot, level, first, last, kind, at);
	else
		rc = leaf_set(t, slot, LEAF_ALL >> (63 - (last - first)) << first, kind, at);
	if (!rc)
		collapse(t, slot, level, kind);
	return rc;
}

int view_tree_set(struct view_tree *t, uint64_t first, uint64_t n, enum block_kind kind, uint64_t at)
{
	return n ? slot_set(t, &t->root, t->levels, first, first + n - 1, kind, at) : 0;
}
