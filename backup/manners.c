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
#define PEAK_NS 8000000000ull	/* the peak is forgotten after so long, or twice that */
#define SPELL_NS 40000000u	/* it is what goes through in so long at least */
#define HURRY_EVERY_NS 6000000000ull	/* one such spell without regard, to see the peak again */
#define RATE_FIRST (64u << 20)
#define RATE_HURRY (1ull << 30)	/* or twice the peak, where that is more */
#define HURRIES_FIRST 2u
#define HURRY_PIECES 4u		/* requests beside each other keep most storage busy */
#define RATE_MIN (4u << 20)
#define RATE_MAX (64ull << 30)

static void period_begin(struct manners *m, const struct loop_guests *g, uint64_t now)
{
	m->since_ns = now;
	m->ended = g->ended;
	m->ns = g->ns;
	m->kept_ns = g->kept_ns;
	m->bytes = 0;
}

static void spell_begin(struct manners *m, uint64_t now)
{
	m->spell_ns = now;
	m->spell_bytes = 0;
}

bool manners_needed(const struct manners *m, uint64_t now)
{
	return m->asked_ns && now - m->asked_ns < QUIET_NS;
}

/* Nothing is known of a guest that comes anew. */
static void forget(struct manners *m, uint64_t now)
{
	m->base_ns = m->plain_ns = m->probed_ns = m->peak = m->peak_before = 0;
	m->hurries = HURRIES_FIRST;
	spell_begin(m, now);
	m->rate = RATE_FIRST;
}

bool manners_look(struct manners *m, const struct loop_guests *g, uint64_t now)
{
	bool was = manners_needed(m, now), anew = !m->asked_ns || now - m->asked_ns > FORGET_NS;

	if (g->begun == g->ended && (g->begun == m->seen || (anew && now - g->ended_ns >= QUIET_NS)))
		return was;
	if (anew)
		forget(m, now);
	m->seen = g->begun;
	m->asked_ns = now;
	if (!was) {
		m->probing = false;
		m->next_ns = now;
		period_begin(m, g, now);
	}
	return true;
}

static uint64_t smooth(uint64_t before, uint64_t now)
{
	return before ? (3 * before + now) / 4 : now;
}

/* A guest is to keep half of what it does when nobody makes a backup: what the view
 * costs it counts, but what is little beside that is noise. */
static bool is_late(const struct manners *m, uint64_t ns)
{
	return m->base_ns && ns > max_u64(2 * m->plain_ns, m->base_ns / 4 * 5);
}

/* Nothing of ours is in flight: the guests' requests take what they take. */
static void probe(struct manners *m, const struct loop_guests *g, uint64_t now)
{
	uint64_t n = g->ended - m->ended, ns, kept;

	if (n < PROBE_REQUESTS && now - m->since_ns < PROBE_NS)
		return;
	ns = n ? (g->ns - m->ns) / n : now - m->since_ns;
	kept = n ? min_u64((g->kept_ns - m->kept_ns) / n, ns) : 0;
	if (n || g->begun != g->ended) {	/* one that is still under way takes that long, too */
		m->base_ns = smooth(m->base_ns, ns);
		m->plain_ns = smooth(m->plain_ns, ns - kept);
	}
	m->probing = false;
	m->probed_ns = m->next_ns = now;
	period_begin(m, g, now);
}

/* What storage was seen to do lately.  The most counts: it does less when there is less
 * to do, and when somebody else, or a processor that is not there, is in the way. */
static uint64_t peak(const struct manners *m)
{
	return max_u64(m->peak, m->peak_before);
}

static uint64_t per_second(uint64_t bytes, uint64_t ns)
{
	return bytes * 1000 / max_u64(ns / (SECOND_NS / 1000), 1);
}

static void note_peak(struct manners *m, uint64_t now)
{
	uint64_t took = now - m->spell_ns;

	m->spell_bytes += m->bytes;
	if (took < SPELL_NS)
		return;
	if (now - m->peak_ns > PEAK_NS) {
		m->peak_before = m->peak;
		m->peak = 0;
		m->peak_ns = now;
	}
	m->peak = max_u64(m->peak, per_second(m->spell_bytes, took));
	if (m->hurries && !--m->hurries)
		m->rate = peak(m) / 4 * 3;
	spell_begin(m, now);
}

/* Little where it was too much, but more and more while it does not come: storage may be
 * faster than it was. */
static uint64_t growth(const struct manners *m)
{
	uint64_t times = (uint64_t)m->calm * m->calm / (CALM * CALM);

	if (m->rate < peak(m) / 4 * 3)
		times = max_u64(times, 16);
	return m->rate / 512 * min_u64(max_u64(times, 1), 32);
}

/* Never below five eighths of the peak.  Who goes as slowly as that for long does not see what
 * would go through: so now and then he hurries. */
static void slow_down(struct manners *m, uint64_t through, uint64_t now)
{
	uint64_t floor = peak(m) / 8 * 5;

	m->rate = max_u64(min_u64(m->rate, through) / 4 * 3, floor);
	m->calm = 0;
	if (m->rate == floor && now - m->hurried_ns > HURRY_EVERY_NS) {
		m->hurried_ns = now;
		m->hurries = 1;
		spell_begin(m, now);
	}
}

static void judge(struct manners *m, const struct loop_guests *g, uint64_t now)
{
	uint64_t n = g->ended - m->ended, took = now - m->since_ns, through;
	bool hurried = m->hurries > 0;

	if (took < PERIOD_NS || (n < PERIOD_REQUESTS && took < PERIOD_MAX_NS))
		return;
	through = per_second(m->bytes, took);
	m->quick_ns += m->quick_ns / 64;
	note_peak(m, now);
	if (!hurried && is_late(m, n ? (g->ns - m->ns) / n : took)) {
		slow_down(m, through, now);
	} else if (!hurried && through >= m->rate / 2) {
		m->rate += growth(m);
		m->calm = (unsigned)min_u64(m->calm + 1u, 100 * CALM);
	}
	m->rate = min_u64(max_u64(m->rate, RATE_MIN), RATE_MAX);
	period_begin(m, g, now);
}

static uint64_t rate(const struct manners *m)
{
	return m->hurries ? max_u64(2 * peak(m), RATE_HURRY) : m->rate;
}

/* What is under way at twice this rate, and one more, keeps storage busy enough; what more there
 * were would only stand before the guest's.  A target that is far away takes many.  In a hurry
 * the storage, or the way to it, shall be full. */
static uint64_t room(const struct manners *m, uint64_t piece)
{
	uint64_t most = m->hurries ? 2 * max_u64(m->rate, peak(m)) : m->rate;
	uint64_t under_way = most / 1000 * (2 * m->quick_ns / 1000) / 1000;

	return m->hurries ? max_u64(HURRY_PIECES * piece, under_way) : piece + under_way;
}

uint64_t manners_wait(struct manners *m, const struct loop_guests *g, uint64_t now, uint64_t in_flight,
		      uint64_t piece)
{
	if (!manners_look(m, g, now))
		return 0;
	if (m->probing) {
		probe(m, g, now);
	} else if (now - m->probed_ns > PROBE_EVERY_NS && (!m->hurries || !m->probed_ns)) {
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
	m->next_ns = max_u64(m->next_ns, now - min_u64(now, LATE_NS)) + len * 1000 / (rate(m) / 1000000);
	m->bytes += len;
}

void manners_took(struct manners *m, uint64_t ns)
{
	m->quick_ns = m->quick_ns ? min_u64(ns, m->quick_ns) : ns;
}
