/* SPDX-License-Identifier: BSD-3-Clause */
/* bitmap-range: a bitmap's bits as byte ranges of its node, and their memory.
 *
 * The array is anonymous memory mapped without reservation: a granule that nobody
 * wrote costs nothing, so a sparse bitmap of a huge disk is cheap.  Words are
 * written only where a bit changes.  Bits past the last granule are always 0.
 *
 * `dirty` counts the set bits at all times; `changed` says that they differ from
 * what the image holds, so that the store can leave an unchanged bitmap alone.
 * An inconsistent bitmap has no bits; whoever still reads it (an export that held
 * it when it was given up) sees everything dirty.
 */

#include "bitmaps/bitmap-int.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bitmaps/bits.h"
#include "bitmaps/changes.h"
#include "bitmaps/live.h"

#define PAGE 4096u

/* Whole pages, and at least one: an empty node's bitmap is an array too. */
uint64_t bitmap_map_len(uint64_t size, unsigned granularity_bits)
{
	return max_u64(align_up(bitmap_data_bytes(size, granularity_bits), PAGE), PAGE);
}

static uint64_t words(const struct bitmap *b)
{
	return DIV_ROUND_UP(bitmap_granules(b), 64);
}

static void *map_zeroes(uint64_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int bitmap_alloc_bits(struct bitmap *b)
{
	uint64_t len = bitmap_map_len(b->size, b->granularity_bits);

	b->bits = map_zeroes(len);
	if (!b->bits)
		return -ENOMEM;
	b->bits_len = len;
	return 0;
}

void bitmap_free_bits(struct bitmap *b)
{
	changes_drop(b);
	if (b->bits && b->live)
		io_beside_unmap(b->node->io, b->bits, b->bits_len);
	else if (b->bits)
		munmap(b->bits, b->bits_len);
	b->bits = NULL;
	b->bits_len = 0;
	b->dirty = 0;
}

void bitmap_zero_bits(struct bitmap *b)
{
	changes_drop(b);
	if (b->live)
		live_clear(b);
	else if (b->dirty)
		madvise(b->bits, b->bits_len, MADV_DONTNEED);
	b->dirty = 0;
}

bool bitmap_is_epoch(const struct bitmap *b)
{
	return strncmp(b->name, "merino:", 7) == 0;
}

/* A checkpoint's epoch: what changed since then includes what was not there (the copy of
 * that time is shorter, and a device's new blocks hold anything).  Others are clean
 * there, as in QEMU, if the disk was never larger: a copy that was would show through. */
static bool counts_growth(const struct bitmap *b)
{
	return b->enabled && (b->shrunk || bitmap_is_epoch(b));
}

int bitmap_resize(struct bitmap *b, uint64_t size)
{
	uint64_t old = b->size;
	uint64_t len = bitmap_map_len(size, b->granularity_bits);
	uint64_t granules = DIV_ROUND_UP(size, bitmap_granularity(b));
	void *p;

	if (bitmap_data_bytes(size, b->granularity_bits) > BITMAP_BYTES_MAX)
		return -EFBIG;
	changes_resize(b, granules);
	if (size < old)
		b->shrunk = true;
	if (b->bits && granules < bitmap_granules(b))
		b->dirty -= bits_clear(b->bits, granules, bitmap_granules(b) - 1);
	if (b->live) {
		int rc = live_resize(b, size);

		if (rc)
			return rc;
	} else if (b->bits && len != b->bits_len) {
		p = mremap(b->bits, b->bits_len, len, MREMAP_MAYMOVE);
		if (p == MAP_FAILED && len > b->bits_len)
			return -ENOMEM;		/* growing: nothing was cleared */
		if (p != MAP_FAILED) {
			b->bits = p;
			b->bits_len = len;
		}
	}
	if (b->size != size) {
		b->changed = true;
		b->size = size;
		if (size > old && counts_growth(b))
			bitmap_mark(b, old, size - old);
		live_changed(b->node);
	}
	return 0;
}

/* The bits alone: what they say of zeroes stays. */
static void mark(struct bitmap *b, uint64_t off, uint64_t len)
{
	uint64_t first = off >> b->granularity_bits;
	uint64_t last = (off + len - 1) >> b->granularity_bits, n;

	if (first == last && bits_test(b->bits, first))
		return;
	n = bits_set(b->bits, first, last);
	if (n) {
		b->dirty += n;
		b->changed = true;
	}
}

void bitmap_mark(struct bitmap *b, uint64_t off, uint64_t len)
{
	if (off < b->size && len && b->bits)
		mark(b, off, min_u64(len, b->size - off));
}

void bitmap_set(struct bitmap *b, uint64_t off, uint64_t len)
{
	if (off >= b->size || !len || !b->bits)
		return;
	len = min_u64(len, b->size - off);
	if (__builtin_expect(b->changes != NULL, 0))
		changes_written(b, off >> b->granularity_bits,
				(off + len - 1) >> b->granularity_bits);
	mark(b, off, len);
}

void bitmap_reset(struct bitmap *b, uint64_t off, uint64_t len)
{
	uint64_t first, end, n;

	if (off >= b->size || !len || !b->bits)
		return;
	len = min_u64(len, b->size - off);
	first = DIV_ROUND_UP(off, bitmap_granularity(b));
	end = off + len == b->size ? bitmap_granules(b) : (off + len) >> b->granularity_bits;
	if (first >= end)
		return;
	changes_written(b, first, end - 1);
	n = bits_clear(b->bits, first, end - 1);
	if (n) {
		b->dirty -= n;
		b->changed = true;
	}
}

bool bitmap_get(const struct bitmap *b, uint64_t off)
{
	return off < b->size && (!b->bits || bits_test(b->bits, off >> b->granularity_bits));
}

typedef uint64_t next_fn(const uint64_t *v, uint64_t from, uint64_t end);

static uint64_t next_byte(const struct bitmap *b, uint64_t off, uint64_t end, next_fn *next)
{
	uint64_t stop = min_u64(end, b->size), granules, g;

	if (off >= stop)
		return end;
	if (!b->bits)
		return next == bits_next_set ? off : end;
	granules = DIV_ROUND_UP(stop, bitmap_granularity(b));
	g = next(b->bits, off >> b->granularity_bits, granules);
	if (g == granules)
		return end;
	return max_u64(off, g << b->granularity_bits);
}

uint64_t bitmap_next_dirty(const struct bitmap *b, uint64_t off, uint64_t end)
{
	return next_byte(b, off, end, bits_next_set);
}

/* What lies past the bitmap's end is clean. */
uint64_t bitmap_next_clean(const struct bitmap *b, uint64_t off, uint64_t end)
{
	return next_byte(b, off, end, bits_next_clear);
}

void bitmap_extents(const struct bitmap *b, uint64_t off, uint64_t len, struct extents *x)
{
	uint64_t end = off + min_u64(len, UINT64_MAX - off), stop;

	while (off < end) {
		bool dirty = bitmap_get(b, off);

		stop = dirty ? bitmap_next_clean(b, off, end) : bitmap_next_dirty(b, off, end);
		if (!extents_add(x, stop - off, dirty ? EXTENT_DIRTY : 0, 0))
			return;
		off = stop;
	}
}

/* Runs of a range whose granules are all dirty, as PLANES (ZERO, then HOLE) split it. */
static bool add_planes(const struct bitmap *b, uint64_t off, uint64_t end, unsigned plane,
		       uint32_t flags, struct extents *x)
{
	static const uint32_t flag[] = { EXTENT_ZERO, EXTENT_HOLE };
	const struct changes *c = b->changes;

	if (!c || plane == 2)
		return extents_add(x, end - off, flags, 0);
	while (off < end) {
		const uint64_t *v = plane ? c->hole : c->zero;
		uint64_t g = off >> b->granularity_bits;
		uint64_t last = DIV_ROUND_UP(end, bitmap_granularity(b)), stop;
		bool set = bits_test(v, g);

		stop = (set ? bits_next_clear : bits_next_set)(v, g, last);
		stop = min_u64(stop << b->granularity_bits, end);
		/* A hole that is not zero is pending. */
		if (!(set ? add_planes(b, off, stop, plane + 1, flags | flag[plane], x)
			  : extents_add(x, stop - off, flags, 0)))
			return false;
		off = stop;
	}
	return true;
}

void bitmap_changes(const struct bitmap *b, uint64_t off, uint64_t len, uint64_t instant,
		    struct extents *x)
{
	uint64_t end = off + min_u64(len, UINT64_MAX - off), stop;

	if (!b->changes || (instant && b->changes->last_claim >= instant)) {
		bitmap_extents(b, off, len, x);
		return;
	}
	while (off < end) {
		bool dirty = bitmap_get(b, off);

		stop = dirty ? bitmap_next_clean(b, off, end) : bitmap_next_dirty(b, off, end);
		if (!(dirty ? add_planes(b, off, stop, 0, EXTENT_DIRTY, x)
			    : extents_add(x, stop - off, 0, 0)))
			return;
		off = stop;
	}
}

static int merge_check(const struct bitmap *dst, const struct bitmap *src, struct error *err)
{
	int rc = bitmap_check(src, BITMAP_NOT_BUSY | BITMAP_NOT_INCONSISTENT, err);

	if (rc < 0)
		return rc;
	if (src->size != dst->size)
		return error_set(err, -EINVAL, "Bitmaps are of different sizes (destination "
				 "size is %llu, source size is %llu) and can't be merged",
				 (unsigned long long)dst->size, (unsigned long long)src->size);
	return 0;
}

static void merge_one(struct bitmap *dst, const struct bitmap *src)
{
	uint64_t n, off, end;

	if (dst == src)
		return;
	changes_merge(dst, src);
	dst->shrunk |= src->shrunk;
	if (dst->granularity_bits == src->granularity_bits) {
		n = bits_or(dst->bits, src->bits, words(dst));
		dst->dirty += n;
		dst->changed |= n != 0;
		return;
	}
	for (off = 0; (off = bitmap_next_dirty(src, off, src->size)) < src->size; off = end) {
		end = bitmap_next_clean(src, off, src->size);
		mark(dst, off, end - off);
	}
}

void bitmap_or(struct bitmap *dst, const struct bitmap *src)
{
	if (!dst->bits)
		return;
	if (src->bits)
		merge_one(dst, src);
	else
		bitmap_set(dst, 0, dst->size);
}

int bitmap_merge(struct bitmap *dst, struct bitmap *const *src, unsigned n, struct error *err)
{
	int rc = bitmap_check(dst, BITMAP_CHECK_DEFAULT, err);

	for (unsigned i = 0; i < n && rc == 0; i++)
		rc = merge_check(dst, src[i], err);
	if (rc < 0)
		return rc;
	for (unsigned i = 0; i < n; i++)
		merge_one(dst, src[i]);
	return 0;
}

struct bitmap_backup {
	uint64_t *bits;
	uint64_t bits_len, size, dirty;
	struct changes *changes;
	bool enabled, changed, shrunk;
};

struct bitmap_backup *bitmap_save(const struct bitmap *b)
{
	struct bitmap_backup *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	*s = (struct bitmap_backup){ .size = b->size, .dirty = b->dirty,
				     .enabled = b->enabled, .changed = b->changed,
				     .shrunk = b->shrunk };
	if (!b->bits)
		return s;
	s->bits_len = b->bits_len;
	s->bits = map_zeroes(s->bits_len);
	if (!s->bits) {
		free(s);
		return NULL;
	}
	bits_or(s->bits, b->bits, words(b));	/* touches only what is not zero */
	s->changes = changes_copy(b);
	return s;
}

/* What it had is there again first, then what came is gone. */
static void restore_live(struct bitmap *b, const struct bitmap_backup *s)
{
	bits_or(b->bits, s->bits, words(b));
	for (uint64_t i = 0; i < words(b); i++)
		if (b->bits[i] != s->bits[i])
			b->bits[i] = s->bits[i];
	changes_drop(b);
	b->dirty = s->dirty;
}

void bitmap_restore(struct bitmap *b, struct bitmap_backup *s)
{
	assert(b->size == s->size);	/* the gates were closed all the time */
	changes_drop(b);
	if (b->live) {
		restore_live(b, s);
	} else {
		bitmap_free_bits(b);
		b->bits = s->bits;
		b->bits_len = s->bits_len;
		b->dirty = s->dirty;
		s->bits = NULL;
	}
	b->changes = s->changes;
	b->enabled = s->enabled;
	b->shrunk = s->shrunk;
	b->changed = s->changed;
	s->changes = NULL;
	live_changed(b->node);
	bitmap_backup_free(s);
}

void bitmap_backup_free(struct bitmap_backup *s)
{
	if (s)
		changes_free(s->changes);
	if (s && s->bits)
		munmap(s->bits, s->bits_len);
	free(s);
}
