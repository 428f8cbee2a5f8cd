/* SPDX-License-Identifier: BSD-3-Clause */
/* memory: the guest's, one memfd, mapped once.
 *
 *	[0, low)			low = at most MEMORY_HOLE
 *	[MEMORY_HIGH, MEMORY_HIGH + high)
 *
 * The hole between them belongs to the devices (machine.h has the map).  Addresses come
 * from a hostile guest: memory_at() is the only way to a pointer, and what lies behind it
 * changes at any time: who checks a value reads it once, into a variable of its own.
 */
#ifndef MERINO_VMM_MEMORY_H
#define MERINO_VMM_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define MEMORY_HOLE 0xc0000000ull	/* the devices' from here … */
#define MEMORY_HIGH 0x100000000ull	/* … to here */
#define MEMORY_MIN (8ull << 20)		/* bytes */
#define MEMORY_MAX (1ull << 40)

struct memory {
	int fd;				/* the memfd */
	uint8_t *base;			/* all of it; offset 0 is address 0 */
	uint64_t size, low, high;	/* bytes */
};

int memory_make(struct memory *m, uint64_t size, struct error *err);
void memory_end(struct memory *m);

/* The host's address of [gpa, gpa+len), or NULL when not all of it is in one region. */
static inline void *memory_at(const struct memory *m, uint64_t gpa, uint64_t len)
{
	if (gpa < m->low && len <= m->low - gpa)
		return m->base + gpa;
	if (gpa >= MEMORY_HIGH && gpa - MEMORY_HIGH < m->high && len <= m->high - (gpa - MEMORY_HIGH))
		return m->base + m->low + (gpa - MEMORY_HIGH);
	return NULL;
}

#endif
