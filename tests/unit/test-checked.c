/* SPDX-License-Identifier: BSD-3-Clause */
/* checked.h and bytes.h: the edges of 64 bits, unaligned loads, zeroes, UTF-8. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "common/bytes.h"
#include "common/checked.h"

static void test_add_sub_mul(void **state)
{
	uint64_t out = 7;

	assert_true(checked_add(UINT64_MAX - 1, 1, &out) && out == UINT64_MAX);
	assert_false(checked_add(UINT64_MAX, 1, &out));
	assert_int_equal(out, UINT64_MAX);	/* untouched */
	assert_true(checked_sub(5, 5, &out) && out == 0);
	assert_false(checked_sub(5, 6, &out));
	assert_true(checked_mul(UINT32_MAX, UINT32_MAX, &out));
	assert_int_equal(out, UINT64_C(0xfffffffe00000001));
	assert_false(checked_mul(UINT64_C(1) << 32, UINT64_C(1) << 32, &out));
	assert_true(checked_mul(UINT64_MAX, 0, &out) && out == 0);
	/* The output may be an operand. */
	out = 3;
	assert_true(checked_mul(out, 10, &out) && checked_add(out, 1, &out) && out == 31);
}

static void test_range(void **state)
{
	assert_true(checked_range(0, 0, 0));
	assert_true(checked_range(0, 10, 10));
	assert_true(checked_range(10, 0, 10));
	assert_false(checked_range(11, 0, 10));
	assert_false(checked_range(9, 2, 10));
	assert_false(checked_range(1, UINT64_MAX, UINT64_MAX));
	assert_false(checked_range(UINT64_MAX, 1, UINT64_MAX));
	assert_true(checked_range(0, UINT64_MAX, UINT64_MAX));
}

static void test_overlap(void **state)
{
	assert_true(ranges_overlap(0, 10, 9, 1));
	assert_false(ranges_overlap(0, 10, 10, 1));
	assert_true(ranges_overlap(9, 1, 0, 10));
	assert_false(ranges_overlap(10, 1, 0, 10));
	assert_false(ranges_overlap(5, 0, 0, 10));
	assert_false(ranges_overlap(0, 10, 5, 0));
	assert_false(ranges_overlap(5, 0, 5, 1));
	assert_true(ranges_overlap(0, UINT64_MAX, UINT64_MAX - 1, 1));
}

static void test_align(void **state)
{
	uint64_t out = 7;

	assert_false(is_pow2(0));
	assert_true(is_pow2(1) && is_pow2(UINT64_C(1) << 63));
	assert_false(is_pow2(3) || is_pow2(UINT64_MAX));
	assert_true(is_aligned(0, 512) && is_aligned(4096, 512));
	assert_false(is_aligned(513, 512));
	assert_int_equal(align_down(4097, 4096), 4096);
	assert_int_equal(align_up(4097, 4096), 8192);
	assert_int_equal(align_up(4096, 4096), 4096);
	assert_int_equal(align_up(0, 4096), 0);
	assert_true(checked_align_up(UINT64_MAX - 511, 512, &out));
	assert_int_equal(out, UINT64_MAX - 511);
	assert_false(checked_align_up(UINT64_MAX - 510, 512, &out));
	assert_int_equal(DIV_ROUND_UP(UINT64_MAX, UINT64_C(2)), UINT64_C(1) << 63);
	assert_int_equal(DIV_ROUND_UP(8, 4), 2);
	assert_int_equal(DIV_ROUND_UP(9, 4), 3);
	assert_int_equal(min_u64(UINT64_MAX, 1), 1);
	assert_int_equal(max_u64(UINT64_MAX, 1), UINT64_MAX);
}

static void test_big_endian(void **state)
{
	static const uint8_t wire[] = { 0, 0x80, 1, 2, 3, 4, 5, 6, 0xff };
	uint8_t to[9] = { 0 };

	assert_int_equal(get_be16(wire + 1), 0x8001);
	assert_int_equal(get_be32(wire + 1), 0x80010203);
	assert_int_equal(get_be64(wire + 1), UINT64_C(0x80010203040506ff));
	put_be16(to + 1, 0x8001);
	assert_memory_equal(to + 1, wire + 1, 2);
	put_be32(to + 1, 0x80010203);
	assert_memory_equal(to + 1, wire + 1, 4);
	put_be64(to + 1, UINT64_C(0x80010203040506ff));
	assert_memory_equal(to, wire, 9);
}

/* Every length and start, with one byte set at every place in turn. */
static void test_zero(void **state)
{
	enum { SIZE = 700, STEP = 7 };
	uint8_t *buf = calloc(1, SIZE + 1);

	for (size_t start = 0; start < 9; start++)
		for (size_t n = 0; start + n <= SIZE; n += n < 300 ? 1 : STEP) {
			assert_true(bytes_are_zero(buf + start, n));
			for (size_t at = 0; at < n; at += n < 70 ? 1 : 13) {
				buf[start + at] = 0x80;
				assert_false(bytes_are_zero(buf + start, n));
				buf[start + at] = 0;
			}
			buf[start + n] = 1;	/* just behind: not looked at */
			assert_true(bytes_are_zero(buf + start, n));
			buf[start + n] = 0;
		}
	free(buf);
}

static void test_utf8(void **state)
{
	static const char *const good[] = {
		"", "a", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf",
		"\xee\x80\x80", "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf",
	};
	static const char *const bad[] = {
		"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x80\x80",
		"\xe0\x9f\xbf", "\xed\xa0\x80", "\xed\xbf\xbf", "\xe2\x82", "\xf0\x80\x80\x80",
		"\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xfe", "\xff",
		"\xf0\x90\x80", "a\xc2",
	};

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_true(utf8_valid(good[i], strlen(good[i])));
		if (good[i][0])
			assert_int_equal(utf8_length(good[i], strlen(good[i])), strlen(good[i]));
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_false(utf8_valid(bad[i], strlen(bad[i])));
	assert_int_equal(utf8_length("", 0), 0);
	assert_int_equal(utf8_length("", 1), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_add_sub_mul), cmocka_unit_test(test_range),
		cmocka_unit_test(test_overlap),	    cmocka_unit_test(test_align),
		cmocka_unit_test(test_big_endian),  cmocka_unit_test(test_zero),
		cmocka_unit_test(test_utf8),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
