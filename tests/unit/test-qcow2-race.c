// SPDX-License-Identifier: BSD-3-Clause
/* test-qcow2-race: requests that meet each other, in the simulation.
 *
 * Every I/O of a coroutine is a point where another may go on, in an order drawn
 * from a seed.  Each test runs with many seeds; the image is judged at the end by
 * qemu-img check.
 */
#include "qcow2-rig.h"

#include <errno.h>

#include "common/io-sim.h"
#include "common/log.h"

enum { CS = 4096, SIZE = 64 * CS, SEEDS = 60 };

enum what { READ, WRITE, ZERO, UNMAP, DISCARD, FLUSH, FUA };

struct op {
	enum what what;
	uint64_t off, len;
	uint8_t byte;			/* written, or OR of what was read */
	int rc;
	bool done;
	uint8_t *buf;
};

static struct io_sim *sim;
static struct node *disk;

static void run_op(void *arg)
{
	struct op *o = arg;

	switch (o->what) {
	case READ:
		o->rc = node_read(disk, o->buf, o->off, o->len);
		break;
	case WRITE:
	case FUA:
		o->rc = node_write(disk, o->buf, o->off, o->len, o->what == FUA ? NODE_FUA : 0);
		break;
	case ZERO:
	case UNMAP:
		o->rc = node_zero(disk, o->off, o->len, o->what == UNMAP ? NODE_MAY_UNMAP : 0);
		break;
	case DISCARD:
		o->rc = node_discard(disk, o->off, o->len);
		break;
	case FLUSH:
		o->rc = node_flush(disk);
	}
	o->done = true;
}

static void start(struct op *o)
{
	o->done = false;
	o->buf = o->len ? malloc(o->len) : NULL;
	if (o->buf)
		memset(o->buf, o->byte, o->len);
	io_sim_start(sim, run_op, o);
}

/* Runs all to their end, at once. */
static void together(struct op *o, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		start(&o[i]);
	io_sim_run(sim);
	for (unsigned i = 0; i < n; i++) {
		assert_true(o[i].done);
		assert_int_equal(o[i].rc, 0);
		if (o[i].what != READ)
			free(o[i].buf);
	}
}

static void one(enum what what, uint64_t off, uint64_t len, uint8_t byte)
{
	struct op o = { .what = what, .off = off, .len = len, .byte = byte };

	together(&o, 1);
}

/* Whether all of [off, off+len) is BYTE. */
static bool all_is(uint64_t off, uint64_t len, uint8_t byte)
{
	struct op o = { .what = READ, .off = off, .len = len };
	bool same = true;

	together(&o, 1);
	for (uint64_t i = 0; i < len; i++)
		same &= o.buf[i] == byte;
	free(o.buf);
	return same;
}

static void close_disk(void *arg)
{
	node_unref(disk);
	disk = NULL;
}

static void open_disk(void *arg)
{
	disk = open_in(io_sim_io(sim), "i.qcow2", arg);
}

/* A disk of 64 clusters; BACKING: over a base full of 0xbb. */
static void machine(uint64_t seed, bool backing, const char *options)
{
	struct error err = ERROR_INIT;
	uint8_t *base = malloc(SIZE);
	struct io_file *f;

	sim = io_sim_new(seed);
	memset(base, 0xbb, SIZE);
	f = io_open(io_sim_io(sim), path_of("base.raw"), IO_RDWR | IO_CREATE, &err);
	assert_int_equal(io_pwrite(f, base, SIZE, 0, 0), 0);
	io_file_unref(f);
	free(base);
	create_in(io_sim_io(sim), "i.qcow2", (struct qcow2_create){ .size = SIZE, .cluster_size = CS,
			.backing_file = backing ? "base.raw" : NULL, .backing_format = "raw" });
	io_sim_start(sim, open_disk, (void *)options);
	io_sim_run(sim);
	assert_non_null(disk);
}

static void machine_end(void)
{
	io_sim_start(sim, close_disk, NULL);
	io_sim_run(sim);
	assert_null(disk);
	assert_int_equal(io_sim_dump(sim, path_of("i.qcow2"), path_of("i.qcow2")), 0);
	assert_int_equal(io_sim_dump(sim, path_of("base.raw"), path_of("base.raw")), 0);
	sh_ok("qemu-img check -q i.qcow2");
	io_sim_free(sim);
}

static uint64_t end_of_file(void)
{
	return qcow2_of(disk)->host_end;
}

/* Many small first writes into one cluster take one cluster. */
static void test_same_cluster(void **state)
{
	for (unsigned seed = 1; seed < SEEDS; seed++) {
		struct op o[8];
		uint64_t before;

		machine(seed, seed & 1, "");
		one(WRITE, 0, 512, 1);	/* the L2 table, too */
		before = end_of_file();
		for (unsigned i = 0; i < 8; i++)
			o[i] = (struct op){ .what = WRITE, .off = 5 * CS + 512 * i, .len = 512, .byte = 10 + i };
		together(o, 8);
		assert_int_equal(end_of_file(), before + CS);
		for (unsigned i = 0; i < 8; i++)
			assert_true(all_is(5 * CS + 512 * i, 512, 10 + i));
		machine_end();
	}
}

/* HAZARDS 36, 37: a discard, or zeroes, meet a first write with copy on write.
 * What is left is the one after the other, and only once. */
static void test_discard_meets_first_write(void **state)
{
	for (unsigned seed = 1; seed < SEEDS; seed++) {
		enum what how = (enum what[]){ DISCARD, ZERO, UNMAP }[seed % 3];
		struct op o[3] = {
			{ .what = WRITE, .off = CS + 1024, .len = 512, .byte = 1 },
			{ .what = how, .off = CS, .len = CS },
			{ .what = WRITE, .off = 9 * CS, .len = CS, .byte = 9 },
		};
		uint8_t middle;

		machine(seed, true, "");
		if (seed & 4) {
			struct op swap = o[0];

			o[0] = o[1];
			o[1] = swap;
		}
		if (seed & 8)		/* a cluster is there already */
			one(WRITE, CS, 512, 2);
		together(o, 3);
		one(FLUSH, 0, 0, 0);
		one(WRITE, 20 * CS, 4 * CS, 20);	/* would meet a cluster with two owners */
		assert_true(all_is(CS, 1024, 0));
		assert_true(all_is(CS + 1536, CS - 1536, 0));
		middle = all_is(CS + 1024, 512, 0) ? 0 : 1;
		assert_true(all_is(CS + 1024, 512, middle));
		assert_true(all_is(9 * CS, CS, 9));
		machine_end();
	}
}

/* Discards, makes that durable, and writes elsewhere: into the clusters just freed. */
static void reuse(void *arg)
{
	bool *done = arg;
	uint8_t *buf = malloc(4 * CS);

	memset(buf, 7, 4 * CS);
	assert_int_equal(node_discard(disk, 0, 4 * CS), 0);
	assert_int_equal(node_flush(disk), 0);
	assert_int_equal(node_write(disk, buf, 16 * CS, 4 * CS, 0), 0);
	free(buf);
	*done = true;
}

/* A read in flight never sees the next owner of its cluster. */
static void test_read_meets_reuse(void **state)
{
	for (unsigned seed = 1; seed < 4 * SEEDS; seed++) {
		struct op o = { .what = READ, .off = CS, .len = 2 * CS };
		bool done = false;

		machine(seed, false, "");
		one(WRITE, 0, 4 * CS, 5);
		one(FLUSH, 0, 0, 0);
		start(&o);
		io_sim_start(sim, reuse, &done);
		io_sim_run(sim);
		assert_true(done && o.done && !o.rc);
		for (uint64_t i = 0; i < o.len; i++)
			if (o.buf[i] != 5 && o.buf[i] != 0)
				fail_msg("seed %u: read %u", seed, o.buf[i]);
		free(o.buf);
		assert_true(all_is(0, 4 * CS, 0));
		assert_true(all_is(16 * CS, 4 * CS, 7));
		machine_end();
	}
}

/* Flushes that arrive together share: their number does not matter. */
static void test_flushes_share(void **state)
{
	struct op o[40];
	uint64_t syncs;

	machine(3, true, "");
	for (unsigned i = 0; i < 40; i++)
		o[i] = i < 20 ? (struct op){ .what = WRITE, .off = i * CS, .len = CS, .byte = 1 }
			      : (struct op){ .what = FLUSH };
	together(o, 20);
	syncs = io_sim_sync_points(sim);
	together(o + 20, 20);
	assert_in_range(io_sim_sync_points(sim) - syncs, 2, 3);
	syncs = io_sim_sync_points(sim);
	one(FLUSH, 0, 0, 0);		/* nothing changed: one fsync */
	assert_int_equal(io_sim_sync_points(sim) - syncs, 1);
	syncs = io_sim_sync_points(sim);
	one(FUA, 0, 512, 3);		/* in place, the tables are clean */
	assert_int_equal(io_sim_sync_points(sim) - syncs, 1);
	machine_end();
}

/* More requests than the cache has slices, each of another slice. */
static void test_small_cache(void **state)
{
	for (unsigned seed = 1; seed < 20; seed++) {
		static struct op o[128];

		sim = io_sim_new(seed);
		create_in(io_sim_io(sim), "i.qcow2", (struct qcow2_create){ .size = 64 << 20,
				.cluster_size = 512 });
		create_in(io_sim_io(sim), "base.raw", (struct qcow2_create){ .size = 512 });
		io_sim_start(sim, open_disk, "'l2-cache-size':512,'refcount-cache-size':512");
		io_sim_run(sim);
		for (unsigned round = 0; round < 3; round++) {
			for (unsigned i = 0; i < 128; i++)
				o[i] = (struct op){ .what = i % 8 == 7 ? FUA : i % 5 == 4 ? UNMAP : WRITE,
						    .off = (i * 64 + round) * 512, .len = 1024, .byte = i + 1 };
			together(o, 128);
			for (unsigned i = 0; i < 128; i++)
				assert_true(all_is(o[i].off, 1024, o[i].what == UNMAP ? 0 : i + 1));
		}
		machine_end();
	}
}

/* A full disk is no end: what failed is as before, what follows works. */
static void test_no_space(void **state)
{
	for (unsigned n = 1; n < 12; n++) {
		struct op o = { 0 };
		unsigned i;

		machine(n, true, "");
		one(WRITE, 0, CS, 1);
		io_sim_fail(sim, IO_SIM_WRITE, n, ENOSPC);
		for (i = 0; i < 40 && !o.rc; i++) {
			o = i % 3 < 2 ? (struct op){ .what = WRITE, .off = (i + 1) * CS + 512, .len = CS, .byte = i + 1 }
				      : (struct op){ .what = FLUSH };
			start(&o);
			io_sim_run(sim);
			free(o.buf);
			assert_true(o.done && (o.rc == 0 || o.rc == -ENOSPC));
			if (!o.rc && o.len)
				assert_true(all_is(o.off, CS, i + 1));
		}
		assert_int_equal(o.rc, -ENOSPC);
		one(WRITE, 50 * CS, CS, 3);
		one(FLUSH, 0, 0, 0);
		machine_end();
	}
}

/* A failed fsync is final: every later flush fails, and so do new mappings. */
static void test_failed_fsync(void **state)
{
	struct op o = { .what = FLUSH };

	machine(1, false, "");
	one(WRITE, 0, CS, 1);
	io_sim_fail(sim, IO_SIM_FSYNC, 1, EIO);
	for (unsigned i = 0; i < 3; i++) {
		start(&o);
		io_sim_run(sim);
		assert_true(o.done && o.rc == -EIO);
	}
	o = (struct op){ .what = WRITE, .off = 5 * CS, .len = CS };
	start(&o);
	io_sim_run(sim);
	free(o.buf);
	assert_int_equal(o.rc, -EIO);
	assert_true(all_is(0, CS, 1));
	io_sim_start(sim, close_disk, NULL);
	io_sim_run(sim);
	io_sim_free(sim);
}

/* Everything at once, on a few clusters, each byte with one writer. */
static void test_crowd(void **state)
{
	enum { WORKERS = 24, PART = 512, OPS = 30 };

	for (unsigned seed = 1; seed < 12; seed++) {
		static struct op o[WORKERS];
		uint8_t want[WORKERS] = { 0 };
		uint64_t rnd = seed * 77;

		machine(seed, seed & 1, "'l2-cache-entry-size':512,'l2-cache-size':512");
		for (unsigned i = 0; i < WORKERS; i++)
			want[i] = seed & 1 ? 0xbb : 0;
		for (unsigned round = 0; round < OPS; round++) {
			for (unsigned i = 0; i < WORKERS; i++) {
				enum what w = (enum what[]){ WRITE, WRITE, WRITE, FUA, ZERO, UNMAP, FLUSH,
							     READ }[next_random(&rnd) % 8];

				o[i] = (struct op){ .what = w, .off = i * PART, .len = w == FLUSH ? 0 : PART,
						    .byte = next_random(&rnd) };
			}
			together(o, WORKERS);
			for (unsigned i = 0; i < WORKERS; i++) {
				if (o[i].what == READ) {
					assert_int_equal(o[i].buf[0], want[i]);
					assert_int_equal(o[i].buf[PART - 1], want[i]);
					free(o[i].buf);
				}
				want[i] = o[i].what == WRITE || o[i].what == FUA ? o[i].byte :
					  o[i].what == ZERO || o[i].what == UNMAP ? 0 : want[i];
			}
			if (round % 7 == 6) {	/* all clusters change hands */
				one(DISCARD, 0, 3 * CS, 0);
				memset(want, 0, sizeof(want));
			}
		}
		for (unsigned i = 0; i < WORKERS; i++)
			assert_true(all_is(i * PART, PART, want[i]));
		machine_end();
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same_cluster), cmocka_unit_test(test_discard_meets_first_write),
		cmocka_unit_test(test_read_meets_reuse), cmocka_unit_test(test_flushes_share),
		cmocka_unit_test(test_small_cache), cmocka_unit_test(test_no_space),
		cmocka_unit_test(test_failed_fsync), cmocka_unit_test(test_crowd),
	};

	return cmocka_run_group_tests(tests, dir_setup, dir_teardown);
}
