/* SPDX-License-Identifier: BSD-3-Clause */
/* Buses: who answers, who does not, what overlaps; and the only way to guest memory. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "vmm/bus.h"
#include "vmm/memory.h"

static uint64_t last_off, last_value;
static unsigned last_size;

static uint64_t reads(void *arg, uint64_t off, unsigned size)
{
	last_off = off;
	last_size = size;
	return *(uint64_t *)arg;
}

static void writes(void *arg, uint64_t off, unsigned size, uint64_t value)
{
	last_off = off;
	last_size = size;
	last_value = value;
}

static uint64_t value_a = 0x1122334455667788ull, value_b = 7;

static struct bus_region region(uint64_t base, uint64_t len, uint64_t *value)
{
	return (struct bus_region){
		.base = base, .len = len, .read = reads, .write = writes, .arg = value,
	};
}

static void test_find(void **state)
{
	struct bus b = { 0 };
	struct bus_region hi = region(0x2000, 0x10, &value_b), lo = region(0x1000, 0x10, &value_a);

	assert_int_equal(bus_add(&b, &hi), 0);
	assert_int_equal(bus_add(&b, &lo), 0);
	assert_int_equal(bus_read(&b, 0x1004, 4), 0x55667788);
	assert_int_equal(last_off, 4);
	assert_int_equal(bus_read(&b, 0x2000, 1), 7);
	bus_write(&b, 0x200f, 1, 0x55);
	assert_int_equal(last_off, 15);
	assert_int_equal(last_value, 0x55);
	bus_remove(&b, &hi);
	assert_int_equal(bus_read(&b, 0x2000, 1), 0xff);
	assert_int_equal(bus_read(&b, 0x1000, 8), value_a);
}

/* Nobody there, or only half of it: ones, and writes go nowhere. */
static void test_nobody(void **state)
{
	struct bus b = { 0 };
	struct bus_region r = region(0x1000, 6, &value_a), silent = { .base = 0x3000, .len = 8 };

	assert_int_equal(bus_read(&b, 0, 4), 0xffffffff);
	assert_int_equal(bus_add(&b, &r), 0);
	assert_int_equal(bus_add(&b, &silent), 0);
	last_size = 0;
	assert_int_equal(bus_read(&b, 0x1004, 4), 0xffffffff);
	assert_int_equal(bus_read(&b, 0xffe, 4), 0xffffffff);
	assert_true(bus_read(&b, UINT64_MAX, 8) == UINT64_MAX);
	bus_write(&b, 0x1004, 4, 0);
	bus_write(&b, UINT64_MAX - 1, 8, 0);
	assert_int_equal(last_size, 0);
	assert_int_equal(bus_read(&b, 0x3000, 2), 0xffff);
	bus_write(&b, 0x3000, 2, 1);
}

static void test_overlap(void **state)
{
	struct bus b = { 0 };
	struct bus_region a = region(0x1000, 0x100, &value_a);
	struct bus_region bad[] = {
		region(0x1000, 0x100, &value_b), region(0xfff, 2, &value_b), region(0x10ff, 1, &value_b),
		region(0, UINT64_MAX, &value_b), region(0x1050, 1, &value_b),
	};
	struct bus_region empty = region(0x5000, 0, &value_b), wraps = region(UINT64_MAX, 2, &value_b);
	struct bus_region before = region(0xf00, 0x100, &value_b), behind = region(0x1100, 1, &value_b);

	assert_int_equal(bus_add(&b, &a), 0);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(bus_add(&b, &bad[i]), -EEXIST);
	assert_int_equal(bus_add(&b, &empty), -EINVAL);
	assert_int_equal(bus_add(&b, &wraps), -EINVAL);
	assert_int_equal(bus_add(&b, &before), 0);
	assert_int_equal(bus_add(&b, &behind), 0);
	bus_remove(&b, &empty);		/* was never there */
	assert_int_equal(bus_read(&b, 0x1100, 1), 7);
}

#define GIB (1ull << 30)

/* Addresses and lengths at every edge of both regions. */
static void test_memory(void **state)
{
	struct memory m;
	struct error err = ERROR_INIT;

	assert_int_equal(memory_make(&m, 3 * GIB + 4096, &err), 0);
	assert_int_equal(m.low, 3 * GIB);
	assert_int_equal(m.high, 4096);
	assert_ptr_equal(memory_at(&m, 0, 3 * GIB), m.base);
	assert_null(memory_at(&m, 0, 3 * GIB + 1));
	assert_null(memory_at(&m, 3 * GIB, 1));
	assert_null(memory_at(&m, 3 * GIB - 1, 2));
	assert_null(memory_at(&m, 4 * GIB - 1, 1));
	assert_null(memory_at(&m, 4 * GIB - 1, 2));
	assert_ptr_equal(memory_at(&m, 4 * GIB, 4096), m.base + m.low);
	assert_null(memory_at(&m, 4 * GIB, 4097));
	assert_null(memory_at(&m, 4 * GIB + 4096, 1));
	assert_null(memory_at(&m, UINT64_MAX, 1));
	assert_null(memory_at(&m, UINT64_MAX, UINT64_MAX));
	assert_null(memory_at(&m, 1, UINT64_MAX));
	assert_null(memory_at(&m, 4 * GIB, UINT64_MAX));
	memory_end(&m);

	assert_int_equal(memory_make(&m, 64 << 20, &err), 0);
	assert_null(memory_at(&m, 4 * GIB, 0));
	assert_null(memory_at(&m, 4 * GIB, 1));
	memory_end(&m);
	assert_int_equal(memory_make(&m, (8 << 20) + 1, &err), -EINVAL);
	assert_int_equal(memory_make(&m, 4096, &err), -EINVAL);
	assert_int_equal(memory_make(&m, UINT64_MAX, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_find),
		cmocka_unit_test(test_nobody),
		cmocka_unit_test(test_overlap),
		cmocka_unit_test(test_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
