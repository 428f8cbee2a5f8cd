/* SPDX-License-Identifier: BSD-3-Clause */
/* size: the spellings of qemu-img, and what neither of us takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>

#include "common/size.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void test_good(void **state)
{
	static const struct {
		const char *text;
		uint64_t size;
	} cases[] = {
		{ "0", 0 },
		{ "00012", 12 },
		{ "512", 512 },
		{ "1b", 1 },
		{ "1B", 1 },
		{ "1k", 1024 },
		{ "1K", 1024 },
		{ "64M", 64 << 20 },
		{ "1.5G", 1610612736 },
		{ "1g", 1 << 30 },
		{ "2T", UINT64_C(2) << 40 },
		{ "3p", UINT64_C(3) << 50 },
		{ "1E", UINT64_C(1) << 60 },
		{ "15e", UINT64_C(15) << 60 },
		{ "15.9999999999999999999999E", UINT64_C(18446744073709551614) },
		{ "1.1k", 1126 },
		{ "1.9999k", 2047 },
		{ "0.1G", 107374182 },
		{ "0.0001k", 0 },
		{ "5.k", 5120 },
		{ "1.", 1 },
		{ "1.0b", 1 },
		{ "1.00", 1 },
		{ "18446744073709551615", UINT64_MAX },
		{ "0x10", 16 },
		{ "0XfFfFfFfFfFfFfFfF", UINT64_MAX },
	};
	struct error err;
	uint64_t out;

	for (size_t i = 0; i < COUNT(cases); i++) {
		out = 77;
		assert_int_equal(size_parse(cases[i].text, &out, &err), 0);
		assert_int_equal(out, cases[i].size);
	}
}

static void test_bad(void **state)
{
	static const char *const syntax[] = {
		"", " ", "k", ".", ".5G", ".k", "-1", "+1", " 1", "1 ", "1\n", "1KiB", "1kB", "1e3",
		"1x", "1.5", "1.5b", "1..5k", "1.5.k", "0x", "0x10k", "0x1.8", "0x-1", "inf", "nan",
		"1,5G", "1k1", "1\x8bk", "1\x0b", "\xef\xbc\x91",
	};
	static const char *const range[] = {
		"16E", "16.0E", "18446744073709551616", "99999999999999999999999999",
		"18014398509481984k", "0x10000000000000000",
	};
	struct error err;
	uint64_t out = 77;

	for (size_t i = 0; i < COUNT(syntax); i++) {
		err = ERROR_INIT;
		assert_int_equal(size_parse(syntax[i], &out, &err), -EINVAL);
		assert_int_equal(err.code, -EINVAL);
	}
	for (size_t i = 0; i < COUNT(range); i++)
		assert_int_equal(size_parse(range[i], &out, &err), -ERANGE);
	assert_int_equal(size_parse("junk", &out, NULL), -EINVAL);
	assert_int_equal(out, 77);
}

static void test_format(void **state)
{
	static const struct {
		uint64_t size;
		const char *text;
	} cases[] = {
		{ 0, "0 B" },
		{ 999, "999 B" },
		{ 1000, "0.977 KiB" },
		{ 1024, "1 KiB" },
		{ 412 << 20, "412 MiB" },
		{ 1610612736, "1.5 GiB" },
		{ UINT64_C(1023) << 20, "0.999 GiB" },
		{ UINT64_C(10995) << 30, "10.7 TiB" },
		{ UINT64_MAX, "16 EiB" },
	};
	char buf[SIZE_TEXT_MAX];

	for (size_t i = 0; i < COUNT(cases); i++)
		assert_string_equal(size_format(buf, sizeof(buf), cases[i].size), cases[i].text);
	assert_string_equal(size_format(buf, 4, 412 << 20), "412");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_format),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
