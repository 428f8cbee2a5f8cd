/* SPDX-License-Identifier: BSD-3-Clause */
/* copier-manners: the guest comes first.
 *
 * While guests ask nothing of the source's loop, the copier takes all that there is.  When
 * they do, two things are kept in hand.
 *
 * A request of ours is no longer than the guest can bear: it holds the loop's thread, or
 * the storage, for a moment, and what the guest asks then waits.  So its length follows
 * from how long the last ones took.  It is not shorter than that either, since each costs
 * the thread some time however short it is, and short ones get the job done late.
 *
 * How many bytes are in flight grows a little as long as the guests' requests are not much
 * slower than without us, and shrinks when they are; not to nothing but to one request: of
 * two, one always stands before the guest's.  How fast they would be is found out by
 * asking: every half second the copier stands still for some milliseconds.
 */
#include "backup/copier-int.h"

#define PERIOD_NS 5000000u	/* how often the room is judged, */
#define PERIOD_REQUESTS 4u	/* by so many requests at least */
#define PROBE_EVERY_NS 500000000u
#define PROBE_NS 10000000u	/* a probe takes no longer, */
#define PROBE_REQUESTS 16u	/* and ends with so many requests */
#define PIECE_MIN (64u << 10)	/* bytes of a request while a guest is there */
#define PIECE_FIRST (256u << 10)
#define PIECE_MAX (256u << 10)	/* more costs the guest more than it gains us */
#define BUSY_NS 100000u		/* that a request may hold the thread, */
#define READ_NS 2000000u	/* and the guest's storage */

static void period_begin(struct copier_manners *m, const struct loop_guests *g, uint64_t now)
{
	m->since_ns = now;
	m->ended = g->ended;
	m->ns = g->ns;
}

/* Notes whether guests ask; a guest that comes anew is not known yet. */
static bool guest_is_there(struct copier_manners *m, const struct loop_guests *g, uint64_t now)
{
	bool was = loop_guests_recent(&m->guests, now);

	if (!loop_guests_ask(&m->guests, now))
		return false;
	if (!was) {
		m->base_ns = 0;
		m->probing = false;
		m->piece = PIECE_FIRST;
		m->room = PIECE_FIRST;
		period_begin(m, g, now);
	}
	return true;
}

static void probe_begin(struct copier *c, const struct loop_guests *g, uint64_t now)
{
	struct copier_manners *m = &c->manners;

	m->probing = true;
	period_begin(m, g, now);
}

/* Nothing of ours is in flight: the guests' requests take what they take. */
static void probe(struct copier *c, const struct loop_guests *g, uint64_t now)
{
	struct copier_manners *m = &c->manners;
	uint64_t n = g->ended - m->ended, ns;

	if (n < PROBE_REQUESTS && now - m->since_ns < PROBE_NS)
		return;
	if (n) {
		ns = (g->ns - m->ns) / n;
		m->base_ns = m->base_ns ? (3 * m->base_ns + ns) / 4 : ns;
	}
	m->probing = false;
	m->probed_ns = now;
	period_begin(m, g, now);
}

static void judge(struct copier *c, const struct loop_guests *g, uint64_t now)
{
	struct copier_manners *m = &c->manners;
	uint64_t n = g->ended - m->ended, ns;

	m->room = max_u64(m->room, m->piece);
	if (now - m->since_ns < PERIOD_NS || n < PERIOD_REQUESTS)
		return;
	ns = (g->ns - m->ns) / n;
	if (ns > m->base_ns + m->base_ns / 2)
		m->room = max_u64(m->room * 3 / 4, m->piece);
	else
		m->room = min_u64(m->room + m->piece / 4, COPIER_MEMORY);
	period_begin(m, g, now);
}

void copier_make_room(struct copier *c)
{
	struct copier_manners *m = &c->manners;

	while (loop_self() && !copier_should_stop(c)) {
		const struct loop_guests *g = loop_guests();
		uint64_t now = loop_now();

		if (!guest_is_there(m, g, now))
			return;
		if (!m->probing && now - m->probed_ns > PROBE_EVERY_NS && !c->in_flight)
			probe_begin(c, g, now);
		if (m->probing)
			probe(c, g, now);
		else
			judge(c, g, now);
		if (m->probing) {
			copier_idle(c, PROBE_NS / 4);
			continue;
		}
		if (!c->in_flight ||
		    (c->in_flight + m->piece <= m->room && now - m->probed_ns < PROBE_EVERY_NS))
			return;
		copier_idle(c, PERIOD_NS);
	}
}

/* A request of LEN bytes took NS; it was the only user of the thread, or of the storage
 * but for what else is in flight.  LIMIT is what it may take. */
static void judge_piece(struct copier *c, uint64_t len, uint64_t ns, uint64_t limit)
{
	struct copier_manners *m = &c->manners;

	if (ns > limit && len <= m->piece)
		m->piece = max_u64(m->piece / 2, PIECE_MIN);
	else if (ns < limit / 4 && len == m->piece)
		m->piece = min_u64(2 * m->piece, PIECE_MAX);
}

void copier_took(struct copier *c, struct copier_watch *w, uint64_t len, bool is_read)
{
	uint64_t ns = loop_now() - w->begun;

	if (!loop_self() || !c->manners.guests.asked_ns)
		return;
	if (w->turn == loop_turn())
		judge_piece(c, len, ns, BUSY_NS);
	else if (is_read)
		judge_piece(c, len, c->in_flight > len ? ns * len / c->in_flight : ns, READ_NS);
}

uint64_t copier_piece(const struct copier *c)
{
	const struct copier_manners *m = &c->manners;

	if (loop_guests_recent(&m->guests, loop_now()))
		return min_u64(c->chunk, max_u64(m->piece, c->o.compress ? bitmap_granularity(&c->left) : 0));
	return c->chunk;
}
