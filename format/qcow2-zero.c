// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-zero: write zeroes and discard.
 *
 * Whole clusters change their L2 entry and nothing else; what that frees may be
 * used again when the entry is durable (qcow2-flush.c).  Entering EXCL waits for
 * reads and writes in flight: none of them may meet a recycled cluster.
 *
 *	before			zeroes		zeroes, may unmap	discard
 *	data			keep, flag	flag, free		flag or 0, free
 *	zero, allocated		-		flag, free		flag or 0, free
 *	zero			-		-			-
 *	unallocated, backing	flag		flag			flag
 *	unallocated, none	-		-			-
 *	compressed		flag, free	flag, free		flag or 0, free
 *
 * Zeroes that are to be marked (NODE_MARK) have "flag" where there is nothing and no backing
 * image, too; a part of such a cluster flags all of it, as QEMU does.
 *
 * Data that a snapshot shares is given up, never kept.  Version 2 has no flag: what
 * would need one is written as zeroes, or not discarded.
 * With extended L2 entries the flag is a bit for each subcluster, and a part of a
 * cluster in whole subclusters changes its bits alone.
 *
 * A discard leaves the flag where a backing image would show through.  Parts of
 * clusters are zeroed by writing, if they do not read as zeroes already; a
 * discard leaves them alone.  The last cluster of the disk counts as whole.
 */
#include "format/qcow2-int.h"

#include <errno.h>

enum how {
	HOW_ZERO, HOW_UNMAP,
	HOW_MARK, HOW_UNMAP_MARK,	/* the same, marked */
	HOW_MARK_EMPTY,			/* flags where there is nothing, and changes nothing else */
	HOW_DISCARD, HOW_FORGET,
};

/* What has a cluster keeps it. */
static bool keeps(enum how how)
{
	return how == HOW_ZERO || how == HOW_MARK;
}

static bool marks(enum how how)
{
	return how == HOW_MARK || how == HOW_UNMAP_MARK || how == HOW_MARK_EMPTY;
}

/* Whether [off, off+r->len) reads as zeroes, without looking at data: now, and with the
 * backing image that the header names, if that is not opened. */
static bool is_zero(const struct qcow2 *s, uint64_t off, const struct run *r)
{
	const struct node *b = s->node->child[CHILD_BACKING];

	if (r->kind == RUN_UNALLOCATED || r->kind == RUN_RESERVED)
		return b ? off >= b->size : !s->has_backing;
	return r->kind == RUN_ZERO || r->kind == RUN_ZERO_ALLOCATED;
}

static int zero_whole(struct qcow2 *s, uint64_t off, uint64_t end, enum how how);

static bool is_empty(const struct run *r)
{
	return r->kind == RUN_UNALLOCATED || r->kind == RUN_RESERVED;
}

/* OFF is in a unit with nothing in it, which reads as zeroes: flags it.  -ENOTSUP: that
 * cannot be, it has to be written. */
static int mark_unit(struct qcow2 *s, uint64_t off, bool dry)
{
	uint64_t first = align_down(off, 1ull << s->sub_bits);
	const struct run nothing = { .kind = RUN_UNALLOCATED };

	if (s->h.version < 3 || !is_zero(s, first, &nothing))
		return -ENOTSUP;
	return dry ? 0 : zero_whole(s, first, min_u64(first + (1ull << s->sub_bits), s->node->size), HOW_MARK_EMPTY);
}

static int write_zeroes(struct qcow2 *s, uint64_t off, uint64_t len)
{
	int rc = 0;

	for (uint64_t now; len && !rc; off += now, len -= now) {
		now = min_u64(len, sizeof(qcow2_zeroes));
		rc = qcow2_write(s->node, qcow2_zeroes, off, now, 0);
	}
	return rc;
}

/* A part of one unit.  DRY: only says whether it would need writing (-ENOTSUP). */
static int zero_part(struct qcow2 *s, uint64_t off, uint64_t len, enum how how, bool dry)
{
	struct run r;
	int rc;

	if (!len)
		return 0;
	do {				/* somebody may write to the unit before it is flagged */
		rc = qcow2_lookup(s, off, len, &r);
		if (rc)
			return rc;
		if (!is_zero(s, off, &r))
			break;
		if (!marks(how) || !is_empty(&r))
			return 0;
		rc = mark_unit(s, off, dry);
	} while (!rc && !dry);
	if (rc && rc != -ENOTSUP)
		return rc;
	if (dry)
		return is_zero(s, off, &r) ? rc : -ENOTSUP;
	return write_zeroes(s, off, len);
}

/* Whether R can stay as it is. */
static bool nothing_to_do(const struct qcow2 *s, const struct run *r, enum how how)
{
	if (how == HOW_MARK_EMPTY)
		return !is_empty(r) && r->kind != RUN_BAD;
	switch (r->kind) {
	case RUN_ZERO:
		return how != HOW_FORGET;
	case RUN_ZERO_ALLOCATED:
		return keeps(how);
	case RUN_UNALLOCATED:
		return (!s->has_backing && !marks(how)) || how == HOW_FORGET;
	case RUN_RESERVED:
		return how == HOW_ZERO && !s->has_backing;
	default:
		return false;
	}
}

/* Without as much as a flag. */
static bool leaves_nothing(const struct qcow2 *s, enum how how)
{
	return how == HOW_FORGET || (how == HOW_DISCARD && !s->has_backing);
}

/* Whether clusters can be made to read as zeroes by their entries alone. */
static bool can_flag(const struct qcow2 *s, enum how how)
{
	return s->h.version >= 3 || how == HOW_FORGET ||
	       (!s->has_backing && how != HOW_ZERO && !marks(how));
}

/* A data file that is to be readable as a raw image has the zeroes, too. */
static int zero_raw(struct qcow2 *s, uint64_t off, uint64_t len, enum how how)
{
	if (!qcow2_data_is_raw(s) || how == HOW_FORGET)
		return 0;
	len = min_u64(len, s->node->size - off);
	return node_zero(s->data, off, len, keeps(how) ? 0 : NODE_MAY_UNMAP);
}

static bool has_host(const struct run *r)
{
	return r->kind == RUN_DATA || r->kind == RUN_SHARED || r->kind == RUN_ZERO_ALLOCATED ||
	       r->kind == RUN_RESERVED;
}

/* Changes the entries of R, a run of whole clusters in SL. */
static int change(struct qcow2 *s, struct slice *sl, uint64_t off, const struct run *r, enum how how)
{
	uint64_t count = DIV_ROUND_UP(r->len, s->cluster_size);
	bool keep = keeps(how) && r->kind == RUN_DATA;
	uint64_t entry = s->h.version < 3 || leaves_nothing(s, how) ? 0 : QCOW2_ZERO;
	int rc;

	if (!keep && has_host(r) && qcow2_check_data(s, r->host, count << s->cluster_bits))
		return -EIO;		/* a bad pointer: metadata is not freed */
	rc = zero_raw(s, off, r->len, how);
	if (rc)
		return rc;
	if (keep)
		entry = r->host | QCOW2_COPIED | QCOW2_ZERO;
	qcow2_publish(s, sl, off, count, entry, keep ? s->cluster_size : 0, 0);
	if (!keep)
		qcow2_drop_old(s, r, off, count);
	return 0;
}

/* [off, off+len), whole subclusters of one cluster with an extended entry. */
static int change_subclusters(struct qcow2 *s, struct slice *sl, uint64_t off, uint64_t len, enum how how)
{
	uint64_t c = align_down(off, s->cluster_size), old_bits, bits;
	uint64_t entry = qcow2_entry(s, sl, off, &old_bits), old = entry;
	unsigned from = (off - c) >> s->sub_bits;
	unsigned to = off + len == s->node->size ? QCOW2_SUBS : (off + len - c) >> s->sub_bits;
	uint64_t mask = ((1ull << to) - 1) & ~((1ull << from) - 1);
	struct run r;
	int rc;

	qcow2_lookup_slice(s, sl, c, s->cluster_size, &r);
	if (to - from == QCOW2_SUBS) {
		bits = leaves_nothing(s, how) ? 0 : QCOW2_SUBS_ZERO;
		if (!keeps(how) || !r.copied || r.kind == RUN_COMPRESSED)
			entry = 0;
	} else {
		bits = (old_bits & ~mask) | mask << 32;
	}
	if (entry == old && bits == old_bits)
		return 0;
	if (has_host(&r) && !entry && qcow2_check_data(s, r.host, s->cluster_size))
		return -EIO;
	rc = zero_raw(s, off, len, how);
	if (rc)
		return rc;
	qcow2_publish(s, sl, c, 1, entry, 0, bits);
	if (!entry)
		qcow2_drop_old(s, &r, c, 1);
	return 0;
}

/* One step on a cluster with an extended entry, or on a long run with nothing to do. */
static int zero_extended(struct qcow2 *s, uint64_t off, uint64_t len, enum how how, uint64_t *done)
{
	uint64_t c = align_down(off, s->cluster_size), now = min_u64(len, c + s->cluster_size - off);
	struct range in_use;
	struct slice *sl;
	struct run r;
	int rc = qcow2_lookup(s, off, len, &r);

	if (rc)
		return rc;
	*done = now;
	if (nothing_to_do(s, &r, how) && r.len >= now) {
		*done = r.len == len ? len : align_down(off + r.len, s->cluster_size) - off;
		return 0;
	}
	rc = qcow2_slice_for_write(s, off, &sl);
	if (rc)
		return rc;
	range_enter(&s->ranges, &in_use, c, s->cluster_size, RANGE_EXCL);
	qcow2_lookup_slice(s, sl, off, now, &r);
	if (r.kind == RUN_BAD)
		rc = qcow2_bad_entry(s, off, &r);
	else if (how == HOW_MARK_EMPTY && nothing_to_do(s, &r, how))
		rc = 0;
	else if (r.kind == RUN_COMPRESSED && (off != c || (now < s->cluster_size && off + now < s->node->size)))
		rc = -ENOTSUP;
	else
		rc = change_subclusters(s, sl, off, now, how);
	range_leave(&s->ranges, &in_use);
	cache_unpin(&s->l2, sl);
	return rc == -ENOTSUP ? zero_part(s, off, now, how, false) : rc;
}

/* One step on whole clusters, within one slice. */
static int zero_run(struct qcow2 *s, uint64_t off, uint64_t len, enum how how, uint64_t *done)
{
	uint64_t slice_end = (off | ((1ull << s->slice_shift) - 1)) + 1;
	struct range in_use;
	struct slice *sl;
	struct run r;
	int rc = qcow2_lookup(s, off, len, &r);

	if (rc)
		return rc;
	*done = r.len;
	if (nothing_to_do(s, &r, how))
		return 0;
	if (!can_flag(s, how))
		return how == HOW_DISCARD ? 0 : -ENOTSUP;
	rc = qcow2_slice_for_write(s, off, &sl);
	if (rc)
		return rc;
	r.len = min_u64(r.len, slice_end - off);
	range_enter(&s->ranges, &in_use, off, align_up(r.len, s->cluster_size), RANGE_EXCL);
	qcow2_lookup_slice(s, sl, off, len, &r);
	*done = r.len = min_u64(r.len, in_use.end - off);
	if (r.kind == RUN_BAD)
		rc = qcow2_bad_entry(s, off, &r);
	else if (!nothing_to_do(s, &r, how))
		rc = change(s, sl, off, &r, how);
	range_leave(&s->ranges, &in_use);
	cache_unpin(&s->l2, sl);
	return rc;
}

static int zero_whole(struct qcow2 *s, uint64_t off, uint64_t end, enum how how)
{
	uint64_t done = 0;
	int rc = 0;

	for (; off < end && !rc; off += done)
		rc = s->ext_l2 ? zero_extended(s, off, end - off, how, &done)
			       : zero_run(s, off, end - off, how, &done);
	return rc;
}

/* What [off, off+len) covers in whole UNITs (clusters, or subclusters): [*first, *end),
 * empty if none. */
static void whole_units(const struct qcow2 *s, uint64_t unit, uint64_t off, uint64_t len,
			uint64_t *first, uint64_t *end)
{
	*first = align_up(off, unit);
	*end = off + len == s->node->size ? off + len : align_down(off + len, unit);
	if (*end < *first)
		*first = *end = off + len;	/* inside one of them */
}

static enum how how_of(unsigned flags)
{
	if (flags & NODE_MAY_UNMAP)
		return flags & NODE_MARK ? HOW_UNMAP_MARK : HOW_UNMAP;
	return flags & NODE_MARK ? HOW_MARK : HOW_ZERO;
}

static int zero_all(struct qcow2 *s, uint64_t off, uint64_t len, unsigned flags)
{
	enum how how = how_of(flags);
	uint64_t first, end;
	int rc = s->corrupt || s->flush.failed ? -EIO : 0;

	whole_units(s, 1ull << s->sub_bits, off, len, &first, &end);
	if (!rc && flags & NODE_NO_FALLBACK) {
		rc = zero_part(s, off, first - off, how, true);
		if (!rc)
			rc = zero_part(s, end, off + len - end, how, true);
	}
	if (!rc)
		rc = zero_part(s, off, first - off, how, false);
	if (!rc)
		rc = zero_part(s, end, off + len - end, how, false);
	if (!rc)
		rc = zero_whole(s, first, end, how);
	if (!rc && flags & NODE_FUA)
		rc = qcow2_flush_all(s);
	return rc;
}

/* A table for flags needs room, too. */
int qcow2_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct qcow2 *s = qcow2_of(n);
	uint64_t given = s->flush.given;
	int rc = zero_all(s, off, len, flags);

	if (__builtin_expect(rc == -ENOSPC, 0) && qcow2_gives_back(s, given))
		rc = zero_all(s, off, len, flags);
	return rc;
}

int qcow2_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct qcow2 *s = qcow2_of(n);
	uint64_t first, end;

	if (s->corrupt || s->flush.failed)
		return -EIO;
	whole_units(s, s->cluster_size, off, len, &first, &end);
	return zero_whole(s, first, end, HOW_DISCARD);
}

int qcow2_forget(struct qcow2 *s, uint64_t off, uint64_t len)
{
	return zero_whole(s, off, off + len, HOW_FORGET);
}
