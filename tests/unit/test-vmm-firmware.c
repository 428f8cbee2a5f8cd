/* SPDX-License-Identifier: BSD-3-Clause */
/* fw_cfg, as firmware and as a hostile guest uses it; the script that places ACPI tables. */
#include <endian.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "vmm/acpi.h"
#include "vmm/firmware.h"
#include "vmm/fw-cfg.h"
#include "vmm/le.h"
#include "vmm/machine.h"

#define MIB (1ull << 20)

static const struct machine_config config = { .vcpus = 3 };
static struct machine m;
static struct error err;

static int setup(void **state)
{
	m = (struct machine){ .config = &config };
	if (memory_make(&m.memory, 64 * MIB, &err))
		return -1;
	return fw_cfg_start(&m, &err);
}

static int teardown(void **state)
{
	fw_cfg_end(&m);
	memory_end(&m.memory);
	return m.pio.regions ? -1 : 0;
}

/* -- as a driver does it ------------------------------------------------------------------ */

static void choose(unsigned key)
{
	bus_write(&m.pio, FW_CFG_PORT, 2, key);
}

static uint8_t next(void)
{
	return (uint8_t)bus_read(&m.pio, FW_CFG_PORT + 1, 1);
}

static uint32_t next_be32(void)
{
	uint32_t v = 0;

	for (unsigned i = 0; i < 4; i++)
		v = v << 8 | next();
	return v;
}

/* A request at AT; what its control word is then. */
static uint32_t request(uint64_t at, uint32_t control, uint32_t len, uint64_t addr)
{
	uint8_t *p = memory_at(&m.memory, at, 16);
	uint32_t words[2] = { htobe32(control), htobe32(len) };

	addr = htobe64(addr);
	if (p) {
		memcpy(p, words, 8);
		memcpy(p + 8, &addr, 8);
	}
	bus_write(&m.pio, FW_CFG_PORT + 4, 4, htobe32((uint32_t)(at >> 32)));
	bus_write(&m.pio, FW_CFG_PORT + 8, 4, htobe32((uint32_t)at));
	if (!p)
		return ~0u;
	memcpy(words, p, 4);
	return be32toh(words[0]);
}

enum { ERROR = 1, READ = 2, SKIP = 4, SELECT = 8, WRITE = 16 };

/* -- items ---------------------------------------------------------------------------------- */

static void test_signature(void **state)
{
	choose(FW_CFG_SIGNATURE);
	assert_int_equal(next_be32(), 0x51454d55);	/* "QEMU" */
	assert_int_equal(next(), 0);
	choose(FW_CFG_ID);
	assert_int_equal(next(), 3);
	assert_int_equal(bus_read(&m.pio, FW_CFG_PORT + 4, 4), htobe32(0x51454d55));
	assert_int_equal(bus_read(&m.pio, FW_CFG_PORT + 8, 4), htobe32(0x20434647));
	choose(0x7777);
	assert_int_equal(next_be32(), 0);
}

static void test_directory(void **state)
{
	char name[56];

	assert_int_equal(fw_cfg_add_file(&m, "etc/one", "1", 1), 0);
	assert_int_equal(fw_cfg_add(&m, FW_CFG_CPUS, "\3", 2), 0);
	assert_int_equal(fw_cfg_add_file(&m, "etc/second", "22", 2), 0);
	assert_int_equal(fw_cfg_add_file(&m, "etc/empty", NULL, 0), 0);
	choose(FW_CFG_DIRECTORY);
	assert_int_equal(next_be32(), 3);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(next_be32(), (i + 1) % 3);
		assert_int_equal(next_be32(), (FW_CFG_FILES + i) << 16);
		for (unsigned j = 0; j < sizeof(name); j++)
			name[j] = (char)next();
		assert_string_equal(name, i == 0 ? "etc/one" : i == 1 ? "etc/second" : "etc/empty");
	}
	assert_int_equal(next_be32(), 0);
	choose(FW_CFG_FILES + 1);
	assert_int_equal(next_be32(), 0x32320000);
	fw_cfg_reset(&m);
	choose(FW_CFG_FILES + 1);
	assert_int_equal(next(), 0);
	choose(FW_CFG_SIGNATURE);
	assert_int_equal(next(), 'Q');
}

/* There is an end to what is taken; what is there stays. */
static void test_full(void **state)
{
	unsigned n = 0;

	while (fw_cfg_add_file(&m, "etc/file", "x", 1) == 0)
		n++;
	assert_in_range(n, 8, FW_CFG_ITEMS_MAX);
	assert_int_equal(fw_cfg_add(&m, 0x4000, "x", 1), -ENOSPC);
	assert_int_equal(fw_cfg_add(&m, FW_CFG_ID, "x", 1), 0);
	choose(FW_CFG_ID);
	assert_int_equal(next(), 'x');
}

/* -- requests in memory --------------------------------------------------------------------- */

static void test_request(void **state)
{
	uint8_t *ram = m.memory.base;

	fw_cfg_add_file(&m, "etc/letters", "abcdefgh", 8);
	memset(ram + 0x2000, 0xee, 64);
	assert_int_equal(request(0x1000, FW_CFG_FILES << 16 | SELECT | READ, 3, 0x2000), 0);
	assert_memory_equal(ram + 0x2000, "abc\xee", 4);
	assert_int_equal(request(0x1000, SKIP, 2, 0), 0);
	assert_int_equal(next(), 'f');
	/* Zeroes behind the end, and not one byte behind what was asked for. */
	assert_int_equal(request(0x1000, READ, 6, 0x2010), 0);
	assert_memory_equal(ram + 0x2010, "gh\0\0\0\0\xee", 7);
	assert_int_equal(request(0x1000, FW_CFG_FILES << 16 | SELECT, 99, UINT64_MAX), 0);
	assert_int_equal(next(), 'a');
	assert_int_equal(request(0x1000, READ, 0, UINT64_MAX), 0);
	assert_int_equal(request(0x1000, SKIP, UINT32_MAX, 0), 0);
	assert_int_equal(request(0x1000, SKIP, UINT32_MAX, 0), 0);
	assert_int_equal(next(), 0);
}

static void test_refused(void **state)
{
	uint64_t end = m.memory.low;
	uint8_t *ram = m.memory.base;

	fw_cfg_add_file(&m, "etc/letters", "abcdefgh", 8);
	choose(FW_CFG_FILES);
	assert_int_equal(request(0x1000, WRITE, 4, 0x2000), ERROR);
	assert_int_equal(request(0x1000, READ, 4, end - 3), ERROR);
	assert_int_equal(request(0x1000, READ, 4, end), ERROR);
	assert_int_equal(request(0x1000, READ, 4, UINT64_MAX - 1), ERROR);
	assert_int_equal(request(0x1000, READ, UINT32_MAX, 0), ERROR);
	assert_int_equal(request(0x1000, READ, FW_CFG_DMA_MAX + 1, 0), ERROR);
	assert_int_equal(request(0x1000, READ, 4, PCI_BAR_BASE), ERROR);
	assert_int_equal(next(), 'a');			/* none of them took any */
	/* Requests that are nowhere, or half. */
	request(end - 8, READ, 4, 0x2000);
	request(end, READ, 4, 0x2000);
	request(UINT64_MAX, READ, 4, 0x2000);
	assert_int_equal(next(), 'b');
	assert_int_equal(request(end - 16, READ, 4, 0x3000), 0);
	assert_memory_equal(ram + 0x3000, "cdef", 4);
	/* A request that is overwritten by what it asks for. */
	assert_int_equal(request(0x1000, FW_CFG_FILES << 16 | SELECT | READ, 8, 0x1000), 0);
	assert_memory_equal(ram + 0x1004, "efgh", 4);
	/* Half of an address is forgotten after a request. */
	bus_write(&m.pio, FW_CFG_PORT + 4, 4, htobe32(7));
	request(0, READ, 0, 0);
	assert_int_equal(request(0x1000, READ, 1, 0x2000), 0);
}

/* Any access of any size, with any value. */
static void test_anything(void **state)
{
	uint8_t *ram = m.memory.base;

	srandom(1);
	fw_cfg_add_file(&m, "etc/letters", "abcdefgh", 8);
	for (unsigned i = 0; i < 200000; i++) {
		unsigned size = 1u << random() % 3, off = (unsigned)random() % FW_CFG_PORTS;
		uint64_t value = random() % 4 ? (uint64_t)random() % 64 : (uint64_t)random() << 16 ^ random();

		for (unsigned j = 0; j < 16; j++)
			ram[value % 4096 + j] = (uint8_t)(random() % 3 ? 0 : random());
		if (random() % 2)
			bus_write(&m.pio, FW_CFG_PORT + off, size, random() % 2 ? value : htobe32((uint32_t)value));
		else
			bus_read(&m.pio, FW_CFG_PORT + off, size);
	}
	choose(FW_CFG_FILES);
	assert_int_equal(next(), 'a');
}

/* -- the table loader -------------------------------------------------------------------------- */

#define TABLES_AT 0x7f00000u

static uint8_t sum(const uint8_t *p, uint32_t n)
{
	uint8_t s = 0;

	while (n--)
		s += *p++;
	return s;
}

static uint8_t *file_at(struct acpi *a, const char *name)
{
	if (!strcmp(name, "etc/acpi/tables"))
		return a->bytes;
	assert_string_equal(name, "etc/acpi/rsdp");
	return a->rsdp;
}

/* As firmware does it, entry by entry. */
static void follow(struct acpi *a, const uint8_t *e)
{
	uint8_t *file = file_at(a, (const char *)e + 4), *p;
	const uint8_t *args = e + 60;

	switch (get_le32(e)) {
	case 1:
		assert_int_equal(get_le32(args), file == a->rsdp ? 16 : 64);
		assert_int_equal(args[4], file == a->rsdp ? 2 : 1);
		break;
	case 2:
		assert_string_equal((const char *)args, "etc/acpi/tables");
		p = file + get_le32(args + 56);
		if (args[60] == 8)
			put_le64(p, get_le64(p) + TABLES_AT);
		else
			put_le32(p, get_le32(p) + TABLES_AT);
		break;
	default:
		assert_int_equal(get_le32(e), 3);
		file[get_le32(args)] -= sum(file + get_le32(args + 4), get_le32(args + 8));
	}
}

static void test_loader(void **state)
{
	static struct acpi placed, built;
	static uint8_t script[FIRMWARE_LOADER_MAX];
	uint32_t len;

	acpi_build(64, 0, &placed);
	acpi_build(64, TABLES_AT, &built);
	len = firmware_loader(&placed, script);
	assert_int_equal(len % FIRMWARE_LOADER_ENTRY, 0);
	assert_in_range(len, 1, FIRMWARE_LOADER_MAX);
	for (uint32_t at = 0; at < len; at += FIRMWARE_LOADER_ENTRY)
		follow(&placed, script + at);
	assert_int_equal(placed.len, built.len);
	assert_memory_equal(placed.bytes, built.bytes, built.len);
	assert_memory_equal(placed.rsdp, built.rsdp, ACPI_RSDP_BYTES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_signature, setup, teardown),
		cmocka_unit_test_setup_teardown(test_directory, setup, teardown),
		cmocka_unit_test_setup_teardown(test_full, setup, teardown),
		cmocka_unit_test_setup_teardown(test_request, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(test_anything, setup, teardown),
		cmocka_unit_test(test_loader),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
