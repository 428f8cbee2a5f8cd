// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-header-write: the header changes in the file.
 *
 * A power loss leaves the old or the new one.  A sector (512 bytes) is the most
 * that storage writes atomically, and the header may be longer.  So the new bytes
 * are compared with the old ones sector by sector, and what differs is written in
 * this order, each step durable before the next:
 *
 *	1. autoclear bits that go away (sector 0): nobody follows what they vouched for
 *	2. when the extensions will need the room of the backing name: a copy of the
 *	   name in free room, then (sector 0) the field that points to it
 *	3. all changed sectors but the first of them: the end of the old list of
 *	   extensions is in front of them, or their change is of no consequence
 *	4. the first changed sector
 *
 * Usually there is one changed sector, and one write.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

#define SECTOR 512u

static uint64_t extensions_end(const struct qcow2_header *h)
{
	uint64_t at = h->length;

	for (unsigned i = 0; i < h->n_ext; i++)
		at += 8 + align_up(h->ext[i].len, 8);
	return at + 8;
}

static void put_fields(const struct qcow2_header *h, uint8_t *p)
{
	put_be64(p + H_BACKING_OFFSET, h->backing_name ? h->backing_offset : 0);
	put_be32(p + H_BACKING_SIZE, h->backing_name ? strlen(h->backing_name) : 0);
	put_be64(p + H_SIZE, h->size);
	put_be32(p + H_L1_SIZE, h->l1_size);
	put_be64(p + H_L1_OFFSET, h->l1_offset);
	put_be64(p + H_REFTABLE_OFFSET, h->reftable_offset);
	put_be32(p + H_REFTABLE_CLUSTERS, h->reftable_clusters);
	put_be32(p + H_NB_SNAPSHOTS, h->nb_snapshots);
	put_be64(p + H_SNAPSHOTS_OFFSET, h->snapshots_offset);
	if (h->version == 2)
		return;
	put_be64(p + H_INCOMPATIBLE, h->incompatible);
	put_be64(p + H_COMPATIBLE, h->compatible);
	put_be64(p + H_AUTOCLEAR, h->autoclear);
}

/* The bytes that S->h stands for; the old ones' fields that we do not know stay. */
static uint8_t *build(const struct qcow2_header *h, size_t *n)
{
	uint64_t at = h->length;
	uint8_t *p;

	*n = extensions_end(h);
	if (h->backing_name)
		*n = max_u64(*n, h->backing_offset + strlen(h->backing_name));
	p = calloc(1, *n);
	if (!p)
		return NULL;
	memcpy(p, h->bytes, h->length);
	put_fields(h, p);
	for (unsigned i = 0; i < h->n_ext; i++) {
		put_be32(p + at, h->ext[i].type);
		put_be32(p + at + 4, h->ext[i].len);
		memcpy(p + at + 8, h->ext[i].data, h->ext[i].len);
		at += 8 + align_up(h->ext[i].len, 8);
	}
	if (h->backing_name)
		memcpy(p + h->backing_offset, h->backing_name, strlen(h->backing_name));
	return p;
}

/* Brings [from, to) of the file's header to the bytes at P, durably. */
static int put_at(struct qcow2 *s, const void *p, size_t from, size_t to)
{
	struct qcow2_header *h = &s->h;
	uint8_t *longer;
	int rc;

	if (to > h->n_bytes) {
		longer = realloc(h->bytes, to);
		if (!longer)
			return -ENOMEM;
		memset(longer + h->n_bytes, 0, to - h->n_bytes);
		h->bytes = longer;
		h->n_bytes = to;
	}
	rc = qcow2_file_write(s, p, from, to - from, NODE_FUA);
	if (!rc)
		memcpy(h->bytes + from, p, to - from);
	return rc;
}

/* P is a whole header. */
static int put_bytes(struct qcow2 *s, const uint8_t *p, size_t from, size_t to)
{
	return put_at(s, p + from, from, to);
}

/* One field of sector 0, with the others as the file has them. */
static int put_field64(struct qcow2 *s, unsigned field, uint64_t value)
{
	size_t n = min_u64(s->h.n_bytes, SECTOR);
	uint8_t first[SECTOR];

	memcpy(first, s->h.bytes, n);
	put_be64(first + field, value);
	return put_bytes(s, first, 0, n);
}

/* Both fields of the backing name are in sector 0: one write changes it. */
int qcow2_header_point(struct qcow2 *s, uint64_t off, const char *name)
{
	struct qcow2_header *h = &s->h;
	uint8_t first[SECTOR] = { 0 };
	int rc = 0;

	co_mutex_lock(&h->lock);
	if (name)
		rc = put_at(s, name, off, off + strlen(name));
	memcpy(first, h->bytes, min_u64(h->n_bytes, SECTOR));
	put_be64(first + H_BACKING_OFFSET, name ? off : 0);
	put_be32(first + H_BACKING_SIZE, name ? strlen(name) : 0);
	if (!rc)
		rc = put_bytes(s, first, 0, min_u64(h->n_bytes, SECTOR));
	co_mutex_unlock(&h->lock);
	return rc;
}

/* Whether what ends at END and the backing name fit the cluster. */
static bool fits(const struct qcow2 *s, uint64_t end)
{
	const struct qcow2_header *h = &s->h;

	return end <= s->cluster_size && (!h->backing_name || h->backing_offset >= end ||
					  end + strlen(h->backing_name) <= s->cluster_size);
}

/* Whether extensions and backing name fit: asked before the first change. */
bool qcow2_header_has_room(const struct qcow2 *s)
{
	return fits(s, extensions_end(&s->h));
}

/* Whether they would without those that an open may drop. */
bool qcow2_header_may_have_room(struct qcow2 *s)
{
	static const uint32_t types[] = { QCOW2_EXT_OPEN, QCOW2_EXT_LIVE, QCOW2_EXT_BITMAPS };
	uint64_t end = extensions_end(&s->h);

	for (unsigned i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		const struct qcow2_ext *e = qcow2_ext_find(&s->h, types[i]);

		if (e)
			end -= 8 + align_up(e->len, 8);
	}
	return fits(s, end);
}

/* Makes room for the extensions: the backing name moves behind them. */
static int move_backing_name(struct qcow2 *s)
{
	struct qcow2_header *h = &s->h;
	uint64_t len, end = extensions_end(h), to;
	uint8_t *p;
	int rc;

	if (!h->backing_name || h->backing_offset >= end)
		return 0;
	len = strlen(h->backing_name);
	to = max_u64(end, h->n_bytes);
	to = to + 64 + len <= s->cluster_size ? align_up(to + 64 - 8, 8) : to;
	if (to + len > s->cluster_size) {	/* no room for a copy: in one step */
		h->backing_offset = end;
		return 0;
	}
	p = calloc(1, to + len);
	if (!p)
		return -ENOMEM;
	memcpy(p + to, h->backing_name, len);
	rc = put_bytes(s, p, to, to + len);
	free(p);
	if (!rc)
		rc = put_field64(s, H_BACKING_OFFSET, to);
	if (!rc)
		h->backing_offset = to;
	return rc;
}

static int put_changes(struct qcow2 *s, const uint8_t *p, size_t n)
{
	const struct qcow2_header *h = &s->h;
	size_t first = SIZE_MAX, second = SIZE_MAX, end = 0;
	int rc = 0;

	for (size_t at = 0; at < n; at += SECTOR) {
		size_t to = min_u64(at + SECTOR, n);

		if (to <= h->n_bytes && !memcmp(p + at, h->bytes + at, to - at))
			continue;
		if (first == SIZE_MAX)
			first = at;
		else if (second == SIZE_MAX)
			second = at;
		end = to;
	}
	if (second != SIZE_MAX)
		rc = put_bytes(s, p, second, end);
	if (!rc && first != SIZE_MAX)
		rc = put_bytes(s, p, first, min_u64(first + SECTOR, n));
	return rc;
}

int qcow2_header_write(struct qcow2 *s)
{
	struct qcow2_header *h = &s->h;
	uint64_t old = 0;
	uint8_t *p;
	size_t n;
	int rc = 0;

	co_mutex_lock(&h->lock);
	if (!(h->autoclear & QCOW2_BITMAPS))
		qcow2_ext_drop(h, QCOW2_EXT_BITMAPS);
	if (h->version > 2)
		old = get_be64(h->bytes + H_AUTOCLEAR);
	if (!qcow2_header_has_room(s))
		rc = -ENOSPC;
	if (!rc && (old & ~h->autoclear))
		rc = put_field64(s, H_AUTOCLEAR, old & h->autoclear);
	if (!rc)
		rc = move_backing_name(s);
	if (!rc) {
		p = build(h, &n);
		rc = p ? put_changes(s, p, n) : -ENOMEM;
		free(p);
	}
	co_mutex_unlock(&h->lock);
	if (rc && rc != -ENOSPC && rc != -ENOMEM) {
		s->flush.failed = true;		/* nobody knows which header the file has */
		crashlog_void(s);
	}
	if (rc)
		log_error("qcow2 header could not be written: image=%s error=%s", qcow2_name(s),
			  strerror(-rc));
	return rc;
}

int qcow2_bitmap_ext_get(struct node *n, struct qcow2_bitmap_ext *ext)
{
	struct qcow2_header *h = &qcow2_of(n)->h;
	const struct qcow2_ext *e = qcow2_ext_find(h, QCOW2_EXT_BITMAPS);

	if (!e || e->len < 24 || !(h->autoclear & QCOW2_BITMAPS))
		return -ENOENT;
	ext->nb_bitmaps = get_be32(e->data);
	ext->directory_size = get_be64(e->data + 8);
	ext->directory_offset = get_be64(e->data + 16);
	return 0;
}

int qcow2_bitmap_ext_set(struct node *n, const struct qcow2_bitmap_ext *ext, struct error *err)
{
	struct qcow2 *s = qcow2_of(n);
	uint8_t data[24] = { 0 };
	int rc;

	if (ext && s->h.version < 3)
		return error_set(err, -ENOTSUP, "Cannot store dirty bitmaps in qcow2 v2 files");
	rc = qcow2_flush_all(s);
	if (rc)
		return error_errno(err, rc, "Could not flush image '%s'", qcow2_name(s));
	if (ext) {
		put_be32(data, ext->nb_bitmaps);
		put_be64(data + 8, ext->directory_size);
		put_be64(data + 16, ext->directory_offset);
		rc = qcow2_ext_put(&s->h, QCOW2_EXT_BITMAPS, data, sizeof(data));
		if (!rc)
			s->h.autoclear |= QCOW2_BITMAPS;
	} else {
		s->h.autoclear &= ~(uint64_t)QCOW2_BITMAPS;
	}
	if (!rc)
		rc = qcow2_header_write(s);
	if (!rc)
		return 0;
	s->h.autoclear &= ~(uint64_t)QCOW2_BITMAPS;	/* whatever got there is not to be trusted */
	return error_errno(err, rc, "Could not update the header of '%s'", qcow2_name(s));
}

bool qcow2_live_get(struct node *n, uint8_t id[16])
{
	struct qcow2_header *h = &qcow2_of(n)->h;
	const struct qcow2_ext *e = qcow2_ext_find(h, QCOW2_EXT_LIVE);

	if (!e || e->len != 16 || !(h->autoclear & QCOW2_LIVE))
		return false;
	memcpy(id, e->data, 16);
	return true;
}

int qcow2_live_set(struct node *n, const uint8_t *id, struct error *err)
{
	struct qcow2 *s = qcow2_of(n);
	int rc = id ? qcow2_ext_put(&s->h, QCOW2_EXT_LIVE, id, 16) : 0;

	if (!id)
		qcow2_live_drop(s);
	else if (!rc && !qcow2_header_has_room(s))
		rc = -ENOSPC;
	else if (!rc)
		s->h.autoclear |= QCOW2_LIVE;
	if (!rc)
		rc = qcow2_header_write(s);
	if (!rc)
		return 0;
	qcow2_live_drop(s);
	return error_errno(err, rc, "Could not update the header of '%s'", qcow2_name(s));
}
