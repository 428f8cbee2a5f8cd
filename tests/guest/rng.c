/* SPDX-License-Identifier: BSD-3-Clause */
/* rng: virtio-rng.
 *
 *	random		asks for bytes in four pieces: are they all there, and no two runs the same?
 */
#include "blk.h"
#include "virtio.h"

static uint32_t ask(struct vq *q, uint8_t *to, uint32_t len)
{
	uint64_t end = rdtsc() + 20000 * tsc_khz();
	uint16_t used = q->taken;

	for (uint16_t i = 0; i < 4; i++) {
		q->desc[i].addr = (uint64_t)to + len / 4 * i;
		q->desc[i].len = len / 4;
		q->desc[i].flags = DESC_WRITE | (i < 3 ? DESC_NEXT : 0);
		q->desc[i].next = i + 1;
	}
	vq_offer(q, 0);
	while (vq_done(q) < 0)
		if (rdtsc() > end)
			fail("no random bytes");
	return q->used->ring[used % q->size].len;
}

void run_random(uint64_t n)
{
	struct vdev dev;
	struct vq q;
	uint8_t *a = take(4096), *b = take(4096);
	unsigned zeroes = 0;

	memset(&dev, 0, sizeof(dev));
	memset(&q, 0, sizeof(q));
	if (!vdev_find(&dev, 4, 0))
		fail("there is no virtio-rng");
	vdev_begin(&dev, 1ull << 32);
	vdev_queue(&dev, &q, 0);
	vdev_ok(&dev);
	if (ask(&q, a, 4096) != 4096 || ask(&q, b, 4096) != 4096)
		fail("random bytes are missing");
	for (unsigned i = 0; i < 4096; i++)
		zeroes += !a[i];
	if (zeroes > 100 || !memcmp(a, b, 4096))
		fail("random bytes are none");
	say("random\n");
}
