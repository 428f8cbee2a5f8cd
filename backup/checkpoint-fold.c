/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoint-fold: how checkpoints go: deleted, left behind by a crash, of no use. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/checkpoint.h"
#include "common/checked.h"
#include "format/node.h"

/* -- deleted -------------------------------------------------------------------- */

/* The next older one that counts; -1. */
static int older(const struct epochs *e, int i)
{
	do {
		i--;
	} while (i >= 0 && e->v[i].label.state == CHECKPOINT_PENDING);
	return i;
}

static int check_fold(const struct node *n, const struct epochs *e, int i, struct error *err)
{
	const struct epoch *x = i < 0 ? NULL : &e->v[i];
	int rc;

	if (!x)
		return error_set(err, -ENOENT, "Node '%s' has no such checkpoint", n->name);
	if (x->label.state == CHECKPOINT_PENDING)
		return error_set(err, -EBUSY, "Checkpoint '%s' is pending; end it", x->label.name);
	if (epochs_pending(e) >= 0 && i == epochs_newest(e))
		return error_set(err, -EBUSY, "Checkpoint '%s' of node '%s' is needed until checkpoint "
				 "'%s' has ended", x->label.name, n->name,
				 e->v[epochs_pending(e)].label.name);
	rc = bitmap_check(x->bitmap, BITMAP_NOT_BUSY | BITMAP_NOT_RO, err);
	if (!rc && older(e, i) >= 0)
		rc = bitmap_check(e->v[older(e, i)].bitmap, BITMAP_NOT_BUSY, err);
	/* What it does not know any more, the older ones would lack without a trace. */
	if (!rc && x->bitmap->inconsistent && older(e, i) >= 0)
		rc = error_set(err, -EINVAL, "The bitmap of checkpoint '%s' of node '%s' is "
			       "inconsistent; delete the older checkpoints first", x->label.name,
			       n->name);
	return rc;
}

int checkpoint_may_fold(struct node *n, const char *name, struct error *err)
{
	struct epochs e;
	int rc = epochs_list(n, &e, err);

	if (!rc)
		rc = check_fold(n, &e, epochs_find(&e, name), err);
	epochs_free(&e);
	return rc;
}

/* INTO covers what X covers, too. */
static int hand_down(struct epoch *into, const struct epoch *x, bool newest, struct error *err)
{
	char name[LABEL_SIZE];
	int rc = 0;

	if (into->bitmap->size != x->bitmap->size)
		return error_set(err, -EINVAL, "The bitmaps of checkpoints '%s' and '%s' are of "
				 "different sizes", into->label.name, x->label.name);
	if (newest)
		rc = bitmap_set_enabled(into->bitmap, true, err);
	if (rc)
		return rc;
	bitmap_or(into->bitmap, x->bitmap);
	into->label.last = max_u64(into->label.last, x->label.last);
	label_format(&into->label, name);
	return bitmap_rename(into->bitmap, name, err);
}

/* Until it is gone from the image there is a bitmap too many, which does no harm. */
static int fold(struct epochs *e, int i, struct error *err)
{
	struct bitmap *b = e->v[i].bitmap;
	int into = older(e, i), rc = 0;

	/* One that lacks something is of no use, and stays so. */
	if (into >= 0 && epochs_cover(e, into, NULL))
		rc = hand_down(&e->v[into], &e->v[i], i == epochs_newest(e), err);
	if (!rc)
		b->ended = true;
	return rc;
}

int checkpoint_fold(struct node *n, const char *name, struct error *err)
{
	struct epochs e;
	int rc = epochs_list(n, &e, err), i = -1;

	if (!rc) {
		i = epochs_find(&e, name);
		rc = check_fold(n, &e, i, err);
	}
	if (!rc)
		rc = fold(&e, i, err);
	epochs_free(&e);
	return rc;
}

/* -- left behind, of no use -------------------------------------------------------- */

static void mark_leftovers(struct epochs *e, bool useless_too)
{
	unsigned useless = useless_too ? epochs_useless(e) : 0;

	for (unsigned i = 0; i < e->n; i++) {
		struct bitmap *b = e->v[i].bitmap;

		if (!b->busy && !b->read_only &&
		    (e->v[i].label.state == CHECKPOINT_PENDING || i < useless))
			b->ended = true;
	}
}

/* The oldest first: what makes older ones useless goes after them. */
static struct bitmap *next_ended(struct node *n)
{
	struct bitmap *oldest = NULL;
	struct label l, first;

	for (struct bitmap *b = n->bitmaps; b; b = b->next) {
		if (!b->ended || !b->persistent || !label_parse(b->name, &l))
			continue;
		if (!oldest || l.first < first.first) {
			oldest = b;
			first = l;
		}
	}
	return oldest;
}

/* Durably, together with what was handed down. */
static int unstore_ended(struct node *n, struct error *err)
{
	struct bitmap *b = next_ended(n);
	int rc = 0;

	if (!b)
		return 0;
	for (; b && !rc; b = next_ended(n))
		rc = bitmap_unstore(b, err);
	return rc ? rc : bitmaps_commit(n, err);
}

int checkpoint_end_leftovers(struct node *n, bool useless_too, unsigned *count,
			     struct error *err)
{
	struct epochs e;
	int rc = epochs_list(n, &e, err);

	*count = 0;
	if (rc)
		return rc;
	mark_leftovers(&e, useless_too);
	epochs_free(&e);
	rc = unstore_ended(n, err);
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		*count += b->ended && !b->persistent;
	return rc;
}

void checkpoint_drop_ended(struct node *n)
{
	for (struct bitmap *b = n->bitmaps, *next; b; b = next) {
		next = b->next;
		if (b->ended && !b->persistent)
			bitmap_remove(b, NULL);
	}
}
