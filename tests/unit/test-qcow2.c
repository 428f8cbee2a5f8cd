// SPDX-License-Identifier: BSD-3-Clause
/* test-qcow2: the driver one request at a time, on real files.
 *
 * The judges are qemu-img and qemu-io.  Requests that meet each other are in
 * test-qcow2-race.c, power losses in test-powerloss.c.
 */
#include "qcow2-rig.h"

#include <errno.h>

static const uint64_t MB = 1 << 20;

static void fill(uint8_t *p, size_t n, uint64_t *seed)
{
	memset(p, (int)(next_random(seed) % 255 + 1), n);
}

/* One random operation on both. */
static void random_op(struct node *n, struct model *m, uint64_t *seed, uint64_t longest)
{
	uint64_t off = next_random(seed) % m->size, len = next_random(seed) % longest + 1;
	unsigned what = next_random(seed) % 16, cs = qcow2_cluster_size(n);
	uint8_t *buf;

	len = min_u64(len, m->size - off);
	if (what >= 12) {	/* whole clusters, for what works on those */
		off &= ~(uint64_t)(cs - 1);
		len = min_u64(align_up(len, cs), m->size - off);
	}
	buf = malloc(len);
	if (what < 7) {
		fill(buf, len, seed);
		memcpy(m->data + off, buf, len);
		assert_int_equal(node_write(n, buf, off, len, what == 0 ? NODE_FUA : 0), 0);
	} else if (what < 10) {
		assert_int_equal(node_read(n, buf, off, len), 0);
		assert_memory_equal(buf, m->data + off, len);
	} else if (what == 10) {
		assert_int_equal(node_flush(n), 0);
	} else if (what < 15) {
		memset(m->data + off, 0, len);
		assert_int_equal(node_zero(n, off, len, what & 1 ? NODE_MAY_UNMAP : 0), 0);
	} else {
		assert_int_equal(node_discard(n, off, len), 0);
		if (off + len == m->size || !(len % cs))	/* defined here: it reads as zeroes */
			memset(m->data + off, 0, len);
		assert_int_equal(node_read(n, buf, off, len), 0);
		assert_memory_equal(buf, m->data + off, len);
	}
	free(buf);
}

static void random_ops(const char *name, const char *options, struct model *m, uint64_t seed,
		       unsigned ops, uint64_t longest)
{
	for (unsigned round = 0; round < 3; round++) {
		struct node *n = open_image(name, options);

		for (unsigned i = 0; i < ops; i++)
			random_op(n, m, &seed, longest);
		model_check(m, n);
		node_unref(n);
		image_check(m, name);
	}
	free(m->data);
}

static void test_random(void **state)
{
	static const struct { uint32_t cluster, bits; uint64_t size; unsigned ops; const char *options; } t[] = {
		{ 65536, 16, 16 << 20, 300, "" },
		{ 65536, 16, (16 << 20) + 512 * 3, 300, "'l2-cache-entry-size':512,'l2-cache-size':4096" },
		{ 4096, 1, 8 << 20, 600, "" },
		{ 512, 2, 2 << 20, 600, "'cache-size':4096" },
		{ 512, 64, 2 << 20, 600, "" },
		{ 1024, 4, 3 << 20, 600, "" },
		{ 4096, 8, 6 << 20, 600, "'l2-cache-size':512" },
		{ 8192, 32, 8 << 20, 300, "" },
		{ 2 << 20, 64, 32 << 20, 60, "" },
	};

	for (unsigned i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct model m = model_new(t[i].size);

		create("r.qcow2", (struct qcow2_create){ .size = t[i].size, .cluster_size = t[i].cluster,
							.refcount_bits = t[i].bits });
		random_ops("r.qcow2", t[i].options, &m, 17 + i, t[i].ops, 6 * t[i].cluster);
	}
}

/* A backing image that is shorter, or longer, and has data everywhere. */
static void test_random_overlay(void **state)
{
	static const uint64_t backing[] = { 3 * 65536 + 512, 16 << 20 };

	for (unsigned i = 0; i < 4; i++) {
		struct model m = model_new(8 << 20), b = model_new(backing[i % 2]);

		memset(b.data, 0xbb, b.size);
		memcpy(m.data, b.data, min_u64(b.size, m.size));
		model_store(&b, "base.raw");
		if (i < 2)
			create("o.qcow2", (struct qcow2_create){ .size = m.size, .cluster_size = i ? 4096 : 65536,
					.backing_file = "base.raw", .backing_format = "raw" });
		else
			sh_ok("qemu-img create -q -f qcow2 -o cluster_size=8k,backing_file=base.raw,backing_fmt=raw o.qcow2 8M");
		random_ops("o.qcow2", "", &m, 3 + i, 200, 200000);
		free(b.data);
	}
}

static void test_create(void **state)
{
	static const uint64_t sizes[] = { 0, 512, 65536, 1 << 30, 1ull << 40, 60ull << 40 };
	struct error err = ERROR_INIT;
	struct io_file *f;

	for (unsigned bits = 1; bits <= 64; bits *= 2)
		for (unsigned cb = 9; cb <= 21; cb += 4)
			for (unsigned i = 0; i < 6; i++) {
				if (sizes[i] >> (2 * cb - 3) > 1 << 22)
					continue;
				create("c.qcow2", (struct qcow2_create){ .size = sizes[i], .refcount_bits = bits,
									.cluster_size = 1u << cb });
				if (bits == 1 || bits == 16 || bits == 64)
					sh_ok("qemu-img check -q c.qcow2");
			}
	create("c.qcow2", (struct qcow2_create){ .size = 1000, .backing_file = "b", .backing_format = "raw" });
	sh_ok("qemu-img info --backing-chain c.qcow2 | head -0; qemu-img info c.qcow2 | grep -q 'backing file format: raw' &&"
	      "qemu-img info c.qcow2 | grep -q 'virtual size: 1 KiB'");
	f = io_open(io_blocking(), path_of("x"), IO_RDWR | IO_CREATE, &err);
	assert_int_equal(qcow2_create(f, &(struct qcow2_create){ .cluster_size = 3000 }, &err), -EINVAL);
	assert_int_equal(qcow2_create(f, &(struct qcow2_create){ .refcount_bits = 3 }, &err), -EINVAL);
	assert_int_equal(qcow2_create(f, &(struct qcow2_create){ .size = 1ull << 60 }, &err), -EFBIG);
	assert_int_equal(qcow2_create(f, &(struct qcow2_create){ .backing_file = "x" }, &err), -EINVAL);
	io_file_unref(f);
}

/* Refcount blocks and tables grow many times with clusters of 512 bytes. */
static void test_refcount_growth(void **state)
{
	for (unsigned bits = 64; bits >= 16; bits /= 4) {
		struct model m = model_new(20 << 20);
		struct node *n;
		uint64_t seed = 5;

		create("g.qcow2", (struct qcow2_create){ .size = m.size, .cluster_size = 512,
							.refcount_bits = bits });
		n = open_image("g.qcow2", "");
		fill(m.data, m.size, &seed);
		for (uint64_t at = 0; at < m.size; at += MB)
			assert_int_equal(node_write(n, m.data + at, at, MB, 0), 0);
		node_unref(n);
		image_check(&m, "g.qcow2");
		assert_true(peek64("g.qcow2", H_REFTABLE_OFFSET) != 512);
		free(m.data);
	}
}

static void test_read_qemu(void **state)
{
	struct model m = model_new(4 << 20);
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 q.qcow2 4M && qemu-io -c 'write -P 1 64k 100k' -c 'write -z 1M 64k'"
	      " -c 'write -P 2 2M 64k' -c 'write -z 2M 64k' -c 'discard 64k 64k' q.qcow2");
	memset(m.data + 128 * 1024, 1, 36 * 1024);
	n = open_image("q.qcow2", "'read-only':true");
	model_check(&m, n);
	assert_int_equal(node_write(n, m.data, 0, 512, 0), -EPERM);
	node_unref(n);
	n = open_image("q.qcow2", "");
	model_check(&m, n);
	node_unref(n);
	image_check(&m, "q.qcow2");
	free(m.data);
}

static void expect_map(struct node *n, const struct extent *want, unsigned count)
{
	struct extent v[16];
	struct extents x = { .v = v, .max = 16 };

	assert_int_equal(node_map(n, 0, n->size, &x), 0);
	assert_int_equal(x.n, count);
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal(v[i].len, want[i].len);
		assert_int_equal(v[i].flags, want[i].flags);
		assert_int_equal(v[i].depth, want[i].depth);
	}
}

static void test_map(void **state)
{
	const uint64_t cs = 65536;
	struct extent first[] = {
		{ cs, EXTENT_UNALLOCATED, 0 }, { 2 * cs, 0, 1 }, { cs, EXTENT_ZERO, 1 }, { cs, 0, 1 },
		{ (1ull << 40) - 5 * cs, EXTENT_UNALLOCATED, 0 },
	};
	struct extent second[] = {
		{ 2 * cs, EXTENT_UNALLOCATED, 0 }, { cs, EXTENT_ZERO | EXTENT_HOLE, 1 },
		{ cs, EXTENT_ZERO, 1 }, { cs, 0, 1 }, { (1ull << 40) - 5 * cs, EXTENT_UNALLOCATED, 0 },
	};
	struct node *n;
	char *buf = calloc(4, cs);

	create("m.qcow2", (struct qcow2_create){ .size = 1ull << 40 });
	n = open_image("m.qcow2", "");
	assert_int_equal(node_write(n, buf, cs, 4 * cs, 0), 0);
	assert_int_equal(node_zero(n, 3 * cs, cs, 0), 0);
	expect_map(n, first, 5);
	assert_int_equal(node_discard(n, cs, cs), 0);
	assert_int_equal(node_zero(n, 2 * cs, cs, NODE_MAY_UNMAP), 0);
	expect_map(n, second, 5);
	node_unref(n);
	sh_ok("qemu-img check -q m.qcow2");
	free(buf);
}

/* HAZARDS 43: zeroes and discards on an overlay never let the backing image through. */
static void test_zero_overlay(void **state)
{
	const uint64_t cs = 65536;
	struct model b = model_new(16 * cs), m = model_new(16 * cs);
	struct node *n;

	memset(b.data, 7, b.size);
	memset(m.data, 7, m.size);
	model_store(&b, "base.raw");
	create("z.qcow2", (struct qcow2_create){ .size = m.size, .backing_file = "base.raw",
						.backing_format = "raw" });
	n = open_image("z.qcow2", "");
	assert_int_equal(node_zero(n, 0, cs, NODE_MAY_UNMAP), 0);
	assert_int_equal(node_zero(n, cs, cs, 0), 0);
	assert_int_equal(node_discard(n, 2 * cs, cs), 0);
	memset(m.data, 0, 3 * cs);
	memset(m.data + 4 * cs, 9, 2 * cs);
	assert_int_equal(node_write(n, m.data + 4 * cs, 4 * cs, 2 * cs, 0), 0);
	assert_int_equal(node_discard(n, 4 * cs, cs), 0);
	memset(m.data + 4 * cs, 0, cs);
	memset(m.data + 7 * cs + 512, 0, 1024);	/* inside a cluster: by writing */
	assert_int_equal(node_zero(n, 7 * cs + 512, 1024, NODE_NO_FALLBACK), -ENOTSUP);
	assert_int_equal(node_zero(n, 7 * cs + 512, 1024, NODE_MAY_UNMAP), 0);
	assert_int_equal(node_discard(n, 9 * cs + 1, cs), 0);	/* no whole cluster: nothing */
	assert_int_equal(node_zero(n, 100, 200, NODE_NO_FALLBACK), 0);	/* is zero */
	model_check(&m, n);
	assert_int_equal(node_flush(n), 0);
	model_check(&m, n);
	node_unref(n);
	image_check(&m, "z.qcow2");
	free(m.data);
	free(b.data);
}

static uint64_t blocks_of(const char *name)
{
	struct stat st;

	assert_int_equal(stat(path_of(name), &st), 0);
	return st.st_blocks * 512;
}

/* Freed clusters are discarded in the file, and used again after a flush. */
static void test_discard_reuse(void **state)
{
	struct node *n;
	struct stat st;
	char *buf = malloc(8 * MB);
	uint64_t before;

	memset(buf, 5, 8 * MB);
	create("d.qcow2", (struct qcow2_create){ .size = 64 * MB });
	n = open_image("d.qcow2", "");
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(node_write(n, buf, (i % 4) * 8 * MB, 8 * MB, 0), 0);
		assert_int_equal(node_discard(n, (i % 4) * 8 * MB, 8 * MB), 0);
		assert_int_equal(node_flush(n), 0);
	}
	assert_int_equal(stat(path_of("d.qcow2"), &st), 0);
	assert_true(st.st_size < 20 * (off_t)MB);
	before = blocks_of("d.qcow2");
	assert_true(before < MB);
	node_unref(n);
	sh_ok("qemu-img check -q d.qcow2");
	free(buf);
}

static void test_truncate(void **state)
{
	struct model b = model_new(4 << 20), m;
	struct error err = ERROR_INIT;
	struct node *n;
	uint8_t *old;

	memset(b.data, 7, b.size);
	model_store(&b, "base.raw");
	create("t.qcow2", (struct qcow2_create){ .size = MB + 512, .cluster_size = 512,
					.backing_file = "base.raw", .backing_format = "raw" });
	m = model_new(40 << 20);
	memset(m.data, 7, MB + 512);
	memset(m.data + 1000, 1, 5000);
	n = open_image("t.qcow2", "");
	assert_int_equal(node_write(n, m.data + 1000, 1000, 5000, 0), 0);
	assert_int_equal(node_truncate(n, 3 * MB + 1, &err), -EINVAL);
	assert_int_equal(node_truncate(n, 1ull << 60, &err), -EFBIG);
	assert_int_equal(node_truncate(n, 40 * MB, &err), 0);
	model_check(&m, n);
	old = m.data + 39 * MB;
	memset(old, 3, 999);
	assert_int_equal(node_write(n, old, 39 * MB, 999, 0), 0);
	node_unref(n);
	image_check(&m, "t.qcow2");
	free(m.data);
	free(b.data);
}

/* Unknown extensions and fields stay; unknown autoclear bits go; bad ones are named. */
static void test_header(void **state)
{
	static const uint8_t unknown[] = { 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 3, 'a', 'b', 'c', 0, 0, 0, 0, 0 };
	struct qcow2_bitmap_ext e = { 1, 0x1122, 0x50000 }, got;
	struct error err = ERROR_INIT;
	uint8_t found[16], names[48] = { 0, 7, 'n', 'e', 'w', ' ', 't', 'h', 'i', 'n', 'g' };
	uint64_t at = H_LENGTH_OURS + 8 + 8 * 48;
	struct node *n;

	create("h.qcow2", (struct qcow2_create){ .size = MB, .backing_file = "base.raw",
						.backing_format = "raw" });
	sh_ok("truncate -s 1M base.raw");
	poke("h.qcow2", at + 16, unknown, sizeof(unknown));	/* behind the backing format */
	poke64("h.qcow2", H_AUTOCLEAR, 1ull << 40);
	poke64("h.qcow2", H_COMPATIBLE, 1ull << 50 | 1);
	n = open_image("h.qcow2", "'read-only':true");
	node_unref(n);
	assert_int_equal(peek64("h.qcow2", H_AUTOCLEAR), 1ull << 40);
	n = open_image("h.qcow2", "");
	assert_int_equal(peek64("h.qcow2", H_AUTOCLEAR), QCOW2_OPEN);
	assert_int_equal(qcow2_bitmap_ext_get(n, &got), -ENOENT);
	assert_int_equal(qcow2_bitmap_ext_set(n, &e, &err), 0);
	assert_int_equal(qcow2_bitmap_ext_get(n, &got), 0);
	assert_int_equal(got.directory_offset, e.directory_offset);
	assert_int_equal(peek64("h.qcow2", H_AUTOCLEAR), QCOW2_OPEN | 1);
	peek("h.qcow2", at + 16, found, sizeof(found));
	assert_memory_equal(found, unknown, sizeof(found));
	assert_int_equal(qcow2_bitmap_ext_set(n, NULL, &err), 0);
	assert_int_equal(peek64("h.qcow2", H_AUTOCLEAR), QCOW2_OPEN);
	node_unref(n);
	assert_int_equal(peek64("h.qcow2", H_AUTOCLEAR), 0);
	assert_int_equal(peek64("h.qcow2", H_COMPATIBLE), 1ull << 50 | 1);
	sh_ok("qemu-img check -q h.qcow2 && qemu-img info h.qcow2 | grep -q 'backing file: base.raw'");

	poke("h.qcow2", H_LENGTH_OURS + 8, names, sizeof(names));
	poke64("h.qcow2", H_INCOMPATIBLE, 1 << 7 | 1ull << 63);
	assert_string_equal(open_refused("h.qcow2", ""), "Unsupported qcow2 feature(s): new thing, Unknown incompatible feature: 8000000000000000");
}

/* The backing name is moved when an extension needs its room. */
static void test_header_moves_name(void **state)
{
	struct qcow2_bitmap_ext e = { 1, 32, 0x50000 };
	struct error err = ERROR_INIT;
	char name[371] = "";
	struct node *n;

	sh_ok("truncate -s 1M base.raw; qemu-img create -q -f qcow2 -b base.raw -F raw n.qcow2");
	n = open_image("n.qcow2", "");
	assert_int_equal(qcow2_bitmap_ext_set(n, &e, &err), 0);
	node_unref(n);
	n = open_image("n.qcow2", "");	/* no one here knows bitmaps: the extension goes */
	assert_int_equal(qcow2_bitmap_ext_get(n, &e), -ENOENT);
	node_unref(n);
	sh_ok("qemu-img check -q n.qcow2; qemu-img info n.qcow2 | grep -q 'backing file: base.raw' &&"
	      "qemu-img info n.qcow2 | grep -q 'backing file format: raw'");
	/* A cluster of 512 bytes may have no room for it. */
	memset(name, 'n', 370);
	create("s.qcow2", (struct qcow2_create){ .size = MB, .cluster_size = 512, .backing_file = name,
						.backing_format = "raw" });
	n = open_image("s.qcow2", "'backing':null");
	assert_int_equal(qcow2_bitmap_ext_set(n, &e, &err), -ENOSPC);
	node_unref(n);
	sh_ok("qemu-img info s.qcow2 | grep -q 'backing file: nnn'");
}

static void test_refused(void **state)
{
	struct node *n;

	sh_ok("qemu-img create -q -f qcow2 -o data_file=d.raw e.qcow2 1M; qemu-img create -q -f qcow2 s.qcow2 1M; qemu-img snapshot -c a s.qcow2;"
	      "qemu-img create -q -f qcow2 l.qcow2 1M; truncate -s 1M raw.img; truncate -s 3 short.qcow2; rm d.raw");
	assert_non_null(strstr(open_refused("e.qcow2", ""), "data file"));
	assert_non_null(strstr(open_refused("s.qcow2", "'internal-snapshot':'a'"), "can only be read"));
	assert_non_null(strstr(open_refused("s.qcow2", "'internal-snapshot':'b','read-only':true"), "Can't find snapshot"));
	assert_non_null(strstr(open_refused("raw.img", ""), "not in qcow2 format"));
	assert_non_null(strstr(open_refused("short.qcow2", ""), "not in qcow2 format"));
	assert_non_null(strstr(open_refused("l.qcow2", "'lazy-refcounts':true"), "lazy-refcounts"));
	assert_non_null(strstr(open_refused("l.qcow2", "'data-file':'x'"), "data-file"));
	assert_non_null(strstr(open_refused("l.qcow2", "'l2-cache-entry-size':1000"), "power of two"));
	assert_non_null(strstr(open_refused("l.qcow2", "'cache-size':4096,'l2-cache-size':8192"), "exceed"));
	n = open_image("s.qcow2", "'internal-snapshot':'a','auto-read-only':true");
	assert_true(n->read_only);
	node_unref(n);
	poke64("l.qcow2", H_INCOMPATIBLE, QCOW2_CORRUPT);
	assert_non_null(strstr(open_refused("l.qcow2", ""), "Image is corrupt; cannot be opened read/write"));
	n = open_image("l.qcow2", "'read-only':true");
	node_unref(n);
}

static void test_refused_numbers(void **state)
{
	static const struct { unsigned field, bytes; uint64_t value; } t[] = {
		{ H_CLUSTER_BITS, 4, 8 }, { H_CLUSTER_BITS, 4, 22 }, { H_CLUSTER_BITS, 4, 1u << 31 },
		{ H_SIZE, 8, UINT64_MAX }, { H_SIZE, 8, 1ull << 62 }, { H_SIZE, 8, 1ull << 40 },
		{ H_L1_SIZE, 4, UINT32_MAX }, { H_L1_SIZE, 4, 0 }, { H_L1_OFFSET, 8, 77 },
		{ H_L1_OFFSET, 8, 1ull << 63 }, { H_L1_OFFSET, 8, 1ull << 40 }, { H_L1_OFFSET, 8, 0 },
		{ H_REFTABLE_OFFSET, 8, 1 }, { H_REFTABLE_OFFSET, 8, 0 }, { H_REFTABLE_OFFSET, 8, 1ull << 62 },
		{ H_REFTABLE_CLUSTERS, 4, 0 }, { H_REFTABLE_CLUSTERS, 4, UINT32_MAX },
		{ H_NB_SNAPSHOTS, 4, 65537 }, { H_CRYPT, 4, 1 }, { H_REFCOUNT_ORDER, 4, 7 },
		{ H_LENGTH, 4, 100 }, { H_LENGTH, 4, 105 }, { H_LENGTH, 4, 1u << 30 },
		{ H_BACKING_OFFSET, 8, 65535 }, { H_BACKING_OFFSET, 8, UINT64_MAX },
		{ H_BACKING_SIZE, 4, 1024 }, { H_COMPRESSION, 1, 1 }, { H_COMPRESSION, 1, 9 },
	};
	uint8_t b[8];

	for (unsigned i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		create("n.qcow2", (struct qcow2_create){ .size = MB, .backing_file = "base.raw",
							.backing_format = "raw" });
		put_be64(b, t[i].value << (64 - 8 * t[i].bytes));
		poke("n.qcow2", t[i].field, b, t[i].bytes);
		assert_true(strlen(open_refused("n.qcow2", "'read-only':true")) > 0);
	}
}

static void test_backing(void **state)
{
	struct model m = model_new(MB);
	struct node *n;

	memset(m.data, 0x44, MB);
	model_store(&m, "base.raw");
	sh_ok("mkdir sub; qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2; cd sub &&"
	      "qemu-img create -q -f qcow2 -b ../mid.qcow2 -F qcow2 top.qcow2");
	n = open_image("sub/top.qcow2", "");	/* relative to the image */
	model_check(&m, n);
	node_unref(n);
	n = open_image("sub/top.qcow2", "'backing':null");
	memset(m.data, 0, MB);
	model_check(&m, n);
	node_unref(n);
	memset(m.data, 0x44, MB);
	n = open_image("sub/top.qcow2", "'backing':{'driver':'raw','file':{'driver':'file','filename':'DIR/base.raw'}}");
	model_check(&m, n);
	node_unref(n);

	/* No format recorded: raw is taken, qcow2 is not (CVE-2008-2004 and its children). */
	sh_ok("qemu-img create -q -u -f qcow2 -b base.raw -F raw p.qcow2 1M;"
	      "qemu-img create -q -u -f qcow2 -b mid.qcow2 -F raw p2.qcow2 1M;"
	      "qemu-img create -q -u -f qcow2 -b 'json:{\"driver\":\"null-co\"}' -F raw j.qcow2 1M;"
	      "qemu-img create -q -u -f qcow2 -b 'nbd://localhost/x' -F raw u.qcow2 1M;"
	      "qemu-img create -q -u -f qcow2 -b loop.qcow2 -F qcow2 k.qcow2 1M; mv k.qcow2 loop.qcow2;"
	      "qemu-img create -q -u -f qcow2 -b gone.raw -F raw gone.qcow2 1M");
	poke("p.qcow2", H_LENGTH_OURS, "gone", 4);	/* where qemu-img puts the format */
	poke("p2.qcow2", H_LENGTH_OURS, "gone", 4);
	n = open_image("p.qcow2", "");
	model_check(&m, n);
	node_unref(n);
	assert_non_null(strstr(open_refused("p2.qcow2", ""), "backing.driver"));
	assert_non_null(strstr(open_refused("j.qcow2", ""), "not a plain file"));
	assert_non_null(strstr(open_refused("u.qcow2", ""), "not a plain file"));
	assert_non_null(strstr(open_refused("loop.qcow2", "'read-only':true"), "refers to itself"));
	assert_non_null(strstr(open_refused("gone.qcow2", ""), "gone.raw"));
	free(m.data);
}

/* Where the first L2 table of NAME is. */
static uint64_t l2_table(const char *name)
{
	return peek64(name, peek64(name, H_L1_OFFSET)) & QCOW2_OFFSET;
}

/* A data pointer into metadata: the write fails, and nobody writes any more. */
static void test_corrupt(void **state)
{
	static const char *const what[] = { "header", "l1", "l2", "refcounts" };
	char buf[512] = "x";
	struct node *n;

	for (unsigned i = 0; i < 4; i++) {
		uint64_t at, to;

		create("c.qcow2", (struct qcow2_create){ .size = MB });
		sh_ok("qemu-io -c 'write 0 64k' c.qcow2");
		at = l2_table("c.qcow2");
		to = i == 0 ? 0 : i == 1 ? peek64("c.qcow2", H_L1_OFFSET) : i == 2 ? at : 2 * 65536;
		if (i)
			poke64("c.qcow2", at, to | QCOW2_COPIED);
		else
			poke64("c.qcow2", at, 0x123400ull | QCOW2_COPIED);	/* not aligned */
		n = open_image("c.qcow2", "");
		if (node_write(n, buf, 0, 512, 0) != -EIO)
			fail_msg("wrote over: %s", what[i]);
		assert_int_equal(node_write(n, buf, 65536, 512, 0), -EIO);
		node_unref(n);
		assert_int_equal(peek64("c.qcow2", H_INCOMPATIBLE), QCOW2_CORRUPT);
		assert_non_null(strstr(open_refused("c.qcow2", ""), "corrupt"));
	}
	/* Refcounts that call everything free. */
	create("c.qcow2", (struct qcow2_create){ .size = MB });
	poke("c.qcow2", 2 * 65536, "\0\0\0\0\0\0\0\0\0\0\0\0", 12);
	n = open_image("c.qcow2", "");
	assert_int_equal(node_write(n, buf, 0, 512, 0), -EIO);
	node_unref(n);
	assert_int_equal(peek64("c.qcow2", H_INCOMPATIBLE), QCOW2_CORRUPT);
}

/* An entry without COPIED is not written in place; the old cluster gets free. */
static void test_shared_cluster(void **state)
{
	struct model m = model_new(MB);
	struct node *n;
	uint64_t at;

	create("s.qcow2", (struct qcow2_create){ .size = MB });
	sh_ok("qemu-io -c 'write -P 6 0 128k' s.qcow2");
	memset(m.data, 6, 131072);
	at = l2_table("s.qcow2");
	poke64("s.qcow2", at, peek64("s.qcow2", at) & ~QCOW2_COPIED);
	poke64("s.qcow2", peek64("s.qcow2", H_L1_OFFSET), at);	/* the L2 table, too */
	n = open_image("s.qcow2", "");
	memset(m.data + 700, 9, 1000);
	assert_int_equal(node_write(n, m.data + 700, 700, 1000, 0), 0);
	model_check(&m, n);
	node_unref(n);
	image_check(&m, "s.qcow2");
	free(m.data);
}

/* Random damage to metadata: any answer will do, but there is one, in bounds. */
static void test_damaged(void **state)
{
	uint64_t seed = 99, off;
	uint8_t *buf = malloc(MB), byte;
	struct extent v[64];

	memset(buf, 1, MB);
	create("good.qcow2", (struct qcow2_create){ .size = 4 * MB, .cluster_size = 4096, .refcount_bits = 8 });
	sh_ok("qemu-io -c 'write 0 1M' -c 'write -z 1M 64k' -c 'discard 2M 1M' good.qcow2");
	sh_ok("truncate -s 4M base.raw");
	for (unsigned i = 0; i < 300; i++) {
		struct extents x = { .v = v, .max = 64 };
		struct error err;
		struct node *n = NULL;

		sh_ok("cp good.qcow2 bad.qcow2");
		for (unsigned k = 0; k <= i % 5; k++) {
			off = next_random(&seed) % (i & 1 ? 112 : 6 * 4096 + 64);
			byte = next_random(&seed) % 3 ? 1u << next_random(&seed) % 8 : 0xff;
			poke("bad.qcow2", off, &byte, 1);
		}
		if (open_at(io_blocking(), &n, &err, "{'driver':'qcow2','backing':null,"
			    "'file':{'driver':'file','filename':'DIR/bad.qcow2'}}"))
			continue;
		node_map_chain(n, 0, n->size, &x);
		for (off = 0; off < 4 * MB && off + MB <= n->size; off += MB) {
			node_read(n, buf, off, MB);
			node_discard(n, off, 65536);
			node_write(n, buf, off, 5000, 0);
			node_zero(n, off + 65536, 65536, NODE_MAY_UNMAP);
			node_flush(n);
			node_write(n, buf, off + 512, 200000, 0);
		}
		node_unref(n);
	}
	free(buf);
}

/* What QEMU compressed is read and written over; a bad stream costs its cluster. */
static void test_compressed(void **state)
{
	struct model m = model_new(4 * MB);
	uint64_t seed = 77, entry;
	struct node *n;
	char buf[512];

	for (unsigned how = 0; how < 4; how++) {
		for (uint64_t i = 0; i < m.size; i++)
			m.data[i] = next_random(&seed) % 7;
		model_store(&m, "z.raw");
		sh_ok("qemu-img convert -q -c -O qcow2 -o compression_type=%s,cluster_size=%s z.raw z.qcow2",
		      how & 1 ? "zstd" : "zlib", how & 2 ? "512" : "64k");
		n = open_image("z.qcow2", "");
		model_check(&m, n);
		for (unsigned i = 0; i < 300; i++) {
			uint64_t off = next_random(&seed) % m.size, len = next_random(&seed) % 70000;

			len = min_u64(len, m.size - off);
			memset(m.data + off, i % 3 ? i : 0, len);
			assert_int_equal(i % 3 ? node_write(n, m.data + off, off, len, 0) : node_zero(n, off, len, 0), 0);
		}
		model_check(&m, n);
		node_unref(n);
		image_check(&m, "z.qcow2");
	}
	sh_ok("qemu-img convert -q -c -O qcow2 z.raw z.qcow2");
	entry = peek64("z.qcow2", peek64("z.qcow2", peek64("z.qcow2", H_L1_OFFSET)) & QCOW2_OFFSET);
	poke("z.qcow2", entry & 0xffffffff, "\377\377\377\377", 4);
	n = open_image("z.qcow2", "");
	assert_int_equal(node_read(n, buf, 0, 512), -EIO);
	assert_int_equal(node_write(n, buf, 100, 300, 0), -EIO);
	assert_int_equal(node_read(n, buf, 2 * MB, 512), 0);
	node_unref(n);
	free(m.data);
}

/* Clusters for others: contiguous, counted, given back. */
/* Fills LEN bytes with what compresses, sometimes not. */
static void fill_text(uint8_t *p, uint64_t len, uint64_t *seed)
{
	unsigned kinds = 1 + next_random(seed) % 200;

	for (uint64_t i = 0; i < len; i++)
		p[i] = kinds > 190 ? next_random(seed) : next_random(seed) % kinds;
}

static void pack_round(const char *name, struct model *m, uint64_t cluster, uint64_t *seed)
{
	struct node *n = open_image(name, "");

	for (unsigned i = 0; i < (cluster > 65536 ? 8 : 100); i++) {
		uint64_t off = next_random(seed) % m->size, len = next_random(seed) % (5 * cluster);
		unsigned flags = next_random(seed) % 4 ? NODE_COMPRESS : 0;

		if (next_random(seed) % 4) {
			off = align_down(off, cluster);
			len = align_up(len + 1, cluster);
		}
		len = min_u64(len, m->size - off);
		fill_text(m->data + off, len, seed);
		if (next_random(seed) % 5) {
			assert_int_equal(node_write(n, m->data + off, off, len, flags), 0);
		} else {
			memset(m->data + off, 0, len);
			assert_int_equal(node_zero(n, off, len, NODE_MAY_UNMAP), 0);
		}
		if (i % 20 == 0)
			assert_int_equal(node_flush(n), 0);
	}
	model_check(m, n);
	node_unref(n);
	image_check(m, name);
}

/* Smaller, larger, smaller: what comes back reads as zeroes, and nothing is leaked. */
static void test_resized(void **state)
{
	static const char *const kinds[] = {
		"compat=0.10", "cluster_size=512", "extended_l2=on,cluster_size=16k", "data file",
		"cluster_size=4k,backing_file=base.raw,backing_fmt=raw", "compat=0.10,backing_file=base.raw,backing_fmt=raw",
	};
	uint64_t seed = 99;
	struct error err = ERROR_INIT;

	sh_ok("dd if=/dev/urandom of=base.raw bs=1M count=6 status=none");
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct model m = model_new(8 * MB);
		struct node *n;

		if (i == 3)
			sh_ok("qemu-img create -q -f qcow2 -o data_file=res.raw,data_file_raw=on r.qcow2 4M");
		else
			sh_ok("qemu-img create -q -f qcow2 -o %s r.qcow2 4M", kinds[i]);
		m.size = 4 * MB;
		if (i >= 4)
			peek("base.raw", 0, m.data, m.size);
		n = open_image("r.qcow2", "");
		for (unsigned k = 0; k < 30; k++) {
			uint64_t off = next_random(&seed) % m.size, len = min_u64(m.size - off, next_random(&seed) % 200000);
			uint64_t size = (1 + next_random(&seed) % 8) * MB - 512 * (next_random(&seed) % 3);

			memset(m.data + off, k + 1, len);
			assert_int_equal(node_write(n, m.data + off, off, len, k % 2 ? NODE_COMPRESS : 0), 0);
			if (k % 3)
				continue;
			if (node_truncate(n, size, &err))
				fail_msg("%s: %s", kinds[i], err.text);
			if (size < m.size)
				memset(m.data + size, 0, m.size - size);
			m.size = size;
		}
		model_check(&m, n);
		node_unref(n);
		image_check(&m, "r.qcow2");
		free(m.data);
	}
}

/* The backing image in the header is not open while the disk grows: it must not
 * show through when it is. */
static void test_grown_without_its_backing(void **state)
{
	struct model m = model_new(6 * MB);
	struct error err = ERROR_INIT;
	struct node *n;

	sh_ok("dd if=/dev/urandom of=base.raw bs=1M count=6 status=none; qemu-img create -q -f qcow2 -b base.raw -F raw g.qcow2 2M");
	peek("base.raw", 0, m.data, 2 * MB);
	n = open_image("g.qcow2", "'backing':null");
	assert_int_equal(node_truncate(n, 6 * MB, &err), 0);
	node_unref(n);
	image_check(&m, "g.qcow2");
	free(m.data);
}

static void test_packed(void **state)
{
	static const char *const kinds[] = {
		"compat=0.10", "cluster_size=512", "cluster_size=4k,refcount_bits=1", "refcount_bits=2",
		"compression_type=zstd", "extended_l2=on,cluster_size=16k", "cluster_size=2M",
	};
	uint64_t seed = 4711, cluster;
	struct node *n;

	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct model m = model_new(i == 6 ? 12 * MB + 512 : 2 * MB + 512);

		sh_ok("qemu-img create -q -f qcow2 -o %s p.qcow2 %llu", kinds[i], (unsigned long long)m.size);
		n = open_image("p.qcow2", "");
		cluster = qcow2_cluster_size(n);
		node_unref(n);
		for (unsigned life = 0; life < 2; life++)
			pack_round("p.qcow2", &m, cluster, &seed);
		free(m.data);
	}
}

static void test_meta_clusters(void **state)
{
	struct node *n;
	int64_t a, b;

	create("a.qcow2", (struct qcow2_create){ .size = MB, .cluster_size = 512 });
	n = open_image("a.qcow2", "");
	a = qcow2_alloc_clusters(n, 1000);
	b = qcow2_alloc_clusters(n, 3);
	assert_true(a > 0 && b > 0 && (b >= a + 512000 || b + 1536 <= a));
	assert_true(qcow2_meta_range_ok(n, a, 512000));
	assert_false(qcow2_meta_range_ok(n, a + 1, 512));
	assert_false(qcow2_meta_range_ok(n, a, 1ull << 50));
	assert_int_equal(qcow2_meta_write(n, qcow2_zeroes, a, 512), 0);
	assert_int_equal(qcow2_meta_flush(n), 0);
	assert_int_not_equal(sh("qemu-img check -U a.qcow2"), 0);	/* leaks, so far */
	qcow2_free_clusters(n, a, 1000);
	qcow2_free_clusters(n, b, 3);
	node_unref(n);
	sh_ok("qemu-img check -q a.qcow2");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_create), cmocka_unit_test(test_read_qemu),
		cmocka_unit_test(test_random), cmocka_unit_test(test_random_overlay),
		cmocka_unit_test(test_refcount_growth), cmocka_unit_test(test_map),
		cmocka_unit_test(test_zero_overlay), cmocka_unit_test(test_discard_reuse),
		cmocka_unit_test(test_truncate), cmocka_unit_test(test_header),
		cmocka_unit_test(test_header_moves_name), cmocka_unit_test(test_refused),
		cmocka_unit_test(test_refused_numbers), cmocka_unit_test(test_backing),
		cmocka_unit_test(test_corrupt), cmocka_unit_test(test_damaged), cmocka_unit_test(test_shared_cluster),
		cmocka_unit_test(test_compressed), cmocka_unit_test(test_packed), cmocka_unit_test(test_resized),
		cmocka_unit_test(test_grown_without_its_backing),
		cmocka_unit_test(test_meta_clusters),
	};

	return cmocka_run_group_tests(tests, dir_setup, dir_teardown);
}
