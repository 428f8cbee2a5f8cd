// SPDX-License-Identifier: BSD-3-Clause
/* queue: a split virtqueue, from the device's side.
 *
 * Where the rings lie is checked once, by queue_start().  What is in them is the guest's at
 * all times: take16() and the copy of a descriptor are the only reads, one for each number,
 * and every number is bounded before it is used.
 *
 * A head may be popped again only after it was pushed: a guest that offers one twice would
 * have two requests complete as one.
 */
#include "vmm/queue.h"

#include <errno.h>
#include <string.h>

#include <linux/virtio_ring.h>

#include "common/checked.h"

static uint16_t take16(const void *base, size_t off)
{
	return __atomic_load_n((const uint16_t *)((const char *)base + off), __ATOMIC_ACQUIRE);
}

static void put16(void *base, size_t off, uint16_t value)
{
	__atomic_store_n((uint16_t *)((char *)base + off), value, __ATOMIC_RELEASE);
}

/* What was stored before is seen by the driver before we look at what it stored. */
static void full_fence(void)
{
#ifdef __SANITIZE_THREAD__		/* which knows no fences */
	static int any;

	__atomic_fetch_add(&any, 1, __ATOMIC_SEQ_CST);
#else
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* Offsets in the rings: flags, index, entries, and the other side's event at the end. */
enum { RING_FLAGS = 0, RING_INDEX = 2, RING_ENTRIES = 4 };

static size_t used_event_at(const struct queue *q)
{
	return RING_ENTRIES + 2u * q->s.size;
}

static size_t avail_event_at(const struct queue *q)
{
	return RING_ENTRIES + sizeof(struct vring_used_elem) * q->s.size;
}

static int broken(struct queue *q)
{
	q->s.broken = true;
	return -EINVAL;
}

/* Finds the rings. */
static int place(struct queue *q)
{
	uint16_t n = q->s.size;

	q->signalled_valid = false;
	if (!is_pow2(n) || n > QUEUE_SIZE_MAX)
		return broken(q);
	if (!is_aligned(q->s.desc, 16) || !is_aligned(q->s.avail, 2) || !is_aligned(q->s.used, 4))
		return broken(q);
	q->desc = memory_at(q->memory, q->s.desc, sizeof(struct vring_desc) * n);
	q->avail = memory_at(q->memory, q->s.avail, used_event_at(q) + 2);
	q->used = memory_at(q->memory, q->s.used, avail_event_at(q) + 2);
	return q->desc && q->avail && q->used ? 0 : broken(q);
}

int queue_start(struct queue *q)
{
	q->s.broken = false;
	q->n_taken = 0;
	memset(q->s.taken, 0, sizeof(q->s.taken));
	return place(q);
}

/* One buffer joins the chain; the device's own come last. */
static int add_buffer(struct queue *q, struct queue_chain *c, const struct vring_desc *d)
{
	bool in = d->flags & VRING_DESC_F_WRITE;
	void *at = memory_at(q->memory, d->addr, d->len);
	unsigned n = c->n_out + c->n_in;
	struct iovec *last = n ? &c->iov[n - 1] : NULL;

	if (!at || d->len == 0 || (!in && c->n_in))
		return -EINVAL;
	*(in ? &c->in_bytes : &c->out_bytes) += d->len;
	if (last && in == (c->n_in > 0) && (char *)last->iov_base + last->iov_len == at) {
		last->iov_len += d->len;
		return 0;
	}
	if (n == QUEUE_SEGMENTS_MAX)
		return -EINVAL;
	c->iov[n] = (struct iovec){ at, d->len };
	++*(in ? &c->n_in : &c->n_out);
	return 0;
}

/* A table of descriptors: the ring's own, or an indirect one. */
struct table {
	const char *at;
	unsigned n;
	bool indirect;
};

/* The table that D refers to: it ends its chain, is not empty, and holds no other table. */
static int enter_table(struct queue *q, const struct vring_desc *d, struct table *t)
{
	const unsigned each = sizeof(struct vring_desc);

	if (!q->indirect || t->indirect || (d->flags & VRING_DESC_F_NEXT))
		return -EINVAL;
	if (d->len == 0 || d->len % each || d->len / each > QUEUE_SEGMENTS_MAX)
		return -EINVAL;
	*t = (struct table){ memory_at(q->memory, d->addr, d->len), d->len / each, true };
	return t->at ? 0 : -EINVAL;
}

/* Follows the chain that starts at HEAD.  No table is followed for more steps than it has
 * entries, so that loops end. */
static int walk(struct queue *q, struct queue_chain *c)
{
	struct table t = { q->desc, q->s.size, false };
	unsigned i = c->head, steps = 0;
	struct vring_desc d;

	for (;;) {
		if (i >= t.n || steps++ >= t.n)
			return -EINVAL;
		/* The guest's: copied once, whole, and only the copy is looked at. */
		memcpy(&d, t.at + i * sizeof(d), sizeof(d));
		__asm__ volatile("" ::: "memory");
		if (d.flags & VRING_DESC_F_INDIRECT) {
			if (enter_table(q, &d, &t))
				return -EINVAL;
			i = steps = 0;
			continue;
		}
		if (add_buffer(q, c, &d))
			return -EINVAL;
		if (!(d.flags & VRING_DESC_F_NEXT))
			return 0;
		i = d.next;
	}
}

static bool is_taken(const struct queue *q, uint16_t head)
{
	return q->s.taken[head / 64] >> head % 64 & 1;
}

int queue_pop(struct queue *q, struct queue_chain *c)
{
	uint16_t waiting, head;

	if (q->s.broken)
		return -EINVAL;
	waiting = take16(q->avail, RING_INDEX) - q->s.next_avail;
	if (waiting == 0)
		return 0;
	if (waiting > q->s.size)
		return broken(q);
	head = take16(q->avail, RING_ENTRIES + 2u * (q->s.next_avail & (q->s.size - 1)));
	if (head >= q->s.size || is_taken(q, head))
		return broken(q);
	c->head = head;
	c->n_out = c->n_in = 0;
	c->out_bytes = c->in_bytes = 0;
	if (walk(q, c))
		return broken(q);
	q->s.taken[head / 64] |= 1ull << head % 64;
	q->n_taken++;
	q->s.next_avail++;
	return 1;
}

int queue_retake(struct queue *q, uint16_t head, struct queue_chain *c)
{
	assert(is_taken(q, head));
	*c = (struct queue_chain){ .head = head, .iov = c->iov };
	return q->s.broken || walk(q, c) ? broken(q) : 1;
}

/* -- a saved one ------------------------------------------------------------------------- */

bool queue_has_taken(const struct queue *q, uint16_t head)
{
	return head < q->s.size && is_taken(q, head);
}

/* How many heads of S are popped and not pushed; -1: one that there is not. */
static int count_taken(const struct queue_state *s)
{
	int n = 0;

	for (unsigned i = 0; i < QUEUE_SIZE_MAX; i++) {
		bool is = s->taken[i / 64] >> i % 64 & 1;

		if (is && i >= s->size)
			return -1;
		n += is;
	}
	return n;
}

static bool is_sound(const struct queue_state *s, uint16_t most)
{
	int n = count_taken(s);

	if (s->version != 1 || !is_pow2(s->size) || s->size > most || s->enabled > 1 || s->broken > 1)
		return false;
	if (n < 0 || (n && !s->enabled))
		return false;
	/* What was popped was pushed, or is taken; a broken ring is not counted on. */
	return s->broken || (uint16_t)(s->next_avail - s->next_used) == n;
}

int queue_load(struct queue *q, const struct queue_state *s, uint16_t most, bool active)
{
	if (!is_sound(s, most))
		return -EINVAL;
	q->s = *s;
	q->n_taken = (unsigned)count_taken(s);
	return active && s->enabled && !s->broken ? place(q) : 0;
}

void queue_push(struct queue *q, uint16_t head, uint32_t written)
{
	struct vring_used_elem e = { .id = head, .len = written };

	assert(head < q->s.size && is_taken(q, head));
	q->s.taken[head / 64] &= ~(1ull << head % 64);
	q->n_taken--;
	if (q->s.broken)			/* nobody listens; the ring is left as it is */
		return;
	memcpy((char *)q->used + RING_ENTRIES + sizeof(e) * (q->s.next_used & (q->s.size - 1)),
	       &e, sizeof(e));
	put16(q->used, RING_INDEX, ++q->s.next_used);
}

bool queue_wants_interrupt(struct queue *q)
{
	uint16_t was = q->signalled, now = q->s.next_used;
	bool known = q->signalled_valid;

	if (q->s.broken)
		return false;
	/* The index must be seen before we look whether the driver sleeps. */
	full_fence();
	if (!q->event_idx)
		return !(take16(q->avail, RING_FLAGS) & VRING_AVAIL_F_NO_INTERRUPT);
	q->signalled = now;
	q->signalled_valid = true;
	return !known || vring_need_event(take16(q->avail, used_event_at(q)), now, was);
}

void queue_notifications(struct queue *q, bool on)
{
	if (q->s.broken)
		return;
	if (!q->event_idx)
		put16(q->used, RING_FLAGS, on ? 0 : VRING_USED_F_NO_NOTIFY);
	else if (on)
		put16(q->used, avail_event_at(q), q->s.next_avail);
	/* The wish must be seen before we look for what came meanwhile. */
	if (on)
		full_fence();
}

bool queue_is_empty(struct queue *q)
{
	return q->s.broken || take16(q->avail, RING_INDEX) == q->s.next_avail;
}
