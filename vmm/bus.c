/* SPDX-License-Identifier: BSD-3-Clause */
/* Ports and addresses: see bus.h.
 *
 * There are a few dozen regions at most, and whoever moves data does it by doorbells
 * that never come here: a list in order is fast enough.
 */
#include "vmm/bus.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>

#include "common/checked.h"

int bus_add(struct bus *b, struct bus_region *r)
{
	struct bus_region **at = &b->regions;
	uint64_t end;

	if (!r->len || !checked_add(r->base, r->len, &end))
		return -EINVAL;
	while (*at && (*at)->base < r->base) {
		if (ranges_overlap((*at)->base, (*at)->len, r->base, r->len))
			return -EEXIST;
		at = &(*at)->next;
	}
	if (*at && ranges_overlap((*at)->base, (*at)->len, r->base, r->len))
		return -EEXIST;
	r->next = *at;
	*at = r;
	return 0;
}

void bus_remove(struct bus *b, struct bus_region *r)
{
	for (struct bus_region **at = &b->regions; *at; at = &(*at)->next) {
		if (*at == r) {
			*at = r->next;
			r->next = NULL;
			return;
		}
	}
}

/* The region that all of [ADDR, ADDR+SIZE) lies in. */
static struct bus_region *find(struct bus *b, uint64_t addr, unsigned size)
{
	for (struct bus_region *r = b->regions; r && r->base <= addr; r = r->next)
		if (checked_range(addr - r->base, size, r->len))
			return r;
	return NULL;
}

uint64_t bus_read(struct bus *b, uint64_t addr, unsigned size)
{
	struct bus_region *r = find(b, addr, size);
	uint64_t ones = size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1;

	assert(size && size <= 8 && is_pow2(size));
	return r && r->read ? r->read(r->arg, addr - r->base, size) & ones : ones;
}

void bus_write(struct bus *b, uint64_t addr, unsigned size, uint64_t value)
{
	struct bus_region *r = find(b, addr, size);

	assert(size && size <= 8 && is_pow2(size));
	if (r && r->write)
		r->write(r->arg, addr - r->base, size, value);
}
