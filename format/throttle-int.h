/* SPDX-License-Identifier: BSD-3-Clause */
/* What throttle-group.c (limits, buckets) and throttle.c (the filter) share. */
#ifndef MERINO_THROTTLE_INT_H
#define MERINO_THROTTLE_INT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/loop.h"
#include "format/throttle.h"

/* In threes: total, read, write. */
enum {
	BUCKET_BPS_TOTAL, BUCKET_BPS_READ, BUCKET_BPS_WRITE,
	BUCKET_IOPS_TOTAL, BUCKET_IOPS_READ, BUCKET_IOPS_WRITE, BUCKETS,
};

struct bucket {
	double avg, max;		/* units per second; 0: no limit */
	double length;			/* of a burst, seconds */
	double level, burst;		/* units in it, and in that of the burst */
};

struct throttle_group {
	struct bucket buckets[BUCKETS];	/* of the group's loop */
	double op_size;			/* bytes that count as one operation; 0: any number */
	uint64_t last;			/* loop_now() of the last leak */
	struct loop *loop;		/* under the lock: where the members are */
	unsigned members;		/* … and how many */
};

/* -EXDEV when the members are on another loop. */
int throttle_group_join(struct throttle_group *g, struct loop *l);
void throttle_group_leave(struct throttle_group *g);
void throttle_group_moved(struct throttle_group *g, struct loop *l);

/* How long a request has to wait now, ns; 0: it may go. */
uint64_t throttle_group_wait(struct throttle_group *g, bool write);
/* It goes. */
void throttle_group_account(struct throttle_group *g, bool write, uint64_t bytes);

#endif
