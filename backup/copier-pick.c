/* SPDX-License-Identifier: BSD-3-Clause */
/* copier-pick: what is copied next, and the maps that tell zeroes from data.
 *
 * The source's map is looked up for long ranges and kept, so that a request costs no
 * look-up of its own: holes are skipped in one step, and are never read.  The target's
 * map, looked up only below zeroes, says where it holds zeroes already.  A map that is
 * quick is asked for more the next time, a slow one for less: a look-up may keep the
 * loop's thread busy.
 */
#include <errno.h>

#include "backup/copier-int.h"
#include "format/qcow2.h"

#define MAP_ASK_MIN (64ull << 20)
#define MAP_ASK_MAX (1ull << 62)
#define MAP_SLOW_NS 200000u
#define RUN_MAX 65536u		/* granules of one task: longer runs are not looked for */

/* -- maps -------------------------------------------------------------------------- */

void copier_map_drop(struct copier_map *m, uint64_t off, uint64_t len)
{
	m->changes++;
	if (ranges_overlap(off, len, m->off, m->end - m->off))
		m->off = m->end = 0;
}

struct lookup {
	struct copier *c;
	struct copier_map *m;
	uint64_t off, len;
	int rc;
};

static struct node *mapped_node(const struct lookup *l)
{
	return l->m == &l->c->source ? l->c->o.source : l->c->o.target;
}

static void lookup_on_loop(void *arg)
{
	struct lookup *l = arg;
	struct copier_map *m = l->m;
	struct node *n = mapped_node(l);
	struct view *v = m == &l->c->source ? l->c->o.view : NULL;
	uint64_t start = loop_now(), took;

	m->x.n = 0;
	m->x.total = 0;
	gate_enter(&n->gate);
	l->rc = v ? view_map(v, l->off, l->len, &m->x) : node_map_chain(n, l->off, l->len, &m->x);
	gate_leave(&n->gate);
	took = loop_now() - start;
	m->ask = took > MAP_SLOW_NS ? max_u64(m->ask / 2, MAP_ASK_MIN) : min_u64(2 * m->ask, MAP_ASK_MAX);
}

/* It changed while it was looked up: all of it may be data. */
static void map_unknown(struct copier_map *m, uint64_t len)
{
	m->x.n = 0;
	m->x.total = 0;
	extents_add(&m->x, min_u64(len, MAP_ASK_MIN), 0, 1);
}

/* Has M cover OFF.  With ->mapping held. */
static int map_lookup(struct copier *c, struct copier_map *m, uint64_t off)
{
	struct lookup l = { .c = c, .m = m, .off = off };
	struct loop *loop = mapped_node(&l)->loop;
	uint64_t changes = m->changes;

	if (off >= m->off && off < m->end)
		return 0;
	m->ask = max_u64(m->ask, MAP_ASK_MIN);
	l.len = min_u64(m->ask, c->size - off);
	m->off = m->end = 0;
	if (loop)
		loop_call(loop, lookup_on_loop, &l);
	else
		lookup_on_loop(&l);
	if (l.rc || !m->x.n)
		return l.rc ? l.rc : -EIO;
	if (m->changes != changes)
		map_unknown(m, l.len);
	m->off = m->at_off = off;
	m->end = off + m->x.total;
	m->at = 0;
	return 0;
}

/* Turns M's place to the extent that holds OFF, which M covers. */
static void map_seek(struct copier_map *m, uint64_t off)
{
	if (off < m->at_off) {
		m->at = 0;
		m->at_off = m->off;
	}
	while (off - m->at_off >= m->x.v[m->at].len)
		m->at_off += m->x.v[m->at++].len;
}

/* A map tells zeroes from nothing if it is a qcow2 image's; in a file there is no difference. */
bool copier_map_tells(const struct node *target)
{
	const struct node *n = node_skip_filters((struct node *)target);

	while (!node_is_qcow2(n) && n->child[CHILD_FILE])
		n = n->child[CHILD_FILE];
	return node_is_qcow2(n) ? n == node_skip_filters((struct node *)target) : node_storage(n) != NULL;
}

static enum copier_kind kind_of(const struct copier *c, const struct copier_map *m,
				const struct extent *e)
{
	if (c->o.one_layer && m == &c->source && e->depth != 1)
		return COPIER_NOTHING;
	if (c->o.mark_zeroes && m == &c->target && (e->flags & EXTENT_UNALLOCATED || !c->target_tells))
		return COPIER_DATA;
	return e->flags & EXTENT_ZERO ? COPIER_ZERO : COPIER_DATA;
}

/* The kind at OFF, and how far from there it holds, as far as M reaches. */
static uint64_t run_from(const struct copier *c, struct copier_map *m, uint64_t off,
			 enum copier_kind *kind)
{
	uint64_t end;

	map_seek(m, off);
	*kind = kind_of(c, m, &m->x.v[m->at]);
	end = m->at_off;
	for (uint32_t i = m->at; i < m->x.n && kind_of(c, m, &m->x.v[i]) == *kind; i++)
		end += m->x.v[i].len;
	return end - off;
}

/* A block counts as what it is as a whole; one of several kinds is data. */
static bool is_whole(const struct copier *c, uint64_t off, uint64_t run)
{
	return run >= c->block || off + run >= c->size;
}

/* How far from OFF on there is data.  Blocks that M does not cover whole are data. */
static uint64_t data_from(const struct copier *c, struct copier_map *m, uint64_t off, uint64_t max)
{
	uint64_t stop = min_u64(off + min_u64(max, c->chunk), c->size), p = off + c->block;
	enum copier_kind kind;

	while (p < stop && p < m->end) {
		uint64_t run = run_from(c, m, p, &kind);

		if (kind != COPIER_DATA && is_whole(c, p, run))
			return p - off;
		p += c->block;
	}
	return min_u64(p, stop) - off;
}

static int ask(struct copier *c, struct copier_map *m, uint64_t off, uint64_t max,
	       enum copier_kind *kind, uint64_t *len)
{
	uint64_t run;
	int rc;

	co_mutex_lock(&c->mapping);
	rc = map_lookup(c, m, off);
	if (!rc) {
		run = run_from(c, m, off, kind);
		if (!is_whole(c, off, run))
			*kind = COPIER_DATA;
		if (*kind == COPIER_DATA)
			run = data_from(c, m, off, max);
		else if (off + run < c->size)
			run = align_down(run, c->block);
		*len = min_u64(run, max);
	}
	co_mutex_unlock(&c->mapping);
	return rc;
}

/* A short run that no map covers is read: that takes less than asking what it is. */
static bool is_read_blindly(const struct copier *c, uint64_t off, uint64_t max)
{
	return max <= COPIER_UNMAPPED && !c->o.one_layer && (off < c->source.off || off >= c->source.end);
}

int copier_source_kind(struct copier *c, uint64_t off, uint64_t max, enum copier_kind *kind,
		       uint64_t *len)
{
	if (is_read_blindly(c, off, max)) {
		*kind = COPIER_DATA;
		*len = max;
		return 0;
	}
	return ask(c, &c->source, off, max, kind, len);
}

/* Who does not know what the target holds writes to it. */
void copier_target_kind(struct copier *c, uint64_t off, uint64_t max, enum copier_kind *kind,
			uint64_t *len)
{
	if (ask(c, &c->target, off, max, kind, len)) {
		*kind = COPIER_DATA;
		*len = max;
	}
}

/* -- what is next ------------------------------------------------------------------------ */

/* The part of [off, *end) before the first task that overlaps it; if that is at OFF, how
 * far to go on. */
static bool is_free(const struct copier *c, uint64_t off, uint64_t *end, uint64_t *on)
{
	for (const struct copier_task *t = c->busy; t; t = t->next) {
		if (off >= t->off && off < t->off + t->len) {
			*on = t->off + t->len;
			return false;
		}
		if (t->off > off && t->off < *end)
			*end = t->off;
	}
	return true;
}

/* The first run in [from, end) that is left and that nobody works on. */
static bool find(const struct copier *c, uint64_t from, uint64_t end, struct copier_task *t)
{
	uint64_t most = (uint64_t)RUN_MAX << c->left.granularity_bits, off = from, stop;

	while ((off = bitmap_next_dirty(&c->left, off, end)) < end) {
		stop = bitmap_next_clean(&c->left, off, off + min_u64(most, c->size - off));
		if (is_free(c, off, &stop, &off)) {
			t->off = align_down(off, bitmap_granularity(&c->left));
			t->len = stop - t->off;
			return true;
		}
	}
	return false;
}

/* -- what is hot ------------------------------------------------------------------------- */

/* What the view keeps takes room until it is copied, and the guest may write there again:
 * every other pick is one of those, and what follows it. */
void copier_kept(void *arg, uint64_t off, uint64_t len)
{
	struct copier *c = arg;

	off = align_down(off, bitmap_granularity(&c->left));
	if (!bitmap_get(&c->left, off) || c->n_hot == COPIER_HOT)
		return;
	if (c->n_hot && c->hot[(c->hot_first + c->n_hot - 1) % COPIER_HOT] == off)
		return;
	c->hot[(c->hot_first + c->n_hot++) % COPIER_HOT] = off;
}

static bool find_hot(struct copier *c, struct copier_task *t)
{
	c->hot_next = !c->hot_next;
	while (c->hot_next && c->n_hot) {
		uint64_t off = c->hot[c->hot_first];

		c->hot_first = (c->hot_first + 1) % COPIER_HOT;
		c->n_hot--;
		if (bitmap_get(&c->left, off) && find(c, off, off + 1, t))
			return true;
	}
	return false;
}

/* The next ones in the disk's order, from the beginning again after the end. */
static bool find_next(struct copier *c, struct copier_task *t)
{
	if (!find(c, c->cursor, c->size, t) && !find(c, 0, c->cursor, t))
		return false;
	return true;
}

/* Cuts T to what is of one kind, and as long as a request may be now; whole granules. */
static int cut(struct copier *c, struct copier_task *t)
{
	uint64_t g = bitmap_granularity(&c->left), len = 0;
	enum copier_kind kind = COPIER_DATA;
	int rc = copier_source_kind(c, t->off, t->len, &kind, &len);

	if (len < t->len || rc)
		len = max_u64(align_down(len, g), g);
	len = min_u64(len, max_u64(align_down(copier_reach(c, kind), g), g));
	t->len = min_u64(t->len, len);
	t->flight = kind == COPIER_DATA ? t->len : 0;
	return rc;
}

int copier_pick(struct copier *c, struct copier_task *t)
{
	bool in_order;
	int rc = -EAGAIN;

	co_mutex_lock(&c->picking);
	copier_pace(c);
	copier_make_room(c);
	in_order = !find_hot(c, t);
	if (!copier_should_stop(c) && (!in_order || find_next(c, t))) {
		rc = cut(c, t);
		bitmap_reset(&c->left, t->off, t->len);
		if (in_order)
			c->cursor = t->off + t->len;
		t->next = c->busy;
		c->busy = t;
		c->in_flight += t->flight;
		t->begun = loop_now();
		if (loop_self() && t->flight)
			manners_began(&c->manners, t->begun, t->flight);
		copier_paced(c, t->len);
	}
	co_mutex_unlock(&c->picking);
	return rc;
}
