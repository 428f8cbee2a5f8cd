/* SPDX-License-Identifier: BSD-3-Clause */
/* export-node: what an export holds on its disk's loop: its use of the node,
 * and the bitmaps that it offers as metadata contexts.
 *
 * Size, flags and contexts are set here before the export is listed; from then
 * on both loops read them, and nobody writes.  A bitmap that is offered is busy:
 * it can neither be removed nor cleared under a client's reading.
 */
#include "nbd-server/export.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "bitmaps/bitmap.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/nbd-proto.h"
#include "nbd-server/events.h"

static int context_set(struct export_context *c, enum context_kind kind, struct bitmap *b)
{
	static const char *const names[] = {
		[CONTEXT_ALLOCATION] = "base:allocation",
		[CONTEXT_DEPTH] = "qemu:allocation-depth",
		[CONTEXT_BITMAP] = "qemu:dirty-bitmap:",
		[CONTEXT_CHANGES] = "merino:changes:",
	};

	c->kind = kind;
	c->bitmap = b;
	if (asprintf(&c->name, "%s%s", names[kind], b ? b->name : "") < 0) {
		c->name = NULL;
		return -ENOMEM;
	}
	return 0;
}

/* A plain name is looked for along the backing chain. */
static struct bitmap *bitmap_by_name(struct export *e, const char *name, struct error *err)
{
	struct bitmap *b = bitmap_find_chain(e->node, name, err);

	if (!b)
		error_set(err, -ENOENT, "Bitmap '%s' is not found", name);
	else if (!e->writable && !b->node->read_only && b->enabled) {
		error_set(err, -EINVAL, "Enabled bitmap '%s' incompatible with readonly export",
			  name);
		b = NULL;
	}
	return b;
}

static void unref_on_loop(void *node)
{
	node_unref(node);
}

/* {"node":…,"name":…}: the bitmap of that very node. */
static struct bitmap *bitmap_by_node(struct export *e, struct json_object *ref, struct error *err)
{
	const char *node = json_object_get_string(json_object_object_get(ref, "node"));
	const char *name = json_object_get_string(json_object_object_get(ref, "name"));
	struct node *n = node_find(e->node->graph, node);
	struct bitmap *b = NULL;

	if (!n) {
		error_set(err, -ENOENT, "Node '%s' not found", node);
		return NULL;
	}
	if (n->loop != e->loop)
		error_set(err, -EXDEV, "Node '%s' is on another loop than node '%s'; start with --loops 1",
			  node, e->node->name);
	else
		b = bitmap_find(n, name, err);
	loop_call(n->loop, unref_on_loop, n);
	return b;
}

static int export_add_bitmap(struct export *e, struct json_object *ref, struct error *err)
{
	struct bitmap *b = json_object_is_type(ref, json_type_string)
		? bitmap_by_name(e, json_object_get_string(ref), err)
		: bitmap_by_node(e, ref, err);
	int rc;

	if (!b)
		return err->code ? err->code : -ENOENT;
	rc = bitmap_check(b, BITMAP_NOT_BUSY | BITMAP_NOT_INCONSISTENT, err);
	if (rc)
		return rc;
	if (context_set(&e->contexts[e->n_contexts], CONTEXT_BITMAP, b))
		return error_set(err, -ENOMEM, "Out of memory");
	/* The node may be another one than the export's: it stays while we read its bitmap. */
	node_ref(b->node);
	b->busy++;
	e->n_contexts++;
	return 0;
}

/* Each bitmap once more, behind all others: it is held by its first context. */
static int export_add_changes(struct export *e, struct error *err)
{
	for (unsigned i = 0, n = e->n_contexts; i < n; i++) {
		struct bitmap *b = e->contexts[i].bitmap;

		if (b && context_set(&e->contexts[e->n_contexts], CONTEXT_CHANGES, b))
			return error_set(err, -ENOMEM, "Out of memory");
		e->n_contexts += b ? 1 : 0;
	}
	return 0;
}

static int export_add_contexts(struct export *e, const struct export_options *o,
			       struct error *err)
{
	size_t n = o->bitmaps ? json_object_array_length(o->bitmaps) : 0;

	if (n > BITMAPS_MAX)
		return error_set(err, -E2BIG, "Export '%s' has more than %u bitmaps", e->id,
				 BITMAPS_MAX);
	e->contexts = calloc(2 * n + 2, sizeof(*e->contexts));
	if (!e->contexts || context_set(&e->contexts[e->n_contexts++], CONTEXT_ALLOCATION, NULL) ||
	    (o->allocation_depth &&
	     context_set(&e->contexts[e->n_contexts++], CONTEXT_DEPTH, NULL)))
		return error_set(err, -ENOMEM, "Out of memory");
	for (size_t i = 0; i < n; i++) {
		int rc = export_add_bitmap(e, json_object_array_get_idx(o->bitmaps, i), err);

		if (rc && o->lossy) {
			log_warning("export '%s' is without a bitmap: %s", e->id, err->text);
			*err = (struct error)ERROR_INIT;
			rc = 0;
		}
		if (rc)
			return rc;
	}
	return export_add_changes(e, err);
}

static void export_drop_contexts(struct export *e)
{
	for (unsigned i = 0; i < e->n_contexts; i++) {
		struct bitmap *b = e->contexts[i].bitmap;

		free(e->contexts[i].name);
		if (e->contexts[i].kind != CONTEXT_BITMAP)
			continue;
		b->busy--;
		node_unref(b->node);
	}
	free(e->contexts);
	free(e->by_name);
	e->contexts = NULL;
	e->by_name = NULL;
	e->n_contexts = 0;
}

static int compare_names(const void *a, const void *b)
{
	const struct export_context *const *x = a, *const *y = b;

	return strcmp((*x)->name, (*y)->name);
}

/* Clients ask by name, and may ask often. */
static int export_sort_contexts(struct export *e, struct error *err)
{
	e->by_name = calloc(e->n_contexts, sizeof(struct export_context *));
	if (!e->by_name)
		return error_set(err, -ENOMEM, "Out of memory");
	for (unsigned i = 0; i < e->n_contexts; i++)
		e->by_name[i] = &e->contexts[i];
	qsort(e->by_name, e->n_contexts, sizeof(struct export_context *), compare_names);
	return 0;
}

/* multi-conn is true: connections share the node, and a flush is the node's. */
static void export_set_flags(struct export *e)
{
	e->flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
		   NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN;
	if (e->writable)
		e->flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
			    NBD_FLAG_SEND_FAST_ZERO;
	else
		e->flags |= NBD_FLAG_READ_ONLY;
	e->block_min = 1;
	e->block_preferred = 4096;
	e->block_max = NBD_REQUEST_MAX;
}

/* What is the client's mistake is no failure of the storage. */
static bool is_storage_error(int rc)
{
	return rc == -EIO || rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG || rc == -EROFS ||
	       rc == -ENOMEDIUM || rc == -EUCLEAN || rc == -ENXIO || rc == -ENOTCONN;
}

void export_account(struct export *e, enum io_kind kind, uint64_t bytes, uint64_t begun, int rc)
{
	struct io_stats *s = &e->stats;

	if (__builtin_expect(!rc, 1)) {
		s->ops[kind]++;
		s->bytes[kind] += bytes;
		s->ns[kind] += loop_now() - begun;
		return;
	}
	s->failed[kind]++;
	if (is_storage_error(rc))
		event_io_error(e, kind != IO_KIND_READ, rc);
}

int export_open_node(struct export *e, const struct export_options *o, struct error *err)
{
	unsigned perm = PERM_CONSISTENT_READ | (o->writable ? PERM_WRITE : 0);
	int rc;

	e->node = node_ref(o->node);
	e->use = &e->uses[0];
	e->use->allow_inactive = o->allow_inactive;
	rc = node_use_add(e->use, e->node, perm, PERM_ALL & ~PERM_RESIZE, err, "export '%s'",
			  e->id);
	if (!rc)
		rc = export_add_contexts(e, o, err);
	if (!rc)
		rc = export_sort_contexts(e, err);
	if (rc) {
		export_close_node(e);
		return rc;
	}
	e->size = e->node->size;
	export_set_flags(e);
	return 0;
}

void export_close_node(struct export *e)
{
	event_io_errors_end(e);
	export_drop_contexts(e);
	node_use_drop(e->use);
	node_unref(e->node);
	e->node = NULL;
}
