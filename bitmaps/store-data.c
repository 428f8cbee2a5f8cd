/* SPDX-License-Identifier: BSD-3-Clause */
/* store-data: one bitmap's table and clusters in a qcow2 image.
 *
 * Loading.  The table comes from a stranger: its size must be the one that the
 * disk's size asks for, and every entry is checked before the first is followed.
 * What all bitmaps of an image may cost together is bounded too (the budget), as
 * a table of "all ones" takes no space in the image.
 *
 * Writing.  Always into new clusters; nothing refers to them until the header does
 * (store.c), so there is no order to keep here.  Clusters whose bits are all equal
 * take no space.
 *
 * Freeing.  Each cluster of a table that is sane as a whole, once.
 */

#include "bitmaps/store-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps/bits.h"
#include "common/bytes.h"
#include "common/log.h"

#define PIECE (1u << 20)	/* bytes that are read or written at a time */

/* The file has 64-bit little-endian words' worth of bits; so has memory, here. */
static void swap_words(uint64_t *v, size_t n)
{
	if (htole64(1) == 1)
		return;
	for (size_t i = 0; i < n; i++)
		v[i] = htole64(v[i]);
}

static int runs_add(struct store_runs *r, uint64_t off, uint64_t count)
{
	if (r->n == r->max) {
		size_t max = r->max ? r->max * 2 : 16;
		void *v = realloc(r->v, max * sizeof(*r->v));

		if (!v)
			return -ENOMEM;
		r->v = v;
		r->max = max;
	}
	r->v[r->n].off = off;
	r->v[r->n++].count = count;
	return 0;
}

void store_runs_drop(struct store_runs *r)
{
	free(r->v);
	*r = (struct store_runs){ 0 };
}

void store_runs_undo(struct node *n, struct store_runs *r)
{
	for (size_t i = 0; i < r->n; i++)
		qcow2_free_clusters(n, r->v[i].off, r->v[i].count);
	store_runs_drop(r);
}

int64_t store_write_new(struct node *n, const void *data, size_t len, struct store_runs *r)
{
	uint64_t count = len / qcow2_cluster_size(n);
	int64_t off = qcow2_alloc_clusters(n, count);
	int rc;

	if (off < 0)
		return off;
	rc = runs_add(r, (uint64_t)off, count);
	if (rc < 0) {
		qcow2_free_clusters(n, (uint64_t)off, count);
		return rc;
	}
	rc = qcow2_meta_write(n, data, (uint64_t)off, len);
	return rc < 0 ? rc : off;
}

/* E's table in host byte order, every entry valid; NULL with *RC and *WHY set. */
static uint64_t *read_table(struct node *n, const struct dir_entry *e, int *rc, const char **why)
{
	uint64_t cs = qcow2_cluster_size(n);
	size_t len = (size_t)e->table_size * 8;
	uint64_t *v;

	*rc = -EINVAL;
	*why = "its table is outside the image";
	if (!e->table_size || e->table_size > TABLE_ENTRIES_MAX || !e->table_offset ||
	    !qcow2_meta_range_ok(n, e->table_offset, len))
		return NULL;
	v = malloc(len);
	*why = v ? "its table cannot be read" : "out of memory";
	*rc = v ? qcow2_meta_read(n, v, e->table_offset, len) : -ENOMEM;
	for (uint32_t i = 0; i < e->table_size && *rc == 0; i++) {
		uint64_t off;

		v[i] = be64toh(v[i]);
		off = v[i] & TABLE_OFFSET;
		if (off ? v[i] != off || !qcow2_meta_range_ok(n, off, cs) : v[i] > TABLE_ONES)
			*rc = -EINVAL;
		*why = "its table has an invalid entry";
	}
	if (*rc == 0)
		return v;
	free(v);
	return NULL;
}

/* What the table makes us read and keep, in bytes. */
static uint64_t table_cost(const uint64_t *table, uint32_t size, uint64_t cs)
{
	uint64_t cost = (uint64_t)size * 8;

	for (uint32_t i = 0; i < size; i++)
		if (table[i])
			cost += cs;
	return cost;
}

/* How many entries from I on are adjacent in the file, in one piece at most. */
static uint32_t adjacent(const uint64_t *table, uint32_t i, uint32_t size, uint64_t cs)
{
	uint32_t n = 1;

	while (i + n < size && n * cs < PIECE && table[i + n] == table[i] + n * cs)
		n++;
	return n;
}

static int read_bits(struct bitmap *b, const uint64_t *table, uint32_t size)
{
	uint64_t cs = qcow2_cluster_size(b->node), granules = bitmap_granules(b);
	uint64_t bytes = bitmap_data_bytes(b->size, b->granularity_bits);
	uint32_t n;

	for (uint32_t i = 0; i < size; i += n) {
		uint64_t pos = i * cs, len;
		int rc;

		n = 1;
		if (table[i] == TABLE_ONES)
			bits_set(b->bits, pos * 8, min_u64((pos + cs) * 8, granules) - 1);
		if (table[i] <= TABLE_ONES)
			continue;
		n = adjacent(table, i, size, cs);
		len = min_u64(n * cs, bytes - pos);
		rc = qcow2_meta_read(b->node, (uint8_t *)b->bits + pos, table[i], len);
		if (rc < 0)
			return rc;
		swap_words(b->bits + pos / 8, DIV_ROUND_UP(len, 8));
	}
	if (granules % 64)
		b->bits[granules / 64] &= ~(~0ull << (granules % 64));
	b->dirty = bits_count(b->bits, DIV_ROUND_UP(granules, 64));
	return 0;
}

int store_load_bits(struct bitmap *b, const struct dir_entry *e, uint64_t *budget,
		    const char **why)
{
	uint64_t cs = qcow2_cluster_size(b->node), cost;
	uint64_t bytes = bitmap_data_bytes(b->size, b->granularity_bits);
	uint64_t *table;
	int rc;

	*why = "its size is not the disk's";
	if (e->table_size != DIV_ROUND_UP(bytes, cs))
		return -EINVAL;
	table = read_table(b->node, e, &rc, why);
	if (!table)
		return rc;
	cost = table_cost(table, e->table_size, cs);
	if (cost <= *budget) {
		*budget -= cost;
		*why = "its data cannot be read";
		rc = read_bits(b, table, e->table_size);
	} else {
		*why = "the image's bitmaps need too much memory";
		rc = -E2BIG;
	}
	free(table);
	return rc;
}

enum chunk { CHUNK_ZEROES, CHUNK_ONES, CHUNK_DATA };

/* What the bits of cluster I are like. */
static enum chunk chunk_kind(const struct bitmap *b, uint64_t i, uint64_t cs)
{
	uint64_t first = i * cs * 8, end = min_u64(first + cs * 8, bitmap_granules(b));

	if (bits_next_set(b->bits, first, end) == end)
		return CHUNK_ZEROES;
	return bits_next_clear(b->bits, first, end) == end ? CHUNK_ONES : CHUNK_DATA;
}

/* Writes N clusters of bits from cluster I on, through BUF; their offset or -errno. */
static int64_t write_piece(struct bitmap *b, uint64_t i, uint64_t n, uint8_t *buf,
			   struct store_runs *r)
{
	uint64_t cs = qcow2_cluster_size(b->node), pos = i * cs, len = n * cs;
	uint64_t bytes = align_up(bitmap_data_bytes(b->size, b->granularity_bits), 8);
	uint64_t have = min_u64(len, bytes - pos);

	memcpy(buf, (const uint8_t *)b->bits + pos, have);
	memset(buf + have, 0, len - have);
	swap_words((uint64_t *)(void *)buf, have / 8);
	return store_write_new(b->node, buf, len, r);
}

static int write_chunks(struct bitmap *b, uint8_t *table, uint64_t entries, uint8_t *buf,
			struct store_runs *r)
{
	uint64_t cs = qcow2_cluster_size(b->node), n;
	int64_t off;

	for (uint64_t i = 0; i < entries; i += n) {
		enum chunk kind = chunk_kind(b, i, cs);

		n = 1;
		if (kind != CHUNK_DATA) {
			put_be64(table + i * 8, kind == CHUNK_ONES ? TABLE_ONES : 0);
			continue;
		}
		while (i + n < entries && (n + 1) * cs <= PIECE &&
		       chunk_kind(b, i + n, cs) == CHUNK_DATA)
			n++;
		off = write_piece(b, i, n, buf, r);
		if (off < 0)
			return (int)off;
		for (uint64_t k = 0; k < n; k++)
			put_be64(table + (i + k) * 8, (uint64_t)off + k * cs);
	}
	return 0;
}

int store_write_bits(struct bitmap *b, struct dir_entry *e, struct store_runs *r)
{
	uint64_t cs = qcow2_cluster_size(b->node);
	uint64_t entries = DIV_ROUND_UP(bitmap_data_bytes(b->size, b->granularity_bits), cs);
	size_t len = align_up(entries * 8, cs);
	uint8_t *table = NULL, *buf = NULL;
	int64_t off = -EINVAL;
	int rc;

	if (!entries || entries > TABLE_ENTRIES_MAX)
		return -EINVAL;
	table = calloc(1, len);
	buf = malloc(max_u64(cs, PIECE));
	rc = table && buf ? write_chunks(b, table, entries, buf, r) : -ENOMEM;
	if (rc == 0)
		off = store_write_new(b->node, table, len, r);
	free(table);
	free(buf);
	if (rc < 0 || off < 0)
		return rc < 0 ? rc : (int)off;
	e->table_offset = (uint64_t)off;
	e->table_size = (uint32_t)entries;
	return 0;
}

static int offset_cmp(const void *a, const void *b)
{
	uint64_t x, y;

	memcpy(&x, a, sizeof(x));
	memcpy(&y, b, sizeof(y));
	return (x > y) - (x < y);
}

/* Sorts the table's offsets; false when a cluster is there twice, or is the table's own. */
static bool each_once(uint64_t *v, uint32_t n, const struct dir_entry *e, uint64_t cs)
{
	qsort(v, n, sizeof(*v), offset_cmp);
	for (uint32_t i = 0; i < n; i++) {
		if (v[i] <= TABLE_ONES)
			continue;
		if (i && v[i] == v[i - 1])
			return false;
		if (ranges_overlap(v[i], cs, e->table_offset, (uint64_t)n * 8))
			return false;
	}
	return true;
}

void store_free_entry(struct node *n, const struct dir_entry *e)
{
	uint64_t cs = qcow2_cluster_size(n);
	const char *why;
	uint64_t *v;
	uint32_t count;
	int rc;

	v = read_table(n, e, &rc, &why);
	if (!v || !each_once(v, e->table_size, e, cs)) {
		log_warning("clusters of a removed bitmap are not freed, as its table is damaged; "
			    "'qemu-img check -r leaks' finds them node=%s bitmap=%s",
			    n->name, e->name);
		free(v);
		return;
	}
	for (uint32_t i = 0; i < e->table_size; i += count) {
		count = 1;
		if (v[i] <= TABLE_ONES)
			continue;
		count = adjacent(v, i, e->table_size, cs);
		qcow2_free_clusters(n, v[i], count);
	}
	free(v);
	qcow2_free_clusters(n, e->table_offset, DIV_ROUND_UP((uint64_t)e->table_size * 8, cs));
}
