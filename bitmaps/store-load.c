/* SPDX-License-Identifier: BSD-3-Clause */
/* store-load: the bitmaps of an image when it is opened.
 *
 * Read only: they are loaded, and refuse changes; nothing is written.
 *
 * Read-write: they are loaded, and every entry of the directory is marked as in
 * use, durably, before the open returns, so before the first write: if we die,
 * nobody takes the stored bits for the truth.  The flags are rewritten where they
 * are.  Between the old and the new bytes only the low byte of each entry's flags
 * differs, so whatever mixture a power loss leaves is a valid directory, and true:
 * nothing was written to the disk yet.
 *
 * An entry that was in use already, that we cannot use (of another kind, of another
 * size, a bad table, too large) or cannot read becomes an inconsistent bitmap, which
 * can only be removed.  Its entry is kept as it is but for the mark.
 *
 * A directory that makes no sense as a whole costs the bitmaps, not the disk: a
 * warning says where it is, and nothing is loaded.  If we may write, our writes
 * would make its bits stale without anybody noticing, so the header stops referring
 * to it, durably, before the first write.  Its clusters are left alone (leaked): who
 * wants to look at them finds them by the warning.  If that cannot be written, the
 * open fails: better no disk now than a backup that misses blocks.
 */

#include "bitmaps/live.h"
#include "bitmaps/store-int.h"

#include <errno.h>
#include <stdlib.h>

#include "common/log.h"

#define LOAD_BYTES_MAX (1ull << 30)	/* of tables and bits that one image may make us take */
#define WARNINGS_MAX 8			/* lines about single bitmaps of one image */

int store_read_dir(struct node *n, struct qcow2_bitmap_ext *ext, struct directory *d,
		   struct error *err)
{
	uint8_t *bytes;
	int rc;

	*ext = (struct qcow2_bitmap_ext){ 0 };
	*d = (struct directory){ 0 };
	rc = qcow2_bitmap_ext_get(n, ext);
	if (rc == -ENOENT)
		return rc;
	if (rc < 0)
		return error_errno(err, rc, "its header extension is not valid");
	if (!ext->nb_bitmaps || !ext->directory_size || ext->directory_size > DIR_BYTES_MAX)
		return error_set(err, -EINVAL, "%u bitmaps in %llu bytes exceed the limits",
				 ext->nb_bitmaps, (unsigned long long)ext->directory_size);
	if (!ext->directory_offset ||
	    !qcow2_meta_range_ok(n, ext->directory_offset, ext->directory_size))
		return error_set(err, -EINVAL, "it is outside the image");
	bytes = malloc(ext->directory_size);
	if (!bytes)
		return error_set(err, -ENOMEM, "out of memory");
	rc = qcow2_meta_read(n, bytes, ext->directory_offset, ext->directory_size);
	if (rc < 0) {
		free(bytes);
		return error_errno(err, -EIO, "it cannot be read");
	}
	return dir_parse(d, bytes, ext->directory_size, ext->nb_bitmaps, err);
}

int store_write_flags(struct node *n, const struct qcow2_bitmap_ext *ext,
		      const struct directory *d)
{
	int rc = qcow2_meta_write(n, d->bytes, ext->directory_offset, d->len);

	return rc < 0 ? rc : qcow2_meta_flush(n);
}

/* What cannot be represented is not shown, but kept. */
static unsigned shown_granularity_bits(const struct dir_entry *e)
{
	unsigned least = (unsigned)__builtin_ctz(BITMAP_GRANULARITY_MIN);
	unsigned most = (unsigned)__builtin_ctzll(BITMAP_GRANULARITY_MAX);

	return e->granularity_bits < least ? least
	       : e->granularity_bits > most ? most : e->granularity_bits;
}

static const char moved[] = "another program has resized the image, or changed the bitmap";

/* The end that store.c marks is still the end. */
static bool end_is_marked(const struct bitmap *b)
{
	return !bitmap_is_epoch(b) || !b->size || bitmap_get(b, b->size - 1);
}

/* Why the bitmap of E cannot be used, or NULL with *B loaded.  B is NULL when it
 * cannot be shown either. */
static const char *load_usable(struct node *n, const struct dir_entry *e, uint64_t *budget,
			       struct live_found *f, struct bitmap **b)
{
	const char *why = dir_entry_problem(e);
	int64_t i = -1;

	if (why)
		return why;
	if (e->flags & DIR_IN_USE) {
		i = f->file.f ? live_found_name(f, e->name) : -1;
		if (i < 0 || f->v[i].h.flags & LIVE_INCONSISTENT ||
		    f->v[i].h.granularity_bits != e->granularity_bits)
			return "it was in use when the image was last closed, or its owner died";
	}
	if (bitmap_data_bytes(n->size, e->granularity_bits) > BITMAP_BYTES_MAX)
		return "it needs too much memory";
	if (bitmap_new(n, e->name, e->granularity_bits, false, b, NULL) < 0)
		return "out of memory";
	if (i >= 0) {
		why = "its live bits cannot be read";
		if (live_found_bits(f, (uint32_t)i, *b, budget) == 0)
			return NULL;
	} else if (store_load_bits(*b, e, budget, &why) == 0) {
		(*b)->shrunk = true;	/* the format has no word for it */
		if (end_is_marked(*b))
			return NULL;
		why = moved;
	}
	bitmap_set_inconsistent(*b);
	return why;
}

/* Whether the bitmap of E can be trusted; if not, why. */
static const char *load_one(struct node *n, const struct dir_entry *e, uint64_t *budget,
			    struct live_found *f)
{
	struct bitmap *b = NULL;
	const char *why = load_usable(n, e, budget, f, &b);
	int64_t i;

	if (!b && e->name[0])
		bitmap_new(n, e->name, shown_granularity_bits(e), true, &b, NULL);
	if (!b)
		return why;
	b->persistent = true;
	b->read_only = n->read_only;
	if (why)
		bitmap_set_inconsistent(b);
	else
		b->enabled = e->flags & DIR_AUTO;
	i = !why && e->flags & DIR_IN_USE ? live_found_name(f, e->name) : -1;
	if (i >= 0)
		b->enabled = f->v[i].h.flags & LIVE_RECORDING;
	return why;
}

/* An end that was written to since looks like one that was marked: one epoch without it
 * tells it of all. */
static void doubt_epochs(struct node *n)
{
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		if (bitmap_is_epoch(b) && !b->inconsistent)
			bitmap_set_inconsistent(b);
}

static void load_all(struct node *n, const struct directory *d, struct live_found *f, uint64_t *budget)
{
	bool resized = false;
	unsigned bad = 0;

	for (uint32_t i = 0; i < d->n; i++) {
		struct dir_entry e;
		const char *why;

		dir_get(d, i, &e);
		if (e.flags & DIR_IN_USE && store_is_gone(f, &e))
			continue;
		why = load_one(n, &e, budget, f);
		resized |= why == moved;
		if (why && bad++ < WARNINGS_MAX)
			log_warning("bitmap is inconsistent and can only be removed: %s image=%s "
				    "bitmap=%s", why, n->filename ? n->filename : "", e.name);
	}
	if (resized)
		doubt_epochs(n);
	if (bad > WARNINGS_MAX)
		log_warning("more bitmaps are inconsistent image=%s count=%u",
			    n->filename ? n->filename : "", bad - WARNINGS_MAX);
}

static int mark_in_use(struct node *n, const struct qcow2_bitmap_ext *ext, struct directory *d,
		       struct error *err)
{
	bool differs = false;
	int rc;

	for (uint32_t i = 0; i < d->n; i++) {
		struct dir_entry e;

		dir_get(d, i, &e);
		differs |= dir_set_flags(d, i, e.flags | DIR_IN_USE);
	}
	if (!differs)
		return 0;
	rc = store_write_flags(n, ext, d);
	if (rc < 0)
		return error_errno(err, rc, "Cannot mark the bitmaps in '%s' as in use",
				   n->filename ? n->filename : n->name);
	return 0;
}

static int give_up(struct node *n, const struct qcow2_bitmap_ext *ext, int why,
		   const struct error *reason, struct error *err)
{
	if (why == -ENOMEM)
		return error_set(err, why, "Cannot load the bitmaps in '%s': %s",
				 n->filename ? n->filename : n->name, reason->text);
	log_warning("the bitmap directory is damaged, its bitmaps are %s: %s image=%s "
		    "bitmaps=%u offset=%llu size=%llu",
		    n->read_only ? "not loaded" : "given up", reason->text,
		    n->filename ? n->filename : "", ext->nb_bitmaps,
		    (unsigned long long)ext->directory_offset,
		    (unsigned long long)ext->directory_size);
	return n->read_only ? 0 : qcow2_bitmap_ext_set(n, NULL, err);
}

static int load_dir(struct node *n, struct live_found *f, struct directory *d, struct error *err)
{
	struct error reason = ERROR_INIT;
	uint64_t budget = LOAD_BYTES_MAX;
	struct qcow2_bitmap_ext ext;
	int rc = store_read_dir(n, &ext, d, &reason);

	if (rc < 0 && rc != -ENOENT)
		rc = give_up(n, &ext, rc, &reason, err);
	else if (!rc)
		load_all(n, d, f, &budget);
	if (rc && rc != -ENOENT)
		return rc;
	store_add_found(n, f, &budget);
	return 0;
}

/* Live first: if we die between the two, the entries are good. */
static int begin_writing(struct node *n, struct live_found *f, struct error *err)
{
	struct error reason = ERROR_INIT;
	struct qcow2_bitmap_ext ext;
	struct directory d;
	int rc = store_begin_live(n, f, err);

	if (rc)
		return rc;
	rc = store_read_dir(n, &ext, &d, &reason);
	if (rc)
		return rc == -ENOENT ? 0 : error_set(err, rc, "Cannot read the bitmap directory of '%s': %s",
						     n->name, reason.text);
	rc = mark_in_use(n, &ext, &d, err);
	dir_free(&d);
	return rc;
}

int store_load(struct node *n, struct error *err)
{
	struct live_found found = { 0 };
	struct directory d = { 0 };
	int rc;

	store_find_live(n, &found);
	rc = load_dir(n, &found, &d, err);
	if (!rc && !n->read_only)
		store_drop_unknown(n, &found, &d);
	if (!rc && !n->read_only)
		rc = begin_writing(n, &found, err);
	dir_free(&d);
	live_found_end(&found);
	return rc;
}
