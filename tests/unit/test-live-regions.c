// SPDX-License-Identifier: BSD-3-Clause
/* How often guests wait for the marks of regions (bitmaps/live-regions.c): who writes all over
 * a disk waits a few times, however fast he writes, and who stays in one place once; and
 * regions that nobody writes to are un-marked.
 *
 * Nothing is written to the disk: the tap's question is asked for each write, and writes to
 * the file of marks are counted.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bitmaps/bitmap.h"
#include "bitmaps/bits.h"
#include "bitmaps/live-int.h"
#include "common/io-sim.h"
#include "common/json.h"
#include "format/node.h"

#define DISK (64ull << 30)
#define REGION (DISK / REGIONS_MAX)
#define SWEEP 5u			/* s */

struct run {
	struct io_sim *sim;
	struct node *node;
	uint64_t rng, waits;
	void (*fn)(struct run *r);
};

static uint64_t draw(struct run *r, uint64_t below)
{
	r->rng = r->rng * 6364136223846793005ull + 1442695040888963407ull;
	return (r->rng >> 33) % below;
}

static unsigned marked(const struct run *r)
{
	return (unsigned)bits_count(r->node->live->regions->want, REGIONS_MAX / 64);
}

static void mark(struct run *r, uint64_t off)
{
	uint64_t before = io_sim_writes(r->sim);

	live_mark(r->node, off, 4096);
	r->waits += io_sim_writes(r->sim) - before;
}

/* SECONDS of RATE writes each, and the sweeps between them: how many writes waited. */
static uint64_t scatter(struct run *r, unsigned seconds, unsigned rate)
{
	r->waits = 0;
	for (unsigned s = 0; s < seconds; s++) {
		for (unsigned i = 0; i < rate; i++)
			mark(r, draw(r, DISK / 4096) * 4096);
		if (s % SWEEP == SWEEP - 1)
			live_sweep(r->node);
	}
	return r->waits;
}

static void on_disk(void *arg)
{
	struct run *r = arg;
	struct graph graph;
	struct node_place where = { .graph = &graph, .io = io_sim_io(r->sim) };
	struct error err = ERROR_INIT;
	struct json_object *o = json_parse_text("{'driver':'raw','node-name':'d','file':"
						"{'driver':'file','filename':'image'}}", &err);
	struct io_file *f = io_open(where.io, "image", IO_RDWR | IO_CREATE, &err);
	struct bitmap *b;

	graph_init(&graph);
	assert_non_null(f);
	assert_int_equal(io_truncate(f, DISK), 0);
	io_file_unref(f);
	assert_int_equal(node_open(&where, o, &r->node, &err), 0);
	json_object_put(o);
	assert_int_equal(bitmap_add(r->node, "b", 0, true, false, &b, &err), 0);
	assert_true(live_has(b));
	r->fn(r);
	assert_int_equal(bitmap_remove(b, &err), 0);
	node_unref(r->node);
}

static void in_simulation(void (*fn)(struct run *r))
{
	struct run r = { .sim = io_sim_new(1), .rng = 7, .fn = fn };

	io_sim_start(r.sim, on_disk, &r);
	io_sim_run(r.sim);
	io_sim_free(r.sim);
}

static void forget_first_marks(struct run *r)
{
	for (unsigned i = 0; i < 20; i++)
		live_sweep(r->node);
	assert_int_equal(marked(r), 0);
}

static void all_over(struct run *r)
{
	static const unsigned rates[] = { 5000, 1000, 300, 100, 30 };

	/* In use when it got its bitmap: nobody waits at first. */
	assert_int_equal(marked(r), REGIONS_MAX);
	assert_int_equal(scatter(r, 30, 1000), 0);
	for (unsigned i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
		uint64_t begins, goes_on;

		forget_first_marks(r);
		begins = scatter(r, 60, rates[i]);
		goes_on = scatter(r, 600, rates[i]);
		print_message("%u/s: %llu, then %llu in ten minutes\n", rates[i],
			      (unsigned long long)begins, (unsigned long long)goes_on);
		assert_true(begins <= 80);
		assert_true(goes_on * 100 <= 600ull * rates[i]);	/* p99 has none of them */
	}
}

static void in_one_place(struct run *r)
{
	forget_first_marks(r);
	r->waits = 0;
	for (unsigned i = 0; i < 100; i++) {
		mark(r, 17 * REGION + i * 4096);
		live_sweep(r->node);
	}
	assert_int_equal(r->waits, 1);
	assert_int_equal(marked(r), 1);
	for (unsigned i = 0; i < live_keep; i++) {
		assert_int_equal(marked(r), 1);
		live_sweep(r->node);
	}
	live_sweep(r->node);
	assert_int_equal(marked(r), 0);
}

static void test_all_over(void **state)
{
	in_simulation(all_over);
}

static void test_in_one_place(void **state)
{
	in_simulation(in_one_place);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_over),
		cmocka_unit_test(test_in_one_place),
	};

	bitmaps_init();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
