/* SPDX-License-Identifier: BSD-3-Clause */
/* O_DIRECT files, in the simulation: requests that meet in one block lose nothing. */
#include "qcow2-rig.h"

#include "common/io-sim.h"

enum { BLOCK = 4096, SEEDS = 200 };

static struct node *file;
static unsigned done;

static void write_part(void *arg)
{
	char data[100];

	memset(data, 1, sizeof(data));
	assert_int_equal(node_write(file, data, 100, sizeof(data), 0), 0);
	done++;
}

static void write_other_part(void *arg)
{
	char data[100];

	memset(data, 2, sizeof(data));
	assert_int_equal(node_write(file, data, BLOCK - 50, sizeof(data), 0), 0);
	done++;
}

static void zero_block(void *arg)
{
	assert_int_equal(node_zero(file, 0, BLOCK, 0), 0);
	done++;
}

static struct io_sim *begin(uint64_t seed)
{
	struct io_sim *sim = io_sim_new(seed);
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io_sim_io(sim), path_of("d"), IO_RDWR | IO_CREATE, &err);
	char old[2 * BLOCK];

	memset(old, 0xaa, sizeof(old));
	assert_int_equal(io_pwrite(f, old, sizeof(old), 0, 0), 0);
	io_file_unref(f);
	if (open_at(io_sim_io(sim), &file, &err,
		    "{'driver':'file','filename':'DIR/d','cache':{'direct':true}}"))
		fail_msg("%s", err.text);
	done = 0;
	return sim;
}

static void finish(struct io_sim *sim, void *got)
{
	io_sim_run(sim);
	assert_int_equal(done, 2);
	assert_int_equal(node_read(file, got, 0, 2 * BLOCK), 0);
	node_unref(file);
	io_sim_free(sim);
}

static void test_parts(void **state)
{
	uint8_t got[2 * BLOCK];

	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		struct io_sim *sim = begin(seed);

		io_sim_start(sim, write_part, NULL);
		io_sim_start(sim, write_other_part, NULL);
		finish(sim, got);
		for (unsigned i = 0; i < sizeof(got); i++)
			assert_int_equal(got[i], i >= 100 && i < 200 ? 1
					 : i >= BLOCK - 50 && i < BLOCK + 50 ? 2 : 0xaa);
	}
}

/* What the write does not cover is zero, whoever comes first. */
static void test_part_meets_zero(void **state)
{
	uint8_t got[2 * BLOCK];

	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		struct io_sim *sim = begin(seed);

		io_sim_start(sim, write_part, NULL);
		io_sim_start(sim, zero_block, NULL);
		finish(sim, got);
		for (unsigned i = 0; i < sizeof(got); i++)
			if (i < 100 || i >= 200)
				assert_int_equal(got[i], i < BLOCK ? 0 : 0xaa);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parts), cmocka_unit_test(test_part_meets_zero),
	};

	return cmocka_run_group_tests(tests, dir_setup, dir_teardown);
}
