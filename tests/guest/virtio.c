/* SPDX-License-Identifier: BSD-3-Clause */
/* virtio: finds devices on the PCI bus by ports cf8 and cfc, and drives their queues. */
#include "virtio.h"

enum {
	CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_DEVICE = 4,
	ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8,
};

static uint32_t config32(unsigned slot, unsigned off)
{
	outl(0xcf8, 0x80000000u | slot << 11 | (off & 0xfc));
	return inl(0xcfc);
}

static void config32_write(unsigned slot, unsigned off, uint32_t v)
{
	outl(0xcf8, 0x80000000u | slot << 11 | (off & 0xfc));
	outl(0xcfc, v);
}

static uint8_t config8(unsigned slot, unsigned off)
{
	return (uint8_t)(config32(slot, off) >> off % 4 * 8);
}

static uint64_t bar(unsigned slot, unsigned i)
{
	uint64_t v = config32(slot, 0x10 + 4 * i);

	if ((v & 6) == 4)
		v |= (uint64_t)config32(slot, 0x14 + 4 * i) << 32;
	return v & ~0xfull;
}

static void read_caps(struct vdev *d, unsigned slot)
{
	for (unsigned at = config8(slot, 0x34); at; at = config8(slot, at + 1)) {
		volatile uint8_t *p;

		if (config8(slot, at) != 9)
			continue;
		p = (volatile uint8_t *)(bar(slot, config8(slot, at + 4)) + config32(slot, at + 8));
		switch (config8(slot, at + 3)) {
		case CAP_COMMON: d->common = p; break;
		case CAP_DEVICE: d->config = p; break;
		case CAP_NOTIFY:
			d->notify = p;
			d->notify_each = config32(slot, at + 16);
			break;
		}
	}
}

bool vdev_find(struct vdev *d, unsigned id, unsigned n)
{
	for (unsigned slot = 0; slot < 32; slot++) {
		if (config32(slot, 0) != (0x1af4 | (0x1040 + id) << 16) || n--)
			continue;
		config32_write(slot, 4, config32(slot, 4) | 6);	/* memory, bus master */
		read_caps(d, slot);
		return d->common && d->notify;
	}
	return false;
}

#define COMMON32(d, off) (*(volatile uint32_t *)((d)->common + (off)))
#define COMMON16(d, off) (*(volatile uint16_t *)((d)->common + (off)))
#define COMMON8(d, off) (*(volatile uint8_t *)((d)->common + (off)))

uint8_t vdev_status(struct vdev *d)
{
	return COMMON8(d, 20);
}

void vdev_begin(struct vdev *d, uint64_t wanted)
{
	COMMON8(d, 20) = 0;
	while (vdev_status(d))
		;
	COMMON8(d, 20) = ACKNOWLEDGE | DRIVER;
	COMMON32(d, 0) = 0;
	d->features = COMMON32(d, 4);
	COMMON32(d, 0) = 1;
	d->features |= (uint64_t)COMMON32(d, 4) << 32;
	wanted &= d->features;
	COMMON32(d, 8) = 0;
	COMMON32(d, 12) = (uint32_t)wanted;
	COMMON32(d, 8) = 1;
	COMMON32(d, 12) = (uint32_t)(wanted >> 32);
	COMMON8(d, 20) = ACKNOWLEDGE | DRIVER | FEATURES_OK;
	if (!(vdev_status(d) & FEATURES_OK))
		fail("features %x are refused", wanted);
}

void vdev_queue(struct vdev *d, struct vq *q, uint16_t index)
{
	q->desc = take(QUEUE_SIZE * sizeof(struct desc));
	q->avail = take(sizeof(struct avail));
	q->used = take(sizeof(struct used));
	q->index = index;
	q->taken = 0;
	q->avail->flags = 1;		/* no interrupts */
	COMMON16(d, 22) = index;
	q->size = COMMON16(d, 24) < QUEUE_SIZE ? COMMON16(d, 24) : QUEUE_SIZE;
	COMMON16(d, 24) = q->size;
	COMMON32(d, 32) = (uint32_t)(uint64_t)q->desc;
	COMMON32(d, 36) = 0;
	COMMON32(d, 40) = (uint32_t)(uint64_t)q->avail;
	COMMON32(d, 44) = 0;
	COMMON32(d, 48) = (uint32_t)(uint64_t)q->used;
	COMMON32(d, 52) = 0;
	q->doorbell = (volatile uint16_t *)(d->notify + COMMON16(d, 30) * d->notify_each);
	COMMON16(d, 28) = 1;
}

void vdev_ok(struct vdev *d)
{
	COMMON8(d, 20) = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
}

void vq_offer(struct vq *q, uint16_t head)
{
	q->avail->ring[q->avail->idx % q->size] = head;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	q->avail->idx++;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (q->used->flags & 1)
		return;
	*q->doorbell = q->index;
	q->kicks++;
}

int vq_done(struct vq *q)
{
	int head;

	if (q->used->idx == q->taken)
		return -1;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	head = (int)q->used->ring[q->taken % q->size].id;
	q->taken++;
	return head;
}
