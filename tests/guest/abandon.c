/* SPDX-License-Identifier: BSD-3-Clause */
/* abandon=N: N disks are asked for something, and N CPUs reset one each, answered or not.  For ever. */
#include "blk.h"
#include "virtio.h"

enum {
	DISKS_MAX = 64, T_IN = 0, F_VERSION_1 = 32,
	LOUD_MS = 300,			/* for the text to leave: then nothing of the machine's may move */
};

static struct vdev dev[DISKS_MAX];
static struct vq vq[DISKS_MAX];

struct question {
	uint32_t type, prio;
	uint64_t sector;
	uint8_t status, data[512];
};

static void ask(unsigned i)
{
	struct question *r = take(sizeof(*r));
	volatile struct desc *d;

	if (!vdev_find(&dev[i], 2, i))
		fail("there is no disk %u", (uint64_t)i);
	vdev_begin(&dev[i], 1ull << F_VERSION_1);
	vdev_queue(&dev[i], &vq[i], 0);
	vdev_ok(&dev[i]);
	r->type = T_IN;
	d = vq[i].desc;
	d[0] = (struct desc){ (uint64_t)r, 16, DESC_NEXT, 1 };
	d[1] = (struct desc){ (uint64_t)r->data, sizeof(r->data), DESC_NEXT | DESC_WRITE, 2 };
	d[2] = (struct desc){ (uint64_t)&r->status, 1, DESC_WRITE, 0 };
	vq_offer(&vq[i], 0);
}

static void give_up(unsigned i)
{
	if (i < DISKS_MAX && dev[i].common)
		dev[i].common[20] = 0;
}

void run_abandon(uint64_t n)
{
	uint64_t end;

	for (unsigned i = 0; i < n && i < DISKS_MAX; i++)
		ask(i);
	say("abandon\n");
	end = rdtsc() + LOUD_MS * tsc_khz();
	while (rdtsc() < end)
		__asm__ volatile("pause");
	other_cpus_do(give_up);
	give_up(0);
	for (;;)
		__asm__ volatile("pause");
}
