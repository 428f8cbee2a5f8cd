/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoints-int: what checkpoints.c and checkpoint-lease.c tell each other. */
#ifndef MERINO_CHECKPOINTS_INT_H
#define MERINO_CHECKPOINTS_INT_H

#include "nbd-server/checkpoints.h"

struct checkpoint *checkpoint_find_serial(uint64_t serial);
/* The lease begins. */
void checkpoint_watch(struct checkpoint *c);

#endif
