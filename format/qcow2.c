// SPDX-License-Identifier: BSD-3-Clause
/* qcow2: the driver's table, its options, open and close.
 *
 * Specification: QEMU's docs/interop/qcow2.txt, version 3.  The parts and who
 * does what are listed in qcow2-int.h; the order on storage is in qcow2-flush.c.
 *
 * An image that is opened read-only is never written to.  Opened for writing, it is
 * first brought to what the last session acknowledged, and repaired, if that one did
 * not end (qcow2-replay.c, qcow2-repair.c); then the header says that it is open, and
 * does no longer vouch for what we would not maintain.  A clean close writes all tables
 * and gives back what was freed, so that nothing is leaked.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/options.h"

#define L2_CACHE_DEFAULT	(32u << 20)	/* bytes */
#define REF_CACHE_DEFAULT	(1u << 20)
#define SLICE_DEFAULT		4096u
#define SLICES_MIN		8u

struct cache_options {
	uint64_t total, l2, ref, slice;	/* bytes */
	bool has_total, has_l2, has_ref;
};

static int take_cache_options(struct json_object *opts, struct cache_options *o, struct error *err)
{
	int rc;

	o->has_total = json_object_object_get_ex(opts, "cache-size", NULL);
	o->has_l2 = json_object_object_get_ex(opts, "l2-cache-size", NULL);
	o->has_ref = json_object_object_get_ex(opts, "refcount-cache-size", NULL);
	rc = opts_u64(opts, "cache-size", &o->total, err);
	if (!rc)
		rc = opts_u64(opts, "l2-cache-size", &o->l2, err);
	if (!rc)
		rc = opts_u64(opts, "refcount-cache-size", &o->ref, err);
	if (!rc)
		rc = opts_u64(opts, "l2-cache-entry-size", &o->slice, err);
	if (rc)
		return rc;
	if (o->has_total && o->has_l2 && o->has_ref)
		return error_set(err, -EINVAL, "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
	if (o->has_total && o->l2 > o->total)
		return error_set(err, -EINVAL, "l2-cache-size may not exceed cache-size");
	if (o->has_total && o->ref > o->total)
		return error_set(err, -EINVAL, "refcount-cache-size may not exceed cache-size");
	return 0;
}

/* Options of QEMU's that we know and do not have: refused by name, unless they
 * ask for what we do anyway. */
static int refuse_options(struct json_object *opts, struct error *err)
{
	static const char *const unsupported[] = {
		"encrypt", "pass-discard-request", "pass-discard-snapshot",
		"pass-discard-other", "discard-no-unref", "cache-clean-interval", NULL,
	};
	static const char *const checks[] = { "none", "constant", "cached", NULL };
	bool lazy = false;
	int check, rc;

	for (unsigned i = 0; unsupported[i]; i++)
		if (json_object_object_get_ex(opts, unsupported[i], NULL))
			return error_set(err, -ENOTSUP, "qcow2: the option '%s' is not supported",
					 unsupported[i]);
	rc = opts_bool(opts, "lazy-refcounts", &lazy, err);
	if (!rc && lazy)
		rc = error_set(err, -ENOTSUP, "qcow2: lazy-refcounts=on is not supported");
	/* What QEMU calls "cached" is always checked, which covers the weaker ones. */
	if (!rc && json_object_object_get_ex(opts, "overlap-check", NULL))
		rc = opts_enum(opts, "overlap-check", checks, &check, err);
	return rc;
}

/* Bytes of the two caches, in the manner of QEMU's read_cache_sizes(). */
static void share_cache(struct cache_options *o, uint64_t l2_need)
{
	if (o->has_total && o->has_l2) {
		o->ref = o->total - o->l2;
	} else if (o->has_total && o->has_ref) {
		o->l2 = o->total - o->ref;
	} else if (o->has_total) {
		o->l2 = min_u64(l2_need, o->total - o->total / 8);
		o->ref = o->total - o->l2;
	}
	if (!o->has_total && !o->has_l2)
		o->l2 = L2_CACHE_DEFAULT;
	if (!o->has_total && !o->has_ref)
		o->ref = REF_CACHE_DEFAULT;
}

static unsigned log2_of(uint64_t n)
{
	return 63 - __builtin_clzll(n);
}

static int init_caches(struct qcow2 *s, struct cache_options *o, struct error *err)
{
	uint64_t slice = o->slice ? o->slice : min_u64(SLICE_DEFAULT, s->cluster_size);
	uint64_t l2_need = DIV_ROUND_UP(s->h.size, s->cluster_size) << s->entry_shift, slices, need;
	unsigned bits;
	int rc;

	if (!is_pow2(slice) || slice < 512 || slice > s->cluster_size)
		return error_set(err, -EINVAL, "L2 cache entry size must be a power of two between 512 and the cluster size (%" PRIu64 ")",
				 s->cluster_size);
	share_cache(o, l2_need);
	bits = log2_of(slice);
	s->slice_mask = (1u << (bits - s->entry_shift)) - 1;
	s->slice_shift = s->cluster_bits + bits - s->entry_shift;
	need = max_u64(DIV_ROUND_UP(l2_need, slice), SLICES_MIN);
	slices = max_u64(o->l2 / slice, SLICES_MIN);
	rc = cache_init(&s->l2, slice, min_u64(slices, need));
	/* With all of it in memory nothing is ever flushed for room. */
	s->l2_dirty_max = slices >= need ? UINT32_MAX : s->l2.max / 2;

	slice = min_u64(SLICE_DEFAULT, s->cluster_size);
	s->ref_shift = log2_of(slice) + 3 - s->h.refcount_order;
	s->ref_block_shift = s->cluster_bits + 3 - s->h.refcount_order;
	if (!rc)
		rc = cache_init(&s->ref, slice, max_u64(o->ref / slice, SLICES_MIN));
	return rc ? error_set(err, rc, "Could not allocate the metadata caches") : 0;
}

static int read_tables(struct qcow2 *s, struct error *err)
{
	uint64_t bytes = s->h.l1_size * 8ull, memory = align_up(max_u64(bytes, 1), L1_SECTOR);
	uint64_t table_bytes = (uint64_t)s->h.reftable_clusters << s->cluster_bits;
	uint8_t *table;
	int rc;

	s->l1 = aligned_alloc(4096, memory);
	s->l1_dirty = calloc(1, memory / L1_SECTOR);
	table = aligned_alloc(4096, align_up(table_bytes, 4096));
	if (!s->l1 || !s->l1_dirty || !table) {
		free(table);
		return error_set(err, -ENOMEM, "Out of memory");
	}
	memset(s->l1, 0, memory);
	rc = bytes ? qcow2_file_read(s, s->l1, s->h.l1_offset, bytes) : 0;
	if (rc) {
		free(table);
		return error_errno(err, rc, "Could not read L1 table");
	}
	rc = qcow2_file_read(s, table, s->h.reftable_offset, table_bytes);
	refcount_table_set(s, table, s->h.reftable_clusters);
	return rc ? error_errno(err, rc, "Could not read refcount table") : 0;
}

static int collect_tables(struct qcow2 *s, struct error *err)
{
	int rc = qcow2_meta_init(s);

	if (rc == -EUCLEAN)
		return error_set(err, rc, "Could not open '%s' for writing: its metadata tables overlap; repair it with 'qemu-img check -r all', or open it read-only",
				 qcow2_name(s));
	return rc ? error_set(err, rc, "Out of memory") : 0;
}

/* Why the image cannot be opened for writing; NULL if it can. */
static const char *why_read_only(const struct qcow2 *s)
{
	if (s->h.incompatible & QCOW2_CORRUPT)
		return "Image is corrupt; cannot be opened read/write; repair it with 'qemu-img check -r all', or open it read-only";
	if (s->snapshot)
		return "an internal snapshot can only be read";
	return NULL;
}

static int settle_read_only(struct qcow2 *s, struct error *err)
{
	struct node *n = s->node;
	const char *why = why_read_only(s);

	if (!n->read_only && !why && s->file->read_only)
		why = "its file is opened read-only";
	if (n->read_only || !why)
		return 0;
	if (!n->auto_read_only)
		return error_set(err, -EACCES, "Could not open '%s' for writing: %s", qcow2_name(s), why);
	n->read_only = true;
	return 0;
}

/* Autoclear bits vouch for what only those maintain who know them. */
static void clear_unknown_bits(struct qcow2 *s)
{
	uint64_t known = node_bitmap_hooks ? QCOW2_BITMAPS : 0;

	if (!qcow2_ext_find(&s->h, QCOW2_EXT_BITMAPS))
		known = 0;
	if (s->has_data_file)
		known |= QCOW2_RAW_DATA_FILE;
	if (node_bitmap_hooks && qcow2_ext_find(&s->h, QCOW2_EXT_LIVE) && s->h.autoclear & QCOW2_LIVE)
		known |= QCOW2_LIVE;
	else
		qcow2_ext_drop(&s->h, QCOW2_EXT_LIVE);
	s->h.autoclear &= known;
}

/* From here on the image is written to. */
static int begin_writing(struct qcow2 *s, struct error *err)
{
	int rc;

	if (!s->node->read_only && s->h.version > 2 && !qcow2_header_may_have_room(s))
		return error_errno(err, -ENOSPC, "Could not update qcow2 header");
	rc = qcow2_replay(s, err);
	if (!rc)
		rc = qcow2_repair(s, err);
	if (rc || s->node->read_only)
		return rc;
	clear_unknown_bits(s);
	return crashlog_begin(s, err);
}

static int open_file(struct qcow2 *s, struct json_object *opts, struct error *err)
{
	struct node *n = s->node;
	int rc = node_open_child(n, opts, "file", CHILD_FILE, err);

	if (rc == -ENOENT && !n->child[CHILD_FILE] && !(err && err->code))
		return error_set(err, -EINVAL, "Parameter 'file' is missing");
	if (rc)
		return rc;
	s->file = n->child[CHILD_FILE];
	if (!n->filename && s->file->filename)
		n->filename = strdup(s->file->filename);
	return 0;
}

static int open_image(struct qcow2 *s, struct json_object *opts, struct error *err)
{
	struct cache_options cache = { 0 };
	struct node *n = s->node;
	int rc = take_cache_options(opts, &cache, err);

	if (!rc)
		rc = refuse_options(opts, err);
	if (!rc)
		rc = opts_str(opts, "internal-snapshot", &s->snapshot, err);
	if (!rc)
		rc = crashlog_options(s, opts, err);
	if (!rc)
		rc = open_file(s, opts, err);
	if (!rc)
		rc = qcow2_header_read(s, err);
	if (!rc)
		rc = qcow2_snapshots_load(s, err);
	if (!rc)
		rc = settle_read_only(s, err);
	if (!rc && s->snapshot)
		rc = qcow2_snapshot_use(s, s->snapshot, err);
	if (!rc && !n->read_only)
		rc = qcow2_snapshots_check(s, err);
	if (!rc)
		rc = qcow2_open_data_file(s, opts, err);
	if (!rc)
		rc = init_caches(s, &cache, err);
	if (rc)
		return rc;
	n->size = s->h.size;
	s->host_end = align_up(s->file->size, s->cluster_size);
	s->regular_file = !strcmp(s->file->driver->name, "file");
	rc = read_tables(s, err);
	if (n->read_only)
		s->host_limit = QCOW2_HOST_MAX;	/* refcounts are of no concern then */
	if (!rc && !n->read_only)
		rc = collect_tables(s, err);
	if (!rc)
		rc = qcow2_open_backing(s, opts, err);
	if (!rc)
		rc = begin_writing(s, err);
	return rc;
}

static void free_state(struct qcow2 *s)
{
	cache_free(&s->l2);
	cache_free(&s->ref);
	qcow2_compressed_free(s);
	qcow2_snapshots_free(s);
	qcow2_header_free(&s->h);
	free(s->snapshot);
	free(s->l1);
	free(s->l1_dirty);
	free(s->reftable);
	free(s->log_dir);
	free(s->meta.v);
	free(s->flush.freed.v);
	free(s->flush.cleared.v);
	s->node->state = NULL;
	free(s);
}

static int qcow2_open(struct node *n, struct json_object *opts, struct error *err)
{
	struct qcow2 *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return error_set(err, -ENOMEM, "Out of memory");
	s->node = n;
	n->state = s;
	rc = open_image(s, opts, err);
	if (!rc && node_bitmap_hooks && node_bitmap_hooks->load)
		rc = node_bitmap_hooks->load(n, err);
	if (rc) {
		crashlog_end(s, true);	/* nothing else was changed: close has nothing to write */
		free_state(s);
	}
	return rc;
}

static void qcow2_close(struct node *n)
{
	struct qcow2 *s = qcow2_of(n);
	struct error err = ERROR_INIT;
	int rc = 0;

	qcow2_flush_idle(s);
	if (s->aside)
		s->aside->ends(s->aside);
	if (!n->read_only && !s->corrupt) {
		s->live_ends = !node_bitmap_hooks || !node_bitmap_hooks->store ||
			       !node_bitmap_hooks->store(n, &err);
		if (!s->live_ends)
			log_error("bitmaps could not be stored: image=%s error=%s", qcow2_name(s), err.text);
		rc = qcow2_flush_clean(s);
	}
	if (!n->read_only)
		rc = crashlog_end(s, !rc && !s->corrupt) ?: rc;
	if (node_bitmap_hooks && node_bitmap_hooks->closed)
		node_bitmap_hooks->closed(n, s->live_ends && !rc && !s->corrupt);
	if (rc && !n->graph->close_rc)
		n->graph->close_rc = rc;
	if (rc)
		log_error("image could not be closed cleanly: image=%s error=%s", qcow2_name(s),
			  strerror(-rc));
	free_state(s);
}

static void qcow2_leave(struct node *n)
{
	qcow2_flush_idle(qcow2_of(n));
}

static int qcow2_flush_node(struct node *n)
{
	struct qcow2 *s = qcow2_of(n);

	return n->read_only ? 0 : qcow2_flush_all(s);
}

static void qcow2_child_perm(struct node *n, enum node_child c, unsigned perm, unsigned shared,
			     unsigned *cperm, unsigned *cshared)
{
	bool writes = c != CHILD_BACKING && !n->read_only &&
		      !(n->auto_read_only && n->child[c] && n->child[c]->read_only);

	*cperm = PERM_CONSISTENT_READ | (writes ? PERM_WRITE | PERM_RESIZE : 0);
	*cshared = PERM_ALL & ~(unsigned)(PERM_WRITE | PERM_RESIZE);
	/* A disk that somebody writes to was given as the backing image, for fleecing: that
	 * goes with users who do not mind. */
	if (c == CHILD_BACKING && n->child[c] && !n->child[c]->read_only)
		*cshared |= shared & PERM_WRITE ? PERM_WRITE | PERM_RESIZE : 0;
}

static bool qcow2_names_backing(const struct node *n)
{
	return qcow2_of((struct node *)n)->h.backing_name;
}

static void qcow2_backing_changed(struct node *n)
{
	struct qcow2 *s = qcow2_of(n);

	s->has_backing = n->child[CHILD_BACKING] || s->h.backing_name;
}

static void add_bool(struct json_object *o, const char *key, bool v)
{
	json_object_object_add(o, key, json_object_new_boolean(v));
}

/* Members of QEMU's ImageInfo and ImageInfoSpecificQCow2. */
static void qcow2_info(struct node *n, struct json_object *image)
{
	const struct qcow2 *s = qcow2_of(n);
	struct json_object *spec = json_object_new_object(), *data = json_object_new_object();

	json_object_object_add(image, "cluster-size", json_object_new_int64(s->cluster_size));
	add_bool(image, "dirty-flag", s->h.incompatible & QCOW2_DIRTY);
	json_object_object_add(data, "compat", json_object_new_string(s->h.version < 3 ? "0.10" : "1.1"));
	json_object_object_add(data, "compression-type",
			       json_object_new_string(s->h.compression ? "zstd" : "zlib"));
	json_object_object_add(data, "refcount-bits", json_object_new_int(1 << s->h.refcount_order));
	if (s->h.version >= 3) {
		add_bool(data, "lazy-refcounts", s->h.compatible & QCOW2_LAZY_REFCOUNTS);
		add_bool(data, "corrupt", s->h.incompatible & QCOW2_CORRUPT);
		add_bool(data, "extended-l2", s->ext_l2);
	}
	if (s->has_data_file) {
		if (s->data->filename)
			json_object_object_add(data, "data-file", json_object_new_string(s->data->filename));
		add_bool(data, "data-file-raw", qcow2_data_is_raw(s));
	}
	if (s->h.nb_snapshots)
		json_object_object_add(image, "snapshots", qcow2_snapshots_info(s));
	json_object_object_add(spec, "type", json_object_new_string("qcow2"));
	json_object_object_add(spec, "data", data);
	json_object_object_add(image, "format-specific", spec);
	if (s->h.backing_name)
		json_object_object_add(image, "backing-filename",
				       json_object_new_string(s->h.backing_name));
	if (s->h.backing_format)
		json_object_object_add(image, "backing-filename-format",
				       json_object_new_string(s->h.backing_format));
}

bool node_is_qcow2(const struct node *n)
{
	return n->driver == &qcow2_driver;
}

uint32_t qcow2_cluster_size(const struct node *n)
{
	return qcow2_of(n)->cluster_size;
}

int qcow2_meta_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	return qcow2_file_read(qcow2_of(n), buf, off, len);
}

int qcow2_meta_write(struct node *n, const void *buf, uint64_t off, size_t len)
{
	struct qcow2 *s = qcow2_of(n);
	int rc = s->corrupt || !len ? -EIO : qcow2_check_target(s, off, len);

	return rc ? rc : qcow2_file_write(s, buf, off, len, 0);
}

bool qcow2_meta_range_ok(struct node *n, uint64_t off, uint64_t len)
{
	struct qcow2 *s = qcow2_of(n);

	if (!off || !len || qcow2_in_cluster(s, off) || !checked_range(off, len, s->host_end))
		return false;
	return n->read_only || qcow2_is_owned(s, off, DIV_ROUND_UP(len, s->cluster_size));
}

int qcow2_meta_flush(struct node *n)
{
	return qcow2_flush_clean(qcow2_of(n));
}

static const char *const qcow2_options[] = {
	"file", "backing", "data-file", "internal-snapshot", "cache-size", "l2-cache-size", "refcount-cache-size",
	"l2-cache-entry-size", "lazy-refcounts", "overlap-check", "crash-log", "crash-log-dir", NULL,
};

const struct node_driver qcow2_driver = {
	.name = "qcow2",
	.options = qcow2_options,
	.open = qcow2_open,
	.close = qcow2_close,
	.read = qcow2_read,
	.write = qcow2_write,
	.zero = qcow2_zero,
	.discard = qcow2_discard,
	.flush = qcow2_flush_node,
	.map = qcow2_map,
	.truncate = qcow2_truncate,
	.child_perm = qcow2_child_perm,
	.leave = qcow2_leave,
	.info = qcow2_info,
	.names_backing = qcow2_names_backing,
	.backing_changed = qcow2_backing_changed,
};
