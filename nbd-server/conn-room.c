// SPDX-License-Identifier: BSD-3-Clause
/* conn-room: who may hold how much memory, and who is given up for it.
 *
 * Whatever a connection holds is charged to it and to the server as a whole: its
 * receive buffers, payloads, and replies until they are sent.  Up to CONN_MEM_MIN
 * everybody may go on, in small pieces, whatever others hold; beyond that a
 * connection waits for its own limit and for the server's.
 *
 * A client that takes nothing of what it asked for keeps what it holds, as a paused
 * virtual machine does.  It is dropped when it has taken nothing for --send-timeout,
 * or for STUCK_NS while others wait for memory, the one that holds most first, or for its end
 * (wait_for_gone() in conn.c).
 */
#include <assert.h>
#include <malloc.h>
#include <stdatomic.h>

#include "common/checked.h"
#include "common/log.h"
#include "nbd-server/conn.h"

#define STUCK_NS 5000000000ull
#define LOOK_NS 1000000000u		/* how often senders are looked at … */
#define LOOK_SHORT_NS 100000000u	/* … and whether other loops gave memory back */

static _Atomic uint64_t server_mem;	/* bytes charged by all connections of all loops */
static _Atomic unsigned server_waiting;	/* connections of all loops that wait for some of them */

/* This thread's connections. */
static __thread struct {
	struct conn *all;		/* by ->here_next */
	struct conn *shorts, **shorts_end;	/* wait for the server's share, in turn */
	struct loop_timer look;
	uint64_t looked;		/* when, last */
	bool was_short;			/* memory that was freed may be many small pieces */
	struct loop_hook freed;
} here;

static uint64_t server_used(void)
{
	return atomic_load_explicit(&server_mem, memory_order_relaxed);
}

/* Those who hold memory and those who wait for it may be on different loops: each looks
 * after its own senders from here on. */
static bool is_scarce(uint64_t used)
{
	return used > SERVER_MEM_MAX / 2;
}

/* -- waiting ------------------------------------------------------------------ */

/* Wakes as many of those who wait as there is room for. */
static void wake_shorts(void)
{
	uint64_t used = server_used();

	while (here.shorts && used + REQUEST_PIECE <= SERVER_MEM_MAX) {
		struct conn *c = here.shorts;

		here.shorts = c->short_next;
		if (!here.shorts)
			here.shorts_end = &here.shorts;
		c->is_short = false;
		atomic_fetch_sub_explicit(&server_waiting, 1, memory_order_relaxed);
		co_queue_wake_all(&c->room);
		used += REQUEST_PIECE;
	}
}

static void memory_freed(struct loop_hook *h)
{
	wake_shorts();
}

void conn_charge(struct conn *c, uint32_t bytes)
{
	c->mem += bytes;
	if (__builtin_expect(is_scarce(atomic_fetch_add_explicit(&server_mem, bytes,
								 memory_order_relaxed)), 0))
		conn_watch(c);
}

void conn_credit(struct conn *c, uint32_t bytes)
{
	c->mem -= bytes;
	atomic_fetch_sub_explicit(&server_mem, bytes, memory_order_relaxed);
	if (c->room.head)
		co_queue_wake_all(&c->room);
	if (__builtin_expect(here.shorts != NULL, 0))
		loop_hook_queue(&here.freed, memory_freed);
}

/* How many of WANT bytes the connection may take now; false: none. */
static bool room_for(const struct conn *c, uint32_t want, uint32_t *take)
{
	if (c->mem + want <= CONN_MEM_MAX && server_used() + want <= SERVER_MEM_MAX) {
		*take = want;
		return true;
	}
	*take = want < PIECE_SMALL ? want : PIECE_SMALL;
	return c->mem + *take <= CONN_MEM_MIN;
}

bool conn_has_room(const struct conn *c, uint32_t bytes)
{
	uint32_t take;

	return room_for(c, bytes, &take) && take == bytes;
}

static void look(struct loop_timer *t);

/* Looks after senders from now on, in NS at the latest. */
static void look_in(uint64_t ns)
{
	uint64_t now = loop_now();

	if (here.look.armed && here.look.deadline <= now + ns)
		return;
	if (!here.look.armed)
		here.looked = now;
	loop_timer_set(&here.look, now + ns, look);
}

static void wait_in_turn(struct conn *c)
{
	here.was_short = true;
	if (!here.shorts_end)
		here.shorts_end = &here.shorts;
	if (!c->is_short) {
		c->is_short = true;
		atomic_fetch_add_explicit(&server_waiting, 1, memory_order_relaxed);
		c->short_next = NULL;
		*here.shorts_end = c;
		here.shorts_end = &c->short_next;
	}
	look_in(LOOK_SHORT_NS);
}

uint32_t conn_wait_room(struct conn *c, const struct reply *stream, uint32_t want)
{
	uint32_t take;

	while (!room_for(c, want, &take) && !c->dead && !(stream && c->tx_dry == stream)) {
		if (c->mem + want <= CONN_MEM_MAX)
			wait_in_turn(c);
		co_queue_wait(&c->room);
	}
	return take;
}

/* -- who takes nothing --------------------------------------------------------- */

/* For how long there has been something to send of which the client took nothing. */
static uint64_t stuck_for(struct conn *c, uint64_t since_last)
{
	bool waits = c->tx_dry || c->tx_reads;	/* and not for the client */
	bool same = c->sending && !waits && c->stream.sent == c->sent_seen;

	c->stuck_ns = same ? c->stuck_ns + since_last : 0;
	c->sent_seen = c->stream.sent;
	return c->stuck_ns;
}

static void drop(struct conn *c, const char *why)
{
	log_info("connection dropped reason='%s' export='%s'", why, c->export->name);
	conn_kill(c);
}

static void look(struct loop_timer *t)
{
	struct conn *worst = NULL;
	/* A loop that did not run (a machine that stood still) took nothing either. */
	uint64_t now = loop_now(), since_last = min_u64(now - here.looked, LOOK_NS);
	bool again = false, scarce = is_scarce(server_used());

	here.looked = now;
	wake_shorts();
	for (struct conn *c = here.all; c; c = c->here_next) {
		uint64_t stuck = stuck_for(c, since_last);

		if (c->dead)
			continue;
		again = rx_look(c) || ((scarce || c->a.send_timeout_ns) && c->sending) || c->gone || again;
		if (c->a.send_timeout_ns && stuck >= c->a.send_timeout_ns)
			drop(c, "replies were not taken in time");
		else if (c->gone && stuck >= STUCK_NS)	/* half of its socket is open: others wait for its end */
			drop(c, "it has hung up, and replies were not taken");
		else if (stuck >= STUCK_NS && (!worst || c->mem > worst->mem))
			worst = c;
	}
	if (worst && worst->mem > CONN_MEM_MIN &&
	    atomic_load_explicit(&server_waiting, memory_order_relaxed))
		drop(worst, "memory is short, and replies were not taken");
	if (here.shorts || again)
		loop_timer_set(t, now + (here.shorts ? LOOK_SHORT_NS : LOOK_NS), look);
}

void conn_watch(struct conn *c)
{
	if (!here.look.armed)
		look_in(LOOK_NS);
}

/* -- coming and going ----------------------------------------------------------- */

void conn_room_join(struct conn *c)
{
	c->here_next = here.all;
	if (here.all)
		here.all->here_prev = c;
	here.all = c;
}

/* After a crowd: the C library gives back what it holds only when it is told to. */
static void trim(void *arg)
{
	malloc_trim(0);
}

static void leave_turn(struct conn *c)
{
	struct conn **p = &here.shorts;

	while (*p != c)
		p = &(*p)->short_next;
	*p = c->short_next;
	if (!*p)
		here.shorts_end = p;
	atomic_fetch_sub_explicit(&server_waiting, 1, memory_order_relaxed);
}

void conn_room_leave(struct conn *c)
{
	assert(!c->mem);
	if (c->is_short)
		leave_turn(c);
	if (c->here_prev)
		c->here_prev->here_next = c->here_next;
	else
		here.all = c->here_next;
	if (c->here_next)
		c->here_next->here_prev = c->here_prev;
	if (!here.all)
		loop_timer_cancel(&here.look);
	if (here.was_short && server_used() < SERVER_MEM_MAX / 4) {
		here.was_short = false;
		loop_work(trim, NULL);
	}
}
