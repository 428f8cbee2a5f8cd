/* SPDX-License-Identifier: BSD-3-Clause */
/* The third state: what a bitmap says of zeroes, against a disk of sectors that are zero
 * or not.  Requests overlap, take effect at any moment of their lives, fail halfway;
 * discards zero, leave alone or scramble.  Whatever happens, what is claimed to be zero
 * is zero; and without overlap, what could be claimed is.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bitmaps/bitmap-int.h"
#include "bitmaps/changes.h"

enum { SECTOR = 512, SECTORS = 611, SIZE = SECTORS * SECTOR, FLIGHTS = 6 };

static uint8_t disk[SECTORS * 2];	/* 0: the sector reads as zeroes */
static uint64_t rng;

static uint64_t rnd(uint64_t below)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng % below;
}

static int disk_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	for (uint64_t s = off / SECTOR, end = off + len, at = off; at < end; s++) {
		uint64_t stop = min_u64((s + 1) * SECTOR, end);

		if (!extents_add(x, stop - at, disk[s] ? 0 : EXTENT_ZERO | EXTENT_HOLE, 1))
			break;
		at = stop;
	}
	return 0;
}

static const struct node_driver fake = { .name = "fake", .map = disk_map };

static const unsigned grains[] = { 9, 11, 12, 14, 31 };

enum { GRAINS = sizeof(grains) / sizeof(grains[0]) };

static struct bitmap *add(struct node *n, const char *name, uint64_t granularity)
{
	struct error err = ERROR_INIT;
	struct bitmap *b = NULL;

	if (bitmap_add(n, name, granularity, false, false, &b, &err) < 0)
		fail_msg("%s", err.text);
	return b;
}

static void node_make(struct node *n)
{
	static const char *const names[] = { "9", "11", "12", "14", "31" };

	*n = (struct node){ .name = "n", .driver = &fake, .size = SIZE };
	memset(disk, 0, sizeof(disk));
	for (unsigned i = 0; i < GRAINS; i++)
		add(n, names[i], 1ull << grains[i]);
}

static void node_done(struct node *n)
{
	while (n->bitmaps)
		bitmap_free(n->bitmaps);
}

/* What B says of each sector. */
static void say(const struct bitmap *b, uint8_t *flags)
{
	static struct extent v[SECTORS * 2];
	struct extents x = { .v = v, .max = SECTORS * 2 };
	uint64_t at = 0;

	bitmap_changes(b, 0, b->size, 0, &x);
	assert_int_equal(x.total, b->size);
	for (uint32_t i = 0; i < x.n; i++) {
		assert_true(!(v[i].flags & EXTENT_HOLE) || v[i].flags & EXTENT_ZERO);
		assert_true(!(v[i].flags & EXTENT_ZERO) || v[i].flags & EXTENT_DIRTY);
		memset(flags + at / SECTOR, (int)v[i].flags, v[i].len / SECTOR);
		at += v[i].len;
	}
}

static uint64_t check_claims(struct node *n)
{
	uint64_t claims = 0;

	for (struct bitmap *b = n->bitmaps; b; b = b->next) {
		uint8_t flags[SECTORS * 2];
		struct extent v[SECTORS];
		struct extents x = { .v = v, .max = SECTORS };

		say(b, flags);
		for (unsigned s = 0; s < b->size / SECTOR; s++) {
			if (flags[s] & EXTENT_ZERO && disk[s])
				fail_msg("bitmap %s claims that sector %u is zero", b->name, s);
			claims += flags[s] & EXTENT_ZERO ? 1 : 0;
		}
		/* Old clients see the same dirty ranges. */
		bitmap_extents(b, 0, b->size, &x);
		for (uint64_t i = 0, at = 0; i < x.n; at += v[i++].len)
			for (uint64_t s = at / SECTOR; s < (at + v[i].len) / SECTOR; s++)
				assert_int_equal(v[i].flags, flags[s] & EXTENT_DIRTY);
	}
	return claims;
}

/* -- requests that overlap -------------------------------------------------------------- */

struct flight {
	struct tap_request rq;
	bool used, acted;
	int rc;
};

static void tell_before(struct node *n, struct tap_request *rq)
{
	rq->next = n->passing;
	rq->prev = &n->passing;
	if (rq->next)
		rq->next->prev = &rq->next;
	n->passing = rq;
	n->taps->ops->before(n->taps, rq);
}

static void tell_after(struct node *n, struct tap_request *rq, int rc)
{
	n->taps->ops->after(n->taps, rq, rc);
	*rq->prev = rq->next;
	if (rq->next)
		rq->next->prev = rq->prev;
}

static void act(struct flight *f)
{
	uint64_t first = f->rq.off / SECTOR, count = f->rq.len / SECTOR;
	uint64_t how = rnd(4);

	if (f->rc)
		count = rnd(count + 1);
	for (uint64_t s = first; s < first + count; s++) {
		if (f->rq.kind == TAP_WRITE)
			disk[s] = 1;
		else if (f->rq.kind == TAP_ZERO || how < 2)
			disk[s] = 0;
		else if (how == 2 && s % 8 < 6)
			disk[s] = 1;		/* a block device's garbage, a backing image */
	}
	f->acted = true;
}

static void take_off(struct node *n, struct flight *f)
{
	uint64_t most = rnd(4) ? 40 : SECTORS, first = rnd(SECTORS);

	*f = (struct flight){ .used = true, .rc = rnd(8) ? 0 : -EIO };
	f->rq.kind = (enum tap_kind)rnd(3);
	f->rq.flags = rnd(2) ? NODE_MAY_UNMAP : 0;
	f->rq.off = first * SECTOR;
	f->rq.len = (1 + rnd(min_u64(most, SECTORS - first))) * SECTOR;
	tell_before(n, &f->rq);
}

static void land(struct node *n, struct flight *f)
{
	if (!f->acted)
		act(f);
	tell_after(n, &f->rq, f->rc);
	f->used = false;
}

/* With nothing in flight: what else may happen to bitmaps. */
static void between(struct node *n)
{
	struct error err = ERROR_INIT;
	struct bitmap *a = n->bitmaps, *b = n->bitmaps;

	for (uint64_t i = rnd(GRAINS); i--;)
		a = a->next;
	for (uint64_t i = rnd(GRAINS); i--;)
		b = b->next;
	switch (rnd(5)) {
	case 0:
		assert_int_equal(bitmap_set_enabled(a, !a->enabled, &err), 0);
		break;
	case 1:
		assert_int_equal(bitmap_clear(a, &err), 0);
		break;
	case 2:
		assert_int_equal(bitmap_merge(a, &b, 1, &err), 0);
		break;
	case 3:
		bitmap_restore(a, bitmap_save(a));
		break;
	default:
		bitmap_reset(a, rnd(SIZE), rnd(SIZE));
	}
}

static void test_overlapping(void **state)
{
	struct flight f[FLIGHTS] = { 0 };
	uint64_t claims = 0;
	struct node n;

	rng = 88172645463325252ull;
	node_make(&n);
	for (int step = 0; step < 40000; step++) {
		struct flight *one = &f[rnd(FLIGHTS)];

		if (!one->used)
			take_off(&n, one);
		else if (!one->acted && rnd(2))
			act(one);
		else
			land(&n, one);
		claims += check_claims(&n);
		if (step % 64)
			continue;
		for (int i = 0; i < FLIGHTS; i++)
			if (f[i].used)
				land(&n, &f[i]);
		between(&n);
		claims += check_claims(&n);
	}
	assert_true(claims > 10000000);		/* of 40,000 times 5 times 611 */
	for (int i = 0; i < FLIGHTS; i++)
		if (f[i].used)
			land(&n, &f[i]);
	node_done(&n);
}

/* -- one at a time: exactly ------------------------------------------------------------- */

static void expect_one(const struct bitmap *b, const struct tap_request *rq, int rc, uint8_t *want)
{
	uint64_t g = bitmap_granularity(b);

	for (uint64_t at = rq->off / g * g; at < rq->off + rq->len; at += g) {
		uint64_t end = min_u64(at + g, SIZE);
		uint8_t *first = want + at / SECTOR, flags = EXTENT_DIRTY;
		bool whole = rq->off <= at && end <= rq->off + rq->len;
		bool zeroes = rq->kind == TAP_ZERO && !rc;

		if (zeroes && (whole || *first & EXTENT_ZERO))
			flags |= EXTENT_ZERO | (rq->flags & NODE_MAY_UNMAP &&
						(whole || *first & EXTENT_HOLE) ? EXTENT_HOLE : 0);
		if (rq->kind == TAP_DISCARD && !rc && whole)
			flags |= EXTENT_ZERO | EXTENT_HOLE;
		memset(first, flags, (end - at) / SECTOR);
	}
}

static void test_one_at_a_time(void **state)
{
	static uint8_t want[GRAINS][SECTORS], is[SECTORS * 2];
	struct node n;

	rng = 123456789;
	memset(want, 0, sizeof(want));
	node_make(&n);
	for (int step = 0; step < 5000; step++) {
		struct flight f;
		unsigned i = 0;

		take_off(&n, &f);
		if (f.rq.kind == TAP_DISCARD)
			memset(disk + f.rq.off / SECTOR, 0, f.rq.len / SECTOR);
		f.acted = f.rq.kind == TAP_DISCARD;
		land(&n, &f);
		for (struct bitmap *b = n.bitmaps; b; b = b->next, i++) {
			expect_one(b, &f.rq, f.rc, want[i]);
			say(b, is);
			assert_memory_equal(is, want[i], SECTORS);
		}
		check_claims(&n);
		if (step % 500)
			continue;
		i = 0;
		for (struct bitmap *b = n.bitmaps; b; b = b->next)
			bitmap_clear(b, NULL);
		memset(want, 0, sizeof(want));
	}
	node_done(&n);
}

/* -- what happens to a bitmap as a whole ------------------------------------------------ */

static void request(struct node *n, enum tap_kind kind, uint64_t off, uint64_t len)
{
	struct flight f = { .rq = { .off = off, .len = len, .kind = kind, .flags = NODE_MAY_UNMAP } };

	tell_before(n, &f.rq);
	land(n, &f);
}

static uint32_t flags_at(const struct bitmap *b, uint64_t off, uint64_t instant)
{
	struct extent v;
	struct extents x = { .v = &v, .max = 1 };

	bitmap_changes(b, off, 1, instant, &x);
	return v.flags;
}

enum { WRITTEN = EXTENT_DIRTY, ZEROED = EXTENT_DIRTY | EXTENT_ZERO, HOLE = ZEROED | EXTENT_HOLE };

/* Two epochs, merged: what was written in either is written. */
static void test_merge(void **state)
{
	static const uint32_t after[4][4] = {	/* [of one][of the other] */
		{ 0, WRITTEN, ZEROED, HOLE },
		{ WRITTEN, WRITTEN, WRITTEN, WRITTEN },
		{ ZEROED, WRITTEN, ZEROED, ZEROED },
		{ HOLE, WRITTEN, ZEROED, HOLE },
	};
	struct error err = ERROR_INIT;
	struct bitmap *b[2], *finer;
	struct node n = { .name = "n", .driver = &fake, .size = 16 * 4096 };

	memset(disk, 0, sizeof(disk));
	b[0] = add(&n, "a", 4096);
	b[1] = add(&n, "b", 4096);
	for (unsigned e = 0; e < 2; e++) {
		bitmap_set_enabled(b[1 - e], false, &err);
		bitmap_set_enabled(b[e], true, &err);
		for (uint64_t i = 0; i < 16; i++) {
			unsigned what = e ? i % 4 : (unsigned)(i / 4);
			struct flight f = { .rq = { .off = i * 4096, .len = 4096 } };

			f.rq.kind = what == 1 ? TAP_WRITE : what == 2 ? TAP_ZERO : TAP_DISCARD;
			if (what)
				tell_before(&n, &f.rq);
			if (what == 1)
				memset(disk + i * 8, 1, 8);
			if (what > 1)
				memset(disk + i * 8, 0, 8);
			if (what)
				tell_after(&n, &f.rq, 0);
		}
		/* The second epoch ended what the first one said of zeroes: say it again. */
		for (uint64_t i = 0; !e && i < 16; i++)
			assert_int_equal(flags_at(b[0], i * 4096, 0), after[0][i / 4]);
	}
	for (uint64_t i = 0; i < 16; i++) {
		uint32_t was = i % 4 && i / 4 ? WRITTEN : after[0][i / 4];

		assert_int_equal(flags_at(b[0], i * 4096, 0), was);
		assert_int_equal(flags_at(b[1], i * 4096, 0), after[0][i % 4]);
	}
	/* All that there can be. */
	for (uint64_t i = 0; i < 16; i++) {
		changes_pending(b[0], i, i);
		if (i / 4 > 1)
			changes_claim(b[0], i, i, i / 4 == 3);
		else
			changes_give_up(b[0], i, i);
	}
	finer = add(&n, "f", 512);
	assert_int_equal(bitmap_merge(finer, &b[1], 1, &err), 0);
	assert_int_equal(bitmap_merge(b[0], &b[1], 1, &err), 0);
	for (uint64_t i = 0; i < 16; i++) {
		assert_int_equal(flags_at(b[0], i * 4096, 0), after[i / 4][i % 4]);
		assert_int_equal(flags_at(finer, i * 4096 + 512, 0),
				 after[0][i % 4] & ~(uint32_t)EXTENT_HOLE);
	}
	node_done(&n);
}

static void test_resize(void **state)
{
	struct error err = ERROR_INIT;
	struct bitmap *b;
	struct node n = { .name = "n", .driver = &fake, .size = 10 * 4096 + 512 };

	memset(disk, 0, sizeof(disk));
	b = add(&n, "b", 4096);
	request(&n, TAP_ZERO, 0, n.size);
	assert_int_equal(flags_at(b, 10 * 4096, 0), HOLE);
	assert_int_equal(bitmaps_resize(&n, 20 * 4096, &err), 0);
	n.size = 20 * 4096;
	assert_int_equal(flags_at(b, 9 * 4096, 0), HOLE);
	assert_int_equal(flags_at(b, 10 * 4096, 0), WRITTEN);	/* more than what was zeroed */
	assert_int_equal(flags_at(b, 11 * 4096, 0), 0);
	assert_int_equal(bitmaps_resize(&n, 1ull << 40, &err), 0);
	assert_int_equal(flags_at(b, 9 * 4096, 0), HOLE);
	assert_int_equal(flags_at(b, (1ull << 40) - 1, 0), 0);
	n.size = 1ull << 40;
	changes_pending(b, (1ull << 28) - 1, (1ull << 28) - 1);
	assert_int_equal(bitmaps_resize(&n, 5 * 4096, &err), 0);
	n.size = 5 * 4096;
	assert_int_equal(flags_at(b, 4 * 4096, 0), HOLE);
	assert_int_equal(bitmaps_resize(&n, 10 * 4096, &err), 0);
	n.size = 10 * 4096;
	assert_int_equal(flags_at(b, 5 * 4096, 0), WRITTEN);	/* it held something else */
	assert_int_equal(b->dirty, 10);
	node_done(&n);
}

/* Through a view a claim counts only if it is older than the view. */
static void test_instant(void **state)
{
	struct bitmap *b;
	struct node n = { .name = "n", .driver = &fake, .size = 10 * 4096 };
	uint64_t claimed;

	memset(disk, 0, sizeof(disk));
	b = add(&n, "b", 4096);
	request(&n, TAP_ZERO, 0, 4096);
	claimed = b->changes->last_claim;
	assert_int_equal(flags_at(b, 0, claimed + 1), HOLE);
	assert_int_equal(flags_at(b, 0, claimed), WRITTEN);
	request(&n, TAP_ZERO, 4096, 4096);
	assert_int_equal(flags_at(b, 0, claimed + 1), WRITTEN);
	assert_int_equal(flags_at(b, 0, 0), HOLE);
	node_done(&n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_overlapping),
		cmocka_unit_test(test_one_at_a_time),
		cmocka_unit_test(test_merge),
		cmocka_unit_test(test_resize),
		cmocka_unit_test(test_instant),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
