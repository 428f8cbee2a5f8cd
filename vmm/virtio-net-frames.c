// SPDX-License-Identifier: BSD-3-Clause
/* Frames between a card's queues and its carrier: see virtio-net.h.
 *
 * Each frame is copied once: the guest may change its memory at any time, and carriers
 * look at frames more than once.
 */
#include <linux/virtio_net.h>
#include <string.h>

#include "vmm/virtio-net-int.h"

#define HEADER sizeof(struct virtio_net_hdr_v1)
#define BURST 256u			/* of the guest's frames, before others have their turn */

/* Copies up to LEN bytes between IOV, from its byte AT on, and BUF. */
static size_t gather(void *buf, size_t len, const struct iovec *iov, unsigned n, size_t at)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		size_t part = iov[i].iov_len;

		if (at >= part) {
			at -= part;
			continue;
		}
		part -= at;
		part = part < len - done ? part : len - done;
		memcpy((char *)buf + done, (char *)iov[i].iov_base + at, part);
		done += part;
		at = 0;
	}
	return done;
}

static void scatter(const struct iovec *iov, size_t at, const void *buf, size_t len)
{
	for (; len; iov++) {
		size_t part = iov->iov_len;

		if (at >= part) {
			at -= part;
			continue;
		}
		part = part - at < len ? part - at : len;
		memcpy((char *)iov->iov_base + at, buf, part);
		buf = (const char *)buf + part;
		len -= part;
		at = 0;
	}
}

/* A driver may leave a queue out. */
static bool is_usable(const struct virtio_net *n, unsigned queue)
{
	const struct queue *q = &n->v.queue[queue];

	return n->active && !n->resting && !n->broke && q->s.enabled && !q->s.broken;
}

static int pop(struct virtio_net *n, unsigned queue, struct queue_chain *c)
{
	int rc;

	c->iov = n->iov;
	rc = queue_pop(&n->v.queue[queue], c);
	if (rc < 0)
		n->broke = true;
	return rc;
}

static void push(struct virtio_net *n, unsigned queue, uint16_t head, uint32_t written)
{
	queue_push(&n->v.queue[queue], head, written);
	n->used[queue] = true;
}

/* -- to the guest ------------------------------------------------------------------------ */

bool virtio_net_room(void *arg)
{
	struct virtio_net *n = arg;
	struct queue *q = &n->v.queue[NET_RX];

	if (!is_usable(n, NET_RX))
		return false;
	if (!queue_is_empty(q)) {
		queue_notifications(q, false);
		return true;
	}
	queue_notifications(q, true);
	return !queue_is_empty(q);
}

bool virtio_net_deliver(void *arg, const uint8_t *frame, size_t len)
{
	static const struct virtio_net_hdr_v1 header = { .num_buffers = 1 };
	struct virtio_net *n = arg;
	struct queue_chain c;
	bool fits;

	if (!virtio_net_room(n) || len > NET_FRAME_MAX || pop(n, NET_RX, &c) != 1) {
		n->dropped[NET_RX]++;
		return false;
	}
	fits = c.in_bytes >= HEADER + len;
	if (fits) {
		scatter(c.iov + c.n_out, 0, &header, HEADER);
		scatter(c.iov + c.n_out, HEADER, frame, len);
	} else {
		n->dropped[NET_RX]++;
	}
	push(n, NET_RX, c.head, fits ? (uint32_t)(HEADER + len) : 0);
	return true;
}

/* -- from the guest ---------------------------------------------------------------------- */

/* The header asks for nothing: nothing was offered. */
static bool is_plain(const struct virtio_net_hdr_v1 *h)
{
	return !h->flags && h->gso_type == VIRTIO_NET_HDR_GSO_NONE;
}

static void transmit_one(struct virtio_net *n, const struct queue_chain *c)
{
	struct virtio_net_hdr_v1 h = { 0 };
	size_t len = 0;

	if (c->out_bytes >= HEADER + NET_FRAME_MIN && c->out_bytes <= HEADER + NET_FRAME_MAX) {
		gather(&h, HEADER, c->iov, c->n_out, 0);
		len = gather(n->frame, sizeof(n->frame), c->iov, c->n_out, HEADER);
	}
	if (len && is_plain(&h))
		n->net->class->send(n->net, n->frame, len);
	else
		n->dropped[NET_TX]++;
}

bool virtio_net_transmit(struct virtio_net *n)
{
	struct queue *q = &n->v.queue[NET_TX];
	struct queue_chain c;
	unsigned i = 0;

	if (!is_usable(n, NET_TX))
		return false;
	queue_notifications(q, false);
	for (; i < BURST && pop(n, NET_TX, &c) == 1; i++) {
		transmit_one(n, &c);
		push(n, NET_TX, c.head, 0);
	}
	if (i == BURST)
		return true;
	queue_notifications(q, true);
	return !n->broke && !queue_is_empty(q);
}
