// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-replay: the log of a process that died is applied to the image.
 *
 * The mapping that the guest was told of is: the tables as the kernel has them, then
 * the records in their order.  They are put into the tables in memory like any change,
 * and written by an ordinary flush, so that everything said in qcow2-flush.c holds: the
 * data and zeroed tables that the dead process wrote become durable first.  Its
 * refcounts may be lost; those of what the records refer to are raised before, too high
 * at worst, and corrected by the repair that follows.
 *
 * All L1 records come before all L2 records.  That is right because an L2 table is only
 * changed while it is ours alone, and a copy of a shared one is written whole before its
 * L1 entry: so a record that is older than the table has nothing new for it.
 *
 * To die in here does no harm: the log stays as it is until the next one is made, after
 * everything is durable, and to replay it once more leads to the same tables.
 *
 * A read-only image gets the changes in memory alone; the slices stay pinned.
 *
 * The log is a stranger's as much as the image is: its records are checked like entries
 * of tables.  One that makes no sense ends the replay.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "format/qcow2-crashlog.h"

static const struct crashlog_head *head_of(const uint8_t *file)
{
	return (const struct crashlog_head *)file;
}

static const struct crashlog_record *record(const uint8_t *file, uint64_t n)
{
	const struct crashlog_record *slot = (const struct crashlog_record *)(file + CRASHLOG_HEAD);

	return &slot[n % head_of(file)->slots];
}

/* Whether the file is the log of this image's last session. */
static bool is_ours(struct qcow2 *s, const uint8_t *file, size_t bytes)
{
	const struct qcow2_ext *e = qcow2_ext_find(&s->h, QCOW2_EXT_OPEN);
	const struct crashlog_head *h = head_of(file);
	struct io_identity id;

	if (memcmp(h->magic, CRASHLOG_MAGIC, sizeof(h->magic)) || h->version != CRASHLOG_VERSION ||
	    h->head_bytes != CRASHLOG_HEAD || h->record_bytes != sizeof(struct crashlog_record) ||
	    h->slots != (bytes - CRASHLOG_HEAD) / sizeof(struct crashlog_record))
		return false;
	if (h->begin > h->end || h->end - h->begin > h->slots)
		return false;
	if (!e || e->len != CRASHLOG_NONCE || memcmp(e->data, h->nonce, CRASHLOG_NONCE))
		return false;
	if (io_identity(node_storage(s->file), &id) || id.dev != h->dev || id.ino != h->ino)
		return false;
	return !memcmp(id.boot, h->boot, sizeof(id.boot)) || qcow2_test_break_order == 6;
}

/* Reads the log; NULL when there is none to replay. */
static uint8_t *read_log(struct qcow2 *s)
{
	struct io_file *f = node_storage(s->file);
	size_t bytes = qcow2_crashlog_bytes;
	uint8_t *file = NULL;
	int rc;

	if (!f || !(s->h.autoclear & QCOW2_OPEN) || !qcow2_ext_find(&s->h, QCOW2_EXT_OPEN))
		return NULL;
	rc = io_mapped_read(f, s->log_dir, bytes, &file);
	if (rc) {
		if (rc != -ENOENT)
			log_warning("the crash log cannot be read: image=%s error=%s", qcow2_name(s),
				    strerror(-rc));
		return NULL;
	}
	if (is_ours(s, file, bytes))
		return file;
	free(file);
	return NULL;
}

/* The clusters that R refers to, [*first, *first + return). */
static uint64_t clusters_of(const struct qcow2 *s, const struct crashlog_record *r, uint64_t *first)
{
	uint64_t host = r->entry & QCOW2_OFFSET, len;

	if (r->kind == CRASHLOG_L2 && s->has_data_file)
		return 0;
	if (r->kind == CRASHLOG_L2 && r->entry & QCOW2_COMPRESSED) {
		qcow2_compressed_place(s, r->entry, &host, &len);
		*first = host >> s->cluster_bits;
		return ((host + len - 1) >> s->cluster_bits) + 1 - *first;
	}
	*first = host >> s->cluster_bits;
	return host ? r->step_bits ? r->count : 1 : 0;
}

static bool makes_sense(const struct qcow2 *s, const struct crashlog_record *r)
{
	uint64_t first = 0, n = clusters_of(s, r, &first), limit = s->host_limit >> s->cluster_bits;

	if (r->kind == CRASHLOG_L1)
		return r->where < s->h.l1_size && r->count == 1 && n == 1 &&
		       !qcow2_in_cluster(s, r->entry & QCOW2_OFFSET) && checked_range(first, n, limit);
	return r->kind == CRASHLOG_L2 && r->count && !qcow2_in_cluster(s, r->where) &&
	       (!r->step_bits || r->step_bits == s->cluster_bits) &&
	       checked_range(r->where, (uint64_t)r->count << s->cluster_bits,
			     (uint64_t)s->h.l1_size << s->l1_shift) &&
	       checked_range(first, n, limit);
}

/* What R refers to is in use, whatever the refcounts say.  Compressed clusters share
 * theirs: each record may be one reference more. */
static int count_record(struct qcow2 *s, const struct crashlog_record *r)
{
	bool packed = r->kind == CRASHLOG_L2 && r->entry & QCOW2_COMPRESSED;
	uint64_t first = 0, n = clusters_of(s, r, &first), refs;
	struct slice *sl;
	int rc = 0;

	for (uint64_t i = first; i < first + n && !rc; i++) {
		rc = refcount_slice(s, i, &sl);
		if (rc)
			break;
		refs = refcount_get(s, sl, i);
		if (!refs || (packed && refs < refcount_max(s)))
			refcount_set(s, sl, i, refs + 1);
		cache_unpin(&s->ref, sl);
	}
	return rc == -ENOENT ? -EINVAL : rc;
}

static int apply_l1(struct qcow2 *s, const struct crashlog_record *r)
{
	if (l1_entry(s, r->where) == r->entry)
		return 0;
	qcow2_l1_set(s, r->where, r->entry);
	return s->node->read_only ? 0 : qcow2_meta_add(s, r->entry & QCOW2_OFFSET, 1);
}

static int apply_l2(struct qcow2 *s, const struct crashlog_record *r)
{
	uint64_t step = r->step_bits ? 1ull << r->step_bits : 0, entry = r->entry;
	uint64_t guest = r->where, left = r->count, slice = 1ull << s->slice_shift;
	struct slice *sl;
	int rc = 0;

	for (uint64_t n; left && !rc; left -= n, guest += n << s->cluster_bits, entry += n * step) {
		n = min_u64(left, (align_down(guest, slice) + slice - guest) >> s->cluster_bits);
		rc = qcow2_slice_load(s, guest >> s->slice_shift, &sl);
		if (rc)
			break;
		if (!sl)
			return -EINVAL;		/* its table is not known */
		qcow2_put_entries(s, sl, guest, n, entry, step, r->bits);
		if (s->node->read_only)
			continue;		/* stays pinned */
		cache_dirty(&s->l2, sl);
		cache_unpin(&s->l2, sl);
	}
	return rc;
}

/* All records of one kind; *N: how many there were. */
static int each(struct qcow2 *s, const uint8_t *file, unsigned kind,
		int (*fn)(struct qcow2 *s, const struct crashlog_record *r), uint64_t *n)
{
	const struct crashlog_head *h = head_of(file);
	int rc = 0;

	for (uint64_t i = h->begin; i != h->end && !rc; i++) {
		const struct crashlog_record *r = record(file, i);

		if (!makes_sense(s, r))
			return -EINVAL;
		if (!(r->kind & kind))
			continue;
		rc = fn(s, r);
		*n += !rc;
	}
	return rc;
}

static int apply(struct qcow2 *s, const uint8_t *file, uint64_t *n)
{
	uint64_t counted = 0;
	int rc = 0;

	if (!s->node->read_only)
		rc = each(s, file, CRASHLOG_L1 | CRASHLOG_L2, count_record, &counted);
	if (!rc)
		rc = each(s, file, CRASHLOG_L1, apply_l1, n);
	if (!rc)
		rc = each(s, file, CRASHLOG_L2, apply_l2, n);
	return rc;
}

int qcow2_replay(struct qcow2 *s, struct error *err)
{
	uint8_t *file = s->node->force_share || s->snapshot ? NULL : read_log(s);
	uint64_t n = 0;
	int rc;

	if (!file)
		return 0;
	if (head_of(file)->lost)
		log_error("the crash log was full once, acknowledged writes may be missing: image=%s",
			  qcow2_name(s));
	rc = apply(s, file, &n);
	if (rc == -EINVAL) {
		log_error("the crash log is damaged, acknowledged writes may be missing: image=%s records=%" PRIu64,
			  qcow2_name(s), n);
		rc = 0;
	}
	free(file);
	if (!rc && !s->node->read_only)
		rc = qcow2_flush_all(s);
	if (rc)
		return error_errno(err, rc, "Could not replay the crash log of '%s'", qcow2_name(s));
	if (n)
		log_info("crash log replayed%s: image=%s records=%" PRIu64,
			 s->node->read_only ? " in memory" : "", qcow2_name(s), n);
	return 0;
}
