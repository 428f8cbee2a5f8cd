/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-block: small changes of one node: its size, its write threshold; and the
 * hash of a bitmap, for tests.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps/bitmap.h"
#include "common/checked.h"
#include "common/loop.h"
#include "format/node.h"
#include "nbd-server/daemon.h"
#include "nbd-server/export.h"
#include "nbd-server/transaction.h"

#define HASH_PIECE (16u << 10)		/* bytes hashed before others get their turn */

const struct qmp_arg args_block_resize[] = {
	{ "device", QMP_STR, false, "id of an export, whose node it is" },
	{ "node-name", QMP_STR, false, "the node" },
	{ "size", QMP_INT, true, "its new size, bytes" },
	{ NULL },
};

const struct qmp_arg args_write_threshold[] = {
	{ "node-name", QMP_STR, true, "the node" },
	{ "write-threshold", QMP_UINT, true, "offset in bytes; 0: none" },
	{ NULL },
};

/* -- block_resize ------------------------------------------------------------------- */

struct resizing {
	struct export **exports;	/* of the node; with references */
	unsigned n_exports;
	uint64_t size;
};

/* A node whose size follows from N's, or whose data would lie behind it.  One that shows
 * an instant of N keeps its size, and what N has then is still there when N grows. */
static int refuse_parents(const struct node *n, uint64_t size, struct error *err)
{
	char parent[NODE_NAME_MAX + 1] = "";
	struct graph *g = n->graph;

	pthread_mutex_lock(&g->lock);
	for (struct node *p = g->nodes; p && !*parent; p = p->next) {
		for (unsigned c = 0; c < CHILD_COUNT; c++) {
			if (p->child[c] == n && !(p->driver->of_an_instant && size >= n->size))
				strcpy(parent, p->name);
		}
	}
	pthread_mutex_unlock(&g->lock);
	if (!*parent)
		return 0;
	return error_set(err, -EBUSY, "Node '%s' is used by node '%s'; resize that one", n->name,
			 parent);
}

/* Bits are there before what they stand for, and go after it. */
static int resize_node(struct node *n, uint64_t size, struct error *err)
{
	uint64_t old = n->size;
	int rc = size > old ? bitmaps_resize(n, size, err) : 0;

	if (rc)
		return rc;
	if (size < old)
		bitmaps_will_shrink(n, size);
	rc = node_truncate(n, size, err);
	if (rc && size > old)
		bitmaps_resize(n, old, NULL);
	if (!rc && size < old)
		rc = bitmaps_resize(n, size, err);
	return rc;
}

/* Exports let nobody resize their node but us, who make their clients wait. */
static void share_resize(struct resizing *r, bool share)
{
	for (unsigned i = 0; i < r->n_exports; i++) {
		struct node_use *u = r->exports[i]->use;

		u->shared = share ? u->shared | PERM_RESIZE : u->shared & ~(unsigned)PERM_RESIZE;
	}
}

static int resize_gated(struct node *n, struct resizing *r, struct error *err)
{
	struct node_use use = { 0 };
	int rc;

	share_resize(r, true);
	rc = node_use_add(&use, n, PERM_RESIZE, PERM_ALL, err, "block_resize");
	if (!rc)
		rc = resize_node(n, r->size, err);
	share_resize(r, false);
	node_use_drop(&use);
	return rc;
}

/* The gates are closed. */
static int resize_on_loop(struct node *n, void *arg, struct error *err)
{
	struct resizing *r = arg;
	int rc = refuse_parents(n, r->size, err);

	if (!rc && n->read_only)
		rc = error_set(err, -EPERM, "Block node is read-only");
	if (rc)
		return rc;
	return resize_gated(n, r, err);
}

static void take_exports(struct resizing *r, const struct node *n)
{
	unsigned count = 0;

	for (struct export *e = export_list(); e; e = e->next)
		count++;
	r->exports = calloc(count + 1, sizeof(struct export *));
	for (struct export *e = export_list(); e && r->exports; e = e->next) {
		if (!e->refs || e->opening || strcmp(e->node_name, n->name))
			continue;
		export_ref(e);
		r->exports[r->n_exports++] = e;
	}
}

static void drop_exports(struct resizing *r, const struct node *n)
{
	for (unsigned i = 0; i < r->n_exports; i++) {
		export_set_size(r->exports[i], n->size);
		export_unref(r->exports[i]);
	}
	free(r->exports);
}

static struct node *find_device(struct json_object *args, struct error *err)
{
	const char *device = qmp_str(args, "device"), *name = qmp_str(args, "node-name");
	struct export *e = device ? export_find_id(device) : NULL;
	struct node *n = NULL;

	if (name)
		n = command_node_find(name);
	if (!n && e)
		n = command_node_find(e->node_name);
	if (!n)
		error_set(err, -ENOENT, "Cannot find device='%s' nor node-name='%s'",
			  device ? device : "", name ? name : "");
	return n;
}

COMMAND(command_block_resize)
{
	int64_t size = json_object_get_int64(json_object_object_get(args, "size"));
	struct resizing r = { .size = (uint64_t)size };
	struct node *n = find_device(args, err);
	int rc;

	if (!n)
		return -ENOENT;
	if (size < 0) {
		rc = error_set(err, -EINVAL, "Parameter 'size' expects a >0 size");
	} else {
		take_exports(&r, n);
		rc = r.exports ? gated_call(n, resize_on_loop, &r, err)
			       : error_set(err, -ENOMEM, "Out of memory");
		drop_exports(&r, n);
	}
	command_node_unref(n);
	return rc;
}

/* -- block-set-write-threshold ------------------------------------------------------ */

static int set_threshold_on_loop(struct node *n, void *arg, struct error *err)
{
	n->write_threshold = *(const uint64_t *)arg;
	return 0;
}

COMMAND(command_write_threshold)
{
	const char *name = qmp_str(args, "node-name");
	uint64_t threshold = qmp_u64(args, "write-threshold");
	struct node *n = command_node_find(name);
	int rc;

	if (!n)
		return error_set(err, -ENOENT, "Device '%s' not found", name);
	rc = command_node_call(n, set_threshold_on_loop, &threshold, err);
	command_node_unref(n);
	return rc;
}

/* -- x-debug-block-dirty-bitmap-sha256 ------------------------------------------------ */

struct hashing {
	const char *name;
	uint8_t digest[32];
};

/* As QEMU hashes: the bits in words of 64, one word at least. */
static int hash_bits(struct bitmap *b, struct hashing *h)
{
	uint64_t granules = DIV_ROUND_UP(b->size, bitmap_granularity(b));
	uint64_t left = max_u64(DIV_ROUND_UP(granules, 64), 1) * 8;
	static const uint64_t none;
	const uint8_t *p = granules ? (const uint8_t *)b->bits : (const uint8_t *)&none;
	gnutls_hash_hd_t hash;

	if (gnutls_hash_init(&hash, GNUTLS_DIG_SHA256) < 0)
		return -ENOMEM;
	while (left) {
		size_t now = (size_t)min_u64(left, HASH_PIECE);

		gnutls_hash(hash, p, now);
		p += now;
		left -= now;
		co_yield();
	}
	gnutls_hash_deinit(hash, h->digest);
	return 0;
}

static int hash_on_loop(struct node *n, void *arg, struct error *err)
{
	struct hashing *h = arg;
	struct bitmap *b = bitmap_find(n, h->name, err);
	int rc;

	if (!b)
		return -ENOENT;
	rc = bitmap_check(b, BITMAP_NOT_INCONSISTENT, err);
	if (rc)
		return rc;
	rc = hash_bits(b, h);
	return rc ? error_set(err, rc, "Out of memory") : 0;
}

COMMAND(command_bitmap_sha256)
{
	const char *name = qmp_str(args, "node");
	struct hashing h = { .name = qmp_str(args, "name") };
	struct node *n = command_node_find(name);
	char text[65];
	int rc;

	if (!n)
		return error_set(err, -ENOENT, "Node '%s' not found", name);
	rc = command_node_call(n, hash_on_loop, &h, err);
	command_node_unref(n);
	if (rc)
		return rc;
	for (unsigned i = 0; i < sizeof(h.digest); i++)
		snprintf(text + 2 * i, 3, "%02x", h.digest[i]);
	*ret = json_object_new_object();
	json_object_object_add(*ret, "sha256", json_object_new_string(text));
	return 0;
}
