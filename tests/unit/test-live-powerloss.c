// SPDX-License-Identifier: BSD-3-Clause
/* Power losses and kills under live bitmaps (bitmaps/live.h): whatever of a write is on the disk
 * afterwards is in every bitmap that has to know it; a kill alone leaves exactly what was
 * written.
 *
 * Two writers, a sweeper that un-marks regions, and a client that changes bitmaps run
 * at once on the simulated machine, which dies at every sync point and at many writes; several
 * states that storage may be in then are opened.  Every block that was written holds the
 * number of its write, so the disk itself says what has to be known:
 *
 *	all	never cleared: everything
 *	epoch	rotated into "older" (merged, cleared: one change): the two know everything
 *	clear	everything since the last clear
 *	off	not enabled after a certain write: everything before
 *
 * That the test can fail is tested too: wrong orders are found (live_test_break_order).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bitmaps/bitmap.h"
#include "bitmaps/live.h"
#include "common/io-sim.h"
#include "common/json.h"
#include "common/log.h"
#include "format/node.h"
#include "format/qcow2.h"

extern size_t qcow2_crashlog_bytes;	/* format/qcow2-int.h, whose names are others */

#define BLOCK 4096u
#define BLOCKS 1024u
#define SIZE ((uint64_t)BLOCKS * BLOCK)
#define GRANULARITY 4096u

/* Instead of the library's, which would tell of every crash. */
void log_line(enum log_level level, const char *fmt, ...)
{
}

/* What the client did, and whether it was told so. */
struct deed {
	uint32_t before;		/* writes that were over when it began */
	bool begun, told;
};

struct run {
	struct io_sim *sim;
	struct graph graph;
	struct node *node;
	struct node_use use;
	uint64_t rng;
	uint32_t n_writes, steps;
	unsigned inside, actors;
	struct io_file *waiting;
	bool shut;
	uint8_t sent[BLOCKS];		/* a write, zero or discard of it was issued */
	struct deed cleared, off, added, removed, renamed;
	char why[200];
};

static uint64_t draw(struct run *r, uint64_t below)
{
	r->rng = r->rng * 6364136223846793005ull + 1442695040888963407ull;
	return (r->rng >> 33) % below;
}

static int open_disk(struct run *r, bool read_only)
{
	struct node_place where = { .graph = &r->graph, .io = io_sim_io(r->sim) };
	struct error err = ERROR_INIT;
	struct json_object *o;
	int rc;

	graph_init(&r->graph);
	o = json_parse_text(read_only ? "{'driver':'qcow2','node-name':'d','read-only':true,'file':{'driver':'file','filename':'image'}}"
				      : "{'driver':'qcow2','node-name':'d','discard':'unmap','file':{'driver':'file','filename':'image'}}",
			    &err);
	rc = node_open(&where, o, &r->node, &err);
	json_object_put(o);
	if (rc)
		r->node = NULL;
	if (!rc)
		rc = node_use_add(&r->use, r->node, PERM_CONSISTENT_READ | (read_only ? 0 : PERM_WRITE), PERM_ALL,
				  &err, "test");
	return rc;
}

static void close_disk(struct run *r)
{
	node_use_drop(&r->use);
	r->use = (struct node_use){ 0 };
	node_unref(r->node);
	r->node = NULL;
}

static bool dead(const struct run *r)
{
	return io_sim_dead(r->sim);
}

/* -- who works ----------------------------------------------------------------------- */

/* Time passes: what only sleeps would wait for all others to end. */
static void wait_a_little(struct run *r)
{
	uint8_t one;

	io_pread(r->waiting, &one, 1, 0);
}

static void enter(struct run *r)
{
	while (r->shut && !dead(r))
		wait_a_little(r);
	r->inside++;
}

static void write_some(struct run *r)
{
	uint32_t n = 1 + (uint32_t)draw(r, 3), at = (uint32_t)draw(r, BLOCKS - n), id;
	uint8_t *mine;
	uint64_t kind = draw(r, 10);

	enter(r);
	memset(r->sent + at, 1, n);
	if (kind == 0) {
		node_zero(r->node, (uint64_t)at * BLOCK, (uint64_t)n * BLOCK, 0);
	} else if (kind == 1) {
		node_discard(r->node, (uint64_t)at * BLOCK, (uint64_t)n * BLOCK);
	} else if (kind == 2) {
		node_flush(r->node);
	} else {
		id = ++r->n_writes;
		mine = malloc(n * BLOCK);
		for (uint32_t i = 0; i < n * BLOCK / 4; i++)
			memcpy(mine + 4 * i, &id, 4);
		node_write(r->node, mine, (uint64_t)at * BLOCK, (uint64_t)n * BLOCK, draw(r, 8) ? 0 : NODE_FUA);
		free(mine);
	}
	r->inside--;
}

static void writer(void *arg)
{
	struct run *r = arg;

	for (uint32_t i = 0; i < r->steps && !dead(r); i++)
		write_some(r);
	r->actors--;
}

static void sweeper(void *arg)
{
	struct run *r = arg;

	while (r->actors > 1 && !dead(r)) {
		for (unsigned i = 0; i < 8; i++)
			wait_a_little(r);
		if (!dead(r))
			live_sweep(r->node);
	}
	r->actors--;
}

static void begin(struct run *r, struct deed *d)
{
	r->shut = true;
	while (r->inside && !dead(r))
		wait_a_little(r);
	d->before = r->n_writes;
	d->begun = true;
	bitmaps_hold(r->node);
}

static void end(struct run *r, struct deed *d)
{
	struct error err = ERROR_INIT;

	bitmaps_release(r->node);
	r->shut = false;
	if (!bitmaps_commit(r->node, &err) && !dead(r))
		d->told = true;
}

static void rotate(struct run *r)
{
	struct error err = ERROR_INIT;
	struct bitmap *epoch = bitmap_find(r->node, "epoch", &err), *older = bitmap_find(r->node, "older", &err);
	struct deed none;

	begin(r, &none);
	if (!dead(r) && epoch && older) {
		bitmap_merge(older, &epoch, 1, &err);
		bitmap_clear(epoch, &err);
	}
	end(r, &none);
}

static void clear(struct run *r)
{
	struct error err = ERROR_INIT;

	r->cleared.told = false;
	begin(r, &r->cleared);
	if (!dead(r))
		bitmap_clear(bitmap_find(r->node, "clear", &err), &err);
	end(r, &r->cleared);
}

static void client(void *arg)
{
	struct run *r = arg;
	struct error err = ERROR_INIT;

	for (unsigned i = 0; i < 6 && !dead(r); i++) {
		for (unsigned k = 0; k < 60; k++)
			wait_a_little(r);
		if (i == 1) {
			begin(r, &r->added);
			if (!dead(r))
				bitmap_add(r->node, "added", GRANULARITY, true, false, NULL, &err);
			end(r, &r->added);
		} else if (i == 2) {
			begin(r, &r->off);
			if (!dead(r))
				bitmap_set_enabled(bitmap_find(r->node, "off", &err), false, &err);
			end(r, &r->off);
		} else if (i == 3) {
			begin(r, &r->renamed);
			if (!dead(r))
				bitmap_rename(bitmap_find(r->node, "before", &err), "after", &err);
			end(r, &r->renamed);
		} else if (i == 4) {
			begin(r, &r->removed);
			if (!dead(r))
				bitmap_remove(bitmap_find(r->node, "gone", &err), &err);
			end(r, &r->removed);
		}
		if (!dead(r))
			rotate(r);
		if (!dead(r))
			clear(r);
	}
	r->actors--;
}

/* May die anywhere. */
static void work(struct run *r)
{
	if (open_disk(r, false))
		return;
	r->actors = 4;
	r->waiting = io_open(io_sim_io(r->sim), "image", 0, NULL);
	if (!r->waiting)
		return;
	io_sim_start(r->sim, writer, r);
	io_sim_start(r->sim, writer, r);
	io_sim_start(r->sim, client, r);
	io_sim_start(r->sim, sweeper, r);
	io_sim_run(r->sim);
	assert_int_equal(r->actors, 0);
	io_file_unref(r->waiting);
}

static void make(struct run *r)
{
	static const char *const names[] = { "all", "epoch", "older", "clear", "off", "before", "gone" };
	struct qcow2_create o = { .size = SIZE, .cluster_size = 4096 };
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io_sim_io(r->sim), "image", IO_RDWR | IO_CREATE, &err);

	assert_int_equal(qcow2_create(f, &o, &err), 0);
	io_file_unref(f);
	assert_int_equal(open_disk(r, false), 0);
	for (unsigned i = 0; i < 7; i++)
		assert_int_equal(bitmap_add(r->node, names[i], GRANULARITY, true, i == 2, NULL, &err), 0);
	close_disk(r);
}

/* -- what must be so ----------------------------------------------------------------- */

static void __attribute__((format(printf, 2, 3))) wrong(struct run *r, const char *fmt, ...)
{
	va_list ap;

	if (r->why[0])
		return;
	va_start(ap, fmt);
	vsnprintf(r->why, sizeof(r->why), fmt, ap);
	va_end(ap);
}

static struct bitmap *must_have(struct run *r, const char *name)
{
	struct bitmap *b = bitmap_find(r->node, name, NULL);

	if (!b)
		wrong(r, "'%s' is gone", name);
	else if (b->inconsistent)
		wrong(r, "'%s' is inconsistent", name);
	return b && !b->inconsistent ? b : NULL;
}

static void check_block(struct run *r, uint32_t block, uint32_t id, struct bitmap *const *b)
{
	uint64_t at = (uint64_t)block * BLOCK;

	if (!bitmap_get(b[0], at))
		wrong(r, "'all' lacks write %u at block %u", id, block);
	if (!bitmap_get(b[1], at) && !bitmap_get(b[2], at))
		wrong(r, "'epoch' and 'older' lack write %u at block %u", id, block);
	if (id > r->cleared.before && !bitmap_get(b[3], at))
		wrong(r, "'clear' lacks write %u at block %u, cleared at %u", id, block, r->cleared.before);
	if ((!r->off.begun || id <= r->off.before) && !bitmap_get(b[4], at))
		wrong(r, "'off' lacks write %u at block %u", id, block);
	if (b[5] && r->added.begun && id > r->added.before && !bitmap_get(b[5], at))
		wrong(r, "'added' lacks write %u at block %u", id, block);
	if (!bitmap_get(b[6], at))
		wrong(r, "the renamed one lacks write %u at block %u", id, block);
}

static void check_names(struct run *r)
{
	struct bitmap *before = bitmap_find(r->node, "before", NULL), *after = bitmap_find(r->node, "after", NULL);

	if (!before == !after)
		wrong(r, "renamed: %s", before ? "both are there" : "none is there");
	if (r->renamed.told && before)
		wrong(r, "the old name is there again");
	if (!r->renamed.begun && after)
		wrong(r, "the new name is there too early");
	if (r->removed.told && bitmap_find(r->node, "gone", NULL))
		wrong(r, "what was removed is there again");
	if (!r->removed.begun)
		must_have(r, "gone");
	if (r->added.told)
		must_have(r, "added");
	if (r->off.told && bitmap_find(r->node, "off", NULL)->enabled)
		wrong(r, "'off' is on");
}

static void check(struct run *r, bool exact)
{
	static uint8_t disk[SIZE];
	static const char *const names[] = { "all", "epoch", "older", "clear", "off" };
	struct bitmap *b[7];

	for (unsigned i = 0; i < 5; i++)
		b[i] = must_have(r, names[i]);
	b[5] = bitmap_find(r->node, "added", NULL);
	b[6] = bitmap_find(r->node, "after", NULL) ?: bitmap_find(r->node, "before", NULL);
	check_names(r);
	if (r->why[0])
		return;
	if (node_read(r->node, disk, 0, SIZE))
		wrong(r, "the disk cannot be read");
	for (uint32_t i = 0; i < BLOCKS && !r->why[0]; i++) {
		uint32_t id;

		memcpy(&id, disk + (size_t)i * BLOCK, 4);
		if (id)
			check_block(r, i, id, b);
		if (exact && bitmap_get(b[0], (uint64_t)i * BLOCK) != r->sent[i] && !r->sent[i])
			wrong(r, "'all' names block %u, which nobody wrote", i);
	}
}

/* The state that a crash left: as it is read, recovered, and after what may follow. */
static void verify(struct run *r, const struct run *dead_run, uint64_t style, bool killed)
{
	static const char *const step[] = { "read only", "recovered", "after another crash", "after a clean close" };

	*r = *dead_run;
	r->node = NULL;
	r->why[0] = 0;
	r->sim = io_sim_clone(dead_run->sim);
	if (killed)
		io_sim_restart(r->sim);
	else
		io_sim_power_loss(r->sim, style);
	for (unsigned i = 0; i < 4 && !r->why[0]; i++) {
		if (i == 2) {
			io_sim_crash_now(r->sim);
			close_disk(r);
			io_sim_power_loss(r->sim, style + 3);
		}
		if (open_disk(r, i == 0))
			wrong(r, "it cannot be opened");
		else
			check(r, killed && i < 2);
		if (r->why[0])
			snprintf(r->why + strlen(r->why), sizeof(r->why) - strlen(r->why), " (%s)", step[i]);
		if (i != 1)
			close_disk(r);
	}
	if (r->node)
		close_disk(r);
	io_sim_free(r->sim);
}

/* -- the hunt ------------------------------------------------------------------------ */

struct hunt {
	uint64_t seed, stride, states;
	bool quiet, stop, kill;
	unsigned verified, bad;
};

static void hunt_at(struct hunt *h, const struct io_sim *template, enum io_sim_crash when, uint64_t n)
{
	struct run r = { .sim = io_sim_clone(template), .rng = h->seed, .steps = 40 }, v;

	io_sim_power_loss(r.sim, 0);
	if (h->kill)
		io_sim_kill_at(r.sim, when, n);
	else
		io_sim_crash_at(r.sim, when, n);
	work(&r);
	if (!dead(&r))
		io_sim_crash_now(r.sim);
	if (r.node)
		close_disk(&r);
	for (uint64_t i = 0; i < h->states && !(h->stop && h->bad); i++) {
		verify(&v, &r, n * h->states + i, h->kill);
		h->verified++;
		if (!v.why[0])
			continue;
		h->bad++;
		if (!h->quiet)
			print_error("seed %llu, crash %d at %llu, state %llu: %s\n", (unsigned long long)h->seed, when,
				    (unsigned long long)n, (unsigned long long)(n * h->states + i), v.why);
	}
	io_sim_free(r.sim);
}

static void hunt(struct hunt *h)
{
	struct run first = { .sim = io_sim_new(h->seed), .rng = h->seed, .steps = 40 }, whole;
	uint64_t syncs, writes;

	make(&first);
	whole = first;
	whole.sim = io_sim_clone(first.sim);
	io_sim_power_loss(whole.sim, 0);
	work(&whole);
	syncs = io_sim_sync_points(whole.sim);
	writes = io_sim_writes(whole.sim);
	close_disk(&whole);
	io_sim_free(whole.sim);
	for (uint64_t n = 1; n <= syncs && !(h->stop && h->bad); n += h->stride) {
		hunt_at(h, first.sim, IO_SIM_CRASH_BEFORE_SYNC, n);
		hunt_at(h, first.sim, IO_SIM_CRASH_AFTER_SYNC, n);
	}
	for (uint64_t n = 1; n <= writes && !(h->stop && h->bad); n += 3 * h->stride)
		hunt_at(h, first.sim, IO_SIM_CRASH_AT_WRITE, n);
	io_sim_free(first.sim);
}

static uint64_t seeds(void)
{
	const char *s = getenv("POWERLOSS_SEEDS");

	return s ? strtoull(s, NULL, 10) : 1;
}

static void test_power_loss(void **state)
{
	struct hunt h = { .stride = 3, .states = 4 };

	for (h.seed = 1; h.seed <= seeds(); h.seed++)
		hunt(&h);
	print_message("%u states after power losses\n", h.verified);
	assert_int_equal(h.bad, 0);
}

static void test_kill(void **state)
{
	struct hunt h = { .stride = 3, .states = 1, .kill = true };

	for (h.seed = 1; h.seed <= seeds(); h.seed++)
		hunt(&h);
	print_message("%u states after kills\n", h.verified);
	assert_int_equal(h.bad, 0);
}

static void test_wrong_orders_are_found(void **state)
{
	for (unsigned order = 1; order <= 4; order++) {
		struct hunt h = { .stride = 1, .states = 8, .quiet = true, .stop = true };

		live_test_break_order = order;
		for (h.seed = 1; h.seed <= 20 && !h.bad; h.seed++)
			hunt(&h);
		live_test_break_order = 0;
		if (!h.bad)
			fail_msg("order %u was not found in %u states", order, h.verified);
		print_message("order %u: found after %u states\n", order, h.verified);
	}
}

static int setup(void **state)
{
	live_table_bytes = 4096;
	live_keep = 2;
	qcow2_crashlog_bytes = 4096 + 512 * 32;
	bitmaps_init();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_power_loss), cmocka_unit_test(test_kill),
		cmocka_unit_test(test_wrong_orders_are_found),
	};

	cmocka_set_test_filter(getenv("ONLY"));	/* one of them */
	return cmocka_run_group_tests(tests, setup, NULL);
}
