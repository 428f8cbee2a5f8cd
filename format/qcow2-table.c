// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-table: new L2 tables, and those that were a snapshot's, too.
 *
 * A new L2 table's cluster is written with zeroes before any slice of it can be
 * read; its L1 entry is in memory only until the next flush has made the zeroes
 * durable (qcow2-flush.c).
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
