/* SPDX-License-Identifier: BSD-3-Clause */
/* manners: see manners.h. */
#include "backup/manners.h"

#include "common/checked.h"

#define SECOND_NS 1000000000u
#define PERIOD_NS 20000000u	/* how often the rate is judged, */
#define PERIOD_MAX_NS 100000000u	/* late when there were few … */
#define PERIOD_REQUESTS 8u	/* … requests */
#define PROBE_EVERY_NS 500000000u
#define PROBE_NS 10000000u	/* a probe takes no longer, */
#define PROBE_REQUESTS 16u	/* and ends with so many requests */
#define QUIET_NS 20000000u	/* without a request for so long: no guest is there */
#define FORGET_NS 10000000000ull	/* without one for so long: the next guest is another */
#define LATE_NS 1000000u	/* what timers cost is made up for */
#define CALM 64u		/* periods */
#define RATE_FIRST (64u << 20)
#define RATE_MIN (4u << 20)
#define RATE_MAX (64ull << 30)

static void period_begin(struct manners *m, const struct loop_guests *g, uint64_t now)
{
	m->since_ns = now;
	m->ended = g->ended;
	m->ns = g->ns;
	m->bytes = 0;
}

bool manners_needed(const struct manners *m, uint64_t now)
{
	return m->asked_ns && now - m->asked_ns < QUIET_NS;
}

/* Nothing is known of a guest that comes anew. */
static void forget(struct manners *m)
{
	m->base_ns = m->probed_ns = m->peak = 0;
	m->rate = RATE_FIRST;
}

bool manners_look(struct manners *m, const struct loop_guests *g, uint64_t now)
{
	bool was = manners_needed(m, now);

	if (g->begun == m->seen && g->begun == g->ended)
		return was;
	if (!m->asked_ns || now - m->asked_ns > FORGET_NS)
		forget(m);
	m->seen = g->begun;
	m->asked_ns = now;
	if (!was) {
		m->probing = false;
		m->next_ns = now;
		period_begin(m, g, now);
	}
	return true;
}

/* Nothing of ours is in flight: the guests' requests take what they take. */
static void probe(struct manners *m, const struct loop_guests *g, uint64_t now)
{
	uint64_t n = g->ended - m->ended, ns;

	if (n < PROBE_REQUESTS && now - m->since_ns < PROBE_NS)
		return;
	ns = n ? (g->ns - m->ns) / n : now - m->since_ns;
	if (n || g->begun != g->ended)		/* one that is still under way takes that long, too */
		m->base_ns = m->base_ns ? (3 * m->base_ns + ns) / 4 : ns;
	m->probing = false;
	m->probed_ns = m->next_ns = now;
	period_begin(m, g, now);
}

/* Twice as much until it was too much once; little where that is near, but more and more
 * while it does not come: storage may be faster than it was. */
static uint64_t growth(const struct manners *m)
{
	uint64_t times = (uint64_t)m->calm * m->calm / (CALM * CALM);

	if (!m->peak)
		return m->rate;
	if (m->rate < m->peak / 4 * 3)
		times = max_u64(times, 16);
	return m->rate / 512 * min_u64(max_u64(times, 1), 32);
}

/* What went through although more was asked for is what storage can do.  If all of it
 * did, we do not know that, and perhaps it is not us who are in the guests' way. */
static void too_much(struct manners *m, uint64_t through)
{
	if (!m->peak)
		m->peak = through;
	else if (through > m->peak || through < m->rate / 8 * 7)
		m->peak = (3 * m->peak + through) / 4;
	m->rate = max_u64(min_u64(m->rate, through) * 3 / 4, m->peak * 3 / 5);
	m->calm = 0;
}

static void judge(struct manners *m, const struct loop_guests *g, uint64_t now)
{
	uint64_t n = g->ended - m->ended, ns, took = now - m->since_ns, through;

	if (took < PERIOD_NS || (n < PERIOD_REQUESTS && took < PERIOD_MAX_NS))
		return;
	ns = n ? (g->ns - m->ns) / n : took;
	through = m->bytes * 1000 / (took / (SECOND_NS / 1000));
	m->quick_ns += m->quick_ns / 64;
	if (m->base_ns && ns > 2 * m->base_ns) {
		too_much(m, through);
	} else if (through >= m->rate / 2) {
		m->rate += growth(m);
		m->calm = (unsigned)min_u64(m->calm + 1u, 100 * CALM);
	}
	m->rate = min_u64(max_u64(m->rate, RATE_MIN), RATE_MAX);
	period_begin(m, g, now);
}

/* Two requests beside each other keep storage busy; a target that is far away takes as
 * many as are under way at this rate. */
static uint64_t room(const struct manners *m, uint64_t piece)
{
	return piece + m->rate / 1000 * (2 * m->quick_ns / 1000) / 1000;
}

uint64_t manners_wait(struct manners *m, const struct loop_guests *g, uint64_t now, uint64_t in_flight,
		      uint64_t piece)
{
	if (!manners_look(m, g, now))
		return 0;
	if (m->probing) {
		probe(m, g, now);
	} else if (now - m->probed_ns > PROBE_EVERY_NS) {
		if (in_flight)
			return PROBE_NS;
		m->probing = true;
		period_begin(m, g, now);
	} else {
		judge(m, g, now);
	}
	if (m->probing)
		return PROBE_NS / 4;
	if (now < m->next_ns)
		return min_u64(m->next_ns - now, QUIET_NS);	/* the guest may go */
	return in_flight && in_flight + piece > room(m, piece) ? PERIOD_NS : 0;
}

void manners_began(struct manners *m, uint64_t now, uint64_t len)
{
	if (!manners_needed(m, now))
		return;
	m->next_ns = max_u64(m->next_ns, now - min_u64(now, LATE_NS)) + len * 1000 / (m->rate / 1000000);
	m->bytes += len;
}

void manners_took(struct manners *m, uint64_t ns)
{
	m->quick_ns = m->quick_ns ? min_u64(ns, m->quick_ns) : ns;
}
