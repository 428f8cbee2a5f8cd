/* SPDX-License-Identifier: BSD-3-Clause */
/* copier-rig: disks in memory that wait now and then, tell when two requests race, count
 * what is asked of them, and fail when they are told to; and a loop to run tests in.
 */
#ifndef TESTS_COPIER_RIG_H
#define TESTS_COPIER_RIG_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backup/copier.h"
#include "backup/job.h"
#include "bitmaps/bitmap-int.h"
#include "common/bytes.h"
#include "common/loop.h"
#include "format/node.h"

#define K 1024ull
#define BLOCK (4 * K)			/* unit of the disk's own map */

/* -- a disk in memory ---------------------------------------------------------------- */

struct disk {
	struct node node;
	uint8_t *data;			/* NULL: all zeroes, of any size */
	uint8_t *held;			/* one byte per block: it has data */
	uint8_t *busy;			/* being written now */
	unsigned layer;			/* tells what has no data: 1 zeroes of its own, 2 unallocated */
	unsigned waits;			/* a request in so many waits; 0: none */
	uint64_t wait_ns;
	/* counted */
	unsigned reads, writes, zeroes, flushes, maps;
	uint64_t read_bytes, write_bytes, zero_bytes, hole_bytes_read, in_flight, most_in_flight;
	unsigned requests, most_requests;
	/* errors: the n-th request from now fails, and so do the next ones, N_FAIL of them */
	unsigned fail_at, n_fail, asked;
	int fail_rc, flush_rc;
};

static uint64_t rng = 88172645463325252ull;

static inline uint64_t rnd(uint64_t below)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return below ? rng % below : 0;
}

static inline int enter(struct disk *d, uint64_t len)
{
	d->in_flight += len;
	d->requests++;
	if (d->in_flight > d->most_in_flight)
		d->most_in_flight = d->in_flight;
	if (d->requests > d->most_requests)
		d->most_requests = d->requests;
	if (d->waits && co_self() && rnd(d->waits) == 0)
		io_sleep(d->node.io, d->wait_ns);
	d->asked++;
	return d->fail_at && d->asked >= d->fail_at && d->asked < d->fail_at + d->n_fail ? d->fail_rc : 0;
}

static inline int leave(struct disk *d, uint64_t len, int rc)
{
	d->in_flight -= len;
	d->requests--;
	return rc;
}

static inline struct disk *disk_of(struct node *n)
{
	return n->state;
}

static inline int disk_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	struct disk *d = disk_of(n);
	int rc = enter(d, len);

	d->reads++;
	d->read_bytes += len;
	memset(buf, 0, len);
	if (d->data) {
		memcpy(buf, d->data + off, len);
		for (uint64_t b = off / BLOCK; b * BLOCK < off + len; b++)
			d->hole_bytes_read += d->held[b] ? 0 : BLOCK;
	}
	return leave(d, len, rc);
}

/* Two writes to one block at a time are a bug of the copier. */
static inline void mark_busy(struct disk *d, uint64_t off, uint64_t len, bool on)
{
	for (uint64_t b = off / BLOCK; d->data && b * BLOCK < off + len; b++) {
		assert_int_equal(d->busy[b], !on);
		d->busy[b] = on;
	}
}

static inline int put(struct disk *d, const void *buf, uint64_t off, uint64_t len)
{
	int rc;

	mark_busy(d, off, len, true);
	rc = enter(d, len);
	mark_busy(d, off, len, false);
	for (uint64_t b = off / BLOCK; d->data && b * BLOCK < off + len && !rc; b++)
		d->held[b] = buf != NULL;
	if (d->data && !rc && buf)
		memcpy(d->data + off, buf, len);
	else if (d->data && !rc)
		memset(d->data + off, 0, len);
	return leave(d, len, rc);
}

static inline int disk_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	disk_of(n)->writes++;
	disk_of(n)->write_bytes += len;
	return put(disk_of(n), buf, off, len);
}

static inline int disk_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	disk_of(n)->zeroes++;
	disk_of(n)->zero_bytes += len;
	return put(disk_of(n), NULL, off, len);
}

static inline int disk_flush(struct node *n)
{
	struct disk *d = disk_of(n);

	d->flushes++;
	d->flush_rc = leave(d, 0, enter(d, 0));
	return d->flush_rc;
}

static inline int disk_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	struct disk *d = disk_of(n);
	uint32_t nothing = EXTENT_ZERO | EXTENT_HOLE | (d->layer == 2 ? EXTENT_UNALLOCATED : 0);
	uint64_t end = off + len, stop;

	d->maps++;
	if (!d->data)
		extents_add(x, len, EXTENT_ZERO | EXTENT_HOLE, 1);
	for (; d->data && off < end; off = stop) {
		stop = (off / BLOCK + 1) * BLOCK < end ? (off / BLOCK + 1) * BLOCK : end;
		if (!extents_add(x, stop - off, d->held[off / BLOCK] ? 0 : nothing, 1))
			break;
	}
	return 0;
}

static const struct node_driver memory = {
	.name = "memory", .read = disk_read, .write = disk_write, .zero = disk_zero,
	.flush = disk_flush, .map = disk_map,
};

static inline void disk_make(struct disk *d, uint64_t size, bool with_data)
{
	*d = (struct disk){ .layer = 1, .fail_rc = -EIO };
	d->node = (struct node){ .name = "disk", .driver = &memory, .state = d, .size = size,
				 .loop = loop_self(), .discard_unmap = true };
	d->node.io = loop_self() ? loop_io(loop_self()) : io_blocking();
	if (!with_data)
		return;
	d->data = calloc(1, size + BLOCK);
	d->held = calloc(1, size / BLOCK + 2);
	d->busy = calloc(1, size / BLOCK + 2);
	assert_true(d->data && d->held && d->busy);
}

static inline void disk_done(struct disk *d)
{
	assert_int_equal(d->requests, 0);
	free(d->data);
	free(d->held);
	free(d->busy);
}

/* Some data: COVER of 256 parts, in runs of a few blocks; some of it is zeroes all the same. */
static inline void disk_fill(struct disk *d, unsigned cover)
{
	uint64_t off = 0, size = d->node.size;

	while (off < size) {
		uint64_t len = (1 + rnd(40)) * BLOCK;
		bool data = rnd(256) < cover, zeroes = rnd(8) == 0;

		for (uint64_t i = off; data && i < off + len && i < size; i++) {
			d->data[i] = zeroes ? 0 : (uint8_t)(1 + i % 251 + rnd(3));
			d->held[i / BLOCK] = 1;
		}
		off += len;
	}
}

static inline void assert_same(const struct disk *a, const struct disk *b)
{
	if (!memcmp(a->data, b->data, a->node.size))
		return;
	for (uint64_t i = 0; i < a->node.size; i++)
		if (a->data[i] != b->data[i])
			fail_msg("differs at %llu: %d %d", (unsigned long long)i, a->data[i], b->data[i]);
}

/* -- running in a loop ------------------------------------------------------------------ */

struct run {
	struct loop_msg msg;
	struct loop *loop;
	void (*body)(void);
};

static inline void run_co(void *arg)
{
	struct run *r = arg;

	r->body();
	loop_stop(r->loop);
}

static inline void run_start(struct loop_msg *m)
{
	co_start(run_co, m);
}

static inline void in_loop(void (*body)(void))
{
	struct error err = ERROR_INIT;
	struct run r = { .msg.fn = run_start, .body = body };

	r.loop = loop_new("test", &err);
	assert_non_null(r.loop);
	loop_post(r.loop, &r.msg);
	loop_run(r.loop);
	loop_free(r.loop);
}

#endif
