/* SPDX-License-Identifier: BSD-3-Clause */
/* bus-guard: mapped files whose storage fails.
 *
 * Where a page of a mapping cannot be had (the file was truncated, storage has an error, or is
 * full and copies on write) the kernel sends SIGBUS, which would end the process and all
 * its disks.  In a guarded mapping the page becomes memory full of ones instead, and the
 * mapping says so: for bits that tell what changed, ones are always true.
 */
#ifndef MERINO_BUS_GUARD_H
#define MERINO_BUS_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* [mem, mem+len), whole pages.  Out of memory it is not guarded. */
void bus_guard_add(void *mem, size_t len);
/* Before it is unmapped; one that is not guarded is fine. */
void bus_guard_remove(void *mem);
/* Pages that were lost so far, in all mappings.  Cheap. */
uint64_t bus_guard_lost(void);
/* Whether a page of the mapping at MEM was. */
bool bus_guard_has_lost(const void *mem);

#endif
