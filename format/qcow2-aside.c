// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-aside: old clusters stay for somebody who reads the disk as it was.
 *
 * A write that covers whole clusters need not have their old data read and kept: it goes
 * to new clusters, as a write to clusters that a snapshot shares does, and the old ones,
 * to which no entry refers any more, are his.  They keep their refcount until he frees them,
 * and then go the way of every freed cluster (qcow2-flush.c).  After a crash they are
 * leaks, which the next open frees (qcow2-repair.c): so an image that it would not search
 * has nobody who holds any.  Nor has an image that is closed: it ends with nothing leaked.
 *
 * The old clusters become his in the same instant in which the new ones are published:
 * before it the disk's mapping leads to the old data, after it his does.
 */
#include "format/qcow2-int.h"

#include <errno.h>

#define TABLES_MAX (256ull << 20)	/* bytes: half of what a repair would read, and … */
#define FILE_MAX (1ull << 27)		/* … clusters: look at; see qcow2-refs.c */

/* The image may have been opened anew meanwhile, or could not be. */
static bool is_open(const struct node *n)
{
	return node_is_qcow2(n) && n->state && !n->inactive;
}

/* Whether the next open finds what was held when the process died: the header says that the
 * image is open, and there is not too much to look at. */
static bool finds_leaks(const struct qcow2 *s)
{
	uint64_t tables = 0, l1 = s->h.l1_size * 8ull;

	if (!s->begun || s->corrupt)
		return false;
	for (uint64_t i = 0; i < s->h.l1_size; i++)
		tables += l1_entry(s, i) != 0;
	for (uint64_t i = 0; i < s->reftable_entries; i++)
		tables += get_be64(s->reftable + i * 8) != 0;
	return (1 + s->h.nb_snapshots) * (l1 + (tables << s->cluster_bits)) <= TABLES_MAX &&
	       s->host_end >> s->cluster_bits <= FILE_MAX;
}

bool qcow2_aside_set(struct node *n, struct qcow2_aside *a)
{
	struct qcow2 *s = qcow2_of(n);

	if (!is_open(n) || s->aside || s->ext_l2 || s->has_data_file || n->read_only || !finds_leaks(s))
		return false;
	s->aside = a;
	return true;
}

bool qcow2_aside_is(const struct node *n, const struct qcow2_aside *a)
{
	return is_open(n) && qcow2_of(n)->aside == a;
}

void qcow2_aside_drop(struct node *n, struct qcow2_aside *a)
{
	if (qcow2_aside_is(n, a))
		qcow2_of(n)->aside = NULL;
}

int qcow2_aside_read(struct node *n, void *buf, uint64_t host, size_t len)
{
	return is_open(n) ? qcow2_file_read(qcow2_of(n), buf, host, len) : -EIO;
}

uint64_t qcow2_aside_flushes(const struct node *n)
{
	return is_open(n) ? qcow2_of(n)->flush.synced : 0;
}

void qcow2_aside_free(struct node *n, uint64_t host, uint64_t count)
{
	if (is_open(n) && !n->read_only)
		qcow2_unref_later(qcow2_of(n), host, count);
}

/* The whole clusters from OFF on that a write to R covers, in bytes; *HEAD: what comes before. */
static uint64_t whole_clusters(const struct qcow2 *s, uint64_t off, const struct run *r, uint64_t *head)
{
	*head = min_u64(align_up(off, s->cluster_size) - off, r->len);
	return align_down(r->len - *head, s->cluster_size);
}

int qcow2_aside_ask(struct qcow2 *s, uint64_t off, struct run *r, unsigned flags)
{
	struct qcow2_aside *a = s->aside;
	uint64_t head, whole = whole_clusters(s, off, r, &head), n;

	if (r->kind == RUN_BAD)
		return 0;
	if (r->kind == RUN_DATA && whole && !(flags & (NODE_FUA | NODE_COMPRESS)) && !s->flush.failed) {
		bool moves = a->moves(a, off + head, whole, &n);

		if (moves)
			r->len = head ? head : n;
		else if (n < whole)
			r->len = head + n;
		if (moves && !head)
			return 1;
	}
	if (!a->wants(a, off, r->len))
		return 0;
	a->keep(a, off, r->len);
	return -EAGAIN;
}

void qcow2_aside_give(struct qcow2 *s, const struct run *r, uint64_t off, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t at = i << s->cluster_bits;

		if (!s->aside || !s->aside->moved(s->aside, off + at, r->host + at))
			qcow2_data_unref_later(s, r->host + at, 1);
	}
}
