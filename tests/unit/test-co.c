/* SPDX-License-Identifier: BSD-3-Clause */
/* Coroutines: order, nesting, queues, mutexes, deep stacks, reuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/co.h"

static char trace[256];

static void note(char c)
{
	size_t n = strlen(trace);

	assert_true(n + 1 < sizeof(trace));
	trace[n] = c;
	trace[n + 1] = 0;
}

static void drain(struct sched *s)
{
	while (!sched_idle(s))
		sched_run(s);
}

static void two_steps(void *arg)
{
	char c = *(char *)arg;

	note(c);
	co_yield();
	note((char)(c - 'a' + 'A'));
}

static void test_order(void **state)
{
	struct sched s = { 0 }, *old = sched_set(&s);

	trace[0] = 0;
	co_start(two_steps, "a");
	co_start(two_steps, "b");
	assert_string_equal(trace, "ab");
	assert_null(co_self());
	drain(&s);
	assert_string_equal(trace, "abAB");
	sched_set(old);
}

static void starts_another(void *arg)
{
	note('1');
	co_start(two_steps, "x");
	note('2');
	co_yield();
	note('3');
}

static void test_nested_start(void **state)
{
	struct sched s = { 0 }, *old = sched_set(&s);

	trace[0] = 0;
	co_start(starts_another, NULL);
	assert_string_equal(trace, "1x2");
	drain(&s);
	assert_string_equal(trace, "1x2X3");
	sched_set(old);
}

static struct co_mutex mutex;
static struct co_queue queue;

static void locks(void *arg)
{
	co_mutex_lock(&mutex);
	note(*(char *)arg);
	co_yield();
	note(*(char *)arg);
	co_mutex_unlock(&mutex);
}

static void test_mutex_is_fair(void **state)
{
	struct sched s = { 0 }, *old = sched_set(&s);

	trace[0] = 0;
	co_start(locks, "a");
	co_start(locks, "b");
	co_start(locks, "c");
	drain(&s);
	assert_string_equal(trace, "aabbcc");
	assert_false(mutex.held);
	sched_set(old);
}

static void waits(void *arg)
{
	co_queue_wait(&queue);
	note(*(char *)arg);
}

static void test_queue(void **state)
{
	struct sched s = { 0 }, *old = sched_set(&s);

	trace[0] = 0;
	co_start(waits, "a");
	co_start(waits, "b");
	co_start(waits, "c");
	co_queue_wake_one(&queue);
	drain(&s);
	assert_string_equal(trace, "a");
	co_queue_wake_all(&queue);
	drain(&s);
	assert_string_equal(trace, "abc");
	co_queue_wake_one(&queue);		/* nobody: fine */
	sched_set(old);
}

static unsigned depth_reached;

static void dig(unsigned n)
{
	volatile char frame[512];

	frame[0] = (char)n;
	if (n == 0) {
		co_yield();
		return;
	}
	dig(n - 1);
	assert_int_equal(frame[0], (char)n);
	depth_reached++;
}

static void digs(void *arg)
{
	dig(150);
}

static void test_deep_stacks_survive_switches(void **state)
{
	struct sched s = { 0 }, *old = sched_set(&s);

	depth_reached = 0;
	for (int i = 0; i < 10; i++)
		co_start(digs, NULL);
	drain(&s);
	assert_int_equal(depth_reached, 1500);
	sched_set(old);
}

static unsigned ended;

static void yields(void *arg)
{
	for (uintptr_t i = 0; i < (uintptr_t)arg; i++)
		co_yield();
	ended++;
}

static void test_many(void **state)
{
	struct sched s = { 0 }, *old = sched_set(&s);

	ended = 0;
	for (int round = 0; round < 3; round++) {
		for (uintptr_t i = 0; i < 600; i++)
			co_start(yields, (void *)(i % 7));
		drain(&s);
	}
	assert_int_equal(ended, 1800);
	sched_set(old);
	co_pool_drain();
}

static struct co *sleeper;
static bool condition;

static void waits_for_condition(void *arg)
{
	sleeper = co_self();
	while (!condition)
		co_suspend();
	note('!');
}

static void test_double_wake_is_one(void **state)
{
	struct sched s = { 0 }, *old = sched_set(&s);

	trace[0] = 0;
	co_start(waits_for_condition, NULL);
	co_wake(sleeper);
	co_wake(sleeper);
	assert_int_equal(sched_run(&s), 1);
	condition = true;
	co_wake(sleeper);
	drain(&s);
	assert_string_equal(trace, "!");
	sched_set(old);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_nested_start),
		cmocka_unit_test(test_mutex_is_fair),
		cmocka_unit_test(test_queue),
		cmocka_unit_test(test_deep_stacks_survive_switches),
		cmocka_unit_test(test_many),
		cmocka_unit_test(test_double_wake_is_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
