/* SPDX-License-Identifier: BSD-3-Clause */
/* virtio: the payload's driver of modern virtio-pci devices: split queues, no interrupts. */
#ifndef GUEST_VIRTIO_H
#define GUEST_VIRTIO_H

#include "payload.h"

#define QUEUE_SIZE 128u		/* at most */
enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct avail {
	uint16_t flags, idx, ring[QUEUE_SIZE], used_event;
};

struct used {
	uint16_t flags, idx;
	struct {
		uint32_t id, len;
	} ring[QUEUE_SIZE];
	uint16_t avail_event;
};

struct vq {
	volatile struct desc *desc;
	volatile struct avail *avail;
	volatile struct used *used;
	volatile uint16_t *doorbell;
	uint16_t index, size, taken;	/* taken: of used->idx */
	uint64_t kicks;
};

struct vdev {
	volatile uint8_t *common, *notify, *config;
	uint32_t notify_each;
	uint64_t features;		/* offered */
};

/* The N-th virtio device of type ID (2: block). */
bool vdev_find(struct vdev *d, unsigned id, unsigned n);
/* Resets it and takes the features WANTED that are offered; queues come next, then ok. */
void vdev_begin(struct vdev *d, uint64_t wanted);
void vdev_queue(struct vdev *d, struct vq *q, uint16_t index);
void vdev_ok(struct vdev *d);
uint8_t vdev_status(struct vdev *d);

/* HEAD is offered; rings the bell unless the device does not want it. */
void vq_offer(struct vq *q, uint16_t head);
/* The next head that is done, or -1. */
int vq_done(struct vq *q);

#endif
