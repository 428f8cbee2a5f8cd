// SPDX-License-Identifier: BSD-3-Clause
/* virtio-blk-request: one request, from the chain to its status byte.
 *
 * Buffers may be cut anywhere: the header is the first 16 bytes of what the device reads, the
 * status the last byte of what it writes, data is the rest.  All of it is checked, in the
 * specification's order, before anything is sent.
 */
#include "vmm/virtio-blk-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"

static void submit(struct blk_request *r)
{
	disk_submit(r->worker->channel, &r->disk);
}

/* --- the end */

static void complete(struct blk_request *r, uint8_t status)
{
	struct blk_queue *q = r->queue;

	if (!q->q->s.broken)
		__atomic_store_n(r->status, status, __ATOMIC_RELAXED);
	queue_push(q->q, r->head, r->written);
	q->pushed = true;
	free(r->more);
	r->more = NULL;
	r->next_free = q->free;
	q->free = r;
}

static void next_range(struct blk_request *r);

static void done(struct disk_request *d, int rc)
{
	struct blk_request *r = (struct blk_request *)((char *)d - offsetof(struct blk_request, disk));

	/* Given up by us, for a reset or the end: the guest is told nothing. */
	if (rc == -ECANCELED)
		r->queue->q->s.broken = true;
	if (!rc && ++r->range < r->n_ranges) {
		next_range(r);
		return;
	}
	complete(r, rc ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
}

/* --- the chain's bytes */

/* Copies N bytes from the beginning of V to OUT; V has them. */
static void take_bytes(const struct iovec *v, void *out, size_t n)
{
	for (char *p = out; n; v++) {
		size_t some = min_u64(v->iov_len, n);

		memcpy(p, v->iov_base, some);
		p += some;
		n -= some;
	}
}

/* N segments from V, without the first SKIP bytes, LEN bytes long, become the request's. */
static int take_segments(struct blk_request *r, const struct iovec *v, unsigned n, size_t skip,
			 uint64_t len)
{
	struct iovec *to = r->iov;

	for (; skip && skip >= v->iov_len; v++, n--)
		skip -= v->iov_len;
	if (n > BLK_IOV) {
		to = r->more = malloc(n * sizeof(*to));
		if (!to)
			return -ENOMEM;
	}
	r->disk.iov = to;
	r->disk.n_iov = 0;
	for (; len; v++, skip = 0) {
		size_t some = min_u64(v->iov_len - skip, len);

		to[r->disk.n_iov++] = (struct iovec){ (char *)v->iov_base + skip, some };
		len -= some;
	}
	return 0;
}

/* --- the checks, and the kinds of requests; a status, or 0xff: submitted */

enum { SUBMITTED = 0xff };

static uint64_t block(const struct blk *b)
{
	return max_u64(b->facts.block_min, SECTOR);
}

/* [SECTOR, +N) lies on the disk.  No product can wrap: N is bounded by the sectors that fit. */
static bool on_disk(const struct blk *b, uint64_t sector, uint64_t n)
{
	return checked_range(sector, n, __atomic_load_n(&b->sectors, __ATOMIC_RELAXED));
}

static uint8_t data(struct blk_worker *w, struct blk_request *r, uint64_t sector, bool is_write)
{
	struct blk *b = w->blk;
	const struct queue_chain *c = &w->chain;
	uint64_t len = is_write ? c->out_bytes - sizeof(struct virtio_blk_outhdr) : c->in_bytes - 1;

	if (is_write && b->read_only)
		return VIRTIO_BLK_S_IOERR;
	if (!is_aligned(len, block(b)) || !on_disk(b, sector, len / SECTOR) ||
	    !is_aligned(sector * SECTOR, block(b)))
		return VIRTIO_BLK_S_IOERR;
	if (take_segments(r, is_write ? c->iov : c->iov + c->n_out, is_write ? c->n_out : c->n_in,
			  is_write ? sizeof(struct virtio_blk_outhdr) : 0, len))
		return VIRTIO_BLK_S_IOERR;
	r->disk.op = is_write ? DISK_WRITE : DISK_READ;
	r->disk.off = sector * SECTOR;
	r->disk.len = len;
	r->disk.fua = is_write && b->write_through;
	submit(r);
	return SUBMITTED;
}

static uint8_t flush(struct blk_request *r)
{
	r->disk.op = DISK_FLUSH;
	r->disk.off = r->disk.len = 0;
	submit(r);
	return SUBMITTED;
}

static uint8_t identify(struct blk_worker *w)
{
	const struct queue_chain *c = &w->chain;
	uint64_t left = min_u64(c->in_bytes - 1, BLK_SERIAL_MAX);
	const char *from = w->blk->serial;

	for (const struct iovec *v = c->iov + c->n_out; left; v++) {
		size_t some = min_u64(v->iov_len, left);

		memcpy(v->iov_base, from, some);
		from += some;
		left -= some;
	}
	return VIRTIO_BLK_S_OK;
}

/* Ranges go one after another. */
static void next_range(struct blk_request *r)
{
	const struct virtio_blk_discard_write_zeroes *g = &r->ranges[r->range];

	r->disk.off = g->sector * SECTOR;
	r->disk.len = (uint64_t)g->num_sectors * SECTOR;
	r->disk.may_unmap = g->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
	submit(r);
}

static uint8_t check_range(const struct blk *b, bool is_zero,
			   struct virtio_blk_discard_write_zeroes *g)
{
	uint64_t first = (uint64_t)g->sector, n = g->num_sectors, unit = block(b) / SECTOR;

	if (g->flags & ~(is_zero ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0u))
		return VIRTIO_BLK_S_UNSUPP;
	if (n > BLK_RANGE_SECTORS || !on_disk(b, first, n))
		return VIRTIO_BLK_S_IOERR;
	if (is_aligned(first, unit) && is_aligned(n, unit))
		return VIRTIO_BLK_S_OK;
	if (is_zero)
		return VIRTIO_BLK_S_IOERR;
	/* A discard is a wish: what is left of it between whole blocks. */
	first = align_up(first, unit);
	n = align_down(g->sector + n, unit);
	g->sector = first;
	g->num_sectors = n > first ? n - first : 0;
	return VIRTIO_BLK_S_OK;
}

static uint8_t ranges(struct blk_worker *w, struct blk_request *r, bool is_zero)
{
	struct blk *b = w->blk;
	uint64_t len = w->chain.out_bytes - sizeof(struct virtio_blk_outhdr);
	struct {
		struct virtio_blk_outhdr h;
		struct virtio_blk_discard_write_zeroes g[BLK_RANGES_MAX];
	} all;

	if (!(is_zero ? b->facts.can_zero : b->facts.can_discard))
		return VIRTIO_BLK_S_UNSUPP;
	if (b->read_only || len == 0 || len % sizeof(all.g[0]) || len > sizeof(all.g))
		return VIRTIO_BLK_S_IOERR;
	take_bytes(w->chain.iov, &all, sizeof(all.h) + len);
	r->n_ranges = len / sizeof(all.g[0]);
	memcpy(r->ranges, all.g, len);
	for (unsigned i = 0; i < r->n_ranges; i++) {
		uint8_t s = check_range(b, is_zero, &r->ranges[i]);

		if (s != VIRTIO_BLK_S_OK)
			return s;
	}
	r->disk.op = is_zero ? DISK_ZERO : DISK_DISCARD;
	r->disk.fua = b->write_through;
	next_range(r);
	return SUBMITTED;
}

static uint8_t dispatch(struct blk_worker *w, struct blk_request *r)
{
	struct virtio_blk_outhdr h;

	take_bytes(w->chain.iov, &h, sizeof(h));
	switch (h.type) {
	case VIRTIO_BLK_T_IN: return data(w, r, h.sector, false);
	case VIRTIO_BLK_T_OUT: return data(w, r, h.sector, true);
	case VIRTIO_BLK_T_FLUSH: return flush(r);
	case VIRTIO_BLK_T_GET_ID: return identify(w);
	case VIRTIO_BLK_T_DISCARD: return ranges(w, r, false);
	case VIRTIO_BLK_T_WRITE_ZEROES: return ranges(w, r, true);
	default: return VIRTIO_BLK_S_UNSUPP;
	}
}

int blk_request_begin(struct blk_worker *w, struct blk_queue *q)
{
	const struct queue_chain *c = &w->chain;
	struct blk_request *r = q->free;
	const struct iovec *last = &c->iov[c->n_out + c->n_in - 1];
	uint8_t status;

	if (c->out_bytes < sizeof(struct virtio_blk_outhdr) || c->in_bytes == 0) {
		q->q->s.broken = true;
		queue_push(q->q, c->head, 0);
		return -EINVAL;
	}
	assert(r);			/* as many as the queue has heads */
	q->free = r->next_free;
	r->worker = w;
	r->head = c->head;
	r->status = (uint8_t *)last->iov_base + last->iov_len - 1;
	r->written = min_u64(c->in_bytes, UINT32_MAX);
	r->range = r->n_ranges = 0;
	r->disk = (struct disk_request){ .done = done };
	status = dispatch(w, r);
	if (status != SUBMITTED)
		complete(r, status);
	return 0;
}
