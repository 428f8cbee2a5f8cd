// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-repair: an image that was not closed is made whole before it is written to.
 *
 * Wanted when the open bit says so (qcow2-crashlog.h), or the dirty bit (lazy refcounts
 * of another program).  The references are counted anew (qcow2-refs.c) and compared with
 * the refcounts.  For each window of clusters, in an order in which any power loss leaves
 * an image that is no worse than before:
 *
 *	1  refcounts that are too low are raised
 *	2  COPIED flags of the active tables are made true
 *	3  a flush: refcounts first, then tables, durably (qcow2-flush.c)
 *	4  refcounts that are too high are lowered: these clusters were leaked
 *	5  another flush
 *
 * Nothing is lowered when anything in the image makes no sense: what looks free may be
 * in use.  Guest data is neither moved nor read.  The bit goes only when the image is
 * closed cleanly, so that a repair that is cut short is done again.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "format/qcow2-refs.h"

struct repair {
	struct refs refs;
	uint64_t *block;		/* reftable indices that belong to the window */
	size_t n_blocks;
	bool looks;			/* nothing is to be changed yet */
	bool lower;			/* which of the passes it is */
	bool too_high;			/* what the first pass has seen */
	uint64_t raised, freed, flags;	/* clusters, clusters, entries */
};

static uint64_t where_block(const void *arg, size_t i)
{
	const struct repair *r = arg;

	return get_be64(r->refs.s->reftable + r->block[i] * 8) & QCOW2_OFFSET;
}

static int set_refcount(struct qcow2 *s, uint64_t cluster, uint64_t value)
{
	struct slice *sl;
	int rc = refcount_slice(s, cluster, &sl);

	if (rc)
		return rc == -ENOENT ? -EUCLEAN : rc;
	refcount_set(s, sl, cluster, value);
	cache_unpin(&s->ref, sl);
	return 0;
}

/* One cluster whose refcount is HAVE, but should be WANT. */
static int differs(struct repair *r, uint64_t cluster, uint64_t have, uint64_t want)
{
	struct qcow2 *s = r->refs.s;

	if (have > want) {
		r->too_high = true;
		if (!r->lower || want == REFS_MANY)
			return 0;
		r->freed += !want;
		return set_refcount(s, cluster, want);
	}
	if (r->lower)
		return 0;
	if (want == REFS_MANY || want > refcount_max(s)) {
		r->refs.doubtful = true;
		want = min_u64(want, refcount_max(s));
	}
	if (r->looks)
		return 0;
	r->refs.unsure_copied |= want != 1;
	r->raised++;
	return set_refcount(s, cluster, want);
}

static int compare_block(void *arg, size_t i, const uint8_t *table)
{
	struct repair *r = arg;
	struct qcow2 *s = r->refs.s;
	uint64_t first = r->block[i] << s->ref_block_shift, n = 1ull << s->ref_block_shift;
	int rc = 0;

	if (refs_none(&r->refs, first, n) && bytes_are_zero(table, s->cluster_size))
		return 0;
	for (uint64_t k = 0; k < n && !rc; k++) {
		uint64_t have = s->h.refcount_order == 4 ? get_be16(table + 2 * k)
							 : refcount_entry(s, table, k);
		uint64_t want = refs_of(&r->refs, first + k);

		if (__builtin_expect(have != want, 0))
			rc = differs(r, first + k, have, want);
	}
	return rc;
}

/* Clusters that are used, and no block counts them. */
static int missing_block(struct repair *r, uint64_t index)
{
	struct qcow2 *s = r->refs.s;
	uint64_t first = index << s->ref_block_shift, used = first;
	uint64_t end = min_u64(first + (1ull << s->ref_block_shift), r->refs.first + r->refs.n);
	int rc;

	if (used >= end || refs_none(&r->refs, used, end - used))
		return 0;
	while (!refs_of(&r->refs, used))
		used++;
	if (used == first || index >= s->reftable_entries)
		return -EUCLEAN;	/* a new block, or a longer table, would lie over what is used */
	if (r->looks)
		return 0;
	rc = refcount_make_block(s, first);
	if (rc)
		return rc;
	if (refs_in_window(&r->refs, first))
		r->refs.count[first - r->refs.first] = 1;
	for (; used < end && !rc; used++)
		if (refs_of(&r->refs, used))
			rc = differs(r, used, 0, refs_of(&r->refs, used));
	return rc;
}

/* The blocks that count clusters of the window; behind the last, all others. */
static int list_blocks(struct repair *r)
{
	struct qcow2 *s = r->refs.s;
	uint64_t per_block = 1ull << s->ref_block_shift, first = r->refs.first >> s->ref_block_shift;
	uint64_t end = DIV_ROUND_UP(r->refs.first + r->refs.n, per_block);
	int rc = 0;

	if (r->refs.first + r->refs.n == r->refs.clusters)
		end = max_u64(end, s->reftable_entries);
	free(r->block);
	r->n_blocks = 0;
	r->block = malloc((end > first ? end - first : 1) * sizeof(*r->block));
	if (!r->block)
		return -ENOMEM;
	for (uint64_t i = first; i < end && !rc; i++) {
		uint64_t host = i < s->reftable_entries ? get_be64(s->reftable + i * 8) : 0;

		if (!host) {
			rc = missing_block(r, i);
		} else if (host & ~QCOW2_OFFSET || qcow2_in_cluster(s, host) || host >= s->host_end) {
			r->refs.doubtful = true;
			rc = -EUCLEAN;
		} else {
			r->block[r->n_blocks++] = i;
		}
	}
	return rc;
}

/* -- COPIED flags ---------------------------------------------------------- */

static bool wrong_flag(const struct repair *r, uint64_t entry)
{
	uint64_t cluster = (entry & QCOW2_OFFSET) >> r->refs.s->cluster_bits;

	if (!cluster || entry & QCOW2_COMPRESSED || !refs_in_window(&r->refs, cluster))
		return false;
	if (refs_of(&r->refs, cluster) == 1)	/* in doubt somebody else has it, too */
		return !(entry & QCOW2_COPIED) && !r->refs.doubtful;
	return entry & QCOW2_COPIED;
}

static uint64_t where_l2(const void *arg, size_t i)
{
	const struct repair *r = arg;

	return r->refs.table[i].host;
}

static int flags_of_l2(void *arg, size_t i, const uint8_t *table)
{
	struct repair *r = arg;
	struct qcow2 *s = r->refs.s;
	unsigned entry_bytes = 1u << s->entry_shift;
	uint64_t guest = (uint64_t)r->refs.table[i].index << s->l1_shift;
	struct slice *sl;
	int rc = 0;

	if (r->refs.table[i].index == REFS_NOT_ACTIVE)
		return 0;
	for (uint64_t at = 0; at < s->cluster_size && !rc; at += entry_bytes, guest += s->cluster_size) {
		uint64_t e = get_be64(table + at);

		if (!wrong_flag(r, e))
			continue;
		rc = qcow2_slice_load(s, guest >> s->slice_shift, &sl);
		if (rc || !sl)
			break;
		put_be64(qcow2_entry_slot(s, sl, guest), e ^ QCOW2_COPIED);
		cache_dirty(&s->l2, sl);
		cache_unpin(&s->l2, sl);
		r->flags++;
	}
	return rc;
}

static int fix_flags(struct repair *r)
{
	struct qcow2 *s = r->refs.s;

	for (uint32_t i = 0; i < s->h.l1_size; i++)
		if (wrong_flag(r, l1_entry(s, i))) {
			qcow2_l1_set(s, i, l1_entry(s, i) ^ QCOW2_COPIED);
			r->flags++;
		}
	if (s->has_data_file)
		return 0;
	return refs_each_table(s, r->refs.n_tables, where_l2, flags_of_l2, r);
}

/* -- all of it ------------------------------------------------------------- */

static int compare_window(struct repair *r, uint64_t first)
{
	int rc = refs_count(&r->refs, first);

	r->lower = r->too_high = false;
	if (!rc)
		rc = list_blocks(r);
	if (!rc)
		rc = refs_each_table(r->refs.s, r->n_blocks, where_block, compare_block, r);
	return rc;
}

/* Whether all of it can be repaired, before anything is written: an image that is refused stays
 * as it was. */
static int look(struct repair *r)
{
	int rc = 0;

	r->looks = true;
	for (uint64_t first = 0; !rc && first < r->refs.clusters; first += REFS_WINDOW) {
		rc = compare_window(r, first);
		if (!rc && r->refs.doubtful)
			rc = -EUCLEAN;
	}
	r->looks = false;
	return rc;
}

static int repair_window(struct repair *r, uint64_t first)
{
	struct qcow2 *s = r->refs.s;
	int rc = compare_window(r, first);

	if (!rc && (r->refs.unsure_copied || s->h.nb_snapshots))
		rc = fix_flags(r);
	if (!rc && !(s->l2.n_dirty || s->l1_n_dirty || s->ref.n_dirty) && !r->too_high)
		return 0;
	if (!rc && (s->l2.n_dirty || s->l1_n_dirty || s->ref.n_dirty))
		rc = qcow2_flush_all(s);
	if (rc || !r->too_high || r->refs.doubtful)
		return rc;
	r->lower = true;
	rc = refs_each_table(s, r->n_blocks, where_block, compare_block, r);
	return rc ? rc : qcow2_flush_all(s);
}

static void report(struct repair *r, int rc)
{
	struct qcow2 *s = r->refs.s;

	if (rc)
		log_warning("the image was not closed, and could not be repaired; clusters may be leaked, see 'qemu-img check': image=%s error=%s",
			    qcow2_name(s), rc == -E2BIG ? "it has too many tables" : strerror(-rc));
	else if (r->refs.doubtful)
		log_warning("the image was not closed, and has damage that is not repaired; see 'qemu-img check': image=%s",
			    qcow2_name(s));
	else
		log_info("the image was not closed and was repaired: image=%s leaked=%" PRIu64 " counted=%" PRIu64 " flags=%" PRIu64,
			 qcow2_name(s), r->freed, r->raised, r->flags);
}

int qcow2_repair(struct qcow2 *s, struct error *err)
{
	bool must = s->h.incompatible & QCOW2_DIRTY;
	struct repair r = { .block = NULL };
	int rc;

	if (s->node->read_only || !(must || s->h.autoclear & QCOW2_OPEN))
		return 0;
	rc = refs_init(&r.refs, s);
	if (!rc && must)
		rc = look(&r);
	for (uint64_t first = 0; !rc && first < r.refs.clusters; first += REFS_WINDOW)
		rc = repair_window(&r, first);
	report(&r, rc);
	if (must && (rc || r.refs.doubtful))
		rc = error_set(err, rc ? rc : -EUCLEAN, "Could not open '%s' for writing: the image was not closed cleanly (lazy refcounts) and cannot be repaired here; use 'qemu-img check -r all', or open it read-only",
			       qcow2_name(s));
	else if (s->flush.failed || rc == -EIO)
		rc = error_errno(err, -EIO, "Could not repair '%s'", qcow2_name(s));
	else
		rc = 0;
	if (!rc)
		s->h.incompatible &= ~(uint64_t)QCOW2_DIRTY;
	free(r.block);
	refs_free(&r.refs);
	return rc;
}
