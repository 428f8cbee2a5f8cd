/* SPDX-License-Identifier: BSD-3-Clause */
/* bitmap: a node's bitmaps as named things: add, find, check, change, remove.
 *
 * Names are unique on a node.  A bitmap that an export or a job holds (`busy`),
 * that the image cannot take changes of (`read_only`) or that cannot be trusted
 * (`inconsistent`) refuses in QEMU's words, which clients match.  What a persistent
 * bitmap costs and may be called is checked when it is added, so that the store at
 * the clean close does not fail for a reason that was known all along.
 */

#include "bitmaps/bitmap-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps/live.h"
#include "common/bytes.h"
#include "format/qcow2.h"

#define GRANULARITY_DEFAULT (64u << 10)
#define GRANULARITY_DEFAULT_MIN (4u << 10)

static uint64_t default_granularity(const struct node *n)
{
	uint64_t g = node_is_qcow2(n) ? qcow2_cluster_size(n) : GRANULARITY_DEFAULT;

	return max_u64(GRANULARITY_DEFAULT_MIN, min_u64(g, GRANULARITY_DEFAULT));
}

uint64_t bitmap_mapped_bytes(const struct node *n, uint64_t granularity)
{
	unsigned bits;

	if (!granularity)
		granularity = default_granularity(n);
	if (!is_pow2(granularity) || granularity < BITMAP_GRANULARITY_MIN || granularity > BITMAP_GRANULARITY_MAX)
		return 0;
	bits = (unsigned)__builtin_ctzll(granularity);
	return bitmap_data_bytes(n->size, bits) > BITMAP_BYTES_MAX ? 0 : bitmap_map_len(n->size, bits);
}

static struct bitmap *lookup(const struct node *n, const char *name)
{
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		if (!strcmp(b->name, name))
			return b;
	return NULL;
}

int bitmap_new(struct node *n, const char *name, unsigned granularity_bits, bool without_bits,
	       struct bitmap **out, struct error *err)
{
	struct bitmap *b = calloc(1, sizeof(*b));

	if (!b)
		goto no_memory;
	b->node = n;
	b->size = n->size;
	b->granularity_bits = granularity_bits;
	b->name = strdup(name);
	if (!b->name || (!without_bits && bitmap_alloc_bits(b) < 0) || tracker_attach(b) < 0)
		goto no_memory;
	*out = b;
	return 0;

no_memory:
	if (b) {
		bitmap_free_bits(b);
		free(b->name);
		free(b);
	}
	return error_set(err, -ENOMEM, "Cannot allocate memory for bitmap '%s'", name);
}

void bitmap_free(struct bitmap *b)
{
	struct node *n = b->node;
	bool was_live = b->live;

	tracker_detach(b);
	live_drop(b);
	if (was_live)
		live_changed(n);
	free(b->stored_name);
	free(b->name);
	free(b);
}

void bitmap_set_inconsistent(struct bitmap *b)
{
	b->inconsistent = true;
	b->enabled = false;
	live_drop(b);
	live_changed(b->node);
}

static int check_name(struct node *n, const char *name, struct error *err)
{
	size_t len = strlen(name);

	if (!len)
		return error_set(err, -EINVAL, "Bitmap name cannot be empty");
	if (lookup(n, name))
		return error_set(err, -EEXIST, "Bitmap already exists: %s", name);
	if (len > BITMAP_NAME_MAX)
		return error_set(err, -EINVAL, "Bitmap name too long: %s", name);
	if (!utf8_valid(name, len))
		return error_set(err, -EINVAL, "Bitmap name is not valid UTF-8");
	return 0;
}

static int check_room(struct node *n, const char *name, uint64_t granularity, struct error *err)
{
	unsigned count = 0;

	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		count++;
	if (count >= BITMAPS_MAX)
		return error_set(err, -ENOSPC, "Node '%s' has %u bitmaps already, which is the "
				 "most there can be", n->name, count);
	if (bitmap_data_bytes(n->size, (unsigned)__builtin_ctzll(granularity)) > BITMAP_BYTES_MAX)
		return error_set(err, -EFBIG, "Bitmap '%s' would take more than %llu MiB of "
				 "memory. Use larger granularity", name, BITMAP_BYTES_MAX >> 20);
	return 0;
}

int bitmap_add(struct node *n, const char *name, uint64_t granularity, bool persistent,
	       bool disabled, struct bitmap **out, struct error *err)
{
	struct bitmap *b = NULL;
	int rc;

	if (!granularity)
		granularity = default_granularity(n);
	rc = check_name(n, name, err);
	if (rc < 0)
		return rc;
	if (!is_pow2(granularity) || granularity < BITMAP_GRANULARITY_MIN)
		return error_set(err, -EINVAL, "Granularity must be power of 2 and at least %u",
				 BITMAP_GRANULARITY_MIN);
	if (granularity > BITMAP_GRANULARITY_MAX)
		return error_set(err, -EINVAL, "Granularity must be at most %llu",
				 BITMAP_GRANULARITY_MAX);
	if (persistent)
		rc = store_can_add(n, name, (unsigned)__builtin_ctzll(granularity), err);
	if (rc == 0)
		rc = check_room(n, name, granularity, err);
	if (rc == 0)
		rc = bitmap_new(n, name, (unsigned)__builtin_ctzll(granularity), false, &b, err);
	if (rc < 0)
		return rc;
	b->persistent = persistent;
	b->changed = true;		/* nothing of it is stored */
	if (persistent)
		store_protect(b);
	b->enabled = !disabled;
	live_changed(n);
	if (out)
		*out = b;
	return 0;
}

struct bitmap *bitmap_find(struct node *n, const char *name, struct error *err)
{
	struct bitmap *b = lookup(n, name);

	if (!b)
		error_set(err, -ENOENT, "Dirty bitmap '%s' not found", name);
	return b;
}

struct bitmap *bitmap_find_chain(struct node *n, const char *name, struct error *err)
{
	for (; n; n = node_below(n)) {
		struct bitmap *b = lookup(n, name);

		if (b)
			return b;
	}
	error_set(err, -ENOENT, "Bitmap '%s' is not found", name);
	return NULL;
}

int bitmap_check(const struct bitmap *b, unsigned checks, struct error *err)
{
	if (checks & BITMAP_NOT_BUSY && b->busy)
		return error_set(err, -EBUSY, "Bitmap '%s' is currently in use by another "
				 "operation and cannot be used", b->name);
	if (checks & BITMAP_NOT_RO && b->read_only)
		return error_set(err, -EROFS, "Bitmap '%s' is readonly and cannot be modified",
				 b->name);
	if (checks & BITMAP_NOT_INCONSISTENT && b->inconsistent)
		return error_set(err, -EINVAL, "Bitmap '%s' is inconsistent and cannot be used",
				 b->name);
	return 0;
}

int bitmap_unstore(struct bitmap *b, struct error *err)
{
	int rc = 0;

	if (b->persistent) {
		b->busy++;
		rc = store_remove(b, err);
		b->busy--;
	}
	if (rc == 0) {
		b->persistent = false;
		live_let_go(b);
	}
	return rc;
}

int bitmap_remove(struct bitmap *b, struct error *err)
{
	int rc = bitmap_check(b, BITMAP_NOT_BUSY | BITMAP_NOT_RO, err);

	if (rc < 0)
		return rc;
	rc = bitmap_unstore(b, err);
	if (rc < 0)
		return rc;
	bitmap_free(b);
	return 0;
}

int bitmap_clear(struct bitmap *b, struct error *err)
{
	int rc = bitmap_check(b, BITMAP_CHECK_DEFAULT, err);

	if (rc < 0)
		return rc;
	if (b->dirty)
		b->changed = true;
	b->shrunk = false;
	bitmap_zero_bits(b);
	return 0;
}

int bitmap_set_enabled(struct bitmap *b, bool enabled, struct error *err)
{
	int rc = bitmap_check(b, BITMAP_NOT_BUSY | BITMAP_NOT_INCONSISTENT, err);

	if (rc < 0)
		return rc;
	b->enabled = enabled;
	live_changed(b->node);
	return 0;
}

int bitmap_rename(struct bitmap *b, const char *name, struct error *err)
{
	char *copy;
	int rc = strcmp(b->name, name) ? check_name(b->node, name, err) : 0;

	if (rc < 0)
		return rc;
	copy = strdup(name);
	if (!copy)
		return error_set(err, -ENOMEM, "Out of memory");
	if (b->stored_name)
		free(b->name);
	else
		b->stored_name = b->name;	/* until the close */
	b->name = copy;
	live_changed(b->node);
	return 0;
}

void bitmaps_hold(struct node *n)
{
	live_hold(n);
}

void bitmaps_release(struct node *n)
{
	live_release(n);
}

int bitmaps_commit(struct node *n, struct error *err)
{
	int rc = live_sync(n);

	return rc ? error_errno(err, rc, "Could not make the bitmaps of '%s' durable", n->name) : 0;
}

void bitmaps_will_shrink(struct node *n, uint64_t size)
{
	live_stamp(n);
	if (live_is_on(n) && size < n->size)
		live_mark(n, size, n->size - size);
}

int bitmaps_resize(struct node *n, uint64_t size, struct error *err)
{
	struct bitmap *b, *failed;

	live_stamp(n);
	for (b = n->bitmaps; b; b = b->next)
		if (bitmap_data_bytes(size, b->granularity_bits) > BITMAP_BYTES_MAX)
			return error_set(err, -EFBIG, "Bitmap '%s' would take more than %llu MiB "
					 "of memory at the new size; remove it first", b->name,
					 BITMAP_BYTES_MAX >> 20);
	for (b = n->bitmaps; b && bitmap_resize(b, size) == 0; b = b->next)
		;
	failed = b;
	if (!failed)
		return 0;
	for (b = n->bitmaps; b != failed; b = b->next)
		bitmap_resize(b, n->size);	/* only growing fails, so this shrinks */
	return error_set(err, -ENOMEM, "Cannot allocate memory for bitmap '%s'", failed->name);
}
