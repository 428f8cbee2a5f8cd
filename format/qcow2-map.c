// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-map: from guest offsets to where the data is.
 *
 * Specification: "Cluster mapping".  The L1 table is in memory; an L2 slice is
 * found by its guest slice number, or loaded.  A lookup gathers as many adjacent
 * clusters as are stored in one piece and in the same way, within one slice.
 *
 * Entries change in one place only, qcow2_publish().
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>

#include "common/log.h"

enum run_kind qcow2_entry_kind(const struct qcow2 *s, uint64_t entry)
{
	uint64_t host = entry & QCOW2_OFFSET;

	if (entry & QCOW2_COMPRESSED)
		return RUN_COMPRESSED;
	if (qcow2_in_cluster(s, host))
		return RUN_BAD;
	if (entry & QCOW2_ZERO)
		return host ? RUN_ZERO_ALLOCATED : RUN_ZERO;
	if (!host)
		return RUN_UNALLOCATED;
	return entry & QCOW2_COPIED ? RUN_DATA : RUN_SHARED;
}

static inline bool has_host(enum run_kind k)
{
	return k == RUN_DATA || k == RUN_SHARED || k == RUN_ZERO_ALLOCATED;
}

void qcow2_lookup_slice(struct qcow2 *s, struct slice *sl, uint64_t off, uint64_t len,
			struct run *r)
{
	uint32_t i = off >> s->cluster_bits & s->slice_mask;
	uint64_t entry = get_be64(sl->data + 8 * i);
	uint64_t host = entry & QCOW2_OFFSET, in = qcow2_in_cluster(s, off);
	uint64_t there = s->cluster_size - in;

	r->kind = qcow2_entry_kind(s, entry);
	r->host = host + in;
	while (there < len && ++i <= s->slice_mask) {
		entry = get_be64(sl->data + 8 * i);
		if (qcow2_entry_kind(s, entry) != r->kind)
			break;
		if (has_host(r->kind)) {
			host += s->cluster_size;
			if ((entry & QCOW2_OFFSET) != host)
				break;
		}
		there += s->cluster_size;
	}
	r->len = min_u64(there, len);
	/* Nobody allocated what the refcounts cannot describe: a bad pointer. */
	if (has_host(r->kind) && r->host + r->len > s->host_limit)
		r->kind = RUN_BAD;
}

/* Where slice NO of guest offset OFF is in the file; 0: its L2 table does not exist. */
static int slice_host(struct qcow2 *s, uint64_t no, uint64_t *host)
{
	unsigned per_table = s->l1_shift - s->slice_shift;
	uint64_t index = no >> per_table, entry, table;

	*host = 0;
	if (index >= s->h.l1_size)
		return -EIO;
	entry = l1_entry(s, index);
	table = entry & QCOW2_OFFSET;
	if (!table)
		return 0;
	if (qcow2_in_cluster(s, table) || table + s->cluster_size > s->host_end)
		return qcow2_mark_corrupt(s, "L2 table %" PRIu64 " at offset 0x%" PRIx64
					  " (not a cluster of the file)", index, table);
	*host = table + (no & ((1ull << per_table) - 1)) * s->l2.bytes;
	return 0;
}

int qcow2_slice_load(struct qcow2 *s, uint64_t no, struct slice **out)
{
	uint64_t host;
	int rc = slice_host(s, no, &host);

	*out = NULL;
	if (rc || !host)
		return rc;
	return cache_get(s, &s->l2, no, host, qcow2_flush_room, out);
}

/* What is known of a range without an L2 table: nothing, up to the table's end. */
static void no_table(struct qcow2 *s, uint64_t off, uint64_t len, struct run *r)
{
	uint64_t end = (off | ((1ull << s->l1_shift) - 1)) + 1;

	*r = (struct run){ .kind = RUN_UNALLOCATED, .len = min_u64(len, end - off) };
}

static int lookup_slow(struct qcow2 *s, uint64_t off, uint64_t len, struct run *r)
{
	struct slice *sl;
	int rc = qcow2_slice_load(s, off >> s->slice_shift, &sl);

	if (rc)
		return rc;
	if (!sl) {
		no_table(s, off, len, r);
		return 0;
	}
	qcow2_lookup_slice(s, sl, off, len, r);
	cache_unpin(&s->l2, sl);
	return 0;
}

int qcow2_lookup(struct qcow2 *s, uint64_t off, uint64_t len, struct run *r)
{
	struct slice *sl = cache_find(&s->l2, off >> s->slice_shift);

	if (__builtin_expect(!sl, 0))
		return lookup_slow(s, off, len, r);
	qcow2_lookup_slice(s, sl, off, len, r);
	return 0;
}

int qcow2_bad_entry(struct qcow2 *s, uint64_t off, const struct run *r)
{
	if (r->kind == RUN_COMPRESSED) {
		if (!s->said_compressed)
			log_error("compressed clusters are not supported: image=%s", qcow2_name(s));
		s->said_compressed = true;
		return -ENOTSUP;
	}
	return qcow2_mark_corrupt(s, "the L2 entry of guest offset 0x%" PRIx64
				  " points to 0x%" PRIx64 " (not a cluster of the file)",
				  off - qcow2_in_cluster(s, off), r->host - qcow2_in_cluster(s, off));
}

/* From now on COUNT guest clusters from GUEST on, all in the pinned slice SL, are
 * described by ENTRY, ENTRY + STEP, ...
 *
 * The one place where a mapping changes.  Whatever it points to was written
 * before (qcow2-flush.c makes it durable before it makes the entry durable).  The
 * mapped slices that let a kill -9 lose nothing hook in here: the reply to the
 * guest comes after this call. */
void qcow2_publish(struct qcow2 *s, struct slice *sl, uint64_t guest, uint64_t count,
		   uint64_t entry, uint64_t step)
{
	uint8_t *p = sl->data + 8 * (guest >> s->cluster_bits & s->slice_mask);

	assert(sl->pins && sl->no == guest >> s->slice_shift);
	for (; count; count--, p += 8, entry += step)
		put_be64(p, entry);
	cache_dirty(&s->l2, sl);
	if (s->l2.n_dirty > s->l2_dirty_max)
		qcow2_flush_start(s);
}

static bool add_run(struct qcow2 *s, const struct run *r, struct extents *x)
{
	switch (r->kind) {
	case RUN_UNALLOCATED:
		return extents_add(x, r->len, EXTENT_UNALLOCATED, 0);
	case RUN_ZERO:
		return extents_add(x, r->len, EXTENT_ZERO | EXTENT_HOLE, 1);
	case RUN_ZERO_ALLOCATED:
		return extents_add(x, r->len, EXTENT_ZERO, 1);
	default:
		return extents_add(x, r->len, 0, 1);
	}
}

int qcow2_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	struct qcow2 *s = qcow2_of(n);
	struct run r;
	int rc = 0;

	while (len && !rc) {
		rc = qcow2_lookup(s, off, len, &r);
		if (!rc && r.kind == RUN_BAD)
			rc = qcow2_bad_entry(s, off, &r);
		if (rc || !add_run(s, &r, x))
			break;
		off += r.len;
		len -= r.len;
	}
	return x->n ? 0 : rc;
}
