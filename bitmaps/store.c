/* SPDX-License-Identifier: BSD-3-Clause */
/* store: persistent bitmaps go into the qcow2 image at a clean close, and out of it
 * when they are removed.
 *
 * While an image is open read-write, its directory on storage names the bitmaps that
 * were there at open and are not removed since, all marked as in use (store-load.c).
 * A bitmap that is added is in memory only until the clean close.  Two ways lead
 * from one directory to the next:
 *
 * Nothing but flags differs (no bit changed since the load): the flags are written
 * in place; any mixture of old and new bytes is a true directory.
 *
 * Otherwise a new directory is made beside the old one:
 *
 *	1. new clusters: bits, then tables, then the directory	nothing refers to them
 *	2. flush: they and their refcounts are durable		a crash leaks them
 *	3. the header refers to the new directory, durably	the switch
 *	4. the old directory, tables and bits are freed		a crash leaks them
 *
 * Before 3 a crash leaves the old directory, marked as in use: nobody trusts it.
 * If 1 or 2 fails (no space), the new clusters are given back and the image stays as
 * it was, with the bitmaps inconsistent at the next open: they are lost, the disk is
 * not.  If 3 fails nobody knows which header is on storage, so nothing is freed.
 *
 * What could not be loaded is carried along byte for byte, marked as in use.  What
 * could not even be parsed is not referred to any more (store-load.c).
 */

#include "bitmaps/live.h"
#include "bitmaps/store-int.h"
#include "bitmaps/store-raw.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

/* On the way from one directory to the next. */
struct change {
	struct node *n;
	struct qcow2_bitmap_ext old;	/* directory_size 0: there is none */
	struct directory dir;		/* what is to be stored */
	struct dir_entry *gone;		/* whose clusters are freed after the switch */
	uint32_t n_gone, max_gone;
	struct store_runs fresh;	/* what the new directory needs */
	bool flags_differ, rest_differs;
};

static int change_begin(struct change *c, struct node *n, struct error *err)
{
	struct error reason = ERROR_INIT;
	int rc;

	*c = (struct change){ .n = n };
	rc = store_read_dir(n, &c->old, &c->dir, &reason);
	if (rc == -ENOENT)
		return 0;
	if (rc < 0)
		return error_set(err, rc, "Cannot read the bitmap directory of '%s': %s", n->name,
				 reason.text);
	return 0;
}

static void change_end(struct change *c)
{
	dir_free(&c->dir);
	free(c->gone);
	store_runs_drop(&c->fresh);
}

/* The entry's clusters will be free. */
static int change_frees(struct change *c, const struct dir_entry *e)
{
	if (c->n_gone == c->max_gone) {
		uint32_t max = c->max_gone ? c->max_gone * 2 : 4;
		void *v = realloc(c->gone, max * sizeof(*c->gone));

		if (!v)
			return -ENOMEM;
		c->gone = v;
		c->max_gone = max;
	}
	c->gone[c->n_gone++] = *e;
	return 0;
}

static int write_directory(struct change *c, struct qcow2_bitmap_ext *ext)
{
	uint64_t len = align_up(c->dir.len, qcow2_cluster_size(c->n));
	uint8_t *padded = calloc(1, len);
	int64_t off;

	if (!padded)
		return -ENOMEM;
	memcpy(padded, c->dir.bytes, c->dir.len);
	off = store_write_new(c->n, padded, len, &c->fresh);
	free(padded);
	if (off < 0)
		return (int)off;
	*ext = (struct qcow2_bitmap_ext){ .nb_bitmaps = c->dir.n, .directory_size = c->dir.len,
					  .directory_offset = (uint64_t)off };
	return qcow2_meta_flush(c->n);
}

/* Step 4; what goes wrong here is a leak. */
static void free_old(struct change *c)
{
	uint64_t cs = qcow2_cluster_size(c->n);

	for (uint32_t i = 0; i < c->n_gone; i++)
		store_free_entry(c->n, &c->gone[i]);
	if (c->old.directory_size)
		qcow2_free_clusters(c->n, c->old.directory_offset,
				    DIV_ROUND_UP(c->old.directory_size, cs));
}

/* Steps 1 (its last part) to 4. */
static int switch_directory(struct change *c, struct error *err)
{
	struct qcow2_bitmap_ext ext;
	int rc;

	if (c->dir.n) {
		rc = write_directory(c, &ext);
		if (rc < 0) {
			store_runs_undo(c->n, &c->fresh);
			return error_errno(err, rc, "Cannot write the bitmap directory of '%s'",
					   c->n->name);
		}
	}
	rc = qcow2_bitmap_ext_set(c->n, c->dir.n ? &ext : NULL, err);
	if (rc == 0)
		free_old(c);
	return rc;
}

static int change_commit(struct change *c, struct error *err)
{
	int rc;

	if (c->rest_differs)
		return switch_directory(c, err);
	if (!c->flags_differ)
		return 0;
	rc = store_write_flags(c->n, &c->old, &c->dir);
	if (rc < 0)
		return error_errno(err, rc, "Cannot write the bitmap directory of '%s'",
				   c->n->name);
	return 0;
}

/* Puts B's bits into new clusters and its entry, number I or a new one, into the directory. */
static int store_bits(struct change *c, struct bitmap *b, int64_t i, uint32_t flags)
{
	struct dir_entry old, e = { .flags = flags,
				    .granularity_bits = (uint8_t)b->granularity_bits };
	int rc = 0;

	c->rest_differs = true;
	if (i >= 0) {
		dir_get(&c->dir, (uint32_t)i, &old);
		rc = change_frees(c, &old);
	}
	if (rc == 0)
		rc = store_write_bits(b, &e, &c->fresh);
	if (rc < 0)
		return rc;
	if (i >= 0) {
		dir_set_flags(&c->dir, (uint32_t)i, flags);
		dir_set_table(&c->dir, (uint32_t)i, e.table_offset, e.table_size);
		return 0;
	}
	memcpy(e.name, b->name, strlen(b->name) + 1);
	return dir_append(&c->dir, &e);
}

/* An epoch's last granule is dirty in every image that is closed.  Whoever resizes the image
 * meanwhile, and its bitmaps with it as the format has it, takes that bit away or leaves it
 * in the middle: what was cut off and came back as zeroes is in no bitmap (store-load.c). */
static void mark_end(struct bitmap *b)
{
	if (bitmap_is_epoch(b) && b->size)
		bitmap_mark(b, b->size - 1, 1);
}

/* I: B's entry in the directory, or -1. */
static int store_one(struct change *c, struct bitmap *b, int64_t i, struct error *err)
{
	uint32_t flags = b->enabled ? DIR_AUTO : 0;
	struct dir_entry e;
	int rc = 0;

	if (i >= 0) {
		dir_get(&c->dir, (uint32_t)i, &e);
		flags |= e.flags & DIR_EXTRA_COMPATIBLE;
	}
	if (b->size != c->n->size)
		rc = bitmap_resize(b, c->n->size);
	if (rc == 0)
		mark_end(b);
	if (rc == 0 && i >= 0 && !b->changed)
		c->flags_differ |= dir_set_flags(&c->dir, (uint32_t)i, flags);
	else if (rc == 0)
		rc = store_bits(c, b, i, flags);
	if (rc < 0)
		return error_errno(err, rc, "Cannot store bitmap '%s' in '%s'", b->name,
				   c->n->name);
	return 0;
}

static bool is_stored(const struct bitmap *b)
{
	return b->persistent && !b->inconsistent && !b->read_only;
}

/* Those of N that are to be stored, the oldest first: the order of the directory. */
static struct bitmap **list_stored(struct node *n, uint32_t *count)
{
	struct bitmap **v;
	uint32_t k = 0;

	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		k += is_stored(b);
	*count = k;
	v = calloc(k ? k : 1, sizeof(*v));
	for (struct bitmap *b = n->bitmaps; b && v; b = b->next)
		if (is_stored(b))
			v[--k] = b;
	return v;
}

/* The entry called NAME goes, if there is one, and its clusters do. */
static int take_out(struct change *c, const char *name)
{
	int64_t i = dir_find(&c->dir, name, 0);
	struct dir_entry e;
	int rc;

	if (i < 0)
		return 0;
	dir_get(&c->dir, (uint32_t)i, &e);
	rc = change_frees(c, &e);
	if (rc)
		return rc;
	dir_delete(&c->dir, (uint32_t)i);
	c->rest_differs = true;
	return 0;
}

static int store_all(struct change *c, struct bitmap *const *v, uint32_t count,
		     struct error *err)
{
	uint32_t hint = 0;
	int64_t i;
	int rc = 0;

	for (uint32_t k = 0; k < count && rc == 0; k++)
		rc = v[k]->stored_name ? take_out(c, v[k]->stored_name) : 0;
	for (uint32_t k = 0; k < count && rc == 0; k++) {
		i = dir_find(&c->dir, v[k]->name, hint);
		if (i >= 0)
			hint = (uint32_t)i + 1;
		rc = store_one(c, v[k], i, err);
	}
	if (rc < 0)
		store_runs_undo(c->n, &c->fresh);
	else
		rc = change_commit(c, err);
	for (uint32_t k = 0; k < count && rc == 0; k++) {
		v[k]->changed = false;
		free(v[k]->stored_name);
		v[k]->stored_name = NULL;
	}
	return rc;
}

static int store_store(struct node *n, struct error *err)
{
	struct bitmap **v;
	struct change c;
	uint32_t count;
	int rc;

	if (n->read_only)
		return 0;
	v = list_stored(n, &count);
	if (!v)
		return error_set(err, -ENOMEM, "Out of memory");
	if (count) {
		rc = change_begin(&c, n, err);
		if (rc == 0)
			rc = store_all(&c, v, count, err);
		change_end(&c);
	} else {
		rc = 0;		/* what is in the image stays as it is, marked as in use */
	}
	free(v);
	return rc;
}

int store_remove_entry(struct node *n, const char *name, struct error *err)
{
	struct change c;
	int rc = change_begin(&c, n, err);

	if (rc == 0)
		rc = take_out(&c, name);
	if (rc == 0)
		rc = change_commit(&c, err);
	change_end(&c);
	return rc;
}

int store_remove(struct bitmap *b, struct error *err)
{
	struct tracker *t = b->tracker;
	int rc;

	if (store_is_raw(b->node))
		return store_raw_remove(b);
	co_mutex_lock(&t->storing);
	rc = store_remove_entry(b->node, b->stored_name ? b->stored_name : b->name, err);
	co_mutex_unlock(&t->storing);
	return rc;
}

static int check_image(struct node *n, const char *name, unsigned granularity_bits,
		       struct error *err)
{
	uint64_t bytes = bitmap_data_bytes(n->size, granularity_bits), dir_bytes;
	uint32_t count = 0;

	dir_bytes = align_up(DIR_ENTRY_HEAD + strlen(name), 8);
	for (struct bitmap *b = n->bitmaps; b; b = b->next) {
		if (!b->persistent)
			continue;
		count++;
		dir_bytes += align_up(DIR_ENTRY_HEAD + strlen(b->name), 8);
	}
	if (n->read_only)
		return error_set(err, -EROFS, "The image is read only");
	if (!n->size)
		return error_set(err, -EINVAL, "The image is empty");
	if (count >= BITMAPS_MAX)
		return error_set(err, -ENOSPC, "Maximum number of persistent bitmaps is already "
				 "reached");
	if (dir_bytes > DIR_BYTES_MAX)
		return error_set(err, -ENOSPC, "Not enough space in the bitmap directory");
	if (bytes > BITMAP_BYTES_MAX ||
	    DIV_ROUND_UP(bytes, qcow2_cluster_size(n)) > TABLE_ENTRIES_MAX)
		return error_set(err, -EFBIG, "Too much space will be occupied by the bitmap. "
				 "Use larger granularity");
	return 0;
}

int store_can_add(struct node *n, const char *name, unsigned granularity_bits,
		  struct error *err)
{
	int rc;

	if (!node_is_qcow2(n) && !store_is_raw(n))
		return error_set(err, -ENOTSUP, "Can't store persistent bitmaps to %s: "
				 "Operation not supported", n->name);
	rc = store_is_raw(n) ? store_raw_can_add(n, name, granularity_bits, err)
			     : check_image(n, name, granularity_bits, err);
	if (rc < 0)
		error_prefix(err, "Can't make bitmap '%s' persistent in '%s': ", name, n->name);
	return rc;
}

static void store_drop(struct node *n)
{
	live_end(n, false);		/* the open failed */
	while (n->bitmaps)
		bitmap_free(n->bitmaps);
}

static int store_may_forget(struct node *n, struct error *err)
{
	for (struct bitmap *b = n->bitmaps; b; b = b->next) {
		int rc = b->persistent ? bitmap_check(b, BITMAP_NOT_BUSY, err) : 0;

		if (rc)
			return rc;
	}
	return 0;
}

static void store_forget(struct node *n)
{
	for (struct bitmap *b = n->bitmaps, *next; b; b = next) {
		next = b->next;
		if (b->persistent || b->inconsistent)
			bitmap_free(b);
	}
}

/* Which store N's bitmaps have. */
static int load(struct node *n, struct error *err)
{
	return store_is_raw(n) ? store_raw_load(n, err) : store_load(n, err);
}

static int store(struct node *n, struct error *err)
{
	return store_is_raw(n) ? store_raw_store(n, err) : store_store(n, err);
}

void bitmaps_init(void)
{
	static const struct node_bitmap_hooks hooks = {
		.load = load,
		.store = store,
		.drop = store_drop,
		.may_forget = store_may_forget,
		.forget = store_forget,
		.closed = live_end,
		.leave = live_leave,
		.moved = live_moved,
	};

	node_bitmap_hooks = &hooks;
}
