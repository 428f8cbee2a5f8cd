/* SPDX-License-Identifier: BSD-3-Clause */
/* vmm-ring: a driver's side of a queue, honest or not, in memory that a test made. */
#ifndef TESTS_VMM_RING_H
#define TESTS_VMM_RING_H

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <linux/virtio_ring.h>

#include "vmm/queue.h"

#define RING_MEMORY (1u << 20)
enum { RING_DESC = 0x1000, RING_AVAIL = 0x8000, RING_USED = 0xa000, RING_TABLE = 0x10000,
       RING_BUFFERS = 0x20000 };

struct ring {
	struct memory memory;
	struct queue q;
	struct vring_desc *desc, *table;
	struct vring_avail *avail;
	struct vring_used *used;
	struct iovec iov[QUEUE_SEGMENTS_MAX];
	struct queue_chain chain;
};

/* Memory of a guest with a hole: HIGH bytes lie above 4 GiB.  What is beyond is unmapped. */
static inline void ring_memory(struct memory *m, uint64_t low, uint64_t high)
{
	size_t all = low + high, page = 4096;

	m->base = mmap(NULL, all + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(m->base + all, page, PROT_NONE);
	m->fd = -1;
	m->low = low;
	m->high = high;
	m->size = all;
}

static inline void ring_make(struct ring *r, uint16_t size)
{
	memset(r, 0, sizeof(*r));
	ring_memory(&r->memory, RING_MEMORY, 4096);
	r->q.memory = &r->memory;
	r->q.s = (struct queue_state){ .version = 1, .size = size, .enabled = true, .desc = RING_DESC,
				       .avail = RING_AVAIL, .used = RING_USED };
	r->desc = (void *)(r->memory.base + RING_DESC);
	r->avail = (void *)(r->memory.base + RING_AVAIL);
	r->used = (void *)(r->memory.base + RING_USED);
	r->table = (void *)(r->memory.base + RING_TABLE);
	r->chain.iov = r->iov;
}

static inline void ring_free(struct ring *r)
{
	munmap(r->memory.base, r->memory.size + 4096);
}

static inline void ring_offer(struct ring *r, uint16_t head)
{
	__atomic_store_n(&r->avail->ring[r->avail->idx % r->q.s.size], head, __ATOMIC_RELAXED);
	__atomic_add_fetch(&r->avail->idx, 1, __ATOMIC_RELEASE);
}

static inline void ring_desc(struct vring_desc *d, uint64_t addr, uint32_t len, uint16_t flags,
			     uint16_t next)
{
	*d = (struct vring_desc){ addr, len, flags, next };
}

#endif
