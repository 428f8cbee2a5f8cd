/* SPDX-License-Identifier: BSD-3-Clause */
/* Storage that fails once, at each of its calls in turn: the caller is told, everything
 * else goes on, nothing that was answered is lost, and what comes next works again.  A
 * flush that failed stays failed until the image is opened anew.
 *
 * Some calls here; all of the first 200 with MERINO_SOAK.
 */
#include "qcow2-rig.h"

#include <errno.h>

#include "common/io-sim.h"

#define SECTOR 512u
#define SECTORS 2048u			/* of the disk */
#define STEPS 70
#define CALLS 200

enum { QCOW2, RAW, FORMATS };

/* What each sector may hold: a set of step numbers; 0 are zeroes.  SINCE: since the last
 * flush that went well; all that is left when one fails. */
static uint64_t may[SECTORS][4], since[SECTORS][4];
static uint8_t buffer[SECTORS * SECTOR];

static bool may_hold(unsigned sector, unsigned value)
{
	return may[sector][value / 64] >> value % 64 & 1;
}

static void now_may_hold(unsigned sector, unsigned value, bool sure)
{
	if (sure)
		memset(may[sector], 0, sizeof(may[sector]));
	may[sector][value / 64] |= 1ull << value % 64;
	since[sector][value / 64] |= 1ull << value % 64;
}

static void range_may_hold(unsigned first, unsigned n, unsigned value, bool sure)
{
	while (n--)
		now_may_hold(first++, value, sure);
}

static void verify(struct node *n, unsigned first, unsigned count, const char *when)
{
	int rc = node_read(n, buffer, first * SECTOR, count * SECTOR);

	if (rc)
		return;			/* the one that failed: the caller counts */
	for (unsigned i = 0; i < count; i++) {
		const uint8_t *p = buffer + i * SECTOR;

		for (unsigned j = 1; j < SECTOR; j++)
			if (p[j] != p[0])
				fail_msg("%s: sector %u is torn", when, first + i);
		if (!may_hold(first + i, p[0]))
			fail_msg("%s: sector %u holds %u", when, first + i, p[0]);
	}
}

struct trial {
	int format;
	unsigned kind;			/* enum io_sim_op */
	unsigned nth;
	int err;
	unsigned failed;		/* requests that were told so */
	bool flush_failed;
	bool durable_failed;		/* a durable write was told so: perhaps it was its sync */
};

static struct node *open_disk(struct io *io, int format)
{
	struct error err;
	struct node *n = NULL;

	if (format == QCOW2)
		return open_in(io, "f", "");
	if (open_at(io, &n, &err, "{'driver':'raw','discard':'unmap','file':{'driver':'file','filename':'DIR/f'}}"))
		fail_msg("%s", err.text);
	return n;
}

static void step(struct trial *r, struct node *n, unsigned number, uint64_t *seed)
{
	unsigned first = next_random(seed) % SECTORS, kind = next_random(seed) % 10;
	unsigned count = 1 + next_random(seed) % 100;
	int rc = 0;

	if (count > SECTORS - first)
		count = SECTORS - first;
	if (kind < 5) {
		memset(buffer, number, count * SECTOR);
		rc = node_write(n, buffer, first * SECTOR, count * SECTOR, kind == 0 ? NODE_FUA : 0);
		range_may_hold(first, count, number, !rc);
	} else if (kind == 5) {
		rc = node_zero(n, first * SECTOR, count * SECTOR, NODE_MAY_UNMAP);
		range_may_hold(first, count, 0, !rc);
	} else if (kind == 6) {
		rc = node_discard(n, first * SECTOR, count * SECTOR);
		range_may_hold(first, count, 0, false);
	} else if (kind == 7) {
		rc = node_flush(n);
		if (r->flush_failed)
			assert_int_not_equal(rc, 0);
		if (!rc)
			memcpy(since, may, sizeof(may));
	} else {
		rc = node_read(n, buffer, first * SECTOR, count * SECTOR);
		if (!rc)
			verify(n, first, count, "while it runs");
	}
	r->failed += rc != 0;
	r->durable_failed |= rc && kind == 0;
	r->flush_failed |= rc && r->kind == IO_SIM_FSYNC;
}

static void make_disk(struct io_sim *sim, int format)
{
	struct error err = ERROR_INIT;
	struct io_file *f;

	range_may_hold(0, SECTORS, 0, true);
	memcpy(since, may, sizeof(may));
	if (format == QCOW2) {
		create_in(io_sim_io(sim), "f", (struct qcow2_create){ .size = SECTORS * SECTOR, .cluster_size = 4096 });
		return;
	}
	f = io_open(io_sim_io(sim), path_of("f"), IO_RDWR | IO_CREATE, &err);
	assert_int_equal(io_truncate(f, SECTORS * SECTOR), 0);
	io_file_unref(f);
}

static void run_one(struct trial *r)
{
	struct io_sim *sim = io_sim_new(r->nth * 7919 + r->kind), *later;
	uint64_t seed = 0x9e3779b97f4a7c15ull * (r->nth + 1);
	struct node *n;

	make_disk(sim, r->format);
	n = open_disk(io_sim_io(sim), r->format);
	for (unsigned i = r->err == ENOSPC ? 2 : 1; i; i--)	/* a full disk is full for longer */
		io_sim_fail(sim, r->kind, r->nth, r->err);
	for (unsigned i = 1; i <= STEPS; i++)
		step(r, n, i, &seed);
	verify(n, 0, SECTORS, "in the end");
	if (r->flush_failed)
		assert_int_not_equal(node_flush(n), 0);
	else if (r->failed && r->err == ENOSPC && !r->durable_failed)
		assert_true(!node_flush(n) || !node_flush(n));	/* there is room again */
	node_unref(n);

	later = io_sim_clone(sim);	/* a fault that did not come is forgotten */
	io_sim_free(sim);
	sim = later;
	/* A flush may have failed: the close's, or that of a durable write. */
	if (r->kind == IO_SIM_FSYNC || (r->kind == IO_SIM_WRITE && r->err == EIO))
		memcpy(may, since, sizeof(may));
	n = open_disk(io_sim_io(sim), r->format);
	assert_int_equal(node_read(n, buffer, 0, SECTORS * SECTOR), 0);
	verify(n, 0, SECTORS, "opened again");
	memset(buffer, 77, SECTOR);
	assert_int_equal(node_write(n, buffer, 0, SECTOR, NODE_FUA), 0);
	assert_int_equal(node_flush(n), 0);
	node_unref(n);
	assert_int_equal(io_sim_dump(sim, path_of("f"), path_of("f")), 0);
	if (r->format == QCOW2)
		sh_ok("qemu-img check -q f || [ $? = 3 ]");
	io_sim_free(sim);
}

static void fail_each(unsigned kind, int err)
{
	unsigned stride = getenv("MERINO_SOAK") ? 1 : 17, told = 0;

	for (int format = 0; format < FORMATS; format++) {
		for (unsigned n = 1 + kind % 3; n <= CALLS; n += stride) {
			struct trial r = { .format = format, .kind = kind, .nth = n, .err = err };

			run_one(&r);
			told += !!r.failed;
		}
	}
	assert_true(told > 0);
}

static void test_reads(void **state)
{
	fail_each(IO_SIM_READ, EIO);
}

static void test_writes(void **state)
{
	fail_each(IO_SIM_WRITE, EIO);
	fail_each(IO_SIM_WRITE, ENOSPC);
}

static void test_flushes(void **state)
{
	fail_each(IO_SIM_FSYNC, EIO);
	fail_each(IO_SIM_FSYNC, ENOSPC);
}

static void test_zeroes(void **state)
{
	fail_each(IO_SIM_ZERO, EIO);
	fail_each(IO_SIM_ZERO, ENOSPC);
}

/* A durable write is a write and a sync.  Only when it was the sync that failed, others'
 * data is lost with it: no flush says that it is safe from then on. */
static void test_durable_writes(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct node *n;

	make_disk(sim, RAW);
	n = open_disk(io_sim_io(sim), RAW);
	assert_int_equal(node_write(n, buffer, 8192, 512, 0), 0);
	io_sim_fail(sim, IO_SIM_WRITE, 1, ENOSPC);	/* the disk is full: twice */
	io_sim_fail(sim, IO_SIM_WRITE, 1, ENOSPC);
	assert_int_equal(node_write(n, buffer, 0, 512, NODE_FUA), -ENOSPC);
	assert_int_equal(node_flush(n), 0);
	io_sim_fail(sim, IO_SIM_WRITE, 1, ENOSPC);	/* only with the sync */
	assert_int_equal(node_write(n, buffer, 0, 512, NODE_FUA), -ENOSPC);
	assert_int_equal(node_flush(n), -ENOSPC);
	assert_int_equal(node_write(n, buffer, 0, 512, 0), 0);
	assert_int_equal(node_flush(n), -ENOSPC);
	node_unref(n);
	n = open_disk(io_sim_io(sim), RAW);
	assert_int_equal(node_flush(n), 0);
	node_unref(n);
	io_sim_free(sim);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads), cmocka_unit_test(test_writes), cmocka_unit_test(test_flushes),
		cmocka_unit_test(test_zeroes), cmocka_unit_test(test_durable_writes),
	};

	return cmocka_run_group_tests(tests, dir_setup, dir_teardown);
}
