/* SPDX-License-Identifier: BSD-3-Clause */
/* virtio-blk-int: what its files share.
 *
 *	virtio-blk.c		the device: features, configuration, activate and reset
 *	virtio-blk-options.c	--disk
 *	virtio-blk-request.c	what a guest asks for, checked, and what it is told
 *	virtio-blk-work.c	the thread of a queue
 */
#ifndef MERINO_VMM_VIRTIO_BLK_INT_H
#define MERINO_VMM_VIRTIO_BLK_INT_H

#include <linux/virtio_blk.h>
#include <pthread.h>

#include "vmm/machine.h"
#include "vmm/virtio-blk.h"
#include "vmm/virtio.h"

enum {
	SECTOR = 512,
	BLK_RANGES_MAX = 16,		/* of one discard or write zeroes */
	BLK_RANGE_SECTORS = 1 << 22,	/* the longest of them: 2 GiB */
	BLK_SEGMENTS = 254,		/* what the guest is told */
	BLK_IOV = 32,			/* in place; longer lists are allocated */
	BLK_DRAIN_MS = 1000,		/* a reset, or a pause, waits so long for the server */
	BLK_SILENT_MS = 4000,		/* after a reset that did in vain, the next ones do not */
};

struct blk_worker;

/* One request of the guest's, from pop to push. */
struct blk_request {
	struct disk_request disk;
	struct blk_worker *worker;
	struct blk_queue *queue;
	struct blk_request *next_free;
	uint16_t head;
	uint8_t *status;		/* guest memory */
	uint32_t written;
	struct iovec *more;		/* NULL: IOV is enough */
	unsigned range, n_ranges;
	union {
		struct iovec iov[BLK_IOV];
		struct virtio_blk_discard_write_zeroes ranges[BLK_RANGES_MAX];
	};
};

struct blk_queue {
	struct queue *q;
	unsigned index;
	int doorbell;
	bool pushed;			/* since the last look at interrupts */
	bool redo;			/* it was loaded: what is taken is to be done again */
	struct blk_request *pool, *free;
};

enum worker_state { WORKER_PARKED, WORKER_RUNS, WORKER_RESTS, WORKER_ENDS };

struct blk_worker {
	struct blk *blk;
	struct disk_channel *channel;
	pthread_t thread;
	bool started;
	int control;			/* eventfd: WANTED has changed */
	enum worker_state wanted, is;	/* blk->lock */
	unsigned n_queues;
	struct blk_queue *queue[BLK_QUEUES_MAX];
	struct queue_chain chain;
	struct iovec iov[QUEUE_SEGMENTS_MAX];
	bool busy;			/* requests were completed since it last waited */
	unsigned spin_us;		/* how long it pays to wait awake */
	bool waited;			/* for the server, since it ran */
};

struct blk {
	struct virtio v;
	struct disk *disk;
	struct disk_facts facts;	/* but for the size */
	uint64_t sectors;		/* atomic */
	bool read_only, write_through;	/* since activate() */
	char serial[BLK_SERIAL_MAX];
	unsigned n_workers;
	struct blk_worker worker[BLK_QUEUES_MAX];
	struct blk_queue queue[BLK_QUEUES_MAX];
	pthread_mutex_t lock;
	pthread_cond_t changed;
};

/* Takes W's popped chain as a request of Q's: it is submitted, or completed.  -EINVAL: it has
 * no status byte or no header, and breaks the queue. */
int blk_request_begin(struct blk_worker *w, struct blk_queue *q);

int blk_worker_start(struct blk_worker *w, struct error *err);
void blk_worker_want(struct blk_worker *w, enum worker_state s);	/* does not wait */
void blk_worker_wait(struct blk_worker *w, enum worker_state s);

#endif
