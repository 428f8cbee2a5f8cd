// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-io: reads and writes.
 *
 * A request is served run by run: look up, enter the range of its clusters, do
 * the I/O below, leave.  Nothing suspends between the look-up and the entering,
 * or the look-up is repeated.
 *
 *	read of data		READ
 *	write in place		WRITE
 *	first write		ALLOC: one at a time per cluster; reads of it go on
 *	write to a shared or a compressed one	EXCL: the old cluster may become free
 *	write of whole ones that a view wants	EXCL: the old cluster becomes the view's
 *
 * A first write takes clusters, as many adjacent ones as it can get, writes the
 * data with what belongs around it (the edges), and only then publishes them.
 * Two writes into one new cluster: the second waits, and finds it in place.
 *
 * With extended L2 entries the edges are those of subclusters: what else is in the
 * cluster keeps its bits in the bitmap.  Where the cluster moves (it was shared, or
 * compressed), its data moves along.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/fan.h"

#define UNPACK_WIDTH 8u	/* clusters of one request that are unpacked at a time */

const uint8_t qcow2_zeroes[65536] __attribute__((aligned(4096)));

int qcow2_file_zero(struct qcow2 *s, uint64_t off, uint64_t len)
{
	int rc = 0;

	for (uint64_t now; len && !rc; off += now, len -= now) {
		now = min_u64(len, sizeof(qcow2_zeroes));
		rc = qcow2_file_write(s, qcow2_zeroes, off, now, 0);
	}
	return rc;
}

int qcow2_read_backing(struct qcow2 *s, void *buf, uint64_t off, size_t len)
{
	struct node *b = s->node->child[CHILD_BACKING];
	uint64_t there = b && off < b->size ? min_u64(len, b->size - off) : 0;

	if (there < len)
		memset((char *)buf + there, 0, len - there);
	return there ? node_read(b, buf, off, there) : 0;
}

static inline bool shows_backing(enum run_kind k)
{
	return k == RUN_UNALLOCATED || k == RUN_RESERVED;
}

/* Adjacent unallocated runs go down as one request. */
static int read_unallocated(struct qcow2 *s, void *buf, uint64_t off, uint64_t len, uint64_t *done)
{
	struct run r;
	int rc;

	while (*done < len) {
		rc = qcow2_lookup(s, off + *done, len - *done, &r);
		if (rc)
			return rc;
		if (!shows_backing(r.kind))
			break;
		*done += r.len;
	}
	return qcow2_read_backing(s, buf, off, *done);
}

/* Data or a compressed cluster: in place for as long as we read it. */
static int read_stored(struct qcow2 *s, void *buf, uint64_t off, struct run *r)
{
	struct range in_use;
	int rc = 0;

	if (range_enter(&s->ranges, &in_use, off, r->len, RANGE_READ))
		r->len = 0;		/* somebody changed this: look again */
	else if (r->kind == RUN_COMPRESSED)
		rc = qcow2_read_compressed(s, buf, off, r->len, r->entry);
	else
		rc = qcow2_data_read(s, buf, r->host, r->len);
	range_leave(&s->ranges, &in_use);
	return rc;
}

struct pieces {
	struct node *n;
	uint8_t *buf;
	uint64_t off, len;
};

/* Piece I: what the request wants of its I-th cluster. */
static int read_piece(void *arg, unsigned i)
{
	const struct pieces *p = arg;
	uint64_t size = qcow2_of(p->n)->cluster_size, first = align_down(p->off, size);
	uint64_t from = max_u64(first + i * size, p->off);
	uint64_t to = min_u64(first + (i + 1) * size, p->off + p->len);

	return qcow2_read(p->n, p->buf + (from - p->off), from, to - from);
}

/* What is to be unpacked is unpacked in parallel. */
static int read_pieces(struct node *n, void *buf, uint64_t off, uint64_t len)
{
	struct pieces p = { .n = n, .buf = buf, .off = off, .len = len };
	uint64_t size = qcow2_of(n)->cluster_size;

	return fan_out((align_up(off + len, size) - align_down(off, size)) / size, UNPACK_WIDTH,
		       read_piece, &p);
}

int qcow2_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	struct qcow2 *s = qcow2_of(n);
	struct run r;
	int rc = 0;

	while (len && !rc) {
		rc = qcow2_lookup(s, off, len, &r);
		if (rc)
			break;
		if (__builtin_expect(r.kind == RUN_COMPRESSED && r.len < len, 0) && co_self())
			return read_pieces(n, buf, off, len);
		switch (r.kind) {
		case RUN_DATA:
		case RUN_SHARED:
		case RUN_COMPRESSED:
			rc = read_stored(s, buf, off, &r);
			break;
		case RUN_ZERO:
		case RUN_ZERO_ALLOCATED:
			memset(buf, 0, r.len);
			break;
		case RUN_UNALLOCATED:
		case RUN_RESERVED:
			rc = read_unallocated(s, buf, off, len, &r.len);
			break;
		case RUN_BAD:
			rc = qcow2_bad_entry(s, off, &r);
		}
		buf = (char *)buf + r.len;
		off += r.len;
		len -= r.len;
	}
	return rc;
}

/* Where a first write goes, and what is around it.  All offsets are guest offsets,
 * but HOST. */
struct fill {
	uint64_t guest, end;		/* the clusters */
	uint64_t from, to;		/* the subclusters of them that will have data */
	uint64_t host;			/* of GUEST */
	bool fresh;			/* the new clusters read as zeroes */
	bool zero_around;		/* and so did what is around the write */
};

/* What [off, off+len) read as before the write.  Its range is entered by us. */
static int read_old(struct qcow2 *s, uint8_t *buf, uint64_t off, uint64_t len)
{
	uint64_t visible = off < s->node->size ? min_u64(len, s->node->size - off) : 0;
	struct run r;
	int rc = 0;

	memset(buf + visible, 0, len - visible);
	for (; visible && !rc; buf += r.len, off += r.len, visible -= r.len) {
		rc = qcow2_lookup(s, off, visible, &r);
		if (rc)
			return rc;
		if (r.kind == RUN_DATA || r.kind == RUN_SHARED)
			rc = qcow2_data_read(s, buf, r.host, r.len);
		else if (r.kind == RUN_COMPRESSED)
			rc = qcow2_read_compressed(s, buf, off, r.len, r.entry);
		else if (shows_backing(r.kind))
			rc = qcow2_read_backing(s, buf, off, r.len);
		else if (r.kind == RUN_BAD)
			rc = qcow2_bad_entry(s, off, &r);
		else
			memset(buf, 0, r.len);
	}
	return rc;
}

/* Writes [from, to), in one cluster: the guest's bytes BUF at OFF, and around them
 * what was there.  Zeroes around them need no writing when it is fresh. */
static int write_edge(struct qcow2 *s, const struct fill *f, uint64_t from, uint64_t to,
		      const uint8_t *buf, uint64_t off, uint64_t len)
{
	uint64_t head = off - from, tail = to - (off + len), first = 0, end = to - from;
	uint8_t *p = aligned_alloc(4096, align_up(end, 4096));
	int rc = p ? 0 : -ENOMEM;

	if (!rc && head)
		rc = read_old(s, p, from, head);
	if (!rc && tail)
		rc = read_old(s, p + head + len, off + len, tail);
	if (!rc) {
		memcpy(p + head, buf, len);
		if (f->fresh && bytes_are_zero(p, head))
			first = head;
		if (f->fresh && bytes_are_zero(p + head + len, tail))
			end = head + len;
		rc = qcow2_data_write(s, p + first, f->host + (from - f->guest) + first, end - first, 0);
	}
	free(p);
	return rc;
}

/* All of what will have data is written, or reads as zeroes and is meant to. */
static int write_filled(struct qcow2 *s, const struct fill *f, const uint8_t *buf, uint64_t off,
			uint64_t len)
{
	uint64_t end = off + len, first = f->guest + s->cluster_size, last = f->end - s->cluster_size;
	int rc = 0;

	if ((off == f->from && end == f->to) || (f->zero_around && f->fresh))
		return qcow2_data_write(s, buf, f->host + (off - f->guest), len, 0);
	if (off != f->from || end < first) {
		uint64_t n = min_u64(len, first - off);

		rc = write_edge(s, f, f->from, min_u64(first, f->to), buf, off, n);
		buf += n;
		off += n;
	}
	if (!rc && off < end && end != f->to) {
		rc = write_edge(s, f, last, f->to, buf + (last - off), last, end - last);
		end = last;
	}
	if (!rc && off < end)
		rc = qcow2_data_write(s, buf, f->host + (off - f->guest), end - off, 0);
	return rc;
}

/* Widens the fill to whole subclusters; where the cluster moves (MOVES), to all of
 * its data as well. */
static void fill_widen(struct qcow2 *s, const struct slice *sl, struct fill *f, uint64_t off,
		       uint64_t len, bool moves)
{
	uint64_t sub = 1ull << s->sub_bits, last = f->end - s->cluster_size;
	uint64_t bits;
	uint32_t old;

	f->from = align_down(off, sub);
	f->to = align_up(off + len, sub);
	if (!s->ext_l2 || !moves)
		return;
	if (qcow2_entry(s, sl, f->guest, &bits) & QCOW2_COMPRESSED) {
		f->from = f->guest;
		f->to = f->end;
		return;
	}
	old = bits;
	if (old)
		f->from = min_u64(f->from, f->guest + ((uint64_t)__builtin_ctz(old) << s->sub_bits));
	qcow2_entry(s, sl, last, &bits);
	old = bits;
	if (old)
		f->to = max_u64(f->to, last + ((32ull - __builtin_clz(old)) << s->sub_bits));
}

/* The bitmap of the cluster at C with [from, to) of the fill allocated. */
static uint64_t filled_bits(struct qcow2 *s, const struct slice *sl, const struct fill *f, uint64_t c)
{
	unsigned from = f->from > c ? (f->from - c) >> s->sub_bits : 0;
	unsigned to = f->to < c + s->cluster_size ? (f->to - c) >> s->sub_bits : QCOW2_SUBS;
	uint64_t mask = ((1ull << to) - 1) & ~((1ull << from) - 1), old;

	if (qcow2_entry(s, sl, c, &old) & QCOW2_COMPRESSED)
		old = 0;
	return (old & ~(mask << 32)) | mask;
}

static void publish_fill(struct qcow2 *s, struct slice *sl, const struct fill *f)
{
	uint64_t count = (f->end - f->guest) >> s->cluster_bits, entry = f->host | QCOW2_COPIED;

	if (!s->ext_l2) {
		qcow2_publish(s, sl, f->guest, count, entry, s->cluster_size, 0);
		return;
	}
	/* All clusters but the first and the last are alike: three records at most. */
	for (uint64_t c = f->guest, n; c < f->end; c += n << s->cluster_bits, entry += n << s->cluster_bits) {
		n = c > f->guest && c + 2 * s->cluster_size <= f->end ? ((f->end - c) >> s->cluster_bits) - 1 : 1;
		qcow2_publish(s, sl, c, n, entry, n > 1 ? s->cluster_size : 0, filled_bits(s, sl, f, c));
	}
}

void qcow2_drop_old(struct qcow2 *s, const struct run *r, uint64_t off, uint64_t count)
{
	if (r->kind == RUN_COMPRESSED)
		qcow2_drop_compressed(s, r->entry);
	else if (r->kind != RUN_UNALLOCATED && r->kind != RUN_ZERO)
		qcow2_data_unref_later(s, r->host - qcow2_in_cluster(s, off), count);
}

static inline bool stays(const struct run *r)
{
	return r->copied && (r->kind == RUN_ZERO_ALLOCATED || r->kind == RUN_RESERVED);
}

/* Takes clusters for the fill, as many as there are in one place.  What the run has
 * is written to, or freed: it must be no metadata. */
static int fill_take(struct qcow2 *s, const struct slice *sl, struct fill *f, uint64_t off, struct run *r)
{
	uint64_t want = (f->end - f->guest) >> s->cluster_bits, got = want;
	bool backing = shows_backing(r->kind) && s->has_backing;
	int rc = 0;

	if (r->kind != RUN_UNALLOCATED && r->kind != RUN_ZERO && r->kind != RUN_COMPRESSED)
		rc = qcow2_check_data(s, r->host - (off - f->guest), want << s->cluster_bits);
	if (stays(r))
		f->host = r->host - (off - f->guest);
	else if (!rc)
		rc = qcow2_data_alloc(s, f->guest, want, &f->host, &got, &f->fresh);
	if (rc)
		return rc;
	f->end = f->guest + (got << s->cluster_bits);
	f->zero_around = !backing && r->kind != RUN_SHARED && r->kind != RUN_COMPRESSED;
	r->len = min_u64(r->len, f->end - off);
	fill_widen(s, sl, f, off, r->len, !stays(r));
	if (s->ext_l2 && (f->from < align_down(off, 1ull << s->sub_bits) ||
			  f->to > align_up(off + r->len, 1ull << s->sub_bits)))
		f->zero_around = false;
	return 0;
}

/* The first write to a run that is as R says; SL is pinned and its range entered. */
static int write_new(struct qcow2 *s, struct slice *sl, const void *buf, uint64_t off, struct run *r)
{
	struct fill f = { .guest = align_down(off, s->cluster_size),
			  .end = align_up(off + r->len, s->cluster_size) };
	int rc = fill_take(s, sl, &f, off, r);
	uint64_t count;

	if (rc)
		return rc;
	count = (f.end - f.guest) >> s->cluster_bits;
	rc = write_filled(s, &f, buf, off, r->len);
	if (rc) {
		if (!stays(r))
			qcow2_data_unref_now(s, f.host, count);
		return rc;
	}
	publish_fill(s, sl, &f);
	if (r->kind == RUN_DATA)
		qcow2_aside_give(s, r, off, count);
	else if (!stays(r) && !s->has_data_file)	/* there the new place is the old one */
		qcow2_drop_old(s, r, off, count);
	return 0;
}

/* Sets R->len to what was written: 0 when it must be looked up again. */
static int write_allocating(struct qcow2 *s, const void *buf, uint64_t off, struct run *r)
{
	uint64_t first = align_down(off, s->cluster_size);
	uint64_t end = align_up(off + r->len, s->cluster_size);
	bool frees = !stays(r) && r->kind != RUN_UNALLOCATED && r->kind != RUN_ZERO;
	struct run old = *r;
	struct range in_use;
	struct slice *sl;
	int rc = qcow2_slice_for_write(s, off, &sl);

	if (rc)
		return rc;
	range_enter(&s->ranges, &in_use, first, end - first, frees ? RANGE_EXCL : RANGE_ALLOC);
	qcow2_lookup_slice(s, sl, off, r->len, r);
	if (r->kind == old.kind && r->copied == old.copied)
		rc = write_new(s, sl, buf, off, r);
	else
		r->len = 0;
	range_leave(&s->ranges, &in_use);
	cache_unpin(&s->l2, sl);
	return rc;
}

static int write_in_place(struct qcow2 *s, const void *buf, uint64_t off, struct run *r,
			  unsigned flags)
{
	struct range in_use;
	int rc = 0;

	if (range_enter(&s->ranges, &in_use, off, r->len, RANGE_WRITE)) {
		r->len = 0;
	} else {
		rc = qcow2_check_data(s, r->host, r->len);
		if (!rc)
			rc = qcow2_data_write(s, buf, r->host, r->len, flags);
		if (__builtin_expect(r->host + r->len > s->host_end && !s->has_data_file, 0))
			s->host_end = align_up(r->host + r->len, s->cluster_size);
	}
	range_leave(&s->ranges, &in_use);
	return rc;
}

/* Whole clusters of data get a new place.  Where that fails they stay where they are, and
 * are kept otherwise: without the one who wants them the write would have succeeded. */
static int write_moving(struct qcow2 *s, const void *buf, uint64_t off, struct run *r)
{
	int rc = write_allocating(s, buf, off, r);

	if (!rc || s->corrupt)
		return rc;
	r->len = 0;
	if (s->aside)
		s->aside->no_room(s->aside, false);
	return 0;
}

static int write_runs(struct qcow2 *s, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	/* With the tables on storage as they are, durable data is all that FUA needs. */
	unsigned below = flags & NODE_FUA && qcow2_is_clean(s) ? NODE_FUA : 0;
	struct run r;
	int rc = s->corrupt ? -EIO : 0;

	if (__builtin_expect(flags & NODE_COMPRESS && !rc, 0) && qcow2_can_pack(s, off, len)) {
		rc = qcow2_write_packed(s, buf, off, len);
		len = 0;
	}
	while (len && !rc) {
		int moves = 0;

		rc = qcow2_lookup(s, off, len, &r);
		if (rc)
			break;
		if (__builtin_expect(s->aside != NULL, 0) && (moves = qcow2_aside_ask(s, off, &r, flags)) < 0)
			continue;
		if (__builtin_expect(moves, 0)) {
			rc = write_moving(s, buf, off, &r);
		} else if (__builtin_expect(r.kind == RUN_DATA, 1)) {
			rc = write_in_place(s, buf, off, &r, below);
		} else if (r.kind == RUN_BAD) {
			rc = qcow2_bad_entry(s, off, &r);
		} else if (s->flush.failed) {
			rc = -EIO;	/* its mapping could never become durable */
		} else {
			rc = write_allocating(s, buf, off, &r);
		}
		buf = (const char *)buf + r.len;
		off += r.len;
		len -= r.len;
	}
	if (!rc && flags & NODE_FUA && !(below && qcow2_is_clean(s)))
		rc = qcow2_flush_all(s);
	return rc;
}

/* Others may be at it, or have done it since the write began. */
bool qcow2_gives_back(struct qcow2 *s, uint64_t given)
{
	int rc = 0;

	if (s->aside)
		s->aside->no_room(s->aside, true);
	qcow2_flush_idle(s);
	if (s->flush.freed.n || s->flush.cleared.n)
		rc = qcow2_flush_all(s) ?: qcow2_flush_all(s);
	qcow2_flush_idle(s);		/* whose flush it was gives back behind it */
	return !rc && s->flush.given != given;
}

int qcow2_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	struct qcow2 *s = qcow2_of(n);
	uint64_t given = s->flush.given;
	int rc = write_runs(s, buf, off, len, flags);

	if (__builtin_expect(rc == -ENOSPC, 0) && qcow2_gives_back(s, given))
		rc = write_runs(s, buf, off, len, flags);
	return rc;
}
