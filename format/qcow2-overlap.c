// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-overlap: what must not be overwritten, and the corrupt mark.
 *
 * A stranger's image may have a data pointer that points to a table, or refcounts
 * that call a used cluster free.  Before data goes to a cluster, and before a free
 * cluster is taken, it is looked up in the set of all clusters that hold active
 * metadata: header, L1 table, refcount table, refcount blocks, L2 tables.
 *
 * On a hit the write fails, the image is marked (incompatible bit 1, so that
 * nobody writes to it until qemu-img check repaired it) and no write is served
 * any more.  Reading goes on.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/log.h"

static inline size_t place(const struct cluster_set *m, uint64_t cluster)
{
	return (cluster * 0x9e3779b97f4a7c15ull) >> 20 & (m->size - 1);
}

static inline bool set_has(const struct cluster_set *m, uint64_t cluster)
{
	size_t i = place(m, cluster);

	while (m->v[i] && m->v[i] != cluster)
		i = (i + 1) & (m->size - 1);
	return m->v[i];
}

/* There must be room. */
static void set_put(struct cluster_set *m, uint64_t cluster)
{
	size_t i = place(m, cluster);

	while (m->v[i] && m->v[i] != cluster)
		i = (i + 1) & (m->size - 1);
	if (!m->v[i])
		m->n++;
	m->v[i] = cluster;
}

static int set_grow(struct cluster_set *m, size_t room)
{
	struct cluster_set bigger = { .size = m->size ? m->size : 64 };

	while (bigger.size < 2 * (m->n + room))
		bigger.size *= 2;
	if (bigger.size == m->size)
		return 0;
	bigger.v = calloc(bigger.size, sizeof(*bigger.v));
	if (!bigger.v)
		return -ENOMEM;
	for (size_t i = 0; i < m->size; i++)
		if (m->v[i])
			set_put(&bigger, m->v[i]);
	free(m->v);
	*m = bigger;
	return 0;
}

/* Closes the gap, so that every element stays reachable from its place. */
static void set_del(struct cluster_set *m, uint64_t cluster)
{
	size_t mask = m->size - 1, i = place(m, cluster), j;

	while (m->v[i] && m->v[i] != cluster)
		i = (i + 1) & mask;
	if (!m->v[i])
		return;
	m->n--;
	for (j = (i + 1) & mask; m->v[j]; j = (j + 1) & mask) {
		size_t home = place(m, m->v[j]);

		if (((j - home) & mask) >= ((j - i) & mask)) {
			m->v[i] = m->v[j];
			i = j;
		}
	}
	m->v[i] = 0;
}

int qcow2_meta_add(struct qcow2 *s, uint64_t host, uint64_t count)
{
	int rc = set_grow(&s->meta, count);

	for (uint64_t i = 0; i < count && !rc; i++)
		if ((host >> s->cluster_bits) + i)
			set_put(&s->meta, (host >> s->cluster_bits) + i);
	return rc;
}

void qcow2_meta_remove(struct qcow2 *s, uint64_t host, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		set_del(&s->meta, (host >> s->cluster_bits) + i);
}

/* Adds what one table is, or points to; two tables in one place are damage. */
static int add_new(struct qcow2 *s, uint64_t host, uint64_t count)
{
	size_t n = s->meta.n;
	int rc = qcow2_meta_add(s, host, count);

	return rc ? rc : s->meta.n - n == count ? 0 : -EUCLEAN;
}

/* The snapshots' table and their L1 tables; two snapshots never share one.  Their
 * L2 tables are counted by the refcounts alone. */
static int add_snapshots(struct qcow2 *s)
{
	int rc = add_new(s, s->h.snapshots_offset, DIV_ROUND_UP(s->snapshots_bytes, s->cluster_size));

	for (uint32_t i = 0; i < s->h.nb_snapshots && !rc; i++)
		rc = add_new(s, s->snapshots[i].l1_offset,
			     DIV_ROUND_UP(s->snapshots[i].l1_size * 8ull, s->cluster_size));
	return rc;
}

/* Collects what the tables in memory point to.  A pointer that makes no sense is
 * refused when it is followed; -EUCLEAN when tables lie over one another: to write
 * one is to destroy the other. */
int qcow2_meta_init(struct qcow2 *s)
{
	uint64_t l1_clusters = DIV_ROUND_UP(s->h.l1_size * 8ull, s->cluster_size), entry;
	int rc = add_new(s, s->h.l1_offset, l1_clusters);

	if (!rc)
		rc = add_new(s, s->h.reftable_offset, s->h.reftable_clusters);
	for (uint64_t i = 0; i < s->h.l1_size && !rc; i++) {
		entry = l1_entry(s, i) & QCOW2_OFFSET;
		if (entry)
			rc = add_new(s, entry, 1);
	}
	for (uint64_t i = 0; i < s->reftable_entries && !rc; i++) {
		entry = get_be64(s->reftable + i * 8);
		if (entry)
			rc = add_new(s, entry, 1);
	}
	if (!rc && s->h.nb_snapshots)
		rc = add_snapshots(s);
	return rc;
}

int qcow2_check_target(struct qcow2 *s, uint64_t host, uint64_t len)
{
	uint64_t first = host >> s->cluster_bits, last = (host + len - 1) >> s->cluster_bits;

	for (uint64_t c = first; c <= last; c++)
		if (__builtin_expect(!c || set_has(&s->meta, c), 0))
			return qcow2_mark_corrupt(s, "a write to offset 0x%" PRIx64
						  " would overwrite metadata",
						  c << s->cluster_bits);
	return 0;
}

bool qcow2_is_owned(struct qcow2 *s, uint64_t host, uint64_t count)
{
	uint64_t cluster = host >> s->cluster_bits, refs = 1;

	for (; count && refs == 1; count--, cluster++) {
		struct slice *sl;

		if (!cluster || set_has(&s->meta, cluster) || refcount_slice(s, cluster, &sl))
			return false;
		refs = refcount_get(s, sl, cluster);
		cache_unpin(&s->ref, sl);
	}
	return refs == 1;
}

int qcow2_mark_corrupt(struct qcow2 *s, const char *fmt, ...)
{
	char why[200];
	va_list ap;

	if (s->corrupt)
		return -EIO;
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	if (s->node->read_only) {
		if (!s->said_damaged)
			log_warning("qcow2 image is damaged: image=%s why=%s", qcow2_name(s), why);
		s->said_damaged = true;
		return -EIO;
	}
	s->corrupt = true;
	if (node_event_hooks)
		node_event_hooks->corrupted(s->node, why, UINT64_MAX, UINT64_MAX, true);
	log_error("qcow2 image is damaged and is marked as corrupt, no more writes are served; "
		  "repair it with 'qemu-img check -r all': image=%s why=%s", qcow2_name(s), why);
	if (s->h.version < 3)
		return -EIO;		/* has no mark */
	s->h.incompatible |= QCOW2_CORRUPT;
	qcow2_header_write(s);
	return -EIO;
}
