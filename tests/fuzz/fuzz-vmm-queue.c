// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes a virtqueue: the input is the guest's memory, and what it does to it in between.
 *
 * Size, features and addresses first, then steps: a write of some bytes anywhere, or a pop,
 * or a push of something that is popped.  What a pop returns must lie in memory.
 */
#include "tests/fuzz/fuzz.h"

#include "vmm/queue.h"

#define BYTES 8192u

static struct iovec iov[QUEUE_SEGMENTS_MAX];

static void check(const struct memory *m, const struct queue_chain *c)
{
	uint64_t sum = 0;

	fuzz_assert(c->n_in + c->n_out <= QUEUE_SEGMENTS_MAX && c->n_in + c->n_out > 0);
	for (unsigned i = 0; i < c->n_in + c->n_out; i++) {
		const uint8_t *at = iov[i].iov_base;

		fuzz_assert(at >= m->base && iov[i].iov_len && iov[i].iov_len <= m->size);
		fuzz_assert((size_t)(at - m->base) <= m->size - iov[i].iov_len);
		sum += iov[i].iov_len;
	}
	fuzz_assert(sum == c->in_bytes + c->out_bytes);
}

static void use(struct queue *q, const struct memory *m, struct fuzz_bytes *b)
{
	struct queue_chain c = { .iov = iov };
	uint16_t heads[QUEUE_SIZE_MAX];
	unsigned n = 0, before;

	while (b->left) {
		uint8_t what = fuzz_take(b, 1);

		if (what & 0x80) {	/* the guest writes */
			size_t at = fuzz_take(b, 2) % BYTES;

			for (unsigned i = 0; i < (what & 0x1fu) + 1 && at + i < BYTES; i++)
				m->base[at + i] = fuzz_take(b, 1);
			continue;
		}
		before = q->n_taken;
		if (what & 1 && n) {
			queue_push(q, heads[--n], what);
			fuzz_assert(q->n_taken == before - 1);
		} else if (queue_pop(q, &c) == 1) {
			check(m, &c);
			fuzz_assert(n < q->s.size && q->n_taken == before + 1);
			heads[n++] = c.head;
		}
		queue_notifications(q, what & 2);
		queue_wants_interrupt(q);
	}
	while (n)
		queue_push(q, heads[--n], 0);
	fuzz_assert(q->n_taken == 0);
}

int fuzz_input(const uint8_t *data, size_t size)
{
	struct fuzz_bytes b = { data, size };
	struct memory m = { .base = malloc(BYTES), .size = BYTES, .low = BYTES - 1024, .high = 1024 };
	struct queue q = { .memory = &m };
	uint8_t flags = fuzz_take(&b, 1);

	fuzz_assert(m.base);
	memset(m.base, 0, BYTES);
	q.event_idx = flags & 1;
	q.indirect = flags & 2;
	q.s.size = flags & 4 ? fuzz_take(&b, 2) : 8;
	q.s.desc = flags & 8 ? fuzz_take(&b, 8) : 0;
	q.s.avail = flags & 16 ? fuzz_take(&b, 8) : 256;
	q.s.used = flags & 32 ? fuzz_take(&b, 8) : 512;
	if (!queue_start(&q))
		use(&q, &m, &b);
	else
		fuzz_assert(queue_pop(&q, &(struct queue_chain){ .iov = iov }) < 0);
	free(m.base);
	return 0;
}
