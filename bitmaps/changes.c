/* SPDX-License-Identifier: BSD-3-Clause */
/* changes: the planes of bits that tell zeroed granules from written ones (changes.h).
 *
 * They are anonymous memory that is not reserved, as large as the dirty bits each, made
 * when the first zero or discard comes.  Words are written only where a bit changes.
 */

#include "bitmaps/changes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "bitmaps/bitmap-int.h"
#include "bitmaps/bits.h"

#define PAGE 4096u

static uint64_t plane_len(uint64_t granules)
{
	return max_u64(align_up(DIV_ROUND_UP(granules, 8), PAGE), PAGE);
}

static struct changes *planes_new(uint64_t len)
{
	struct changes *c = calloc(1, sizeof(*c));
	void *p = c ? mmap(NULL, 2 * len, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : MAP_FAILED;

	if (p == MAP_FAILED) {
		free(c);
		return NULL;
	}
	c->zero = p;
	c->hole = c->zero + len / 8;
	c->len = len;
	return c;
}

void changes_free(struct changes *c)
{
	if (c)
		munmap(c->zero, 2 * c->len);
	free(c);
}

int changes_make(struct bitmap *b)
{
	if (b->changes)
		return 0;
	if (b->bits)
		b->changes = planes_new(plane_len(bitmap_granules(b)));
	return b->changes ? 0 : -ENOMEM;
}

void changes_drop(struct bitmap *b)
{
	changes_free(b->changes);
	b->changes = NULL;
}

struct changes *changes_copy(const struct bitmap *b)
{
	struct changes *from = b->changes, *c = from ? planes_new(from->len) : NULL;

	if (!c)
		return NULL;
	bits_or(c->zero, from->zero, from->len / 4);	/* both planes */
	c->last_claim = from->last_claim;
	return c;
}

void changes_written(struct bitmap *b, uint64_t first, uint64_t last)
{
	if (!b->changes)
		return;
	bits_clear(b->changes->zero, first, last);
	bits_clear(b->changes->hole, first, last);
}

void changes_pending(struct bitmap *b, uint64_t first, uint64_t last)
{
	if (!b->changes)
		return;
	bits_clear(b->changes->zero, first, last);
	bits_set(b->changes->hole, first, last);
}

/* The bits of word I that belong to granules FIRST to LAST. */
static uint64_t mask_of(uint64_t i, uint64_t first, uint64_t last)
{
	uint64_t mask = ~0ull;

	if (i == first / 64)
		mask &= ~0ull << (first % 64);
	if (i == last / 64)
		mask &= ~0ull >> (63 - last % 64);
	return mask;
}

void changes_claim(struct bitmap *b, uint64_t first, uint64_t last, bool hole)
{
	struct changes *c = b->changes;
	struct timespec now;

	if (!c)
		return;
	for (uint64_t i = first / 64; i <= last / 64; i++) {
		uint64_t pending = mask_of(i, first, last) & c->hole[i] & ~c->zero[i];

		if (!pending)
			continue;
		c->zero[i] |= pending;
		if (!hole)
			c->hole[i] &= ~pending;
	}
	clock_gettime(CLOCK_MONOTONIC, &now);
	c->last_claim = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void changes_give_up(struct bitmap *b, uint64_t first, uint64_t last)
{
	struct changes *c = b->changes;

	for (uint64_t i = first / 64; c && i <= last / 64; i++) {
		uint64_t pending = mask_of(i, first, last) & c->hole[i] & ~c->zero[i];

		if (pending)
			c->hole[i] &= ~pending;
	}
}

/* The last granule, of which a part was zeroed that was all there was, may be longer now. */
void changes_resize(struct bitmap *b, uint64_t granules)
{
	uint64_t had = bitmap_granules(b), len = plane_len(granules);
	struct changes *from = b->changes, *c;

	if (!from)
		return;
	if (had)
		changes_written(b, had - 1, had - 1);
	if (granules < had)
		changes_written(b, granules, had - 1);
	if (len == from->len)
		return;
	c = planes_new(len);
	if (c) {
		bits_or(c->zero, from->zero, min_u64(len, from->len) / 8);
		bits_or(c->hole, from->hole, min_u64(len, from->len) / 8);
		c->last_claim = from->last_claim;
	}
	changes_free(from);
	b->changes = c;
}

/* Both have the same granules. */
static void merge_words(struct bitmap *dst, const struct bitmap *src)
{
	struct changes *d = dst->changes, *s = src->changes;
	uint64_t words = DIV_ROUND_UP(bitmap_granules(dst), 64);

	for (uint64_t i = 0; i < words; i++) {
		uint64_t sd = src->bits[i], dd = dst->bits[i];
		uint64_t sz = s ? s->zero[i] : 0, sh = s ? s->hole[i] : 0;
		uint64_t zero, hole;

		if (!sd)
			continue;
		zero = (d->zero[i] | sz) & ~(dd & ~d->zero[i]) & ~(sd & ~sz);
		hole = zero & ~(dd & ~d->hole[i]) & ~(sd & ~sh);
		if (zero != d->zero[i])
			d->zero[i] = zero;
		if (hole != d->hole[i])
			d->hole[i] = hole;
	}
}

/* [off, off+len) of the source is zeroed, whatever granules that makes in DST: those that
 * lie wholly in it and are clean are zeroed, others that are clean will be written. */
static void merge_zeroed(struct bitmap *dst, uint64_t off, uint64_t len)
{
	uint64_t first = DIV_ROUND_UP(off, bitmap_granularity(dst)), end;

	end = off + len >= dst->size ? bitmap_granules(dst) : (off + len) >> dst->granularity_bits;
	for (uint64_t g = off >> dst->granularity_bits; g <= (off + len - 1) >> dst->granularity_bits; g++) {
		bits_clear(dst->changes->hole, g, g);
		if (g >= first && g < end && !bits_test(dst->bits, g))
			bits_set(dst->changes->zero, g, g);
	}
}

/* Granules of two sizes: what was a hole is zeroed, that is enough. */
static void merge_ranges(struct bitmap *dst, const struct bitmap *src)
{
	uint64_t words = DIV_ROUND_UP(bitmap_granules(src), 64), g, end;
	uint64_t n = bitmap_granules(src), off, stop;
	const uint64_t *zero = src->changes ? src->changes->zero : NULL;

	for (g = 0; zero && (g = bits_next_set(zero, g, n)) < n; g = end) {
		end = bits_next_clear(zero, g, n);
		off = g << src->granularity_bits;
		stop = min_u64(end << src->granularity_bits, src->size);
		merge_zeroed(dst, off, stop - off);
	}
	for (uint64_t i = 0; i < words; i++) {
		uint64_t written = src->bits[i] & ~(zero ? zero[i] : 0);

		while (written) {
			g = i * 64 + (uint64_t)__builtin_ctzll(written);
			written &= written - 1;
			off = g << src->granularity_bits;
			stop = min_u64(off + bitmap_granularity(src), src->size);
			changes_written(dst, off >> dst->granularity_bits,
					(stop - 1) >> dst->granularity_bits);
		}
	}
}

void changes_merge(struct bitmap *dst, const struct bitmap *src)
{
	if (!dst->changes && (!src->changes || changes_make(dst) < 0))
		return;
	if (dst->granularity_bits == src->granularity_bits)
		merge_words(dst, src);
	else
		merge_ranges(dst, src);
	if (src->changes)
		dst->changes->last_claim = max_u64(dst->changes->last_claim,
						   src->changes->last_claim);
}
