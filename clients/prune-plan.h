/* SPDX-License-Identifier: BSD-3-Clause */
/* prune-plan: which restore points stay: the last ones, or by a schedule. */
#ifndef MERINO_PRUNE_PLAN_H
#define MERINO_PRUNE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

enum prune_period { PERIOD_HOUR, PERIOD_DAY, PERIOD_WEEK, PERIOD_MONTH, PERIOD_YEAR, PERIODS };

/* What stays.  A point stays when any of the rules wants it. */
struct prune_rules {
	uint64_t last;			/* the last points; 0: no such rule */
	uint64_t of[PERIODS];		/* the last point of each of so many hours, days, ... */
};

/* "7d,4w,12m": numbers with h, d, w, m or y, each at most once, 1 to 100000. */
int prune_rules_parse(const char *text, struct prune_rules *r, struct error *err);

/* TIME: N points' seconds since 1970, oldest first.  KEEP[i] becomes whether the i-th
 * stays.  Periods without a point do not count, and end in UTC; weeks begin on Monday.
 * The newest always stays. */
void prune_plan(const struct prune_rules *r, const int64_t *time, size_t n, bool *keep);

#endif
