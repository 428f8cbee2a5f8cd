// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-table: new L2 tables, a larger L1 table, a larger image.
 *
 * A new L2 table's cluster is written with zeroes before any slice of it can be
 * read; its L1 entry is in memory only until the next flush has made the zeroes
 * durable (qcow2-flush.c).
 *
 * A larger L1 table is rare and made on the spot: with the old one's changes on
 * storage and no new ones possible (l1_lock), it is written to new clusters, they
 * and their refcounts are made durable, then the header, then the old is free.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void qcow2_l1_set(struct qcow2 *s, uint64_t index, uint64_t entry)
{
	uint64_t sector = index * 8 / L1_SECTOR;

	put_be64(s->l1 + index * 8, entry);
	if (!s->l1_dirty[sector])
		s->l1_n_dirty++;
	s->l1_dirty[sector] = 1;
	crashlog_note_l1(s, index, entry);
}

/* With l1_lock held. */
static int new_table(struct qcow2 *s, uint64_t index)
{
	uint64_t host;
	int rc = qcow2_alloc_exact(s, 1, &host);

	if (rc)
		return rc;
	rc = qcow2_file_zero(s, host, s->cluster_size);
	if (!rc)
		rc = qcow2_meta_add(s, host, 1);
	if (rc)
		qcow2_unref_now(s, host, 1);
	else
		qcow2_l1_set(s, index, host | QCOW2_COPIED);
	return rc;
}

/* A table of our own for what a snapshot's describes, too.  Nothing in memory has
 * changed it, so storage has it; slices in the cache stay as they are.  Data that it
 * points to was counted once more when the snapshot was made. */
static int copy_table(struct qcow2 *s, uint64_t index, uint64_t old)
{
	uint8_t *p = aligned_alloc(4096, align_up(s->cluster_size, 4096));
	uint64_t host;
	bool have = false;
	int rc = p ? qcow2_file_read(s, p, old, s->cluster_size) : -ENOMEM;

	if (!rc) {
		rc = qcow2_alloc_exact(s, 1, &host);
		have = !rc;
	}
	if (!rc)
		rc = qcow2_file_write(s, p, host, s->cluster_size, 0);
	if (!rc)
		rc = qcow2_meta_add(s, host, 1);
	free(p);
	if (rc) {
		if (have)
			qcow2_unref_now(s, host, 1);
		return rc;
	}
	qcow2_l1_set(s, index, host | QCOW2_COPIED);
	qcow2_unref_later(s, old, 1);
	return 0;
}

/* An L2 table without the COPIED flag may belong to a snapshot, too; or the flag is
 * stale. */
static int unshare_table(struct qcow2 *s, uint64_t index)
{
	uint64_t entry = l1_entry(s, index), host = entry & QCOW2_OFFSET, count;
	struct slice *sl;
	int rc = refcount_slice(s, host >> s->cluster_bits, &sl);

	if (rc && rc != -ENOENT)
		return rc;
	count = rc ? 0 : refcount_get(s, sl, host >> s->cluster_bits);
	if (!rc)
		cache_unpin(&s->ref, sl);
	if (!count || (count > 1 && !s->h.nb_snapshots))
		return qcow2_mark_corrupt(s, "L2 table at offset 0x%" PRIx64 " has refcount %" PRIu64,
					  host, count);
	if (count > 1)
		return copy_table(s, index, host);
	qcow2_l1_set(s, index, entry | QCOW2_COPIED);
	return 0;
}

int qcow2_slice_for_write(struct qcow2 *s, uint64_t off, struct slice **out)
{
	uint64_t index = off >> s->l1_shift, entry;
	int rc = 0;

	if (index >= s->h.l1_size)
		return -EIO;
	rc = crashlog_room(s);
	if (rc)
		return rc;
	entry = l1_entry(s, index);
	if (__builtin_expect(!(entry & QCOW2_COPIED) || !(entry & QCOW2_OFFSET), 0)) {
		co_mutex_lock(&s->l1_lock);
		entry = l1_entry(s, index);	/* another one may have been here */
		if (!(entry & QCOW2_OFFSET))
			rc = new_table(s, index);
		else if (!(entry & QCOW2_COPIED))
			rc = unshare_table(s, index);
		co_mutex_unlock(&s->l1_lock);
	}
	if (!rc)
		rc = qcow2_slice_load(s, off >> s->slice_shift, out);
	return rc ? rc : *out ? 0 : -EIO;
}

static size_t l1_memory(uint64_t entries)
{
	return align_up(max_u64(entries, 1) * 8, L1_SECTOR);
}

/* Points the header to the new table and uses it; the old one is freed. */
static int switch_l1(struct qcow2 *s, uint8_t *l1, uint8_t *dirty, uint32_t entries, uint64_t host)
{
	struct qcow2_header old = s->h;
	uint64_t old_clusters = DIV_ROUND_UP(old.l1_size * 8ull, s->cluster_size);
	int rc;

	s->h.l1_size = entries;
	s->h.l1_offset = host;
	rc = qcow2_header_write(s);
	if (rc) {
		s->h.l1_size = old.l1_size;
		s->h.l1_offset = old.l1_offset;
		return rc;
	}
	free(s->l1);
	free(s->l1_dirty);
	s->l1 = l1;
	s->l1_dirty = dirty;
	if (old_clusters) {
		qcow2_meta_remove(s, old.l1_offset, old_clusters);
		qcow2_unref_now(s, old.l1_offset, old_clusters);
	}
	return 0;
}

/* With l1_lock held, so that no L2 table is made meanwhile. */
static int grow_l1(struct qcow2 *s, uint32_t entries)
{
	uint64_t clusters = DIV_ROUND_UP(entries * 8ull, s->cluster_size), host;
	size_t bytes = l1_memory(entries);
	uint8_t *l1 = aligned_alloc(4096, bytes), *dirty = calloc(1, bytes / L1_SECTOR);
	int rc = l1 && dirty ? qcow2_flush_all(s) : -ENOMEM;
	bool have = false;

	if (!rc && s->l1_n_dirty)
		rc = -EIO;
	if (!rc) {
		memset(l1, 0, bytes);
		memcpy(l1, s->l1, s->h.l1_size * 8ull);
		rc = qcow2_alloc_exact(s, clusters, &host);
		have = !rc;
	}
	for (uint64_t at = 0; at < entries * 8ull && !rc; at += 1u << 20)
		rc = qcow2_file_write(s, l1 + at, host + at, min_u64(1u << 20, entries * 8ull - at), 0);
	if (!rc)
		rc = qcow2_flush_all(s);	/* the new table and its refcounts */
	if (!rc)
		rc = qcow2_meta_add(s, host, clusters);
	if (!rc)
		rc = switch_l1(s, l1, dirty, entries, host);
	if (!rc)
		return 0;
	if (have) {
		qcow2_meta_remove(s, host, clusters);
		qcow2_unref_now(s, host, clusters);
	}
	free(l1);
	free(dirty);
	return rc;
}

/* What becomes visible behind OLD reads as zeroes: the rest of the last cluster,
 * and where a longer backing image would show through. */
static int zero_new(struct qcow2 *s, uint64_t old, uint64_t size)
{
	const struct node *backing = s->node->child[CHILD_BACKING];
	uint64_t end = min_u64(align_up(old, s->cluster_size), size);

	if (backing && backing->size > old)
		end = max_u64(end, min_u64(backing->size, size));
	return end > old ? qcow2_zero(s->node, old, end - old, 0) : 0;
}

int qcow2_truncate(struct node *n, uint64_t size, struct error *err)
{
	struct qcow2 *s = qcow2_of(n);
	uint64_t old = n->size, entries = DIV_ROUND_UP(size, 1ull << s->l1_shift);
	int rc = 0;

	if (size % 512)
		return error_set(err, -EINVAL, "The new size must be a multiple of 512");
	if (size < old)
		return error_set(err, -ENOTSUP, "Shrinking qcow2 images is not supported");
	if (size == old)
		return 0;
	if (s->h.nb_snapshots && s->h.version < 3)
		return error_set(err, -ENOTSUP, "Can't resize a v2 image which has snapshots");
	if (entries > QCOW2_L1_BYTES_MAX / 8)
		return error_set(err, -EFBIG, "Image size %" PRIu64 " is too large for this cluster size", size);
	if (s->corrupt || s->flush.failed)
		return error_errno(err, -EIO, "Could not resize '%s'", qcow2_name(s));

	co_mutex_lock(&s->l1_lock);
	if (entries > s->h.l1_size)
		rc = grow_l1(s, entries);
	co_mutex_unlock(&s->l1_lock);
	if (rc)
		return error_errno(err, rc, "Failed to grow the L1 table");
	n->size = size;			/* zeroing works within it; nobody else writes there yet */
	rc = zero_new(s, old, size);
	if (!rc)
		rc = qcow2_flush_all(s);
	if (!rc) {
		s->h.size = size;
		rc = qcow2_header_write(s);
	}
	if (!rc)
		return 0;
	n->size = s->h.size = old;
	return error_errno(err, rc, "Failed to update the image size");
}
