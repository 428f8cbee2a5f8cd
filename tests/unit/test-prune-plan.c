/* SPDX-License-Identifier: BSD-3-Clause */
/* prune-plan: which points a schedule keeps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <string.h>
#include <time.h>

#include "clients/prune-plan.c"

enum { POINTS_MAX = 400 };

/* Seconds since 1970 of a UTC date. */
static int64_t at(int year, int month, int day, int hour)
{
	struct tm tm = { .tm_year = year - 1900, .tm_mon = month - 1, .tm_mday = day, .tm_hour = hour };

	return timegm(&tm);
}

static size_t kept(const char *schedule, uint64_t last, const int64_t *time, size_t n, bool *keep)
{
	struct prune_rules r = { 0 };
	size_t count = 0;

	if (schedule)
		assert_int_equal(prune_rules_parse(schedule, &r, NULL), 0);
	r.last = last;
	prune_plan(&r, time, n, keep);
	for (size_t i = 0; i < n; i++)
		count += keep[i];
	return count;
}

static void test_bad_schedules(void **state)
{
	static const char *const bad[] = { "", "7", "d", "7d,", ",7d", "0d", "-1d", "+1d", " 7d", "7d 4w", "7x", "7d,3d",
					   "100001d", "99999999999999999999d", "7dd", "7d,,4w", "07d" };
	struct prune_rules r;

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_true(prune_rules_parse(bad[i], &r, NULL) < 0);
}

static void test_last(void **state)
{
	int64_t time[] = { 1, 2, 3, 4 };
	bool keep[4];

	assert_int_equal(kept(NULL, 2, time, 4, keep), 2);
	assert_true(!keep[0] && !keep[1] && keep[2] && keep[3]);
	assert_int_equal(kept(NULL, 9, time, 4, keep), 4);
	assert_int_equal(kept(NULL, 0, time, 4, keep), 1);
	assert_int_equal(kept(NULL, 1, time, 0, keep), 0);
}

/* Two a day for a year. */
static void test_schedule(void **state)
{
	static int64_t time[730];
	static bool keep[730];
	size_t n = 0;

	for (int day = 0; day < 365; day++)
		for (int half = 0; half < 2; half++)
			time[n++] = at(2026, 1, 1, 2 + 12 * half) + day * 86400;
	assert_int_equal(kept("7d", 0, time, n, keep), 7);
	for (int i = 0; i < 14; i++)
		assert_int_equal(keep[n - 1 - i], i % 2 == 0);	/* the later one of each day */
	assert_int_equal(kept("12m", 0, time, n, keep), 12);
	assert_true(keep[2 * 30 + 1]);		/* the last of January */
	/* 2026-12-31 is a Thursday: this week's last point, and those of three Sundays. */
	assert_int_equal(kept("4w", 0, time, n, keep), 4);
	assert_true(keep[2 * (364 - 4) + 1] && keep[2 * (364 - 11) + 1]);
	assert_int_equal(kept("1y", 0, time, n, keep), 1);
	assert_int_equal(kept("3h", 0, time, n, keep), 3);
	assert_int_equal(kept("7d,4w,12m", 3, time, n, keep), 7 + 2 + 11 + 1);
}

/* A machine that was off for weeks keeps what it has. */
static void test_gaps(void **state)
{
	int64_t time[] = { at(2019, 2, 3, 4), at(2026, 1, 1, 1), at(2026, 3, 1, 1), at(2026, 3, 1, 2) };
	bool keep[4];

	assert_int_equal(kept("3d", 0, time, 4, keep), 3);
	assert_true(keep[0] && keep[1] && !keep[2] && keep[3]);
}

static void test_strange_clocks(void **state)
{
	int64_t time[] = { INT64_MIN, -86401, -86400, -1, 0, INT64_MAX };
	bool keep[6];

	assert_int_equal(kept("9d,9w,9m,9y,9h", 0, time, 6, keep), 6);
	assert_int_equal(kept("2d", 0, time + 1, 3, keep), 2);
	assert_true(keep[0] && !keep[1] && keep[2]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bad_schedules),
		cmocka_unit_test(test_last),
		cmocka_unit_test(test_schedule),
		cmocka_unit_test(test_gaps),
		cmocka_unit_test(test_strange_clocks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
