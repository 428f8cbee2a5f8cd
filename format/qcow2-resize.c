// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-resize: a larger L1 table, a larger image, a smaller one.
 *
 * A larger L1 table is rare and made on the spot: with the old one's changes on
 * storage and no new ones possible (l1_lock), it is written to new clusters, they
 * and their refcounts are made durable, then the header, then the old is free.
 *
 * A larger image reads as zeroes behind its old end, whatever its last cluster or a
 * longer backing image has there.  A smaller one gives its clusters back.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

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

static int write_zeroes(struct qcow2 *s, uint64_t off, uint64_t len)
{
	int rc = 0;

	for (uint64_t now; len && !rc; off += now, len -= now) {
		now = min_u64(len, sizeof(qcow2_zeroes));
		rc = qcow2_write(s->node, qcow2_zeroes, off, now, 0);
	}
	return rc;
}

/* What becomes visible behind OLD reads as zeroes: the rest of the last cluster,
 * and where a longer backing image would show through.  One that is named in the
 * header, but not opened now, may be as long as it likes. */
static int zero_new(struct qcow2 *s, uint64_t old, uint64_t size)
{
	const struct node *backing = s->node->child[CHILD_BACKING];
	uint64_t end = min_u64(align_up(old, s->cluster_size), size);
	int rc;

	if (backing && backing->size > old)
		end = max_u64(end, min_u64(backing->size, size));
	if (!backing && s->has_backing)
		end = size;
	rc = end > old ? qcow2_zero(s->node, old, end - old, 0) : 0;
	return rc == -ENOTSUP ? write_zeroes(s, old, end - old) : rc;
}

static int grow(struct qcow2 *s, uint64_t old, uint64_t size, struct error *err)
{
	uint64_t entries = DIV_ROUND_UP(size, 1ull << s->l1_shift);
	struct node *n = s->node;
	int rc = 0;

	if (entries > QCOW2_L1_BYTES_MAX / 8)
		return error_set(err, -EFBIG, "Image size %" PRIu64 " is too large for this cluster size", size);
	if (s->has_data_file && s->data->size < size && !node_on_block_device(s->data))
		rc = node_truncate(s->data, size, err);
	if (rc)
		return rc;
	co_mutex_lock(&s->l1_lock);
	if (entries > s->h.l1_size)
		rc = grow_l1(s, entries);
	co_mutex_unlock(&s->l1_lock);
	if (rc)
		return error_errno(err, rc, "Failed to grow the L1 table");
	n->size = size;			/* zeroing works within it; nobody else writes there yet */
	if (align_up(old, s->cluster_size) < size)	/* a smaller size may have left something */
		rc = qcow2_forget(s, align_up(old, s->cluster_size), size - align_up(old, s->cluster_size));
	if (!rc)
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

/* The header first: what lies behind the new end is of no use to anybody then, and
 * is given back.  If that fails it is given back by whoever discards it. */
static int shrink(struct qcow2 *s, uint64_t old, uint64_t size, struct error *err)
{
	uint64_t first = align_up(size, s->cluster_size);
	struct node *n = s->node;
	int rc = qcow2_flush_all(s);

	if (!rc) {
		s->h.size = size;
		rc = qcow2_header_write(s);
	}
	if (rc) {
		s->h.size = old;
		return error_errno(err, rc, "Failed to update the image size");
	}
	if (first < old)
		rc = qcow2_forget(s, first, old - first);
	n->size = size;
	if (!rc && qcow2_data_is_raw(s) && !node_on_block_device(s->data))
		rc = node_truncate(s->data, size, NULL);
	if (rc)
		log_warning("what was cut off could not be given back: image=%s error=%s", qcow2_name(s),
			    strerror(-rc));
	return 0;
}

int qcow2_truncate(struct node *n, uint64_t size, struct error *err)
{
	struct qcow2 *s = qcow2_of(n);
	uint64_t old = n->size;

	if (size % 512)
		return error_set(err, -EINVAL, "The new size must be a multiple of 512");
	if (size == old)
		return 0;
	if (s->h.nb_snapshots && s->h.version < 3)
		return error_set(err, -ENOTSUP, "Can't resize a v2 image which has snapshots");
	if (s->corrupt || s->flush.failed)
		return error_errno(err, -EIO, "Could not resize '%s'", qcow2_name(s));
	return size > old ? grow(s, old, size, err) : shrink(s, old, size, err);
}
