// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-refs: references to clusters are counted (qcow2-refs.h).
 *
 * Everything that a qcow2 image may own is visited: header, L1 tables of the disk and
 * of the internal snapshots, the L2 tables that they point to and what those point to,
 * refcount table and blocks, snapshot table, bitmap directory, tables and bits.  A table
 * that several L1 tables share is read once and counts as often as it is reached.
 *
 * All of it may be a stranger's: pointers outside of the file are not followed, and make
 * the result doubtful; and not more than REFS_BYTES_MAX of tables are read, sixteen at a
 * time where coroutines are to be had.
 */
#include "format/qcow2-refs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2-int.h"

#define REFS_BYTES_MAX (512ull << 20)	/* read in all: 3 TiB at 64 KiB clusters */
#define REFS_CLUSTERS_MAX (1ull << 28)	/* of a file, holes included */
#define REFS_TABLES_MAX (1u << 22)
#define BITMAPS_MAX 65535u
#define READERS 16u

struct reader {
	struct qcow2 *s;
	size_t n, next;
	uint64_t (*where)(const void *arg, size_t i);
	int (*fn)(void *arg, size_t i, const uint8_t *table);
	void *arg;
	unsigned running;
	int rc;
	struct co_queue done;
};

static void read_some(void *arg)
{
	struct reader *r = arg;
	uint8_t *p = aligned_alloc(4096, align_up(r->s->cluster_size, 4096));

	if (!p)
		r->rc = -ENOMEM;
	while (r->next < r->n && !r->rc) {
		size_t i = r->next++;
		int rc = qcow2_file_read(r->s, p, r->where(r->arg, i), r->s->cluster_size);

		if (!rc)
			rc = r->fn(r->arg, i, p);
		if (rc)
			r->rc = rc;
		if (co_self())
			co_yield();
	}
	free(p);
	if (!--r->running)
		co_queue_wake_all(&r->done);
}

int refs_each_table(struct qcow2 *s, size_t n, uint64_t (*where)(const void *arg, size_t i),
		    int (*fn)(void *arg, size_t i, const uint8_t *table), void *arg)
{
	struct reader r = { .s = s, .n = n, .where = where, .fn = fn, .arg = arg };
	unsigned helpers = co_self() ? min_u64(n, READERS) : 0;

	r.running = helpers + 1;
	for (unsigned i = 0; i < helpers; i++)
		co_start(read_some, &r);
	read_some(&r);
	while (r.running)
		co_queue_wait(&r.done);
	return r.rc;
}

/* Bytes of metadata are about to be read. */
static int spend(struct refs *r, uint64_t bytes)
{
	r->bytes_read += bytes;
	return r->bytes_read > REFS_BYTES_MAX ? -E2BIG : 0;
}

bool refs_none(const struct refs *r, uint64_t first, uint64_t n)
{
	uint64_t from = max_u64(first, r->first), to = min_u64(first + n, r->first + r->n);

	return from >= to || bytes_are_zero(r->count + (from - r->first), (to - from) * sizeof(*r->count));
}

/* -- counting -------------------------------------------------------------- */

static inline void add_one(struct refs *r, uint64_t cluster, uint32_t times)
{
	if (refs_in_window(r, cluster)) {
		uint16_t *c = &r->count[cluster - r->first];

		*c = min_u64(*c + (uint64_t)times, REFS_MANY);
	}
}

/* [HOST, HOST + BYTES) is referred to TIMES times. */
static void add(struct refs *r, uint64_t host, uint64_t bytes, uint32_t times)
{
	uint64_t last;

	if (!bytes)
		return;
	if (!host || !checked_range(host, bytes, r->clusters << r->s->cluster_bits)) {
		r->doubtful = true;
		return;
	}
	last = (host + bytes - 1) >> r->s->cluster_bits;
	for (uint64_t c = host >> r->s->cluster_bits; c <= last; c++)
		add_one(r, c, times);
}

/* A pointer of a table: a whole cluster inside the file. */
static inline bool is_cluster(const struct refs *r, uint64_t host)
{
	return host && !qcow2_in_cluster(r->s, host) && host >> r->s->cluster_bits < r->clusters;
}

static uint64_t where_l2(const void *arg, size_t i)
{
	const struct refs *r = arg;

	return r->table[i].host;
}

static int count_l2(void *arg, size_t i, const uint8_t *table)
{
	struct refs *r = arg;
	const struct refs_table *t = &r->table[i];
	const uint8_t *end = table + r->s->cluster_size;
	unsigned entry_bytes = 1u << r->s->entry_shift;
	bool external = r->s->has_data_file, active = t->index != REFS_NOT_ACTIVE;

	if (bytes_are_zero(table, r->s->cluster_size))
		return 0;
	for (const uint8_t *p = table; p < end; p += entry_bytes) {
		uint64_t e = get_be64(p), host = e & QCOW2_OFFSET, len;

		if (!e)
			continue;
		if (e & QCOW2_COMPRESSED) {
			qcow2_compressed_place(r->s, e, &host, &len);
			add(r, host, len, t->times);
		} else if (!external && is_cluster(r, host)) {
			add_one(r, host >> r->s->cluster_bits, t->times);
			if (active && !(e & QCOW2_COPIED))
				r->unsure_copied = true;
		} else if (!external && host) {
			r->doubtful = true;
		}
	}
	return 0;
}

/* -- the L2 tables --------------------------------------------------------- */

static int note_table(struct refs *r, uint64_t host, uint32_t index)
{
	struct refs_table *v;
	size_t max = r->max_tables ? 2 * r->max_tables : 64;

	if (!is_cluster(r, host)) {
		r->doubtful = true;
		return 0;
	}
	if (r->n_tables == REFS_TABLES_MAX)
		return -E2BIG;
	if (r->n_tables == r->max_tables) {
		v = realloc(r->table, max * sizeof(*v));
		if (!v)
			return -ENOMEM;
		r->table = v;
		r->max_tables = max;
	}
	r->table[r->n_tables++] = (struct refs_table){ .host = host, .times = 1, .index = index };
	return 0;
}

static int note_snapshot_tables(struct refs *r, uint64_t l1, uint64_t entries)
{
	uint8_t *p = malloc(1u << 20);
	int rc = p ? spend(r, entries * 8) : -ENOMEM;

	for (uint64_t at = 0, n; at < entries * 8 && !rc; at += n) {
		n = min_u64(entries * 8 - at, 1u << 20);
		rc = qcow2_file_read(r->s, p, l1 + at, n);
		for (uint64_t i = 0; i < n && !rc; i += 8)
			if (get_be64(p + i) & QCOW2_OFFSET)
				rc = note_table(r, get_be64(p + i) & QCOW2_OFFSET, REFS_NOT_ACTIVE);
	}
	free(p);
	return rc;
}

static int by_host(const void *a, const void *b)
{
	const struct refs_table *x = a, *y = b;

	if (x->host != y->host)
		return x->host > y->host ? 1 : -1;
	return (x->index > y->index) - (x->index < y->index);	/* the active one first */
}

static void merge_tables(struct refs *r)
{
	size_t n = 0;

	if (!r->n_tables)
		return;
	qsort(r->table, r->n_tables, sizeof(*r->table), by_host);
	for (size_t i = 1; i < r->n_tables; i++) {
		if (r->table[i].host != r->table[n].host)
			r->table[++n] = r->table[i];
		else
			r->table[n].times++;
	}
	r->n_tables = n + 1;
}

int refs_init(struct refs *r, struct qcow2 *s)
{
	uint64_t blocks = 0;
	int rc = 0;

	*r = (struct refs){ .s = s, .clusters = DIV_ROUND_UP(s->file->size, s->cluster_size) };
	if (r->clusters > REFS_CLUSTERS_MAX)
		return -E2BIG;
	for (uint32_t i = 0; i < s->h.l1_size && !rc; i++)
		if (l1_entry(s, i) & QCOW2_OFFSET)
			rc = note_table(r, l1_entry(s, i) & QCOW2_OFFSET, i);
	for (uint32_t i = 0; i < s->h.nb_snapshots && !rc; i++)
		rc = note_snapshot_tables(r, s->snapshots[i].l1_offset, s->snapshots[i].l1_size);
	if (rc)
		return rc;
	merge_tables(r);
	for (uint64_t i = 0; i < s->reftable_entries; i++)
		blocks += get_be64(s->reftable + i * 8) != 0;
	return (r->n_tables + blocks) << s->cluster_bits > REFS_BYTES_MAX ? -E2BIG : 0;
}

void refs_free(struct refs *r)
{
	free(r->table);
	free(r->count);
}

/* -- what is not guest data ------------------------------------------------ */

static void count_own(struct refs *r)
{
	struct qcow2 *s = r->s;

	add_one(r, 0, 1);
	add(r, s->h.l1_offset, s->h.l1_size * 8ull, 1);
	add(r, s->h.reftable_offset, (uint64_t)s->h.reftable_clusters << s->cluster_bits, 1);
	for (uint64_t i = 0; i < s->reftable_entries; i++) {
		uint64_t block = get_be64(s->reftable + i * 8) & QCOW2_OFFSET;

		if (block)
			add(r, block, s->cluster_size, 1);
	}
	if (s->h.nb_snapshots)
		add(r, s->h.snapshots_offset, s->snapshots_bytes, 1);
	for (uint32_t i = 0; i < s->h.nb_snapshots; i++)
		add(r, s->snapshots[i].l1_offset, s->snapshots[i].l1_size * 8ull, 1);
	for (size_t i = 0; i < r->n_tables; i++) {
		add(r, r->table[i].host, s->cluster_size, r->table[i].times);
		if (r->table[i].index != REFS_NOT_ACTIVE && r->table[i].times > 1)
			r->unsure_copied = true;
	}
}

/* The bits that a bitmap table points to. */
static int count_bitmap(struct refs *r, uint64_t table, uint64_t entries)
{
	uint64_t bytes = entries * 8;
	uint8_t *p;
	int rc = spend(r, bytes);

	if (rc)
		return rc;
	if (!entries || !table || qcow2_in_cluster(r->s, table) || !checked_range(table, bytes, r->s->file->size)) {
		r->doubtful |= entries != 0;
		return 0;
	}
	add(r, table, bytes, 1);
	p = malloc(1u << 20);
	rc = p ? 0 : -ENOMEM;
	for (uint64_t at = 0, n; at < bytes && !rc; at += n) {
		n = min_u64(bytes - at, 1u << 20);
		rc = qcow2_file_read(r->s, p, table + at, n);
		for (uint64_t i = 0; i < n && !rc; i += 8)
			if (get_be64(p + i) & QCOW2_OFFSET)
				add(r, get_be64(p + i) & QCOW2_OFFSET, r->s->cluster_size, 1);
	}
	free(p);
	return rc;
}

/* The directory, as bitmaps/store-dir.h has it; here only where things are matters. */
static int count_directory(struct refs *r, const uint8_t *dir, uint64_t bytes)
{
	uint64_t at = 0, len;
	unsigned n = 0;
	int rc = 0;

	while (at < bytes && !rc) {
		if (bytes - at < 24 || n++ == BITMAPS_MAX) {
			r->doubtful = true;
			break;
		}
		len = 24 + (uint64_t)get_be16(dir + at + 18) + get_be32(dir + at + 20);
		rc = count_bitmap(r, get_be64(dir + at), get_be32(dir + at + 8));
		at += align_up(len, 8);
	}
	r->doubtful |= at != bytes;
	return rc;
}

static int count_bitmaps(struct refs *r)
{
	const struct qcow2_ext *e = qcow2_ext_find(&r->s->h, QCOW2_EXT_BITMAPS);
	uint64_t off, bytes;
	uint8_t *dir;
	int rc;

	if (!e || e->len < 24 || !(r->s->h.autoclear & QCOW2_BITMAPS))
		return 0;
	bytes = get_be64(e->data + 8);
	off = get_be64(e->data + 16);
	if (!bytes || !off || qcow2_in_cluster(r->s, off) || !checked_range(off, bytes, r->s->file->size) ||
	    bytes > 64u << 20) {
		r->doubtful = true;
		return 0;
	}
	dir = malloc(bytes);
	if (!dir)
		return -ENOMEM;
	add(r, off, bytes, 1);
	rc = qcow2_file_read(r->s, dir, off, bytes);
	if (!rc)
		rc = count_directory(r, dir, bytes);
	free(dir);
	return rc;
}

int refs_count(struct refs *r, uint64_t first)
{
	int rc;

	free(r->count);
	r->first = first;
	r->n = min_u64(REFS_WINDOW, r->clusters - first);
	r->count = calloc(max_u64(r->n, 1), sizeof(*r->count));
	if (!r->count)
		return -ENOMEM;
	count_own(r);
	rc = count_bitmaps(r);
	if (!rc)
		rc = spend(r, r->n_tables << r->s->cluster_bits);
	return rc ? rc : refs_each_table(r->s, r->n_tables, where_l2, count_l2, r);
}
