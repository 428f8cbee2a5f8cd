/* SPDX-License-Identifier: BSD-3-Clause */
/* boot: a kernel is put into memory, with its command line, initrd and tables.
 *
 *	00500	descriptor table
 *	06000	hvm_start_info (PVH), its memory map and module
 *	07000	boot_params (the others)
 *	09000	page tables: the first 4 GiB, one to one
 *	20000	command line, 64 KiB at most
 *	e0000	ACPI tables, for kernels that are booted directly
 *	kernel where it wants to be; initrd below the end of low memory
 *
 * The files are a stranger's: every number in them is checked before it is used.
 */
#ifndef MERINO_VMM_BOOT_H
#define MERINO_VMM_BOOT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct machine;
struct vcpu_entry;

#define BOOT_GDT 0x500u
#define BOOT_PVH 0x6000u
#define BOOT_ZERO_PAGE 0x7000u
#define BOOT_STACK 0x8ff0u
#define BOOT_PAGE_TABLES 0x9000u
#define BOOT_CMDLINE 0x20000u
#define BOOT_CMDLINE_MAX 0x10000u
#define BOOT_LOW_END 0x9fc00u		/* of memory that BIOSes leave to others */
#define BOOT_TABLES 0xe0000u
#define BOOT_TABLES_END 0x100000u
#define BOOT_KERNEL 0x100000u		/* no kernel below */

/* Opens the files and looks at what they are.  Once, before there is a sandbox. */
int boot_open(struct machine *m, struct error *err);
/* At each boot: everything into memory; E is where the first CPU begins. */
int boot_load(struct machine *m, struct vcpu_entry *e, struct error *err);

/* The memory map that the guest is told.  Types as in e820: 1 RAM, 2 reserved. */
#define BOOT_MAP_MAX 8u
struct boot_range {
	uint64_t base, len;
	uint32_t type;
};
unsigned boot_map(const struct machine *m, struct boot_range *r);	/* how many of BOOT_MAP_MAX */

/* -- what the loaders share -- */

struct boot_kernel {			/* what a loader found */
	uint64_t entry, end;		/* END: the first address behind the kernel */
	uint64_t initrd_max;		/* the initrd ends at or below this */
	bool linux_params;		/* takes boot_params in rsi, in long mode; else PVH */
};

/* Reads [OFF, OFF+LEN) of the file FD, all of it or an error, to guest memory. */
int boot_read(struct machine *m, int fd, uint64_t off, uint64_t gpa, uint64_t len,
	      const char *what, struct error *err);
/* 0: loaded; 1: the file is something else. */
int boot_elf(struct machine *m, uint64_t size, struct boot_kernel *k, struct error *err);
int boot_bzimage(struct machine *m, uint64_t size, struct boot_kernel *k, struct error *err);
/* Fills the rest of boot_params. */
int boot_params_finish(struct machine *m, uint64_t initrd, uint64_t initrd_len, uint64_t rsdp,
		       struct error *err);

#endif
