// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-header: the first cluster is read and checked; qcow2-header-write.c rewrites it.
 *
 * Specification: "Header", "Header extensions", "Feature name table".  All bytes
 * come from a stranger: every number is bounded here, before anything is
 * allocated for it or read from where it points to.  What we do not know is kept:
 * fields behind ours, extensions, byte for byte and in their order.
 *
 *	0              the fields, h.length bytes (version 2: 72, no feature bits)
 *	h.length       extensions: type, length, data, padded to 8; ended by type 0
 *	anywhere after the backing file's name, up to the end of the cluster
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u

struct qcow2_ext *qcow2_ext_find(struct qcow2_header *h, uint32_t type)
{
	for (unsigned i = 0; i < h->n_ext; i++)
		if (h->ext[i].type == type)
			return &h->ext[i];
	return NULL;
}

int qcow2_ext_put(struct qcow2_header *h, uint32_t type, const void *data, uint32_t len)
{
	struct qcow2_ext *e = qcow2_ext_find(h, type), *v;
	uint8_t *copy = malloc(len ? len : 1);

	if (!copy)
		return -ENOMEM;
	memcpy(copy, data, len);
	if (!e) {
		v = realloc(h->ext, (h->n_ext + 1) * sizeof(*v));
		if (!v) {
			free(copy);
			return -ENOMEM;
		}
		h->ext = v;
		e = &v[h->n_ext++];
		e->type = type;
	} else {
		free(e->data);
	}
	e->data = copy;
	e->len = len;
	return 0;
}

void qcow2_ext_drop(struct qcow2_header *h, uint32_t type)
{
	struct qcow2_ext *e = qcow2_ext_find(h, type);

	if (!e)
		return;
	free(e->data);
	memmove(e, e + 1, (--h->n_ext - (e - h->ext)) * sizeof(*e));
}

void qcow2_header_free(struct qcow2_header *h)
{
	for (unsigned i = 0; i < h->n_ext; i++)
		free(h->ext[i].data);
	free(h->ext);
	free(h->backing_name);
	free(h->backing_format);
	free(h->bytes);
}

static void parse_fields(struct qcow2_header *h, const uint8_t *p)
{
	h->backing_offset = get_be64(p + H_BACKING_OFFSET);
	h->cluster_bits = get_be32(p + H_CLUSTER_BITS);
	h->size = get_be64(p + H_SIZE);
	h->l1_size = get_be32(p + H_L1_SIZE);
	h->l1_offset = get_be64(p + H_L1_OFFSET);
	h->reftable_offset = get_be64(p + H_REFTABLE_OFFSET);
	h->reftable_clusters = get_be32(p + H_REFTABLE_CLUSTERS);
	h->nb_snapshots = get_be32(p + H_NB_SNAPSHOTS);
	h->snapshots_offset = get_be64(p + H_SNAPSHOTS_OFFSET);
	if (h->version == 2) {
		h->refcount_order = 4;
		h->length = H_LENGTH_V2;
		return;
	}
	h->incompatible = get_be64(p + H_INCOMPATIBLE);
	h->compatible = get_be64(p + H_COMPATIBLE);
	h->autoclear = get_be64(p + H_AUTOCLEAR);
	h->refcount_order = get_be32(p + H_REFCOUNT_ORDER);
	h->length = get_be32(p + H_LENGTH);
}

/* What can be said from the first sector alone, in the specification's order. */
static int check_fields(struct qcow2 *s, const uint8_t *p, size_t n, struct error *err)
{
	struct qcow2_header *h = &s->h;
	uint32_t crypt;

	h->version = get_be32(p + H_VERSION);
	if (n < H_LENGTH_V2 || get_be32(p + H_MAGIC) != QCOW2_MAGIC)
		return error_set(err, -EINVAL, "Image is not in qcow2 format");
	if (h->version != 2 && h->version != 3)
		return error_set(err, -ENOTSUP, "Unsupported qcow2 version %" PRIu32, h->version);
	if (h->version == 3 && n < H_LENGTH_MIN)
		return error_set(err, -EINVAL, "qcow2 header too short");
	parse_fields(h, p);
	if (h->cluster_bits < 9 || h->cluster_bits > 21)
		return error_set(err, -EINVAL, "Unsupported cluster size: 2^%" PRIu32, h->cluster_bits);
	if (h->size > INT64_MAX)
		return error_set(err, -EFBIG, "Image size is too large");
	crypt = get_be32(p + H_CRYPT);
	if (crypt > 2)
		return error_set(err, -EINVAL, "Unsupported encryption method %" PRIu32, crypt);
	if (crypt)
		return error_set(err, -ENOTSUP, "Encrypted qcow2 images are not supported (this one: %s)",
				 crypt == 2 ? "LUKS" : "AES");
	if (h->refcount_order > 6)
		return error_set(err, -EINVAL, "Reference count entry width too large; may not exceed 64 bits");
	if (h->version == 3 && h->length < H_LENGTH_MIN)
		return error_set(err, -EINVAL, "qcow2 header too short");
	if (h->length > (1u << h->cluster_bits))
		return error_set(err, -EINVAL, "qcow2 header exceeds cluster size");
	if (h->length % 8)
		return error_set(err, -EINVAL, "qcow2 header length is not a multiple of 8");
	return 0;
}

/* The name of an incompatible bit in the feature name table, if it is there. */
static bool feature_name(struct qcow2_header *h, unsigned bit, char *out, size_t max)
{
	const struct qcow2_ext *e = qcow2_ext_find(h, QCOW2_EXT_FEATURE_NAMES);

	for (uint32_t i = 0; e && i + 48 <= e->len; i += 48) {
		const uint8_t *f = e->data + i;

		if (f[0] == 0 && f[1] == bit && f[2] && utf8_valid(f + 2, strnlen((char *)f + 2, 46))) {
			snprintf(out, max, "%.46s", (const char *)f + 2);
			return true;
		}
	}
	return false;
}

/* In QEMU's words: the names, then the bits without one as a hexadecimal mask. */
static int refuse_features(struct qcow2_header *h, uint64_t unknown, struct error *err)
{
	char text[512] = "", name[64];
	uint64_t nameless = 0;
	size_t n = 0;

	for (unsigned bit = 0; bit < 64 && n < sizeof(text) / 2; bit++) {
		if (!(unknown >> bit & 1))
			continue;
		if (feature_name(h, bit, name, sizeof(name)))
			n += snprintf(text + n, sizeof(text) - n, "%s%s", n ? ", " : "", name);
		else
			nameless |= 1ull << bit;
	}
	if (nameless)
		snprintf(text + n, sizeof(text) - n, "%sUnknown incompatible feature: %" PRIx64,
			 n ? ", " : "", nameless);
	return error_set(err, -ENOTSUP, "Unsupported qcow2 feature(s): %s", text);
}

static int check_incompatible(struct qcow2 *s, struct error *err)
{
	uint64_t unknown = s->h.incompatible & ~(uint64_t)(QCOW2_DIRTY | QCOW2_CORRUPT | QCOW2_COMPRESSION |
							   QCOW2_DATA_FILE | QCOW2_EXTENDED_L2);

	if (unknown)
		return refuse_features(&s->h, unknown, err);
	if (s->h.incompatible & QCOW2_EXTENDED_L2 && s->cluster_bits < 14)
		return error_set(err, -EINVAL, "Extended L2 entries need clusters of at least 16 KiB");
	if (s->h.compression > 1 || !!s->h.compression != !!(s->h.incompatible & QCOW2_COMPRESSION))
		return error_set(err, -EINVAL, "qcow2: the compression type field (%u) contradicts the feature bits",
				 s->h.compression);
	return 0;
}

static int parse_extensions(struct qcow2_header *h, const uint8_t *p, uint64_t end, uint64_t *at,
			    struct error *err)
{
	while (end - *at >= 8) {
		uint32_t type = get_be32(p + *at), len = get_be32(p + *at + 4);
		struct qcow2_ext *v;

		*at += 8;
		if (type == QCOW2_EXT_END)
			return 0;
		if (len > end - *at)
			return error_set(err, -EINVAL, "Header extension 0x%08" PRIx32 " is too large", type);
		if (h->n_ext == QCOW2_EXTENSIONS_MAX)
			return error_set(err, -EINVAL, "Too many header extensions");
		v = realloc(h->ext, (h->n_ext + 1) * sizeof(*v));
		if (!v)
			return error_set(err, -ENOMEM, "Out of memory");
		h->ext = v;
		v[h->n_ext].data = malloc(len ? len : 1);
		if (!v[h->n_ext].data)
			return error_set(err, -ENOMEM, "Out of memory");
		memcpy(v[h->n_ext].data, p + *at, len);
		v[h->n_ext].type = type;
		v[h->n_ext++].len = len;
		*at += min_u64(align_up(len, 8), end - *at);
	}
	return 0;
}

static int parse_backing(struct qcow2_header *h, const uint8_t *p, uint64_t cluster_size,
			 struct error *err)
{
	uint32_t len = get_be32(p + H_BACKING_SIZE);
	const struct qcow2_ext *e = qcow2_ext_find(h, QCOW2_EXT_BACKING_FORMAT);

	if (!h->backing_offset || !len)
		return 0;
	if (len > QCOW2_BACKING_NAME_MAX)
		return error_set(err, -EINVAL, "Backing file name too long");
	if (!checked_range(h->backing_offset, len, cluster_size))
		return error_set(err, -EINVAL, "Invalid backing file offset");
	if (memchr(p + h->backing_offset, 0, len))
		return error_set(err, -EINVAL, "The backing file name has a NUL byte in it");
	h->backing_name = strndup((const char *)p + h->backing_offset, len);
	if (e && e->len && !memchr(e->data, 0, e->len))
		h->backing_format = strndup((const char *)e->data, e->len);
	if (!h->backing_name || (e && e->len && !h->backing_format && !memchr(e->data, 0, e->len)))
		return error_set(err, -ENOMEM, "Out of memory");
	return 0;
}

/* Where the tables are; they are read later, but nothing there is unbounded. */
static int check_tables(struct qcow2 *s, struct error *err)
{
	struct qcow2_header *h = &s->h;
	uint64_t cs = s->cluster_size, file = s->file->size;
	uint64_t need = DIV_ROUND_UP(h->size, 1ull << s->l1_shift);
	uint64_t table = (uint64_t)h->reftable_clusters << h->cluster_bits;

	if (h->l1_size > QCOW2_L1_BYTES_MAX / 8 || need > QCOW2_L1_BYTES_MAX / 8)
		return error_set(err, -EFBIG, "Active L1 table too large");
	if (h->l1_size < need)
		return error_set(err, -EINVAL, "L1 table is too small");
	if (h->l1_size && (h->l1_offset % cs || !h->l1_offset ||
			   !checked_range(h->l1_offset, h->l1_size * 8ull, file)))
		return error_set(err, -EINVAL, "Invalid L1 table offset");
	if (!h->reftable_clusters)
		return error_set(err, -EINVAL, "Image does not contain a reference count table");
	if (table > QCOW2_REFTABLE_BYTES_MAX)
		return error_set(err, -EINVAL, "Reference count table too large");
	if (h->reftable_offset % cs || !h->reftable_offset || h->reftable_offset >= file)
		return error_set(err, -EINVAL, "Invalid reference count table offset");
	if (h->nb_snapshots > QCOW2_SNAPSHOTS_MAX)
		return error_set(err, -EINVAL, "Too many snapshots");
	if (h->nb_snapshots && (h->snapshots_offset % cs || h->snapshots_offset >= file))
		return error_set(err, -EINVAL, "Invalid snapshot table offset");
	return 0;
}

static int parse_cluster(struct qcow2 *s, const uint8_t *p, struct error *err)
{
	struct qcow2_header *h = &s->h;
	uint64_t at = h->length, end = s->cluster_size;
	int rc;

	if (h->backing_offset > h->length)	/* the name ends the extensions' room */
		end = min_u64(end, h->backing_offset);
	rc = parse_extensions(h, p, end, &at, err);
	if (!rc)
		rc = parse_backing(h, p, s->cluster_size, err);
	if (rc)
		return rc;
	h->compression = h->length > H_COMPRESSION ? p[H_COMPRESSION] : 0;
	if (h->backing_name)
		at = max_u64(at, h->backing_offset + strlen(h->backing_name));
	h->n_bytes = at;
	h->bytes = malloc(at);
	if (!h->bytes)
		return error_set(err, -ENOMEM, "Out of memory");
	memcpy(h->bytes, p, at);
	return check_incompatible(s, err);
}

int qcow2_header_read(struct qcow2 *s, struct error *err)
{
	uint8_t first[SECTOR], *cluster;
	int rc = qcow2_file_read(s, first, 0, sizeof(first));

	if (rc)
		return error_errno(err, rc, "Could not read qcow2 header");
	rc = check_fields(s, first, min_u64(s->file->size, sizeof(first)), err);
	if (rc)
		return rc;
	s->cluster_bits = s->h.cluster_bits;
	s->cluster_size = 1ull << s->cluster_bits;
	cluster = malloc(s->cluster_size);
	if (!cluster)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = qcow2_file_read(s, cluster, 0, s->cluster_size);
	if (rc)
		error_errno(err, rc, "Could not read qcow2 header");
	else
		rc = parse_cluster(s, cluster, err);
	free(cluster);
	s->ext_l2 = s->h.incompatible & QCOW2_EXTENDED_L2;
	s->has_data_file = s->h.incompatible & QCOW2_DATA_FILE;
	s->entry_shift = s->ext_l2 ? 4 : 3;
	s->sub_bits = s->ext_l2 ? s->cluster_bits - 5 : s->cluster_bits;
	s->l1_shift = 2 * s->cluster_bits - s->entry_shift;
	return rc ? rc : check_tables(s, err);
}
