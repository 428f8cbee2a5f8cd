// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-create: a new, empty image.
 *
 *	cluster 0		header, extensions, backing file name
 *	then			refcount table
 *	then			refcount blocks: they count all of this
 *	then			L1 table
 *	with preallocation	all L2 tables, then the guest's data, in order
 *
 * The header comes last, after an fsync: an image that was made halfway is not
 * taken for one.
 *
 * Preallocated clusters are data, which reads as zeroes where the file was never
 * written.  A device may hold anything there: their entries say zero, too.  With
 * extended entries they are reserved, so that a backing image shows through.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define PIECE (1u << 20)	/* bytes of zeroes written at a time */

/* Where the image goes: a file, or nodes. */
struct target {
	struct io_file *f;
	struct node *file, *data;	/* DATA: the external data file, or NULL */
	uint8_t *cluster;		/* scratch */
	uint8_t *zeroes;		/* PIECE bytes */
	int (*go_on)(void *arg);	/* the caller's */
	void *arg;
};

struct layout {
	unsigned cluster_bits, refcount_order, entry_shift;
	uint64_t size;
	enum qcow2_preallocation prealloc;
	uint64_t table, blocks, l1, l2, data;	/* first cluster of each */
	uint64_t n_table, n_blocks, n_l1, n_l2, n_data, total;
	uint32_t l1_size;
};

/* What only version 3 has. */
static int check_version(const struct qcow2_create *o, struct error *err)
{
	const char *what = NULL;

	if (o->version && o->version != 2 && o->version != 3)
		return error_set(err, -EINVAL, "Unsupported qcow2 version %" PRIu32, o->version);
	if (o->version != 2)
		return 0;
	if (o->refcount_bits && o->refcount_bits != 16)
		return error_set(err, -EINVAL, "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)");
	if (o->lazy_refcounts)
		what = "Lazy refcounts only";
	else if (o->data_file)
		what = "External data files are only";
	else if (o->zstd)
		what = "Non-zlib compression type is only";
	else if (o->extended_l2)
		what = "Extended L2 entries are only";
	if (!what)
		return 0;
	return error_set(err, -EINVAL, "%s supported with compatibility level 1.1 and above (use version=v3 or greater)", what);
}

static int check_together(const struct qcow2_create *o, uint32_t cs, struct error *err)
{
	if (o->extended_l2 && cs < 16384)
		return error_set(err, -EINVAL, "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
	if (o->data_file_raw && !o->data_file)
		return error_set(err, -EINVAL, "data-file-raw requires data-file");
	if (o->backing_file && o->data_file_raw)
		return error_set(err, -EINVAL, "Backing file and data-file-raw cannot be used at the same time");
	if (o->backing_file && o->preallocation && !o->extended_l2)
		return error_set(err, -EINVAL, "Backing file and preallocation can only be used at the same time if extended_l2 is enabled");
	if (o->backing_file && !o->backing_format)
		return error_set(err, -EINVAL, "backing_file requires a backing format");
	if (o->backing_file && (!o->backing_file[0] || strlen(o->backing_file) > QCOW2_BACKING_NAME_MAX))
		return error_set(err, -EINVAL, "Backing file name must have 1 to %u bytes",
				 QCOW2_BACKING_NAME_MAX);
	if (o->data_file && (!o->data_file[0] || strlen(o->data_file) > QCOW2_BACKING_NAME_MAX))
		return error_set(err, -EINVAL, "Data file name must have 1 to %u bytes",
				 QCOW2_BACKING_NAME_MAX);
	return 0;
}

static int layout_sizes(struct layout *l, const struct qcow2_create *o, struct error *err)
{
	uint32_t cs = o->cluster_size ? o->cluster_size : 65536;
	uint32_t bits = o->refcount_bits ? o->refcount_bits : 16;
	int rc;

	if (!is_pow2(cs) || cs < 512 || cs > 2u << 20)
		return error_set(err, -EINVAL, "Cluster size must be a power of two between 512 and 2048k");
	if (!is_pow2(bits) || bits > 64)
		return error_set(err, -EINVAL, "Refcount width must be a power of two and may not exceed 64 bits");
	if (o->size > INT64_MAX - 511)
		return error_set(err, -EFBIG, "The image size is too large");
	rc = check_version(o, err);
	if (!rc)
		rc = check_together(o, cs, err);
	l->cluster_bits = __builtin_ctz(cs);
	l->refcount_order = __builtin_ctz(bits);
	l->entry_shift = o->extended_l2 ? 4 : 3;
	l->size = align_up(o->size, 512);
	l->prealloc = o->data_file_raw && !o->preallocation ? QCOW2_PREALLOC_METADATA : o->preallocation;
	return rc;
}

static int layout_make(struct layout *l, const struct qcow2_create *o, struct error *err)
{
	unsigned cb = l->cluster_bits;
	uint64_t used = DIV_ROUND_UP(l->size, 1ull << (2 * cb - l->entry_shift));
	uint64_t entries = max_u64(used, 1), per_block = 1ull << (cb + 3 - l->refcount_order);

	if (entries > QCOW2_L1_BYTES_MAX / 8)
		return error_set(err, -EFBIG, "The image size is too large for this cluster size (try a larger cluster size)");
	l->l1_size = entries;
	l->n_l1 = DIV_ROUND_UP(entries * 8, 1ull << cb);
	if (l->prealloc) {
		l->n_l2 = used;
		l->n_data = o->data_file ? 0 : DIV_ROUND_UP(l->size, 1ull << cb);
	}
	l->n_blocks = l->n_table = 1;
	for (;;) {
		uint64_t blocks, table;

		l->total = 1 + l->n_table + l->n_blocks + l->n_l1 + l->n_l2 + l->n_data;
		blocks = DIV_ROUND_UP(l->total, per_block);
		table = DIV_ROUND_UP(blocks * 8, 1ull << cb);
		if (blocks <= l->n_blocks && table <= l->n_table)
			break;
		l->n_blocks = max_u64(blocks, l->n_blocks);
		l->n_table = max_u64(table, l->n_table);
	}
	if (l->n_table << cb > QCOW2_REFTABLE_BYTES_MAX || l->total > QCOW2_HOST_MAX >> cb)
		return error_set(err, -EFBIG, "The image size is too large for this cluster size (try a larger cluster size)");
	l->table = 1;
	l->blocks = l->table + l->n_table;
	l->l1 = l->blocks + l->n_blocks;
	l->l2 = l->l1 + l->n_l1;
	l->data = l->l2 + l->n_l2;
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

static bool put_ext(uint8_t *p, size_t *at, size_t cs, uint32_t type, const char *text)
{
	size_t n = strlen(text);

	if (*at + 8 + align_up(n, 8) + 8 > cs)
		return false;
	put_be32(p + *at, type);
	put_be32(p + *at + 4, n);
	memcpy(p + *at + 8, text, n);
	*at += 8 + align_up(n, 8);
	return true;
}

/* The backing name gets a distance from the extensions, so that one more fits in
 * without moving it. */
static int put_backing(uint8_t *p, size_t *at, size_t cs, const struct qcow2_create *o)
{
	size_t name = strlen(o->backing_file), to;

	if (!put_ext(p, at, cs, QCOW2_EXT_BACKING_FORMAT, o->backing_format) || *at + 8 + name > cs)
		return -ENOSPC;
	to = *at + 8 + 64 + name <= cs ? *at + 8 + 64 : *at + 8;
	memcpy(p + to, o->backing_file, name);
	put_be64(p + H_BACKING_OFFSET, to);
	put_be32(p + H_BACKING_SIZE, name);
	return 0;
}

static void put_version_3(uint8_t *p, const struct layout *l, const struct qcow2_create *o)
{
	put_be64(p + H_INCOMPATIBLE, (o->data_file ? QCOW2_DATA_FILE : 0) | (o->zstd ? QCOW2_COMPRESSION : 0) |
				     (o->extended_l2 ? QCOW2_EXTENDED_L2 : 0));
	put_be64(p + H_COMPATIBLE, o->lazy_refcounts ? QCOW2_LAZY_REFCOUNTS : 0);
	put_be64(p + H_AUTOCLEAR, o->data_file_raw ? QCOW2_RAW_DATA_FILE : 0);
	put_be32(p + H_REFCOUNT_ORDER, l->refcount_order);
	put_be32(p + H_LENGTH, H_LENGTH_OURS);
	p[H_COMPRESSION] = o->zstd;
}

static int put_header(uint8_t *p, const struct layout *l, const struct qcow2_create *o)
{
	size_t cs = 1u << l->cluster_bits, at = o->version == 2 ? H_LENGTH_V2 : H_LENGTH_OURS;

	put_be32(p + H_MAGIC, QCOW2_MAGIC);
	put_be32(p + H_VERSION, o->version == 2 ? 2 : 3);
	put_be32(p + H_CLUSTER_BITS, l->cluster_bits);
	put_be64(p + H_SIZE, l->size);
	put_be32(p + H_L1_SIZE, l->l1_size);
	put_be64(p + H_L1_OFFSET, l->l1 << l->cluster_bits);
	put_be64(p + H_REFTABLE_OFFSET, l->table << l->cluster_bits);
	put_be32(p + H_REFTABLE_CLUSTERS, l->n_table);
	if (o->version != 2) {
		put_version_3(p, l, o);
		if (cs >= 4096)
			at += put_feature_names(p + at);
	}
	if (o->data_file && !put_ext(p, &at, cs, QCOW2_EXT_DATA_FILE, o->data_file))
		return -ENOSPC;
	return o->backing_file ? put_backing(p, &at, cs, o) : 0;
}

static int put(struct target *t, const void *buf, uint64_t off, uint64_t len)
{
	int rc = t->go_on ? t->go_on(t->arg) : 0;

	if (rc)
		return rc;
	return t->f ? io_pwrite(t->f, buf, len, off, 0) : node_write(t->file, buf, off, len, 0);
}

static int sync_target(struct target *t)
{
	int rc = t->data ? node_flush(t->data) : 0;

	if (rc)
		return rc;
	return t->f ? io_fsync(t->f) : node_flush(t->file);
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

static int write_refcounts(struct target *to, const struct layout *l)
{
	uint64_t cs = 1ull << l->cluster_bits, per_block = 1ull << (l->cluster_bits + 3 - l->refcount_order);
	uint8_t *p = to->cluster;
	int rc = 0;

	for (uint64_t b = 0; b < l->n_blocks && !rc; b++) {
		memset(p, 0, cs);
		for (uint64_t i = 0; i < per_block && b * per_block + i < l->total; i++)
			count_one(p, l->refcount_order, i);
		rc = put(to, p, (l->blocks + b) * cs, cs);
	}
	for (uint64_t t = 0; t < l->n_table && !rc; t++) {
		memset(p, 0, cs);
		for (uint64_t i = 0; i < cs / 8 && t * cs / 8 + i < l->n_blocks; i++)
			put_be64(p + 8 * i, (l->blocks + t * cs / 8 + i) * cs);
		rc = put(to, p, (l->table + t) * cs, cs);
	}
	return rc;
}

static int write_l1(struct target *to, const struct layout *l)
{
	uint64_t cs = 1ull << l->cluster_bits;
	int rc = 0;

	for (uint64_t t = 0; t < l->n_l1 && !rc; t++) {
		memset(to->cluster, 0, cs);
		for (uint64_t i = 0; i < cs / 8 && t * cs / 8 + i < l->n_l2; i++)
			put_be64(to->cluster + 8 * i, (l->l2 + t * cs / 8 + i) * cs | QCOW2_COPIED);
		rc = put(to, to->cluster, (l->l1 + t) * cs, cs);
	}
	return rc;
}

/* All tables of a preallocated image.  EXTRA: more bits of each entry. */
static int write_l2(struct target *to, const struct layout *l, const struct qcow2_create *o, uint64_t extra)
{
	uint64_t cs = 1ull << l->cluster_bits, per_table = cs >> l->entry_shift;
	uint64_t clusters = DIV_ROUND_UP(l->size, cs), at = o->data_file ? 0 : l->data * cs;
	uint64_t bits = o->data_file_raw ? QCOW2_SUBS_ALLOCATED : 0;
	int rc = 0;

	for (uint64_t t = 0; t < l->n_l2 && !rc; t++) {
		memset(to->cluster, 0, cs);
		for (uint64_t i = 0; i < per_table && t * per_table + i < clusters; i++, at += cs) {
			uint8_t *p = to->cluster + (i << l->entry_shift);

			put_be64(p, at | QCOW2_COPIED | extra);
			if (o->extended_l2)
				put_be64(p + 8, bits);
		}
		rc = put(to, to->cluster, (l->l2 + t) * cs, cs);
	}
	return rc;
}

static int reserve(struct target *to, uint64_t off, uint64_t len)
{
	if (to->data)
		return node_zero(to->data, off, len, 0);
	if (!to->f)
		return node_zero(to->file, off, len, 0);
	return io_zero(to->f, off, len, 0);
}

static int write_out(struct target *to, uint64_t off, uint64_t len)
{
	int rc = 0;

	for (uint64_t now; len && !rc; off += now, len -= now) {
		now = min_u64(len, PIECE);
		rc = to->data && to->go_on ? to->go_on(to->arg) : 0;
		if (!rc)
			rc = to->data ? node_write(to->data, to->zeroes, off, now, 0) : put(to, to->zeroes, off, now);
	}
	return rc;
}

static int lengthen(struct target *to, uint64_t size, struct error *err)
{
	int rc;

	if (!to->f)
		return node_on_block_device(to->file) ? 0 : node_truncate(to->file, size, err);
	rc = io_truncate(to->f, size);
	return rc ? error_errno(err, rc, "Could not resize the new image") : 0;
}

/* The guest's data has its place. */
static int preallocate(struct target *to, const struct layout *l, struct error *err)
{
	uint64_t off = to->data ? 0 : l->data << l->cluster_bits;
	uint64_t len = to->data ? l->size : l->n_data << l->cluster_bits;
	int rc = 0;

	if (to->data && to->data->size < l->size && !node_on_block_device(to->data))
		rc = node_truncate(to->data, l->size, err);
	if (!rc && l->prealloc && !to->data)
		rc = lengthen(to, l->total << l->cluster_bits, err);
	if (rc)
		return rc;
	if (l->prealloc == QCOW2_PREALLOC_FALLOC)
		rc = reserve(to, off, len);
	else if (l->prealloc == QCOW2_PREALLOC_FULL)
		rc = write_out(to, off, len);
	return rc ? error_errno(err, rc, "Could not preallocate the image's data") : 0;
}

/* Entries on a device: what lies there is not zero. */
static uint64_t extra_bits(const struct target *to, const struct layout *l, const struct qcow2_create *o)
{
	const struct node *n = to->data ? to->data : to->file;

	return n && node_on_block_device(n) && l->prealloc == QCOW2_PREALLOC_METADATA && o->version != 2 &&
	       !o->extended_l2 && !o->data_file_raw ? QCOW2_ZERO : 0;
}

static int write_image(struct target *to, const struct layout *l, const struct qcow2_create *o)
{
	uint64_t cs = 1ull << l->cluster_bits;
	int rc = write_refcounts(to, l);

	if (!rc)
		rc = write_l1(to, l);
	if (!rc)
		rc = write_l2(to, l, o, extra_bits(to, l, o));
	if (!rc)
		rc = sync_target(to);
	memset(to->cluster, 0, cs);
	if (!rc)
		rc = put_header(to->cluster, l, o);
	if (!rc)
		rc = put(to, to->cluster, 0, cs);
	return rc ? rc : sync_target(to);
}

static int create(struct target *to, const struct qcow2_create *o, struct error *err)
{
	struct layout l = { 0 };
	int rc = layout_sizes(&l, o, err);

	if (!rc)
		rc = layout_make(&l, o, err);
	if (rc)
		return rc;
	to->cluster = aligned_alloc(4096, align_up(1ull << l.cluster_bits, 4096));
	to->zeroes = aligned_alloc(4096, PIECE);
	if (!to->cluster || !to->zeroes) {
		rc = error_set(err, -ENOMEM, "Out of memory");
	} else {
		memset(to->zeroes, 0, PIECE);
		rc = to->f ? 0 : lengthen(to, 0, err);
		if (!rc)
			rc = preallocate(to, &l, err);
		if (!rc) {
			rc = write_image(to, &l, o);
			if (rc == -ENOSPC && (o->backing_file || o->data_file))
				error_set(err, rc, "The names of the backing or data file do not fit into the header of a cluster of %u bytes, or the disk is full",
					  1u << l.cluster_bits);
			else if (rc)
				error_errno(err, rc, "Could not write the new image");
		}
	}
	free(to->cluster);
	free(to->zeroes);
	return rc;
}

int qcow2_create(struct io_file *f, const struct qcow2_create *o, struct error *err)
{
	struct target to = { .f = f, .go_on = o->go_on, .arg = o->arg };

	if (o->data_file)
		return error_set(err, -EINVAL, "An external data file needs a node");
	return create(&to, o, err);
}

int qcow2_create_node(struct node *file, struct node *data, const struct qcow2_create *o,
		      struct error *err)
{
	struct target to = { .file = file, .data = data, .go_on = o->go_on, .arg = o->arg };

	if (!o->data_file != !data)
		return error_set(err, -EINVAL, "data-file needs a node and a name");
	return create(&to, o, err);
}
