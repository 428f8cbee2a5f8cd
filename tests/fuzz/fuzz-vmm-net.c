// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes a network card: the input is what a hostile guest writes into its memory, and when
 * frames come and go in between.
 *
 * Both queues are in one memory, where they may overlap.  Frames that leave are looked at
 * by a carrier that reads all of them; those that come have a length of the input's choice.
 */
#include "tests/fuzz/fuzz.h"

#include "vmm/virtio-net-int.h"

#define BYTES 16384u

static unsigned sum;			/* so that reading is not left out */

static void read_all(struct net *net, const uint8_t *frame, size_t len)
{
	fuzz_assert(len >= NET_FRAME_MIN && len <= NET_FRAME_MAX);
	for (size_t i = 0; i < len; i++)
		sum += frame[i];
}

static const struct net_class reading = { .name = "reading", .send = read_all };

static void set_queue(struct queue *q, const struct memory *m, struct fuzz_bytes *b, uint64_t at)
{
	uint8_t flags = fuzz_take(b, 1);

	*q = (struct queue){ .memory = m, .event_idx = flags & 1, .indirect = flags & 2 };
	q->s = (struct queue_state){
		.version = 1, .size = 8, .enabled = !(flags & 4), .desc = at, .avail = at + 256,
		.used = at + 512,
	};
	if (q->s.enabled)
		fuzz_assert(!queue_start(q));
}

static void write_some(const struct memory *m, struct fuzz_bytes *b, uint8_t what)
{
	size_t at = fuzz_take(b, 2) % BYTES;

	for (unsigned i = 0; i < (what & 0x1fu) + 1 && at + i < BYTES; i++)
		m->base[at + i] = fuzz_take(b, 1);
}

int fuzz_input(const uint8_t *data, size_t size)
{
	static struct virtio_net n;
	static uint8_t frame[NET_FRAME_MAX];
	struct net net = { .class = &reading };
	struct fuzz_bytes b = { data, size };
	struct memory m = { .base = malloc(BYTES), .size = BYTES, .low = BYTES };

	fuzz_assert(m.base);
	memset(m.base, 0, BYTES);
	memset(&n, 0, sizeof(n));
	n.net = &net;
	n.active = true;
	set_queue(&n.v.queue[NET_RX], &m, &b, 0);
	set_queue(&n.v.queue[NET_TX], &m, &b, fuzz_take(&b, 1) & 1 ? 0 : 1024);
	while (b.left) {
		uint8_t what = fuzz_take(&b, 1);

		if (what & 0x80)
			write_some(&m, &b, what);
		else if (what & 1)
			virtio_net_transmit(&n);
		else
			virtio_net_deliver(&n, frame, fuzz_take(&b, 2) % sizeof(frame));
	}
	for (unsigned i = 0; i < NET_QUEUES; i++)
		fuzz_assert(n.v.queue[i].n_taken == 0);
	free(m.base);
	return 0;
}
