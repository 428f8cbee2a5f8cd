/* SPDX-License-Identifier: BSD-3-Clause */
/* store-dir: the bitmap directory as bytes (the format is in store-dir.h).
 *
 * Everything here is a function of the bytes: no storage, no node.  The bytes stay
 * as they were read but for the fields that are changed on purpose, so extra data
 * and unknown entries survive any number of rewrites.
 */

#include "bitmaps/store-dir.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps/bitmap.h"
#include "common/bytes.h"
#include "common/checked.h"

/* Offsets of the fields. */
enum { AT_TABLE_OFFSET = 0, AT_TABLE_SIZE = 8, AT_FLAGS = 12, AT_TYPE = 16,
       AT_GRANULARITY = 17, AT_NAME_LEN = 18, AT_EXTRA_LEN = 20 };

/* Bytes of the entry at P, of which ROOM are there; 0 when it does not fit. */
static size_t entry_len(const uint8_t *p, size_t room)
{
	uint64_t len;

	if (room < DIR_ENTRY_HEAD)
		return 0;
	len = DIR_ENTRY_HEAD + (uint64_t)get_be32(p + AT_EXTRA_LEN) + get_be16(p + AT_NAME_LEN);
	len = align_up(len, 8);
	return len <= room ? (size_t)len : 0;
}

struct name {
	const uint8_t *p;
	size_t len;
};

static int name_cmp(const void *a, const void *b)
{
	const struct name *x = a, *y = b;
	int c = memcmp(x->p, y->p, min_u64(x->len, y->len));

	return c ? c : (x->len > y->len) - (x->len < y->len);
}

static struct name name_at(const struct directory *d, uint32_t i)
{
	const uint8_t *p = d->bytes + d->pos[i];

	return (struct name){ .p = p + DIR_ENTRY_HEAD + get_be32(p + AT_EXTRA_LEN),
			      .len = get_be16(p + AT_NAME_LEN) };
}

static int check_names(const struct directory *d, struct error *err)
{
	struct name *v = calloc(d->n ? d->n : 1, sizeof(*v));
	int rc = 0;

	if (!v)
		return error_set(err, -ENOMEM, "out of memory");
	for (uint32_t i = 0; i < d->n; i++)
		v[i] = name_at(d, i);
	qsort(v, d->n, sizeof(*v), name_cmp);
	for (uint32_t i = 1; i < d->n && rc == 0; i++)
		if (v[i].len && name_cmp(&v[i - 1], &v[i]) == 0)
			rc = error_set(err, -EINVAL, "two bitmaps have the same name");
	free(v);
	return rc;
}

static int parse(struct directory *d, struct error *err)
{
	size_t pos = 0, len;

	if (d->n > BITMAPS_MAX || d->len > DIR_BYTES_MAX)
		return error_set(err, -EINVAL, "%u bitmaps in %zu bytes exceed the limits",
				 d->n, d->len);
	d->pos = calloc(d->n ? d->n : 1, sizeof(*d->pos));
	if (!d->pos)
		return error_set(err, -ENOMEM, "out of memory");
	for (uint32_t i = 0; i < d->n; i++, pos += len) {
		len = entry_len(d->bytes + pos, d->len - pos);
		if (!len)
			return error_set(err, -EINVAL, "entry %u runs past the end", i);
		d->pos[i] = pos;
	}
	if (pos != d->len)
		return error_set(err, -EINVAL, "%zu bytes are left behind the last entry",
				 d->len - pos);
	return check_names(d, err);
}

int dir_parse(struct directory *d, uint8_t *bytes, size_t len, uint32_t n, struct error *err)
{
	int rc;

	*d = (struct directory){ .bytes = bytes, .len = len, .n = n };
	rc = parse(d, err);
	if (rc < 0)
		dir_free(d);
	return rc;
}

void dir_free(struct directory *d)
{
	free(d->bytes);
	free(d->pos);
	*d = (struct directory){ 0 };
}

void dir_get(const struct directory *d, uint32_t i, struct dir_entry *e)
{
	const uint8_t *p = d->bytes + d->pos[i];
	struct name name = name_at(d, i);

	*e = (struct dir_entry){
		.pos = d->pos[i],
		.len = (uint32_t)((i + 1 < d->n ? d->pos[i + 1] : d->len) - d->pos[i]),
		.table_offset = get_be64(p + AT_TABLE_OFFSET),
		.table_size = get_be32(p + AT_TABLE_SIZE),
		.flags = get_be32(p + AT_FLAGS),
		.type = p[AT_TYPE],
		.granularity_bits = p[AT_GRANULARITY],
		.name_len = get_be16(p + AT_NAME_LEN),
		.extra_len = get_be32(p + AT_EXTRA_LEN),
	};
	if (name.len <= DIR_NAME_MAX && !memchr(name.p, 0, name.len) &&
	    utf8_valid(name.p, name.len))
		memcpy(e->name, name.p, name.len);
}

int64_t dir_find(const struct directory *d, const char *name, uint32_t hint)
{
	struct name want = { .p = (const uint8_t *)name, .len = strlen(name) };

	for (uint32_t k = 0; k < d->n; k++) {
		uint32_t i = (hint + k) % d->n;
		struct name have = name_at(d, i);

		if (name_cmp(&want, &have) == 0)
			return i;
	}
	return -1;
}

bool dir_set_flags(struct directory *d, uint32_t i, uint32_t flags)
{
	uint8_t *p = d->bytes + d->pos[i] + AT_FLAGS;

	if (get_be32(p) == flags)
		return false;
	put_be32(p, flags);
	return true;
}

void dir_set_table(struct directory *d, uint32_t i, uint64_t offset, uint32_t size)
{
	put_be64(d->bytes + d->pos[i] + AT_TABLE_OFFSET, offset);
	put_be32(d->bytes + d->pos[i] + AT_TABLE_SIZE, size);
}

void dir_delete(struct directory *d, uint32_t i)
{
	size_t end = i + 1 < d->n ? d->pos[i + 1] : d->len, len = end - d->pos[i];

	memmove(d->bytes + d->pos[i], d->bytes + end, d->len - end);
	d->len -= len;
	d->n--;
	for (; i < d->n; i++)
		d->pos[i] = d->pos[i + 1] - len;
}

int dir_append(struct directory *d, struct dir_entry *e)
{
	size_t name_len = strlen(e->name), len = align_up(DIR_ENTRY_HEAD + name_len, 8);
	uint8_t *bytes, *p;
	size_t *pos;

	if (d->n >= BITMAPS_MAX || d->len + len > DIR_BYTES_MAX)
		return -ENOSPC;
	pos = realloc(d->pos, (d->n + 1) * sizeof(*pos));
	if (!pos)
		return -ENOMEM;
	d->pos = pos;
	bytes = realloc(d->bytes, d->len + len);
	if (!bytes)
		return -ENOMEM;
	d->bytes = bytes;
	p = bytes + d->len;
	memset(p, 0, len);
	put_be64(p + AT_TABLE_OFFSET, e->table_offset);
	put_be32(p + AT_TABLE_SIZE, e->table_size);
	put_be32(p + AT_FLAGS, e->flags);
	p[AT_TYPE] = DIR_TYPE_DIRTY;
	p[AT_GRANULARITY] = e->granularity_bits;
	p[AT_NAME_LEN] = (uint8_t)(name_len >> 8);
	p[AT_NAME_LEN + 1] = (uint8_t)name_len;
	memcpy(p + DIR_ENTRY_HEAD, e->name, name_len);
	e->pos = pos[d->n++] = d->len;
	e->len = (uint32_t)len;
	d->len += len;
	return 0;
}

const char *dir_entry_problem(const struct dir_entry *e)
{
	if (e->type != DIR_TYPE_DIRTY)
		return "unknown type";
	if (e->flags & ~(uint32_t)DIR_FLAGS_KNOWN)
		return "unknown flags";
	if (e->extra_len && !(e->flags & DIR_EXTRA_COMPATIBLE))
		return "unknown extra data";
	if (!e->name_len)
		return "no name";
	if (!e->name[0])
		return "bad name";
	if (1ull << min_u64(e->granularity_bits, 63) < BITMAP_GRANULARITY_MIN ||
	    1ull << min_u64(e->granularity_bits, 63) > BITMAP_GRANULARITY_MAX)
		return "granularity out of range";
	return NULL;
}
