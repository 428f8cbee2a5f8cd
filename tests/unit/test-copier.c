/* SPDX-License-Identifier: BSD-3-Clause */
/* The copier against disks in memory (copier-rig.h). */
#include <errno.h>
#include <string.h>

#include "backup/copier-int.h"
#include "copier-rig.h"

static struct copier *copier_for(struct disk *s, struct disk *t, struct copier_options o)
{
	struct error err = ERROR_INIT;
	struct copier *c = NULL;

	o.source = &s->node;
	o.target = &t->node;
	if (copier_new(&o, &c, &err))
		fail_msg("%s", err.text);
	return c;
}

static void run_ok(struct copier *c)
{
	struct error err = ERROR_INIT;

	if (copier_run(c, &err))
		fail_msg("%s", err.text);
	assert_int_equal(copier_left(c), 0);
}

/* -- whole disks ---------------------------------------------------------------------------- */

/* All of a disk of SIZE bytes, onto one that holds something else and is EXTRA larger. */
static void full(uint64_t size, unsigned cover, uint64_t extra, unsigned waits, struct copier_options o)
{
	struct disk s, t;
	struct copier *c;

	disk_make(&s, size, true);
	disk_make(&t, size + extra, true);
	disk_fill(&s, cover);
	if (!o.target_is_zero)
		disk_fill(&t, 128);
	memset(t.data + size, 0x5a, extra);
	s.waits = t.waits = waits;
	s.wait_ns = t.wait_ns = 20000;
	c = copier_for(&s, &t, o);
	copier_add(c, 0, size);
	assert_int_equal(copier_left(c), size);
	run_ok(c);
	assert_same(&s, &t);
	for (uint64_t i = 0; i < extra; i++)
		assert_int_equal(t.data[size + i], 0x5a);
	assert_int_equal(t.flushes, 1);
	assert_true(s.most_in_flight <= 16 << 20);
	copier_free(c);
	disk_done(&s);
	disk_done(&t);
}

static void fulls(void)
{
	static const uint64_t sizes[] = { 512, 4096, 65536, 65536 + 512, 1 << 20, (3 << 20) + 1536, 9 << 20 };

	for (unsigned i = 0; i < 7; i++) {
		for (unsigned j = 0; j < 12; j++) {
			struct copier_options o = {
				.workers = (unsigned)rnd(20), .target_is_zero = j % 4 == 0,
				.granularity = j % 3 ? 1u << (9 + rnd(14)) : 0,
				.max_chunk = j % 2 ? 4096ull << rnd(10) : 0,
			};

			full(sizes[i], j * 23, j % 5 == 0 ? 8192 : 0, j & 1 ? 0 : 2 + j, o);
		}
	}
}

static void test_full(void **state)
{
	in_loop(fulls);
}

static void test_full_blocking(void **state)
{
	fulls();
}

/* -- holes ---------------------------------------------------------------------------------- */

/* Data in every other 64 KiB; what is a hole is neither read nor, where the target has
 * nothing either, written. */
static void holes(void)
{
	struct copier_options o = { 0 };
	struct disk s, t;
	struct copier *c;

	for (int zero = 0; zero < 2; zero++) {
		disk_make(&s, 8 << 20, true);
		disk_make(&t, 8 << 20, true);
		for (uint64_t off = 0; off < s.node.size; off += 128 * K)
			for (uint64_t i = off; i < off + 64 * K; i++)
				s.data[i] = s.held[i / BLOCK] = 1;
		o.target_is_zero = zero;
		c = copier_for(&s, &t, o);
		copier_add(c, 0, s.node.size);
		run_ok(c);
		assert_same(&s, &t);
		assert_int_equal(s.hole_bytes_read, 0);
		assert_int_equal(s.read_bytes, 4 << 20);
		assert_int_equal(t.write_bytes, 4 << 20);
		assert_int_equal(t.zeroes, 0);
		copier_free(c);
		disk_done(&s);
		disk_done(&t);
	}
}

static void test_holes(void **state)
{
	in_loop(holes);
	holes();
}

/* sync=top: what only lower layers have is not touched in the target. */
static void one_layer(void)
{
	struct disk s, t;
	struct copier *c;

	disk_make(&s, 4 << 20, true);
	disk_make(&t, 4 << 20, true);
	s.layer = 2;
	memset(t.data, 7, t.node.size);
	memset(t.held, 1, t.node.size / BLOCK);
	memset(s.data + (1 << 20), 9, 64 * K);
	memset(s.held + (1 << 20) / BLOCK, 1, 64 * K / BLOCK);
	c = copier_for(&s, &t, (struct copier_options){ .one_layer = true });
	copier_add(c, 0, s.node.size);
	run_ok(c);
	for (uint64_t i = 0; i < t.node.size; i++)
		assert_int_equal(t.data[i], i >= 1 << 20 && i < (1 << 20) + 64 * K ? 9 : 7);
	copier_free(c);
	disk_done(&s);
	disk_done(&t);
}

static void test_one_layer(void **state)
{
	in_loop(one_layer);
}

/* 1 PiB with nothing, and 8 EiB less a bit: no time, little memory, and what is fed is found. */
static void huge(void)
{
	static const uint64_t sizes[] = { 1ull << 50, INT64_MAX };
	struct disk s, t;
	struct copier *c;

	for (int i = 0; i < 2; i++) {
		disk_make(&s, sizes[i], false);
		disk_make(&t, sizes[i], false);
		c = copier_for(&s, &t, (struct copier_options){ 0 });
		copier_add(c, 0, sizes[i]);
		assert_int_equal(copier_left(c), sizes[i]);
		run_ok(c);
		assert_int_equal(s.reads + t.writes + t.zeroes, 0);
		assert_true(s.maps < 20000000);
		copier_add(c, sizes[i] - 1, 1);
		assert_true(copier_wants(c, sizes[i] - 1) && !copier_wants(c, 0));
		assert_true(copier_left(c) > 0 && copier_left(c) < sizes[i] / 1000000);
		run_ok(c);
		copier_free(c);
		disk_done(&s);
		disk_done(&t);
	}
}

static void test_huge(void **state)
{
	in_loop(huge);
}

/* -- only what is asked for --------------------------------------------------------------- */

static void some(void)
{
	const uint64_t size = (16 << 20) + 512, g = 64 * K;
	struct node n = { .size = size };
	struct bitmap b = { .size = size, .granularity_bits = 12, .node = &n };
	struct disk s, t;
	struct copier *c;

	assert_int_equal(bitmap_alloc_bits(&b), 0);
	disk_make(&s, size, true);
	disk_make(&t, size, true);
	disk_fill(&s, 200);
	memset(t.data, 0x33, size);
	memset(t.held, 1, size / BLOCK + 1);
	for (int i = 0; i < 40; i++)
		bitmap_set(&b, rnd(size), 1 + rnd(100 * K));
	bitmap_set(&b, size - 1, 1);
	c = copier_for(&s, &t, (struct copier_options){ 0 });
	copier_add_bitmap(c, &b);
	run_ok(c);
	for (uint64_t off = 0; off < size; off += g) {
		uint64_t end = off + g < size ? off + g : size;
		bool dirty = bitmap_next_dirty(&b, off, end) < end;

		for (uint64_t i = off; i < end; i++)
			assert_int_equal(t.data[i], dirty ? s.data[i] : 0x33);
	}
	copier_free(c);
	disk_done(&s);
	disk_done(&t);
	bitmap_free_bits(&b);
}

static void test_some(void **state)
{
	for (int i = 0; i < 5; i++)
		in_loop(some);
}

/* Short runs are read without a look at the map; what is zero in them is stored as zeroes. */
static void scattered(void)
{
	struct disk s, t;
	struct copier *c;

	disk_make(&s, 16 << 20, true);
	disk_make(&t, 16 << 20, true);
	memset(s.data, 5, s.node.size);
	memset(s.held, 1, s.node.size / BLOCK);
	memset(t.data, 7, t.node.size);
	memset(t.held, 1, t.node.size / BLOCK);
	memset(s.data + (8 << 20), 0, 8 << 20);
	memset(s.held + (8 << 20) / BLOCK, 0, (8 << 20) / BLOCK);
	c = copier_for(&s, &t, (struct copier_options){ 0 });
	for (uint64_t off = 0; off < s.node.size; off += 256 * K)
		copier_add(c, off, 64 * K);
	run_ok(c);
	assert_int_equal(s.maps, 0);
	assert_int_equal(s.read_bytes, 64 * 64 * K);
	assert_int_equal(t.write_bytes, 32 * 64 * K);
	assert_int_equal(t.zero_bytes, 32 * 64 * K);
	for (uint64_t i = 0; i < t.node.size; i++)
		assert_int_equal(t.data[i], i % (256 * K) < 64 * K ? s.data[i] : 7);
	copier_free(c);
	disk_done(&s);
	disk_done(&t);
}

static void test_scattered(void **state)
{
	in_loop(scattered);
	scattered();
}

/* -- fed while it runs ---------------------------------------------------------------------- */

static struct {
	struct disk *s;
	struct copier *c;
	bool running, ended;
} feed;

/* A guest: writes, and tells. */
static void feeder(void *arg)
{
	for (int i = 0; i < 300 && feed.running; i++) {
		uint64_t len = BLOCK * (1 + rnd(8)), off = rnd(feed.s->node.size / BLOCK - 8) * BLOCK;
		bool zero = rnd(4) == 0;

		memset(feed.s->data + off, zero ? 0 : 1 + (int)rnd(200), len);
		memset(feed.s->held + off / BLOCK, !zero, len / BLOCK);
		copier_add(feed.c, off, len);
		io_sleep(feed.s->node.io, rnd(50000));
	}
	feed.ended = true;
}

static void fed(void)
{
	struct disk s, t;

	disk_make(&s, 12 << 20, true);
	disk_make(&t, 12 << 20, true);
	disk_fill(&s, 150);
	disk_fill(&t, 150);
	s.waits = t.waits = 3;
	s.wait_ns = t.wait_ns = 100000;
	feed.s = &s;
	feed.c = copier_for(&s, &t, (struct copier_options){ .max_chunk = 128 * K });
	feed.running = true;
	feed.ended = false;
	copier_add(feed.c, 0, s.node.size);
	co_start(feeder, NULL);
	run_ok(feed.c);
	feed.running = false;
	while (!feed.ended)
		io_sleep(s.node.io, 100000);
	run_ok(feed.c);			/* what came after */
	assert_same(&s, &t);
	copier_free(feed.c);
	disk_done(&s);
	disk_done(&t);
}

static void test_fed(void **state)
{
	for (int i = 0; i < 3; i++)
		in_loop(fed);
}

/* -- errors ------------------------------------------------------------------------------------ */

static struct {
	enum copier_action action;
	unsigned calls;
	bool is_read;
	uint64_t off, len;
	int rc;
} judged;

static enum copier_action judge(void *arg, int rc, bool is_read, uint64_t off, uint64_t len)
{
	judged.calls++;
	judged.rc = rc;
	judged.is_read = is_read;
	judged.off = off;
	judged.len = len;
	assert_int_equal(((struct disk *)arg)->requests, 0);
	return judged.action;
}

/* The N-th request of one side fails, TIMES times. */
static void error_at(unsigned n, bool of_source, unsigned times, enum copier_action action)
{
	struct error err = ERROR_INIT;
	struct disk s, t, *bad = of_source ? &s : &t;
	struct node whole = { 0 };
	struct bitmap b = { .granularity_bits = 16, .node = &whole };
	struct copier *c;
	bool hit;
	int rc;

	disk_make(&s, (2 << 20) + 4096, true);
	disk_make(&t, s.node.size, true);
	disk_fill(&s, 180);
	disk_fill(&t, 128);
	s.waits = t.waits = 4;
	s.wait_ns = t.wait_ns = 20000;
	bad->fail_at = n;
	bad->n_fail = times;
	bad->fail_rc = n % 2 ? -EIO : -ENOSPC;
	memset(&judged, 0, sizeof(judged));
	judged.action = action;
	c = copier_for(&s, &t, (struct copier_options){ .failed = judge, .arg = &t, .max_chunk = 64 * K });
	copier_add(c, 0, s.node.size);
	rc = copier_run(c, &err);
	hit = bad->asked >= n;
	if (t.flush_rc) {		/* is told as it is */
		assert_int_equal(rc, bad->fail_rc);
	} else if (!hit) {
		assert_int_equal(rc, 0);
		assert_same(&s, &t);
	} else {
		assert_true(judged.calls > 0);
		assert_int_equal(judged.rc, bad->fail_rc);
		assert_int_equal(judged.is_read, of_source);
		assert_int_equal(rc, action == COPIER_REPORT ? bad->fail_rc : 0);
		assert_true(judged.len && judged.off + judged.len <= s.node.size);
	}
	if (rc)
		assert_true(err.code == rc && err.text[0]);
	if (!rc && action == COPIER_RETRY)
		assert_same(&s, &t);
	if (hit && judged.calls && action != COPIER_RETRY) {
		assert_true(copier_left(c) > 0);
		b.size = whole.size = s.node.size;
		assert_int_equal(bitmap_alloc_bits(&b), 0);
		copier_left_to_bitmap(c, &b);
		assert_true(bitmap_get(&b, judged.off));
		for (uint64_t i = 0; i < s.node.size; i++)	/* what is not left is right */
			if (!bitmap_get(&b, i))
				assert_int_equal(s.data[i], t.data[i]);
		copier_free(c);
		c = copier_for(&s, &t, (struct copier_options){ 0 });
		copier_add_bitmap(c, &b);	/* resumed */
		bad->fail_at = 0;
		run_ok(c);
		assert_same(&s, &t);
		bitmap_free_bits(&b);
	}
	copier_free(c);
	disk_done(&s);
	disk_done(&t);
}

static void errors(void)
{
	static const enum copier_action actions[] = { COPIER_REPORT, COPIER_IGNORE, COPIER_RETRY };

	for (unsigned n = 1; n < 60; n++)
		for (int of_source = 0; of_source < 2; of_source++)
			error_at(n, of_source, n % 7 == 0 ? 5 : 1, actions[n % 3]);
}

static void test_errors(void **state)
{
	in_loop(errors);
	errors();
}

/* -- as a job: pause, cancel, speed --------------------------------------------------------------- */

static struct {
	struct disk s, t;
	struct copier *c;
	uint64_t speed;
	int rc;
	bool ended;
} work;

static int work_run(struct job *j, struct error *err)
{
	struct copier_options o = { .job = j, .max_chunk = 64 * K, .speed = work.speed };

	work.c = copier_for(&work.s, &work.t, o);
	copier_add(work.c, 0, work.s.node.size);
	work.rc = copier_run(work.c, err);
	work.ended = true;
	return work.rc;
}

static const struct job_driver driver = { .type = "backup", .run = work_run };

static struct job *work_start(uint64_t size, uint64_t wait_ns, uint64_t speed)
{
	struct error err = ERROR_INIT;
	struct job *j;

	memset(&work, 0, sizeof(work));
	disk_make(&work.s, size, true);
	disk_make(&work.t, size, true);
	disk_fill(&work.s, 256);
	work.s.waits = work.t.waits = 2;
	work.s.wait_ns = work.t.wait_ns = wait_ns;
	work.speed = speed;
	j = job_new(&driver, "j", loop_self(), NULL, &err);
	if (!j)
		fail_msg("%s", err.text);
	job_start(j);
	return j;
}

static void work_end(void)
{
	while (!work.ended)
		io_sleep(work.s.node.io, 100000);
	while (job_list())
		io_sleep(work.s.node.io, 100000);
	copier_free(work.c);
	disk_done(&work.s);
	disk_done(&work.t);
}

static void cancels(void)
{
	for (int i = 0; i < 25; i++) {
		struct error err = ERROR_INIT;
		struct job *j = work_start(8 << 20, 300000, 0);

		while (!work.c)		/* cancelled before, it would never run */
			io_sleep(work.s.node.io, 10000);
		io_sleep(work.s.node.io, rnd(3000000));
		if (job_list())
			job_user_cancel(j, &err);
		work_end();
		assert_true(work.rc == 0 || work.rc == -ECANCELED);
	}
}

static void pauses(void)
{
	struct error err = ERROR_INIT;
	struct job *j = work_start(16 << 20, 300000, 64 << 20);
	uint64_t done;

	while (!j->current)
		io_sleep(work.s.node.io, 10000);
	assert_int_equal(job_user_pause(j, &err), 0);
	while (j->status != JOB_PAUSED)
		io_sleep(work.s.node.io, 100000);
	assert_int_equal(work.s.requests + work.t.requests, 0);
	done = j->current;
	assert_true(done < work.s.node.size);
	assert_int_equal(j->total, work.s.node.size);
	io_sleep(work.s.node.io, 20000000);
	assert_int_equal(j->current, done);
	copier_set_speed(work.c, 0);
	assert_int_equal(job_user_resume(j, &err), 0);
	while (!work.ended)
		io_sleep(work.s.node.io, 100000);
	assert_int_equal(work.rc, 0);
	assert_same(&work.s, &work.t);
	work_end();
}

/* A byte a second: nothing more is begun, until the limit is lifted. */
static void speeds(void)
{
	struct job *j = work_start(4 << 20, 100000, 64 << 20);
	uint64_t done;

	while (!j->current)
		io_sleep(work.s.node.io, 10000);
	copier_set_speed(work.c, 1);
	while (work.c->busy || work.c->next_ns < loop_now() + 1000000000000)	/* one may still begin */
		io_sleep(work.s.node.io, 10000);
	done = j->current;
	io_sleep(work.s.node.io, 30000000);
	assert_int_equal(j->current, done);
	assert_true(done < 4 << 20);
	copier_set_speed(work.c, 0);
	work_end();
	assert_int_equal(work.rc, 0);
}

/* 1 MiB at 4 MiB a second takes a quarter of a second, and no request is longer than a
 * tenth of one. */
static void limited(void)
{
	struct disk s, t;
	struct copier *c;
	uint64_t begun;

	disk_make(&s, 1 << 20, true);
	disk_make(&t, 1 << 20, true);
	disk_fill(&s, 256);
	c = copier_for(&s, &t, (struct copier_options){ .speed = 4 << 20 });
	copier_add(c, 0, s.node.size);
	begun = loop_now();
	run_ok(c);
	assert_true(loop_now() - begun > 120000000);
	assert_true(s.most_in_flight <= 2 * (4 << 20) / 10);
	copier_free(c);
	disk_done(&s);
	disk_done(&t);
}

static void test_jobs(void **state)
{
	in_loop(cancels);
	in_loop(pauses);
	in_loop(speeds);
	in_loop(limited);
}

/* -- a target on another loop ---------------------------------------------------------------------- */

static void other_loop(void)
{
	struct error err = ERROR_INIT;
	struct loop *other = loop_spawn("other", &err);
	struct disk s, t;
	struct copier *c;

	assert_non_null(other);
	disk_make(&s, 9 << 20, true);
	disk_make(&t, 9 << 20, true);
	t.node.loop = other;
	t.node.io = loop_io(other);
	disk_fill(&s, 180);
	s.waits = 3;
	s.wait_ns = 20000;
	c = copier_for(&s, &t, (struct copier_options){ 0 });
	copier_add(c, 0, s.node.size);
	run_ok(c);
	assert_same(&s, &t);
	copier_free(c);
	disk_done(&s);
	disk_done(&t);
	loop_free(other);
}

static void test_other_loop(void **state)
{
	in_loop(other_loop);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_full_blocking),
		cmocka_unit_test(test_holes),
		cmocka_unit_test(test_one_layer),
		cmocka_unit_test(test_huge),
		cmocka_unit_test(test_some), cmocka_unit_test(test_scattered),
		cmocka_unit_test(test_fed),
		cmocka_unit_test(test_errors),
		cmocka_unit_test(test_jobs),
		cmocka_unit_test(test_other_loop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
