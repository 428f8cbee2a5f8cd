/* SPDX-License-Identifier: BSD-3-Clause */
/* copier-manners: what the guest leaves (manners.h), and how long a request may be.
 *
 * A request of ours is no longer than the guest can bear: it holds the loop's thread, or
 * the storage, for a moment, and what the guest asks then waits.  So its length follows
 * from how long the last ones took.  It is not shorter than that either, since each costs
 * the thread some time however short it is, and short ones get the job done late.
 */
#include "backup/copier-int.h"

#define PIECE_MIN (64u << 10)	/* bytes of a request while a guest is there */
#define PIECE_FIRST (128u << 10)
#define PIECE_MAX (256u << 10)	/* more costs the guest more than it gains us */
#define BUSY_NS 100000u		/* that a request may hold the thread, */
#define READ_NS 2000000u	/* and the guest's storage, as long as nobody knows better */

void copier_make_room(struct copier *c)
{
	while (loop_self() && !copier_should_stop(c)) {
		uint64_t now = loop_now(), ns;

		if (!manners_needed(&c->manners, now))
			c->piece = PIECE_FIRST;
		ns = manners_wait(&c->manners, loop_guests(), now, c->in_flight, c->piece);
		if (!ns)
			return;
		loop_queue_wait(&c->idle, now + ns);
	}
}

/* A request of LEN bytes took NS; it was the only user of the thread, or of the storage
 * but for what else is in flight.  LIMIT is what it may take. */
static void judge_piece(struct copier *c, uint64_t len, uint64_t ns, uint64_t limit)
{
	if (ns > limit && len <= c->piece)
		c->piece = max_u64(c->piece / 2, PIECE_MIN);
	else if (ns < limit / 4 && len == c->piece)
		c->piece = min_u64(2 * c->piece, PIECE_MAX);
}

/* A request of ours is in a guest's way for no longer than two of its own take. */
static uint64_t read_limit(const struct copier *c)
{
	return c->manners.base_ns ? min_u64(2 * c->manners.base_ns, READ_NS) : READ_NS;
}

void copier_took(struct copier *c, struct copier_watch *w, uint64_t len, bool is_read)
{
	uint64_t ns = loop_now() - w->begun;

	if (!loop_self() || !c->manners.asked_ns)
		return;
	if (w->turn == loop_turn())
		judge_piece(c, len, ns, BUSY_NS);
	else if (is_read)
		judge_piece(c, len, c->in_flight > len ? ns * len / c->in_flight : ns, read_limit(c));
}

uint64_t copier_piece(const struct copier *c)
{
	if (manners_needed(&c->manners, loop_now()))
		return min_u64(c->chunk, max_u64(c->piece, c->o.compress ? bitmap_granularity(&c->left) : 0));
	return c->chunk;
}
