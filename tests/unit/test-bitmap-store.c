/* SPDX-License-Identifier: BSD-3-Clause */
/* Bitmaps in qcow2 images, with QEMU's tools as the oracle: what we store they
 * read, what they store we load, nobody trusts what was in use, nothing leaks.
 */
#include "qcow2-rig.h"

#include <errno.h>
#include <json-c/json.h>

#include "bitmaps/bitmap.h"
#include "bitmaps/store-dir.h"

#define MB (1ull << 20)

static struct node_use use;

static struct node *open_rw(const char *name)
{
	struct error err = ERROR_INIT;
	struct node *n = open_image(name, "");

	if (node_use_add(&use, n, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, &err, "test"))
		fail_msg("%s", err.text);
	return n;
}

static struct node *open_ro(const char *name)
{
	return open_image(name, "'read-only':true");
}

static void close_node(struct node *n)
{
	if (use.node == n)
		node_use_drop(&use);
	use = (struct node_use){ 0 };
	node_unref(n);
}

static struct bitmap *add(struct node *n, const char *name, uint64_t g, bool disabled)
{
	struct error err = ERROR_INIT;
	struct bitmap *b = NULL;

	if (bitmap_add(n, name, g, true, disabled, &b, &err))
		fail_msg("%s", err.text);
	return b;
}

static struct bitmap *get(struct node *n, const char *name)
{
	struct error err = ERROR_INIT;
	struct bitmap *b = bitmap_find(n, name, &err);

	if (!b)
		fail_msg("%s", err.text);
	return b;
}

static void rm(struct node *n, const char *name)
{
	struct error err = ERROR_INIT;

	if (bitmap_remove(get(n, name), &err))
		fail_msg("%s", err.text);
}

static void wr(struct node *n, uint64_t off, size_t len)
{
	uint8_t *buf = malloc(len);

	memset(buf, 0xa5, len);
	assert_int_equal(node_write(n, buf, off, len, 0), 0);
	free(buf);
}

/* What B says is dirty: "off+len off+len …", in granules. */
static char *dirty(const struct bitmap *b)
{
	static char text[4][1024];
	static unsigned i;
	uint64_t off = 0, end, g = bitmap_granularity(b);
	char *t = text[i = (i + 1) % 4];
	size_t n = 0;

	t[0] = 0;
	while ((off = bitmap_next_dirty(b, off, b->size)) < b->size && n < 900) {
		end = bitmap_next_clean(b, off, b->size);
		n += (size_t)snprintf(t + n, 1024 - n, "%s%llu+%llu", n ? " " : "",
				      (unsigned long long)(off / g),
				      (unsigned long long)((end - off + g - 1) / g));
		off = end;
	}
	return t;
}

/* The bitmaps as QEMU sees them: "name:granularity:flags …"; "" when none. */
static char *qemu_sees(const char *name)
{
	static char text[2048];
	struct json_object *o, *list = NULL;
	size_t n = 0;

	text[0] = 0;
	sh_ok("qemu-img info -U --output=json %s >info.json", name);
	o = json_object_from_file(path_of("info.json"));
	assert_non_null(o);
	if (json_pointer_get(o, "/format-specific/data/bitmaps", &list))
		list = NULL;
	for (size_t i = 0; list && i < json_object_array_length(list); i++) {
		struct json_object *b = json_object_array_get_idx(list, i);
		struct json_object *flags = json_object_object_get(b, "flags");

		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s:%lld", i ? " " : "",
			json_object_get_string(json_object_object_get(b, "name")),
			(long long)json_object_get_int64(json_object_object_get(b, "granularity")));
		for (size_t k = 0; k < json_object_array_length(flags); k++)
			n += (size_t)snprintf(text + n, sizeof(text) - n, ":%s",
				json_object_get_string(json_object_array_get_idx(flags, k)));
	}
	json_object_put(o);
	return text;
}

/* What QEMU exports as the dirty bitmap B of the image: "off+len …" in bytes. */
static char *qemu_dirty(const char *name, const char *b)
{
	static char text[2048];
	struct json_object *list;
	size_t n = 0;

	sh_ok("qemu-img bitmap --disable %s %s; "
	      "qemu-nbd -r -f qcow2 -B %s -k $PWD/s --fork --pid-file=$PWD/pid %s && "
	      "nbdinfo --json --map=qemu:dirty-bitmap:%s nbd+unix:///?socket=$PWD/s >map.json; "
	      "r=$?; kill $(cat pid); for i in 1 2 3 4 5 6 7 8 9; do test -e pid && sleep 0.1; done; "
	      "exit $r", name, b, b, name, b);
	list = json_object_from_file(path_of("map.json"));
	assert_non_null(list);
	text[0] = 0;
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *e = json_object_array_get_idx(list, i);

		if (json_object_get_int(json_object_object_get(e, "type")) & 1)
			n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%lld+%lld", n ? " " : "",
				(long long)json_object_get_int64(json_object_object_get(e, "offset")),
				(long long)json_object_get_int64(json_object_object_get(e, "length")));
	}
	json_object_put(list);
	return text;
}

static void check(const char *name)
{
	sh_ok("qemu-img check -q %s", name);
}

static void test_round_trip(void **state)
{
	struct error err = ERROR_INIT;
	struct json_object *list;
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 a 64M");
	n = open_rw("a");
	assert_null(bitmaps_query_stored(n));
	add(n, "day", 0, false);
	add(n, "old", 512, true);
	assert_int_equal(bitmap_add(n, "temp", 0, false, false, NULL, &err), 0);
	wr(n, 65535, 2);
	bitmap_set_enabled(get(n, "old"), true, &err);
	wr(n, 10 * MB, 1 * MB + 1);
	bitmap_set_enabled(get(n, "old"), false, &err);
	wr(n, 64 * MB - 1, 1);
	assert_string_equal(qemu_sees("a"), "");	/* added bitmaps are in memory only */
	close_node(n);
	check("a");
	assert_string_equal(qemu_sees("a"), "day:65536:auto old:512");

	n = open_rw("a");
	assert_string_equal(qemu_sees("a"), "day:65536:in-use:auto old:512:in-use");
	list = bitmaps_query_stored(n);
	assert_string_equal(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PLAIN),
		"[{\"flags\":[\"in-use\",\"auto\"],\"name\":\"day\",\"granularity\":65536},"
		"{\"flags\":[\"in-use\"],\"name\":\"old\",\"granularity\":512}]");
	json_object_put(list);
	assert_string_equal(dirty(get(n, "day")), "0+2 160+17 1023+1");
	assert_string_equal(dirty(get(n, "old")), "20480+2049");
	assert_int_equal(get(n, "old")->dirty, 2049);
	assert_true(get(n, "day")->enabled && !get(n, "old")->enabled);
	wr(n, 30 * MB, 1);
	close_node(n);
	check("a");
	assert_string_equal(qemu_dirty("a", "day"), "0+131072 10485760+1114112 31457280+65536 "
			    "67043328+65536");
	assert_string_equal(qemu_dirty("a", "old"), "10485760+1049088");
}

static void test_from_qemu(void **state)
{
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 -o cluster_size=4k b 33M && "
	      "qemu-img bitmap --add -g 4096 b x && qemu-img bitmap --add -g 1M b y && "
	      "qemu-io -f qcow2 -c 'write 4095 2' -c 'write 20M 100k' -c 'write 34598912 4096' b && "
	      "qemu-img bitmap --disable b y && qemu-io -f qcow2 -c 'write 8M 1' b");
	n = open_ro("b");
	assert_string_equal(dirty(get(n, "x")), "0+2 2048+1 5120+25 8447+1");
	assert_string_equal(dirty(get(n, "y")), "0+1 20+1 32+1");
	assert_true(get(n, "x")->enabled && !get(n, "y")->enabled);
	assert_true(get(n, "x")->read_only);
	close_node(n);
	n = open_rw("b");
	wr(n, 1 * MB, 1);
	assert_string_equal(dirty(get(n, "x")), "0+2 256+1 2048+1 5120+25 8447+1");
	assert_string_equal(dirty(get(n, "y")), "0+1 20+1 32+1");
	close_node(n);
	check("b");
	sh_ok("qemu-io -f qcow2 -c 'write 2M 1' b");
	n = open_ro("b");
	assert_string_equal(dirty(get(n, "x")), "0+2 256+1 512+1 2048+1 5120+25 8447+1");
	close_node(n);
}

/* Clusters of zeroes, of ones and of both; more table than one cluster; odd tails. */
static void test_shapes(void **state)
{
	static const struct { const char *cs; uint64_t size, g; } v[] = {
		{ "512", 1 << 27, 512 }, { "4k", (1ull << 31) + 512, 512 }, { "64k", 1 << 20, 512 },
		{ "2M", 1ull << 40, 4096 }, { "64k", 512, 65536 }, { "512", 1 << 27, 1ull << 31 },
	};

	for (unsigned i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
		struct node *n;
		struct bitmap *b;
		uint64_t eighth = v[i].size / 8;
		char was[1024];

		sh_ok("rm -f s && qemu-img create -q -f qcow2 -o cluster_size=%s s %llu", v[i].cs,
		      (unsigned long long)v[i].size);
		n = open_rw("s");
		b = add(n, "b", v[i].g, true);
		bitmap_set(b, eighth, 3 * eighth);
		bitmap_set(b, v[i].size - 1, 1);
		add(n, "all", v[i].g, true);
		bitmap_set(get(n, "all"), 0, v[i].size);
		add(n, "none", v[i].g, true);
		strcpy(was, dirty(b));
		close_node(n);
		check("s");
		n = open_rw("s");
		b = get(n, "b");
		assert_string_equal(dirty(b), was);
		assert_int_equal(get(n, "none")->dirty, 0);
		assert_int_equal(get(n, "all")->dirty, DIV_ROUND_UP(v[i].size, v[i].g));
		bitmap_reset(get(n, "all"), 0, v[i].size);
		close_node(n);
		check("s");
		n = open_ro("s");
		assert_int_equal(get(n, "all")->dirty, 0);
		assert_string_equal(dirty(get(n, "b")), was);
		close_node(n);
	}
}

static void test_unclean(void **state)
{
	struct error err = ERROR_INIT;
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 u 8M && qemu-img bitmap --add u x && "
	      "qemu-img bitmap --add --disable u y");
	n = open_rw("u");
	wr(n, 0, 1);
	assert_int_equal(node_flush(n), 0);
	sh_ok("cp u dead");				/* as after kill -9 */
	close_node(n);
	assert_string_equal(qemu_sees("dead"), "x:65536:in-use:auto y:65536:in-use");
	n = open_ro("dead");
	assert_true(get(n, "x")->inconsistent && get(n, "y")->inconsistent);
	close_node(n);
	n = open_rw("dead");
	assert_true(get(n, "x")->persistent && !get(n, "x")->enabled);
	assert_true(bitmap_clear(get(n, "x"), &err) < 0);
	assert_true(bitmap_add(n, "x", 0, true, false, NULL, &err) < 0);
	wr(n, 1 * MB, 1);
	rm(n, "x");
	assert_string_equal(qemu_sees("dead"), "y:65536:in-use");
	add(n, "x", 0, false);
	close_node(n);
	assert_string_equal(qemu_sees("dead"), "y:65536:in-use x:65536:auto");
	check("dead");
}

static void test_read_only(void **state)
{
	struct error err = ERROR_INIT;
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 r 8M && qemu-img bitmap --add r x && cp r r.was");
	n = open_ro("r");
	assert_true(bitmap_clear(get(n, "x"), &err) < 0 && bitmap_remove(get(n, "x"), &err) < 0);
	assert_string_equal(err.text, "Bitmap 'x' is readonly and cannot be modified");
	assert_true(bitmap_add(n, "p", 0, true, false, NULL, &err) < 0);
	assert_non_null(strstr(err.text, "Can't make bitmap 'p' persistent in '"));
	assert_int_equal(bitmap_add(n, "t", 0, false, false, NULL, &err), 0);
	close_node(n);
	sh_ok("cmp r r.was");
}

static void test_unchanged(void **state)
{
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 c 8M && qemu-img bitmap --add c x && "
	      "qemu-io -f qcow2 -c 'write 0 64k' c && cp c c.was");
	n = open_rw("c");
	wr(n, 0, 512);				/* dirty before: no bit changes */
	close_node(n);
	sh_ok("qemu-io -f qcow2 -r -c 'read -P 0xa5 0 512' c && "
	      "test $(stat -c %%s c) = $(stat -c %%s c.was)");
	check("c");
	assert_string_equal(qemu_sees("c"), "x:65536:auto");
	n = open_rw("c");
	assert_int_equal(bitmap_set_enabled(get(n, "x"), false, NULL), 0);
	close_node(n);
	assert_string_equal(qemu_sees("c"), "x:65536");
	n = open_ro("c");
	assert_string_equal(dirty(get(n, "x")), "0+1");
	close_node(n);
}

static void test_remove(void **state)
{
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 m 64M");
	n = open_rw("m");
	add(n, "a", 512, false);
	add(n, "b", 512, false);
	add(n, "c", 0, false);
	wr(n, 0, 10 * MB);
	close_node(n);
	n = open_rw("m");
	rm(n, "b");
	assert_string_equal(qemu_sees("m"), "a:512:in-use:auto c:65536:in-use:auto");
	add(n, "b", 4096, true);
	rm(n, "b");				/* was never stored */
	rm(n, "a");
	rm(n, "c");
	assert_string_equal(qemu_sees("m"), "");
	assert_null(n->bitmaps);
	close_node(n);
	check("m");
	sh_ok("qemu-img info m | grep -vq bitmap && cp m m.1");
	for (unsigned i = 0; i < 30; i++) {	/* clusters are used again */
		n = open_rw("m");
		add(n, "a", 512, false);
		wr(n, i * MB, 100000);
		close_node(n);
		n = open_rw("m");
		rm(n, "a");
		close_node(n);
	}
	check("m");
}

static void test_limits(void **state)
{
	struct error err = ERROR_INIT;
	char name[BITMAP_NAME_MAX + 1];
	struct node *n;

	sh_ok("rm -f l && qemu-img create -q -f qcow2 -o cluster_size=2M l 1P");
	n = open_rw("l");
	assert_true(bitmap_add(n, "x", 65536, true, false, NULL, &err) < 0);
	assert_non_null(strstr(err.text, "Too much space will be occupied by the bitmap. Use larger "
			       "granularity"));
	memset(name, 'n', sizeof(name) - 1);
	name[BITMAP_NAME_MAX] = 0;
	add(n, name, 1ull << 31, false);
	wr(n, (1ull << 50) - 1, 1);
	close_node(n);
	check("l");
	n = open_ro("l");
	assert_string_equal(dirty(get(n, name)), "524287+1");
	close_node(n);
	sh_ok("for cs in 512 4k 64k 2M; do qemu-img create -q -f qcow2 -o cluster_size=$cs d$cs 1M; done");
	for (unsigned i = 0; i < 4; i++) {
		static const char *const cs[] = { "d512", "d4k", "d64k", "d2M" };
		static const uint64_t g[] = { 4096, 4096, 65536, 65536 };

		n = open_rw(cs[i]);
		assert_int_equal(bitmap_granularity(add(n, "x", 0, false)), g[i]);
		close_node(n);
	}
}

static void test_grown(void **state)
{
	struct error err = ERROR_INIT;
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 g 1M && qemu-img bitmap --add -g 512 g x && "
	      "qemu-img bitmap --add --disable g y");
	n = open_rw("g");
	wr(n, 0, 1);
	assert_int_equal(node_truncate(n, 300 * MB, &err), 0);
	wr(n, 300 * MB - 1, 1);
	close_node(n);
	check("g");
	n = open_rw("g");
	/* Whether the disk was larger before, the image cannot tell: what is new counts. */
	assert_string_equal(dirty(get(n, "x")), "0+1 2048+612352");
	assert_string_equal(dirty(get(n, "y")), "");
	assert_int_equal(get(n, "y")->size, 300 * MB);
	close_node(n);
	assert_string_equal(qemu_dirty("g", "x"), "0+512 1048576+313524224");
}

/* --- damage --- */

enum { EXT_NB = 0, EXT_DIR_SIZE = 8, EXT_DIR_OFFSET = 16 };

static uint64_t find_ext(const char *name)
{
	uint8_t h[4096];

	peek(name, 0, h, sizeof(h));
	for (uint64_t at = get_be32(h + 100); at < sizeof(h) - 8;
	     at += 8 + align_up(get_be32(h + at + 4), 8))
		if (get_be32(h + at) == 0x23852875)
			return at + 8;
	fail_msg("no extension");
	return 0;
}

/* An image "h" with bitmaps x (dirty) and y, and 64 KiB of data at 0. */
static uint64_t make_victim(void)
{
	sh_ok("test -e h.good || { qemu-img create -q -f qcow2 -o cluster_size=4k h.good 8M && "
	      "qemu-img bitmap --add -g 512 h.good x && qemu-img bitmap --add h.good y && "
	      "qemu-io -f qcow2 -c 'write -P 7 0 64k' h.good; }; cp h.good h");
	return find_ext("h");
}

static void data_is_there(struct node *n)
{
	uint8_t buf[65536];

	assert_int_equal(node_read(n, buf, 0, sizeof(buf)), 0);
	for (size_t i = 512; i < sizeof(buf); i++)
		assert_int_equal(buf[i], 7);
}

/* The disk opens, is written and closes; twice; the image has no errors, but perhaps leaks. */
static void live_with_it(bool whole)
{
	struct node *n = open_ro("h");

	data_is_there(n);
	if (whole)
		assert_null(n->bitmaps);
	close_node(n);
	for (unsigned i = 0; i < 2; i++) {
		n = open_rw("h");
		data_is_there(n);
		wr(n, 4 * MB, 4096);
		close_node(n);
	}
	if (whole) {
		assert_string_equal(qemu_sees("h"), "");
		sh_ok("qemu-img check -q h || test $? = 3");
	}
}

static void test_damaged_directory(void **state)
{
	uint64_t ext = make_victim(), dir_at = peek64("h", ext + EXT_DIR_OFFSET);
	struct { uint64_t at, v; } bad[] = {
		{ ext + EXT_DIR_OFFSET, 0 }, { ext + EXT_DIR_OFFSET, dir_at + 8 },
		{ ext + EXT_DIR_OFFSET, 1ull << 40 }, { ext + EXT_DIR_OFFSET, UINT64_MAX },
		{ ext + EXT_DIR_SIZE, 0 }, { ext + EXT_DIR_SIZE, UINT64_MAX },
		{ ext + EXT_DIR_SIZE, 24 }, { ext + EXT_DIR_SIZE, 72 }, { ext + EXT_DIR_SIZE, 1 },
		{ ext + EXT_NB, 0 }, { ext + EXT_NB, 1ull << 32 }, { ext + EXT_NB, 3ull << 32 },
		{ ext + EXT_NB, UINT64_MAX }, { dir_at + 16, 0x0109ffff00000000ull },
		{ dir_at + 16, 0x01090001ffffffffull }, { dir_at + 32 + 24, 0x7800000000000000ull },
	};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		make_victim();
		poke64("h", bad[i].at, bad[i].v);
		live_with_it(true);
	}
}

static void test_damaged_entry(void **state)
{
	uint64_t ext = make_victim(), at = peek64("h", ext + EXT_DIR_OFFSET);
	struct { uint64_t at, v; } bad[] = {
		{ at, 0 }, { at, 512 }, { at, 1ull << 50 }, { at + 8, 0 },
		{ at + 8, 0xffffffff00000002ull }, { at + 8, 0x0000000200000002ull },
		{ at + 8, 0x00000001000000f2ull }, { at + 16, 0x0209000100000000ull },
		{ at + 16, 0x0108000100000000ull }, { at + 16, 0x01ff000100000000ull },
		{ at + 24, 0xff00000000000000ull }, { at + 24, 0 },
		{ peek64("h", at), 3 }, { peek64("h", at), 1ull << 56 | 4096 },
		{ peek64("h", at), 513 }, { peek64("h", at), 1ull << 45 },
	};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct error err = ERROR_INIT;
		struct node *n;
		struct bitmap *x;

		make_victim();
		poke64("h", bad[i].at, bad[i].v);
		live_with_it(false);
		n = open_rw("h");
		x = bitmap_find(n, "x", &err);
		assert_true(!x || x->inconsistent);
		assert_false(get(n, "y")->inconsistent);
		assert_string_equal(dirty(get(n, "y")), "0+16 1024+1");
		if (x)
			rm(n, "x");
		rm(n, "y");
		close_node(n);
		if (x)				/* else QEMU refuses the image, as before */
			sh_ok("qemu-img check -q h || test $? = 3");
	}
}

/* What we do not know is kept byte for byte, and marked. */
static void test_kept(void **state)
{
	uint64_t ext = make_victim(), at = peek64("h", ext + EXT_DIR_OFFSET);
	uint8_t entry[32], now[32];
	struct node *n;

	poke64("h", at + 8, 0x00000001000000f2ull);
	peek("h", at, entry, sizeof(entry));
	n = open_rw("h");
	assert_true(get(n, "x")->inconsistent);
	add(n, "z", 0, false);
	rm(n, "y");
	close_node(n);
	at = peek64("h", find_ext("h") + EXT_DIR_OFFSET);
	peek("h", at, now, sizeof(now));
	entry[15] |= DIR_IN_USE;
	assert_memory_equal(entry, now, sizeof(now));
}

/* An entry with extra data that says that it may be ignored: the bitmap is used and the
 * data goes along; without the flag it is not used. */
static void test_extra_data(void **state)
{
	uint8_t e[32] = { 0 };

	for (unsigned compatible = 0; compatible < 2; compatible++) {
		uint64_t ext = make_victim(), at = peek64("h", ext + EXT_DIR_OFFSET);
		struct node *n;

		peek("h", at, e, 24);
		poke64("h", ext + EXT_NB, 1ull << 32);
		poke64("h", ext + EXT_DIR_SIZE, 32);
		e[15] = DIR_AUTO | (compatible ? DIR_EXTRA_COMPATIBLE : 0);
		e[23] = 5;
		memcpy(e + 24, "extrax", 6);
		poke("h", at, e, sizeof(e));
		n = open_rw("h");
		assert_int_equal(get(n, "x")->inconsistent, !compatible);
		if (compatible) {
			assert_string_equal(dirty(get(n, "x")), "0+128");
			wr(n, 1 * MB, 1);
		}
		add(n, "z", 0, false);
		close_node(n);
		at = peek64("h", find_ext("h") + EXT_DIR_OFFSET);
		peek("h", at + 12, e, 20);
		assert_int_equal(e[3], compatible ? DIR_AUTO | DIR_EXTRA_COMPATIBLE
						  : DIR_AUTO | DIR_IN_USE);
		assert_memory_equal(e + 12, "extrax", 6);
		n = open_ro("h");
		if (compatible)
			assert_string_equal(dirty(get(n, "x")), "0+128 2048+1");
		close_node(n);
	}
}

/* Many tables of ones are small on storage and large in memory. */
static void test_too_much(void **state)
{
	uint64_t ext, table;
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 -o cluster_size=2M t 32T");
	n = open_rw("t");
	for (char name[2] = "a"; name[0] <= 'd'; name[0]++) {
		struct bitmap *b = add(n, name, 8192, true);	/* 512 MiB each, sparse */

		bitmap_set(b, 0, 1);
	}
	close_node(n);
	ext = find_ext("t");
	for (unsigned i = 0; i < 4; i++) {
		table = peek64("t", peek64("t", ext + EXT_DIR_OFFSET) + 32 * i);
		for (unsigned k = 1; k < 256; k++)
			poke64("t", table + 8 * k, 1);
	}
	n = open_ro("t");
	assert_int_equal(get(n, "a")->inconsistent + get(n, "b")->inconsistent +
			 get(n, "c")->inconsistent + get(n, "d")->inconsistent, 3);
	close_node(n);
}

static void test_other_writer(void **state)
{
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 w 8M && qemu-img bitmap --add w x");
	poke64("w", 88, 0);			/* a program that knows no bitmaps wrote */
	n = open_rw("w");
	assert_null(n->bitmaps);
	add(n, "x", 0, false);
	close_node(n);
	assert_string_equal(qemu_sees("w"), "x:65536:auto");
	sh_ok("qemu-img check -q w || test $? = 3");
}

static void test_noise(void **state)
{
	uint64_t rng = 42, ext = make_victim(), at = peek64("h", ext + EXT_DIR_OFFSET);
	uint64_t tables[2] = { peek64("h", at), peek64("h", at + 32) };

	for (unsigned i = 0; i < 80; i++) {
		struct node *n;

		make_victim();
		for (unsigned k = 1 + next_random(&rng) % 3; k; k--) {
			uint64_t where[] = { ext + next_random(&rng) % 24, at + next_random(&rng) % 64,
					     tables[next_random(&rng) % 2] + next_random(&rng) % 32 };
			uint8_t byte = (uint8_t)next_random(&rng);

			poke("h", where[next_random(&rng) % 3], &byte, 1);
		}
		n = open_ro("h");
		data_is_there(n);
		close_node(n);
		n = open_rw("h");
		data_is_there(n);
		close_node(n);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip), cmocka_unit_test(test_from_qemu),
		cmocka_unit_test(test_shapes), cmocka_unit_test(test_unclean),
		cmocka_unit_test(test_read_only), cmocka_unit_test(test_unchanged),
		cmocka_unit_test(test_remove), cmocka_unit_test(test_limits),
		cmocka_unit_test(test_grown), cmocka_unit_test(test_damaged_directory),
		cmocka_unit_test(test_damaged_entry), cmocka_unit_test(test_kept),
		cmocka_unit_test(test_extra_data), cmocka_unit_test(test_too_much),
		cmocka_unit_test(test_other_writer), cmocka_unit_test(test_noise),
	};

	bitmaps_init();
	return cmocka_run_group_tests(tests, dir_setup, dir_teardown);
}
