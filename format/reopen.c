/* SPDX-License-Identifier: BSD-3-Clause */
/* reopen: other options for a node that is in use (QEMU's blockdev-reopen).
 *
 * What is a flag of the node (discard, detect-zeroes, cache.no-flush) is set.  A
 * backing image is exchanged.  For the rest the driver closes and opens again, in
 * the same node: its name, users, taps and bitmaps stay, its children stay open
 * meanwhile, and so do the lock bytes on the storage.  A file is opened anew before
 * the old descriptor goes (file.c).
 *
 * What is not mentioned returns to its default.  When it fails the node is as it was
 * before.  Should the old options not work any more either (memory, storage), the
 * node fails every request from then on.
 *
 * The gates of the disks above are closed.
 */
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/options.h"
#include "format/node.h"

struct reopening {
	struct node *node;
	struct node settings;		/* a scratch node: its flags are the new ones */
	struct json_object *rest;	/* the driver's options, without children */
	struct node *child[CHILD_COUNT];	/* the new ones; references; NULL: none */
	bool driver_changes;		/* close and open */
	bool file_changes;		/* CHILD_FILE is another node */
	bool backing_changes;
};

static const char *const child_keys[][CHILD_COUNT] = {
	{ "file", "backing", "data-file", "target" }, { "image", "backing", "data-file", "target" },
};

/* -- the driver that every request fails on ---------------------------------------------- */

static int broken_io(struct node *n, void *buf, uint64_t off, size_t len)
{
	return -EIO;
}

static int broken_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	return -EIO;
}

static int broken_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	return -EIO;
}

static int broken_flush(struct node *n)
{
	return -EIO;
}

static int broken_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	return -EIO;
}

static void broken_child_perm(struct node *n, enum node_child c, unsigned perm, unsigned shared,
			      unsigned *cperm, unsigned *cshared)
{
	*cperm = 0;
	*cshared = PERM_ALL;
}

static const struct node_driver broken_driver = {
	.name = "broken",
	.read = broken_io,
	.write = broken_write,
	.zero = broken_zero,
	.flush = broken_flush,
	.map = broken_map,
	.child_perm = broken_child_perm,
};

/* -- what is asked for --------------------------------------------------------------------- */

static void copy_flags(struct node *to, const struct node *from)
{
	to->read_only = from->read_only;
	to->auto_read_only = from->auto_read_only;
	to->force_share = from->force_share;
	to->discard_unmap = from->discard_unmap;
	to->detect_zeroes = from->detect_zeroes;
	to->detect_unmap = from->detect_unmap;
	to->cache_direct = from->cache_direct;
	to->cache_no_flush = from->cache_no_flush;
}

static int other_child(struct reopening *r, const char *key, enum node_child c, const char *name,
		       struct error *err)
{
	struct node *n = r->node, *child = node_find(n->graph, name);

	if (!child)
		return error_set(err, -ENOENT, "Cannot find device='' nor node-name='%s'", name);
	r->child[c] = child;
	if (child == n->child[c])
		return 0;
	if (node_is_below(child, n))
		return error_set(err, -EINVAL, "Making '%s' a %s child of '%s' would create a cycle",
				 name, key, n->name);
	if (child->loop != n->loop)
		return error_set(err, -EXDEV, "Node '%s' is on another thread than the nodes beside it; start with --loops 1",
				 name);
	if (c == CHILD_BACKING) {
		r->backing_changes = true;
		return 0;
	}
	if (c != CHILD_FILE || !(n->driver->filter || n->driver == &raw_driver))
		return error_set(err, -EINVAL, "Cannot change the option '%s'", key);
	r->file_changes = r->driver_changes = true;
	return 0;
}

static int take_child(struct reopening *r, struct json_object *opts, const char *key,
		      enum node_child c, struct error *err)
{
	struct json_object *o = NULL;
	int rc = 0;

	if (!json_object_object_get_ex(opts, key, &o))
		return 0;
	node_unref(r->child[c]);
	r->child[c] = NULL;
	if (json_object_is_type(o, json_type_string))
		rc = other_child(r, key, c, json_object_get_string(o), err);
	else if (o)
		rc = error_set(err, -ENOTSUP, "Parameter '%s' must be the name of a node here", key);
	else if (c == CHILD_BACKING)
		r->backing_changes = r->node->child[c] != NULL;
	else
		rc = error_set(err, -EINVAL, "Invalid parameter type for '%s', expected: BlockdevRef",
			       key);
	json_object_object_del(opts, key);
	return rc;
}

/* QEMU: a node that has, or names, a backing image must be told about it. */
static int require_backing(const struct node *n, struct json_object *opts, struct error *err)
{
	if (json_object_object_get_ex(opts, "backing", NULL) ||
	    !(n->child[CHILD_BACKING] || (n->driver->names_backing && n->driver->names_backing(n))))
		return 0;
	return error_set(err, -EINVAL, "backing is missing for '%s'", n->name);
}

static int take_children(struct reopening *r, struct json_object *opts, struct error *err)
{
	struct node *n = r->node;
	int rc = require_backing(n, opts, err);

	for (unsigned c = 0; c < CHILD_COUNT && !rc; c++) {
		r->child[c] = n->child[c] ? node_ref(n->child[c]) : NULL;
		rc = take_child(r, opts, child_keys[0][c], (enum node_child)c, err);
		if (!rc && c == CHILD_FILE)
			rc = take_child(r, opts, child_keys[1][c], (enum node_child)c, err);
	}
	return rc;
}

/* The first key whose values differ as texts; NULL: none. */
static const char *differing(struct json_object *a, struct json_object *b)
{
	json_object_object_foreach(a, key, value) {
		struct json_object *other;

		if (!json_object_object_get_ex(b, key, &other) ||
		    strcmp(json_object_get_string(value), json_object_get_string(other)))
			return key;
	}
	return NULL;
}

static int compare_options(struct reopening *r, struct error *err)
{
	const char *key = differing(r->rest, r->node->options);

	if (!key)
		key = differing(r->node->options, r->rest);
	if (!key)
		return 0;
	if (r->node->protocol && !r->node->driver->filter)
		return error_set(err, -EINVAL, "Cannot change the option '%s'", key);
	r->driver_changes = true;
	return 0;
}

static void compare_flags(struct reopening *r)
{
	const struct node *old = r->node, *new = &r->settings;

	if (old->read_only != new->read_only || old->auto_read_only != new->auto_read_only ||
	    old->force_share != new->force_share || old->cache_direct != new->cache_direct)
		r->driver_changes = true;
}

static int refuse_writers(const struct reopening *r, struct error *err)
{
	for (struct node_use *u = r->node->uses; u; u = u->next) {
		if (r->settings.read_only &&
		    (u->perm & (PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE)))
			return error_set(err, -EPERM, "Read-only block node '%s' cannot support read-write users",
					 r->node->name);
	}
	return 0;
}

/* Its requests are not made to wait at a gate: they may be inside any node below. */
static int refuse_jobs(const struct node *n, struct error *err)
{
	char what[sizeof(((struct node_use *)NULL)->what)] = "";
	struct graph *g = n->graph;

	pthread_mutex_lock(&g->lock);
	for (struct node *p = g->nodes; p; p = p->next) {
		if (p->loop != n->loop || !node_is_below(p, n))
			continue;
		for (struct node_use *u = p->uses; u; u = u->next) {
			if (u->job)
				strcpy(what, u->what);
		}
	}
	pthread_mutex_unlock(&g->lock);
	return *what ? error_set(err, -EBUSY, "Node '%s' is busy: %s works with it", n->name, what) : 0;
}

static int take_all(struct reopening *r, struct json_object *opts, struct error *err)
{
	const char *driver = json_object_get_string(json_object_object_get(opts, "driver"));
	int rc;

	if (!driver || strcmp(driver, r->node->driver->name))
		return error_set(err, -EINVAL, "Cannot change the option 'driver'");
	json_object_object_del(opts, "driver");
	json_object_object_del(opts, "node-name");
	rc = take_children(r, opts, err);
	if (!rc)
		rc = node_take_flags(&r->settings, opts, err);
	if (rc)
		return rc;
	r->rest = json_object_get(opts);
	rc = compare_options(r, err);
	compare_flags(r);
	return rc ? rc : refuse_writers(r, err);
}

/* -- doing it -------------------------------------------------------------------------------- */

/* While nodes are frozen their lock bytes stay as they are. */
void node_freeze(struct node *n, bool frozen)
{
	n->frozen = frozen;
	for (unsigned c = 0; c < CHILD_COUNT; c++) {
		if (n->child[c])
			node_freeze(n->child[c], frozen);
	}
}

static void detach_children(struct node *n)
{
	for (unsigned c = 0; c < CHILD_COUNT; c++) {
		node_use_drop(&n->child_use[c]);
		node_unref(n->child[c]);
		n->child[c] = NULL;
	}
}

/* AGAIN: as it was before; what is below may have another size since. */
static int open_with(struct node *n, const struct node *flags, struct json_object *rest,
		     struct node *const *child, uint64_t size, bool again, struct error *err)
{
	const char *const *keys = child_keys[n->driver->child_is_image];
	struct json_object *opts = opts_copy(rest);
	int rc = opts ? 0 : error_set(err, -ENOMEM, "Out of memory");

	copy_flags(n, flags);
	for (unsigned c = 0; c < CHILD_COUNT && !rc; c++) {
		if (child[c])
			json_object_object_add(opts, keys[c], json_object_new_string(child[c]->name));
		else if (c == CHILD_BACKING && n->driver->names_backing)
			json_object_object_add(opts, keys[c], NULL);
	}
	if (!rc)
		rc = n->driver->open(n, opts, err);
	if (!rc)
		rc = opts_end(opts, err);
	if (!rc && again)
		n->size = size;
	else if (!rc && n->uses && n->size != size)
		rc = error_set(err, -EINVAL, "Node '%s' would have another size; it is in use", n->name);
	json_object_put(opts);
	return rc;
}

static void close_driver(struct node *n)
{
	if (n->state && n->driver->close)
		n->driver->close(n);
	if (node_bitmap_hooks && node_bitmap_hooks->forget)
		node_bitmap_hooks->forget(n);
	detach_children(n);
	free(n->filename);		/* the driver says it again */
	n->filename = NULL;
}

static int open_and_permit(struct node *n, const struct node *flags, struct json_object *rest,
			   struct node *const *child, uint64_t size, bool again, struct error *err)
{
	int rc = open_with(n, flags, rest, child, size, again, err);

	node_freeze(n, false);
	for (unsigned c = 0; c < CHILD_COUNT; c++) {
		if (child[c])
			node_freeze(child[c], false);
	}
	if (!rc)
		rc = node_use_refresh(n, err);
	return rc ? rc : node_refresh_parents(n, err);
}

/* A child that was left, or was tried and left: its lock bytes are what it needs now. */
static void thaw(struct node *child)
{
	if (!child)
		return;
	node_freeze(child, false);
	node_use_refresh(child, NULL);
}

static int close_and_open(struct reopening *r, struct error *err)
{
	struct node *n = r->node, *old_child[CHILD_COUNT], old_flags = { 0 };
	struct error again = ERROR_INIT;
	uint64_t size = n->size;
	int rc = 0;

	/* Who gives up writing is told when what he wrote cannot be stored. */
	if (r->settings.read_only && !n->read_only)
		rc = node_flush(n);
	if (rc)
		return error_errno(err, rc, "Could not flush node '%s'", n->name);
	copy_flags(&old_flags, n);
	for (unsigned c = 0; c < CHILD_COUNT; c++)
		old_child[c] = n->child[c] ? node_ref(n->child[c]) : NULL;
	node_freeze(n, true);
	close_driver(n);
	rc = open_and_permit(n, &r->settings, r->rest, r->child, size, false, err);
	if (rc) {
		node_freeze(n, true);
		close_driver(n);
		if (open_and_permit(n, &old_flags, n->options, old_child, size, true, &again)) {
			log_error("node could not be opened again: node=%s error=%s", n->name, again.text);
			close_driver(n);
			n->driver = &broken_driver;
		}
	}
	for (unsigned c = 0; c < CHILD_COUNT; c++) {
		thaw(old_child[c]);
		thaw(r->child[c]);
		node_unref(old_child[c]);
	}
	return rc;
}

/* The driver opens its storage beside the old one. */
static int open_beside(struct reopening *r, struct error *err)
{
	struct node old_flags = { 0 };
	int rc;

	copy_flags(&old_flags, r->node);
	copy_flags(r->node, &r->settings);
	rc = node_refresh_parents(r->node, err);
	if (!rc)
		rc = r->node->driver->reopen(r->node, err);
	if (rc) {
		copy_flags(r->node, &old_flags);
		node_refresh_parents(r->node, NULL);
	}
	return rc;
}

/* N has no backing image.  What its users let others do with this one, they are asked. */
static int attach_backing(struct node *n, struct node *backing, struct error *err)
{
	int rc = node_attach_child(n, node_ref(backing), CHILD_BACKING, err);

	return rc ? rc : node_use_refresh(n, err);
}

static void detach_backing(struct node *n)
{
	node_use_drop(&n->child_use[CHILD_BACKING]);
	node_unref(n->child[CHILD_BACKING]);
	n->child[CHILD_BACKING] = NULL;
}

int node_set_backing(struct node *n, struct node *backing, struct error *err)
{
	struct node *old = n->child[CHILD_BACKING] ? node_ref(n->child[CHILD_BACKING]) : NULL;
	int rc = 0;

	detach_backing(n);
	if (backing)
		rc = attach_backing(n, backing, err);
	if (rc)
		detach_backing(n);
	if (rc && old && attach_backing(n, old, NULL))
		log_error("backing image lost: node=%s", n->name);
	n->driver->backing_changed(n);
	node_unref(old);
	return rc;
}

static int apply(struct reopening *r, struct error *err)
{
	struct node *n = r->node;
	int rc = 0;

	if (r->driver_changes && !n->driver->reopen && node_bitmap_hooks &&
	    node_bitmap_hooks->may_forget)
		rc = node_bitmap_hooks->may_forget(n, err);
	if (!rc && r->driver_changes)
		rc = n->driver->reopen ? open_beside(r, err) : close_and_open(r, err);
	else if (!rc && r->backing_changes)
		rc = node_set_backing(n, r->child[CHILD_BACKING], err);
	if (rc)
		return rc;
	copy_flags(n, r->driver_changes ? n : &r->settings);
	json_object_put(n->options);
	n->options = json_object_get(r->rest);
	return 0;
}

int node_reopen(struct node *n, struct json_object *opts, struct error *err)
{
	struct reopening r = { .node = n };
	int rc;

	if (n->driver == &broken_driver)
		return error_set(err, -EIO, "Node '%s' could not be opened again before", n->name);
	if (n->inactive)
		return error_set(err, -EPERM, "Node '%s' is inactive", n->name);
	rc = refuse_jobs(n, err);
	if (!rc)
		rc = take_all(&r, opts, err);
	if (!rc && n->viewed && (r.file_changes || r.backing_changes))
		rc = error_set(err, -EBUSY, "Node '%s' is read as it was by a backup: its children cannot change",
			       n->name);
	if (!rc)
		rc = apply(&r, err);
	for (unsigned c = 0; c < CHILD_COUNT; c++)
		node_unref(r.child[c]);
	json_object_put(r.rest);
	return rc;
}

int node_set_writable(struct node *n, bool writable, struct error *err)
{
	struct reopening r = { .node = n, .rest = n->options };
	int rc = 0;

	if (n->driver == &broken_driver)
		return error_set(err, -EIO, "Node '%s' could not be opened again before", n->name);
	copy_flags(&r.settings, n);
	r.settings.read_only = !writable;
	for (unsigned c = 0; c < CHILD_COUNT; c++)
		r.child[c] = n->child[c] ? node_ref(n->child[c]) : NULL;
	if (n->driver->reopen)
		rc = open_beside(&r, err);
	else if (node_bitmap_hooks && node_bitmap_hooks->may_forget)
		rc = node_bitmap_hooks->may_forget(n, err);
	if (!rc && !n->driver->reopen)
		rc = close_and_open(&r, err);
	for (unsigned c = 0; c < CHILD_COUNT; c++)
		node_unref(r.child[c]);
	return rc;
}

struct json_object *node_present_options(const struct node *n)
{
	const char *const *keys = child_keys[n->driver->child_is_image];
	struct json_object *o = opts_copy(n->options), *cache = json_object_new_object();

	json_object_object_add(o, "driver", json_object_new_string(n->driver->name));
	json_object_object_add(o, "read-only", json_object_new_boolean(n->read_only));
	json_object_object_add(o, "auto-read-only", json_object_new_boolean(n->auto_read_only));
	json_object_object_add(o, "force-share", json_object_new_boolean(n->force_share));
	json_object_object_add(o, "discard",
			       json_object_new_string(n->discard_unmap ? "unmap" : "ignore"));
	json_object_object_add(o, "detect-zeroes",
			       json_object_new_string(n->detect_unmap ? "unmap" :
						      n->detect_zeroes ? "on" : "off"));
	json_object_object_add(cache, "direct", json_object_new_boolean(n->cache_direct));
	json_object_object_add(cache, "no-flush", json_object_new_boolean(n->cache_no_flush));
	json_object_object_add(o, "cache", cache);
	for (unsigned c = 0; c < CHILD_COUNT; c++) {
		if (n->child[c])
			json_object_object_add(o, keys[c], json_object_new_string(n->child[c]->name));
		else if (c == CHILD_BACKING && n->driver->names_backing)
			json_object_object_add(o, keys[c], NULL);
	}
	return o;
}
