// SPDX-License-Identifier: BSD-3-Clause
/* view-aside: on qcow2, whole clusters that are overwritten stay where they are.
 *
 * The driver writes the new data elsewhere and hands over the old clusters
 * (format/qcow2-aside.c): nothing is read, and nothing goes to the log.  A block that stays
 * is noted as kept, at its place in the image's file; a cluster is freed when the last
 * of its blocks is released.  A write that is small, or wants to be durable at once, is
 * not worth new mappings: what it overwrites is saved.  Nor are those of a guest who flushes
 * every few of them: each flush would write tables, too, and sync twice.  So his writes stay
 * whole, while one whose middle moves is cut where clusters begin.
 */
#include "backup/view-int.h"

#define ASIDE_MIN (64u << 10)		/* bytes of whole clusters in a write … */
#define STREAM_MIN (8u << 20)		/* … and of such writes between two flushes */
#define STEPS 256u			/* of let_go(), at a stroke */

static struct view *view_of(struct qcow2_aside *a)
{
	return (struct view *)((char *)a - offsetof(struct view, aside.ask));
}

/* Whether a block of the guest's cluster at OFF stays. */
static bool is_held(const struct view *v, uint64_t off)
{
	uint64_t first = align_down(off, v->aside.cluster) >> v->bits;
	uint64_t end = min_u64(first + (v->aside.cluster >> v->bits), v->n_blocks);

	while (first < end) {
		struct block_run r = view_tree_run(&v->tree, first, end);

		if (view_is_aside(&r))
			return true;
		first += r.n;
	}
	return false;
}

/* -- what the driver asks ------------------------------------------------------------------- */

/* All of the cluster is on the disk alone, and wanted. */
static bool is_whole(const struct view *v, uint64_t off)
{
	uint64_t first = off >> v->bits, end = first + (v->aside.cluster >> v->bits);
	struct block_run r = view_tree_run(&v->tree, first, end);
	bool wanted;

	return r.kind == BLOCK_DISK && r.n == end - first &&
	       view_wanted_run(v, first, end, &wanted) == end - first && wanted;
}

static bool has_room(const struct view *v)
{
	const struct view_log *l = &v->log;

	return !v->aside.no_room &&
	       (!l->max || l->stored + l->memory + v->aside.held + v->aside.cluster <= l->max);
}

static bool shall_move(const struct view *v, uint64_t off)
{
	return !v->broken && !v->closing && off + v->aside.cluster <= v->size && has_room(v) && is_whole(v, off);
}

/* Much is written between flushes: now, or before the last one. */
static bool is_stream(struct view_aside *a)
{
	uint64_t flushes = qcow2_aside_flushes(a->node);

	if (flushes != a->flushes) {
		a->flushes = flushes;
		a->stream = a->since >= STREAM_MIN;
		a->since = 0;
	}
	return a->stream || a->since >= STREAM_MIN;
}

static bool aside_moves(struct qcow2_aside *ask, uint64_t off, uint64_t len, uint64_t *n)
{
	struct view *v = view_of(ask);
	struct view_aside *a = &v->aside;
	bool stream = is_stream(a), first = shall_move(v, off);

	for (*n = stream ? a->cluster : len; *n < len && shall_move(v, off + *n) == first;)
		*n += a->cluster;
	if (!first)			/* else it moves, or is asked again once it is saved */
		a->since += *n;
	return stream && first;
}

static bool aside_moved(struct qcow2_aside *a, uint64_t off, uint64_t host)
{
	struct view *v = view_of(a);
	uint64_t first = off >> v->bits, end = min_u64(first + (v->aside.cluster >> v->bits), v->n_blocks);
	uint64_t at = VIEW_ASIDE | host >> v->bits;
	bool found = false, failed = false, held;

	v->aside.since += v->aside.cluster;
	if (v->broken || v->closing)
		return false;
	while (first < end && !failed) {
		struct block_run r = view_tree_run(&v->tree, first, end);

		if (r.kind == BLOCK_DISK) {
			found = true;
			failed = view_tree_set(&v->tree, first, r.n, BLOCK_KEPT, at);
			view_tell(v, first, r.n);
		}
		first += r.n;
		at += r.n;
	}
	held = found && is_held(v, off);	/* not what stays since another write */
	v->aside.held += held ? v->aside.cluster : 0;
	if (failed)
		view_break(v, "Out of memory");		/* which frees what is held */
	return held;
}

static void in_blocks(const struct view *v, uint64_t off, uint64_t len, uint64_t *first, uint64_t *end)
{
	*first = off >> v->bits;
	*end = ((off + len - 1) >> v->bits) + 1;
}

static bool aside_wants(struct qcow2_aside *a, uint64_t off, uint64_t len)
{
	struct view *v = view_of(a);
	uint64_t first, end;

	if (v->broken || v->closing || off >= v->size)
		return false;
	in_blocks(v, off, min_u64(len, v->size - off), &first, &end);
	return view_has_to_keep(v, first, end);
}

static void aside_keep(struct qcow2_aside *a, uint64_t off, uint64_t len)
{
	view_keep(view_of(a), off, len);
}

static void let_go(struct view *v, bool in_turn);

static void free_now(struct view *v, const char *why)
{
	if (v->aside.held && !v->closing)
		view_break(v, "%s", why);
	let_go(v, false);
}

static void aside_no_room(struct qcow2_aside *a, bool for_guest)
{
	struct view *v = view_of(a);

	v->aside.no_room = true;
	if (for_guest)
		free_now(v, "the image has no room for what the guest writes");
}

static void aside_ends(struct qcow2_aside *a)
{
	struct view *v = view_of(a);

	free_now(v, "the image is closed, or opened with other options");
	qcow2_aside_drop(v->aside.node, a);
}

static const struct qcow2_aside asks = {
	.moves = aside_moves,
	.moved = aside_moved,
	.wants = aside_wants,
	.keep = aside_keep,
	.no_room = aside_no_room,
	.ends = aside_ends,
};

/* -- beginning and end ---------------------------------------------------------------------------- */

void view_aside_begin(struct view *v)
{
	const struct view_tap *t = v->taps;

	if (!t || !node_is_qcow2(t->node) || t->begin || t->node->detect_zeroes ||
	    qcow2_cluster_size(t->node) < 1u << v->bits)
		return;
	v->aside.ask = asks;
	if (qcow2_aside_set(t->node, &v->aside.ask)) {
		v->aside.node = t->node;
		v->aside.cluster = qcow2_cluster_size(t->node);
		v->aside.flushes = qcow2_aside_flushes(t->node);
		v->aside.stream = true;
	}
}

/* The cluster that a block at AT is in, and those behind it. */
static void free_clusters(struct view *v, uint64_t at, uint64_t n)
{
	uint64_t cluster = v->aside.cluster;

	qcow2_aside_free(v->aside.node, align_down(view_bytes(v, at & ~VIEW_ASIDE), cluster), n);
	v->aside.held -= n * cluster;
}

/* Frees what stays of a view that is over.  IN_TURN: guests are served meanwhile, and
 * free_now() may do the rest. */
static void let_go(struct view *v, bool in_turn)
{
	struct view_aside *a = &v->aside;
	uint64_t per = a->cluster >> v->bits, first;
	unsigned steps = 0;

	while (a->held && a->next < v->n_blocks) {
		struct block_run r = view_tree_slot(&v->tree, a->next);

		first = align_down(a->next, per);
		a->next += r.n;
		if (view_is_aside(&r)) {
			a->next = align_up(a->next, per);	/* all of the last one goes */
			free_clusters(v, r.at, (a->next - first) / per);
		}
		if (in_turn && ++steps % STEPS == 0 && co_self())
			co_yield();
	}
}

void view_aside_end(struct view *v)
{
	if (!v->aside.node)
		return;
	let_go(v, true);
	qcow2_aside_drop(v->aside.node, &v->aside.ask);
}

static void give_up(void *arg)
{
	struct view *v = arg;

	view_enter(v);
	view_aside_end(v);
	view_leave(v);
}

void view_aside_give_up(struct view *v)
{
	if (co_self())
		co_start(give_up, v);
	else
		view_aside_end(v);
}

bool view_aside_takes(struct view *v, const struct tap_request *rq, uint64_t *first, uint64_t *end)
{
	if (!v->aside.node || rq->kind != TAP_WRITE || rq->flags & (NODE_FUA | NODE_COMPRESS) ||
	    v->aside.node->detect_zeroes || !qcow2_aside_is(v->aside.node, &v->aside.ask))
		return false;
	*first = align_up(rq->off, v->aside.cluster);
	*end = align_down(rq->off + rq->len, v->aside.cluster);
	return *end > *first && *end - *first >= ASIDE_MIN && is_stream(&v->aside);
}

/* -- reading and giving back --------------------------------------------------------------------------- */

int view_aside_read(struct view *v, void *buf, const struct block_run *r, uint64_t skip, size_t len)
{
	return qcow2_aside_read(v->aside.node, buf, view_bytes(v, r->at & ~VIEW_ASIDE) + skip, len);
}

void view_aside_release(struct view *v, uint64_t first, const struct block_run *r)
{
	uint64_t per = v->aside.cluster >> v->bits;

	for (uint64_t i = 0, n; v->aside.node && i < r->n; i += n) {
		n = min_u64(per - (first + i) % per, r->n - i);
		if (!is_held(v, view_bytes(v, first + i)))
			free_clusters(v, r->at + i, 1);
	}
}
