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
 *	write to a shared one	EXCL: the old cluster may become free
 *
 * A first write takes clusters, as many adjacent ones as it can get, writes the
 * data with what belongs around it (the edges), and only then publishes them.
 * Two writes into one new cluster: the second waits, and finds it in place.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const uint8_t qcow2_zeroes[65536] __attribute__((aligned(4096)));

int qcow2_file_read_end(struct qcow2 *s, void *buf, uint64_t off, size_t len)
{
	uint64_t there = off < s->file->size ? min_u64(len, s->file->size - off) : 0;
	int rc = there ? node_read(s->file, buf, off, there) : 0;

	memset((char *)buf + there, 0, len - there);
	return rc;
}

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

/* Adjacent unallocated runs go down as one request. */
static int read_unallocated(struct qcow2 *s, void *buf, uint64_t off, uint64_t len, uint64_t *done)
{
	struct run r;
	int rc;

	while (*done < len) {
		rc = qcow2_lookup(s, off + *done, len - *done, &r);
		if (rc)
			return rc;
		if (r.kind != RUN_UNALLOCATED)
			break;
		*done += r.len;
	}
	return qcow2_read_backing(s, buf, off, *done);
}

static int read_data(struct qcow2 *s, void *buf, uint64_t off, struct run *r)
{
	struct range in_use;
	int rc = 0;

	if (range_enter(&s->ranges, &in_use, off, r->len, RANGE_READ))
		r->len = 0;		/* somebody changed this: look again */
	else
		rc = qcow2_file_read(s, buf, r->host, r->len);
	range_leave(&s->ranges, &in_use);
	return rc;
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
		switch (r.kind) {
		case RUN_DATA:
		case RUN_SHARED:
			rc = read_data(s, buf, off, &r);
			break;
		case RUN_ZERO:
		case RUN_ZERO_ALLOCATED:
			memset(buf, 0, r.len);
			break;
		case RUN_UNALLOCATED:
			rc = read_unallocated(s, buf, off, len, &r.len);
			break;
		default:
			rc = qcow2_bad_entry(s, off, &r);
		}
		buf = (char *)buf + r.len;
		off += r.len;
		len -= r.len;
	}
	return rc;
}

/* Where a first write goes, and what is around it. */
struct fill {
	enum run_kind kind;		/* what the clusters were before */
	uint64_t old;			/* RUN_SHARED: where the first cluster was */
	uint64_t guest, host;		/* of the first cluster; bytes */
	uint64_t end;			/* of the last cluster, guest */
	bool fresh;			/* the new clusters read as zeroes */
};

/* What guest range [off, off+len) of the clusters reads as before the write. */
static int read_old(struct qcow2 *s, const struct fill *f, uint8_t *buf, uint64_t off, uint64_t len)
{
	uint64_t visible = off < s->node->size ? min_u64(len, s->node->size - off) : 0;

	if (f->kind == RUN_SHARED)
		return qcow2_file_read(s, buf, f->old + (off - f->guest), len);
	memset(buf + visible, 0, len - visible);
	if (f->kind == RUN_UNALLOCATED)
		return visible ? qcow2_read_backing(s, buf, off, visible) : 0;
	memset(buf, 0, visible);
	return 0;
}

/* Writes the guest's bytes BUF at OFF, in the one cluster at C, with the rest of
 * that cluster around them.  Zeroes around them need no writing when it is fresh. */
static int write_edge(struct qcow2 *s, const struct fill *f, uint64_t c, const uint8_t *buf,
		      uint64_t off, uint64_t len)
{
	uint64_t head = off - c, tail = c + s->cluster_size - (off + len);
	uint64_t from = 0, to = s->cluster_size;
	uint8_t *p = aligned_alloc(4096, align_up(s->cluster_size, 4096));
	int rc = p ? 0 : -ENOMEM;

	if (!rc && head)
		rc = read_old(s, f, p, c, head);
	if (!rc && tail)
		rc = read_old(s, f, p + head + len, off + len, tail);
	if (!rc) {
		memcpy(p + head, buf, len);
		if (f->fresh && bytes_are_zero(p, head))
			from = head;
		if (f->fresh && bytes_are_zero(p + head + len, tail))
			to = head + len;
		rc = qcow2_file_write(s, p + from, f->host + (c - f->guest) + from, to - from, 0);
	}
	free(p);
	return rc;
}

/* All of the new clusters is written, or reads as zeroes and is meant to. */
static int write_filled(struct qcow2 *s, const struct fill *f, const uint8_t *buf, uint64_t off,
			uint64_t len)
{
	uint64_t end = off + len, first = f->guest + s->cluster_size, last = f->end - s->cluster_size;
	bool zero_around = f->kind == RUN_ZERO || f->kind == RUN_ZERO_ALLOCATED ||
			   (f->kind == RUN_UNALLOCATED && !s->has_backing);
	int rc = 0;

	if ((off == f->guest && end == f->end) || (zero_around && f->fresh))
		return qcow2_file_write(s, buf, f->host + (off - f->guest), len, 0);
	if (off != f->guest || end < first) {
		uint64_t n = min_u64(len, first - off);

		rc = write_edge(s, f, f->guest, buf, off, n);
		buf += n;
		off += n;
	}
	if (!rc && off < end && end != f->end) {
		rc = write_edge(s, f, last, buf + (last - off), last, end - last);
		end = last;
	}
	if (!rc && off < end)
		rc = qcow2_file_write(s, buf, f->host + (off - f->guest), end - off, 0);
	return rc;
}

/* The first write to a run that is as R says; SL is pinned and ALLOC entered. */
static int write_new(struct qcow2 *s, struct slice *sl, const void *buf, uint64_t off, struct run *r)
{
	struct fill f = { .kind = r->kind, .guest = align_down(off, s->cluster_size) };
	uint64_t want, got;
	int rc = 0;

	f.end = align_up(off + r->len, s->cluster_size);
	want = got = (f.end - f.guest) >> s->cluster_bits;
	f.old = f.host = r->host - (off - f.guest);
	if (f.kind == RUN_ZERO_ALLOCATED || f.kind == RUN_SHARED)	/* written to, or freed */
		rc = qcow2_check_target(s, f.host, got << s->cluster_bits);
	if (!rc && f.kind != RUN_ZERO_ALLOCATED)
		rc = qcow2_alloc(s, want, &f.host, &got, &f.fresh);
	if (rc)
		return rc;
	f.end = f.guest + (got << s->cluster_bits);
	r->len = min_u64(r->len, f.end - off);
	rc = write_filled(s, &f, buf, off, r->len);
	if (rc) {
		if (f.kind != RUN_ZERO_ALLOCATED)
			qcow2_unref_now(s, f.host, got);
		return rc;
	}
	qcow2_publish(s, sl, f.guest, got, f.host | QCOW2_COPIED, s->cluster_size);
	if (f.kind == RUN_SHARED)
		qcow2_unref_later(s, f.old, got);
	return 0;
}

/* Sets R->len to what was written: 0 when it must be looked up again. */
static int write_allocating(struct qcow2 *s, const void *buf, uint64_t off, struct run *r)
{
	uint64_t first = align_down(off, s->cluster_size);
	uint64_t end = align_up(off + r->len, s->cluster_size);
	enum run_kind kind = r->kind;
	struct range in_use;
	struct slice *sl;
	int rc = qcow2_slice_for_write(s, off, &sl);

	if (rc)
		return rc;
	range_enter(&s->ranges, &in_use, first, end - first,
		    kind == RUN_SHARED ? RANGE_EXCL : RANGE_ALLOC);
	qcow2_lookup_slice(s, sl, off, r->len, r);
	if (r->kind == kind)
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
		rc = qcow2_check_target(s, r->host, r->len);
		if (!rc)
			rc = qcow2_file_write(s, buf, r->host, r->len, flags);
		if (__builtin_expect(r->host + r->len > s->host_end, 0))
			s->host_end = align_up(r->host + r->len, s->cluster_size);
	}
	range_leave(&s->ranges, &in_use);
	return rc;
}

int qcow2_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	struct qcow2 *s = qcow2_of(n);
	/* With the tables on storage as they are, durable data is all that FUA needs. */
	unsigned below = flags & NODE_FUA && qcow2_is_clean(s) ? NODE_FUA : 0;
	struct run r;
	int rc = s->corrupt ? -EIO : 0;

	while (len && !rc) {
		rc = qcow2_lookup(s, off, len, &r);
		if (rc)
			break;
		if (__builtin_expect(r.kind == RUN_DATA, 1)) {
			rc = write_in_place(s, buf, off, &r, below);
		} else if (r.kind >= RUN_COMPRESSED) {
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
