/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2 images whose storage fails, and images that were damaged: what is whole stays whole. */
#include "qcow2-rig.h"

#include <errno.h>

#include "common/io-sim.h"

enum { MB = 1 << 20 };

/* RUN clusters in one piece, or (0) a write of new clusters at OFF. */
static int needs_refcounts(struct node *n, uint64_t run, uint64_t off)
{
	char data[4096];
	int64_t rc;

	memset(data, 7, sizeof(data));
	if (!run)
		return node_write(n, data, off, sizeof(data), 0);
	rc = qcow2_alloc_clusters(n, run);
	return rc < 0 ? rc : 0;
}

/* A full disk, or a failed write, in every step that makes refcount blocks and
 * tables: the next attempt goes through, and nothing but leaks is left. */
static void refcounts_fail(int err, uint64_t run)
{
	unsigned failed = 0;

	for (unsigned n = 1; n < 40; n++) {
		struct io_sim *sim = io_sim_new(n);
		struct node *node;
		int rc = 0;

		create_in(io_sim_io(sim), "f.qcow2", (struct qcow2_create){
			  .size = 4 * MB, .cluster_size = 512, .refcount_bits = 64 });
		node = open_in(io_sim_io(sim), "f.qcow2", "");
		io_sim_fail(sim, IO_SIM_WRITE, n, err);
		for (uint64_t off = 0; off < 4 * MB && !rc; off += 65536)
			rc = needs_refcounts(node, run, off);
		failed += rc < 0;
		rc = needs_refcounts(node, run, 2048);
		if (qcow2_of(node)->corrupt)
			fail_msg("write %u failed: the image is marked as corrupt", n);
		if (err == ENOSPC)
			assert_int_equal(rc, 0);
		node_unref(node);
		assert_int_equal(io_sim_dump(sim, path_of("f.qcow2"), path_of("f.qcow2")), 0);
		sh_ok("qemu-img check -q f.qcow2 || [ $? = 3 ]");
		io_sim_free(sim);
	}
	assert_true(failed > 5);
}

static void test_refcounts_fail(void **state)
{
	refcounts_fail(ENOSPC, 0);
	refcounts_fail(EIO, 0);
	refcounts_fail(ENOSPC, 300);
	refcounts_fail(EIO, 300);
}

/* An entry that points to a table: freeing it would punch the table out, or hand
 * it to the next who asks for a cluster. */
static void test_tables_are_not_freed(void **state)
{
	char data[4096] = "x";

	for (unsigned i = 0; i < 4; i++) {
		uint64_t l1, l2;
		struct node *n;
		int rc;

		create("t.qcow2", (struct qcow2_create){ .size = 4 * MB, .cluster_size = 4096 });
		sh_ok("qemu-io -c 'write -P 5 0 64k' t.qcow2");
		l1 = peek64("t.qcow2", H_L1_OFFSET);
		l2 = peek64("t.qcow2", l1) & QCOW2_OFFSET;
		poke64("t.qcow2", l2, l2 | (i == 3 ? 0 : QCOW2_COPIED));
		n = open_image("t.qcow2", "");
		rc = i == 0 ? node_discard(n, 0, 4096) : i == 1 ? node_zero(n, 0, 4096, NODE_MAY_UNMAP)
		     : i == 2 ? node_discard(n, 0, 65536) : node_write(n, data, 512, 512, 0);
		assert_int_equal(rc, -EIO);
		node_flush(n);
		node_unref(n);
		assert_int_equal(peek64("t.qcow2", H_INCOMPATIBLE), QCOW2_CORRUPT);
		assert_int_equal(peek64("t.qcow2", l2), l2 | (i == 3 ? 0 : QCOW2_COPIED));
	}
}

/* Tables in one place: not written to at all, but read. */
static void test_overlapping_tables(void **state)
{
	uint64_t l1, table;
	struct node *n;
	char buf[512];

	for (unsigned i = 0; i < 5; i++) {
		create("o.qcow2", (struct qcow2_create){ .size = 4 * MB, .cluster_size = 4096 });
		sh_ok("qemu-io -c 'write 0 64k' -c 'write 3M 64k' o.qcow2; cp o.qcow2 o2.qcow2");
		l1 = peek64("o.qcow2", H_L1_OFFSET);
		table = peek64("o.qcow2", H_REFTABLE_OFFSET);
		if (i == 0)		/* one L2 table twice */
			poke64("o.qcow2", l1 + 8, peek64("o.qcow2", l1));
		else if (i == 1)	/* an L2 table in the L1 table */
			poke64("o.qcow2", l1 + 8, l1 | QCOW2_COPIED);
		else if (i == 2)	/* ... in the refcounts */
			poke64("o.qcow2", l1, peek64("o.qcow2", table) | QCOW2_COPIED);
		else if (i == 3)	/* one refcount block twice */
			poke64("o.qcow2", table + 8, peek64("o.qcow2", table));
		else			/* the L1 table in the refcount table */
			poke64("o.qcow2", H_L1_OFFSET, table);
		sh_ok("cp o.qcow2 o2.qcow2");
		assert_non_null(strstr(open_refused("o.qcow2", ""), "overlap"));
		sh_ok("cmp o.qcow2 o2.qcow2");
		n = open_image("o.qcow2", "'read-only':true");
		node_read(n, buf, 0, 512);
		node_unref(n);
	}
}

/* What a bitmap's pointers may lead to: one user's clusters, none of qcow2's own. */
static void test_foreign_pointers(void **state)
{
	struct node *n;
	uint64_t l1;
	int64_t at;

	create("p.qcow2", (struct qcow2_create){ .size = 4 * MB, .cluster_size = 4096 });
	l1 = peek64("p.qcow2", H_L1_OFFSET);
	n = open_image("p.qcow2", "");
	at = qcow2_alloc_clusters(n, 3);
	assert_true(at > 0 && qcow2_meta_range_ok(n, at, 3 * 4096));
	assert_int_equal(qcow2_meta_write(n, qcow2_zeroes, at + 8192, 4096), 0);
	assert_false(qcow2_meta_range_ok(n, l1, 4096));
	assert_false(qcow2_meta_range_ok(n, peek64("p.qcow2", H_REFTABLE_OFFSET), 4096));
	assert_false(qcow2_meta_range_ok(n, at - 4096, 4 * 4096));
	qcow2_free_clusters(n, at + 4096, 1);
	assert_int_equal(qcow2_meta_flush(n), 0);
	assert_false(qcow2_meta_range_ok(n, at, 3 * 4096));	/* the middle one is free */
	assert_true(qcow2_meta_range_ok(n, at + 8192, 4096));
	assert_false(qcow2_of(n)->corrupt);
	qcow2_free_clusters(n, at, 1);
	qcow2_free_clusters(n, at + 8192, 1);
	node_unref(n);
	sh_ok("qemu-img check -q p.qcow2");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refcounts_fail), cmocka_unit_test(test_tables_are_not_freed),
		cmocka_unit_test(test_overlapping_tables), cmocka_unit_test(test_foreign_pointers),
	};

	return cmocka_run_group_tests(tests, dir_setup, dir_teardown);
}
