// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-create: a new, empty image.
 *
 *	cluster 0		header, extensions, backing file name
 *	then			refcount table
 *	then			refcount blocks: they count all of this
 *	then			L1 table, all zero
 *
 * The header comes last, after an fsync: an image that was made halfway is not
 * taken for one.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct layout {
	unsigned cluster_bits, refcount_order;
	uint64_t size;
	uint64_t table, blocks, l1;	/* first cluster of each */
	uint64_t n_table, n_blocks, n_l1, total;
	uint32_t l1_size;
};

static int layout_sizes(struct layout *l, const struct qcow2_create *o, struct error *err)
{
	uint32_t cs = o->cluster_size ? o->cluster_size : 65536;
	uint32_t bits = o->refcount_bits ? o->refcount_bits : 16;

	if (!is_pow2(cs) || cs < 512 || cs > 2u << 20)
		return error_set(err, -EINVAL, "Cluster size must be a power of two between 512 and 2048k");
	if (!is_pow2(bits) || bits > 64)
		return error_set(err, -EINVAL, "Refcount width must be a power of two and may not exceed 64 bits");
	if (o->size > INT64_MAX - 511)
		return error_set(err, -EFBIG, "The image size is too large");
	if (o->backing_file && !o->backing_format)
		return error_set(err, -EINVAL, "backing_file requires a backing format");
	if (o->backing_file && (!o->backing_file[0] || strlen(o->backing_file) > QCOW2_BACKING_NAME_MAX))
		return error_set(err, -EINVAL, "Backing file name must have 1 to %u bytes",
				 QCOW2_BACKING_NAME_MAX);
	l->cluster_bits = __builtin_ctz(cs);
	l->refcount_order = __builtin_ctz(bits);
	l->size = align_up(o->size, 512);
	return 0;
}

static int layout_make(struct layout *l, struct error *err)
{
	unsigned cb = l->cluster_bits;
	uint64_t entries = max_u64(DIV_ROUND_UP(l->size, 1ull << (2 * cb - 3)), 1);
	uint64_t per_block = 1ull << (cb + 3 - l->refcount_order);

	if (entries > QCOW2_L1_BYTES_MAX / 8)
		return error_set(err, -EFBIG, "The image size is too large for this cluster size (try a larger cluster size)");
	l->l1_size = entries;
	l->n_l1 = DIV_ROUND_UP(entries * 8, 1ull << cb);
	l->n_blocks = l->n_table = 1;
	for (;;) {
		uint64_t blocks, table;

		l->total = 1 + l->n_table + l->n_blocks + l->n_l1;
		blocks = DIV_ROUND_UP(l->total, per_block);
		table = DIV_ROUND_UP(blocks * 8, 1ull << cb);
		if (blocks <= l->n_blocks && table <= l->n_table)
			break;
		l->n_blocks = max_u64(blocks, l->n_blocks);
		l->n_table = max_u64(table, l->n_table);
	}
	l->table = 1;
	l->blocks = l->table + l->n_table;
	l->l1 = l->blocks + l->n_blocks;
	return 0;
}

/* What the names of our feature bits are, for programs that do not know them. */
static size_t put_feature_names(uint8_t *p)
{
	static const struct { uint8_t type, bit; const char *name; } names[] = {
		{ 0, 0, "dirty bit" }, { 0, 1, "corrupt bit" }, { 0, 2, "external data file" },
		{ 0, 3, "compression type" }, { 0, 4, "extended L2 entries" },
		{ 1, 0, "lazy refcounts" }, { 2, 0, "bitmaps" }, { 2, 1, "raw external data" },
	};
	enum { N = sizeof(names) / sizeof(names[0]) };

	put_be32(p, QCOW2_EXT_FEATURE_NAMES);
	put_be32(p + 4, 48 * N);
	for (unsigned i = 0; i < N; i++) {
		uint8_t *e = p + 8 + 48 * i;

		e[0] = names[i].type;
		e[1] = names[i].bit;
		memcpy(e + 2, names[i].name, strlen(names[i].name));
	}
	return 8 + 48 * N;
}

/* The backing name gets a distance from the extensions, so that one more fits in
 * without moving it. */
static int put_backing(uint8_t *p, size_t *at, size_t cs, const struct qcow2_create *o)
{
	size_t format = strlen(o->backing_format), name = strlen(o->backing_file), to;

	if (*at + 8 + align_up(format, 8) + 8 + name > cs)
		return -ENOSPC;
	put_be32(p + *at, QCOW2_EXT_BACKING_FORMAT);
	put_be32(p + *at + 4, format);
	memcpy(p + *at + 8, o->backing_format, format);
	*at += 8 + align_up(format, 8);
	to = *at + 8 + 64 + name <= cs ? *at + 8 + 64 : *at + 8;
	memcpy(p + to, o->backing_file, name);
	put_be64(p + H_BACKING_OFFSET, to);
	put_be32(p + H_BACKING_SIZE, name);
	return 0;
}

static int put_header(uint8_t *p, const struct layout *l, const struct qcow2_create *o)
{
	size_t cs = 1u << l->cluster_bits, at = H_LENGTH_OURS;

	put_be32(p + H_MAGIC, QCOW2_MAGIC);
	put_be32(p + H_VERSION, 3);
	put_be32(p + H_CLUSTER_BITS, l->cluster_bits);
	put_be64(p + H_SIZE, l->size);
	put_be32(p + H_L1_SIZE, l->l1_size);
	put_be64(p + H_L1_OFFSET, l->l1 << l->cluster_bits);
	put_be64(p + H_REFTABLE_OFFSET, l->table << l->cluster_bits);
	put_be32(p + H_REFTABLE_CLUSTERS, l->n_table);
	put_be32(p + H_REFCOUNT_ORDER, l->refcount_order);
	put_be32(p + H_LENGTH, H_LENGTH_OURS);
	if (cs >= 4096)
		at += put_feature_names(p + at);
	return o->backing_file ? put_backing(p, &at, cs, o) : 0;
}

static int write_zeroes(struct io_file *f, uint64_t off, uint64_t len)
{
	int rc = 0;

	for (uint64_t now; len && !rc; off += now, len -= now) {
		now = min_u64(len, sizeof(qcow2_zeroes));
		rc = io_pwrite(f, qcow2_zeroes, now, off, 0);
	}
	return rc;
}

/* Entry I of 2^ORDER bits becomes 1. */
static void count_one(uint8_t *p, unsigned order, uint64_t i)
{
	uint64_t bit = i << order;

	if (order < 3)
		p[bit >> 3] |= 1u << (bit & 7);
	else
		p[(bit >> 3) + (1u << (order - 3)) - 1] = 1;
}

static int write_refcounts(struct io_file *f, const struct layout *l, uint8_t *p)
{
	uint64_t cs = 1ull << l->cluster_bits, per_block = 1ull << (l->cluster_bits + 3 - l->refcount_order);
	int rc = 0;

	for (uint64_t b = 0; b < l->n_blocks && !rc; b++) {
		memset(p, 0, cs);
		for (uint64_t i = 0; i < per_block && b * per_block + i < l->total; i++)
			count_one(p, l->refcount_order, i);
		rc = io_pwrite(f, p, cs, (l->blocks + b) * cs, 0);
	}
	for (uint64_t t = 0; t < l->n_table && !rc; t++) {
		memset(p, 0, cs);
		for (uint64_t i = 0; i < cs / 8 && t * cs / 8 + i < l->n_blocks; i++)
			put_be64(p + 8 * i, (l->blocks + t * cs / 8 + i) * cs);
		rc = io_pwrite(f, p, cs, (l->table + t) * cs, 0);
	}
	return rc;
}

static int write_image(struct io_file *f, const struct layout *l, const struct qcow2_create *o,
		       uint8_t *p)
{
	uint64_t cs = 1ull << l->cluster_bits;
	int rc = write_refcounts(f, l, p);

	if (!rc)
		rc = write_zeroes(f, l->l1 * cs, l->n_l1 * cs);
	if (!rc)
		rc = io_fsync(f);
	memset(p, 0, cs);
	if (!rc)
		rc = put_header(p, l, o);
	if (!rc)
		rc = io_pwrite(f, p, cs, 0, 0);
	return rc ? rc : io_fsync(f);
}

int qcow2_create(struct io_file *f, const struct qcow2_create *o, struct error *err)
{
	struct layout l = { 0 };
	uint8_t *p;
	int rc = layout_sizes(&l, o, err);

	if (!rc)
		rc = layout_make(&l, err);
	if (rc)
		return rc;
	p = aligned_alloc(4096, align_up(1ull << l.cluster_bits, 4096));
	if (!p)
		return error_set(err, -ENOMEM, "Out of memory");
	memset(p, 0, 1ull << l.cluster_bits);
	rc = write_image(f, &l, o, p);
	free(p);
	if (rc == -ENOSPC && o->backing_file)
		return error_set(err, rc, "The backing file name does not fit into the header of a cluster of %u bytes, or the disk is full",
				 1u << l.cluster_bits);
	return rc ? error_errno(err, rc, "Could not write the new image") : 0;
}
