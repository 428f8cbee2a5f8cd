// SPDX-License-Identifier: BSD-3-Clause
/* conn-rx: what arrives on a connection, until it is parsed.
 *
 * A connection begins with a small buffer.  When a receive filled it there is more,
 * and what follows goes to a large one, if memory is not short; from there many
 * requests are parsed where they lie.  Who waits in a large one for long gives it
 * back, so that an idle connection costs little.  Payloads of writes in flight keep
 * the buffer that they lie in.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "nbd-server/conn.h"

#define RX_POOL_MAX 16			/* idle large buffers kept by a thread … */
#define RX_SMALL_POOL_MAX 64		/* … and small ones */

struct rx_pool {
	struct rxbuf *head;
	unsigned n;
};

static __thread struct rx_pool large_pool, small_pool;

struct rxbuf *rxbuf_new(uint32_t size)
{
	struct rx_pool *p = size == RX_SIZE ? &large_pool : &small_pool;
	struct rxbuf *b = p->head;

	if (b) {
		p->head = b->next;
		p->n--;
	} else {
		b = malloc(sizeof(*b) + size);
		if (!b)
			return NULL;
	}
	b->size = size;
	b->refs = 1;
	return b;
}

static void rxbuf_put(struct rxbuf *b)
{
	struct rx_pool *p = b->size == RX_SIZE ? &large_pool : &small_pool;

	if (p->n >= (b->size == RX_SIZE ? RX_POOL_MAX : RX_SMALL_POOL_MAX)) {
		free(b);
		return;
	}
	b->next = p->head;
	p->head = b;
	p->n++;
}

static void pool_drain(struct rx_pool *p)
{
	while (p->head) {
		struct rxbuf *b = p->head;

		p->head = b->next;
		free(b);
	}
	p->n = 0;
}

void rx_pools_drain(void)
{
	pool_drain(&large_pool);
	pool_drain(&small_pool);
}

void rxbuf_unref(struct conn *c, struct rxbuf *b)
{
	if (--b->refs)
		return;
	conn_credit(c, b->size);
	rxbuf_put(b);
}

static inline uint32_t rx_have(const struct conn *c)
{
	return c->rx_end - c->rx_start;
}

/* Goes on in a buffer of SIZE bytes, which takes along what is not parsed. */
static bool rx_replace(struct conn *c, uint32_t size)
{
	uint32_t have = rx_have(c);
	struct rxbuf *b = rxbuf_new(size);

	if (!b)
		return false;
	conn_charge(c, size);
	memcpy(b->data, c->rx->data + c->rx_start, have);
	rxbuf_unref(c, c->rx);
	c->rx = b;
	c->rx_start = 0;
	c->rx_end = have;
	return true;
}

/* The size of buffer that suits, when there shall be NEED bytes in one piece. */
static uint32_t rx_size(const struct conn *c, uint32_t need)
{
	bool large = c->rx->size == RX_SIZE;

	if (need > RX_SMALL || (large && rx_have(c) > RX_SMALL / 2))
		return RX_SIZE;
	if (!c->rx_large || c->rx_short)
		return RX_SMALL;
	return (large && c->rx->refs == 1) || conn_has_room(c, RX_SIZE) ? RX_SIZE : RX_SMALL;
}

/* Makes space behind what is there, without touching payloads in use. */
static bool rx_make_space(struct conn *c, uint32_t need)
{
	uint32_t have = rx_have(c), size;

	if (c->rx->refs > 1)
		conn_wait_room(c, NULL, RX_SMALL);
	size = rx_size(c, need);
	if (c->rx->size != size)
		return rx_replace(c, size);
	if (have && size - c->rx_end >= RX_SMALL / 2 && c->rx_start + need <= size)
		return true;
	if (c->rx->refs > 1)
		return size - c->rx_end >= RX_SMALL / 2 || rx_replace(c, size);
	if (have)
		memmove(c->rx->data, c->rx->data + c->rx_start, have);
	c->rx_start = 0;
	c->rx_end = have;
	return true;
}

bool rx_look(struct conn *c)
{
	if (!c->rx_waits)
		return false;
	if (!c->in_flight && !c->sending && c->rx_looks++)
		io_cancel(c->stream.io, c->stream.fd);
	return true;
}

static ssize_t rx_receive(struct conn *c, uint32_t room)
{
	bool large = c->rx->size == RX_SIZE, plain = stream_is_plain(&c->stream);
	ssize_t n;

	/* A wait for records of TLS cannot be broken off, so it takes no large buffer. */
	c->rx_waits = large && plain && rx_have(c) <= RX_SMALL / 2;
	if (c->rx_waits)
		conn_watch(c);
	n = stream_recv(&c->stream, c->rx->data + c->rx_end, room);
	c->rx_waits = false;
	c->rx_looks = 0;
	c->rx_large = large && plain ? n > RX_SMALL : n == (ssize_t)room;
	return n;
}

/* Receives at least one byte; false when the stream has ended. */
static bool rx_fill(struct conn *c, uint32_t need)
{
	ssize_t n;

	if (c->rx_requests == 1 && !c->in_flight)
		loop_expect_soon();	/* a client that waits for each reply */
	c->rx_requests = 0;
	do {
		uint32_t room;

		if (!rx_make_space(c, need))
			return false;
		room = c->rx->size - c->rx_end;
		if (c->rx_short)
			room = (uint32_t)min_u64(room, 4096);
		n = rx_receive(c, room);
	} while (n == -ECANCELED && !c->dead);
	if (n <= 0)
		return false;
	c->rx_end += (uint32_t)n;
	return true;
}

bool rx_need(struct conn *c, uint32_t bytes)
{
	while (rx_have(c) < bytes)
		if (!rx_fill(c, bytes))
			return false;
	return true;
}

bool rx_fits(const struct conn *c, uint32_t bytes)
{
	return bytes <= RX_SMALL || bytes <= rx_have(c) ||
	       (bytes <= RX_INLINE_MAX && (c->rx->size == RX_SIZE || conn_has_room(c, RX_SIZE)));
}

bool rx_take(struct conn *c, uint8_t *buf, uint32_t len)
{
	while (len) {
		uint32_t now = (uint32_t)min_u64(rx_have(c), len);

		if (!now) {
			if (buf)
				return !stream_recv_all(&c->stream, buf, len);
			if (!rx_fill(c, 1))
				return false;
			continue;
		}
		if (buf) {
			memcpy(buf, c->rx->data + c->rx_start, now);
			buf += now;
		}
		c->rx_start += now;
		len -= now;
	}
	return true;
}
