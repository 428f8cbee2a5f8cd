/* SPDX-License-Identifier: BSD-3-Clause */
/* bzImage: Linux's own format, by its 64-bit entry.  See boot.h, and the kernel's
 * Documentation/x86/boot.rst for the names of the fields.
 *
 * The file is (1 + setup_sects) * 512 bytes for real mode, which nobody runs here, and the
 * kernel proper.  boot_params is a page of zeroes with the file's setup header in it.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "vmm/boot.h"
#include "vmm/le.h"
#include "vmm/machine.h"

#define SECTOR 512u
#define HEADER_AT 0x1f1u
#define HEADER_END_MAX 0x290u		/* where boot_params has something else */
#define ENTRY_64 0x200u

/* Fields, by their place in the file and in boot_params. */
enum {
	BP_RSDP = 0x070,
	BP_E820_ENTRIES = 0x1e8,
	BP_SETUP_SECTS = 0x1f1,
	BP_VID_MODE = 0x1fa,
	BP_BOOT_FLAG = 0x1fe,
	BP_JUMP = 0x200,
	BP_MAGIC = 0x202,
	BP_VERSION = 0x206,
	BP_LOADER = 0x210,
	BP_LOADFLAGS = 0x211,
	BP_RAMDISK = 0x218,
	BP_RAMDISK_SIZE = 0x21c,
	BP_CMDLINE = 0x228,
	BP_INITRD_MAX = 0x22c,
	BP_RELOCATABLE = 0x234,
	BP_XLOADFLAGS = 0x236,
	BP_CMDLINE_SIZE = 0x238,
	BP_PREF_ADDRESS = 0x258,
	BP_INIT_SIZE = 0x260,
	BP_E820 = 0x2d0,
};

#define MAGIC 0x53726448u		/* "HdrS" */
#define LOADED_HIGH 0x01u
#define XLF_KERNEL_64 0x0001u
#define VERSION_MIN 0x020cu		/* the first with xloadflags */
#define LOADER_UNKNOWN 0xffu

static int check_header(const struct machine *m, const uint8_t *h, struct error *err)
{
	const char *cmdline = m->config->cmdline ? m->config->cmdline : "";
	uint32_t most = get_le32(h + BP_CMDLINE_SIZE);

	if (get_le16(h + BP_VERSION) < VERSION_MIN)
		return error_set(err, -ENOEXEC, "the kernel's boot protocol %u.%02u is too old",
				 h[BP_VERSION + 1], h[BP_VERSION]);
	if (!(get_le16(h + BP_XLOADFLAGS) & XLF_KERNEL_64) || !(h[BP_LOADFLAGS] & LOADED_HIGH))
		return error_set(err, -ENOEXEC, "the kernel has no 64-bit entry");
	if (strlen(cmdline) > most)
		return error_set(err, -E2BIG, "the kernel takes a command line of %u bytes at most", most);
	return 0;
}

/* Where the kernel goes, and how much memory it needs there until it has unpacked itself. */
static int place(struct machine *m, const uint8_t *h, uint64_t len, uint64_t *at, uint64_t *end,
		 struct error *err)
{
	uint64_t need = max_u64(len, get_le32(h + BP_INIT_SIZE));

	*at = h[BP_RELOCATABLE] ? get_le64(h + BP_PREF_ADDRESS) : BOOT_KERNEL;
	if (*at < BOOT_KERNEL || !checked_add(*at, need, end) || *end > m->memory.low)
		return error_set(err, -ENOMEM, "the kernel does not fit into the guest's memory: "
				 "it wants %llu bytes at 0x%llx", (unsigned long long)need,
				 (unsigned long long)*at);
	return 0;
}

static void write_params(struct machine *m, const uint8_t *h)
{
	uint8_t *zero_page = memory_at(&m->memory, BOOT_ZERO_PAGE, 4096);
	unsigned end = BP_MAGIC + h[BP_JUMP + 1];

	if (end > HEADER_END_MAX)
		end = HEADER_END_MAX;
	memcpy(zero_page + HEADER_AT, h + HEADER_AT, end - HEADER_AT);
}

int boot_bzimage(struct machine *m, uint64_t size, struct boot_kernel *k, struct error *err)
{
	uint8_t h[0x300];
	uint64_t setup, at = 0, end = 0;
	int rc;

	if (pread(m->kernel, h, sizeof(h), 0) != (ssize_t)sizeof(h) || get_le32(h + BP_MAGIC) != MAGIC)
		return 1;
	rc = check_header(m, h, err);
	if (rc)
		return rc;
	setup = (1 + (h[BP_SETUP_SECTS] ? h[BP_SETUP_SECTS] : 4)) * SECTOR;
	if (size <= setup + ENTRY_64)
		return error_set(err, -ENOEXEC, "the kernel is cut short");
	rc = place(m, h, size - setup, &at, &end, err);
	if (!rc)
		rc = boot_read(m, m->kernel, setup, at, size - setup, "kernel", err);
	if (rc)
		return rc;
	write_params(m, h);
	*k = (struct boot_kernel){
		.entry = at + ENTRY_64, .end = end, .linux_params = true,
		.initrd_max = (uint64_t)get_le32(h + BP_INITRD_MAX) + 1,
	};
	return 0;
}

int boot_params_finish(struct machine *m, uint64_t initrd, uint64_t initrd_len, uint64_t rsdp,
		       struct error *err)
{
	uint8_t *p = memory_at(&m->memory, BOOT_ZERO_PAGE, 4096);
	struct boot_range r[BOOT_MAP_MAX];
	unsigned n = boot_map(m, r);

	if (initrd_len > UINT32_MAX)
		return error_set(err, -E2BIG, "the initrd is larger than 4 GiB");
	put_le16(p + BP_BOOT_FLAG, 0xaa55);
	put_le32(p + BP_MAGIC, MAGIC);
	put_le16(p + BP_VID_MODE, 0xffff);
	p[BP_LOADER] = LOADER_UNKNOWN;
	put_le32(p + BP_RAMDISK, (uint32_t)initrd);
	put_le32(p + BP_RAMDISK_SIZE, (uint32_t)initrd_len);
	put_le32(p + BP_CMDLINE, BOOT_CMDLINE);
	put_le64(p + BP_RSDP, rsdp);
	p[BP_E820_ENTRIES] = (uint8_t)n;
	for (unsigned i = 0; i < n; i++) {
		put_le64(p + BP_E820 + i * 20, r[i].base);
		put_le64(p + BP_E820 + i * 20 + 8, r[i].len);
		put_le32(p + BP_E820 + i * 20 + 16, r[i].type);
	}
	return 0;
}
