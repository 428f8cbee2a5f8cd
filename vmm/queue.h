/* SPDX-License-Identifier: BSD-3-Clause */
/* queue: a split virtqueue, from the device's side (virtio 1.2, section 2.7).
 *
 * One thread at a time uses a queue.  Everything in it is the guest's, who may change it at
 * any time: every number is read once and checked.  A ring that makes no sense breaks the
 * queue: nothing more is taken from it, and the device asks for a reset.
 */
#ifndef MERINO_VMM_QUEUE_H
#define MERINO_VMM_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "vmm/memory.h"

#define QUEUE_SIZE_MAX 1024u
#define QUEUE_SEGMENTS_MAX 1024u	/* of one request, all descriptors together */

/* What of a queue is saved with the machine. */
struct queue_state {
	uint32_t version;		/* 1 */
	uint16_t size;			/* a power of two up to the maximum */
	uint16_t vector;
	uint8_t enabled, broken;	/* 0 or 1; broken: nothing more is taken from it */
	uint16_t next_avail, next_used;
	uint64_t desc, avail, used;	/* guest addresses */
	uint64_t taken[QUEUE_SIZE_MAX / 64];	/* the heads that are popped, not pushed */
};

struct queue {
	struct queue_state s;
	const struct memory *memory;
	bool event_idx, indirect;	/* what was negotiated */
	uint16_t signalled;		/* next_used at the last look at used_event */
	bool signalled_valid;
	/* Since queue_start(): where the rings lie, and how many heads are taken. */
	void *desc, *avail, *used;
	unsigned n_taken;
};

/* A request: first what the device reads, then what it writes.  Neighbours in memory are
 * one segment. */
struct queue_chain {
	uint16_t head;
	unsigned n_out, n_in;		/* segments */
	uint64_t out_bytes, in_bytes;
	struct iovec *iov;		/* QUEUE_SEGMENTS_MAX of them, the caller's */
};

/* DRIVER_OK: the addresses are checked.  -EINVAL: broken. */
int queue_start(struct queue *q);
/* The next request: 1; 0: there is none; -EINVAL: the queue is broken now. */
int queue_pop(struct queue *q, struct queue_chain *c);
/* HEAD is done, WRITTEN bytes were stored.  Each popped head exactly once. */
void queue_push(struct queue *q, uint16_t head, uint32_t written);
/* What was pushed is to be told by an interrupt. */
bool queue_wants_interrupt(struct queue *q);
/* Asks for (or against) doorbells.  After asking for them, look once more. */
void queue_notifications(struct queue *q, bool on);
bool queue_is_empty(struct queue *q);

/* Q->s is what is saved.  S may be hostile: MOST is the largest size, ACTIVE says that the rings
 * must lie in memory.  -EINVAL: S makes no sense, and Q must be reset. */
int queue_load(struct queue *q, const struct queue_state *s, uint16_t most, bool active);
/* HEAD was popped before Q was saved. */
bool queue_has_taken(const struct queue *q, uint16_t head);
/* Such a head once more, for who does its request again.  1, or -EINVAL as queue_pop(). */
int queue_retake(struct queue *q, uint16_t head, struct queue_chain *c);

#endif
