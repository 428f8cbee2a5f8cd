/* SPDX-License-Identifier: BSD-3-Clause */
/* bus: who answers which port (PIO) or address (MMIO).
 *
 * Called by vCPU threads with machine->lock held; a region's functions must be quick.
 * What nobody answers reads as ones and takes writes silently, as on real machines.
 */
#ifndef MERINO_VMM_BUS_H
#define MERINO_VMM_BUS_H

#include <stdint.h>

struct bus_region {
	struct bus_region *next;
	uint64_t base, len;		/* do not overlap */
	/* OFF is relative to BASE; SIZE is 1, 2, 4 or 8 and stays inside.  NULL: reads as
	 * ones, takes writes silently. */
	uint64_t (*read)(void *arg, uint64_t off, unsigned size);
	void (*write)(void *arg, uint64_t off, unsigned size, uint64_t value);
	void *arg;
};

struct bus {
	struct bus_region *regions;	/* by base */
};

int bus_add(struct bus *b, struct bus_region *r);	/* -EEXIST when it overlaps */
void bus_remove(struct bus *b, struct bus_region *r);
uint64_t bus_read(struct bus *b, uint64_t addr, unsigned size);
void bus_write(struct bus *b, uint64_t addr, unsigned size, uint64_t value);

#endif
