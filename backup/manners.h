/* SPDX-License-Identifier: BSD-3-Clause */
/* manners: the guest comes first.
 *
 * Who reads or copies a whole disk in the background asks here how fast it may go while
 * guests ask something of the same loop.  While they ask nothing there is no limit.
 *
 * What hurts a guest is not that there is another request beside its own, but that there
 * are more than the storage gets done: then they queue, each of its requests behind ours.
 * So requests begin at a steady rate, and the rate stays just below where queues build.
 * That point is found as TCP finds it: the rate falls when the guests' requests take
 * noticeably longer than without us, and grows slowly while they do not.  How long they
 * take without us is found out by asking: every half second we stand still for some
 * milliseconds.  A view, too, costs the guest time: where it takes much already, less is
 * left for us.
 *
 * The rate never falls to nothing: not below five eighths of what storage was seen to do
 * lately (as BBR does it: the most counts, since what disturbs makes it less only).  To see that
 * we hurry at the beginning, and for a moment now and then while the guest holds us back.
 *
 * Of one loop.  Zeroes at first.
 */
#ifndef MERINO_MANNERS_H
#define MERINO_MANNERS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/loop.h"

struct manners {
	uint64_t seen, asked_ns;	/* guests' requests, and when one was last seen; 0: never */
	uint64_t since_ns;		/* this period: its beginning, */
	uint64_t ended, ns;		/* what was counted of guests by then, */
	uint64_t bytes;			/* and what of ours began in it */
	uint64_t kept_ns;		/* the same, what their views took, */
	uint64_t base_ns;		/* how long a guest's request takes without us; 0: not known, */
	uint64_t plain_ns;		/* and how long it would without a view, too */
	uint64_t probed_ns;		/* when that was last found out */
	bool probing;
	uint64_t rate;			/* bytes a second that may begin; 0: no guest was ever there */
	uint64_t peak, peak_before;	/* the most bytes a second that went through lately, and before that */
	uint64_t peak_ns;		/* since when "lately" is */
	uint64_t spell_ns, spell_bytes;	/* some periods: their beginning, and what of ours began in them */
	unsigned hurries;		/* spells that are left without regard to the guest, */
	uint64_t hurried_ns;		/* and when the last one was */
	unsigned calm;			/* periods since it was last too much */
	uint64_t next_ns;		/* when the next request may begin */
	uint64_t quick_ns;		/* how long a request of ours takes at best lately; 0: not known */
};

/* NOW is loop_now() and G loop_guests(), but in a simulation.
 *
 * Looks whether guests ask, or did a moment ago. */
bool manners_look(struct manners *m, const struct loop_guests *g, uint64_t now);
/* Whether they did when somebody looked. */
bool manners_needed(const struct manners *m, uint64_t now);
/* How many ns the next request must wait at least; 0: it may begin.  IN_FLIGHT: bytes of
 * ours that are being worked on, PIECE: how many the next will have. */
uint64_t manners_wait(struct manners *m, const struct loop_guests *g, uint64_t now, uint64_t in_flight,
		      uint64_t piece);
/* A request of LEN bytes begins.  One that has ended took NS. */
void manners_began(struct manners *m, uint64_t now, uint64_t len);
void manners_took(struct manners *m, uint64_t ns);

#endif
