/* SPDX-License-Identifier: BSD-3-Clause */
/* bitmaps/ in memory: the bits against a model of one byte per granule, the
 * commands with QEMU's words, and the tap that hears of writes.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "bitmaps/bitmap-int.h"
#include "bitmaps/bits.h"

static int write_rc;

static int fake_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	return write_rc;
}

static int fake_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	return write_rc;
}

static const struct node_driver fake = { .name = "fake", .write = fake_write,
					 .zero = fake_zero };

static void node_make(struct node *n, uint64_t size)
{
	*n = (struct node){ .name = "n", .driver = &fake, .size = size };
	write_rc = 0;
}

static void node_done(struct node *n)
{
	while (n->bitmaps)
		bitmap_free(n->bitmaps);
	assert_null(n->taps);
}

static struct bitmap *add(struct node *n, const char *name, uint64_t granularity)
{
	struct error err = ERROR_INIT;
	struct bitmap *b = NULL;

	if (bitmap_add(n, name, granularity, false, false, &b, &err) < 0)
		fail_msg("%s", err.text);
	return b;
}

static uint64_t rng = 88172645463325252ull;

static uint64_t rnd(uint64_t below)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return below ? rng % below : 0;
}

/* The model: one byte per byte of the node would be slow, so one per granule. */
struct model {
	uint8_t *v;
	uint64_t size, g, n;
};

static void model_make(struct model *m, uint64_t size, uint64_t g)
{
	*m = (struct model){ .size = size, .g = g, .n = size / g + (size % g != 0) };
	m->v = calloc(m->n + 1, 1);
	assert_non_null(m->v);
}

static void model_set(struct model *m, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < m->n; i++)
		if (i * m->g < off + len && (i + 1) * m->g > off)
			m->v[i] = 1;
}

static void model_reset(struct model *m, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < m->n; i++) {
		uint64_t end = (i + 1) * m->g < m->size ? (i + 1) * m->g : m->size;

		if (len && i * m->g >= off && end <= off + len)
			m->v[i] = 0;
	}
}

static uint64_t model_next(const struct model *m, uint64_t off, uint64_t end, int dirty)
{
	while (off < end && off < m->size && m->v[off / m->g] != dirty)
		off = (off / m->g + 1) * m->g;
	return off < end && off < m->size ? off : end;
}

static void compare(const struct bitmap *b, const struct model *m)
{
	uint64_t dirty = 0, off = rnd(m->size), end = off + rnd(m->size + 3 * m->g - off);

	for (uint64_t i = 0; i < m->n; i++) {
		assert_int_equal(bitmap_get(b, i * m->g), m->v[i]);
		dirty += m->v[i];
	}
	assert_int_equal(b->dirty, dirty);
	assert_false(bitmap_get(b, m->size));
	assert_int_equal(bitmap_next_dirty(b, off, end), model_next(m, off, end, 1));
	assert_int_equal(bitmap_next_clean(b, off, end), model_next(m, off, end, 0));
}

static void check_extents(const struct bitmap *b, const struct model *m)
{
	uint64_t off = rnd(m->size), len = rnd(m->size - off) + 1, at = off;
	struct extent v[7];
	struct extents x = { .v = v, .max = 1 + (uint32_t)rnd(7) };

	bitmap_extents(b, off, len, &x);
	assert_true(x.n > 0 && x.total <= len);
	if (x.n < x.max)
		assert_int_equal(x.total, len);
	for (uint32_t i = 0; i < x.n; i++) {
		int dirty = v[i].flags == EXTENT_DIRTY;

		assert_true(v[i].flags == EXTENT_DIRTY || v[i].flags == 0);
		assert_int_equal(model_next(m, at, at + v[i].len, !dirty), at + v[i].len);
		at += v[i].len;
	}
}

static void random_ops(uint64_t size, uint64_t g, unsigned rounds)
{
	struct node n;
	struct model m;
	struct bitmap *b;

	node_make(&n, size);
	model_make(&m, size, g);
	b = add(&n, "x", g);
	while (rounds--) {
		uint64_t off = rnd(size + g), len = rnd(rnd(8) ? 5 * g : size);

		if (rnd(3)) {
			bitmap_set(b, off, len);
			if (len && off < size)
				model_set(&m, off, len);
		} else {
			bitmap_reset(b, off, len);
			if (off < size)
				model_reset(&m, off, len < size - off ? len : size - off);
		}
		compare(b, &m);
		check_extents(b, &m);
	}
	free(m.v);
	node_done(&n);
}

static void test_random(void **state)
{
	random_ops(1000 * 512, 512, 3000);
	random_ops(64 * 512, 512, 2000);
	random_ops(999 * 4096 + 1234, 4096, 3000);
	random_ops(65536 * 63 + 512, 65536, 2000);
	random_ops(1, 512, 100);
	random_ops(100, 1ull << 31, 100);
	random_ops((1ull << 40) + 512, 1ull << 31, 2000);
}

static void test_words(void **state)
{
	uint64_t v[40] = { 0 };

	assert_int_equal(bits_next_set(v, 0, 2560), 2560);
	assert_int_equal(bits_set(v, 2559, 2559), 1);
	for (unsigned i = 0; i < 2560; i++)
		assert_int_equal(bits_next_set(v, i, 2560), 2559);
	assert_int_equal(bits_next_set(v, 0, 2559), 2559);
	assert_int_equal(bits_set(v, 0, 2559), 2559);
	assert_int_equal(bits_next_clear(v, 0, 2560), 2560);
	assert_int_equal(bits_count(v, 40), 2560);
	for (unsigned i = 0; i < 2560; i++) {
		assert_int_equal(bits_clear(v, i, i), 1);
		assert_int_equal(bits_next_clear(v, 0, 2560), i);
		assert_int_equal(bits_set(v, i, i), 1);
	}
}

static void test_merge(void **state)
{
	static const uint64_t gs[] = { 512, 4096, 65536, 1 << 20, 1ull << 31 };
	const uint64_t size = (3 << 20) + 700;
	struct error err = ERROR_INIT;

	for (unsigned i = 0; i < 25; i++) {
		struct node n;
		struct bitmap *dst, *src, *two[2];
		struct model fine;

		node_make(&n, size);
		model_make(&fine, size, gs[i % 5]);
		dst = add(&n, "dst", gs[i % 5]);
		src = add(&n, "src", gs[i / 5]);
		for (unsigned k = 0; k < 20; k++)
			bitmap_set(src, rnd(size), rnd(20000));
		bitmap_set(dst, 5000, 1);
		model_set(&fine, 5000, 1);
		for (uint64_t off = 0; off < size; off += 512)
			if (bitmap_get(src, off))
				model_set(&fine, off, off + 512 < size ? 512 : size - off);
		two[0] = dst;
		two[1] = src;
		dst->changed = false;
		assert_int_equal(bitmap_merge(dst, two, 2, &err), 0);
		compare(dst, &fine);
		assert_int_equal(bitmap_merge(dst, NULL, 0, &err), 0);
		compare(dst, &fine);
		free(fine.v);
		node_done(&n);
	}
}

static void test_merge_refused(void **state)
{
	struct error err = ERROR_INIT;
	struct node n, other;
	struct bitmap *a, *b, *c, *both[2];

	node_make(&n, 64 << 20);
	node_make(&other, 10 << 20);
	a = add(&n, "a", 0);
	b = add(&n, "b", 0);
	c = add(&other, "c", 0);
	bitmap_set(b, 0, 1);
	both[0] = b;
	both[1] = c;
	assert_true(bitmap_merge(a, both, 2, &err) < 0);
	assert_string_equal(err.text, "Bitmaps are of different sizes (destination size is "
			    "67108864, source size is 10485760) and can't be merged");
	assert_int_equal(a->dirty, 0);		/* all or nothing */
	b->busy = 1;
	assert_true(bitmap_merge(a, both, 1, &err) < 0);
	assert_string_equal(err.text, "Bitmap 'b' is currently in use by another operation and "
			    "cannot be used");
	b->busy = 0;
	b->read_only = true;
	assert_int_equal(bitmap_merge(a, both, 1, &err), 0);
	assert_int_equal(a->dirty, 1);
	both[0] = a;
	assert_true(bitmap_merge(b, both, 1, &err) < 0);
	assert_string_equal(err.text, "Bitmap 'b' is readonly and cannot be modified");
	node_done(&n);
	node_done(&other);
}

static void expect_add(struct node *n, const char *name, uint64_t g, bool persistent,
		       const char *text)
{
	struct error err = ERROR_INIT;
	struct bitmap *b;

	assert_true(bitmap_add(n, name, g, persistent, false, &b, &err) < 0);
	assert_string_equal(err.text, text);
	assert_int_equal(err.class, ERROR_GENERIC);
}

static void test_add(void **state)
{
	struct error err = ERROR_INIT;
	char name[BITMAP_NAME_MAX + 2];
	struct node n;
	struct bitmap *b;

	node_make(&n, 64 << 20);
	b = add(&n, "x", 0);
	assert_int_equal(bitmap_granularity(b), 65536);
	assert_true(b->enabled && !b->persistent && !b->busy && !b->inconsistent);
	expect_add(&n, "x", 0, false, "Bitmap already exists: x");
	expect_add(&n, "", 0, false, "Bitmap name cannot be empty");
	expect_add(&n, "g", 256, false, "Granularity must be power of 2 and at least 512");
	expect_add(&n, "g", 1000, false, "Granularity must be power of 2 and at least 512");
	expect_add(&n, "g", 1ull << 32, false, "Granularity must be at most 2147483648");
	expect_add(&n, "p", 0, true,
		   "Can't store persistent bitmaps to n: Operation not supported");
	memset(name, 'n', sizeof(name));
	name[BITMAP_NAME_MAX] = 0;
	add(&n, name, 1ull << 31);
	name[BITMAP_NAME_MAX] = 'n';
	name[BITMAP_NAME_MAX + 1] = 0;
	assert_true(bitmap_add(&n, name, 0, false, false, &b, &err) < 0);
	assert_memory_equal(err.text, "Bitmap name too long: nnnn", 26);
	assert_null(bitmap_find(&n, "zz", &err));
	assert_string_equal(err.text, "Dirty bitmap 'zz' not found");
	assert_null(bitmap_find_chain(&n, "zz", &err));
	assert_string_equal(err.text, "Bitmap 'zz' is not found");
	assert_ptr_equal(bitmap_find(&n, "x", &err), bitmap_find_chain(&n, "x", &err));
	node_done(&n);
}

static void test_chain(void **state)
{
	struct node top, base;
	struct error err = ERROR_INIT;
	struct bitmap *b;

	node_make(&top, 1 << 20);
	node_make(&base, 1 << 20);
	top.child[CHILD_BACKING] = &base;
	b = add(&base, "b", 0);
	assert_null(bitmap_find(&top, "b", &err));
	assert_ptr_equal(bitmap_find_chain(&top, "b", &err), b);
	node_done(&base);
}

static void test_states(void **state)
{
	struct error err = ERROR_INIT;
	struct node n;
	struct bitmap *b;

	node_make(&n, 1 << 20);
	b = add(&n, "x", 0);
	b->busy = 1;
	assert_int_equal(bitmap_remove(b, &err), -EBUSY);
	assert_true(bitmap_clear(b, &err) < 0 && bitmap_set_enabled(b, false, &err) < 0);
	b->busy = 0;
	b->read_only = true;
	assert_true(bitmap_remove(b, &err) < 0 && bitmap_clear(b, &err) < 0);
	assert_string_equal(err.text, "Bitmap 'x' is readonly and cannot be modified");
	assert_int_equal(bitmap_set_enabled(b, false, &err), 0);	/* as in QEMU */
	b->read_only = false;
	bitmap_set_inconsistent(b);
	assert_true(bitmap_clear(b, &err) < 0 && bitmap_set_enabled(b, true, &err) < 0);
	assert_string_equal(err.text, "Bitmap 'x' is inconsistent and cannot be used");
	assert_true(bitmap_get(b, 0));			/* whoever still looks sees all dirty */
	assert_int_equal(bitmap_next_dirty(b, 5, 100), 5);
	assert_int_equal(bitmap_next_clean(b, 5, 100), 100);
	assert_int_equal(bitmap_remove(b, &err), 0);
	assert_null(n.bitmaps);
	assert_null(n.taps);
}

static void test_tracker(void **state)
{
	struct error err = ERROR_INIT;
	struct node n;
	struct bitmap *a, *b;
	char buf[4096] = { 0 };

	node_make(&n, 1 << 20);
	assert_null(n.taps);
	a = add(&n, "a", 65536);
	b = add(&n, "b", 4096);
	assert_non_null(n.taps);
	assert_null(n.taps->next);			/* one for all */
	assert_int_equal(node_write(&n, buf, 65535, 2, 0), 0);
	assert_int_equal(a->dirty, 2);
	assert_int_equal(b->dirty, 2);
	bitmap_set_enabled(a, false, &err);
	write_rc = -EIO;				/* marked all the same */
	assert_int_equal(node_zero(&n, 512 << 10, 8192, 0), -EIO);
	assert_int_equal(a->dirty, 2);
	assert_int_equal(b->dirty, 4);
	assert_int_equal(bitmap_clear(b, &err), 0);
	assert_int_equal(b->dirty, 0);
	assert_int_equal(bitmap_next_dirty(b, 0, n.size), n.size);
	assert_int_equal(bitmap_remove(b, &err), 0);
	assert_non_null(n.taps);
	assert_int_equal(bitmap_remove(a, &err), 0);
	assert_null(n.taps);
}

static void test_undo(void **state)
{
	struct error err = ERROR_INIT;
	struct node n;
	struct bitmap *b;
	struct bitmap_backup *s;

	node_make(&n, (8 << 20) + 1);
	b = add(&n, "b", 512);
	bitmap_set(b, 777, 100000);
	s = bitmap_save(b);
	assert_non_null(s);
	assert_int_equal(bitmap_clear(b, &err), 0);
	bitmap_set_enabled(b, false, &err);
	bitmap_set(b, 4 << 20, 1);
	bitmap_restore(b, s);
	assert_int_equal(bitmap_next_dirty(b, 0, n.size), 512);
	assert_int_equal(bitmap_next_clean(b, 512, n.size), 100864);
	assert_int_equal(b->dirty, 196);
	assert_true(b->enabled);
	bitmap_backup_free(bitmap_save(b));
	bitmap_backup_free(NULL);
	node_done(&n);
}

static void test_resize(void **state)
{
	struct error err = ERROR_INIT;
	struct node n;
	struct bitmap *a, *b;
	char c = 0;

	node_make(&n, (1 << 20) + 100);
	a = add(&n, "a", 512);
	b = add(&n, "b", 1 << 20);
	bitmap_set(a, 0, n.size);
	bitmap_set(b, 0, n.size);
	assert_int_equal(a->dirty, 2049);
	assert_int_equal(bitmaps_resize(&n, 1000, &err), 0);
	n.size = 1000;
	assert_int_equal(a->dirty, 2);
	assert_int_equal(b->dirty, 1);
	assert_int_equal(bitmaps_resize(&n, 4096, &err), 0);	/* what was there is not there again */
	n.size = 4096;
	assert_int_equal(a->dirty, 8);
	assert_int_equal(bitmaps_resize(&n, 1000, &err), 0);
	n.size = 1000;
	bitmap_clear(a, &err);
	bitmap_clear(b, &err);
	bitmap_set(a, 0, n.size);
	assert_int_equal(bitmaps_resize(&n, 1ull << 40, &err), 0);
	n.size = 1ull << 40;
	assert_int_equal(a->dirty, 2);
	assert_int_equal(bitmap_next_dirty(a, 1024, 1ull << 40), 1ull << 40);
	assert_true(bitmaps_resize(&n, 1ull << 50, &err) < 0);
	assert_int_equal(a->size, 1ull << 40);
	n.size = 1ull << 41;				/* grew, and nobody said so */
	assert_int_equal(node_write(&n, &c, (1ull << 41) - 1, 1, 0), 0);
	assert_int_equal(bitmap_next_dirty(a, 1024, n.size), (1ull << 41) - 512);
	n.size = 1ull << 50;
	assert_int_equal(node_write(&n, &c, n.size - 1, 1, 0), 0);
	assert_true(a->inconsistent && !a->enabled);	/* not the write's fault */
	assert_false(b->inconsistent);
	assert_true(bitmap_get(b, n.size - 1));
	node_done(&n);
}

static void test_huge(void **state)
{
	struct error err = ERROR_INIT;
	struct node n;
	struct bitmap *b;

	node_make(&n, 1ull << 50);
	b = add(&n, "coarse", 1ull << 31);
	bitmap_set(b, 0, 1ull << 50);
	assert_int_equal(b->dirty, 1ull << 19);
	assert_int_equal(bitmap_dirty_bytes(b), 1ull << 50);
	bitmap_reset(b, 1ull << 49, 1ull << 31);
	assert_int_equal(bitmap_next_clean(b, 0, n.size), 1ull << 49);
	b = add(&n, "fine", 256 << 10);			/* 512 MiB of bits, untouched */
	bitmap_set(b, n.size - 1, 1);
	assert_int_equal(bitmap_next_dirty(b, n.size - (1ull << 44), n.size), n.size - (256 << 10));
	expect_add(&n, "too-fine", 128 << 10, false, "Bitmap 'too-fine' would take more than 512 "
		   "MiB of memory. Use larger granularity");
	n.size = INT64_MAX;
	b = add(&n, "largest", 1ull << 31);
	bitmap_set(b, INT64_MAX - (1ull << 40), UINT64_MAX);
	assert_int_equal(b->dirty, 513);
	assert_int_equal(bitmap_next_dirty(b, 1ull << 62, INT64_MAX), INT64_MAX - (513ull << 31) + 1);
	assert_int_equal(bitmap_clear(b, &err), 0);
	node_done(&n);
}

static void test_query(void **state)
{
	struct json_object *list;
	struct node n;
	struct bitmap *b;

	node_make(&n, (1 << 20) + 5);
	assert_null(bitmaps_query(&n));
	assert_null(bitmaps_query_stored(&n));
	add(&n, "a", 4096);
	b = add(&n, "b", 0);
	bitmap_set(b, 1 << 20, 1);
	bitmap_set(b, 0, n.size);
	b->busy = 1;
	list = bitmaps_query(&n);
	assert_string_equal(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PLAIN),
		"[{\"name\":\"b\",\"recording\":true,\"persistent\":false,\"busy\":true,"
		"\"granularity\":65536,\"count\":1114112},"
		"{\"name\":\"a\",\"recording\":true,\"persistent\":false,\"busy\":false,"
		"\"granularity\":4096,\"count\":0}]");
	json_object_put(list);
	bitmap_set_inconsistent(b);
	list = bitmaps_query(&n);
	assert_non_null(strstr(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PLAIN),
			       "\"inconsistent\":true"));
	json_object_put(list);
	node_done(&n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_words), cmocka_unit_test(test_random),
		cmocka_unit_test(test_merge), cmocka_unit_test(test_merge_refused),
		cmocka_unit_test(test_add), cmocka_unit_test(test_chain),
		cmocka_unit_test(test_states), cmocka_unit_test(test_tracker),
		cmocka_unit_test(test_undo), cmocka_unit_test(test_resize),
		cmocka_unit_test(test_huge), cmocka_unit_test(test_query),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
