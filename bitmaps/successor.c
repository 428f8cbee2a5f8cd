/* SPDX-License-Identifier: BSD-3-Clause */
/* successor: see successor.h.
 *
 * The tracker sets a write's bits in both bitmaps at one go, before the write is
 * issued.  So at any moment what the successor has is all that changed since the
 * instant, and taking it over loses nothing, whatever is in flight.
 */
#include "bitmaps/successor.h"

#include "bitmaps/bitmap-int.h"

int successor_begin(struct bitmap *b, struct bitmap **out, struct error *err)
{
	struct bitmap *s;
	int rc = bitmap_new(b->node, "", b->granularity_bits, false, &s, err);

	if (rc)
		return rc;
	s->enabled = b->enabled;
	b->busy++;
	*out = s;
	return 0;
}

void successor_drop(struct bitmap *b, struct bitmap *s)
{
	b->busy--;
	bitmap_free(s);
}

/* Cleans in B what is clean in S. */
static void reset_others(struct bitmap *b, const struct bitmap *s)
{
	uint64_t off, end;

	for (off = 0; (off = bitmap_next_clean(s, off, b->size)) < b->size; off = end) {
		end = bitmap_next_dirty(s, off, b->size);
		bitmap_reset(b, off, end - off);
	}
}

static void set_same(struct bitmap *b, const struct bitmap *s)
{
	uint64_t off, end;

	for (off = 0; (off = bitmap_next_dirty(s, off, b->size)) < b->size; off = end) {
		end = bitmap_next_clean(s, off, b->size);
		bitmap_set(b, off, end - off);
	}
}

void successor_take_over(struct bitmap *b, struct bitmap *s)
{
	if (s->inconsistent) {		/* it could not follow: B knows better */
		successor_drop(b, s);
		return;
	}
	if (!b->inconsistent) {
		reset_others(b, s);
		set_same(b, s);
		b->changed = true;
	}
	successor_drop(b, s);
}
