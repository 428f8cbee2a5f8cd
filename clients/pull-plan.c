// SPDX-License-Identifier: BSD-3-Clause
/* pull-plan: two lists of extents in, one list of runs out.
 *
 * A server may answer with less than was asked (then the next request starts
 * where the shorter of the two lists ends), and with a last extent that reaches
 * behind what was asked (then that is used, up to the end of the export).
 * Extents that end inside one of the server's own blocks break the protocol but
 * are seen in the wild; the plan then goes on at the block's start, so that the
 * block is seen again as a whole, or reads it when it would not get further.
 *
 * Flags: bit 0 of a dirty bitmap is "dirty"; any bit that we do not know counts
 * as dirty too.  merino:changes also has a bit for "and reads as zeroes".  Of base:allocation only NBD_STATE_ZERO says what is read;
 * a hole that is not said to be zero is read like data.
 */
#include "clients/pull-plan.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"

enum { STATE_ZERO = 2 };		/* NBD_STATE_ZERO */
enum { CHANGES_ZEROED = 3 };		/* NBD_CHANGES_DIRTY | NBD_CHANGES_ZERO */

/* Some servers round their last extent up; more than this is no rounding. */
enum { ROUNDING = 65536 };

int plan_init(struct plan *p, uint64_t size, uint64_t block, bool dirty, bool allocation,
	      uint64_t all_from)
{
	*p = (struct plan){ .size = size, .block = block, .all_from = all_from };
	p->list[PLAN_DIRTY].used = dirty;
	p->list[PLAN_ALLOCATION].used = allocation;
	p->ring = malloc(PLAN_RUNS * sizeof(*p->ring));
	if (!p->ring)
		return -ENOMEM;
	for (int c = 0; c < PLAN_CONTEXTS; c++) {
		p->list[c].v = malloc(2 * PLAN_ENTRIES * sizeof(uint32_t));
		if (!p->list[c].v)
			return -ENOMEM;
	}
	return 0;
}

void plan_clear(struct plan *p)
{
	for (int c = 0; c < PLAN_CONTEXTS; c++)
		free(p->list[c].v);
	free(p->ring);
	*p = (struct plan){ 0 };
}

/* Appends [p->at, p->at + LEN), joined with the run before it where they are alike. */
static void plan_add(struct plan *p, uint64_t len, enum run_kind kind)
{
	struct run *last = p->n ? &p->ring[(p->head + p->n - 1) % PLAN_RUNS] : NULL;

	if (!len)
		return;
	if (last && last->kind == kind && last->off + last->len == p->at) {
		last->len += len;
	} else {
		assert(p->n < PLAN_RUNS);
		p->ring[(p->head + p->n++) % PLAN_RUNS] =
			(struct run){ .off = p->at, .len = len, .kind = kind };
	}
	p->at += len;
}

bool plan_ask(struct plan *p, uint64_t *off, uint64_t *len)
{
	uint64_t most = align_down(UINT32_MAX, max_u64(p->block, 65536));

	if (p->asked || p->at == p->size)
		return false;
	if (!p->list[PLAN_DIRTY].used && !p->list[PLAN_ALLOCATION].used) {
		plan_add(p, p->size - p->at, RUN_READ);
		return false;
	}
	/* A reply makes at most the runs of both lists, one more where they are cut
	 * at all_from and one for a block that is read as a whole. */
	if (PLAN_RUNS - p->n < 2 * PLAN_ENTRIES + 2)
		return false;
	for (int c = 0; c < PLAN_CONTEXTS; c++) {
		p->list[c].seen = false;
		p->list[c].n = p->list[c].total = 0;
	}
	p->lie = ERROR_INIT;
	*off = p->at;
	*len = p->asked = min_u64(p->size - p->at, most);
	return true;
}

static void plan_lie(struct plan *p, const char *what)
{
	if (!p->lie.code)
		error_set(&p->lie, -EPROTO, "block status at offset %llu: %s",
			  (unsigned long long)p->at, what);
}

void plan_reply(struct plan *p, enum plan_context c, uint64_t off, const uint32_t *v, size_t n)
{
	struct plan_list *l = &p->list[c];
	uint64_t left = p->size - p->at;

	if (!l->used || l->seen)
		return plan_lie(p, "the server answered for a context twice, or for one not asked for");
	if (off != p->at)
		return plan_lie(p, "the server answered for another offset");
	if (n == 0 || n % 2)
		return plan_lie(p, "the server sent no extents");
	l->seen = true;
	for (size_t i = 0; i < n && l->total < p->asked; i += 2) {
		if (v[i] == 0)
			return plan_lie(p, "the server sent an extent of length 0");
		if (v[i] > left - l->total && v[i] - (left - l->total) >= ROUNDING)
			return plan_lie(p, "the server sent an extent that ends behind the export");
		if (l->n == PLAN_ENTRIES)
			break;
		l->v[2 * l->n] = v[i];
		l->v[2 * l->n++ + 1] = v[i + 1];
		l->total += min_u64(v[i], left - l->total);
	}
}

static enum run_kind plan_kind(struct plan *p, uint32_t dirty, uint32_t allocation)
{
	bool is_dirty = !p->list[PLAN_DIRTY].used || dirty;

	if (!is_dirty && p->at >= p->all_from)
		is_dirty = p->unsaid = true;
	if (!is_dirty)
		return RUN_SKIP;
	if (p->changes && (dirty & CHANGES_ZEROED) == CHANGES_ZEROED)
		return RUN_ZERO;
	return allocation & STATE_ZERO ? RUN_ZERO : RUN_READ;
}

/* Where one of the lists is being read. */
struct cursor {
	const struct plan_list *l;
	size_t i;
	uint64_t left;			/* bytes of extent i that are not used yet */
};

static void cursor_start(struct cursor *c, const struct plan_list *l)
{
	*c = (struct cursor){ .l = l, .left = l->used ? l->v[0] : UINT64_MAX };
}

static uint32_t cursor_flags(const struct cursor *c)
{
	return c->l->used ? c->l->v[2 * c->i + 1] : 0;
}

static void cursor_advance(struct cursor *c, uint64_t len)
{
	c->left -= len;
	if (c->left == 0 && ++c->i < c->l->n)
		c->left = c->l->v[2 * c->i];
}

/* Makes runs of both lists up to END. */
static void plan_merge(struct plan *p, uint64_t end)
{
	struct cursor d, a;

	cursor_start(&d, &p->list[PLAN_DIRTY]);
	cursor_start(&a, &p->list[PLAN_ALLOCATION]);
	while (p->at < end) {
		uint64_t len = min_u64(min_u64(d.left, a.left), end - p->at);

		if (p->at < p->all_from)
			len = min_u64(len, p->all_from - p->at);
		plan_add(p, len, plan_kind(p, cursor_flags(&d), cursor_flags(&a)));
		cursor_advance(&d, len);
		cursor_advance(&a, len);
	}
}

int plan_reply_end(struct plan *p, struct error *err)
{
	uint64_t total = p->size - p->at, end;

	assert(p->asked);
	p->asked = 0;
	for (int c = 0; c < PLAN_CONTEXTS; c++) {
		if (p->list[c].used && !p->list[c].seen)
			plan_lie(p, "the server left out a context that it had agreed to");
		if (p->list[c].used)
			total = min_u64(total, p->list[c].total);
	}
	if (p->lie.code) {
		if (err)
			*err = p->lie;
		return p->lie.code;
	}
	end = p->at + total;
	if (end < p->size)
		end = align_down(end, p->block);
	if (end > p->at)
		plan_merge(p, end);
	else
		plan_add(p, min_u64(p->block, p->size - p->at), RUN_READ);
	return 0;
}

void plan_forget(struct plan *p)
{
	p->asked = 0;
}

const struct run *plan_next(const struct plan *p)
{
	return p->n ? &p->ring[p->head] : NULL;
}

void plan_take(struct plan *p, uint64_t len)
{
	struct run *r = &p->ring[p->head];

	assert(p->n && len <= r->len);
	r->off += len;
	r->len -= len;
	if (r->len == 0) {
		p->head = (p->head + 1) % PLAN_RUNS;
		p->n--;
	}
}

bool plan_done(const struct plan *p)
{
	return p->at == p->size && p->n == 0;
}
