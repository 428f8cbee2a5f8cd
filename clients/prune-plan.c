// SPDX-License-Identifier: BSD-3-Clause
/* prune-plan: counting points and periods, newest first. */
#include "clients/prune-plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define COUNT_MAX 100000u

static const char letters[PERIODS + 1] = "hdwmy";

int prune_rules_parse(const char *text, struct prune_rules *r, struct error *err)
{
	const char *p = text;

	*r = (struct prune_rules){ 0 };
	do {
		char *end = NULL;
		unsigned long n = *p >= '1' && *p <= '9' ? strtoul(p, &end, 10) : 0;
		const char *letter = end && *end ? strchr(letters, *end) : NULL;

		if (!letter || n > COUNT_MAX || (end[1] && end[1] != ','))
			return error_set(err, -EINVAL, "'%s' is no schedule: numbers from 1 to %u with h, d, w, m or y, "
					 "as in 7d,4w,12m", text, COUNT_MAX);
		if (r->of[letter - letters])
			return error_set(err, -EINVAL, "'%s' names '%c' twice", text, *letter);
		r->of[letter - letters] = n;
		p = end[1] ? end + 2 : NULL;
	} while (p);
	return 0;
}

/* Rounds down, below zero too. */
static int64_t floor_div(int64_t a, int64_t b)
{
	return a / b - (a % b < 0);
}

/* The number of the period that T is in. */
static int64_t period_of(enum prune_period kind, int64_t t)
{
	int64_t day = floor_div(t, 86400);
	time_t clock = t;
	struct tm tm;

	switch (kind) {
	case PERIOD_HOUR: return floor_div(t, 3600);
	case PERIOD_DAY: return day;
	case PERIOD_WEEK: return floor_div(day + 3, 7);		/* 1970 began on a Thursday */
	default: break;
	}
	if (!gmtime_r(&clock, &tm))
		return day;		/* a year that does not fit an int: each day for itself */
	return kind == PERIOD_MONTH ? tm.tm_year * 12LL + tm.tm_mon : tm.tm_year;
}

static void keep_periods(enum prune_period kind, uint64_t count, const int64_t *time, size_t n, bool *keep)
{
	int64_t last = 0;

	for (size_t i = n; i-- && count;) {
		int64_t now = period_of(kind, time[i]);

		if (i + 1 < n && now == last)
			continue;
		keep[i] = true;
		last = now;
		count--;
	}
}

void prune_plan(const struct prune_rules *r, const int64_t *time, size_t n, bool *keep)
{
	for (size_t i = 0; i < n; i++)
		keep[i] = i + 1 == n || n - i <= r->last;
	for (int kind = 0; kind < PERIODS; kind++)
		keep_periods(kind, r->of[kind], time, n, keep);
}
