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

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refcounts_fail),
	};

	return cmocka_run_group_tests(tests, dir_setup, dir_teardown);
}
