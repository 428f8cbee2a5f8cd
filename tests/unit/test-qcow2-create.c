// SPDX-License-Identifier: BSD-3-Clause
/* New images of every kind, judged by qemu-img and worked on by qemu-io. */
#include "qcow2-rig.h"

#define MB (1ull << 20)

static struct node *open_file(const char *name, struct node_use *use)
{
	struct error err;
	struct node *n = NULL;
	char text[256];

	sh_ok("rm -f %s && touch %s", name, name);
	snprintf(text, sizeof(text), "{'driver':'file','filename':'DIR/%s'}", name);
	if (open_at(io_blocking(), &n, &err, text) ||
	    node_use_add(use, n, PERM_WRITE | PERM_RESIZE, PERM_ALL, &err, "the test"))
		fail_msg("%s: %s", name, err.text);
	return n;
}

static int create_at(const struct qcow2_create *o, struct error *err)
{
	struct node_use file_use = { 0 }, data_use = { 0 };
	struct node *file = open_file("n.qcow2", &file_use), *data = NULL;
	int rc;

	*err = ERROR_INIT;
	if (o->data_file)
		data = open_file("d.raw", &data_use);
	rc = qcow2_create_node(file, data, o, err);
	node_use_drop(&file_use);
	node_use_drop(&data_use);
	node_unref(file);
	node_unref(data);
	return rc;
}

/* QEMU sees what was asked for, and can work with it; so can we. */
static void judge(const struct qcow2_create *o)
{
	struct model m = model_new(o->size);
	struct node *n;

	sh_ok("qemu-img check -q n.qcow2");
	sh_ok("qemu-img info --output=json n.qcow2 >info && grep -q '\"compat\": \"%s\"' info && grep -q '\"refcount-bits\": %u' info",
	      o->version == 2 ? "0.10" : "1.1", o->refcount_bits ? o->refcount_bits : 16);
	if (o->version != 2)
		sh_ok("grep -q '\"extended-l2\": %s' info && grep -q '\"lazy-refcounts\": %s' info && grep -q '\"compression-type\": \"%s\"' info",
		      o->extended_l2 ? "true" : "false", o->lazy_refcounts ? "true" : "false", o->zstd ? "zstd" : "zlib");
	if (o->backing_file)
		memset(m.data, 7, MB);
	n = open_image("n.qcow2", "");
	model_check(&m, n);
	memset(m.data + MB / 2, 5, 3000);
	assert_int_equal(node_write(n, m.data + MB / 2, MB / 2, 3000, 0), 0);
	node_unref(n);
	sh_ok("qemu-io -c 'write -P 9 %llu 70k' n.qcow2 && ! grep fail out.txt", (unsigned long long)MB);
	memset(m.data + MB, 9, 70 << 10);
	image_check(&m, "n.qcow2");
	free(m.data);
}

static void test_kinds(void **state)
{
	static const struct qcow2_create kinds[] = {
		{ .version = 2 }, { .version = 3, .lazy_refcounts = true }, { .zstd = true, .refcount_bits = 64 },
		{ .extended_l2 = true }, { .extended_l2 = true, .cluster_size = 16384, .refcount_bits = 1 },
		{ .data_file = "d.raw" }, { .data_file = "d.raw", .data_file_raw = true },
		{ .data_file = "d.raw", .extended_l2 = true, .data_file_raw = true },
		{ .backing_file = "base.raw", .backing_format = "raw", .version = 2 },
		{ .backing_file = "base.raw", .backing_format = "raw", .extended_l2 = true,
		  .preallocation = QCOW2_PREALLOC_METADATA },
		{ .preallocation = QCOW2_PREALLOC_METADATA }, { .preallocation = QCOW2_PREALLOC_FALLOC },
		{ .preallocation = QCOW2_PREALLOC_FULL }, { .preallocation = QCOW2_PREALLOC_METADATA, .version = 2 },
		{ .preallocation = QCOW2_PREALLOC_METADATA, .cluster_size = 512, .refcount_bits = 2 },
		{ .preallocation = QCOW2_PREALLOC_FULL, .extended_l2 = true },
		{ .preallocation = QCOW2_PREALLOC_FALLOC, .data_file = "d.raw" },
		{ .preallocation = QCOW2_PREALLOC_FULL, .cluster_size = 2 << 20 },
	};
	struct error err;

	sh_ok("dd if=/dev/zero bs=1M count=1 status=none | tr '\\0' '\\007' >base.raw");
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct qcow2_create o = kinds[i];

		o.size = 3 * MB + 512;
		if (create_at(&o, &err))
			fail_msg("kind %u: %s", i, err.text);
		judge(&o);
	}
}

static void test_lengths(void **state)
{
	struct error err;
	struct stat st;

	for (unsigned p = QCOW2_PREALLOC_OFF; p <= QCOW2_PREALLOC_FULL; p++) {
		struct qcow2_create o = { .size = 8 * MB, .preallocation = p };

		assert_int_equal(create_at(&o, &err), 0);
		assert_int_equal(stat(path_of("n.qcow2"), &st), 0);
		assert_true(p == QCOW2_PREALLOC_OFF ? st.st_size < (off_t)MB : st.st_size > (off_t)(8 * MB));
		assert_true(p <= QCOW2_PREALLOC_METADATA ? st.st_blocks < 4096 : st.st_blocks >= 16384);
	}
	assert_int_equal(create_at(&(struct qcow2_create){ .size = 8 * MB, .data_file = "d.raw" }, &err), 0);
	assert_int_equal(stat(path_of("d.raw"), &st), 0);
	assert_int_equal(st.st_size, 8 * MB);
}

static void test_refused(void **state)
{
	static const struct { struct qcow2_create o; const char *why; } t[] = {
		{ { .version = 4 }, "version 4" }, { { .version = 2, .refcount_bits = 8 }, "refcount widths" },
		{ { .version = 2, .lazy_refcounts = true }, "Lazy refcounts" }, { { .version = 2, .zstd = true }, "compression" },
		{ { .version = 2, .extended_l2 = true }, "Extended L2" }, { { .version = 2, .data_file = "d" }, "External data" },
		{ { .extended_l2 = true, .cluster_size = 8192 }, "16384" }, { { .data_file_raw = true }, "requires data-file" },
		{ { .cluster_size = 1000 }, "power of two" }, { { .cluster_size = 4 << 20 }, "2048k" },
		{ { .refcount_bits = 3 }, "power of two" }, { { .refcount_bits = 128 }, "64 bits" },
		{ { .backing_file = "b", .backing_format = "raw", .data_file_raw = true, .data_file = "d" }, "data-file-raw" },
		{ { .backing_file = "b", .backing_format = "raw", .preallocation = QCOW2_PREALLOC_FULL }, "extended_l2" },
		{ { .backing_file = "b" }, "format" }, { { .size = INT64_MAX }, "too large" },
		{ { .size = 1ull << 50, .cluster_size = 512 }, "larger cluster size" },
	};
	struct error err;

	for (unsigned i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		if (!create_at(&t[i].o, &err))
			fail_msg("%u: created", i);
		if (!strstr(err.text, t[i].why))
			fail_msg("%u: %s", i, err.text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kinds), cmocka_unit_test(test_lengths), cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, dir_setup, dir_teardown);
}
