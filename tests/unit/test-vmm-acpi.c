/* SPDX-License-Identifier: BSD-3-Clause */
/* The ACPI tables: lengths, checksums, and who points to whom, for 1 and 64 CPUs, at an
 * address and at 0.  With an argument: writes them to files of that prefix, for iasl. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "vmm/acpi.h"
#include "vmm/le.h"

#define BASE 0xe0040u

static struct acpi a;

static uint8_t sum(const uint8_t *p, uint32_t n)
{
	uint8_t s = 0;

	while (n--)
		s += *p++;
	return s;
}

/* The table at ADDR, with what every header must have. */
static const uint8_t *table_at(uint64_t addr, const char *signature)
{
	const uint8_t *p = a.bytes + (addr - BASE);

	assert_in_range(addr, BASE, BASE + a.len - 36);
	assert_memory_equal(p, signature, 4);
	assert_true(get_le32(p + 4) >= 36 && get_le32(p + 4) <= BASE + a.len - addr);
	if (strcmp(signature, "FACS"))
		assert_int_equal(sum(p, get_le32(p + 4)), 0);
	return p;
}

/* Walks a list of AML terms and what is in them: every length ends where its parent allows. */
static uint32_t length_at(const uint8_t *p, const uint8_t *end)
{
	assert_true(end - p >= 3 && *p >> 6 == 2);
	return (uint32_t)(*p & 15) | (uint32_t)p[1] << 4 | (uint32_t)p[2] << 12;
}

static const uint8_t *skip_value(const uint8_t *p, const uint8_t *end)
{
	assert_true(p < end);
	switch (*p) {
	case 0x00:
	case 0x01:
		return p + 1;
	case 0x0a:
		return p + 2;
	case 0x0b:
		return p + 3;
	case 0x0c:
		return p + 5;
	case 0x0d:
		return p + 2 + strlen((const char *)p + 1);
	case 0x11:
	case 0x12:
		return p + 1 + length_at(p + 1, end);
	default:
		fail_msg("a value that begins with 0x%02x", *p);
		return end;
	}
}

static void walk(const uint8_t *p, const uint8_t *end, unsigned *devices)
{
	while (p < end) {
		bool device = *p == 0x5b;

		if (*p == 0x10 || device) {
			const uint8_t *at = p + 1 + device, *stop;

			if (device)
				assert_int_equal(p[1], 0x82);
			stop = at + length_at(at, end);
			assert_true(stop <= end);
			*devices += device;
			at += 3 + (at[3] == '\\');
			walk(at + 4, stop, devices);
			p = stop;
		} else {
			assert_int_equal(*p, 0x08);
			p += 1 + (p[1] == '\\') + 4;
			p = skip_value(p, end);
		}
		assert_true(p <= end);
	}
}

static void check(unsigned vcpus)
{
	const uint8_t *rsdt, *xsdt, *fadt, *dsdt, *madt, *mcfg;
	unsigned devices = 0;

	acpi_build(vcpus, BASE, &a);
	assert_memory_equal(a.rsdp, "RSD PTR ", 8);
	assert_int_equal(sum(a.rsdp, 20), 0);
	assert_int_equal(sum(a.rsdp, 36), 0);
	xsdt = table_at(get_le64(a.rsdp + 24), "XSDT");
	assert_int_equal(get_le32(xsdt + 4), 36 + 3 * 8);
	rsdt = table_at(get_le32(a.rsdp + 16), "RSDT");
	assert_int_equal(get_le32(rsdt + 4), 36 + 3 * 4);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(get_le32(rsdt + 36 + 4 * i), get_le64(xsdt + 36 + 8 * i));
	fadt = table_at(get_le64(xsdt + 36), "FACP");
	madt = table_at(get_le64(xsdt + 44), "APIC");
	mcfg = table_at(get_le64(xsdt + 52), "MCFG");
	table_at(get_le32(fadt + 36), "FACS");
	assert_int_equal(get_le32(fadt + 36) % 64, 0);
	assert_int_equal(get_le32(fadt + 40), get_le64(fadt + 140));
	dsdt = table_at(get_le64(fadt + 140), "DSDT");
	walk(dsdt + 36, dsdt + get_le32(dsdt + 4), &devices);
	assert_int_equal(devices, 3 + vcpus);
	assert_int_equal(get_le64(mcfg + 44), 0xe0000000);
	for (unsigned i = 0; i < vcpus; i++)
		assert_int_equal(madt[44 + 8 * i + 3], i);
}

static void test_tables(void **state)
{
	check(1);
	check(64);
}

/* Moved by the lists of pointers and tables, they are what is built for the new address. */
static void test_lists(void **state)
{
	static struct acpi moved;

	acpi_build(5, BASE, &a);
	acpi_build(5, 0, &moved);
	for (unsigned i = 0; i < moved.n_pointers; i++) {
		uint8_t *p = moved.bytes + moved.pointer[i].at;

		if (moved.pointer[i].size == 8)
			put_le64(p, get_le64(p) + BASE);
		else
			put_le32(p, get_le32(p) + BASE);
	}
	for (unsigned i = 0; i < moved.n_tables; i++) {
		uint8_t *p = moved.bytes + moved.table[i].at;

		p[9] = 0;
		p[9] = (uint8_t)-sum(p, moved.table[i].len);
	}
	assert_int_equal(moved.len, a.len);
	assert_int_equal(moved.xsdt, a.xsdt);
	assert_memory_equal(moved.bytes, a.bytes, a.len);
}

static int write_files(const char *prefix)
{
	acpi_build(4, BASE, &a);
	for (unsigned i = 0; i < a.n_tables; i++) {
		const uint8_t *p = a.bytes + a.table[i].at;
		char path[256];
		FILE *f;

		snprintf(path, sizeof(path), "%s%.4s.dat", prefix, (const char *)p);
		f = fopen(path, "w");
		if (!f || fwrite(p, a.table[i].len, 1, f) != 1 || fclose(f))
			return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tables),
		cmocka_unit_test(test_lists),
	};

	if (argc > 1)
		return write_files(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
