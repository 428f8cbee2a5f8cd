/* SPDX-License-Identifier: BSD-3-Clause */
/* What every kernel needs around it: see boot.h. */
#include "vmm/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "vmm/acpi.h"
#include "vmm/le.h"
#include "vmm/machine.h"
#include "vmm/vcpu.h"

/* -- files -------------------------------------------------------------------------- */

static int open_file(const char *path, const char *what, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0)
		return error_errno(err, -errno, "could not load %s '%s'", what, path);
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return error_set(err, -EINVAL, "could not load %s '%s': not a regular file", what, path);
	}
	return fd;
}

int boot_open(struct machine *m, struct error *err)
{
	const struct machine_config *c = m->config;

	if (!c->kernel)
		return firmware_open(m, err);
	m->kernel = open_file(c->kernel, "kernel", err);
	if (m->kernel < 0)
		return m->kernel;
	if (c->initrd) {
		m->initrd = open_file(c->initrd, "initrd", err);
		if (m->initrd < 0)
			return m->initrd;
	}
	return 0;
}

/* Asked at each boot: somebody may have written to the file. */
static int file_size(int fd, uint64_t *size, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return error_errno(err, -errno, "cannot ask for a file's size");
	*size = (uint64_t)st.st_size;
	return 0;
}

int boot_read(struct machine *m, int fd, uint64_t off, uint64_t gpa, uint64_t len,
	      const char *what, struct error *err)
{
	uint8_t *at = memory_at(&m->memory, gpa, len);

	if (!at || off > INT64_MAX || len > INT64_MAX - off)
		return error_set(err, -EINVAL, "%s does not fit into the guest's memory", what);
	while (len) {
		ssize_t n = pread(fd, at, len < 1u << 30 ? len : 1u << 30, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(err, -errno, "cannot read the %s", what);
		if (n == 0)
			return error_set(err, -EINVAL, "the %s is cut short", what);
		at += n;
		off += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

/* -- tables ------------------------------------------------------------------------- */

/* Null twice, 64 or 32-bit code at 0x10, data at 0x18, a TSS at 0x20. */
static void write_gdt(struct machine *m, bool wide)
{
	uint64_t *gdt = memory_at(&m->memory, BOOT_GDT, 48);

	gdt[0] = gdt[1] = 0;
	gdt[2] = wide ? 0x00af9b000000ffffull : 0x00cf9b000000ffffull;
	gdt[3] = 0x00cf93000000ffffull;
	gdt[4] = 0x00008b0000000067ull;
	gdt[5] = 0;
}

/* 4 GiB one to one in pages of 2 MiB: one table above four above one. */
static void write_page_tables(struct machine *m)
{
	uint64_t *t = memory_at(&m->memory, BOOT_PAGE_TABLES, 6 * 4096);

	memset(t, 0, 2 * 4096);
	t[0] = (BOOT_PAGE_TABLES + 0x1000) | 3;
	for (uint64_t i = 0; i < 4; i++)
		t[512 + i] = (BOOT_PAGE_TABLES + 0x2000 + i * 0x1000) | 3;
	for (uint64_t i = 0; i < 4 * 512; i++)
		t[1024 + i] = i << 21 | 0x83;
}

static void add_range(struct boot_range *r, unsigned *n, uint64_t base, uint64_t end, uint32_t type)
{
	if (base < end)
		r[(*n)++] = (struct boot_range){ base, end - base, type };
}

unsigned boot_map(const struct machine *m, struct boot_range *r)
{
	const struct memory *mem = &m->memory;
	unsigned n = 0;

	add_range(r, &n, 0, BOOT_LOW_END, 1);
	add_range(r, &n, BOOT_LOW_END, BOOT_TABLES_END, 2);
	add_range(r, &n, BOOT_TABLES_END, mem->low, 1);
	add_range(r, &n, PCI_ECAM_BASE, PCI_ECAM_BASE + PCI_ECAM_SIZE, 2);
	add_range(r, &n, 0xfffbc000, MEMORY_HIGH, 2);
	add_range(r, &n, MEMORY_HIGH, MEMORY_HIGH + mem->high, 1);
	return n;
}

static int write_cmdline(struct machine *m, struct error *err)
{
	const char *text = m->config->cmdline ? m->config->cmdline : "";
	size_t len = strlen(text) + 1;

	if (len > BOOT_CMDLINE_MAX)
		return error_set(err, -E2BIG, "the kernel's command line is longer than %u bytes",
				 BOOT_CMDLINE_MAX - 1);
	memcpy(memory_at(&m->memory, BOOT_CMDLINE, len), text, len);
	return 0;
}

/* As high as the kernel allows. */
static int load_initrd(struct machine *m, const struct boot_kernel *k, uint64_t *at, uint64_t *len,
		       struct error *err)
{
	uint64_t end = min_u64(m->memory.low, k->initrd_max);
	int rc;

	*at = *len = 0;
	if (m->initrd < 0)
		return 0;
	rc = file_size(m->initrd, len, err);
	if (rc)
		return rc;
	if (*len > end || align_down(end - *len, 4096) < k->end)
		return error_set(err, -ENOMEM, "kernel and initrd do not fit into the guest's memory");
	*at = align_down(end - *len, 4096);
	return boot_read(m, m->initrd, 0, *at, *len, "initrd", err);
}

/* -- PVH: xen/include/public/arch-x86/hvm/start_info.h ------------------------------- */

#define PVH_MAGIC 0x336ec578u
#define PVH_MODULE (BOOT_PVH + 0x40)
#define PVH_MAP (BOOT_PVH + 0x80)

static void write_pvh(struct machine *m, uint64_t initrd, uint64_t initrd_len, uint64_t rsdp)
{
	uint8_t *p = memory_at(&m->memory, BOOT_PVH, 0x1000);
	struct boot_range r[BOOT_MAP_MAX];
	unsigned n = boot_map(m, r);

	memset(p, 0, 0x1000);
	put_le32(p, PVH_MAGIC);
	put_le32(p + 4, 1);
	put_le32(p + 12, initrd_len ? 1 : 0);
	put_le64(p + 16, initrd_len ? PVH_MODULE : 0);
	put_le64(p + 24, BOOT_CMDLINE);
	put_le64(p + 32, rsdp);
	put_le64(p + 40, PVH_MAP);
	put_le32(p + 48, n);
	put_le64(p + 0x40, initrd);
	put_le64(p + 0x48, initrd_len);
	for (unsigned i = 0; i < n; i++) {
		put_le64(p + 0x80 + i * 24, r[i].base);
		put_le64(p + 0x88 + i * 24, r[i].len);
		put_le32(p + 0x90 + i * 24, r[i].type);
	}
}

/* -- ACPI -------------------------------------------------------------------------- */

static int write_acpi(struct machine *m, uint64_t *rsdp, struct error *err)
{
	struct acpi *a = malloc(sizeof(*a));

	if (!a)
		return error_set(err, -ENOMEM, "Out of memory");
	acpi_build(m->config->vcpus, BOOT_TABLES + 64, a);
	memcpy(memory_at(&m->memory, BOOT_TABLES, ACPI_RSDP_BYTES), a->rsdp, ACPI_RSDP_BYTES);
	memcpy(memory_at(&m->memory, BOOT_TABLES + 64, a->len), a->bytes, a->len);
	free(a);
	*rsdp = BOOT_TABLES;
	return 0;
}

/* -- all of it ------------------------------------------------------------------------ */

static int load_kernel(struct machine *m, struct boot_kernel *k, struct error *err)
{
	uint64_t size = 0;
	int rc = file_size(m->kernel, &size, err);

	if (!rc)
		rc = boot_elf(m, size, k, err);
	if (rc == 1)
		rc = boot_bzimage(m, size, k, err);
	if (rc == 1)
		rc = error_set(err, -ENOEXEC, "'%s' is neither a bzImage nor an ELF kernel",
			       m->config->kernel);
	return rc;
}

static void set_entry(const struct boot_kernel *k, struct vcpu_entry *e)
{
	*e = (struct vcpu_entry){
		.mode = k->linux_params ? VCPU_LONG : VCPU_PROTECTED,
		.rip = k->entry, .rsp = BOOT_STACK,
		.rbx = k->linux_params ? 0 : BOOT_PVH,
		.rsi = k->linux_params ? BOOT_ZERO_PAGE : 0,
		.gdt = BOOT_GDT, .gdt_limit = 47, .cr3 = BOOT_PAGE_TABLES,
	};
}

int boot_load(struct machine *m, struct vcpu_entry *e, struct error *err)
{
	struct boot_kernel k = { .initrd_max = MEMORY_HOLE };
	uint64_t initrd = 0, initrd_len = 0, rsdp = 0;
	int rc;

	if (m->kernel < 0)
		return firmware_load(m, err);
	/* What an earlier boot left is not this one's. */
	memset(memory_at(&m->memory, 0, BOOT_LOW_END), 0, BOOT_LOW_END);
	memset(memory_at(&m->memory, BOOT_TABLES, BOOT_TABLES_END - BOOT_TABLES), 0,
	       BOOT_TABLES_END - BOOT_TABLES);
	rc = load_kernel(m, &k, err);
	if (!rc)
		rc = write_cmdline(m, err);
	if (!rc)
		rc = load_initrd(m, &k, &initrd, &initrd_len, err);
	if (!rc)
		rc = write_acpi(m, &rsdp, err);
	if (rc)
		return rc;
	write_gdt(m, k.linux_params);
	if (k.linux_params) {
		write_page_tables(m);
		rc = boot_params_finish(m, initrd, initrd_len, rsdp, err);
	} else {
		write_pvh(m, initrd, initrd_len, rsdp);
	}
	set_entry(&k, e);
	return rc;
}
