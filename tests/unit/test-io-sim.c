// SPDX-License-Identifier: BSD-3-Clause
/* The power-loss table: it really loses, tears and reorders what was not made
 * durable, and never touches what was.  Properties over many seeds, so each
 * test counts what it saw: a simulation that is too kind fails too.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/co.h"
#include "common/extents.h"
#include "common/io-sim.h"

enum { SEEDS = 64, SECTOR = 512 };

static struct io_file *must_open(struct io_sim *sim, const char *path, unsigned flags)
{
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io_sim_io(sim), path, flags, &err);

	if (!f)
		fail_msg("%s", err.text);
	return f;
}

static struct io_file *create(struct io_sim *sim, const char *path)
{
	return must_open(sim, path, IO_RDWR | IO_CREATE);
}

static void write_fill(struct io_file *f, int byte, size_t len, uint64_t off, unsigned flags)
{
	char *buf = malloc(len);

	memset(buf, byte, len);
	assert_int_equal(io_pwrite(f, buf, len, off, flags), 0);
	free(buf);
}

/* The byte that fills [OFF, OFF+LEN) of PATH; -1: mixed, -2: (partly) behind its end. */
static int filled_with(struct io_sim *sim, const char *path, size_t len, uint64_t off)
{
	struct io_file *f = must_open(sim, path, 0);
	unsigned char *buf = malloc(len);
	int byte = -2;

	if (io_pread(f, buf, len, off) == (ssize_t)len) {
		byte = buf[0];
		for (size_t i = 1; i < len; i++)
			if (buf[i] != byte)
				byte = -1;
	}
	free(buf);
	io_file_unref(f);
	return byte;
}

/* A state that SIM may be in after a power loss. */
static struct io_sim *lose(const struct io_sim *sim, uint64_t seed)
{
	struct io_sim *c = io_sim_clone(sim);

	io_sim_power_loss(c, seed);
	return c;
}

static void reads_what_was_written(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "a");
	char buf[8192], expect[8192] = { 0 };

	write_fill(f, 'x', 5000, 1000, 0);
	memset(expect + 1000, 'x', 5000);
	assert_int_equal(io_size(f), 6000);
	assert_int_equal(io_pread(f, buf, 8192, 0), 6000);
	assert_memory_equal(buf, expect, 6000);
	assert_int_equal(io_pread(f, buf, 10, 6000), 0);

	assert_int_equal(io_zero(f, 2000, 3000, 0), 0);
	memset(expect + 2000, 0, 3000);
	assert_int_equal(io_discard(f, 5990, 100000), 0);
	memset(expect + 5990, 0, 10);
	assert_int_equal(io_size(f), 6000);
	assert_int_equal(io_zero(f, 6500, 500, IO_ZERO_UNMAP), 0);
	assert_int_equal(io_pread(f, buf, 8192, 0), 7000);
	assert_memory_equal(buf, expect, 7000);

	assert_int_equal(io_truncate(f, 1500), 0);
	assert_int_equal(io_truncate(f, 4000), 0);
	memset(expect + 1500, 0, 6692);
	assert_int_equal(io_pread(f, buf, 8192, 0), 4000);
	assert_memory_equal(buf, expect, 4000);
	io_file_unref(f);
	io_sim_free(sim);
}

static void sparse_files_and_map(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "big");
	struct extent run[8];
	struct extents x = { .v = run, .max = 8 };
	const uint64_t far = 5ull << 40;

	write_fill(f, 'a', 4096, 8192, 0);
	write_fill(f, 'b', 1, far, 0);
	assert_int_equal(io_zero(f, 1 << 20, 3ull << 40, IO_ZERO_UNMAP), 0);
	assert_int_equal(io_map(f, 0, far + 8192, &x), 0);
	assert_int_equal(x.n, 5);
	assert_int_equal(run[0].flags, EXTENT_ZERO | EXTENT_HOLE);
	assert_int_equal(run[0].len, 8192);
	assert_int_equal(run[1].flags, 0);
	assert_int_equal(run[1].len, 4096);
	assert_int_equal(run[2].len, far - 12288);
	assert_int_equal(run[3].len, 1);
	assert_int_equal(run[4].flags, EXTENT_ZERO | EXTENT_HOLE);
	assert_int_equal(x.total, far + 8192);

	x.n = x.total = 0;
	x.max = 1;
	assert_int_equal(io_map(f, 4096, 65536, &x), 0);
	assert_int_equal(x.total, 4096);
	io_file_unref(f);
	io_sim_free(sim);
}

static void errors_of_opening(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct error err = ERROR_INIT;
	struct io_file *f = create(sim, "a");
	char unaligned[1024];

	assert_null(io_open(io_sim_io(sim), "b", 0, &err));
	assert_int_equal(err.code, -ENOENT);
	assert_string_equal(err.text, "Could not open 'b': No such file or directory");
	assert_null(io_open(io_sim_io(sim), "a", IO_RDWR | IO_CREATE, &err));
	assert_int_equal(err.code, -EEXIST);
	write_fill(f, 'x', 100, 0, 0);
	io_file_unref(f);
	f = must_open(sim, "a", IO_RDWR | IO_CREATE | IO_TRUNC);
	assert_int_equal(io_size(f), 0);
	io_file_unref(f);
	f = must_open(sim, "a", 0);
	assert_int_equal(io_pwrite(f, "x", 1, 0, 0), -EBADF);
	io_file_unref(f);
	f = must_open(sim, "a", IO_RDWR | IO_DIRECT);
	assert_int_equal(io_pwrite(f, unaligned, 100, 0, 0), -EINVAL);
	io_file_unref(f);
	io_sim_free(sim);
}

static void unsynced_writes_are_lost_torn_and_reordered(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "a");
	int all = 0, none = 0, torn = 0, reordered = 0;

	write_fill(f, 'o', 16384, 0, 0);
	assert_int_equal(io_fsync(f), 0);
	assert_int_equal(io_sim_unsynced(sim), 0);
	write_fill(f, '1', 4096, 0, 0);
	write_fill(f, '2', 4096, 8192, 0);
	assert_int_equal(io_sim_unsynced(sim), 2);

	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct io_sim *c = lose(sim, seed);
		int first = filled_with(c, "a", 4096, 0), second = filled_with(c, "a", 4096, 8192);

		all += first == '1' && second == '2';
		none += first == 'o' && second == 'o';
		torn += first == -1 || second == -1;
		reordered += first == 'o' && second == '2';
		for (int i = 0; i < 32; i++) {
			int s = filled_with(c, "a", SECTOR, i * SECTOR);

			assert_true(s == 'o' || (s == '1' && i < 8) || (s == '2' && i >= 16 && i < 24));
		}
		io_sim_free(c);
	}
	assert_true(all && none && torn && reordered);
	io_file_unref(f);
	io_sim_free(sim);
}

/* Three versions of one sector: storage has any of them, but bytes that were
 * together in memory stay together. */
static void a_sector_is_a_version(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "a");
	int seen[3] = { 0 };

	write_fill(f, 'o', SECTOR, 0, IO_DSYNC);
	write_fill(f, 'A', 8, 0, 0);
	write_fill(f, 'B', 8, 8, 0);
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct io_sim *c = lose(sim, seed);
		int a = filled_with(c, "a", 8, 0), b = filled_with(c, "a", 8, 8);

		assert_int_equal(filled_with(c, "a", SECTOR - 16, 16), 'o');
		assert_false(a == 'o' && b == 'B');
		seen[(a == 'A') + (b == 'B')]++;
		io_sim_free(c);
	}
	assert_true(seen[0] && seen[1] && seen[2]);
	io_file_unref(f);
	io_sim_free(sim);
}

static void synced_is_never_lost(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "a");

	write_fill(f, 'x', 65536, 0, 0);
	assert_int_equal(io_zero(f, 4096, 4096, 0), 0);
	assert_int_equal(io_truncate(f, 61440), 0);
	assert_int_equal(io_fsync(f), 0);
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct io_sim *c = lose(sim, seed);

		assert_int_equal(filled_with(c, "a", 4096, 0), 'x');
		assert_int_equal(filled_with(c, "a", 4096, 4096), 0);
		assert_int_equal(filled_with(c, "a", 53248, 8192), 'x');
		assert_int_equal(filled_with(c, "a", 1, 61440), -2);
		io_sim_free(c);
	}
	io_file_unref(f);
	io_sim_free(sim);
}

/* IO_DSYNC: its range, with its size, and not a sector more; an older write to
 * the range cannot come back over it. */
static void dsync_is_its_range(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "a");
	int lost = 0, kept = 0;

	write_fill(f, '1', 4096, 0, 0);
	write_fill(f, '2', 512, 1024, IO_DSYNC);
	write_fill(f, '3', 512, 3072, 0);
	write_fill(f, '4', 512, 65536, IO_DSYNC);
	assert_int_equal(io_sim_sync_points(sim), 2);
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct io_sim *c = lose(sim, seed);
		int other = filled_with(c, "a", 512, 0);

		assert_int_equal(filled_with(c, "a", 512, 1024), '2');
		assert_int_equal(filled_with(c, "a", 512, 65536), '4');
		assert_true(other == 0 || other == '1');
		lost += other == 0;
		kept += other == '1';
		io_sim_free(c);
	}
	assert_true(lost && kept);
	io_file_unref(f);
	io_sim_free(sim);
}

/* A range made durable inside an extension that is not. */
static void dsync_keeps_the_size_it_needs(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "a");

	write_fill(f, '1', 4096, 0, 0);
	write_fill(f, '2', 512, 1024, IO_DSYNC);
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct io_sim *c = lose(sim, seed);

		assert_int_equal(filled_with(c, "a", 512, 1024), '2');
		io_sim_free(c);
	}
	io_file_unref(f);
	io_sim_free(sim);
}

static void size_changes_are_lost_too(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "a");
	int small = 0, middle = 0, big = 0;

	write_fill(f, 'x', 4096, 0, 0);
	assert_int_equal(io_fsync(f), 0);
	assert_int_equal(io_truncate(f, 1024), 0);
	assert_int_equal(io_truncate(f, 8192), 0);
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct io_sim *c = lose(sim, seed);
		struct io_file *g = must_open(c, "a", 0);
		int64_t size = io_size(g);

		small += size == 1024;
		middle += size == 4096;
		big += size == 8192;
		assert_true(size == 1024 || size == 4096 || size == 8192);
		assert_int_equal(filled_with(c, "a", 1024, 0), 'x');
		io_file_unref(g);
		io_sim_free(c);
	}
	assert_true(small && middle && big);
	io_file_unref(f);
	io_sim_free(sim);
}

/* What a lost extension cut off does not reappear when the file grows again. */
static void cut_off_data_is_gone(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "a");

	write_fill(f, 'x', 65536, 0, 0);
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct io_sim *c = lose(sim, seed);
		struct io_file *g = must_open(c, "a", IO_RDWR);

		if (io_size(g) == 0) {
			assert_int_equal(io_truncate(g, 65536), 0);
			assert_int_equal(filled_with(c, "a", 65536, 0), 0);
		}
		io_file_unref(g);
		io_sim_free(c);
	}
	io_file_unref(f);
	io_sim_free(sim);
}

static void crash_before_and_after_a_sync_point(void **state)
{
	for (int after = 0; after < 2; after++) {
		struct io_sim *sim = io_sim_new(1), *c;
		struct io_file *f = create(sim, "a");
		char buf[1];

		write_fill(f, 'o', 4096, 0, IO_DSYNC);
		write_fill(f, 'n', 4096, 0, 0);
		io_sim_crash_at(sim, after ? IO_SIM_CRASH_AFTER_SYNC : IO_SIM_CRASH_BEFORE_SYNC, 2);
		assert_int_equal(io_fsync(f), -EIO);
		assert_true(io_sim_dead(sim));
		assert_int_equal(io_pread(f, buf, 1, 0), -EIO);
		assert_int_equal(io_pwrite(f, "x", 1, 0, 0), -EIO);
		assert_int_equal(io_size(f), -EIO);
		c = lose(sim, 0);
		assert_int_equal(filled_with(c, "a", 4096, 0), after ? 'n' : 'o');
		io_sim_free(c);
		c = lose(sim, 1);
		assert_int_equal(filled_with(c, "a", 4096, 0), 'n');
		io_sim_free(c);
		io_file_unref(f);
		io_sim_free(sim);
	}
}

static void crash_at_a_write(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "a");

	io_sim_crash_at(sim, IO_SIM_CRASH_AT_WRITE, 2);
	write_fill(f, 'o', 512, 0, 0);
	assert_int_equal(io_pwrite(f, "x", 1, 0, 0), -EIO);
	assert_int_equal(io_fsync(f), -EIO);
	io_sim_power_loss(sim, 1);
	assert_int_equal(filled_with(sim, "a", 1, 0), 'x');
	assert_int_equal(io_pwrite(f, "x", 1, 0, 0), -EIO);	/* a handle of the former life */
	io_file_unref(f);
	io_sim_free(sim);
}

static void clones_are_independent(void **state)
{
	struct io_sim *sim = io_sim_new(1), *c;
	struct io_file *f = create(sim, "a"), *g;

	write_fill(f, 'o', 8192, 0, IO_DSYNC);
	c = io_sim_clone(sim);
	g = must_open(c, "a", IO_RDWR);
	write_fill(g, 'c', 4096, 0, 0);
	write_fill(f, 's', 4096, 4096, 0);
	assert_int_equal(filled_with(sim, "a", 4096, 0), 'o');
	assert_int_equal(filled_with(sim, "a", 4096, 4096), 's');
	assert_int_equal(filled_with(c, "a", 4096, 0), 'c');
	assert_int_equal(filled_with(c, "a", 4096, 4096), 'o');
	io_file_unref(g);
	io_file_unref(f);
	io_sim_free(c);
	io_sim_free(sim);
}

static void injected_faults(void **state)
{
	struct io_sim *sim = io_sim_new(1), *c;
	struct io_file *f = create(sim, "a");
	int lost = 0;

	write_fill(f, 'o', 4096, 0, 0);
	assert_int_equal(io_fsync(f), 0);
	io_sim_fail(sim, IO_SIM_WRITE, 2, ENOSPC);
	io_sim_fail(sim, IO_SIM_FSYNC, 1, EIO);
	write_fill(f, 'n', 4096, 0, 0);
	assert_int_equal(io_pwrite(f, "x", 1, 0, 0), -ENOSPC);
	assert_int_equal(io_fsync(f), -EIO);
	assert_int_equal(io_fsync(f), 0);		/* as Linux: it tells once … */
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		c = lose(sim, seed);
		lost += filled_with(c, "a", 4096, 0) != 'n';
		io_sim_free(c);
	}
	assert_true(lost);				/* … and does not write again */
	io_file_unref(f);
	io_sim_free(sim);
}

struct worker {
	struct io_file *f;
	struct io_sim *sim;
	int id;
	char *log;		/* one letter per operation that returned */
	int rc;
};

static void log_add(struct worker *w, char c)
{
	size_t n = strlen(w->log);

	w->log[n] = c;
	w->log[n + 1] = 0;
}

static void three_writes(void *arg)
{
	struct worker *w = arg;

	for (int i = 0; i < 3; i++) {
		char buf[4096];

		memset(buf, 'a' + w->id, sizeof(buf));
		w->rc = io_pwrite(w->f, buf, sizeof(buf), w->id * 4096, 0);
		if (w->rc < 0)
			return;
		log_add(w, 'a' + w->id);
	}
}

static void run_three(struct io_sim *sim, char *log, struct worker *w)
{
	struct io_file *f = create(sim, "a");

	log[0] = 0;
	for (int i = 0; i < 3; i++) {
		w[i] = (struct worker){ .f = f, .sim = sim, .id = i, .log = log };
		io_sim_start(sim, three_writes, &w[i]);
	}
	assert_string_equal(log, "");		/* nothing happens before io_sim_run() */
	io_sim_run(sim);
	io_file_unref(f);
}

static void coroutines_interleave_by_seed(void **state)
{
	char first[16], log[16];
	struct worker w[3];
	int different = 0;

	for (uint64_t seed = 0; seed < 20; seed++) {
		struct io_sim *sim = io_sim_new(seed), *again = io_sim_new(seed);
		char same[16];

		run_three(sim, log, w);
		assert_int_equal(strlen(log), 9);
		run_three(again, same, w);
		assert_string_equal(log, same);
		if (seed == 0)
			strcpy(first, log);
		different += strcmp(first, log) != 0;
		io_sim_free(sim);
		io_sim_free(again);
	}
	assert_true(different > 10);
}

/* Writes that had not returned when the machine died may be on storage. */
static void in_flight_may_have_arrived(void **state)
{
	struct io_sim *sim = io_sim_new(3);
	char log[16];
	struct worker w[3];
	int arrived = 0, lost = 0;

	io_sim_crash_at(sim, IO_SIM_CRASH_AT_WRITE, 1);
	run_three(sim, log, w);
	assert_string_equal(log, "");
	for (int i = 0; i < 3; i++)
		assert_int_equal(w[i].rc, -EIO);
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct io_sim *c = lose(sim, seed);

		for (int i = 0; i < 3; i++) {
			int byte = filled_with(c, "a", 512, i * 4096);

			arrived += byte == 'a' + i;
			lost += byte == 0 || byte == -2;
		}
		io_sim_free(c);
	}
	assert_true(arrived > 10 && lost > 10);
	io_sim_free(sim);
}

static void one_write(void *arg)
{
	struct worker *w = arg;

	w->rc = io_pwrite(w->f, "w", 1, 0, 0);
	log_add(w, 'w');
}

static void one_fsync(void *arg)
{
	struct worker *w = arg;

	w->rc = io_fsync(w->f);
	log_add(w, 'f');
}

/* A write that was in flight together with an fsync is not covered by it, even
 * when it came first. */
static void fsync_covers_what_was_before_it_began(void **state)
{
	int write_first = 0;

	for (uint64_t seed = 0; seed < 16; seed++) {
		struct io_sim *sim = io_sim_new(seed), *c;
		struct io_file *f = create(sim, "a");
		char log[16] = "";
		struct worker w[2] = { { .f = f, .log = log }, { .f = f, .log = log } };

		write_fill(f, 'o', 512, 0, IO_DSYNC);
		io_sim_start(sim, one_write, &w[0]);
		io_sim_start(sim, one_fsync, &w[1]);
		io_sim_run(sim);
		write_first += !strcmp(log, "wf");
		c = lose(sim, 0);
		assert_int_equal(filled_with(c, "a", 1, 0), 'o');
		io_sim_free(c);
		io_file_unref(f);
		io_sim_free(sim);
	}
	assert_true(write_first > 0);
}

static void sleeper(void *arg)
{
	struct worker *w = arg;

	io_sleep(io_sim_io(w->sim), 1000000 * (3 - w->id));
	log_add(w, '0' + w->id);
}

static void sleeping_is_virtual(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	char log[16] = "";
	struct worker w[3];

	for (int i = 0; i < 3; i++) {
		w[i] = (struct worker){ .sim = sim, .id = i, .log = log };
		io_sim_start(sim, sleeper, &w[i]);
	}
	io_sim_run(sim);
	assert_string_equal(log, "210");
	assert_int_equal(io_sim_now(sim), 3000000);
	io_sim_free(sim);
}

static void dump_and_load(void **state)
{
	char path[] = "/tmp/merino-test-io-sim.XXXXXX";
	struct io_sim *sim = io_sim_new(1);
	struct io_file *f = create(sim, "a");
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	close(fd);
	write_fill(f, 'x', 100000, 1 << 20, 0);
	assert_int_equal(io_truncate(f, 3 << 20), 0);
	assert_int_equal(io_sim_dump(sim, "a", path), 0);
	assert_int_equal(io_sim_load(sim, "b", path), 0);
	assert_int_equal(io_sim_sync_points(sim), 0);
	io_sim_power_loss(sim, 0);
	assert_int_equal(filled_with(sim, "b", 1 << 20, 0), 0);
	assert_int_equal(filled_with(sim, "b", 100000, 1 << 20), 'x');
	assert_int_equal(filled_with(sim, "b", (2 << 20) - 100000, (1 << 20) + 100000), 0);
	assert_int_equal(filled_with(sim, "b", 1, 3 << 20), -2);
	assert_int_equal(io_sim_load(sim, "c", "/nonexistent/c"), -ENOENT);
	unlink(path);
	io_file_unref(f);
	io_sim_free(sim);
}

/* --- a model: random operations, and what each sector may be afterwards --- */

enum { MODEL_SECTORS = 64, MODEL_VERSIONS = 256 };

struct model {
	uint8_t version[MODEL_SECTORS][MODEL_VERSIONS];	/* fill bytes since durable, oldest first */
	unsigned n[MODEL_SECTORS];
};

static void model_set(struct model *m, int sector, uint8_t byte)
{
	assert_true(m->n[sector] < MODEL_VERSIONS);
	m->version[sector][m->n[sector]++] = byte;
}

static void model_sync(struct model *m, int sector)
{
	m->version[sector][0] = m->version[sector][m->n[sector] - 1];
	m->n[sector] = 1;
}

static void model_step(struct model *m, struct io_file *f, uint8_t byte)
{
	int first = rand() % MODEL_SECTORS, n = 1 + rand() % (MODEL_SECTORS - first), kind = rand() % 20;
	unsigned flags = kind == 0 ? IO_DSYNC : 0;

	if (kind == 1) {
		assert_int_equal(io_fsync(f), 0);
		first = 0;
		n = MODEL_SECTORS;
	} else if (kind < 6 && kind > 1) {
		assert_int_equal(kind % 2 ? io_zero(f, first * SECTOR, n * SECTOR, 0)
					  : io_discard(f, first * SECTOR, n * SECTOR), 0);
		byte = 0;
	} else {
		write_fill(f, byte, n * SECTOR, first * SECTOR, flags);
	}
	for (int s = first; s < first + n; s++) {
		if (kind != 1)
			model_set(m, s, byte);
		if (kind <= 1)
			model_sync(m, s);
	}
}

static void model_check(const struct model *m, struct io_sim *sim, uint64_t seed)
{
	struct io_sim *c = lose(sim, seed);

	for (int s = 0; s < MODEL_SECTORS; s++) {
		int byte = filled_with(c, "a", SECTOR, s * SECTOR);
		bool found = false;

		for (unsigned i = 0; i < m->n[s]; i++)
			found |= m->version[s][i] == byte;
		if (seed % 8 == 0)
			assert_int_equal(byte, m->version[s][0]);
		if (seed % 8 == 1)
			assert_int_equal(byte, m->version[s][m->n[s] - 1]);
		if (!found)
			fail_msg("sector %d reads %#x after seed %d", s, byte, (int)seed);
	}
	io_sim_free(c);
}

static void random_operations_against_a_model(void **state)
{
	static struct model m;

	srand(1);
	for (int round = 0; round < 30; round++) {
		struct io_sim *sim = io_sim_new(round);
		struct io_file *f = create(sim, "a");

		assert_int_equal(io_truncate(f, MODEL_SECTORS * SECTOR), 0);
		assert_int_equal(io_fsync(f), 0);
		memset(&m, 0, sizeof(m));
		for (int s = 0; s < MODEL_SECTORS; s++)
			model_set(&m, s, 0);
		for (int step = 0; step < 100; step++) {
			model_step(&m, f, 1 + step);
			if (step % 10 == 0)
				for (int i = 0; i < 3; i++)
					model_check(&m, sim, rand());
		}
		io_file_unref(f);
		io_sim_free(sim);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_what_was_written),
		cmocka_unit_test(sparse_files_and_map),
		cmocka_unit_test(errors_of_opening),
		cmocka_unit_test(unsynced_writes_are_lost_torn_and_reordered),
		cmocka_unit_test(a_sector_is_a_version),
		cmocka_unit_test(synced_is_never_lost),
		cmocka_unit_test(dsync_is_its_range),
		cmocka_unit_test(dsync_keeps_the_size_it_needs),
		cmocka_unit_test(size_changes_are_lost_too),
		cmocka_unit_test(cut_off_data_is_gone),
		cmocka_unit_test(crash_before_and_after_a_sync_point),
		cmocka_unit_test(crash_at_a_write),
		cmocka_unit_test(clones_are_independent),
		cmocka_unit_test(injected_faults),
		cmocka_unit_test(coroutines_interleave_by_seed),
		cmocka_unit_test(in_flight_may_have_arrived),
		cmocka_unit_test(fsync_covers_what_was_before_it_began),
		cmocka_unit_test(sleeping_is_virtual),
		cmocka_unit_test(dump_and_load),
		cmocka_unit_test(random_operations_against_a_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
