// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-map: from guest offsets to where the data is.
 *
 * Specification: "Cluster mapping".  The L1 table is in memory; an L2 slice is
 * found by its guest slice number, or loaded.  A lookup gathers as many adjacent
 * clusters as are stored in one piece and in the same way, within one slice.  With
 * extended L2 entries the unit is the subcluster, a 32nd of a cluster.
 *
 * Entries change in one place only, qcow2_publish().
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>

#include "common/log.h"

uint64_t qcow2_entry(const struct qcow2 *s, const struct slice *sl, uint64_t off, uint64_t *bits)
{
	const uint8_t *p = sl->data + ((off >> s->cluster_bits & s->slice_mask) << s->entry_shift);

	*bits = s->ext_l2 ? get_be64(p + 8) : 0;
	return get_be64(p);
}

/* In an external data file the first cluster may be at offset 0. */
static inline bool has_cluster(const struct qcow2 *s, uint64_t entry)
{
	return entry & QCOW2_OFFSET || (s->has_data_file && entry & QCOW2_COPIED);
}

static inline bool has_host(enum run_kind k)
{
	return k == RUN_DATA || k == RUN_SHARED || k == RUN_ZERO_ALLOCATED || k == RUN_RESERVED;
}

static inline enum run_kind entry_kind(const struct qcow2 *s, uint64_t entry)
{
	if (entry & QCOW2_COMPRESSED)
		return s->has_data_file ? RUN_BAD : RUN_COMPRESSED;
	if (qcow2_in_cluster(s, entry & QCOW2_OFFSET))
		return RUN_BAD;
	if (entry & QCOW2_ZERO) {
		if (s->h.version < 3)
			return RUN_BAD;
		return has_cluster(s, entry) ? RUN_ZERO_ALLOCATED : RUN_ZERO;
	}
	if (!has_cluster(s, entry))
		return RUN_UNALLOCATED;
	return entry & QCOW2_COPIED ? RUN_DATA : RUN_SHARED;
}

/* What subcluster SUB of an extended entry is, and how many from it on are alike. */
static enum run_kind sub_kind(const struct qcow2 *s, uint64_t entry, uint64_t bits, unsigned sub,
			      unsigned *count)
{
	uint32_t allocated = bits, zero = bits >> 32, alike;
	enum run_kind k;

	*count = QCOW2_SUBS - sub;
	if (entry & QCOW2_COMPRESSED)
		return s->has_data_file ? RUN_BAD : RUN_COMPRESSED;
	if (entry & QCOW2_ZERO || qcow2_in_cluster(s, entry & QCOW2_OFFSET) || allocated & zero ||
	    (allocated && !has_cluster(s, entry)))
		return RUN_BAD;
	if (allocated >> sub & 1) {
		alike = allocated;
		k = entry & QCOW2_COPIED ? RUN_DATA : RUN_SHARED;
	} else if (zero >> sub & 1) {
		alike = zero;
		k = has_cluster(s, entry) ? RUN_ZERO_ALLOCATED : RUN_ZERO;
	} else {
		alike = ~(allocated | zero);
		k = has_cluster(s, entry) ? RUN_RESERVED : RUN_UNALLOCATED;
	}
	alike = ~(alike >> sub);
	if (alike)
		*count = min_u64(*count, __builtin_ctz(alike));
	return k;
}

/* Whether the cluster of ENTRY goes on where the run's last one, at HOST, ends. */
static inline bool goes_on(const struct qcow2 *s, const struct run *r, uint64_t entry, uint64_t *host)
{
	if (!has_host(r->kind))
		return true;
	*host += s->cluster_size;
	return (entry & QCOW2_OFFSET) == *host && !(entry & QCOW2_COPIED) == !r->copied;
}

static uint64_t lookup_subclusters(struct qcow2 *s, struct slice *sl, uint64_t off, uint64_t len,
				   struct run *r)
{
	uint64_t bits, entry = qcow2_entry(s, sl, off, &bits), host = entry & QCOW2_OFFSET, there;
	unsigned sub = qcow2_in_cluster(s, off) >> s->sub_bits, n;

	r->entry = entry;
	r->copied = entry & QCOW2_COPIED;
	r->kind = sub_kind(s, entry, bits, sub, &n);
	there = ((uint64_t)(sub + n) << s->sub_bits) - qcow2_in_cluster(s, off);
	if (r->kind >= RUN_COMPRESSED)
		return there;
	while (there < len && sub + n == QCOW2_SUBS && (off + there) >> s->slice_shift == sl->no) {
		sub = 0;
		entry = qcow2_entry(s, sl, off + there, &bits);
		if (sub_kind(s, entry, bits, 0, &n) != r->kind || !goes_on(s, r, entry, &host))
			break;
		there += (uint64_t)n << s->sub_bits;
	}
	return there;
}

static uint64_t lookup_clusters(struct qcow2 *s, struct slice *sl, uint64_t off, uint64_t len,
				struct run *r)
{
	uint32_t i = off >> s->cluster_bits & s->slice_mask;
	uint64_t entry = get_be64(sl->data + 8 * i), host = entry & QCOW2_OFFSET;
	uint64_t there = s->cluster_size - qcow2_in_cluster(s, off);

	r->entry = entry;
	r->copied = entry & QCOW2_COPIED;
	r->kind = entry_kind(s, entry);
	if (r->kind >= RUN_COMPRESSED)
		return there;
	while (there < len && ++i <= s->slice_mask) {
		entry = get_be64(sl->data + 8 * i);
		if (entry_kind(s, entry) != r->kind || !goes_on(s, r, entry, &host))
			break;
		there += s->cluster_size;
	}
	return there;
}

void qcow2_lookup_slice(struct qcow2 *s, struct slice *sl, uint64_t off, uint64_t len,
			struct run *r)
{
	uint64_t there = s->ext_l2 ? lookup_subclusters(s, sl, off, len, r)
				   : lookup_clusters(s, sl, off, len, r);

	r->len = min_u64(there, len);
	r->host = (r->entry & QCOW2_OFFSET) + qcow2_in_cluster(s, off);
	/* Nobody allocated what the refcounts cannot describe: a bad pointer. */
	if (has_host(r->kind) && !s->has_data_file && r->host + r->len > s->host_limit)
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
	return qcow2_mark_corrupt(s, "the L2 entry of guest offset 0x%" PRIx64
				  " points to 0x%" PRIx64 " (not a cluster of the file)",
				  off - qcow2_in_cluster(s, off), r->host - qcow2_in_cluster(s, off));
}

void qcow2_put_entries(struct qcow2 *s, struct slice *sl, uint64_t guest, uint64_t count,
		       uint64_t entry, uint64_t step, uint64_t bits)
{
	uint8_t *p = qcow2_entry_slot(s, sl, guest);

	for (; count; count--, p += 1u << s->entry_shift, entry += step) {
		put_be64(p, entry);
		if (s->ext_l2)
			put_be64(p + 8, bits);
	}
}

/* From now on COUNT guest clusters from GUEST on, all in the pinned slice SL, are
 * described by ENTRY, ENTRY + STEP, ...
 *
 * The one place where a mapping changes.  Whatever it points to was written
 * before (qcow2-flush.c makes it durable before it makes the entry durable).  The
 * log that lets a kill -9 lose nothing (qcow2-crashlog.c) notes it here: the reply to
 * the guest comes after this call. */
void qcow2_publish(struct qcow2 *s, struct slice *sl, uint64_t guest, uint64_t count,
		   uint64_t entry, uint64_t step, uint64_t bits)
{
	assert(sl->pins && sl->no == guest >> s->slice_shift);
	qcow2_put_entries(s, sl, guest, count, entry, step, bits);
	cache_dirty(&s->l2, sl);
	if (s->log)
		crashlog_note_l2(s, guest, count, entry, step, bits);
	if (s->l2.n_dirty > s->l2_dirty_max)
		qcow2_flush_start(s);
}

static bool add_run(struct qcow2 *s, const struct run *r, struct extents *x)
{
	switch (r->kind) {
	case RUN_UNALLOCATED:
	case RUN_RESERVED:
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
