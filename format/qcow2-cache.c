// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-cache: slices of L2 tables and of refcount blocks, in bounded memory.
 *
 * A slice is a few KiB of a table (4 KiB by default), so that a miss costs one
 * small read and no more.  L2 slices are found by their guest slice number, not
 * by where they are stored: the common case needs no look at the L1 table.
 *
 * Life of a slot:
 *
 *	unused --cache_get--> loading --read--> clean --cache_dirty--> dirty
 *	clean --evict (CLOCK)--> loading (another number)
 *	dirty --cache_take_dirty (a flush took a copy)--> flushing --written--> clean
 *	flushing --cache_dirty--> flushing and dirty --written--> dirty
 *
 * Only clean slots without pins are evicted.  When there is none, the caller's
 * ROOM makes some clean.  When all are pinned, the cache grows past its bound;
 * the pins are those of the requests in flight, so they bound that.
 *
 * Slots are allocated when they are needed first: a small working set in a large
 * image costs little memory.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLICE_ALIGN 4096u	/* so that direct I/O needs no bounce buffer */

static inline struct slice **bucket_of(struct slice_cache *c, uint64_t no)
{
	return &c->bucket[(no * 0x9e3779b97f4a7c15ull) >> c->hash_shift];
}

int cache_init(struct slice_cache *c, uint32_t slice_bytes, uint64_t max)
{
	unsigned bits = 4;

	c->bytes = slice_bytes;
	c->max = min_u64(max, 1u << 24);
	while (bits < 24 && (1u << bits) < c->max)
		bits++;
	c->hash_shift = 64 - bits;
	c->bucket = calloc(1u << bits, sizeof(*c->bucket));
	return c->bucket ? 0 : -ENOMEM;
}

void cache_free(struct slice_cache *c)
{
	for (uint32_t i = 0; i < c->n; i++) {
		free(c->slot[i]->data);
		free(c->slot[i]);
	}
	free(c->slot);
	free(c->bucket);
	*c = (struct slice_cache){ 0 };
}

static struct slice *find(struct slice_cache *c, uint64_t no)
{
	struct slice *sl = *bucket_of(c, no);

	while (sl && sl->no != no)
		sl = sl->chain;
	return sl;
}

struct slice *cache_find_slow(struct slice_cache *c, uint64_t no)
{
	struct slice *sl = find(c, no);

	if (!sl || sl->loading)
		return NULL;
	sl->recent = true;
	c->last = sl;
	return sl;
}

static void unhash(struct slice_cache *c, struct slice *sl)
{
	struct slice **p = bucket_of(c, sl->no);

	while (*p != sl)
		p = &(*p)->chain;
	*p = sl->chain;
	sl->no = SLICE_NONE;
	if (c->last == sl)
		c->last = NULL;
}

static struct slice *new_slot(struct slice_cache *c)
{
	struct slice *sl, **slots;
	uint32_t n = c->slots_allocated ? 2 * c->slots_allocated : 16;

	if (c->n == c->slots_allocated) {
		slots = realloc(c->slot, n * sizeof(*slots));
		if (!slots)
			return NULL;
		c->slot = slots;
		c->slots_allocated = n;
	}
	sl = calloc(1, sizeof(*sl));
	if (!sl)
		return NULL;
	sl->no = SLICE_NONE;
	sl->data = aligned_alloc(SLICE_ALIGN, align_up(c->bytes, SLICE_ALIGN));
	if (!sl->data) {
		free(sl);
		return NULL;
	}
	return c->slot[c->n++] = sl;
}

/* A slot to load into; NULL: nothing is evictable.  *PINNED: because of pins alone. */
static struct slice *victim(struct slice_cache *c, bool *pinned)
{
	*pinned = true;
	for (uint32_t turns = 2 * c->n; turns; turns--) {
		struct slice *sl = c->slot[c->hand];

		c->hand = c->hand + 1 < c->n ? c->hand + 1 : 0;
		if (sl->pins)
			continue;
		if (sl->dirty || sl->flushing) {
			*pinned = false;
			continue;
		}
		if (sl->recent) {
			sl->recent = false;
			continue;
		}
		if (sl->no != SLICE_NONE)
			unhash(c, sl);
		return sl;
	}
	return NULL;
}

static int take_slot(struct qcow2 *s, struct slice_cache *c, int (*room)(struct qcow2 *s),
		     struct slice **out)
{
	bool pinned = true;

	*out = c->n < c->max ? NULL : victim(c, &pinned);
	if (!*out && pinned) {
		*out = new_slot(c);
		return *out ? 0 : -ENOMEM;
	}
	return *out ? 0 : room(s) ?: -EAGAIN;
}

static int load(struct qcow2 *s, struct slice_cache *c, struct slice *sl, uint64_t no,
		uint64_t host)
{
	struct slice **b = bucket_of(c, no);
	int rc;

	sl->no = no;
	sl->loading = true;
	sl->pins = 1;
	sl->chain = *b;
	*b = sl;
	rc = qcow2_file_read(s, sl->data, host, c->bytes);
	sl->loading = false;
	sl->recent = true;
	if (rc) {
		unhash(c, sl);
		sl->pins = 0;
	}
	co_queue_wake_all(&c->loaded);
	return rc;
}

int cache_get(struct qcow2 *s, struct slice_cache *c, uint64_t no, uint64_t host,
	      int (*room)(struct qcow2 *s), struct slice **out)
{
	struct slice *sl;
	int rc;

	for (;;) {
		sl = find(c, no);
		if (sl && !sl->loading) {
			sl->recent = true;
			sl->pins++;
			*out = sl;
			return 0;
		}
		if (sl) {
			co_queue_wait(&c->loaded);
			continue;
		}
		rc = take_slot(s, c, room, &sl);
		if (rc == -EAGAIN)
			continue;	/* ROOM may have suspended: look again */
		if (!rc)
			rc = load(s, c, sl, no, host);
		if (!rc)
			*out = sl;
		return rc;
	}
}

void cache_unpin(struct slice_cache *c, struct slice *sl)
{
	sl->pins--;
	if (__builtin_expect(c->n <= c->max, 1) || sl->pins || sl->dirty || sl->flushing)
		return;
	if (sl->no != SLICE_NONE)
		unhash(c, sl);
	for (uint32_t i = 0; i < c->n; i++) {
		if (c->slot[i] == sl) {
			c->slot[i] = c->slot[--c->n];
			break;
		}
	}
	if (c->hand >= c->n)
		c->hand = 0;
	free(sl->data);
	free(sl);
}

void cache_dirty(struct slice_cache *c, struct slice *sl)
{
	if (sl->dirty)
		return;
	sl->dirty = true;
	sl->next_dirty = c->dirty;
	c->dirty = sl;
	c->n_dirty++;
}

struct slice **cache_take_dirty(struct slice_cache *c, uint32_t *n)
{
	struct slice **v = c->n_dirty ? malloc(c->n_dirty * sizeof(*v)) : NULL;

	*n = 0;
	if (!v)
		return NULL;
	for (struct slice *sl = c->dirty; sl; sl = sl->next_dirty) {
		sl->dirty = false;
		sl->flushing = true;
		v[(*n)++] = sl;
	}
	c->dirty = NULL;
	c->n_dirty = 0;
	return v;
}

void cache_flushed(struct slice_cache *c, struct slice *sl, bool failed)
{
	sl->flushing = false;
	if (failed)
		cache_dirty(c, sl);
}
