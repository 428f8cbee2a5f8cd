/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoints-int: what the files of checkpoints.h tell each other. */
#ifndef MERINO_CHECKPOINTS_INT_H
#define MERINO_CHECKPOINTS_INT_H

#include "nbd-server/checkpoints.h"

struct checkpoint *checkpoint_find_serial(uint64_t serial);
/* checkpoint-ends.c.  The node that has the checkpoints of the disk N; one reference. */
struct node *checkpoint_base(struct node *n);
/* Of the nodes of C; what cannot be done now waits for the next time.  See
 * checkpoint_end_leftovers(). */
int checkpoint_end_leftovers_of(struct checkpoint *c, bool useless_too, struct error *err);
/* Checkpoints that are ready on all their disks count from now on; on the disks of PARTS
 * (NULL: none) the others are as if they had not begun. */
int checkpoint_settle_all(const struct checkpoint *parts, struct error *err);

/* checkpoint-lease.c: the lease begins. */
void checkpoint_watch(struct checkpoint *c);

#endif
