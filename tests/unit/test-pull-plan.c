// SPDX-License-Identifier: BSD-3-Clause
/* The plan of `merino pull` against a model: whatever shape a server's answers
 * have, the runs cover the export once, in order, and say what the model says.
 * What a lying server does is tested through the program (tests/clients).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "clients/pull-plan.c"

enum { UNIT = 512, UNITS = 700000, ROUNDS = 60 };

static unsigned char dirty[UNITS], zero[UNITS];	/* the model, one entry per 512 bytes */

static uint32_t below(uint32_t n)
{
	return (uint32_t)random() % n;
}

static void fill(unsigned char *v, unsigned units, unsigned longest)
{
	for (unsigned i = 0; i < units;) {
		unsigned run = 1 + below(longest), value = below(2);

		for (; run-- && i < units; i++)
			v[i] = value;
	}
}

/* Answers like a server that stops after at most MOST extents, and may cut a
 * run in two. */
static void answer(struct plan *p, enum plan_context c, uint64_t off, uint64_t len, unsigned most)
{
	const unsigned char *v = c == PLAN_DIRTY ? dirty : zero;
	uint32_t *out = malloc(2 * sizeof(*out) * most);
	unsigned i = off / UNIT, end = (off + len + UNIT - 1) / UNIT, n = 0;

	assert_non_null(out);
	for (; i < end && n < most; n++) {
		unsigned start = i;

		while (i < end && v[i] == v[start] && (i == start || below(1000)))
			i++;
		out[2 * n] = (i - start) * UNIT;
		out[2 * n + 1] = v[start] << (c == PLAN_ALLOCATION);
	}
	plan_reply(p, c, off, out, 2 * n);
	free(out);
}

static enum run_kind expected(unsigned i, bool use_dirty, bool use_zero, uint64_t all_from)
{
	if (use_dirty && !dirty[i] && (uint64_t)i * UNIT < all_from)
		return RUN_SKIP;
	return use_zero && zero[i] ? RUN_ZERO : RUN_READ;
}

static void round_trip(unsigned units, bool use_dirty, bool use_zero, uint64_t all_from, unsigned most)
{
	struct error err = ERROR_INIT;
	uint64_t off, len, at = 0;
	struct plan p;

	assert_int_equal(plan_init(&p, (uint64_t)units * UNIT, UNIT, use_dirty, use_zero, all_from), 0);
	while (!plan_done(&p)) {
		const struct run *r;

		if (plan_ask(&p, &off, &len)) {
			assert_false(plan_ask(&p, &off, &len));
			if (use_zero)
				answer(&p, PLAN_ALLOCATION, off, len, most);
			if (use_dirty)
				answer(&p, PLAN_DIRTY, off, len, most);
			assert_int_equal(plan_reply_end(&p, &err), 0);
		}
		/* Sometimes leave work undone, so that the window fills. */
		for (unsigned n = below(2) ? below(5000) : UINT32_MAX; n-- && (r = plan_next(&p));) {
			assert_int_equal(r->off, at);
			assert_int_equal(r->kind, expected(at / UNIT, use_dirty, use_zero, all_from));
			assert_int_equal(r->kind, expected((at + r->len - 1) / UNIT, use_dirty, use_zero,
							   all_from));
			len = min_u64(r->len, (1 + below(1000)) * UNIT);
			for (uint64_t i = at / UNIT; i < (at + len) / UNIT; i++)
				assert_int_equal(r->kind, expected(i, use_dirty, use_zero, all_from));
			at += len;
			plan_take(&p, len);
		}
	}
	assert_int_equal(at, (uint64_t)units * UNIT);
	plan_clear(&p);
}

/* merino:changes: bit 0 dirty, bit 1 zero; what is zero without being dirty is read. */
static void test_changes(void **state)
{
	static const enum run_kind want[8] = { RUN_SKIP, RUN_READ, RUN_READ, RUN_ZERO,
					       RUN_READ, RUN_READ, RUN_READ, RUN_ZERO };
	struct error err = ERROR_INIT;
	uint64_t off, len;

	for (uint32_t flags = 0; flags < 8; flags++) {
		uint32_t v[] = { 4096, flags };
		struct plan p;

		assert_int_equal(plan_init(&p, 4096, 1, true, false, UINT64_MAX), 0);
		p.changes = true;
		assert_true(plan_ask(&p, &off, &len));
		plan_reply(&p, PLAN_DIRTY, 0, v, 2);
		assert_int_equal(plan_reply_end(&p, &err), 0);
		assert_int_equal(plan_next(&p)->kind, want[flags]);
		plan_clear(&p);
	}
}

static void test_model(void **state)
{
	srandom(1);
	for (unsigned i = 0; i < ROUNDS; i++) {
		unsigned units = i < 20 ? 1 + below(100) : 1 + below(UNITS);
		unsigned longest = 1 + below(i % 3 ? 2000 : 3);

		fill(dirty, units, longest);
		fill(zero, units, 1 + below(longest));
		round_trip(units, i % 4 != 1, i % 4 != 2, below(2) ? UINT64_MAX : (uint64_t)below(units) * UNIT,
			   1 + below(i % 5 ? 200000 : 3));
	}
}

static void test_nothing_known(void **state)
{
	round_trip(UNITS, false, false, 0, 1);
	round_trip(0, true, true, 0, 1);
}

/* A failed reply leaves nothing behind that could be taken for a plan. */
static void test_lie(void **state)
{
	uint32_t good[] = { 4096, 0 }, bad[] = { 0, 0 };
	struct error err = ERROR_INIT;
	uint64_t off, len;
	struct plan p;

	assert_int_equal(plan_init(&p, 4096, 1, true, true, UINT64_MAX), 0);
	assert_true(plan_ask(&p, &off, &len));
	plan_reply(&p, PLAN_ALLOCATION, off, good, 2);
	plan_reply(&p, PLAN_DIRTY, off, bad, 2);
	assert_int_equal(plan_reply_end(&p, &err), -EPROTO);
	assert_null(plan_next(&p));
	assert_false(plan_done(&p));
	plan_clear(&p);
}

/* Extents that cut the server's blocks: the run goes on at a block's start. */
static void test_cut_blocks(void **state)
{
	uint32_t cut[] = { 5000, 0 }, shorter[] = { 100, 2 };
	struct error err = ERROR_INIT;
	uint64_t off, len;
	struct plan p;

	assert_int_equal(plan_init(&p, 65536, 4096, false, true, UINT64_MAX), 0);
	assert_true(plan_ask(&p, &off, &len));
	plan_reply(&p, PLAN_ALLOCATION, off, cut, 2);
	assert_int_equal(plan_reply_end(&p, &err), 0);
	assert_int_equal(p.at, 4096);
	assert_true(plan_ask(&p, &off, &len));
	assert_int_equal(off, 4096);
	plan_reply(&p, PLAN_ALLOCATION, off, shorter, 2);
	assert_int_equal(plan_reply_end(&p, &err), 0);
	assert_int_equal(p.at, 8192);
	assert_int_equal(plan_next(&p)->kind, RUN_READ);
	assert_int_equal(plan_next(&p)->len, 8192);
	plan_clear(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_model),
		cmocka_unit_test(test_changes),
		cmocka_unit_test(test_nothing_known),
		cmocka_unit_test(test_lie),
		cmocka_unit_test(test_cut_blocks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
