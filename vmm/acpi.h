/* SPDX-License-Identifier: BSD-3-Clause */
/* acpi: the tables that tell a guest what there is.
 *
 *	RSDP ─▶ XSDT ─▶ FADT ─▶ FACS, DSDT
 *	             ├▶ MADT		CPUs, IOAPIC
 *	             └▶ MCFG		PCI configuration space
 *	     ─▶ RSDT		the same by 32-bit addresses: GRUB knows nothing else
 *
 * Built for an address.  For firmware that places them itself (fw_cfg's table loader):
 * built for address 0, with the lists of what is to be corrected.
 */
#ifndef MERINO_VMM_ACPI_H
#define MERINO_VMM_ACPI_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#define ACPI_BYTES_MAX 32768u
#define ACPI_TABLES_MAX 8u
#define ACPI_POINTERS_MAX 16u
#define ACPI_RSDP_BYTES 36u
#define ACPI_RSDP_RSDT 16u		/* where in the RSDP the RSDT's address is, 4 bytes, … */
#define ACPI_RSDP_XSDT 24u		/* … and the XSDT's, 8 bytes */

struct acpi {
	uint8_t rsdp[ACPI_RSDP_BYTES];
	uint8_t bytes[ACPI_BYTES_MAX];	/* the other tables, from address BASE on */
	uint32_t len, rsdt, xsdt;	/* RSDT, XSDT: their offsets */
	struct acpi_table {
		uint32_t at, len;	/* its checksum is byte 9 */
	} table[ACPI_TABLES_MAX];
	unsigned n_tables;
	struct acpi_pointer {
		uint32_t at;		/* of an address in BYTES */
		unsigned size;
	} pointer[ACPI_POINTERS_MAX];
	unsigned n_pointers;
};

void acpi_build(unsigned vcpus, uint64_t base, struct acpi *a);

#endif
