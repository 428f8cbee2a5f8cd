/* SPDX-License-Identifier: BSD-3-Clause */
/* test-view-order: who comes in between, one case after the other.
 *
 * The disk is in memory, and its reads and maps wait where a test wants them to: what
 * test-view.c meets by chance is made to happen here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>

#include "backup/view-int.h"
#include "common/bytes.h"
#include "common/io-sim.h"

#define SIZE (8u << 20)
#define MIB (1u << 20)
#define BLOCK 4096u

static uint8_t disk[SIZE];
static unsigned held_reads, held_maps;	/* the next ones wait */
static unsigned reads;			/* that the disk has seen */
static struct co_queue waiting;
static unsigned running;		/* guests that have not ended */
static struct io *io;
static struct graph graph;
static struct node node;

/* -- the disk ----------------------------------------------------------------------------- */

/* It was read, and the answer is late. */
static int disk_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	memcpy(buf, disk + off, len);
	reads++;
	if (held_reads) {
		held_reads--;
		co_queue_wait(&waiting);
	}
	return 0;
}

static int disk_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	memcpy(disk + off, buf, len);
	return 0;
}

static int disk_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	memset(disk + off, 0, len);
	return 0;
}

static int disk_discard(struct node *n, uint64_t off, uint64_t len)
{
	return disk_zero(n, off, len, 0);
}

/* The question is late: the answer is of then. */
static int disk_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	if (held_maps) {
		held_maps--;
		co_queue_wait(&waiting);
	}
	for (uint64_t at = off, now; at < off + len; at += now) {
		now = min_u64(BLOCK - at % BLOCK, off + len - at);
		if (!extents_add(x, now, bytes_are_zero(disk + at, now) ? EXTENT_ZERO | EXTENT_HOLE : 0, 1))
			break;
	}
	return 0;
}

static const struct node_driver memory = {
	.name = "memory", .read = disk_read, .write = disk_write, .zero = disk_zero,
	.discard = disk_discard, .map = disk_map,
};

/* -- guests ---------------------------------------------------------------------------------- */

struct guest {
	char what;			/* w, z, d */
	uint64_t off, len;
};

static void guest_run(void *arg)
{
	const struct guest *g = arg;
	static const uint8_t new[MIB] = { [0 ... MIB - 1] = 0x22 };
	int rc;

	if (g->what == 'w')
		rc = node_write(&node, new, g->off, g->len, 0);
	else if (g->what == 'z')
		rc = node_zero(&node, g->off, g->len, 0);
	else
		rc = node_discard(&node, g->off, g->len);
	assert_int_equal(rc, 0);
	running--;
}

#define guest(w, o, l) guest_start(&(struct guest){ .what = (w), .off = (o), .len = (l) })

static void guest_start(struct guest *g)
{
	running++;
	co_start(guest_run, g);
	io_sleep(io, 100000000);
}

static void let_go(void)
{
	co_queue_wake_all(&waiting);
	io_sleep(io, 100000000);
}

static struct view *open_view(uint64_t log_max)
{
	struct view_options o = { .log_dir = "/log", .log_max = log_max };
	struct error err = ERROR_INIT;
	struct view *v = NULL;

	if (view_open(&node, &o, &v, &err))
		fail_msg("%s", err.text);
	return v;
}

static void is_as_it_was(struct view *v, uint64_t off, uint64_t len)
{
	uint8_t *buf = malloc(len);

	assert_int_equal(view_read(v, buf, off, len), 0);
	for (uint64_t i = 0; i < len; i++)
		if (buf[i] != 0x11)
			fail_msg("%#lx is %02x", (long)(off + i), buf[i]);
	free(buf);
}

/* -- what happens ---------------------------------------------------------------------------- */

/* A discard that keeps the first of 15 blocks gives way for want of room, while a write to
 * them and the next ones waits for room itself. */
static void gave_way(void)
{
	struct view *v = open_view(MIB);

	guest('w', 4 * MIB, MIB);		/* goes to the file, which is full then */
	guest('w', 5 * MIB, MIB);
	guest('w', 6 * MIB, MIB - BLOCK);	/* one block has room in memory */
	held_reads = 1;
	guest('d', 0, 15 * BLOCK);
	guest('w', 0, 30 * BLOCK);
	assert_int_equal(running, 2);
	let_go();
	assert_int_equal(running, 1);		/* the write waits */
	assert_int_equal(disk[0], 0x11);	/* and the discard was not done */
	view_release(v, 4 * MIB, MIB);
	io_sleep(io, 100000000);
	assert_int_equal(running, 0);
	assert_int_equal(disk[0], 0x22);
	is_as_it_was(v, 0, MIB);
	view_close(v);
}

/* A write asks for the map; before it is answered another one keeps and zeroes a block. */
static void map_comes_late(void)
{
	struct view *v = open_view(0);

	held_maps = 1;
	guest('w', 0, MIB);
	guest('z', 0, BLOCK);
	assert_int_equal(disk[0], 0);
	assert_int_equal(running, 1);
	let_go();
	assert_int_equal(running, 0);
	is_as_it_was(v, 0, MIB);
	view_close(v);
}

/* The reader is done with a block while a write keeps it. */
static void released_meanwhile(void)
{
	struct view *v = open_view(0);
	struct view_stats s;
	uint8_t b[BLOCK];

	held_reads = 1;
	guest('w', 0, 2 * BLOCK);
	view_release(v, 0, BLOCK);
	let_go();
	assert_int_equal(running, 0);
	assert_int_equal(view_read(v, b, 0, BLOCK), -EACCES);
	is_as_it_was(v, BLOCK, BLOCK);
	view_stats(v, &s);
	assert_int_equal(s.kept, BLOCK);
	view_release(v, BLOCK, BLOCK);
	guest('w', MIB, MIB);			/* the log is empty, and this fits its first MiB */
	assert_int_equal(v->log.n, 1);
	view_close(v);
}

/* Short runs that were kept do not cut a read of the disk, long ones do, nor does it go on
 * where nothing but those is left. */
static void reads_over_what_was_kept(void)
{
	struct view *v = open_view(0);

	for (unsigned i = 3; i < 64; i += 4)
		guest('w', i * BLOCK, BLOCK);
	reads = 0;
	is_as_it_was(v, 0, 64 * BLOCK);
	assert_int_equal(reads, 1);
	is_as_it_was(v, 3 * BLOCK, BLOCK);
	is_as_it_was(v, 63 * BLOCK, BLOCK);
	assert_int_equal(reads, 1);
	guest('w', MIB, 17 * BLOCK);
	reads = 0;
	is_as_it_was(v, MIB - BLOCK, 19 * BLOCK);
	assert_int_equal(reads, 2);
	is_as_it_was(v, MIB - BLOCK, 18 * BLOCK);
	assert_int_equal(reads, 3);
	view_close(v);
}

/* A read passes what was kept; before it is answered the guest writes to the rest, too. */
static void read_over_meanwhile_run(void *arg)
{
	is_as_it_was(arg, 0, 8 * BLOCK);
	running--;
}

static void written_while_read_over(void)
{
	struct view *v = open_view(0);

	guest('w', 2 * BLOCK, BLOCK);
	held_reads = 1;
	running++;
	co_start(read_over_meanwhile_run, v);
	guest('w', 0, 4 * BLOCK);
	guest('z', 5 * BLOCK, BLOCK);
	assert_int_equal(running, 1);
	let_go();
	assert_int_equal(running, 0);
	view_close(v);
}

/* The reader asks for the map; before it is answered a block is kept and zeroed. */
static struct extent answer[8];
static struct extents answers;

static void ask(void *arg)
{
	answers = (struct extents){ .v = answer, .max = 8 };
	assert_int_equal(view_map(arg, 0, MIB, &answers), 0);
	running--;
}

static void asked_meanwhile(void)
{
	struct view *v = open_view(0);

	held_maps = 1;
	running++;
	co_start(ask, v);
	guest('z', 0, BLOCK);
	assert_int_equal(disk[0], 0);
	assert_int_equal(running, 1);
	let_go();
	assert_int_equal(running, 0);
	for (uint32_t i = 0; i < answers.n; i++)
		assert_false(answer[i].flags & EXTENT_ZERO);
	assert_int_equal(answers.total, MIB);
	view_close(v);
}

/* -- each in a coroutine of a simulation ------------------------------------------------------- */

static void in_simulation(void (*fn)(void))
{
	struct io_sim *sim = io_sim_new(1);

	io = io_sim_io(sim);
	memset(disk, 0x11, sizeof(disk));
	node = (struct node){ .name = "disk", .driver = &memory, .graph = &graph, .io = io,
			      .size = SIZE, .refs = 1, .discard_unmap = true };
	io_sim_start(sim, (void (*)(void *))fn, NULL);
	io_sim_run(sim);
	assert_int_equal(running, 0);
	assert_int_equal(node.viewed, 0);
	io_sim_free(sim);
}

static void test_gave_way(void **state)
{
	in_simulation(gave_way);
}

static void test_map_comes_late(void **state)
{
	in_simulation(map_comes_late);
}

static void test_released_meanwhile(void **state)
{
	in_simulation(released_meanwhile);
}

static void test_asked_meanwhile(void **state)
{
	in_simulation(asked_meanwhile);
}

static void test_reads_over_what_was_kept(void **state)
{
	in_simulation(reads_over_what_was_kept);
}

static void test_written_while_read_over(void **state)
{
	in_simulation(written_while_read_over);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_gave_way),
		cmocka_unit_test(test_map_comes_late),
		cmocka_unit_test(test_released_meanwhile),
		cmocka_unit_test(test_asked_meanwhile),
		cmocka_unit_test(test_reads_over_what_was_kept),
		cmocka_unit_test(test_written_while_read_over),
	};

	graph_init(&graph);
	view_memory = VIEW_PIECE / 2;	/* so that the log is written */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
