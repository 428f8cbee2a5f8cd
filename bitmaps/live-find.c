// SPDX-License-Identifier: BSD-3-Clause
/* live-find: the bits that an earlier process left beside an image.
 *
 * The file may be a stranger's, a truncated copy or an older one: its head must name this
 * image, its session must be the one that the image names, checksums must match, and every
 * number is bounded.  Which table counts, and whether marked regions are added, is in live.h.
 */
#include "bitmaps/live-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps/bits.h"

#define PIECE (1u << 20)	/* bytes that are read at a time */

static const char *head_problem(const struct live_head *h, const uint8_t *session)
{
	if (memcmp(h->magic, LIVE_MAGIC, sizeof(h->magic)))
		return "it was given up";
	if (h->version != LIVE_VERSION || h->order != LIVE_ORDER || h->head_bytes != LIVE_HEAD)
		return "it is of another version or machine";
	if (h->crc != live_crc(h, offsetof(struct live_head, crc)))
		return "its checksum does not match";
	if (h->table_bytes < LIVE_PAGE || h->table_bytes % LIVE_PAGE || h->table_bytes > LIVE_TABLE_MAX)
		return "its tables make no sense";
	if (session && memcmp(h->session, session, LIVE_SESSION))
		return "it is of another session";
	return NULL;
}

static int read_exactly(struct io_file *f, void *p, size_t len, uint64_t off)
{
	ssize_t n = io_pread(f, p, len, off);

	return n < 0 ? (int)n : (size_t)n == len ? 0 : -EINVAL;
}

/* Of the two tables at P, the valid one with the higher number; NULL: none is. */
static const uint8_t *newest(const uint8_t *p, uint32_t bytes, struct live_table_head *h)
{
	struct live_table_head a, b;
	bool a_ok = live_table_valid(p, bytes, &a), b_ok = live_table_valid(p + bytes, bytes, &b);

	if (!a_ok && !b_ok)
		return NULL;
	if (a_ok && (!b_ok || a.seq > b.seq)) {
		*h = a;
		return p;
	}
	*h = b;
	return p + bytes;
}

static int read_tables(struct live_found *f, const char **why)
{
	uint32_t bytes = f->head.table_bytes;
	int64_t size = io_size(f->file.f);
	uint8_t *all = malloc(4ull * bytes);
	const uint8_t *p = NULL;
	uint32_t n = 0;
	int rc;

	if (!all)
		return -ENOMEM;
	*why = "its tables cannot be read";
	rc = size < 0 ? (int)size : read_exactly(f->file.f, all, 4ull * bytes, LIVE_HEAD);
	if (!rc && f->same_boot)
		p = newest(all, bytes, &f->table);
	if (!rc && !p) {
		f->same_boot = false;
		p = newest(all + 2ull * bytes, bytes, &f->table);
	}
	if (!rc && !p) {
		*why = "it has no valid table";
		rc = -EINVAL;
	}
	if (!rc)
		rc = live_table_parse(p, &f->table, LIVE_HEAD + 4ull * bytes, (uint64_t)size, &f->v, &n, why);
	f->table.entries = n;		/* of those that are known */
	free(all);
	return rc;
}

static int read_head(struct io_file *image, enum live_kind kind, const uint8_t *session,
		     struct live_found *f, const char **why)
{
	struct io_identity id;
	int rc;

	*why = "it cannot be read";
	rc = read_exactly(f->file.f, &f->head, sizeof(f->head), 0);
	if (!rc)
		rc = io_identity(image, &id);
	if (rc)
		return rc;
	*why = head_problem(&f->head, session);
	if (*why)
		return -EINVAL;
	*why = "it is of another kind of image";
	if (f->head.kind != (uint32_t)kind)
		return -EMEDIUMTYPE;
	rc = read_exactly(f->file.f, &f->stamp, sizeof(f->stamp), LIVE_STAMP);
	if (rc)
		return rc;
	f->same_boot = !memcmp(id.boot, f->head.boot, sizeof(id.boot));
	/* Devices may have other numbers after a start of the machine. */
	*why = "it is of another file";
	return id.ino == f->head.ino && (!f->same_boot || id.dev == f->head.dev) ? 0 : -EINVAL;
}

static int read_marks(struct io_file *image, const char *dir, struct live_found *f, const char **why)
{
	if (f->same_boot || f->table.flags & LIVE_CLOSED)
		return 0;
	*why = "out of memory";
	f->marks = calloc(1, sizeof(*f->marks));
	return f->marks ? regions_read(image, dir, f->head.session, f->marks, why) : -ENOMEM;
}

int live_find(struct io_file *image, const char *dir, enum live_kind kind, const uint8_t *session,
	      struct live_found *f, const char **why)
{
	int rc;

	*f = (struct live_found){ 0 };
	*why = "it cannot be opened";
	rc = io_beside_open(image, dir, LIVE_SUFFIX, &f->file);
	if (!rc)
		rc = read_head(image, kind, session, f, why);
	if (!rc)
		rc = read_tables(f, why);
	if (!rc)
		rc = read_marks(image, dir, f, why);
	if (rc)
		live_found_end(f);
	return rc;
}

int64_t live_found_name(const struct live_found *f, const char *name)
{
	for (uint32_t i = 0; i < f->table.entries; i++)
		if (!strcmp(f->v[i].name, name))
			return i;
	return -1;
}

static void add_marks(struct bitmap *b, const struct live_marks *m)
{
	for (uint64_t i = 0; (i = bits_next_set(m->v, i, REGIONS_MAX)) < REGIONS_MAX; i++)
		if (i << m->region_bits < b->size)
			bitmap_set(b, i << m->region_bits, 1ull << m->region_bits);
}

int live_found_bits(struct live_found *f, uint32_t i, struct bitmap *b, uint64_t *budget)
{
	const struct live_entry_head *h = &f->v[i].h;
	uint64_t granules = min_u64(bitmap_granules(b), DIV_ROUND_UP(h->size, bitmap_granularity(b)));
	uint64_t bytes = DIV_ROUND_UP(granules, 8), now;
	int rc = 0;

	if (h->flags & LIVE_INCONSISTENT || h->granularity_bits != b->granularity_bits)
		return -EINVAL;
	if (bytes > *budget)
		return -E2BIG;
	*budget -= bytes;
	for (uint64_t at = 0; at < bytes && !rc; at += now) {
		now = min_u64(bytes - at, PIECE);
		rc = read_exactly(f->file.f, (uint8_t *)b->bits + at, now, h->off + at);
	}
	if (rc)
		return rc;
	if (granules % 64)
		b->bits[granules / 64] &= ~(~0ull << (granules % 64));
	b->dirty = bits_count(b->bits, DIV_ROUND_UP(granules, 64));
	b->changed = true;
	b->shrunk = h->flags & LIVE_SHRUNK || h->size > b->size;
	if (f->marks && h->flags & LIVE_RECORDING)
		add_marks(b, f->marks);
	return 0;
}

void live_found_remove(struct live_found *f)
{
	io_beside_end(&f->file, true);
}

void live_found_end(struct live_found *f)
{
	io_beside_end(&f->file, false);
	free(f->v);
	free(f->marks);
	*f = (struct live_found){ 0 };
}
