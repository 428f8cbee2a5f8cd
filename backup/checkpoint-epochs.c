/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoint-epochs: which checkpoints a node has, and what changed since them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/checkpoint.h"
#include "common/co.h"
#include "format/node.h"

struct node *checkpoint_node(struct node *n)
{
	return node_skip_filters(n);
}

static int by_number(const void *a, const void *b)
{
	const struct epoch *x = a, *y = b;

	if (x->label.first != y->label.first)
		return x->label.first < y->label.first ? -1 : 1;
	if (x->label.last != y->label.last)
		return x->label.last < y->label.last ? -1 : 1;
	return strcmp(x->bitmap->name, y->bitmap->name);
}

int epochs_list(struct node *n, struct epochs *e, struct error *err)
{
	struct label l;
	unsigned n_found = 0;

	*e = (struct epochs){ 0 };
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		n_found += !b->ended && label_parse(b->name, &l);
	if (n_found > 2 * CHECKPOINTS_PER_NODE_MAX)
		return error_set(err, -E2BIG, "Node '%s' has %u checkpoints, which is too many",
				 n->name, n_found);
	e->v = calloc(n_found + 1, sizeof(*e->v));
	if (!e->v)
		return error_set(err, -ENOMEM, "Out of memory");
	for (struct bitmap *b = n->bitmaps; b; b = b->next) {
		if (b->ended || !label_parse(b->name, &e->v[e->n].label))
			continue;
		e->v[e->n++].bitmap = b;
	}
	qsort(e->v, e->n, sizeof(*e->v), by_number);
	return 0;
}

void epochs_free(struct epochs *e)
{
	free(e->v);
	*e = (struct epochs){ 0 };
}

int epochs_find(const struct epochs *e, const char *name)
{
	for (unsigned i = e->n; i-- > 0;) {
		if (!strcmp(e->v[i].label.name, name))
			return (int)i;
	}
	return -1;
}

int epochs_newest(const struct epochs *e)
{
	for (unsigned i = e->n; i-- > 0;) {
		if (e->v[i].label.state != CHECKPOINT_PENDING)
			return (int)i;
	}
	return -1;
}

int epochs_pending(const struct epochs *e)
{
	for (unsigned i = e->n; i-- > 0;) {
		if (e->v[i].label.state == CHECKPOINT_PENDING)
			return (int)i;
	}
	return -1;
}

/* Pending epochs do not count: the newest of the others records as long as they are. */
bool epochs_cover(const struct epochs *e, int i, struct error *why)
{
	const char *name = e->v[i].label.name;
	int newest = epochs_newest(e);
	uint64_t last = e->v[i].label.first - 1;

	for (; i <= newest; i++) {
		const struct epoch *x = &e->v[i];

		if (x->label.state == CHECKPOINT_PENDING)
			continue;
		if (x->bitmap->inconsistent) {
			error_set(why, -EINVAL, "the bitmap of checkpoint '%s' is inconsistent",
				  x->label.name);
			return false;
		}
		if (x->label.first > last + 1) {
			error_set(why, -EINVAL, "a bitmap is missing between checkpoints '%s' "
				  "and '%s'", name, x->label.name);
			return false;
		}
		if (x->label.last > last)
			last = x->label.last;
	}
	if (newest >= 0 && !e->v[newest].bitmap->enabled) {
		error_set(why, -EINVAL, "the bitmap of checkpoint '%s' did not record all the time",
			  e->v[newest].label.name);
		return false;
	}
	return true;
}

/* A disk may have a thousand epochs of megabytes: its guest comes in between.  Nobody adds or
 * removes epochs meanwhile, as commands come one after the other. */
static void breathe(void)
{
	if (co_self())
		co_yield();
}

int epochs_union(const struct epochs *e, int i, struct bitmap *dst, struct error *err)
{
	for (; i < (int)e->n; i++) {
		if (e->v[i].label.state == CHECKPOINT_PENDING)
			continue;
		if (e->v[i].bitmap->size != dst->size)
			return error_set(err, -EINVAL, "the bitmap of checkpoint '%s' has another "
					 "size than the disk", e->v[i].label.name);
		bitmap_or(dst, e->v[i].bitmap);
		breathe();
	}
	return 0;
}

unsigned epochs_useless(const struct epochs *e)
{
	unsigned n = 0;

	while (n < e->n && !epochs_cover(e, (int)n, NULL))
		n++;
	return n;
}

/* The union grows from the newest to the oldest, in a bitmap that no disk has. */
int epochs_changed(const struct epochs *e, uint64_t *bytes)
{
	int newest = epochs_newest(e);
	struct node nowhere = { .name = "" };
	struct bitmap *all;
	int rc;

	memset(bytes, 0, e->n * sizeof(*bytes));
	if (newest < 0)
		return 0;
	nowhere.size = e->v[newest].bitmap->size;
	rc = bitmap_add(&nowhere, "all", bitmap_granularity(e->v[newest].bitmap), false, true, &all,
			NULL);
	for (int i = newest; i >= 0 && !rc; i--) {
		if (e->v[i].label.state == CHECKPOINT_PENDING)
			continue;
		bitmap_or(all, e->v[i].bitmap);
		breathe();
		bytes[i] = bitmap_dirty_bytes(all);
	}
	if (!rc)
		bitmap_remove(all, NULL);
	return rc;
}

uint64_t epochs_next_number(const struct epochs *e)
{
	int newest = epochs_newest(e);
	uint64_t last = newest < 0 ? 0 : e->v[newest].label.last;
	bool trusted = newest < 0 || epochs_cover(e, newest, NULL);

	return last + (trusted ? 1 : 2);
}
