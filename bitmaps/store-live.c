// SPDX-License-Identifier: BSD-3-Clause
/* store-live: the live bits of a qcow2 image's bitmaps, from one open to the next.
 *
 * While the image is open its directory's entries are marked as in use, so QEMU never trusts
 * them, and the bits are beside it (live.h).  The header names the session of that file, with
 * an autoclear bit that others clear when they write.  An open after a crash:
 *
 *	bit and session as in the file	entries in use have the file's bits; bitmaps that
 *					are in the file alone are there again; entries in use
 *					that it does not name were removed or renamed
 *	else				as without: inconsistent
 *	not in use			the directory is right: nobody wrote since
 *
 * Opening.  The old file is read; the new one has the same session, or a new one which the
 * header then names; then entries are marked as in use; then comes the first write.  So an
 * open that dies finds, the next time, the old file or the new one, or entries not in use.
 *
 * Closing.  The directory is stored, durably; then the header names no session; then the
 * files go.  If the store fails the header keeps the session, and the files stay.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps/live.h"
#include "bitmaps/store-int.h"
#include "bitmaps/store-raw.h"
#include "common/log.h"

static const char *name_of(const struct node *n)
{
	return n->filename ? n->filename : n->name;
}

bool store_find_live(struct node *n, struct live_found *f)
{
	uint8_t session[LIVE_SESSION];
	const char *why, *dir;
	struct io_file *image;
	int rc;

	if (!node_is_qcow2(n) || n->force_share || !qcow2_live_get(n, session))
		return false;
	image = qcow2_live_place(n, &dir);
	rc = image ? live_find(image, dir, LIVE_QCOW2, session, f, &why) : -ENOENT;
	if (rc && rc != -ENOENT)
		log_warning("the bits that were kept beside the image cannot be used: %s image=%s error=%s", why,
			    name_of(n), strerror(-rc));
	else if (!rc)
		log_info("bitmaps have the bits that were kept beside the image: image=%s after=%s", name_of(n),
			 f->same_boot ? "kill" : "power-loss");
	return !rc;
}

bool store_is_gone(const struct live_found *f, const struct dir_entry *e)
{
	return f->file.f && e->name[0] && !(f->table.flags & LIVE_INCOMPLETE) && live_found_name(f, e->name) < 0;
}

static void add_one(struct node *n, struct live_found *f, uint32_t i, uint64_t *budget)
{
	const struct live_entry *e = &f->v[i];
	bool bad = e->h.flags & LIVE_INCONSISTENT ||
		   bitmap_data_bytes(n->size, e->h.granularity_bits) > BITMAP_BYTES_MAX;
	struct bitmap *b;

	if (bitmap_find(n, e->name, NULL))
		return;
	if (bitmap_new(n, e->name, e->h.granularity_bits, bad, &b, NULL))
		return;
	b->persistent = true;
	b->read_only = n->read_only;
	b->changed = true;
	if (!bad && live_found_bits(f, i, b, budget) == 0) {
		b->enabled = e->h.flags & LIVE_RECORDING;
		return;
	}
	log_warning("bitmap is inconsistent and can only be removed: its live bits were lost image=%s bitmap=%s",
		    name_of(n), e->name);
	bitmap_set_inconsistent(b);
}

void store_add_found(struct node *n, struct live_found *f, uint64_t *budget)
{
	for (uint32_t i = f->table.entries; i-- > 0;)
		add_one(n, f, i, budget);
}

void store_drop_unknown(struct node *n, struct live_found *f, const struct directory *d)
{
	for (uint32_t i = 0; i < d->n; i++) {
		struct error why = ERROR_INIT;
		struct dir_entry e;

		dir_get(d, i, &e);
		if (e.flags & DIR_IN_USE && store_is_gone(f, &e) && store_remove_entry(n, e.name, &why))
			log_warning("a bitmap that was removed is still stored: image=%s bitmap=%s error=%s",
				    name_of(n), e.name, why.text);
	}
}

static bool any_to_protect(const struct node *n)
{
	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->persistent && !b->inconsistent)
			return true;
	return false;
}

/* KEEP: the header names SESSION already.  IN_USE: see live_start(). */
static int start(struct node *n, uint8_t *session, bool keep, bool in_use, struct error *why)
{
	const char *dir;
	struct io_file *image = qcow2_live_place(n, &dir);
	int rc;

	if (!image)
		return error_set(why, -ENOTSUP, "crash-log=off, version 2, or an image that is not a file");
	rc = keep ? 0 : live_new_session(session);
	if (rc)
		return error_errno(why, rc, "Could not make a session");
	rc = live_start(n, image, dir, LIVE_QCOW2, session, in_use, why);
	if (!rc && !keep)
		rc = qcow2_live_set(n, session, why);
	if (rc)
		live_give_up(n);
	return rc;
}

static void tell(struct node *n, const struct error *why)
{
	log_warning("persistent bitmaps do not survive a crash of this disk: image=%s reason=%s", name_of(n),
		    why->text);
}

int store_begin_live(struct node *n, struct live_found *f, struct error *err)
{
	uint8_t session[LIVE_SESSION];
	struct error why = ERROR_INIT;
	bool named = qcow2_live_get(n, session);

	if (any_to_protect(n)) {
		if (!start(n, session, named && f->file.f, false, &why))
			return 0;
		tell(n, &why);
	}
	/* What is beside the image will not be true any more. */
	return named ? qcow2_live_set(n, NULL, err) : 0;
}

void bitmaps_expect(struct node *n, uint64_t granularity)
{
	uint8_t session[LIVE_SESSION];
	uint64_t len;

	if (store_is_raw(n) && !n->read_only)
		store_raw_expect(n, NULL);	/* who adds the bitmap is told */
	else if (!n->live && node_is_qcow2(n) && !n->read_only)
		start(n, session, false, true, NULL);
	len = bitmap_mapped_bytes(n, granularity);
	if (len && n->live)
		live_reserve(n, len);
}

void bitmaps_expect_clear(struct node *n, const char *name)
{
	struct bitmap *b = bitmap_find(n, name, NULL);

	if (b && live_has(b))
		live_reserve(n, b->bits_len);
}

void bitmaps_expect_end(struct node *n)
{
	live_unreserve(n);
}

void store_protect(struct bitmap *b)
{
	uint8_t session[LIVE_SESSION];
	struct error why = ERROR_INIT;

	if (b->node->live)
		live_add(b);
	else if (start(b->node, session, false, true, &why))
		tell(b->node, &why);
}
