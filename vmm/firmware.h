/* SPDX-License-Identifier: BSD-3-Clause */
/* firmware: a BIOS that finds the disks and boots from them: SeaBIOS, as Debian ships it.
 *
 *	c0000	RAM, with the last 256 KiB of the file in it: the BIOS runs here, and
 *		writes here without asking (no chipset that could lock it is known to it)
 *	fffc0000	the file, read-only, so that it ends at 4 GiB: where a CPU begins
 *
 * What it learns of the machine it reads from fw_cfg: the memory map, how many CPUs there
 * are, the ACPI tables and how to place them, which disk comes first.  Its console is the
 * serial line.
 */
#ifndef MERINO_VMM_FIRMWARE_H
#define MERINO_VMM_FIRMWARE_H

#include <stdint.h>

#include "common/error.h"

struct machine;

#define FIRMWARE_DEFAULT "/usr/share/seabios/bios-256k.bin"
#define FIRMWARE_STEP 0x10000u		/* its size is a multiple */
#define FIRMWARE_MAX 0x40000u		/* below it lie KVM's own pages */
#define FIRMWARE_TOP 0x100000000ull
#define FIRMWARE_SHADOW_END 0x100000u

struct firmware {
	uint8_t *bytes;			/* pages of its own */
	uint32_t len;
};

/* Reads the file.  Once, before there is a sandbox; then the machine's memory gets it. */
int firmware_open(struct machine *m, struct error *err);
int firmware_map(struct machine *m, struct error *err);
void firmware_end(struct machine *m);
/* At each boot, the devices being there. */
int firmware_load(struct machine *m, struct error *err);

/* For tests: the script that tells firmware how to place the ACPI tables (QEMU's
 * "etc/table-loader"); its length.  OUT has room for FIRMWARE_LOADER_MAX. */
struct acpi;
#define FIRMWARE_LOADER_ENTRY 128u
#define FIRMWARE_LOADER_MAX (32u * FIRMWARE_LOADER_ENTRY)
uint32_t firmware_loader(const struct acpi *a, uint8_t *out);

#endif
