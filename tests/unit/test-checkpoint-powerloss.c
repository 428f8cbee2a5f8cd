// SPDX-License-Identifier: BSD-3-Clause
/* Power losses under checkpoints of two disks: afterwards a checkpoint that was said to
 * count is there, on both disks, and what changed since each one that is there is all
 * known; one that had not ended does not count.
 *
 * The machine dies before and after every sync point, and at every write, of: an open,
 * a checkpoint that succeeds, one that does not, a deletion, and writes between all of
 * them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backup/checkpoint.h"
#include "bitmaps/bitmap.h"
#include "common/io-sim.h"
#include "common/json.h"
#include "common/log.h"
#include "format/node.h"
#include "format/qcow2.h"

#define SIZE (1u << 20)
#define G 4096u
#define STYLES 4		/* of power loss: see io_sim_power_loss() */
#define N_DISKS 2
#define MANY 64

/* Instead of the library's, which would tell of every crash. */
void log_line(enum log_level level, const char *fmt, ...)
{
}

struct disk {
	struct node *node;
	struct node_use use;
	struct checkpoint_disk part;
};

struct run {
	struct io_sim *sim;
	struct graph graph;
	struct disk disk[N_DISKS];
	uint64_t issued[MANY];		/* offset of each write, a granule of both disks */
	unsigned n_issued;
	unsigned since[4];		/* of them, at the instant of checkpoint i */
	bool counts[4], deleting;	/* we were told so */
	uint64_t rng;
};

static bool open_disk(struct run *r, unsigned i)
{
	struct node_place where = { .graph = &r->graph, .io = io_sim_io(r->sim) };
	struct error err = ERROR_INIT;
	struct disk *d = &r->disk[i];
	struct json_object *o;
	char text[200];
	int rc;

	snprintf(text, sizeof(text), "{'driver':'qcow2','node-name':'d%u','file':{'driver':'file',"
		 "'filename':'image%u'}}", i, i);
	o = json_parse_text(text, &err);
	rc = node_open(&where, o, &d->node, &err);
	json_object_put(o);
	if (rc) {
		d->node = NULL;
		return false;
	}
	rc = node_use_add(&d->use, d->node, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, &err, "test");
	return rc == 0;
}

static void close_disks(struct run *r)
{
	for (unsigned i = 0; i < N_DISKS; i++) {
		struct disk *d = &r->disk[i];

		if (!d->node)
			continue;
		node_use_drop(&d->use);
		node_unref(d->node);
		*d = (struct disk){ .node = NULL };
	}
}

static bool open_disks(struct run *r)
{
	graph_init(&r->graph);
	for (unsigned i = 0; i < N_DISKS; i++) {
		if (!open_disk(r, i)) {
			close_disks(r);
			return false;
		}
	}
	return true;
}

static void leftovers(struct run *r, bool useless_too)
{
	unsigned count;

	for (unsigned i = 0; i < N_DISKS; i++) {
		checkpoint_end_leftovers(r->disk[i].node, useless_too, &count, NULL);
		checkpoint_drop_ended(r->disk[i].node);
	}
}

static void wr(struct run *r)
{
	uint8_t buf[G];

	r->rng ^= r->rng << 13;
	r->rng ^= r->rng >> 7;
	r->rng ^= r->rng << 17;
	r->issued[r->n_issued++] = r->rng % (SIZE / G) * G;
	memset(buf, (int)r->n_issued, sizeof(buf));
	for (unsigned i = 0; i < N_DISKS; i++)
		node_write(r->disk[i].node, buf, r->issued[r->n_issued - 1], sizeof(buf), 0);
}

/* checkpoint_disk_prepare() and _begin(), without the view. */
static void begin(struct run *r, unsigned serial)
{
	for (unsigned i = 0; i < N_DISKS; i++) {
		struct checkpoint_disk *d = &r->disk[i].part;
		char name[LABEL_SIZE];
		struct epochs e;

		*d = (struct checkpoint_disk){ .node = r->disk[i].node, .persistent = true };
		d->label = (struct label){ .time = serial, .group = serial, .disks = N_DISKS };
		snprintf(d->label.name, sizeof(d->label.name), "c%u", serial);
		if (epochs_list(d->node, &e, NULL))
			abort();
		d->label.first = d->label.last = epochs_next_number(&e);
		epochs_free(&e);
		label_format(&d->label, name);
		if (bitmap_add(d->node, name, G, true, false, &d->epoch, NULL)) {
			d->epoch = NULL;
			continue;
		}
		d->epoch->busy++;
		d->held = true;
	}
	r->since[serial] = r->n_issued;
}

static int mark(struct run *r, enum checkpoint_state state)
{
	int rc = 0;

	for (unsigned i = 0; i < N_DISKS && !rc; i++) {
		struct checkpoint_disk *d = &r->disk[i].part;

		rc = d->epoch ? checkpoint_disk_mark(d, state, NULL) : -1;
	}
	return rc;
}

/* As nbd-server/checkpoints.c does it. */
static void end(struct run *r, unsigned serial, bool success)
{
	bool counts = success && !mark(r, CHECKPOINT_READY);

	r->counts[serial] = counts && !io_sim_dead(r->sim);
	if (counts)
		mark(r, CHECKPOINT_ACTIVE);
	for (unsigned i = 0; i < N_DISKS; i++) {
		struct checkpoint_disk *d = &r->disk[i].part;

		if (d->epoch)
			d->epoch->busy--;
		if (counts)
			checkpoint_freeze(d->node);
	}
	leftovers(r, success);
}

static void first_life(struct run *r)
{
	struct qcow2_create o = { .size = SIZE, .cluster_size = G };
	struct error err = ERROR_INIT;

	r->rng = 88172645463325252ull;
	for (unsigned i = 0; i < N_DISKS; i++) {
		char name[20];
		struct io_file *f;

		snprintf(name, sizeof(name), "image%u", i);
		f = io_open(io_sim_io(r->sim), name, IO_RDWR | IO_CREATE, &err);
		assert_int_equal(qcow2_create(f, &o, &err), 0);
		io_file_unref(f);
	}
	assert_true(open_disks(r));
	for (unsigned serial = 0; serial < 2; serial++) {
		wr(r);
		begin(r, serial);
		wr(r);
		end(r, serial, true);
		wr(r);
	}
	close_disks(r);
}

/* May die anywhere. */
static void second_life(struct run *r)
{
	if (!open_disks(r))
		return;
	leftovers(r, false);
	wr(r);
	begin(r, 2);
	wr(r);
	end(r, 2, true);
	wr(r);
	begin(r, 3);
	wr(r);
	end(r, 3, false);
	wr(r);
	r->deleting = true;
	for (unsigned i = 0; i < N_DISKS; i++)
		checkpoint_fold(r->disk[i].node, "c1", NULL);
	leftovers(r, false);
	wr(r);
	close_disks(r);
}

/* -- the verdict ----------------------------------------------------------------------- */

/* Whether checkpoint SERIAL is there, on both disks or as one that began to be active. */
static bool is_there(struct run *r, unsigned serial)
{
	unsigned held = 0;
	bool active = false;
	char name[16];

	snprintf(name, sizeof(name), "c%u", serial);
	for (unsigned i = 0; i < N_DISKS; i++) {
		struct epochs e;
		int k;

		assert_int_equal(epochs_list(r->disk[i].node, &e, NULL), 0);
		k = epochs_find(&e, name);
		held += k >= 0;
		active = active || (k >= 0 && e.v[k].label.state == CHECKPOINT_ACTIVE);
		epochs_free(&e);
	}
	return held == N_DISKS || (active && serial != 1);
}

/* All that is on the disk of what was written since is known. */
static void expect_covers(const struct run *before, struct node *n, unsigned serial)
{
	struct node nowhere = { .name = "", .driver = n->driver, .size = SIZE };
	static uint8_t disk[SIZE];
	struct error err = ERROR_INIT;
	struct bitmap *all;
	struct epochs e;
	char name[16];
	int k;

	snprintf(name, sizeof(name), "c%u", serial);
	assert_int_equal(epochs_list(n, &e, NULL), 0);
	k = epochs_find(&e, name);
	if (k >= 0) {
		if (!epochs_cover(&e, k, &err))
			fail_msg("%s: %s", name, err.text);
		assert_int_equal(bitmap_add(&nowhere, "all", G, false, true, &all, NULL), 0);
		assert_int_equal(epochs_union(&e, k, all, NULL), 0);
		assert_int_equal(node_read(n, disk, 0, SIZE), 0);
		for (unsigned i = before->since[serial]; i < before->n_issued; i++) {
			uint64_t at = before->issued[i];

			if (disk[at] == i + 1 && !bitmap_get(all, at))
				fail_msg("%s lacks write %u", name, i);
		}
		bitmap_remove(all, NULL);
	}
	epochs_free(&e);
}

static void check_state(const struct run *r, uint64_t style)
{
	struct run after = { .sim = io_sim_clone(r->sim) };

	io_sim_power_loss(after.sim, style);
	assert_true(open_disks(&after));
	leftovers(&after, false);
	assert_true(is_there(&after, 0));
	assert_true(is_there(&after, 1) || r->deleting);
	assert_true(is_there(&after, 2) || !r->counts[2]);
	assert_false(is_there(&after, 3));
	for (unsigned i = 0; i < N_DISKS; i++)
		for (unsigned serial = 0; serial < 3; serial++)
			expect_covers(r, after.disk[i].node, serial);
	close_disks(&after);
	io_sim_free(after.sim);
}

static void crash_everywhere(const struct run *first, enum io_sim_crash when, uint64_t points,
			     unsigned step)
{
	for (uint64_t i = 1; i <= points; i += step) {
		struct run r = *first;

		r.sim = io_sim_clone(first->sim);
		io_sim_power_loss(r.sim, 1);
		io_sim_crash_at(r.sim, when, i);
		second_life(&r);
		assert_true(io_sim_dead(r.sim));
		for (uint64_t style = 0; style < STYLES; style++)
			check_state(&r, style + STYLES * i);
		io_sim_free(r.sim);
	}
}

static void test_power_loss(void **state)
{
	unsigned step = getenv("MERINO_SOAK") ? 1 : 7;
	struct run first = { .sim = io_sim_new(1) }, whole;
	uint64_t syncs, writes;

	first_life(&first);
	whole = first;
	whole.sim = io_sim_clone(first.sim);
	io_sim_power_loss(whole.sim, 0);		/* a clean close leaves nothing to lose */
	second_life(&whole);
	assert_true(whole.counts[0] && whole.counts[1] && whole.counts[2]);
	syncs = io_sim_sync_points(whole.sim);
	writes = io_sim_writes(whole.sim);
	check_state(&whole, 0);
	io_sim_free(whole.sim);
	print_message("%u sync points, %u writes\n", (unsigned)syncs, (unsigned)writes);
	crash_everywhere(&first, IO_SIM_CRASH_BEFORE_SYNC, syncs, 1);
	crash_everywhere(&first, IO_SIM_CRASH_AFTER_SYNC, syncs, 1);
	crash_everywhere(&first, IO_SIM_CRASH_AT_WRITE, writes, step);
	io_sim_free(first.sim);
}

static int setup(void **state)
{
	bitmaps_init();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_power_loss),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
