/* SPDX-License-Identifier: BSD-3-Clause */
/* Kernels: ELF and bzImage, good and hostile, into the memory of a machine that has nothing
 * else.  What a header says is never believed; what is refused is refused with a text. */
#include <elf.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "vmm/boot.h"
#include "vmm/le.h"
#include "vmm/machine.h"
#include "vmm/vcpu.h"

#define MIB (1ull << 20)
#define KERNEL_BYTES 0x3000u

static struct machine_config config = { .vcpus = 2 };
static struct machine m;
static struct error err;
static struct vcpu_entry entry;

static int file(const void *p, size_t n)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0 && write(fd, p, n) == (ssize_t)n);
	return fd;
}

static int boot(const void *kernel, size_t n)
{
	int rc;

	m.kernel = file(kernel, n);
	err = ERROR_INIT;
	rc = boot_load(&m, &entry, &err);
	close(m.kernel);
	if (rc) {
		assert_true(rc < 0);
		assert_true(err.text[0]);
	}
	return rc;
}

static int setup(void **state)
{
	m = (struct machine){ .config = &config, .initrd = -1 };
	config.cmdline = "root=none";
	return memory_make(&m.memory, 64 * MIB, &err);
}

static int teardown(void **state)
{
	memory_end(&m.memory);
	if (m.initrd >= 0)
		close(m.initrd);
	return 0;
}

/* -- ELF ------------------------------------------------------------------------------- */

struct elf {
	Elf64_Ehdr h;
	Elf64_Phdr p[2];
	struct {
		Elf64_Nhdr n;
		char name[4];
		uint32_t entry;
	} note;
};

/* One segment at 2 MiB with 0xaa in it and as many zeroes behind; a note for its start. */
static void make_elf(uint8_t *bytes)
{
	struct elf *e = (struct elf *)bytes;

	memset(bytes, 0xaa, KERNEL_BYTES);
	*e = (struct elf){
		.h = { .e_ident = ELFMAG, .e_type = ET_EXEC, .e_machine = EM_X86_64,
		       .e_entry = 0x200010, .e_phoff = offsetof(struct elf, p),
		       .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = 2 },
		.p = { { .p_type = PT_LOAD, .p_offset = 0x1000, .p_paddr = 0x200000,
			 .p_filesz = 0x2000, .p_memsz = 0x4000 },
		       { .p_type = PT_NOTE, .p_offset = offsetof(struct elf, note),
			 .p_filesz = sizeof(e->note) } },
		.note = { { 4, 4, 18 }, "Xen", 0x200000 },
	};
	e->h.e_ident[EI_CLASS] = ELFCLASS64;
	e->h.e_ident[EI_DATA] = ELFDATA2LSB;
}

static void test_elf_pvh(void **state)
{
	static uint8_t k[KERNEL_BYTES];
	uint8_t *ram = m.memory.base, *info = ram + BOOT_PVH;
	uint64_t module;

	make_elf(k);
	m.initrd = file("0123456789", 10);
	memset(ram + 0x202000, 1, 0x2000);		/* of an earlier boot */
	assert_int_equal(boot(k, sizeof(k)), 0);
	assert_int_equal(entry.mode, VCPU_PROTECTED);
	assert_int_equal(entry.rip, 0x200000);
	assert_int_equal(entry.rbx, BOOT_PVH);
	for (unsigned i = 0; i < 0x4000; i++)
		assert_int_equal(ram[0x200000 + i], i < 0x2000 ? 0xaa : 0);
	assert_int_equal(get_le32(info), 0x336ec578);
	assert_string_equal(ram + get_le64(info + 24), "root=none");
	assert_memory_equal(ram + get_le64(info + 32), "RSD PTR ", 8);
	assert_int_equal(get_le32(info + 12), 1);
	module = get_le64(info + 16);
	assert_int_equal(get_le64(ram + module + 8), 10);
	assert_int_equal(get_le64(ram + module), 64 * MIB - 4096);
	assert_memory_equal(ram + get_le64(ram + module), "0123456789", 10);
}

static void test_elf_64(void **state)
{
	static uint8_t k[KERNEL_BYTES];
	uint8_t *zero_page = m.memory.base + BOOT_ZERO_PAGE;

	make_elf(k);
	((struct elf *)k)->p[1].p_type = PT_NULL;
	assert_int_equal(boot(k, sizeof(k)), 0);
	assert_int_equal(entry.mode, VCPU_LONG);
	assert_int_equal(entry.rip, 0x200010);
	assert_int_equal(entry.rsi, BOOT_ZERO_PAGE);
	assert_int_equal(get_le32(zero_page + 0x202), 0x53726448);
	assert_string_equal(m.memory.base + get_le32(zero_page + 0x228), "root=none");
	assert_int_equal(get_le32(zero_page + 0x21c), 0);
	assert_int_equal(get_le64(m.memory.base + entry.cr3), (entry.cr3 + 4096) | 3);
}

/* A value of so many bytes at an offset of the good kernel. */
struct damage {
	size_t at;
	unsigned bytes;
	uint64_t value;
};
#define H(field, v) { offsetof(struct elf, h.field), sizeof(((struct elf *)0)->h.field), v }
#define P(field, v) { offsetof(struct elf, p[0].field), sizeof(((struct elf *)0)->p[0].field), v }
#define N(field, v) { offsetof(struct elf, note.field), sizeof(((struct elf *)0)->note.field), v }

static const struct damage elf_damages[] = {
	H(e_machine, EM_386), H(e_type, ET_REL), H(e_type, ET_CORE),
	{ EI_CLASS, 1, ELFCLASS32 }, { EI_DATA, 1, ELFDATA2MSB },
	H(e_phentsize, 0), H(e_phentsize, 55), H(e_phentsize, 0xffff),
	H(e_phnum, 0), H(e_phnum, 65), H(e_phnum, 0xffff),
	H(e_phoff, KERNEL_BYTES - 8), H(e_phoff, UINT64_MAX), H(e_phoff, INT64_MAX),
	P(p_offset, KERNEL_BYTES - 0x1fff), P(p_offset, UINT64_MAX), P(p_offset, INT64_MAX),
	P(p_offset, UINT64_MAX - 0xfff), P(p_offset, (uint64_t)INT64_MAX - 0xfff),
	P(p_filesz, 0x4001), P(p_filesz, UINT64_MAX), P(p_memsz, 0x1fff), P(p_memsz, UINT64_MAX),
	P(p_memsz, 62 * MIB + 1), P(p_memsz, -0x200000ull), P(p_memsz, 0),
	P(p_paddr, 0), P(p_paddr, 0x7000), P(p_paddr, 0xfffff), P(p_paddr, 64 * MIB - 0x3fff),
	P(p_paddr, 64 * MIB), P(p_paddr, UINT64_MAX), P(p_paddr, -0x4000ull), P(p_paddr, 1ull << 32),
	P(p_type, PT_DYNAMIC),
	N(entry, 0x1fffff - 0x100000), N(entry, 0x204000), N(entry, UINT32_MAX), N(entry, 4),
};

/* These notes name no PVH entry: the ELF entry is taken. */
static const struct damage other_notes[] = {
	N(n.n_namesz, UINT32_MAX), N(n.n_namesz, 5), N(n.n_namesz, 0), N(n.n_descsz, UINT32_MAX),
	N(n.n_descsz, 3), N(n.n_descsz, 0), N(n.n_descsz, 5), N(n.n_type, 17), N(name, 0x6f6558),
	N(entry, 0),
};

static void do_damage(uint8_t *k, const struct damage *d)
{
	memcpy(k + d->at, &d->value, d->bytes);
}

static void test_elf_hostile(void **state)
{
	static uint8_t k[KERNEL_BYTES];

	for (unsigned i = 0; i < sizeof(elf_damages) / sizeof(elf_damages[0]); i++) {
		make_elf(k);
		do_damage(k, &elf_damages[i]);
		if (!boot(k, sizeof(k)))
			fail_msg("damage %u was accepted", i);
	}
	for (unsigned i = 0; i < sizeof(other_notes) / sizeof(other_notes[0]); i++) {
		make_elf(k);
		do_damage(k, &other_notes[i]);
		if (boot(k, sizeof(k)) || entry.mode != VCPU_LONG)
			fail_msg("note %u: %s", i, err.text);
	}
	make_elf(k);
	for (size_t n = 0; n < sizeof(k); n += n < 300 ? 1 : 509)
		if (!boot(k, n))
			fail_msg("%zu bytes were accepted", n);
}

/* -- bzImage ---------------------------------------------------------------------------- */

#define SETUP 1024u			/* one sector and another */

static void make_bzimage(uint8_t *k)
{
	memset(k, 0xaa, KERNEL_BYTES);
	memset(k, 0, SETUP);
	k[0x1f1] = 1;
	k[0x201] = 0x66;
	put_le32(k + 0x202, 0x53726448);
	put_le16(k + 0x206, 0x20f);
	k[0x211] = 1;				/* loaded high */
	put_le32(k + 0x22c, 0x7fffffff);
	k[0x234] = 1;				/* relocatable */
	put_le16(k + 0x236, 1);			/* 64-bit entry */
	put_le32(k + 0x238, 2047);
	put_le64(k + 0x258, 0x1000000);
	put_le32(k + 0x260, 0x100000);
}

static void test_bzimage(void **state)
{
	static uint8_t k[KERNEL_BYTES];
	uint8_t *ram = m.memory.base, *zero_page = ram + BOOT_ZERO_PAGE;

	make_bzimage(k);
	m.initrd = file("0123456789", 10);
	assert_int_equal(boot(k, sizeof(k)), 0);
	assert_int_equal(entry.mode, VCPU_LONG);
	assert_int_equal(entry.rip, 0x1000200);
	assert_int_equal(entry.rsi, BOOT_ZERO_PAGE);
	assert_memory_equal(ram + 0x1000000, k + SETUP, KERNEL_BYTES - SETUP);
	assert_int_equal(get_le16(zero_page + 0x206), 0x20f);
	assert_int_equal(get_le32(zero_page + 0x260), 0x100000);
	assert_string_equal(ram + get_le32(zero_page + 0x228), "root=none");
	assert_int_equal(get_le32(zero_page + 0x21c), 10);
	assert_memory_equal(ram + get_le32(zero_page + 0x218), "0123456789", 10);
	assert_memory_equal(ram + get_le64(zero_page + 0x70), "RSD PTR ", 8);
	assert_int_equal(zero_page[0x210], 0xff);
	/* It says how low the initrd must be. */
	put_le32(k + 0x22c, 0x1ffffff);
	assert_int_equal(boot(k, sizeof(k)), 0);
	assert_int_equal(get_le32(zero_page + 0x218), 0x1fff000);
	/* Not relocatable: at 1 MiB. */
	k[0x234] = 0;
	assert_int_equal(boot(k, sizeof(k)), 0);
	assert_int_equal(entry.rip, 0x100200);
	/* 0 sectors mean 4. */
	k[0x1f1] = 0;
	assert_int_equal(boot(k, sizeof(k)), 0);
	assert_memory_equal(ram + 0x100000, k + 5 * 512, KERNEL_BYTES - 5 * 512);
}

static const struct damage bzimage_damages[] = {
	{ 0x206, 2, 0x20b }, { 0x206, 2, 0 }, { 0x211, 1, 0 }, { 0x236, 2, 0 }, { 0x236, 2, 0xfffe },
	{ 0x238, 4, 8 }, { 0x238, 4, 0 },		/* the command line has 9 bytes */
	{ 0x258, 8, 0 }, { 0x258, 8, 0xfffff }, { 0x258, 8, UINT64_MAX }, { 0x258, 8, 64 * MIB - 1 },
	{ 0x258, 8, -0x100000ull }, { 0x258, 8, 1ull << 32 },
	{ 0x260, 4, 49 * MIB }, { 0x260, 4, UINT32_MAX },
	{ 0x22c, 4, 0x1000000 }, { 0x22c, 4, 0 }, { 0x22c, 4, 0x10fffff },	/* initrd below its kernel */
	{ 0x1f1, 1, 0xff }, { 0x202, 4, 0 },
};

static void test_bzimage_hostile(void **state)
{
	static uint8_t k[KERNEL_BYTES];

	m.initrd = file("0123456789", 10);
	for (unsigned i = 0; i < sizeof(bzimage_damages) / sizeof(bzimage_damages[0]); i++) {
		make_bzimage(k);
		do_damage(k, &bzimage_damages[i]);
		if (!boot(k, sizeof(k)))
			fail_msg("damage %u was accepted", i);
	}
	make_bzimage(k);
	for (size_t n = 0; n <= SETUP + 0x200; n++)
		if (!boot(k, n))
			fail_msg("%zu bytes were accepted", n);
	/* A header that claims to be longer than its room in boot_params. */
	make_bzimage(k);
	k[0x201] = 0xff;
	put_le64(k + 0x2d0, 0x4141414141414141);
	assert_int_equal(boot(k, sizeof(k)), 0);
	assert_int_equal(get_le64(m.memory.base + BOOT_ZERO_PAGE + 0x2d0), 0);
}

/* -- what is around it -------------------------------------------------------------------- */

static void test_cmdline(void **state)
{
	static char text[BOOT_CMDLINE_MAX + 1];
	static uint8_t k[KERNEL_BYTES];

	make_elf(k);
	memset(text, 'x', BOOT_CMDLINE_MAX);
	config.cmdline = text;
	assert_int_equal(boot(k, sizeof(k)), -E2BIG);
	text[BOOT_CMDLINE_MAX - 1] = 0;
	assert_int_equal(boot(k, sizeof(k)), 0);
	config.cmdline = NULL;
	assert_int_equal(boot(k, sizeof(k)), 0);
	assert_int_equal(m.memory.base[BOOT_CMDLINE], 0);
}

static void test_initrd_too_large(void **state)
{
	static uint8_t k[KERNEL_BYTES];

	make_elf(k);
	m.initrd = memfd_create("test", MFD_CLOEXEC);
	assert_int_equal(ftruncate(m.initrd, 62 * MIB), 0);
	assert_int_equal(boot(k, sizeof(k)), -ENOMEM);
	assert_int_equal(ftruncate(m.initrd, INT64_MAX), 0);
	assert_int_equal(boot(k, sizeof(k)), -ENOMEM);
	assert_int_equal(ftruncate(m.initrd, 61 * MIB), 0);
	assert_int_equal(boot(k, sizeof(k)), 0);
}

/* Ranges follow each other, none overlaps, and RAM is all that there is but the BIOS's. */
static void test_map(void **state)
{
	static const uint64_t sizes[] = {
		8 * MIB, 64 * MIB, 3072 * MIB - 4096, 3072 * MIB, 3072 * MIB + 4096, 5000 * MIB, 1ull << 40,
	};

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct machine other = { .config = &config };
		struct boot_range r[BOOT_MAP_MAX];
		uint64_t end = 0, ram = 0;
		unsigned n;

		other.memory.size = sizes[i];
		other.memory.low = sizes[i] < MEMORY_HOLE ? sizes[i] : MEMORY_HOLE;
		other.memory.high = sizes[i] - other.memory.low;
		n = boot_map(&other, r);
		assert_true(n <= BOOT_MAP_MAX);
		for (unsigned j = 0; j < n; j++) {
			assert_true(r[j].base >= end && r[j].len);
			end = r[j].base + r[j].len;
			ram += r[j].type == 1 ? r[j].len : 0;
			if (r[j].type == 1)
				assert_true(end <= other.memory.low ||
					    (r[j].base >= MEMORY_HIGH && end <= MEMORY_HIGH + other.memory.high));
		}
		assert_int_equal(ram, sizes[i] - (0x100000 - BOOT_LOW_END));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_elf_pvh, setup, teardown),
		cmocka_unit_test_setup_teardown(test_elf_64, setup, teardown),
		cmocka_unit_test_setup_teardown(test_elf_hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bzimage, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bzimage_hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cmdline, setup, teardown),
		cmocka_unit_test_setup_teardown(test_initrd_too_large, setup, teardown),
		cmocka_unit_test(test_map),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
