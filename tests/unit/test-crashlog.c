// SPDX-License-Identifier: BSD-3-Clause
/* A process that dies: nothing that was acknowledged is lost, nothing is leaked.
 *
 * The same workloads as in test-powerloss.c, on the same simulated machine; but it is
 * the process that dies, at every sync point and write.  What it handed to the kernel
 * stays, what is in flight is done, half done, or not.  Another process opens the image,
 * and may die or lose its power while it recovers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/log.h"
#include "format/qcow2-crashlog.h"
#include "format/qcow2-int.h"
#include "powerloss-rig.h"

/* Instead of the library's, which would tell of every crash. */
void log_line(enum log_level level, const char *fmt, ...)
{
}

static const struct config configs[] = {
	{ .name = "4k overlay", .seed = 1, .cluster = 4096, .blocks = 6144, .backing = 5000, .workers = 3,
	  .ops = 60, .slice = 512 },
	{ .name = "64k standalone", .seed = 2, .cluster = 65536, .blocks = 8192, .workers = 4, .ops = 60,
	  .slice = 4096, .refcount_bits = 1 },
	{ .name = "1k overlay, many tables", .seed = 3, .cluster = 1024, .blocks = 2048, .backing = 2048,
	  .workers = 4, .ops = 60, .slice = 512, .refcount_bits = 64 },
	{ .name = "512 overlay, the disk grows", .seed = 4, .cluster = 512, .blocks = 2560, .grow = 1500,
	  .backing = 1800, .workers = 3, .ops = 50, .slice = 512 },
	{ .name = "4k with a snapshot", .seed = 5, .cluster = 4096, .blocks = 3072, .prefill = 2400,
	  .snapshot = true, .workers = 3, .ops = 60, .slice = 512 },
	{ .name = "64k subclusters with a snapshot", .seed = 6, .cluster = 65536, .blocks = 4096, .prefill = 1800,
	  .snapshot = true, .workers = 3, .ops = 40, .slice = 4096, .subclusters = true },
	{ .name = "16k overlay, subclusters, compressed", .seed = 7, .cluster = 16384, .blocks = 4096, .backing = 3000,
	  .workers = 3, .ops = 40, .slice = 1024, .pack = true, .subclusters = true },
	{ .name = "4k compressed with a snapshot", .seed = 8, .cluster = 4096, .blocks = 2048, .prefill = 1600,
	  .snapshot = true, .workers = 3, .ops = 40, .slice = 512, .pack = true },
	{ .name = "4k, old clusters stay", .seed = 9, .cluster = 4096, .blocks = 2048, .prefill = 1800, .workers = 3,
	  .ops = 40, .slice = 512, .aside = true },
};

struct hunt {
	unsigned stride;		/* points between two at which the process dies */
	unsigned recovery_stride;	/* of these, how many are recovered from without another death */
	enum death promise;		/* KILL: nothing acknowledged is lost */
	bool quiet, stop;
	unsigned verified, bad;
};

static void tell(struct hunt *h, const struct config *cfg, const struct rig *r, const char *how)
{
	h->verified++;
	if (!r->why[0])
		return;
	h->bad++;
	if (!h->quiet)
		print_error("%s, seed %llu, %s: %s\n", cfg->name, (unsigned long long)cfg->seed, how, r->why);
}

static void verify(struct hunt *h, const struct config *cfg, const struct rig *dead, struct io_sim *sim,
		   enum death death, const char *how)
{
	struct rig s;

	rig_fork(&s, dead, sim);
	rig_verify(&s, death);
	tell(h, cfg, &s, how);
	rig_free(&s);
}

/* The machine of SIM dies at the N-th WHEN of the recovery; BY_POWER or its process. */
static bool die_again(const struct config *cfg, const struct rig *dead, struct io_sim *sim, bool by_power,
		      enum io_sim_crash when, uint64_t n)
{
	struct error err = ERROR_INIT;
	bool did;
	struct rig s;

	rig_fork(&s, dead, sim);
	if (by_power)
		io_sim_crash_at(sim, when, n);
	else
		io_sim_kill_at(sim, when, n);
	rig_open(&s, &err);
	did = io_sim_dead(sim);
	if (s.node)
		rig_close(&s);
	s.sim = NULL;
	rig_free(&s);
	return did;
}

/* Dies at each write and sync point of the recovery, one way and the other. */
static void hunt_recovery(struct hunt *h, const struct config *cfg, const struct rig *dead,
			  const struct io_sim *after)
{
	static const enum io_sim_crash whens[] = { IO_SIM_CRASH_BEFORE_SYNC, IO_SIM_CRASH_AT_WRITE };

	for (unsigned k = 0; k < 4; k++)
		for (uint64_t n = 1; !(h->stop && h->bad); n++) {
			struct io_sim *sim = io_sim_clone(after);
			char how[80];

			if (!die_again(cfg, dead, sim, k & 1, whens[k / 2], n)) {
				io_sim_free(sim);
				break;
			}
			if (k & 1)
				io_sim_power_loss(sim, n + h->verified);
			else
				io_sim_restart(sim);
			snprintf(how, sizeof(how), "then %s in recovery at %s %llu", k & 1 ? "power loss" : "kill",
				 k / 2 ? "write" : "sync", (unsigned long long)n);
			verify(h, cfg, dead, sim, k & 1 ? POWER_LOSS : h->promise, how);
		}
}

static void hunt_at(struct hunt *h, const struct config *cfg, const struct io_sim *template,
		    enum io_sim_crash when, uint64_t n)
{
	static const char *const names[] = { "", "before sync", "after sync", "at write" };
	struct io_sim *sim = io_sim_clone(template), *after;
	char how[60];
	struct rig r;

	snprintf(how, sizeof(how), "killed %s %llu", names[when], (unsigned long long)n);
	io_sim_kill_at(sim, when, n);
	rig_init(&r, cfg, sim);
	rig_run(&r);
	tell(h, cfg, &r, how);
	after = io_sim_clone(sim);
	io_sim_restart(after);
	verify(h, cfg, &r, io_sim_clone(after), h->promise, how);
	if (h->recovery_stride && n % h->recovery_stride == 1)
		hunt_recovery(h, cfg, &r, after);
	if (n % 7 == 3) {	/* and the power goes some time later, before anybody has opened it */
		struct io_sim *lost = io_sim_clone(after);

		io_sim_power_loss(lost, n);
		verify(h, cfg, &r, lost, POWER_LOSS, "then power loss");
	}
	io_sim_free(after);
	rig_free(&r);
}

static void hunt(struct hunt *h, const struct config *cfg)
{
	struct io_sim *template = rig_template(cfg);
	uint64_t syncs, writes;
	struct rig r;

	rig_init(&r, cfg, io_sim_clone(template));
	rig_run(&r);
	syncs = io_sim_sync_points(r.sim);
	writes = io_sim_writes(r.sim);
	rig_verify(&r, NO_DEATH);
	tell(h, cfg, &r, "without a crash");
	rig_free(&r);
	for (uint64_t n = 1; n <= syncs && !(h->stop && h->bad); n += h->stride) {
		hunt_at(h, cfg, template, IO_SIM_CRASH_BEFORE_SYNC, n);
		hunt_at(h, cfg, template, IO_SIM_CRASH_AFTER_SYNC, n);
	}
	for (uint64_t n = 1; n <= writes && !(h->stop && h->bad); n += h->stride)
		hunt_at(h, cfg, template, IO_SIM_CRASH_AT_WRITE, n);
	io_sim_free(template);
}

/* POWERLOSS_SEEDS=100 makes it a long search. */
static void nothing_acknowledged_is_lost(void **state)
{
	const char *seeds = getenv("POWERLOSS_SEEDS");
	struct config cfg = *(const struct config *)*state;
	bool close = seeds || cfg.pack;		/* compressed clusters share theirs: more to go wrong */
	struct hunt h = { .stride = close ? 1 : 2, .recovery_stride = close ? 7 : 40, .promise = KILL };

	for (int n = seeds ? atoi(seeds) : 1; n > 0; n--, cfg.seed += 1000)
		hunt(&h, &cfg);
	print_message("%u states of \"%s\"\n", h.verified, cfg.name);
	assert_int_equal(h.bad, 0);
	assert_true(h.verified > 100);
}

/* crash-log=off: what was flushed is there, and nothing is leaked after the next open. */
static void without_a_log_nothing_flushed_is_lost(void **state)
{
	struct config cfg = configs[0];
	struct hunt h = { .stride = 3, .promise = POWER_LOSS };

	cfg.no_log = true;
	hunt(&h, &cfg);
	assert_int_equal(h.bad, 0);
}

/* The other tests can fail: each of these breaks something, and it is found. */
static void found(unsigned how, bool no_log)
{
	struct hunt h = { .stride = 1, .promise = KILL, .quiet = true, .stop = true };

	qcow2_test_break_order = how;
	for (unsigned i = 0; i < 3 && !h.bad; i++) {
		struct config cfg = configs[i];

		cfg.no_log = no_log;
		hunt(&h, &cfg);
	}
	qcow2_test_break_order = 0;
	print_message("broken %u: found after %u states\n", how, h.verified);
	assert_int_not_equal(h.bad, 0);
}

static void no_log_is_found(void **state)
{
	found(0, true);
}

static void unnoted_tables_are_found(void **state)
{
	found(4, false);
}

static void forgetting_early_is_found(void **state)
{
	found(5, false);
}

/* A log of before a power loss, replayed, points to data that is gone. */
static void another_boot_is_found(void **state)
{
	struct hunt h = { .quiet = true };

	qcow2_test_break_order = 6;
	for (uint64_t n = 5; n < 200 && !h.bad; n += 5) {
		struct io_sim *sim = rig_template(&configs[0]);
		struct rig r;

		io_sim_crash_at(sim, IO_SIM_CRASH_AT_WRITE, n);
		rig_init(&r, &configs[0], sim);
		rig_run(&r);
		for (unsigned seed = 0; seed < 8; seed++) {
			struct io_sim *lost = io_sim_clone(sim);

			io_sim_power_loss(lost, seed);
			verify(&h, &configs[0], &r, lost, POWER_LOSS, "");
		}
		rig_free(&r);
	}
	qcow2_test_break_order = 0;
	assert_int_not_equal(h.bad, 0);
}

static int setup(void **state)
{
	qcow2_crashlog_bytes = CRASHLOG_HEAD + 64 * sizeof(struct crashlog_record);
	return 0;
}

#define HUNT(i) { "nothing acknowledged is lost: " #i, nothing_acknowledged_is_lost, NULL, NULL, (void *)&configs[i] }

int main(void)
{
	const struct CMUnitTest tests[] = {
		HUNT(0), HUNT(1), HUNT(2), HUNT(3), HUNT(4), HUNT(5), HUNT(6), HUNT(7), HUNT(8),
		cmocka_unit_test(without_a_log_nothing_flushed_is_lost),
		cmocka_unit_test(no_log_is_found),
		cmocka_unit_test(unnoted_tables_are_found),
		cmocka_unit_test(forgetting_early_is_found),
		cmocka_unit_test(another_boot_is_found),
	};

	cmocka_set_test_filter(getenv("ONLY"));	/* one of them */
	return cmocka_run_group_tests(tests, setup, NULL);
}
