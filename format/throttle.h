/* SPDX-License-Identifier: BSD-3-Clause */
/* throttle: groups of disks that share limits, and the filter that holds to them. */
#ifndef MERINO_THROTTLE_H
#define MERINO_THROTTLE_H

#include "common/objects.h"

struct loop;

/* QEMU's object "throttle-group". */
extern struct object_class throttle_group_class;

/* Where the members of the group ID are; NULL when it has none, or there is no such
 * group.  Any thread. */
struct loop *throttle_group_loop(const char *id);

#endif
