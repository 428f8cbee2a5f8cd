// SPDX-License-Identifier: BSD-3-Clause
/* The clock on ports 70 and 71, as firmware and kernels read it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <time.h>
#include <unistd.h>

#include "vmm/cmos.h"
#include "vmm/machine.h"

static const struct machine_config config = { .vcpus = 3 };
static struct machine machine;

static bool raised;			/* line 8 */

void machine_irq(struct machine *m, unsigned line, bool level)
{
	assert_int_equal(line, CMOS_IRQ);
	__atomic_store_n(&raised, level, __ATOMIC_SEQ_CST);
}

static int start(void **state)
{
	machine = (struct machine){ .config = &config };
	machine.memory = (struct memory){ .fd = -1, .low = MEMORY_HOLE, .high = 0x123450000 };
	pthread_mutex_init(&machine.lock, NULL);
	machine.main = loop_spawn("main", NULL);
	return machine.main ? cmos_start(&machine, NULL) : -1;
}

static int end(void **state)
{
	loop_free(machine.main);
	cmos_end(&machine);
	return machine.pio.regions ? -1 : 0;
}

static unsigned get(unsigned i)
{
	bus_write(&machine.pio, CMOS_PORT, 1, i);
	return (unsigned)bus_read(&machine.pio, CMOS_PORT + 1, 1);
}

static int number(unsigned i)
{
	unsigned b = get(i);

	assert_true((b & 15) < 10 && b >> 4 < 10);
	return (int)(b >> 4) * 10 + (int)(b & 15);
}

static void test_time(void **state)
{
	struct tm t = { 0 };
	time_t before = time(NULL), is;

	assert_int_equal(get(0x8a) & 0x80, 0);		/* NMIs off: the same register A */
	t.tm_sec = number(0);
	t.tm_min = number(2);
	t.tm_hour = number(4);
	t.tm_mday = number(7);
	t.tm_mon = number(8) - 1;
	t.tm_year = number(9) + 100 * number(0x32) - 1900;
	is = timegm(&t);
	assert_in_range(is, before, time(NULL));
	assert_int_equal(number(6), gmtime(&is)->tm_wday + 1);
	assert_int_equal(get(0x0b), 2);
	assert_int_equal(get(0x0d), 0x80);
}

/* Once A is read the registers stand, whatever the time. */
static void test_one_instant(void **state)
{
	get(0x0a);
	((struct cmos_state *)machine.cmos)->shown = 951782399;	/* 2000-02-28 23:59:59 */
	assert_int_equal(get(4), 0x23);
	assert_int_equal(get(2), 0x59);
	assert_int_equal(get(7), 0x28);
	assert_int_equal(get(8), 0x02);
	assert_int_equal(get(9), 0x00);
	assert_int_equal(get(0x32), 0x20);
}

static void test_memory(void **state)
{
	assert_int_equal(get(0x15) | get(0x16) << 8, 640);
	assert_int_equal(get(0x17) | get(0x18) << 8, 0xffff);
	assert_int_equal(get(0x34) | get(0x35) << 8, (MEMORY_HOLE - (16 << 20)) >> 16);
	assert_int_equal(get(0x5b) | get(0x5c) << 8 | get(0x5d) << 16, 0x12345);
	assert_int_equal(get(0x5f), 2);
}

/* What the guest stores stays until a reset; the clock does not move; odd accesses do nothing. */
static void test_writes(void **state)
{
	get(0x40);
	bus_write(&machine.pio, CMOS_PORT + 1, 1, 0x5a);
	assert_int_equal(get(0x40), 0x5a);
	get(0x0d);
	bus_write(&machine.pio, CMOS_PORT + 1, 1, 0);
	assert_int_equal(get(0x0d), 0x80);
	assert_int_equal(bus_read(&machine.pio, CMOS_PORT, 2), 0xff);
	get(0xff);
	bus_write(&machine.pio, CMOS_PORT + 1, 1, 1);
	assert_int_equal(get(0x7f), 1);
	cmos_reset(&machine);
	assert_int_equal(get(0x40), 0);
	assert_int_equal(get(0x5f), 2);
}

/* -- the periodic interrupt ------------------------------------------------------------------ */

static unsigned locked_get(unsigned i)
{
	unsigned v;

	pthread_mutex_lock(&machine.lock);
	v = get(i);
	pthread_mutex_unlock(&machine.lock);
	return v;
}

static void locked_put(unsigned i, unsigned value)
{
	pthread_mutex_lock(&machine.lock);
	get(i);
	bus_write(&machine.pio, CMOS_PORT + 1, 1, value);
	pthread_mutex_unlock(&machine.lock);
}

static void wait_raised(void)
{
	for (unsigned i = 0; i < 100000 && !__atomic_load_n(&raised, __ATOMIC_SEQ_CST); i++)
		usleep(1000);
	assert_true(__atomic_load_n(&raised, __ATOMIC_SEQ_CST));
}

/* It comes again when it was seen; not sooner than 1024 times a second. */
static void test_periodic(void **state)
{
	uint64_t begun = loop_now();

	assert_int_equal(locked_get(0x0c), 0);
	locked_put(0x0b, 0x42);
	assert_int_equal(locked_get(0x0b), 0x42);
	for (unsigned i = 0; i < 20; i++) {
		wait_raised();
		assert_int_equal(locked_get(0x0c), 0xc0);
	}
	assert_true(loop_now() - begun >= 18 * 976563ull);
	wait_raised();
	locked_put(0x0b, 2);				/* off: so is the line */
	assert_false(__atomic_load_n(&raised, __ATOMIC_SEQ_CST));
	assert_int_equal(locked_get(0x0c), 0);
	locked_put(0x0b, 0x42);
	wait_raised();
	pthread_mutex_lock(&machine.lock);
	cmos_reset(&machine);
	pthread_mutex_unlock(&machine.lock);
	assert_false(__atomic_load_n(&raised, __ATOMIC_SEQ_CST));
	assert_int_equal(locked_get(0x0b), 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_time),
		cmocka_unit_test(test_one_instant),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_writes),
		cmocka_unit_test(test_periodic),
	};

	return cmocka_run_group_tests(tests, start, end);
}
