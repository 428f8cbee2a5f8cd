/* SPDX-License-Identifier: BSD-3-Clause */
/* test-view: views while eight writers write, zero and discard on the same 64 clusters.
 *
 * At the instant at which a view opens the whole disk is read: that is what each reader
 * of the view must find, whatever comes after.  In the simulation, where the order of
 * events is drawn, and on a real loop with its ring and its workers.
 */
#include "tests/unit/qcow2-rig.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <json-c/json.h>

#include "backup/view-int.h"
#include "bitmaps/bitmap.h"
#include "common/bytes.h"
#include "common/io-sim.h"
#include "common/loop.h"

#define CS 65536u
#define SIZE (64ull * CS - 3 * 512)	/* the last block is not whole */
#define WRITERS 8u
#define VIEWS 2u

struct world {
	struct io *io;
	struct loop *loop;		/* NULL: the simulation */
	struct io_sim *sim;
	struct node *disk;
	const char *kind;
	uint64_t rng;
	unsigned rounds;		/* of each viewer */
	unsigned live;			/* coroutines */
	bool stop;
	bool with_bitmap;
	struct bitmap *bitmap;		/* NULL: whole disk */
	uint64_t granularity;
	struct co_queue ended;
	unsigned opened, compared, aside;	/* aside: samples with clusters that stay */
};

static struct world w;

static uint64_t draw(uint64_t below)
{
	w.rng = w.rng * 6364136223846793005ull + 1442695040888963407ull;
	return (w.rng >> 33) % below;
}

static void pause_a_little(void)
{
	io_sleep(w.io, 1000 + draw(200000));
}

/* -- writers ---------------------------------------------------------------------------- */

static void write_once(uint8_t *buf)
{
	uint64_t unit = draw(3) ? 4096 : 512, off = draw(SIZE / unit) * unit;
	uint64_t len = (1 + draw(draw(4) ? 8 : 256)) * unit;
	int rc;

	if (draw(6) == 0) {		/* whole clusters, and a little around them */
		off = draw(SIZE / CS - 8) * CS;
		len = (2 + draw(6)) * CS + draw(2) * 4096;
		off += draw(2) * 8192;
	}
	len = len < SIZE - off ? len : SIZE - off;
	memset(buf, (int)(1 + draw(255)), len);
	gate_enter(&w.disk->gate);
	switch (draw(6)) {
	case 0:
		rc = node_zero(w.disk, off, len, draw(2) ? NODE_MAY_UNMAP : 0);
		break;
	case 1:
		rc = node_discard(w.disk, off, len);
		break;
	default:
		rc = node_write(w.disk, buf, off, len, 0);
	}
	gate_leave(&w.disk->gate);
	assert_int_equal(rc, 0);
}

static void writer(void *arg)
{
	uint8_t *buf = malloc(1u << 20);

	while (!w.stop) {
		write_once(buf);
		if (draw(4) == 0)
			pause_a_little();
	}
	free(buf);
	w.live--;
	co_queue_wake_all(&w.ended);
}

/* -- viewers ------------------------------------------------------------------------------ */

static bool in_bitmap(uint64_t off, uint64_t len, const uint8_t *wanted)
{
	for (uint64_t b = off / w.granularity; b <= (off + len - 1) / w.granularity; b++)
		if (!wanted[b])
			return false;
	return true;
}

static void compare(struct view *v, const uint8_t *then, uint64_t off, uint64_t len, const uint8_t *wanted,
		    bool released)
{
	uint8_t *buf = malloc(len);
	int rc = view_read(v, buf, off, len);

	if (!in_bitmap(off, len, wanted)) {
		assert_int_equal(rc, -EACCES);
	} else if (!(released && rc == -EACCES)) {
		if (rc || memcmp(buf, then + off, len)) {
			uint64_t i = 0;

			while (!rc && buf[i] == then[off + i])
				i++;
			fail_msg("%s: rc %d off %#lx len %#lx differs at %#lx: %02x is %02x", w.kind, rc, (long)off,
				 (long)len, (long)(off + i), then[off + i], buf[i]);
		}
		w.compared++;
	}
	free(buf);
}

/* Where the map says zeroes, there were zeroes. */
static void compare_map(struct view *v, const uint8_t *then, const uint8_t *wanted)
{
	struct extent e[64];
	struct extents x = { .v = e, .max = 64 };
	uint64_t off = draw(SIZE), at = off;
	int rc = view_map(v, off, SIZE - off, &x);

	if (rc == -EACCES)
		return;
	assert_int_equal(rc, 0);
	assert_true(x.n > 0);
	for (uint32_t i = 0; i < x.n; at += e[i++].len) {
		assert_true(in_bitmap(at, e[i].len, wanted));
		if (e[i].flags & EXTENT_ZERO)
			assert_true(bytes_are_zero(then + at, e[i].len));
	}
}

static struct view *open_now(uint8_t *then, uint8_t *wanted)
{
	struct view_options o = { .granularity = draw(2) ? 4096 : 16384, .log_dir = "/tmp" };
	struct error err = ERROR_INIT;
	struct view *v = NULL;

	w.granularity = 16384;
	o.granularity = 16384;
	assert_int_equal(gate_close(&w.disk->gate, 0), 0);
	assert_int_equal(node_read(w.disk, then, 0, SIZE), 0);
	memset(wanted, 1, SIZE / w.granularity + 1);
	if (w.bitmap) {
		bitmap_clear(w.bitmap, &err);
		for (unsigned i = 0; i < 20; i++)
			bitmap_set(w.bitmap, draw(SIZE), 1 + draw(200000));
		for (uint64_t b = 0; b * w.granularity < SIZE; b++) {
			uint64_t off = b * w.granularity, end = off + w.granularity;

			end = end < SIZE ? end : SIZE;
			wanted[b] = bitmap_next_dirty(w.bitmap, off, end) < end;
		}
		o.bitmap = w.bitmap;
	}
	if (view_open(w.disk, &o, &v, &err))
		fail_msg("view_open: %s", err.text);
	gate_open(&w.disk->gate);
	w.opened++;
	return v;
}

static void look(struct view *v, const uint8_t *then, const uint8_t *wanted)
{
	for (unsigned i = 0, n = (unsigned)draw(40); i < n; i++) {
		uint64_t off = draw(SIZE), len = 1 + draw(draw(2) ? 300000 : 5000);

		compare(v, then, off, len < SIZE - off ? len : SIZE - off, wanted, false);
		compare_map(v, then, wanted);
		w.aside += v->aside.held > 0;
		if (draw(3) == 0)
			pause_a_little();
	}
}

/* From the beginning to the end, giving back what was read; some of it out of turn. */
static void drain(struct view *v, const uint8_t *then, const uint8_t *wanted)
{
	struct view_stats s;

	for (uint64_t off = 0; off < SIZE; off += 5 * w.granularity) {
		uint64_t len = 5 * w.granularity < SIZE - off ? 5 * w.granularity : SIZE - off;
		uint64_t far = draw(SIZE / w.granularity) * w.granularity;

		compare(v, then, off, len, wanted, true);
		view_release(v, off, len);
		if (draw(8) == 0 && far > off)
			view_release(v, far, w.granularity < SIZE - far ? w.granularity : SIZE - far);
		if (draw(3) == 0)
			pause_a_little();
	}
	view_stats(v, &s);
	assert_true(s.memory <= 4 * view_memory + 65536);
}

static void viewer(void *arg)
{
	uint8_t *then = malloc(SIZE), *wanted = malloc(SIZE / 4096 + 1);

	for (unsigned i = 0; i < w.rounds; i++) {
		struct view *v = open_now(then, wanted);

		pause_a_little();
		look(v, then, wanted);
		if (draw(2))
			drain(v, then, wanted);
		assert_false(view_is_broken(v));
		view_close(v);
		pause_a_little();
	}
	free(then);
	free(wanted);
	w.live--;
	co_queue_wake_all(&w.ended);
}

/* -- worlds ---------------------------------------------------------------------------------- */

static void open_disk(void *arg)
{
	struct error err = ERROR_INIT;
	struct node_place where = { .graph = &graph, .io = w.io, .loop = w.loop };
	struct json_object *o;
	char text[512];

	if (!strcmp(w.kind, "raw"))
		snprintf(text, sizeof(text), "{'driver':'raw','discard':'unmap','file':{'driver':'file','filename':'%s'}}",
			 path_of("i.raw"));
	else
		snprintf(text, sizeof(text), "{'driver':'qcow2','discard':'unmap','crash-log':'off','file':{'driver':'file','filename':'%s'}%s}",
			 path_of("i.qcow2"), !strcmp(w.kind, "qcow2") ? ",'backing':null" : "");
	o = json_parse_text(text, &err);
	assert_non_null(o);
	if (node_open(&where, o, &w.disk, &err))
		fail_msg("%s", err.text);
	json_object_put(o);
}

static void make_images(void)
{
	struct error err = ERROR_INIT;
	uint8_t *base = malloc(SIZE);
	struct io_file *f;

	for (uint64_t i = 0; i < SIZE; i++)
		base[i] = (uint8_t)(i / CS % 5 ? 0xb0 + i / 4096 % 16 : 0);
	f = io_open(w.io, path_of("base.raw"), IO_RDWR | IO_CREATE | IO_TRUNC, &err);
	assert_int_equal(io_pwrite(f, base, SIZE - 5 * CS, 0, 0), 0);	/* shorter than the disk */
	io_file_unref(f);
	f = io_open(w.io, path_of("i.raw"), IO_RDWR | IO_CREATE | IO_TRUNC, &err);
	assert_int_equal(io_pwrite(f, base, SIZE, 0, 0), 0);
	io_file_unref(f);
	free(base);
	create_in(w.io, "i.qcow2", (struct qcow2_create){ .size = SIZE, .cluster_size = CS,
			.backing_file = !strcmp(w.kind, "overlay") ? "base.raw" : NULL, .backing_format = "raw" });
}

/* What stayed for a view is free again. */
static void no_leaks(void)
{
	struct error err = ERROR_INIT;
	struct qcow2_check c;

	if (!node_is_qcow2(w.disk))
		return;
	assert_true(w.aside > 0 || w.loop);	/* on a loop it is a matter of time */
	assert_int_equal(qcow2_meta_flush(w.disk), 0);
	assert_int_equal(qcow2_check(w.disk, &c, &err), 0);
	assert_int_equal(c.damaged, 0);
	assert_int_equal(c.leaked, 0);
}

static void run_all(void *arg)
{
	struct error err = ERROR_INIT;

	make_images();
	open_disk(NULL);
	if (w.with_bitmap)
		assert_int_equal(bitmap_add(w.disk, "b", 4096, false, true, &w.bitmap, &err), 0);
	w.live = WRITERS + VIEWS;
	for (unsigned i = 0; i < WRITERS; i++)
		co_start(writer, NULL);
	for (unsigned i = 0; i < VIEWS; i++)
		co_start(viewer, NULL);
	while (w.live > WRITERS)
		co_queue_wait(&w.ended);
	w.stop = true;
	while (w.live)
		co_queue_wait(&w.ended);
	assert_true(w.opened == VIEWS * w.rounds);
	assert_true(w.compared > 0);
	if (w.bitmap)
		assert_int_equal(bitmap_remove(w.bitmap, &err), 0);
	w.bitmap = NULL;
	no_leaks();
	node_unref(w.disk);
	w.disk = NULL;
	if (w.loop)
		loop_stop(w.loop);
}

static bool soak(void)
{
	return getenv("MERINO_SOAK");
}

static void in_simulation(const char *kind, bool bitmap)
{
	for (uint64_t seed = 1; seed <= (soak() ? 200 : 6); seed++) {
		w = (struct world){ .with_bitmap = bitmap, .kind = kind, .rng = seed, .rounds = 4 };
		w.sim = io_sim_new(seed);
		w.io = io_sim_io(w.sim);
		io_sim_start(w.sim, run_all, NULL);
		io_sim_run(w.sim);
		assert_null(w.disk);
		io_sim_free(w.sim);
	}
}

static void begin_on_loop(struct loop_msg *m)
{
	co_start(run_all, NULL);
}

static void on_loop(const char *kind, bool bitmap)
{
	struct error err = ERROR_INIT;
	struct loop_msg begin = { .fn = begin_on_loop };

	w = (struct world){ .with_bitmap = bitmap, .kind = kind, .rng = 77, .rounds = soak() ? 2000 : 12 };
	w.loop = loop_new("test", &err);
	assert_non_null(w.loop);
	w.io = loop_io(w.loop);
	loop_post(w.loop, &begin);
	loop_run(w.loop);
	assert_null(w.disk);
	loop_free(w.loop);
}

static void test_sim_raw(void **state)
{
	in_simulation("raw", false);
}

static void test_sim_qcow2(void **state)
{
	in_simulation("qcow2", false);
}

static void test_sim_overlay(void **state)
{
	in_simulation("overlay", false);
}

static void test_sim_bitmap(void **state)
{
	in_simulation("overlay", true);
}

static void test_loop_raw(void **state)
{
	on_loop("raw", false);
}

static void test_loop_overlay(void **state)
{
	on_loop("overlay", true);
}

/* -- the edges: each in a coroutine on a loop ------------------------------------------------ */

static void (*edge)(void);

static void edge_run(void *arg)
{
	edge();
	loop_stop(w.loop);
}

static void edge_begin(struct loop_msg *m)
{
	co_start(edge_run, NULL);
}

static void on_edge(void (*fn)(void))
{
	struct error err = ERROR_INIT;
	struct loop_msg begin = { .fn = edge_begin };

	w = (struct world){ .kind = "raw", .rng = 5 };
	edge = fn;
	w.loop = loop_new("test", &err);
	assert_non_null(w.loop);
	w.io = loop_io(w.loop);
	loop_post(w.loop, &begin);
	loop_run(w.loop);
	loop_free(w.loop);
}

static struct node *open_text(const char *text)
{
	struct error err = ERROR_INIT;
	struct node_place where = { .graph = &graph, .io = w.io, .loop = w.loop };
	struct json_object *o = json_parse_text(text, &err);
	struct node *n = NULL;

	assert_non_null(o);
	if (node_open(&where, o, &n, &err))
		fail_msg("%s", err.text);
	json_object_put(o);
	return n;
}

/* A raw disk of SIZE_ bytes, the first DATA of them 0x11. */
static struct node *raw_disk(uint64_t size, uint64_t data)
{
	struct error err = ERROR_INIT;
	char text[512], *path = path_of("edge.raw");
	struct io_file *f = io_open(w.io, path, IO_RDWR | IO_CREATE | IO_TRUNC, &err);
	uint8_t *buf = malloc(1u << 20);

	assert_non_null(f);
	memset(buf, 0x11, 1u << 20);
	for (uint64_t off = 0; off < data; off += 1u << 20)
		assert_int_equal(io_pwrite(f, buf, 1u << 20, off, 0), 0);
	assert_int_equal(io_truncate(f, size), 0);
	io_file_unref(f);
	free(buf);
	snprintf(text, sizeof(text), "{'driver':'raw','discard':'unmap','file':{'driver':'file','filename':'%s'}}", path);
	return open_text(text);
}

static struct view *view_of(struct node *n, struct view_options o)
{
	struct error err = ERROR_INIT;
	struct view *v = NULL;

	if (!o.log_dir)
		o.log_dir = dir;
	if (view_open(n, &o, &v, &err))
		fail_msg("%s", err.text);
	return v;
}

static bool view_is(struct view *v, uint64_t off, uint64_t len, uint8_t byte)
{
	uint8_t *buf = malloc(len);
	bool same = view_read(v, buf, off, len) == 0;

	for (uint64_t i = 0; i < len; i++)
		same &= buf[i] == byte;
	free(buf);
	return same;
}

static void fill(struct node *n, uint64_t off, uint64_t len, uint8_t byte)
{
	uint8_t *buf = malloc(65536);

	memset(buf, byte, 65536);
	for (; len; off += 65536, len -= 65536)
		assert_int_equal(node_write(n, buf, off, 65536, 0), 0);
	free(buf);
}

static struct view_stats stats_of(struct view *v)
{
	struct view_stats s;

	view_stats(v, &s);
	return s;
}

/* A disk of a TiB with little in it: what is not there costs nothing. */
static void huge(void)
{
	const uint64_t tib = 1ull << 40;
	struct node *n = raw_disk(tib, 8u << 20);
	uint64_t begun = loop_now();
	struct view *v = view_of(n, (struct view_options){ 0 });

	print_message("a view of 1 TiB opens in %llu us\n", (unsigned long long)(loop_now() - begun) / 1000);
	assert_true(stats_of(v).memory < 4096);
	assert_int_equal(node_zero(n, 0, tib, NODE_MAY_UNMAP), 0);
	assert_true(view_is(v, 0, 8u << 20, 0x11));
	assert_true(view_is(v, tib - 4096, 4096, 0));
	assert_true(view_is(v, 8u << 20, 1u << 20, 0));
	assert_true(stats_of(v).memory < (5u << 20));
	view_release(v, 0, tib);
	assert_true(stats_of(v).memory <= VIEW_PIECE + 4096);
	view_close(v);
	node_unref(n);
}

/* The largest disk there may be. */
static void largest(void)
{
	const uint64_t size = INT64_MAX - 511;
	struct node *n = open_text("{'driver':'null-co','size':9223372036854775296,'read-zeroes':true}");
	struct view *v = view_of(n, (struct view_options){ 0 });
	uint8_t b[512] = { 1 };
	struct extent e[4];
	struct extents x = { .v = e, .max = 4 };

	assert_int_equal(n->size, size);
	assert_int_equal(node_write(n, b, size - 512, 512, 0), 0);
	assert_int_equal(node_zero(n, 0, size, 0), 0);
	assert_int_equal(view_read(v, b, size - 512, 512), 0);
	assert_int_equal(view_read(v, b, size - 511, 512), -EINVAL);
	assert_int_equal(view_map(v, 0, size, &x), 0);
	assert_int_equal(x.total, size);
	view_release(v, 0, size);
	assert_int_equal(view_read(v, b, 0, 512), -EACCES);
	assert_true(stats_of(v).memory < VIEW_PIECE + 65536);
	view_close(v);
	node_unref(n);
}

static uint64_t file_bytes(const struct view *v)
{
	struct stat st;

	assert_int_equal(fstat(v->log.file->fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void settle(struct view *v)
{
	while (v->inside)
		io_sleep(w.io, 1000000);
}

/* What was read is given back, block by block, and the log is empty in the end. */
static void gives_back(void)
{
	const uint64_t size = 16u << 20;
	struct node *n = raw_disk(size, size);
	struct view *v = view_of(n, (struct view_options){ .wait_ns = 0 });
	uint64_t before;

	fill(n, 0, size, 0x22);
	settle(v);
	before = file_bytes(v);
	assert_in_range(before, 12u << 20, 16u << 20);
	assert_in_range(stats_of(v).stored, 12u << 20, 16u << 20);
	assert_int_equal(stats_of(v).kept, size);
	for (uint64_t off = 0; off < 8u << 20; off += 8192) {
		assert_true(view_is(v, off, 4096, 0x11));
		view_release(v, off, 4096);
	}
	settle(v);
	assert_true(file_bytes(v) <= before - (4u << 20) + 65536);
	assert_true(view_is(v, 4096, 4096, 0x11));
	view_release(v, 0, size);
	settle(v);
	assert_int_equal(stats_of(v).stored, 0);
	assert_int_equal(file_bytes(v), 0);
	fill(n, 0, size, 0x33);
	assert_int_equal(stats_of(v).kept, size);
	view_close(v);
	node_unref(n);
}

/* Whatever happens to the store: the guest's writes succeed, and the view says so. */
static void store_is_full_at(struct view_options o)
{
	const uint64_t size = 32u << 20;
	struct node *n = raw_disk(size, size);
	struct view *v;
	uint8_t b[512];

	o.wait_ns = 2000000;
	v = view_of(n, o);
	fill(n, 0, size, 0x22);
	assert_true(view_is_broken(v));
	assert_true(*view_broken_why(v));
	assert_int_equal(view_read(v, b, 0, 512), -EIO);
	assert_int_equal(view_read(v, b, size - 512, 512), -EIO);
	settle(v);
	assert_int_equal(file_bytes(v), 0);
	assert_true(stats_of(v).memory < 4 * VIEW_PIECE);
	view_close(v);
	node_unref(n);
}

static void log_has_a_limit(void)
{
	store_is_full_at((struct view_options){ .log_max = 4u << 20 });
}

static void file_system_is_full(void)
{
	store_is_full_at((struct view_options){ .log_dir = path_of("small") });
}

/* A log that has a limit is enough for a reader who keeps up. */
static void log_has_room_again(void)
{
	const uint64_t size = 32u << 20;
	struct node *n = raw_disk(size, size);
	struct view *v = view_of(n, (struct view_options){ .log_max = 4u << 20, .wait_ns = 100000000000ull });

	for (uint64_t off = 0; off < size; off += 2u << 20) {
		fill(n, off, 2u << 20, 0x22);
		assert_true(view_is(v, off, 2u << 20, 0x11));
		view_release(v, off, 2u << 20);
	}
	assert_false(view_is_broken(v));
	view_close(v);
	node_unref(n);
}

/* Discards are hints: one that had megabytes to keep is not done. */
static void discards(void)
{
	const uint64_t size = 16u << 20;
	struct node *n = raw_disk(size, size);
	struct view *v = view_of(n, (struct view_options){ 0 });
	uint8_t b[512];

	assert_int_equal(node_discard(n, 0, 65536), 0);
	assert_int_equal(node_discard(n, 1u << 20, 15u << 20), 0);
	assert_int_equal(node_read(n, b, 0, 512), 0);
	assert_int_equal(b[0], 0);
	assert_int_equal(node_read(n, b, 8u << 20, 512), 0);
	assert_int_equal(b[0], 0x11);
	assert_true(stats_of(v).kept <= 2u << 20);
	assert_true(view_is(v, 0, size, 0x11));
	view_release(v, 0, size);
	assert_int_equal(node_discard(n, 1u << 20, 15u << 20), 0);
	assert_int_equal(node_read(n, b, 8u << 20, 512), 0);
	assert_int_equal(b[0], 0);
	view_close(v);
	node_unref(n);
}

/* A write to the file below the raw node is seen, too; the file may grow, not shrink. */
static void below(void)
{
	struct error err = ERROR_INIT;
	struct node *n = raw_disk(4u << 20, 4u << 20);
	struct view *v = view_of(n, (struct view_options){ 0 });

	fill(n->child[CHILD_FILE], 65536, 65536, 0x22);
	assert_true(view_is(v, 0, 4u << 20, 0x11));
	assert_int_equal(node_truncate(n, 2u << 20, &err), -EBUSY);
	assert_int_equal(node_truncate(n, 8u << 20, &err), 0);
	fill(n, 4u << 20, 65536, 0x22);
	fill(n, (4u << 20) - 65536, 65536, 0x33);
	assert_true(view_is(v, 0, 4u << 20, 0x11));
	assert_int_equal(view_size(v), 4u << 20);
	view_close(v);
	assert_int_equal(node_truncate(n, 2u << 20, &err), 0);
	node_unref(n);
}

static void test_huge(void **state)
{
	on_edge(huge);
}

static void test_largest(void **state)
{
	on_edge(largest);
}

static void test_gives_back(void **state)
{
	on_edge(gives_back);
}

static void test_log_max(void **state)
{
	on_edge(log_has_a_limit);
	on_edge(log_has_room_again);
}

static void test_discards(void **state)
{
	on_edge(discards);
}

static void test_below(void **state)
{
	on_edge(below);
}

static bool own_mounts(void)
{
	char map[64];
	int fd;

	if (!unshare(CLONE_NEWNS))
		return !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
	snprintf(map, sizeof(map), "0 %u 1", getuid());
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) || (fd = open("/proc/self/uid_map", O_WRONLY)) < 0)
		return false;
	return write(fd, map, strlen(map)) == (ssize_t)strlen(map) && !close(fd);
}

/* In a process with mounts of its own, where that is allowed. */
static void test_no_space(void **state)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		if (!own_mounts())
			_exit(77);
		mkdir(path_of("small"), 0700);
		if (mount("none", path_of("small"), "tmpfs", 0, "size=4m"))
			_exit(77);
		on_edge(file_system_is_full);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sim_raw),
		cmocka_unit_test(test_sim_qcow2),
		cmocka_unit_test(test_sim_overlay),
		cmocka_unit_test(test_sim_bitmap),
		cmocka_unit_test(test_loop_raw),
		cmocka_unit_test(test_loop_overlay),
		cmocka_unit_test(test_huge),
		cmocka_unit_test(test_largest),
		cmocka_unit_test(test_gives_back),
		cmocka_unit_test(test_log_max),
		cmocka_unit_test(test_no_space),
		cmocka_unit_test(test_discards),
		cmocka_unit_test(test_below),
	};

	bitmaps_init();
	view_memory = VIEW_PIECE;	/* so that the log is written */
	return cmocka_run_group_tests(tests, dir_setup, dir_teardown);
}
