/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoint-disk: one disk's part in the beginning and the end of a checkpoint. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup/checkpoint.h"
#include "backup/view-node.h"
#include "backup/view.h"
#include "common/checked.h"
#include "common/log.h"
#include "format/node.h"

#define EPOCH_BITS_MAX (16ull << 23)

/* -- before the instant -------------------------------------------------------- */

static int check_room(const struct node *n, const struct epochs *e, const char *name,
		      struct error *err)
{
	int pending = epochs_pending(e);

	if (n->inactive)
		return error_set(err, -EPERM, "Node '%s' is inactive", n->name);
	if (pending >= 0)
		return error_set(err, -EBUSY, "Node '%s' has a pending checkpoint, '%s'; end it first",
				 n->name, e->v[pending].label.name);
	if (epochs_find(e, name) >= 0)
		return error_set(err, -EEXIST, "Node '%s' has a checkpoint '%s' already", n->name,
				 name);
	if (e->n >= CHECKPOINTS_PER_NODE_MAX)
		return error_set(err, -ENOSPC, "Node '%s' has %u checkpoints already, which is the "
				 "most there can be; delete some", n->name, e->n);
	return 0;
}

static uint64_t finest(const struct epochs *e, int i)
{
	uint64_t g = 0;

	for (; i >= 0 && i < (int)e->n; i++) {
		uint64_t own = bitmap_granularity(e->v[i].bitmap);

		g = !g || own < g ? own : g;
	}
	return g;
}

/* As fine as those before.  The first has 64 KiB, or more where its bits would take more than
 * 16 MiB: there are several epochs, and a disk may have 1 PiB. */
static uint64_t epoch_granularity(const struct node *n, const struct epochs *e)
{
	uint64_t g = finest(e, epochs_newest(e));

	if (g || DIV_ROUND_UP(n->size, 65536ull) <= EPOCH_BITS_MAX)
		return g;
	for (g = 65536; DIV_ROUND_UP(n->size, g) > EPOCH_BITS_MAX;)
		g *= 2;
	return g;
}

/* It records from the instant on: so it is empty then, and nothing is to be cleared.
 * Where the storage cannot keep bitmaps, the checkpoint lives as long as the node. */
static int add_epoch(struct checkpoint_disk *d, const struct epochs *e, struct error *err)
{
	uint64_t g = epoch_granularity(d->node, e);
	char name[LABEL_SIZE];
	int rc;

	label_format(&d->label, name);
	rc = bitmap_add(d->node, name, g, true, true, &d->epoch, err);
	d->persistent = !rc;
	if (rc != -ENOTSUP && rc != -EROFS)
		return rc;
	*err = (struct error)ERROR_INIT;
	return bitmap_add(d->node, name, g, false, true, &d->epoch, err);
}

/* The bitmap of what changed since; or the reason why the disk is full. */
static int add_changes(struct checkpoint_disk *d, const struct epochs *e,
		       const struct checkpoint_request *r, struct error *err)
{
	struct error why = ERROR_INIT;
	int i = epochs_find(e, r->since), rc;

	if (i < 0)
		error_set(&why, -ENOENT, "node '%s' has no checkpoint '%s'", d->node->name, r->since);
	else if (epochs_cover(e, i, &why)) {
		rc = bitmap_add(d->view, r->since, finest(e, i), false, true, &d->changes, err);
		return rc ? rc : epochs_union(e, i, d->changes, err);
	}
	snprintf(d->reason, sizeof(d->reason), "%.511s", why.text);
	return 0;
}

static int prepare(struct checkpoint_disk *d, const struct epochs *e,
		   const struct checkpoint_request *r, struct error *err)
{
	int rc = check_room(d->node, e, r->name, err);

	if (rc)
		return rc;
	d->label.first = d->label.last = epochs_next_number(e);
	rc = view_node_new(d->node, NULL, &d->view, err);
	if (!rc && r->since)
		rc = add_changes(d, e, r, err);
	if (!rc)
		rc = add_epoch(d, e, err);
	return rc;
}

int checkpoint_disk_prepare(struct checkpoint_disk *d, const struct checkpoint_request *r,
			    struct error *err)
{
	struct epochs e;
	int rc;

	d->label = (struct label){ .state = CHECKPOINT_PENDING, .time = r->time,
				   .group = r->group, .disks = r->disks };
	snprintf(d->label.name, sizeof(d->label.name), "%s", r->name);
	rc = epochs_list(d->node, &e, err);
	if (!rc)
		rc = prepare(d, &e, r, err);
	epochs_free(&e);
	return rc;
}

/* -- the instant ------------------------------------------------------------------ */

/* What the newest epoch has seen since prepare. */
static int catch_up(struct checkpoint_disk *d, const char *since, struct error *err)
{
	struct error why = ERROR_INIT;
	struct epochs e;
	int rc = epochs_list(d->node, &e, err), i;

	if (rc)
		return rc;
	i = epochs_find(&e, since);
	if (i < 0 || !epochs_cover(&e, i, &why))
		rc = error_set(err, -EAGAIN, "Node '%s' has lost checkpoint '%s' just now",
			       d->node->name, since);
	else
		rc = epochs_union(&e, epochs_newest(&e), d->changes, err);
	epochs_free(&e);
	return rc;
}

int checkpoint_disk_begin(struct checkpoint_disk *d, const struct checkpoint_request *r,
			  struct error *err)
{
	struct view_options o = *r->view;
	int rc = 0;

	if (d->view->size != d->node->size)
		return error_set(err, -EAGAIN, "Node '%s' has another size just now", d->node->name);
	if (d->changes)
		rc = catch_up(d, r->since, err);
	o.bitmap = d->changes;
	if (!rc)
		rc = bitmap_clear(d->epoch, err);
	if (!rc)
		rc = bitmap_set_enabled(d->epoch, true, err);
	if (!rc)
		rc = view_node_begin(d->view, &o, err);
	if (rc)
		return rc;
	d->changed = d->changes ? bitmap_dirty_bytes(d->changes) : 0;
	d->epoch->busy++;
	d->held = true;
	return 0;
}

void checkpoint_disk_undo(struct checkpoint_disk *d)
{
	if (d->held)
		d->epoch->busy--;
	d->held = false;
	view_node_end(d->view);
}

/* -- the end ------------------------------------------------------------------------ */

static int mark(struct bitmap *b, const struct label *l, struct error *err)
{
	char name[LABEL_SIZE];
	int rc;

	label_format(l, name);
	rc = bitmap_rename(b, name, err);
	return rc ? rc : bitmaps_commit(b->node, err);
}

int checkpoint_disk_mark(struct checkpoint_disk *d, enum checkpoint_state state,
			 struct error *err)
{
	struct label l = d->label;
	int rc;

	l.state = state;
	d->epoch->busy--;
	rc = mark(d->epoch, &l, err);
	d->epoch->busy++;
	if (!rc)
		d->label = l;
	return rc;
}

int checkpoint_disk_check(const struct checkpoint_disk *d, struct error *err)
{
	struct view *v = view_node_view(d->view);

	if (!view_is_broken(v))
		return 0;
	return error_set(err, -EIO, "the view of node '%s' is broken: %s", d->node->name,
			 view_broken_why(v));
}

void checkpoint_freeze(struct node *n)
{
	struct error err = ERROR_INIT;
	struct epochs e;
	int i;

	if (epochs_list(n, &e, &err)) {
		log_warning("former checkpoints go on recording node=%s: %s", n->name, err.text);
		return;
	}
	i = epochs_newest(&e);
	while (i >= 0 && e.v[i].label.state != CHECKPOINT_ACTIVE)
		i--;
	/* One that is busy goes on recording, which does no harm. */
	while (--i >= 0) {
		if (e.v[i].bitmap->enabled)
			bitmap_set_enabled(e.v[i].bitmap, false, NULL);
	}
	epochs_free(&e);
}

int checkpoint_settle(struct node *n, const struct label *l, enum checkpoint_state state,
		      struct error *err)
{
	struct epochs e;
	int rc = epochs_list(n, &e, err);

	for (unsigned i = 0; i < e.n && !rc; i++) {
		struct label *x = &e.v[i].label;

		if (x->group != l->group || x->first != l->first || strcmp(x->name, l->name) ||
		    e.v[i].bitmap->read_only)
			continue;
		x->state = state;
		rc = mark(e.v[i].bitmap, x, err);
	}
	epochs_free(&e);
	if (!rc && state == CHECKPOINT_ACTIVE)
		checkpoint_freeze(n);
	return rc;
}

void checkpoint_disk_release(struct checkpoint_disk *d)
{
	if (d->held)
		d->epoch->busy--;
	d->held = false;
	node_unref(d->view);
	d->view = NULL;
	d->changes = NULL;
	d->epoch = NULL;
}
