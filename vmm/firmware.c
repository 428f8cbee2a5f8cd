/* SPDX-License-Identifier: BSD-3-Clause */
/* SeaBIOS into memory, and what it reads of the machine: see firmware.h. */
#include "vmm/firmware.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "vmm/acpi.h"
#include "vmm/boot.h"
#include "vmm/fw-cfg.h"
#include "vmm/le.h"
#include "vmm/machine.h"
#include "vmm/pci.h"

#define SLOT 2u				/* machine_map() */
#define SHADOW_MIN_MEMORY (16ull << 20)	/* SeaBIOS and a boot loader fit */

/* -- the file --------------------------------------------------------------------------- */

static int read_file(int fd, struct firmware *f, const char *path, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "could not load firmware '%s': not a regular file", path);
	if (st.st_size > FIRMWARE_MAX)
		return error_set(err, -EFBIG, "could not load firmware '%s': it is larger than %u KiB: "
				 "SeaBIOS is supported, UEFI is not", path, FIRMWARE_MAX >> 10);
	if (st.st_size == 0 || st.st_size % FIRMWARE_STEP)
		return error_set(err, -EINVAL, "could not load firmware '%s': its size is not a multiple "
				 "of 64 KiB", path);
	f->bytes = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			-1, 0);
	if (f->bytes == MAP_FAILED) {
		f->bytes = NULL;
		return error_set(err, -ENOMEM, "Out of memory");
	}
	f->len = (uint32_t)st.st_size;
	for (uint32_t at = 0; at < f->len;) {
		ssize_t n = pread(fd, f->bytes + at, f->len - at, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(err, n ? -errno : -EINVAL, "could not load firmware '%s': %s", path,
					 n ? strerror(errno) : "it is cut short");
		at += (uint32_t)n;
	}
	return 0;
}

int firmware_open(struct machine *m, struct error *err)
{
	const char *path = m->config->firmware ? m->config->firmware : FIRMWARE_DEFAULT;
	int fd, rc;

	if (m->config->memory < SHADOW_MIN_MEMORY)
		return error_set(err, -EINVAL, "firmware needs 16 MiB of memory at least");
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0) {
		rc = error_errno(err, -errno, "could not load firmware '%s'", path);
		if (!m->config->firmware)
			error_hint(err, "A disk is booted by SeaBIOS: install Debian's package seabios, or say "
				   "where it is with --bios; or give a kernel with --kernel.");
		return rc;
	}
	rc = read_file(fd, &m->firmware, path, err);
	close(fd);
	return rc;
}

int firmware_map(struct machine *m, struct error *err)
{
	const struct firmware *f = &m->firmware;

	if (!f->len)
		return 0;
	return machine_map(m, SLOT, FIRMWARE_TOP - f->len, f->bytes, f->len, true, err);
}

void firmware_end(struct machine *m)
{
	if (m->firmware.bytes)
		munmap(m->firmware.bytes, m->firmware.len);
	m->firmware = (struct firmware){ 0 };
}

/* -- the memory map: address, length, type ------------------------------------------------ */

static void add_range(uint8_t *map, uint32_t *len, uint64_t base, uint64_t size, uint32_t type)
{
	if (!size)
		return;
	put_le64(map + *len, base);
	put_le64(map + *len + 8, size);
	put_le32(map + *len + 16, type);
	*len += 20;
}

/* The BIOS takes away itself what lies below 1 MiB and is not RAM on PCs. */
static int add_memory_map(struct machine *m)
{
	uint8_t map[5 * 20];
	uint32_t len = 0;

	add_range(map, &len, 0, m->memory.low, 1);
	add_range(map, &len, PCI_ECAM_BASE, PCI_ECAM_SIZE, 2);
	add_range(map, &len, 0xfffbc000, 0x4000, 2);
	add_range(map, &len, MEMORY_HIGH, m->memory.high, 1);
	return fw_cfg_add_file(m, "etc/e820", map, len);
}

/* -- ACPI tables: QEMU's table loader ------------------------------------------------------- */

#define TABLES "etc/acpi/tables"
#define RSDP "etc/acpi/rsdp"
#define NAME_BYTES 56u

enum { ALLOCATE = 1, ADD_POINTER, ADD_CHECKSUM };
enum { ZONE_HIGH = 1, ZONE_LOW };

static uint8_t *entry(uint8_t *out, uint32_t *len, uint32_t command, const char *file)
{
	uint8_t *p = out + *len;

	assert(*len < FIRMWARE_LOADER_MAX);
	memset(p, 0, FIRMWARE_LOADER_ENTRY);
	put_le32(p, command);
	memcpy(p + 4, file, strlen(file));
	*len += FIRMWARE_LOADER_ENTRY;
	return p + 4 + NAME_BYTES;
}

static void allocate(uint8_t *out, uint32_t *len, const char *file, uint32_t align, uint8_t zone)
{
	uint8_t *p = entry(out, len, ALLOCATE, file);

	put_le32(p, align);
	p[4] = zone;
}

/* The address of the tables is added to what is at AT in FILE. */
static void add_pointer(uint8_t *out, uint32_t *len, const char *file, uint32_t at, unsigned size)
{
	uint8_t *p = entry(out, len, ADD_POINTER, file);

	memcpy(p, TABLES, sizeof(TABLES));
	put_le32(p + NAME_BYTES, at);
	p[NAME_BYTES + 4] = (uint8_t)size;
}

static void add_checksum(uint8_t *out, uint32_t *len, const char *file, uint32_t at, uint32_t start,
			 uint32_t n)
{
	uint8_t *p = entry(out, len, ADD_CHECKSUM, file);

	put_le32(p, at);
	put_le32(p + 4, start);
	put_le32(p + 8, n);
}

uint32_t firmware_loader(const struct acpi *a, uint8_t *out)
{
	uint32_t len = 0;

	allocate(out, &len, TABLES, 64, ZONE_HIGH);
	allocate(out, &len, RSDP, 16, ZONE_LOW);
	for (unsigned i = 0; i < a->n_pointers; i++)
		add_pointer(out, &len, TABLES, a->pointer[i].at, a->pointer[i].size);
	for (unsigned i = 0; i < a->n_tables; i++)
		add_checksum(out, &len, TABLES, a->table[i].at + 9, a->table[i].at, a->table[i].len);
	add_pointer(out, &len, RSDP, ACPI_RSDP_RSDT, 4);
	add_pointer(out, &len, RSDP, ACPI_RSDP_XSDT, 8);
	add_checksum(out, &len, RSDP, 8, 0, 20);
	add_checksum(out, &len, RSDP, 32, 0, ACPI_RSDP_BYTES);
	return len;
}

static int add_acpi(struct machine *m)
{
	struct acpi *a = malloc(sizeof(*a));
	uint8_t loader[FIRMWARE_LOADER_MAX];
	int rc;

	if (!a)
		return -ENOMEM;
	acpi_build(m->config->vcpus, 0, a);
	rc = fw_cfg_add_file(m, TABLES, a->bytes, a->len);
	if (!rc)
		rc = fw_cfg_add_file(m, RSDP, a->rsdp, ACPI_RSDP_BYTES);
	if (!rc)
		rc = fw_cfg_add_file(m, "etc/table-loader", loader, firmware_loader(a, loader));
	free(a);
	return rc;
}

/* -- which disk comes first: the order in which they were given ---------------------------- */

#define VIRTIO_BLK 0x1042u

static int add_boot_order(struct machine *m)
{
	char text[PCI_DEVICES_MAX * 40] = "";
	size_t len = 0;

	for (unsigned i = 0; i < PCI_DEVICES_MAX; i++) {
		const struct pci_device *d = m->pci->device[i];

		if (d && d->class->device == VIRTIO_BLK)
			len += (size_t)snprintf(text + len, sizeof(text) - len,
						"/pci@i0cf8/scsi@%x/disk@0,0\n", d->slot);
	}
	return fw_cfg_add_file(m, "bootorder", text, (uint32_t)len + 1);
}

/* -- all of it ---------------------------------------------------------------------------- */

static int add_all(struct machine *m)
{
	uint8_t cpus[2], yes[2];
	int rc;

	put_le16(cpus, (uint16_t)m->config->vcpus);
	put_le16(yes, 1);
	fw_cfg_reset(m);
	rc = fw_cfg_add(m, FW_CFG_CPUS, cpus, 2);
	if (!rc)
		rc = fw_cfg_add(m, FW_CFG_CPUS_MAX, cpus, 2);
	if (!rc)
		rc = fw_cfg_add(m, FW_CFG_NO_GRAPHICS, yes, 2);	/* so the console is the serial line */
	if (!rc)
		rc = add_memory_map(m);
	if (!rc)
		rc = add_acpi(m);
	return rc ? rc : add_boot_order(m);
}

int firmware_load(struct machine *m, struct error *err)
{
	const struct firmware *f = &m->firmware;
	int rc;

	/* All below 1 MiB as after power-on: what the last boot left there is not this one's. */
	memset(memory_at(&m->memory, 0, FIRMWARE_SHADOW_END), 0, FIRMWARE_SHADOW_END);
	memcpy(memory_at(&m->memory, FIRMWARE_SHADOW_END - f->len, f->len), f->bytes, f->len);
	pthread_mutex_lock(&m->lock);
	rc = add_all(m);
	pthread_mutex_unlock(&m->lock);
	return rc ? error_errno(err, rc, "cannot tell the firmware of the machine") : 0;
}
