// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-check: whether an image's tables make sense; nothing is changed.
 *
 * The references are counted (qcow2-refs.c) and compared with the refcounts.  A cluster
 * that is used more often than it is counted, and a pointer that leads out of the file, is
 * damage; one that is counted more often is only leaked.  Guest data is not read.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <string.h>

#include "format/qcow2-refs.h"

struct check {
	struct refs refs;
	struct qcow2_check *out;
	uint64_t index;			/* in the refcount table: the block that is looked at */
};

static void compare(struct check *k, uint64_t cluster, uint64_t have)
{
	uint64_t want = refs_of(&k->refs, cluster);

	if (have < want)
		k->out->damaged++;
	else if (have > want && want != REFS_MANY)
		k->out->leaked++;
}

static uint64_t where_block(const void *arg, size_t i)
{
	const struct check *k = arg;

	return get_be64(k->refs.s->reftable + k->index * 8) & QCOW2_OFFSET;
}

static int compare_block(void *arg, size_t i, const uint8_t *table)
{
	struct check *k = arg;
	struct qcow2 *s = k->refs.s;
	uint64_t first = k->index << s->ref_block_shift, n = 1ull << s->ref_block_shift;

	for (uint64_t c = 0; c < n; c++)
		compare(k, first + c, refcount_entry(s, table, c));
	return 0;
}

static int check_block(struct check *k)
{
	struct qcow2 *s = k->refs.s;
	uint64_t first = k->index << s->ref_block_shift, n = 1ull << s->ref_block_shift;
	uint64_t host = k->index < s->reftable_entries ? get_be64(s->reftable + k->index * 8) : 0;

	if (host & ~QCOW2_OFFSET || qcow2_in_cluster(s, host) || (host && host >= s->file->size)) {
		k->out->damaged++;
		return 0;
	}
	if (host)
		return refs_each_table(s, 1, where_block, compare_block, k);
	if (!refs_none(&k->refs, first, n))
		k->out->damaged++;
	return 0;
}

static int check_window(struct check *k, uint64_t first)
{
	struct qcow2 *s = k->refs.s;
	uint64_t end;
	int rc = refs_count(&k->refs, first);

	end = DIV_ROUND_UP(k->refs.first + k->refs.n, 1ull << s->ref_block_shift);
	if (k->refs.first + k->refs.n == k->refs.clusters)
		end = max_u64(end, s->reftable_entries);
	for (k->index = k->refs.first >> s->ref_block_shift; k->index < end && rc == 0; k->index++)
		rc = check_block(k);
	return rc;
}

int qcow2_check(struct node *n, struct qcow2_check *out, struct error *err)
{
	struct qcow2 *s = qcow2_of(n);
	struct check k = { .out = out };
	int rc;

	*out = (struct qcow2_check){ 0 };
	rc = refs_init(&k.refs, s);
	for (uint64_t first = 0; rc == 0 && first < k.refs.clusters; first += REFS_WINDOW)
		rc = check_window(&k, first);
	out->damaged += k.refs.doubtful;
	if (s->h.incompatible & QCOW2_CORRUPT)
		out->damaged++;
	refs_free(&k.refs);
	return rc ? error_errno(err, rc, "%s: its tables could not be checked", qcow2_name(s)) : 0;
}
