/* SPDX-License-Identifier: BSD-3-Clause */
/* How a background reader behaves beside a guest, on a simulated clock and storage: what
 * the guest keeps, what the job takes, and that neither ever stands still. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backup/manners.h"
#include "common/checked.h"

#define US 1000ull
#define MS (1000 * US)
#define STEP (5 * US)
#define PIECE (64u << 10)
#define TASKS 16

/* Serves one request after the other; each takes LATENCY more, beside the others. */
struct disk {
	uint64_t free_at, latency, bytes_per_us;
};

static uint64_t disk_serve(struct disk *d, uint64_t now, uint64_t bytes)
{
	d->free_at = max_u64(d->free_at, now) + bytes * US / d->bytes_per_us;
	return d->free_at + d->latency;
}

struct task {
	uint64_t begun, end;		/* 0: nobody is at it */
	bool writes;
};

struct sim {
	struct manners manners;
	struct loop_guests guests;
	struct disk source, target;
	bool apart;			/* the target is another disk */
	uint64_t guest_every;		/* ns between its requests; 0: at once */
	uint64_t slow;			/* ns that each takes longer */
	uint64_t noise;			/* ns that every tenth takes longer, but when we look */
	uint64_t now;
	bool view;			/* old data is read before each write of the guest */
	uint64_t guest_begun, guest_end, guest_next, guest_kept;
	struct task tasks[TASKS];
	uint64_t in_flight, moved;
	uint64_t longest_wait, waits_since;
};

static void guest(struct sim *s)
{
	if (s->guest_end && s->now >= s->guest_end) {
		s->guests.ended++;
		s->guests.ns += s->guest_end - s->guest_begun;
		s->guests.ended_ns = s->guest_end;
		s->guests.kept_ns += s->guest_kept;
		s->guest_end = 0;
	}
	if (!s->guest_end && s->now >= s->guest_next) {
		s->guests.begun++;
		s->guest_begun = s->now;
		s->guest_end = s->view ? disk_serve(&s->source, s->now, 4096) : s->now;
		s->guest_kept = s->guest_end - s->now;
		s->guest_end = disk_serve(&s->source, s->guest_end, 4096) + s->slow;
		if (s->noise && !s->manners.probing && s->guests.begun % 10 == 0)
			s->guest_end += s->noise;
		s->guest_next = s->now + s->guest_every;
	}
}

static void begin(struct sim *s, struct task *t)
{
	if (manners_wait(&s->manners, &s->guests, s->now, s->in_flight, PIECE)) {
		s->longest_wait = max_u64(s->longest_wait, s->now - s->waits_since);
		return;
	}
	s->waits_since = s->now;
	manners_began(&s->manners, s->now, PIECE);
	s->in_flight += PIECE;
	*t = (struct task){ .begun = s->now, .end = disk_serve(&s->source, s->now, PIECE) };
}

static void job(struct sim *s)
{
	for (struct task *t = s->tasks; t < s->tasks + TASKS; t++) {
		if (t->end && s->now >= t->end && !t->writes) {
			t->writes = true;
			t->end = disk_serve(s->apart ? &s->target : &s->source, s->now, PIECE);
		} else if (t->end && s->now >= t->end) {
			manners_took(&s->manners, s->now - t->begun);
			s->in_flight -= PIECE;
			s->moved += PIECE;
			t->end = 0;
		}
		if (!t->end)
			begin(s, t);
	}
}

static void run(struct sim *s, uint64_t ns, bool with_guest, bool with_job)
{
	uint64_t end = s->now + ns;

	for (s->waits_since = s->now; s->now < end; s->now += STEP) {
		if (with_guest)
			guest(s);
		if (with_job)
			job(s);
	}
}

static struct sim one_disk(void)
{
	return (struct sim){ .source = { .latency = 100 * US, .bytes_per_us = 800 }, .now = 1000 * MS };
}

static uint64_t guest_alone(struct sim s)
{
	run(&s, 5000 * MS, true, false);
	return s.guests.ended;
}

static uint64_t job_alone(struct sim s)
{
	run(&s, 5000 * MS, false, true);
	return s.moved;
}

/* A guest that waits for each write keeps more than half, the job goes
 * three fifths as fast at least. */
static void both_get_their_share(void **state)
{
	struct sim s = one_disk();
	uint64_t alone = guest_alone(s), job_only = job_alone(s);

	(void)state;
	run(&s, 5000 * MS, true, true);
	assert_true(s.guests.ended > alone * 11 / 20);
	assert_true(s.moved > job_only * 3 / 5);
}

/* What the view costs a guest already is not taken from it twice. */
static void a_view_counts(void **state)
{
	struct sim s = one_disk();
	uint64_t job_only = job_alone(s), with_view;

	(void)state;
	s.view = true;
	with_view = guest_alone(s);
	run(&s, 5000 * MS, true, true);
	assert_true(s.guests.ended > with_view * 7 / 10);
	assert_true(s.moved > job_only * 11 / 20);
}

/* A thousand writes a second take little longer on the average. */
static void a_steady_guest_hardly_notices(void **state)
{
	struct sim s = one_disk(), quiet = s;

	(void)state;
	s.guest_every = quiet.guest_every = MS;
	run(&quiet, 5000 * MS, true, false);
	run(&s, 5000 * MS, true, true);
	assert_true(s.guests.begun > quiet.guests.begun * 99 / 100);
	assert_true(s.guests.ns / s.guests.ended < 2 * quiet.guests.ns / quiet.guests.ended);
	assert_true(s.moved > job_alone(one_disk()) * 3 / 5);
}

/* A target that is far away holds many requests at a time; they cost the guest nothing. */
static void a_far_target_is_kept_busy(void **state)
{
	struct sim s = one_disk();
	uint64_t alone = guest_alone(s), job_only;

	(void)state;
	s.apart = true;
	s.target = (struct disk){ .latency = 10 * MS, .bytes_per_us = 300 };
	job_only = job_alone(s);
	run(&s, 5000 * MS, true, true);
	assert_true(s.guests.ended > alone * 11 / 20);
	assert_true(s.moved > job_only * 3 / 5);
}

/* A guest whose every request takes longer than a look at it. */
static void a_slow_guest_does_not_starve_the_job(void **state)
{
	struct sim s = one_disk();

	(void)state;
	s.slow = 15 * MS;
	run(&s, 5000 * MS, true, true);
	assert_true(s.moved > job_alone(one_disk()) * 3 / 5);
}

/* What somebody else does to the guest is not our fault for ever: noise that we do not see
 * when we look makes the job slower, not slower and slower. */
static void noise_does_not_starve_the_job(void **state)
{
	struct sim s = one_disk();

	(void)state;
	run(&s, 400 * MS, true, true);
	s.noise = 20 * MS;
	run(&s, 5000 * MS, true, true);
	s.moved = 0;
	run(&s, 5000 * MS, true, true);
	assert_true(s.moved > job_alone(one_disk()) / 2);
}

/* Storage that becomes ten times slower in the middle, and fast again. */
static void it_follows_the_storage(void **state)
{
	struct sim s = one_disk();
	uint64_t slow;

	(void)state;
	run(&s, 2000 * MS, true, true);
	s.source.bytes_per_us = 80;
	run(&s, 2000 * MS, true, true);
	slow = s.moved;
	run(&s, 1000 * MS, true, true);
	assert_true(s.moved - slow > 1000 * 40 / 3 * 1000);	/* a third of what can be moved */
	assert_true(s.longest_wait < 500 * MS);
	s.source.bytes_per_us = 800;
	run(&s, 8000 * MS, true, true);
	slow = s.moved;
	run(&s, 1000 * MS, true, true);
	assert_true(s.moved - slow > 1000 * 400 / 2 * 1000);
}

/* Where nobody asks there is no limit, before and after a guest was there. */
static void alone_there_is_no_limit(void **state)
{
	struct sim s = one_disk();
	uint64_t moved;

	(void)state;
	run(&s, 1000 * MS, false, true);
	moved = s.moved;
	run(&s, 1000 * MS, true, true);
	s.guest_end = 0;
	s.guests.ended = s.guests.begun;
	run(&s, 100 * MS, false, true);
	s.moved = 0;
	run(&s, 1000 * MS, false, true);
	assert_true(s.moved + PIECE * TASKS >= moved);
}

/* Nor does one that asked something long before the job began. */
static void who_has_left_is_no_guest(void **state)
{
	struct sim s = one_disk(), asks = s;

	(void)state;
	s.guests = (struct loop_guests){ .begun = 1000, .ended = 1000, .ns = 1000 * MS, .ended_ns = s.now - 30 * MS };
	assert_int_equal(manners_wait(&s.manners, &s.guests, s.now, 16 * PIECE, PIECE), 0);
	assert_false(manners_needed(&s.manners, s.now));
	asks.guests = s.guests;
	asks.guests.ended_ns = asks.now - MS;
	assert_int_not_equal(manners_wait(&asks.manners, &asks.guests, asks.now, 16 * PIECE, PIECE), 0);
}

/* A guest whose storage has stopped to answer does not stop the job for ever. */
static void a_stuck_guest_stops_nobody(void **state)
{
	struct sim s = one_disk();

	(void)state;
	run(&s, 1000 * MS, true, true);
	s.guest_begun = s.now;
	s.guest_end = UINT64_MAX;
	s.longest_wait = 0;
	s.moved = 0;
	run(&s, 10000 * MS, true, true);
	assert_true(s.longest_wait < 200 * MS);
	assert_true(s.moved > 10 * (4u << 20));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(both_get_their_share), cmocka_unit_test(a_view_counts), cmocka_unit_test(a_steady_guest_hardly_notices),
		cmocka_unit_test(a_far_target_is_kept_busy), cmocka_unit_test(it_follows_the_storage),
		cmocka_unit_test(a_slow_guest_does_not_starve_the_job),
		cmocka_unit_test(noise_does_not_starve_the_job),
		cmocka_unit_test(alone_there_is_no_limit), cmocka_unit_test(who_has_left_is_no_guest), cmocka_unit_test(a_stuck_guest_stops_nobody),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
