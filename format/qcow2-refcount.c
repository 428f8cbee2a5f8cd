// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-refcount: how often each cluster of the file is referred to.
 *
 * Specification: "Host cluster management".  A two-level structure: the refcount
 * table (in memory as a whole, at most 8 MiB) points to refcount blocks of one
 * cluster each, whose entries are 1 to 64 bits wide.  Blocks are cached in slices.
 *
 * A refcount slice may be written at any time: in memory a refcount is raised
 * before anything refers to the cluster, and lowered only when what referred to
 * it is gone from storage (qcow2-flush.c).  So what is written too early or lost
 * is a leak at worst.
 *
 * New blocks and a larger table are rare and made on the spot, each step durable
 * before the next: the block, then the table's entry; or new blocks and the new
 * table, then the header, then the old table is free.  A new block lies in the
 * first cluster that it describes, so it needs no allocation.  No run of free
 * clusters is as long as a block describes, then; longer ones are made by
 * refcount_make_run(): all their blocks first, then the run.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

uint64_t refcount_max(const struct qcow2 *s)
{
	return s->h.refcount_order == 6 ? UINT64_MAX : (1ull << (1u << s->h.refcount_order)) - 1;
}

void refcount_table_set(struct qcow2 *s, uint8_t *table, uint64_t clusters)
{
	unsigned shift = s->ref_block_shift + s->cluster_bits;

	free(s->reftable);
	s->reftable = table;
	s->reftable_entries = clusters << (s->cluster_bits - 3);
	s->host_limit = s->reftable_entries >= QCOW2_HOST_MAX >> shift ? QCOW2_HOST_MAX
								       : s->reftable_entries << shift;
}

/* Entry I of refcounts of 2^ORDER bits at P.  Below a byte, the least significant
 * bits come first. */
static inline uint64_t entry_get(const uint8_t *p, unsigned order, uint64_t i)
{
	switch (order) {
	case 4:
		return get_be16(p + 2 * i);
	case 3:
		return p[i];
	case 5:
		return get_be32(p + 4 * i);
	case 6:
		return get_be64(p + 8 * i);
	default:
		return p[i >> (3 - order)] >> ((i << order) & 7) & ((1u << (1u << order)) - 1);
	}
}

static void entry_set(uint8_t *p, unsigned order, uint64_t i, uint64_t v)
{
	unsigned shift = (i << order) & 7, mask;

	switch (order) {
	case 4:
		put_be16(p + 2 * i, v);
		return;
	case 3:
		p[i] = v;
		return;
	case 5:
		put_be32(p + 4 * i, v);
		return;
	case 6:
		put_be64(p + 8 * i, v);
		return;
	default:
		mask = (1u << (1u << order)) - 1;
		p += i >> (3 - order);
		*p = (*p & ~(mask << shift)) | v << shift;
	}
}

uint64_t refcount_entry(const struct qcow2 *s, const uint8_t *block, uint64_t i)
{
	return entry_get(block, s->h.refcount_order, i);
}

static inline uint64_t in_slice(const struct qcow2 *s, uint64_t cluster)
{
	return cluster & ((1ull << s->ref_shift) - 1);
}

uint64_t refcount_get(const struct qcow2 *s, const struct slice *sl, uint64_t cluster)
{
	return entry_get(sl->data, s->h.refcount_order, in_slice(s, cluster));
}

void refcount_set(struct qcow2 *s, struct slice *sl, uint64_t cluster, uint64_t value)
{
	entry_set(sl->data, s->h.refcount_order, in_slice(s, cluster), value);
	cache_dirty(&s->ref, sl);
}

/* Where refcount slice NO is in the file; 0: nowhere.  -EIO for a bad pointer. */
static int slice_host(struct qcow2 *s, uint64_t no, uint64_t *host)
{
	unsigned per_block = s->ref_block_shift - s->ref_shift;
	uint64_t index = no >> per_block, block;

	*host = 0;
	if (index >= s->reftable_entries)
		return 0;
	block = get_be64(s->reftable + index * 8);
	if (!block)
		return 0;
	if (block & ~QCOW2_OFFSET || qcow2_in_cluster(s, block) || block >= s->host_end)
		return qcow2_mark_corrupt(s, "refcount block %" PRIu64 " at offset 0x%" PRIx64
					  " (not a cluster of the file)", index, block);
	*host = block + (no & ((1ull << per_block) - 1)) * s->ref.bytes;
	return 0;
}

int refcount_slice(struct qcow2 *s, uint64_t cluster, struct slice **out)
{
	uint64_t no = cluster >> s->ref_shift, host;
	int rc;

	*out = cache_find(&s->ref, no);
	if (*out) {
		(*out)->pins++;
		return 0;
	}
	rc = slice_host(s, no, &host);
	if (!rc && !host)
		return -ENOENT;
	return rc ? rc : cache_get(s, &s->ref, no, host, refcount_write, out);
}

/* Writes one slice from a copy: it may change while the write is on its way. */
static int write_slice(struct qcow2 *s, struct slice *sl, uint8_t *copy)
{
	uint64_t host;
	int rc = slice_host(s, sl->no, &host);

	if (rc)
		return rc;
	memcpy(copy, sl->data, s->ref.bytes);
	return qcow2_file_write(s, copy, host, s->ref.bytes, 0);
}

int refcount_write(struct qcow2 *s)
{
	struct slice **v = NULL;
	uint8_t *copy = NULL;
	uint32_t n = 0;
	int rc = 0;

	co_mutex_lock(&s->flush.refcount_io);	/* what another one writes is written when we return */
	if (s->ref.n_dirty) {
		copy = aligned_alloc(4096, align_up(s->ref.bytes, 4096));
		v = copy ? cache_take_dirty(&s->ref, &n) : NULL;
		rc = v ? 0 : -ENOMEM;
	}
	for (uint32_t i = 0; i < n; i++) {
		if (!rc)
			rc = write_slice(s, v[i], copy);
		cache_flushed(&s->ref, v[i], rc != 0);
	}
	free(copy);
	free(v);
	co_mutex_unlock(&s->flush.refcount_io);
	return rc;
}

/* Writes a block that describes itself and the USED - 1 clusters behind it. */
static int write_block(struct qcow2 *s, uint64_t host, uint64_t used)
{
	uint8_t *p = aligned_alloc(4096, align_up(s->cluster_size, 4096));
	int rc;

	if (!p)
		return -ENOMEM;
	memset(p, 0, s->cluster_size);
	for (uint64_t i = 0; i < used; i++)
		entry_set(p, s->h.refcount_order, i, 1);
	rc = qcow2_file_write(s, p, host, s->cluster_size, NODE_FUA);
	free(p);
	return rc;
}

static int write_table_entry(struct qcow2 *s, uint64_t index, uint64_t block)
{
	uint8_t entry[8];
	int rc;

	put_be64(entry, block);
	rc = qcow2_file_write(s, entry, s->h.reftable_offset + index * 8, 8, NODE_FUA);
	if (!rc)
		memcpy(s->reftable + index * 8, entry, 8);
	return rc;
}

/* What is written to the clusters from FIRST on, while nothing counts them. */
static int claim(struct qcow2 *s, uint64_t first, uint64_t count)
{
	uint64_t host = first << s->cluster_bits, len = count << s->cluster_bits;
	int rc;

	if (first + count > QCOW2_HOST_MAX >> s->cluster_bits)
		return -EFBIG;
	rc = qcow2_check_target(s, host, len);
	if (!rc)
		s->host_end = max_u64(s->host_end, host + len);
	return rc;
}

/* Nothing came of COUNT clusters from FIRST on: they may be claimed again. */
static void unclaim(struct qcow2 *s, uint64_t first, uint64_t count)
{
	if (!s->corrupt)		/* else it may be another's metadata */
		qcow2_meta_remove(s, first << s->cluster_bits, count);
}

static int write_table(struct qcow2 *s, const uint8_t *table, uint64_t bytes, uint64_t host)
{
	const uint64_t piece = 1u << 20;
	int rc = 0;

	for (uint64_t at = 0; at < bytes && !rc; at += piece)
		rc = qcow2_file_write(s, table + at, host + at, min_u64(piece, bytes - at), NODE_FUA);
	return rc;
}

/* Points the header to the new table, then frees the old one. */
static int switch_table(struct qcow2 *s, uint8_t *table, uint64_t host, uint64_t clusters)
{
	uint64_t old = s->h.reftable_offset, old_clusters = s->h.reftable_clusters;
	int rc;

	s->h.reftable_offset = host;
	s->h.reftable_clusters = clusters;
	rc = qcow2_header_write(s);
	if (rc) {
		s->h.reftable_offset = old;
		s->h.reftable_clusters = old_clusters;
		return rc;
	}
	refcount_table_set(s, table, clusters);
	qcow2_meta_remove(s, old, old_clusters);
	qcow2_unref_now(s, old, old_clusters);
	return 0;
}

/* Blocks at FIRST, FIRST + 1, ... that count the first USED clusters from FIRST on,
 * themselves included; a block describes per_block clusters. */
static int write_blocks(struct qcow2 *s, uint64_t first, uint64_t blocks, uint64_t used)
{
	uint64_t per_block = 1ull << s->ref_block_shift;
	int rc = claim(s, first, used);

	for (uint64_t i = 0; i < blocks && !rc; i++)
		rc = write_block(s, (first + i) << s->cluster_bits,
				 min_u64(per_block, used - i * per_block));
	return rc;
}

/* How many blocks are needed to describe themselves and COUNT clusters more. */
static uint64_t blocks_for(const struct qcow2 *s, uint64_t count)
{
	uint64_t per_block = 1ull << s->ref_block_shift;

	return DIV_ROUND_UP(count, per_block - 1);
}

/* A table with room for INDEX and more.  It comes to lie behind all that the old
 * one could describe: first the blocks that describe it, then itself. */
static int grow_table(struct qcow2 *s, uint64_t index)
{
	uint64_t first = s->reftable_entries << s->ref_block_shift, n = 0, clusters, blocks, entries;
	uint8_t *table;
	int rc;

	do {	/* the blocks that describe the table need entries in it, too */
		blocks = ++n;
		entries = max_u64(index + 1, s->reftable_entries) + blocks;
		clusters = DIV_ROUND_UP(entries + entries / 2, 1ull << (s->cluster_bits - 3));
	} while (blocks_for(s, clusters) > blocks);
	if (clusters << s->cluster_bits > QCOW2_REFTABLE_BYTES_MAX)
		return -EFBIG;
	table = calloc(clusters, s->cluster_size);
	if (!table)
		return -ENOMEM;
	memcpy(table, s->reftable, s->reftable_entries * 8);
	for (uint64_t i = 0; i < blocks; i++)
		put_be64(table + (s->reftable_entries + i) * 8, (first + i) << s->cluster_bits);
	rc = write_blocks(s, first, blocks, blocks + clusters);
	if (!rc)
		rc = write_table(s, table, clusters << s->cluster_bits, (first + blocks) << s->cluster_bits);
	if (!rc)
		rc = qcow2_meta_add(s, first << s->cluster_bits, blocks + clusters);
	if (!rc)
		rc = switch_table(s, table, (first + blocks) << s->cluster_bits, clusters);
	if (!rc)
		return 0;
	unclaim(s, first, blocks + clusters);
	free(table);
	return rc;
}

/* One more than the last used entry of the table. */
static uint64_t table_end(const struct qcow2 *s)
{
	uint64_t n = s->reftable_entries;

	while (n && !get_be64(s->reftable + (n - 1) * 8))
		n--;
	return n;
}

static int make_run(struct qcow2 *s, uint64_t count, uint64_t *host)
{
	uint64_t blocks = blocks_for(s, count), index = table_end(s), first, i = 0;
	int rc = 0;

	for (; index + blocks > s->reftable_entries && !rc; index = table_end(s))
		rc = grow_table(s, index + blocks - 1);
	first = index << s->ref_block_shift;
	if (!rc)
		rc = write_blocks(s, first, blocks, blocks + count);
	if (!rc)
		rc = qcow2_meta_add(s, first << s->cluster_bits, blocks);
	while (!rc && i < blocks && !(rc = write_table_entry(s, index + i, (first + i) << s->cluster_bits)))
		i++;
	if (rc)		/* those that are in the table stay, and what they count is leaked */
		unclaim(s, first + i, blocks - i);
	*host = (first + blocks) << s->cluster_bits;
	return rc;
}

int refcount_make_run(struct qcow2 *s, uint64_t count, uint64_t *host)
{
	int rc;

	co_mutex_lock(&s->alloc_lock);
	rc = make_run(s, count, host);
	co_mutex_unlock(&s->alloc_lock);
	return rc;
}

int refcount_make_block(struct qcow2 *s, uint64_t cluster)
{
	uint64_t index = cluster >> s->ref_block_shift;
	uint64_t first = index << s->ref_block_shift;
	int rc = 0;

	co_mutex_lock(&s->alloc_lock);
	if (index >= s->reftable_entries)
		rc = grow_table(s, index);
	if (!rc && !get_be64(s->reftable + index * 8)) {
		rc = claim(s, first, 1);
		if (!rc)
			rc = write_block(s, first << s->cluster_bits, 1);
		if (!rc)
			rc = qcow2_meta_add(s, first << s->cluster_bits, 1);
		if (!rc)
			rc = write_table_entry(s, index, first << s->cluster_bits);
		if (rc)
			unclaim(s, first, 1);
	}
	co_mutex_unlock(&s->alloc_lock);
	if (rc)
		log_error("no room for a refcount block: image=%s error=%s", qcow2_name(s), strerror(-rc));
	return rc;
}
