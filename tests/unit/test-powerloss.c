// SPDX-License-Identifier: BSD-3-Clause
/* Power losses under qcow2: whatever was flushed is there, what was not written
 * still reads as the backing image, and tables never say more than is true.
 *
 * For every sync point of a workload the machine dies just before and just
 * after it; several states that storage may be in then are opened and judged
 * by the model of powerloss-model.h, by a checker of our own, and some by
 * qemu-img check.  That the test can fail is tested too: with the order of
 * writes broken on purpose (qcow2_test_break_order) it must find corruption.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/log.h"
#include "format/qcow2-int.h"
#include "powerloss-rig.h"

/* Instead of the library's, which would tell of every crash. */
void log_line(enum log_level level, const char *fmt, ...)
{
}

static char dir[] = "/tmp/merino-test-powerloss.XXXXXX";
static bool have_qemu_img;

static const struct config configs[] = {
	{ .name = "4k overlay", .seed = 1, .cluster = 4096, .blocks = 6144, .backing = 5000, .workers = 3,
	  .ops = 40, .slice = 512 },
	{ .name = "4k standalone", .seed = 2, .cluster = 4096, .blocks = 1600, .workers = 3, .ops = 40,
	  .slice = 4096, .refcount_bits = 1 },
	{ .name = "64k overlay", .seed = 3, .cluster = 65536, .blocks = 4096, .backing = 4000, .workers = 3,
	  .ops = 30, .slice = 4096, .refcount_bits = 8 },
	{ .name = "1k overlay, many tables", .seed = 4, .cluster = 1024, .blocks = 2048, .backing = 2048,
	  .workers = 4, .ops = 40, .slice = 512, .refcount_bits = 64 },
	/* One refcount block counts 32 KiB, the first refcount table 2 MiB. */
	{ .name = "512, the refcount table grows", .seed = 5, .cluster = 512, .blocks = 4608, .prefill = 3960,
	  .workers = 2, .ops = 50, .slice = 512, .refcount_bits = 64 },
	/* One entry of the L1 table maps 32 KiB; the backing image is longer. */
	{ .name = "512 overlay, the disk grows", .seed = 6, .cluster = 512, .blocks = 2560, .grow = 1500,
	  .backing = 1800, .workers = 3, .ops = 40, .slice = 512 },
	{ .name = "4k with a snapshot", .seed = 7, .cluster = 4096, .blocks = 2048, .prefill = 1600, .snapshot = true,
	  .workers = 3, .ops = 40, .slice = 512 },
	{ .name = "4k overlay, version 2", .seed = 8, .cluster = 4096, .blocks = 2048, .backing = 1500, .workers = 3,
	  .ops = 40, .slice = 512, .version_2 = true },
	{ .name = "64k overlay, subclusters", .seed = 9, .cluster = 65536, .blocks = 4096, .backing = 3000, .workers = 3,
	  .ops = 40, .slice = 4096, .subclusters = true },
	{ .name = "4k overlay, compressed", .seed = 10, .cluster = 4096, .blocks = 2048, .backing = 1500, .workers = 3,
	  .ops = 40, .slice = 512, .pack = true },
	{ .name = "16k subclusters, compressed", .seed = 11, .cluster = 16384, .blocks = 4096, .workers = 3,
	  .ops = 40, .slice = 1024, .pack = true, .subclusters = true, .refcount_bits = 4 },
	{ .name = "4k, old clusters stay", .seed = 12, .cluster = 4096, .blocks = 2048, .prefill = 1800, .workers = 3,
	  .ops = 40, .slice = 512, .aside = true },
};

/* Runs CFG on a copy of TEMPLATE with a crash; the caller frees R. */
static void run_with_crash(struct rig *r, const struct config *cfg, const struct io_sim *template,
			   enum io_sim_crash when, uint64_t n)
{
	struct io_sim *sim = io_sim_clone(template);

	io_sim_crash_at(sim, when, n);
	rig_init(r, cfg, sim);
	rig_run(r);
}

/* What qemu-img check says of the machine's image: 0, or 3 for leaks, is fine. */
static void ask_qemu_img(struct rig *r)
{
	char image[80], base[80], cmd[200];
	int rc;

	snprintf(image, sizeof(image), "%s/image", dir);
	snprintf(base, sizeof(base), "%s/base", dir);
	snprintf(cmd, sizeof(cmd), "qemu-img check -q -f qcow2 %s >%s/out 2>&1", image, dir);
	rc = io_sim_dump(r->sim, "image", image) ?: io_sim_dump(r->sim, "base", base);
	if (rc) {
		rig_wrong(r, "dump: %s", strerror(-rc));
		return;
	}
	rc = system(cmd);
	if (!WIFEXITED(rc) || (WEXITSTATUS(rc) != 0 && WEXITSTATUS(rc) != 3))
		rig_wrong(r, "qemu-img check says %d", WEXITSTATUS(rc));
}

/* One state that the dead R may be in: verifies it.  False: something is wrong,
 * which is told unless QUIET. */
static bool state_is_good(const struct rig *r, uint64_t seed, bool qemu, bool quiet, const char *how)
{
	struct io_sim *sim = io_sim_clone(r->sim);
	struct rig s;
	bool good;

	io_sim_power_loss(sim, seed);
	rig_fork(&s, r, sim);
	if (qemu && have_qemu_img)
		ask_qemu_img(&s);
	rig_verify(&s, POWER_LOSS);
	good = !s.why[0];
	if (!good && !quiet)
		print_error("%s, seed %llu, %s, state %llu: %s\n", r->cfg->name,
			    (unsigned long long)r->cfg->seed, how, (unsigned long long)seed, s.why);
	rig_free(&s);
	return good;
}

struct hunt {
	unsigned states;		/* at each crash */
	uint64_t stride;		/* crash points between two that are taken */
	bool quiet, stop;		/* do not tell; stop at the first bad state */
	unsigned verified, bad;
};

static void hunt_at(struct hunt *h, const struct config *cfg, const struct io_sim *template,
		    enum io_sim_crash when, uint64_t n)
{
	static const char *const names[] = { "", "before sync", "after sync", "at write" };
	char how[40];
	struct rig r;

	snprintf(how, sizeof(how), "%s %llu", names[when], (unsigned long long)n);
	run_with_crash(&r, cfg, template, when, n);
	if (r.why[0]) {
		if (!h->quiet)
			print_error("%s, %s, while it ran: %s\n", cfg->name, how, r.why);
		h->bad++;
	}
	/* All eight styles take their turns. */
	for (unsigned i = 0; i < h->states && !(h->stop && h->bad); i++) {
		uint64_t seed = n * h->states + i + 8 * (when + cfg->seed);

		h->bad += !state_is_good(&r, seed, h->verified % 97 == 0 && !h->quiet, h->quiet, how);
		h->verified++;
	}
	rig_free(&r);
}

/* Crashes at every sync point, both sides of it, and between them. */
static void hunt(struct hunt *h, const struct config *cfg)
{
	struct io_sim *template = rig_template(cfg);
	uint64_t syncs, writes;
	struct rig r;

	run_with_crash(&r, cfg, template, IO_SIM_CRASH_NEVER, 0);
	syncs = io_sim_sync_points(r.sim);
	writes = io_sim_writes(r.sim);
	if (!r.why[0])
		rig_verify(&r, NO_DEATH);
	if (r.why[0] && !h->quiet)
		print_error("%s, without a crash: %s\n", cfg->name, r.why);
	h->bad += r.why[0] != 0;
	rig_free(&r);
	for (uint64_t n = 1; n <= syncs && !(h->stop && h->bad); n += h->stride) {
		hunt_at(h, cfg, template, IO_SIM_CRASH_BEFORE_SYNC, n);
		hunt_at(h, cfg, template, IO_SIM_CRASH_AFTER_SYNC, n);
	}
	for (uint64_t n = 1; n <= writes && !(h->stop && h->bad); n += 3 * h->stride)
		hunt_at(h, cfg, template, IO_SIM_CRASH_AT_WRITE, n);
	io_sim_free(template);
}

/* POWERLOSS_SEEDS=100 makes it a long search. */
static void nothing_flushed_is_lost(void **state)
{
	const char *seeds = getenv("POWERLOSS_SEEDS");
	struct config cfg = *(const struct config *)*state;
	struct hunt h = { .states = 3, .stride = 1 };

	for (int n = seeds ? atoi(seeds) : 1; n > 0; n--, cfg.seed += 1000)
		hunt(&h, &cfg);
	print_message("%u states of \"%s\"\n", h.verified, cfg.name);
	assert_int_equal(h.bad, 0);
	assert_true(h.verified > 100);
}

/* The same, in search of anything wrong, while the order is broken. */
static void broken_order_is_found(unsigned how)
{
	struct hunt h = { .states = 8, .stride = 1, .quiet = true, .stop = true };

	qcow2_test_break_order = how;
	for (unsigned i = 0; i < 4 && !h.bad; i++) {
		struct config cfg = configs[i];

		for (cfg.seed = 100; cfg.seed < 104 && !h.bad; cfg.seed++)
			hunt(&h, &cfg);
	}
	qcow2_test_break_order = 0;
	print_message("broken order %u: found after %u states\n", how, h.verified);
	assert_int_not_equal(h.bad, 0);
}

static void tables_before_data_is_found(void **state)
{
	broken_order_is_found(1);
}

static void early_reuse_is_found(void **state)
{
	broken_order_is_found(2);
}

static void tables_before_refcounts_is_found(void **state)
{
	broken_order_is_found(3);
}

/* Fault number N in a run of C.  Whether a request failed. */
static bool survives_fault(const struct config *c, unsigned n)
{
	struct config cfg = *c;
	struct io_sim *template;
	struct rig r;
	bool failed;

	cfg.seed += n;
	cfg.fail_kinds = n % 4 == 1 ? IO_SIM_FSYNC : IO_SIM_WRITE;
	cfg.fail_n = n % 4 == 1 ? 1 + n / 4 : n * 3;
	template = rig_template(&cfg);
	run_with_crash(&r, &cfg, template, IO_SIM_CRASH_NEVER, 0);
	failed = r.errors > 0;
	if (r.why[0])
		print_error("fault %u: %s\n", n, r.why);
	assert_int_equal(r.why[0], 0);
	for (unsigned i = 0; i < 8; i++)
		assert_true(state_is_good(&r, i + n, i == 2, false, "after a fault"));
	rig_free(&r);
	io_sim_free(template);
	return failed;
}

/* A write or an fsync fails on the way: requests fail, nothing flushed is lost. */
static void faults_are_survived(void **state)
{
	unsigned failed = 0;

	for (unsigned n = 1; n < 60; n += 2)
		failed += survives_fault(&configs[n % 4], n);
	assert_true(failed > 5);
}

/* … and no old cluster that somebody holds is used for anything else. */
static void faults_with_a_holder_are_survived(void **state)
{
	unsigned failed = 0;

	for (unsigned n = 1; n < 40; n += 2)
		failed += survives_fault(&configs[11], n);
	assert_true(failed > 3);
}

/* --- the judges --- */

static int run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int run(const char *fmt, ...)
{
	char cmd[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	return system(cmd);
}

/* Our checker finds a good image of qemu-img's good, and each damage bad. */
static void the_checker_checks(void **state)
{
	struct io_sim *sim = io_sim_new(1);
	struct error err = ERROR_INIT;
	struct io_file *f;
	struct checker c;
	uint8_t entry[8];
	uint64_t l1, l2;
	char path[80];

	if (!have_qemu_img) {
		io_sim_free(sim);
		skip();
	}
	snprintf(path, sizeof(path), "%s/q", dir);
	assert_int_equal(run("cd %s && qemu-img create -q -f qcow2 -o cluster_size=4k q 2M && "
			     "qemu-io -c 'write 0 1M' -c 'discard 64k 64k' q >/dev/null", dir), 0);
	assert_int_equal(io_sim_load(sim, "q", path), 0);
	f = io_open(io_sim_io(sim), "q", IO_RDWR, &err);
	checker_run(&c, f);
	assert_string_equal(c.first, "");
	assert_int_equal(c.errors + c.leaks, 0);

	assert_int_equal(io_pread(f, entry, 8, 40), 8);
	l1 = get_be64(entry);
	assert_int_equal(io_pread(f, entry, 8, l1), 8);
	l2 = get_be64(entry) & QCOW2_OFFSET;
	assert_int_equal(io_pread(f, entry, 8, l2), 8);
	assert_int_equal(io_pwrite(f, entry, 8, l2 + 8, 0), 0);		/* used twice, and a leak */
	checker_run(&c, f);
	assert_int_equal(c.leaks, 1);
	assert_true(c.errors > 0);
	memset(entry, 0, 8);
	assert_int_equal(io_pwrite(f, entry, 8, l2 + 8, 0), 0);		/* the leak is left */
	checker_run(&c, f);
	assert_int_equal(c.leaks, 1);
	assert_int_equal(c.errors, 0);
	put_be64(entry, l1 | QCOW2_COPIED);
	assert_int_equal(io_pwrite(f, entry, 8, l2, 0), 0);		/* data in a table */
	checker_run(&c, f);
	assert_true(c.errors > 0);
	io_file_unref(f);
	io_sim_free(sim);
}

static int setup(void **state)
{
	qcow2_crashlog_bytes = 4096 + 64 * 32;	/* full now and then */
	have_qemu_img = system("qemu-img --version >/dev/null 2>&1") == 0;
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	return run("rm -rf %s", dir);
}

#define HUNT(i) { "nothing flushed is lost: " #i, nothing_flushed_is_lost, NULL, NULL, (void *)&configs[i] }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_checker_checks),
		HUNT(0), HUNT(1), HUNT(2), HUNT(3), HUNT(4), HUNT(5),
		HUNT(7), HUNT(8), HUNT(9), HUNT(10), HUNT(6), HUNT(11),
		cmocka_unit_test(tables_before_data_is_found),
		cmocka_unit_test(early_reuse_is_found),
		cmocka_unit_test(tables_before_refcounts_is_found),
		cmocka_unit_test(faults_are_survived),
		cmocka_unit_test(faults_with_a_holder_are_survived),
	};

	cmocka_set_test_filter(getenv("ONLY"));	/* one of them */
	return cmocka_run_group_tests(tests, setup, teardown);
}
