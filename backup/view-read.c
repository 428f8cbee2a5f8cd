// SPDX-License-Identifier: BSD-3-Clause
/* view-read: what a reader does.
 *
 * What was not kept is read from the disk, and then looked up once more: a write that
 * came meanwhile has kept before it wrote, so a block that is still not kept was read
 * as it was.  The same goes for the disk's map.
 */
#include <errno.h>
#include <string.h>

#include "backup/view-int.h"

#define MAP_RUNS 64u
#define READ_OVER (64u << 10)	/* bytes that were kept, and that a read of the disk passes */

/* A run in bytes, inside [off, off+len). */
struct piece {
	struct block_run run;
	uint64_t len;			/* bytes */
	uint64_t skip;			/* bytes of its first block that come before */
};

static struct piece piece_at(const struct view *v, uint64_t off, uint64_t len)
{
	uint64_t first = off >> v->bits, end = ((off + len - 1) >> v->bits) + 1;
	struct piece p = { .run = view_tree_run(&v->tree, first, end) };

	p.skip = off - view_bytes(v, first);
	p.len = min_u64(view_bytes(v, p.run.n) - p.skip, len);
	return p;
}

/* All of it is in the bitmap. */
static bool is_wanted(const struct view *v, uint64_t off, uint64_t len)
{
	uint64_t first = off >> v->bits, end = ((off + len - 1) >> v->bits) + 1;
	bool wanted;

	return !v->wanted || (view_wanted_run(v, first, end, &wanted) == end - first && wanted);
}

static int read_below(struct view *v, uint8_t *buf, uint64_t off, size_t len)
{
	uint64_t size = v->below->size;
	size_t there = off < size ? (size_t)min_u64(len, size - off) : 0;

	memset(buf + there, 0, len - there);
	return there ? node_read(v->below, buf, off, there) : 0;
}

/* P, which is not on the disk alone. */
static int read_kept(struct view *v, uint8_t *buf, uint64_t off, const struct piece *p)
{
	switch (p->run.kind) {
	case BLOCK_ZERO:
		memset(buf, 0, p->len);
		return 0;
	case BLOCK_BELOW:
		return read_below(v, buf, off, p->len);
	case BLOCK_KEPT:
		if (v->store)
			return node_read(v->store, buf, off, p->len);
		if (view_is_aside(&p->run))
			return view_aside_read(v, buf, &p->run, p->skip, p->len);
		return view_log_read(v, buf, p->run.at, p->skip, p->len);
	default:
		return -EACCES;
	}
}

/* [off, off+len) was read from the disk into BUF: what was kept, before or since, is read
 * from where it is. */
static int read_again(struct view *v, uint8_t *buf, uint64_t off, uint64_t len)
{
	int rc = 0;

	while (len && !rc && !v->broken) {
		struct piece p = piece_at(v, off, len);

		if (p.run.kind != BLOCK_DISK)
			rc = read_kept(v, buf, off, &p);
		buf += p.len;
		off += p.len;
		len -= p.len;
	}
	return rc;
}

/* Whether the reader gave it back while it was read, so that it is not what it was. */
static bool is_gone(const struct view *v, uint64_t off, uint64_t len)
{
	while (len) {
		struct piece p = piece_at(v, off, len);

		if (p.run.kind == BLOCK_GONE)
			return true;
		off += p.len;
		len -= p.len;
	}
	return false;
}

/* How much of [off, off+len), which begins with P on the disk, to read there at once: over
 * short runs that were kept, too, where the disk is needed behind them.  What is read there
 * is not used, but one request costs less than two. */
static uint64_t reach_on_disk(const struct view *v, uint64_t off, uint64_t len, const struct piece *p)
{
	uint64_t reach = p->len, at = p->len;

	while (at < len) {
		struct piece q = piece_at(v, off + at, len - at);

		if (q.run.kind != BLOCK_DISK && q.len > READ_OVER)
			break;
		at += q.len;
		if (q.run.kind == BLOCK_DISK)
			reach = at;
	}
	return reach;
}

static int read_pieces(struct view *v, uint8_t *buf, uint64_t off, uint64_t len)
{
	int rc = 0;

	while (len && !rc && !v->broken) {
		struct piece p = piece_at(v, off, len);
		uint64_t now = p.len;

		if (p.run.kind == BLOCK_DISK) {
			now = reach_on_disk(v, off, len, &p);
			rc = node_read(v->node, buf, off, now);
			if (!rc)
				rc = read_again(v, buf, off, now);
		} else {
			rc = read_kept(v, buf, off, &p);
		}
		buf += now;
		off += now;
		len -= now;
	}
	return rc;
}

/* Requests to the disk pass its gate, or one above. */
static void reader_enter(struct view *v)
{
	if (!v->readers_in_gate)
		gate_enter(&v->node->gate);
	view_enter(v);
}

static void reader_leave(struct view *v)
{
	view_leave(v);
	if (!v->readers_in_gate)
		gate_leave(&v->node->gate);
}

int view_read(struct view *v, void *buf, uint64_t off, size_t len)
{
	int rc;

	if (!checked_range(off, len, v->size))
		return -EINVAL;
	if (!len || v->broken)
		return v->broken ? -EIO : 0;
	if (!is_wanted(v, off, len) || is_gone(v, off, len))
		return -EACCES;
	reader_enter(v);
	rc = read_pieces(v, buf, off, len);
	if (v->broken)
		rc = -EIO;
	else if (is_gone(v, off, len))
		rc = -EACCES;
	reader_leave(v);
	return rc;
}

/* -- map ------------------------------------------------------------------------------------ */

enum { MAP_FULL = 1 };			/* X has no room: what it has is an answer */

/* How much of [off, off+len) from its beginning is still on the disk alone. */
static uint64_t still_on_disk(const struct view *v, uint64_t off, uint64_t len)
{
	struct piece p = piece_at(v, off, len);

	return p.run.kind == BLOCK_DISK ? p.len : 0;
}

/* Adds some of the map of [off, off+len) of N, which is DEPTH layers down.  Of the disk
 * only what was not written meanwhile, perhaps nothing. */
static int map_node(struct view *v, struct node *n, uint64_t off, uint64_t len, uint32_t depth,
		    struct extents *x, uint64_t *added)
{
	struct extent e[MAP_RUNS];
	struct extents t = { .v = e, .max = MAP_RUNS };
	int rc = node_map_chain(n, off, len, &t);
	uint64_t sure = min_u64(t.total, len);

	if (rc || !sure)
		return rc ? rc : -EIO;
	if (n == v->node)
		sure = still_on_disk(v, off, sure);
	for (uint32_t i = 0; i < t.n && *added < sure; i++) {
		uint64_t now = min_u64(e[i].len, sure - *added);

		if (!extents_add(x, now, e[i].flags, e[i].depth ? e[i].depth + depth : 0))
			return MAP_FULL;
		*added += now;
	}
	return 0;
}

static int map_alike(uint64_t len, uint32_t flags, uint32_t depth, struct extents *x, uint64_t *added)
{
	if (!extents_add(x, len, flags, depth))
		return MAP_FULL;
	*added = len;
	return 0;
}

/* Adds some of P, which begins at OFF. */
static int map_piece(struct view *v, uint64_t off, const struct piece *p, struct extents *x, uint64_t *added)
{
	switch (p->run.kind) {
	case BLOCK_DISK:
		return map_node(v, v->node, off, p->len, 0, x, added);
	case BLOCK_BELOW:
		if (off < v->below->size)
			return map_node(v, v->below, off, min_u64(p->len, v->below->size - off), 1, x, added);
		return map_alike(p->len, EXTENT_ZERO | EXTENT_HOLE | EXTENT_UNALLOCATED, 0, x, added);
	case BLOCK_ZERO:
		return map_alike(p->len, EXTENT_ZERO | EXTENT_HOLE, 1, x, added);
	default:
		return map_alike(p->len, 0, 1, x, added);
	}
}

/* As much of [off, off+len) as is alike and in the bitmap; false: its first byte is not. */
static bool next_piece(struct view *v, uint64_t off, uint64_t len, struct piece *p)
{
	uint64_t first = off >> v->bits, blocks;
	bool wanted;

	*p = piece_at(v, off, len);
	blocks = view_wanted_run(v, first, first + p->run.n, &wanted);
	p->len = min_u64(p->len, view_bytes(v, blocks) - p->skip);
	return wanted && p->run.kind != BLOCK_GONE;
}

static int map_pieces(struct view *v, uint64_t off, uint64_t len, struct extents *x)
{
	uint64_t begin = off;
	int rc = 0;

	while (len && !rc && !v->broken) {
		struct piece p;
		uint64_t added = 0;

		if (!next_piece(v, off, len, &p))
			return off > begin ? 0 : -EACCES;
		rc = map_piece(v, off, &p, x, &added);
		off += added;
		len -= added;
	}
	return rc == MAP_FULL ? 0 : rc;
}

int view_map(struct view *v, uint64_t off, uint64_t len, struct extents *x)
{
	int rc;

	if (!checked_range(off, len, v->size))
		return -EINVAL;
	if (!len || v->broken)
		return v->broken ? -EIO : 0;
	reader_enter(v);
	rc = map_pieces(v, off, len, x);
	if (v->broken)
		rc = -EIO;
	reader_leave(v);
	return rc;
}

/* -- release --------------------------------------------------------------------------------- */

static void release_run(struct view *v, uint64_t first, const struct block_run *r)
{
	if (r->kind == BLOCK_GONE || view_tree_set(&v->tree, first, r->n, BLOCK_GONE, 0))
		return;
	if (r->kind != BLOCK_KEPT)
		return;
	if (v->store)
		node_discard(v->store, view_bytes(v, first), view_clip(v, first, r->n));
	else if (view_is_aside(r))
		view_aside_release(v, first, r);
	else
		view_log_drop(v, r->at, r->n);
}

void view_release(struct view *v, uint64_t off, uint64_t len)
{
	uint64_t first, end;

	if (v->broken || off >= v->size)
		return;
	len = min_u64(len, v->size - off);
	first = DIV_ROUND_UP(off, 1ull << v->bits);
	end = off + len == v->size ? v->n_blocks : (off + len) >> v->bits;
	view_enter(v);
	while (first < end && !v->broken) {
		struct block_run r = view_tree_run(&v->tree, first, end);

		release_run(v, first, &r);
		first += r.n;
	}
	view_leave(v);
}
