// SPDX-License-Identifier: BSD-3-Clause
/* view-keep: what a write does for a view before it is issued.
 *
 *	blocks that are on the disk alone and wanted
 *	  ─▶ the disk's map says zeroes, or nothing: that is noted, whatever the length
 *	  ─▶ data: read into the log's memory (or given to the store), a piece at a time
 *
 * A discard is a hint, and old data that it would throw away fills the log: one that has
 * much to keep is not done.
 *
 * Who comes to a block that is being kept waits for that piece and for nothing else.
 * What the map said, and what was read, was so before anything was overwritten, since
 * each writer has kept before it writes: it is noted only where nobody noted anything
 * in between.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/view-int.h"
#include "common/bytes.h"

#define MAP_FROM (64u << 10)		/* bytes: less is read at once, it costs less than a map */
#define MAP_RUNS 16u
#define DISCARD_SAVES_MAX VIEW_PIECE	/* bytes: beyond it a discard is dropped rather than kept */

struct save {
	struct view *v;
	struct patience wait;
	int rc;				/* of the store, with break_guest */
	uint64_t left;			/* bytes that may still be saved … */
	bool stopped;			/* … and were not: a discard that is dropped */
};

/* -- which blocks --------------------------------------------------------------------------- */

/* The first run in [*FIRST, END) that has to be kept: its end; *FIRST == END: none. */
static uint64_t needed(const struct view *v, uint64_t *first, uint64_t end)
{
	while (*first < end) {
		struct block_run r = view_tree_run(&v->tree, *first, end);
		bool wanted = false;
		uint64_t n;

		if (r.kind != BLOCK_DISK) {
			*first += r.n;
			continue;
		}
		n = view_wanted_run(v, *first, *first + r.n, &wanted);
		if (wanted)
			return *first + n;
		*first += n;
	}
	return end;
}

/* The first that is being kept of [first, end). */
static struct keeping *kept_by_other(const struct view *v, uint64_t first, uint64_t end)
{
	struct keeping *found = NULL;

	for (struct keeping *k = v->keeping; k; k = k->next)
		if (k->first < end && first < k->end && (!found || k->first < found->first))
			found = k;
	return found;
}

static void keeping_begin(struct view *v, struct keeping *k, uint64_t first, uint64_t end)
{
	*k = (struct keeping){ .next = v->keeping, .first = first, .end = end };
	v->keeping = k;
}

static void keeping_end(struct view *v, struct keeping *k)
{
	struct keeping **p = &v->keeping;

	while (*p != k)
		p = &(*p)->next;
	*p = k->next;
	co_queue_wake_all(&k->done);
}

/* -- noting --------------------------------------------------------------------------------- */

void view_tell(struct view *v, uint64_t first, uint64_t n)
{
	v->stats.kept += view_clip(v, first, n);
	if (v->kept)
		v->kept(v->kept_arg, view_bytes(v, first), view_clip(v, first, n));
}

/* [first, first+n) are of KIND, but for those that somebody has noted already; what
 * those have in the log is not wanted then. */
static void note(struct view *v, uint64_t first, uint64_t n, enum block_kind kind, uint64_t at)
{
	uint64_t end = first + n;

	while (first < end && !v->broken) {
		struct block_run r = view_tree_run(&v->tree, first, end);

		if (r.kind != BLOCK_DISK) {
			if (kind == BLOCK_KEPT && !v->store)
				view_log_drop(v, at, r.n);
		} else if (view_tree_set(&v->tree, first, r.n, kind, at)) {
			view_break(v, "Out of memory");
		} else {
			view_tell(v, first, r.n);
		}
		first += r.n;
		at += r.n;
	}
}

/* -- the log ---------------------------------------------------------------------------------- */

static bool block_is_zero(const struct view *v, const uint8_t *mem, uint64_t i)
{
	return bytes_are_zero(mem + (i << v->bits), (size_t)1 << v->bits);
}

/* N blocks are at MEM, AT in the log: zeroes are noted only. */
static void note_data(struct view *v, uint64_t first, uint32_t n, uint64_t at, const uint8_t *mem)
{
	uint32_t i = 0, end;

	while (i < n && !v->broken) {
		bool zero = block_is_zero(v, mem, i);

		for (end = i + 1; end < n && block_is_zero(v, mem, end) == zero;)
			end++;
		note(v, first + i, end - i, zero ? BLOCK_ZERO : BLOCK_KEPT, at + i);
		if (zero && !v->broken)
			view_log_drop(v, at + i, end - i);
		i = end;
	}
}

static int read_disk(struct view *v, void *buf, uint64_t first, uint64_t n)
{
	uint64_t bytes = view_clip(v, first, n);

	memset((uint8_t *)buf + bytes, 0, view_bytes(v, n) - bytes);
	return node_read(v->node, buf, view_bytes(v, first), bytes);
}

static void save_to_log(struct save *s, uint64_t first, uint64_t end)
{
	struct view *v = s->v;

	while (first < end && !v->broken) {
		uint8_t *mem;
		uint64_t at;
		uint32_t n = view_log_reserve(v, (uint32_t)(end - first), &at, &mem, &s->wait);
		int rc = n ? read_disk(v, mem, first, n) : 0;

		if (!n && !v->broken) {
			s->stopped = true;
			return;
		}
		if (rc)
			view_break(v, "old data cannot be read from '%s': %s", v->node->name, strerror(-rc));
		if (n && !v->broken)
			note_data(v, first, n, at, mem);
		if (n)
			view_log_filled(v, at, n);
		first += n;
	}
}

/* -- a store that was given -------------------------------------------------------------------- */

/* A write to the store, which goes on when nobody waits for it any more. */
struct store_write {
	struct view *v;
	uint64_t first, n;		/* blocks */
	void *buf;
	struct co_queue done;
	bool ended, left;		/* the write; the one who waited for it */
	int rc;
};

static void store_write_run(void *arg)
{
	struct store_write *w = arg;
	struct view *v = w->v;
	uint64_t off = view_bytes(v, w->first), bytes = view_clip(v, w->first, w->n);

	view_enter(v);
	if (bytes_are_zero(w->buf, bytes))
		w->rc = node_zero(v->store, off, bytes, NODE_MAY_UNMAP);
	else
		w->rc = node_write(v->store, w->buf, off, bytes, 0);
	w->ended = true;
	if (w->left) {
		free(w->buf);
		free(w);
	} else {
		co_queue_wake_all(&w->done);
	}
	view_leave(v);
}

/* 0, -errno, or -ETIMEDOUT: the write goes on by itself. */
static int write_store(struct save *s, struct store_write *w)
{
	bool in_time = true;
	int rc;

	if (co_self())
		co_start(store_write_run, w);
	else
		store_write_run(w);
	while (!w->ended && in_time)
		in_time = patience_wait(&s->wait, &w->done);
	if (!w->ended) {
		w->left = true;
		return -ETIMEDOUT;
	}
	rc = w->rc;
	free(w->buf);
	free(w);
	return rc;
}

static int save_piece_to_store(struct save *s, uint64_t first, uint64_t n)
{
	struct view *v = s->v;
	struct store_write *w = calloc(1, sizeof(*w));
	int rc = -ENOMEM;

	if (!w || posix_memalign(&w->buf, 4096, view_bytes(v, n))) {
		free(w);
		return rc;
	}
	w->v = v;
	w->first = first;
	w->n = n;
	rc = read_disk(v, w->buf, first, n);
	if (!rc)
		return write_store(s, w);
	free(w->buf);
	free(w);
	return rc;
}

/* The store is written before the disk: whoever reads it beside the view sees no hole. */
static void save_to_store(struct save *s, uint64_t first, uint64_t end)
{
	struct view *v = s->v;
	int rc = save_piece_to_store(s, first, end - first);

	if (!rc)
		note(v, first, end - first, BLOCK_KEPT, first);
	else if (v->break_guest)
		s->rc = rc;
	else if (!v->broken)
		view_break(v, "old data cannot be copied: %s", strerror(-rc));
}

/* -- what need not be read ----------------------------------------------------------------------- */

/* Whole blocks of an extent [off, off+len). */
static void blocks_inside(const struct view *v, uint64_t off, uint64_t len, uint64_t *first, uint64_t *end)
{
	*first = DIV_ROUND_UP(off, 1ull << v->bits);
	*end = off + len >= v->size ? v->n_blocks : (off + len) >> v->bits;
}

/* Notes what the map says of the blocks from FIRST on.  Returns where data begins, and its
 * end as far as it is known in *END. */
static uint64_t note_by_map(struct view *v, uint64_t first, uint64_t *end)
{
	struct extent e[MAP_RUNS];
	struct extents x = { .v = e, .max = MAP_RUNS };
	uint64_t off = view_bytes(v, first);

	if (node_map(v->node, off, view_clip(v, first, *end - first), &x))
		return first;		/* reading will tell */
	for (uint32_t i = 0; i < x.n && first < *end; off += e[i++].len) {
		bool below = e[i].flags & EXTENT_UNALLOCATED && v->below;
		uint64_t from, to;

		if (!(e[i].flags & (EXTENT_ZERO | EXTENT_UNALLOCATED)))
			continue;
		blocks_inside(v, off, e[i].len, &from, &to);
		to = min_u64(to, *end);
		if (from >= to)
			continue;
		if (from > first) {	/* data before it, or a block that is both */
			*end = from;
			return first;
		}
		note(v, first, to - first, below ? BLOCK_BELOW : BLOCK_ZERO, 0);
		first = to;
	}
	return first;
}

/* -- a write --------------------------------------------------------------------------------------- */

/* Keeps from FIRST on, some of [first, end), which all needs it and which nobody else keeps. */
static uint64_t keep_some(struct save *s, uint64_t first, uint64_t end)
{
	struct view *v = s->v;
	struct keeping k;

	if (v->may_be_sparse && !v->store && (v->below || view_bytes(v, end - first) >= MAP_FROM)) {
		uint64_t begun = first;

		first = note_by_map(v, first, &end);
		if (first > begun)
			return first;	/* that may have taken a while: look again */
	}
	end = min_u64(end, first + max_u64(VIEW_PIECE >> v->bits, 1));
	if (kept_by_other(v, first, end))
		return first;
	if (view_bytes(v, end - first) > s->left) {
		s->stopped = true;
		return first;
	}
	s->left -= view_bytes(v, end - first);
	keeping_begin(v, &k, first, end);
	if (v->store)
		save_to_store(s, first, end);
	else
		save_to_log(s, first, end);
	keeping_end(v, &k);
	return end;
}

/* Another write keeps the first of [first, end): waits until it has. */
static void wait_for_other(struct view *v, uint64_t first, uint64_t end)
{
	struct keeping *k = kept_by_other(v, first, end);

	if (k)
		co_queue_wait(&k->done);
}

static bool goes_on(const struct save *s)
{
	return !s->v->broken && !s->rc && !s->stopped;
}

bool view_has_to_keep(const struct view *v, uint64_t first, uint64_t end)
{
	if (v->keeping && kept_by_other(v, first, end))
		return true;
	needed(v, &first, end);
	return first < end;
}

static void keep_pass(struct save *s, uint64_t first, uint64_t end)
{
	struct view *v = s->v;

	while (first < end && goes_on(s)) {
		uint64_t stop = needed(v, &first, end);
		struct keeping *k = first < stop ? kept_by_other(v, first, stop) : NULL;

		if (first >= end)
			break;
		if (k && k->first <= first)
			first = k->end;		/* the next pass looks at it */
		else
			first = keep_some(s, first, k ? k->first : stop);
	}
}

/* Until nothing is left: what another one was keeping he may have left, too. */
static void keep_range(struct save *s, uint64_t begin, uint64_t end)
{
	while (goes_on(s) && view_has_to_keep(s->v, begin, end)) {
		keep_pass(s, begin, end);
		if (goes_on(s))
			wait_for_other(s->v, begin, end);
	}
}

static void keep(struct save *s, uint64_t off, uint64_t len)
{
	struct view *v = s->v;
	uint64_t first, end, begun;

	if (v->broken || v->closing || !len || off >= v->size)
		return;
	len = min_u64(len, v->size - off);
	first = off >> v->bits;
	end = ((off + len - 1) >> v->bits) + 1;
	if (!view_has_to_keep(v, first, end))
		return;
	begun = loop_now();
	view_enter(v);
	keep_range(s, first, end);
	if (loop_self())		/* else it is a simulation */
		loop_guests()->kept_ns += loop_now() - begun;
	v->stats.waited_ns = max_u64(v->stats.waited_ns, s->wait.waited);
	view_leave(v);
}

int view_keep(struct view *v, uint64_t off, uint64_t len)
{
	struct save s = { .v = v, .left = UINT64_MAX,
			  .wait = { .left = v->wait_ns, .no_end = !v->wait_ns } };

	keep(&s, off, len);
	return s.rc;
}

bool view_keep_for_discard(struct view *v, uint64_t off, uint64_t len)
{
	struct save s = { .v = v, .left = DISCARD_SAVES_MAX, .wait.gives_way = true };

	keep(&s, off, len);
	return !s.stopped;
}
