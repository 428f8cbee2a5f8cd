// SPDX-License-Identifier: BSD-3-Clause
/* Power losses under the store of bitmaps: a bitmap that is trusted afterwards names
 * at least all that was written, one that did not change is the same, one that was
 * removed does not come back to be trusted, and the image has no errors.
 *
 * The machine dies just before and just after every sync point and at every write
 * of: an open, writes, a removal, an addition, a close, and an open and close
 * without a change.  Several states that storage may be in then are opened.
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
#include "common/io-sim.h"
#include "common/json.h"
#include "common/log.h"
#include "format/node.h"
#include "format/qcow2.h"
#include "qcow2-checker.h"

#define SIZE (4u << 20)
#define STYLES 8		/* of power loss: see io_sim_power_loss() */

/* Instead of the library's, which would tell of every crash. */
void log_line(enum log_level level, const char *fmt, ...)
{
}

struct run {
	struct io_sim *sim;
	struct graph graph;
	struct node *node;
	struct node_use use;
	struct { uint64_t off, len; } issued[32];	/* writes that may be on storage */
	unsigned n_issued;
	unsigned new_since;		/* first of them that "new" must know; UINT32_MAX: none */
	bool faults;			/* storage failed */
	bool removed;			/* "gone" was removed, and we were told so */
};

static bool raw;		/* the disk is a raw image, its bitmaps are beside it */

static char dir[] = "/tmp/merino-test-bitmap-powerloss.XXXXXX";

static int open_disk(struct run *r)
{
	struct node_place where = { .graph = &r->graph, .io = io_sim_io(r->sim) };
	struct error err = ERROR_INIT;
	struct json_object *o;
	int rc;

	graph_init(&r->graph);
	o = json_parse_text(raw ? "{'driver':'raw','node-name':'d','file':{'driver':'file',"
				  "'filename':'image'}}"
				: "{'driver':'qcow2','node-name':'d','file':{'driver':'file',"
				  "'filename':'image'}}", &err);
	rc = node_open(&where, o, &r->node, &err);
	json_object_put(o);
	if (rc) {
		r->node = NULL;
		return rc;
	}
	return node_use_add(&r->use, r->node, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, &err,
			    "test");
}

static void close_disk(struct run *r)
{
	node_use_drop(&r->use);
	r->use = (struct node_use){ 0 };
	node_unref(r->node);
	r->node = NULL;
}

static void wr(struct run *r, uint64_t off, uint64_t len)
{
	static uint8_t buf[1 << 20];

	r->issued[r->n_issued].off = off;
	r->issued[r->n_issued++].len = len;
	memset(buf, (int)r->n_issued, len);
	node_write(r->node, buf, off, len, 0);
}

static void add(struct run *r, const char *name, bool disabled)
{
	bitmap_add(r->node, name, 512, true, disabled, NULL, NULL);
}

static void first_life(struct run *r, uint32_t refcount_bits)
{
	struct qcow2_create o = { .size = SIZE, .cluster_size = 512,
				  .refcount_bits = refcount_bits };
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io_sim_io(r->sim), "image", IO_RDWR | IO_CREATE, &err);

	assert_int_equal(raw ? io_truncate(f, SIZE) : qcow2_create(f, &o, &err), 0);
	io_file_unref(f);
	assert_int_equal(open_disk(r), 0);
	add(r, "keep", false);
	add(r, "gone", false);
	add(r, "old", false);
	wr(r, 1000, 300000);
	assert_int_equal(bitmap_set_enabled(bitmap_find(r->node, "old", &err), false, &err), 0);
	close_disk(r);
}

/* May die anywhere. */
static void second_life(struct run *r)
{
	struct error err = ERROR_INIT;
	struct bitmap *b;

	if (open_disk(r) == 0) {
		wr(r, 500000, 70000);
		node_flush(r->node);
		b = bitmap_find(r->node, "gone", &err);
		r->removed = b && bitmap_remove(b, &err) == 0;
		bitmaps_commit(r->node, &err);
		r->removed = r->removed && !io_sim_dead(r->sim);
		r->new_since = r->n_issued;
		add(r, "new", false);
		wr(r, 3 << 20, 200000);
		close_disk(r);
	}
	if (r->node || open_disk(r) == 0)
		close_disk(r);
}

/* What is there of the writes from number FROM on is dirty.  One that was issued when the
 * machine died may have waited for its mark: then nothing of it is there. */
static void expect_covers(const struct run *r, struct node *n, const struct bitmap *b, unsigned from)
{
	static uint8_t disk[SIZE];

	assert_int_equal(node_read(n, disk, 0, SIZE), 0);
	for (unsigned i = from; i < r->n_issued; i++)
		for (uint64_t at = r->issued[i].off; at < r->issued[i].off + r->issued[i].len; at++)
			if (disk[at] == i + 1 && !bitmap_get(b, at))
				fail_msg("%s lacks write %u at %llu", b->name, i, (unsigned long long)at);
}

static bool trusted(const struct bitmap *b)
{
	return b && !b->inconsistent;
}

static void check_bitmaps(const struct run *r, struct node *n)
{
	struct bitmap *keep = bitmap_find(n, "keep", NULL), *old = bitmap_find(n, "old", NULL);
	struct bitmap *gone = bitmap_find(n, "gone", NULL), *new = bitmap_find(n, "new", NULL);

	/* What a failed fsync lost and the page cache still shows may be the directory's own. */
	assert_true(keep || r->faults);
	assert_true(old || r->faults);
	if (raw && !r->faults)			/* nothing is given up */
		assert_true(trusted(keep) && trusted(old));
	if (trusted(keep))
		expect_covers(r, n, keep, 0);
	if (trusted(old)) {
		assert_false(old->enabled);
		assert_int_equal(old->dirty, 587);
		expect_covers(r, n, old, r->n_issued);
		assert_int_equal(bitmap_next_dirty(old, 0, SIZE), 512);
	}
	if (r->removed)
		assert_null(gone);
	if (trusted(gone))
		expect_covers(r, n, gone, 0);
	if (trusted(new))
		expect_covers(r, n, new, r->new_since);
}

static void check_image(struct io_sim *sim, bool with_qemu)
{
	struct error err = ERROR_INIT;
	struct checker c;
	struct io_file *f = io_open(io_sim_io(sim), "image", 0, &err);
	char path[100], cmd[200];

	if (raw) {
		io_file_unref(f);
		return;
	}
	checker_run(&c, f);
	io_file_unref(f);
	if (c.errors)
		fail_msg("%s", c.first);
	if (!with_qemu)
		return;
	snprintf(path, sizeof(path), "%s/image", dir);
	unlink(path);
	assert_int_equal(io_sim_dump(sim, "image", path), 0);
	snprintf(cmd, sizeof(cmd), "qemu-img check -q %s >/dev/null 2>&1 || test $? = 3", path);
	assert_int_equal(system(cmd), 0);
}

static void check_state(const struct run *r, uint64_t style, bool with_qemu)
{
	struct run after = { .sim = io_sim_clone(r->sim), .faults = r->faults };

	io_sim_power_loss(after.sim, style);
	check_image(after.sim, with_qemu);
	assert_int_equal(open_disk(&after), 0);
	check_bitmaps(r, after.node);
	wr(&after, 0, 4096);
	close_disk(&after);
	check_image(after.sim, with_qemu);
	io_sim_free(after.sim);
}

static void crash_everywhere(const struct io_sim *template, const struct run *first,
				 enum io_sim_crash when, uint64_t points)
{
	static unsigned states;

	for (uint64_t i = 1; i <= points; i++) {
		struct run r = *first;

		r.new_since = UINT32_MAX;
		r.sim = io_sim_clone(template);
		io_sim_power_loss(r.sim, 1);
		io_sim_crash_at(r.sim, when, i);
		second_life(&r);
		assert_true(io_sim_dead(r.sim));
		for (uint64_t style = 0; style < STYLES; style++)
			check_state(&r, style + STYLES * i, states++ % 40 == 0);
		io_sim_free(r.sim);
	}
}

static void test_power_loss(void **state)
{
	struct run first = { .sim = io_sim_new(1) }, whole;
	uint64_t syncs, writes;

	first_life(&first, 16);
	whole = first;
	whole.sim = io_sim_clone(first.sim);
	io_sim_power_loss(whole.sim, 0);		/* a clean close leaves nothing to lose */
	second_life(&whole);
	syncs = io_sim_sync_points(whole.sim);
	writes = io_sim_writes(whole.sim);
	check_state(&whole, 0, true);
	assert_true(whole.removed);
	io_sim_free(whole.sim);
	crash_everywhere(first.sim, &first, IO_SIM_CRASH_BEFORE_SYNC, syncs);
	crash_everywhere(first.sim, &first, IO_SIM_CRASH_AFTER_SYNC, syncs);
	crash_everywhere(first.sim, &first, IO_SIM_CRASH_AT_WRITE, writes);
	print_message("%u sync points, %u writes\n", (unsigned)syncs, (unsigned)writes);
	io_sim_free(first.sim);
}

static void test_power_loss_raw(void **state)
{
	raw = true;
	test_power_loss(state);
	raw = false;
}

/* A failed write, or no space, at any place of the close: an error is logged, the image
 * stays consistent, and no bitmap is trusted that misses a write. */
static void test_failures(void **state)
{
	struct run first = { .sim = io_sim_new(2) };

	first_life(&first, 16);
	for (unsigned n = 1; n < 60; n++) {
		struct run r = first;

		r.new_since = UINT32_MAX;
		r.faults = true;
		r.sim = io_sim_clone(first.sim);
		io_sim_power_loss(r.sim, 1);
		io_sim_fail(r.sim, IO_SIM_WRITE | IO_SIM_FSYNC, n, n % 2 ? 5 : 28);
		second_life(&r);
		for (uint64_t style = 0; style < STYLES; style++)
			check_state(&r, style + STYLES * n, style == 0 && n % 4 == 0);
		io_sim_free(r.sim);
	}
	io_sim_free(first.sim);
}

static void test_failures_raw(void **state)
{
	raw = true;
	test_failures(state);
	raw = false;
}

static int setup(void **state)
{
	bitmaps_init();
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	char cmd[100];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_power_loss), cmocka_unit_test(test_failures),
		cmocka_unit_test(test_power_loss_raw), cmocka_unit_test(test_failures_raw),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
