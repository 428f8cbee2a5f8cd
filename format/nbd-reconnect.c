/* SPDX-License-Identifier: BSD-3-Clause */
/* nbd-reconnect: how a node gets its link, and its next one.
 *
 * An attempt has a life of its own, on the heap: a node that closes cancels it
 * and goes, whatever it waits for, be it a name server.  While requests wait for
 * reconnect-delay, tries go on with growing pauses; afterwards they fail at once,
 * and the tries go on until the server is back or the node closes.
 */
#include "format/nbd-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/log.h"

#define NAP_FIRST 50000000ull		/* ns between two tries, at first … */
#define NAP_LAST 4000000000ull		/* … and at last */
#define PARTING_NS 200000000ull		/* how long a node that closes waits for a try to notice */

struct nbd_attempt *nbd_attempt_new(struct nbd *s)
{
	struct nbd_attempt *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->owner = s;
	a->target = s->target;
	a->target->refs++;
	a->io = s->node->io;
	a->fd = -1;
	return a;
}

void nbd_attempt_free(struct nbd_attempt *a)
{
	nbd_target_unref(a->target);
	free(a);
}

static void limit_over(struct loop_timer *t)
{
	struct nbd_attempt *a = (struct nbd_attempt *)((char *)t - offsetof(struct nbd_attempt, limit));

	if (a->fd >= 0)
		shutdown(a->fd, SHUT_RDWR);
}

static struct nbd_link *link_over(struct nbd_attempt *a)
{
	struct nbd_link *l = nbd_link_new();
	int rc;

	if (!l) {
		error_set(&a->err, -ENOMEM, "Out of memory");
		close(a->fd);
		a->fd = -1;
		return NULL;
	}
	stream_init(&l->stream, a->io, a->fd);
	rc = nbd_handshake(&l->stream, a->target, &l->info, &a->err);
	a->fd = -1;
	if (!rc)
		return l;
	nbd_link_unref(l);
	return NULL;
}

struct nbd_link *nbd_establish(struct nbd_attempt *a)
{
	struct nbd_link *l = NULL;

	a->err = ERROR_INIT;
	if (loop_self())
		loop_timer_set(&a->limit, loop_now() + NBD_HANDSHAKE_NS, limit_over);
	if (!nbd_connect(a))
		l = link_over(a);
	if (loop_self())
		loop_timer_cancel(&a->limit);
	return l;
}

/* -- another link --------------------------------------------------------------- */

/* What guests see must not change under them. */
static bool link_fits(const struct nbd *s, const struct nbd_link *l, struct error *err)
{
	const struct nbd_info *was = &s->info, *is = &l->info;

	if (is->size != was->size)
		error_set(err, -EIO, "the export's size has changed from %llu to %llu",
			  (unsigned long long)was->size, (unsigned long long)is->size);
	else if (!s->node->read_only && (is->flags & NBD_FLAG_READ_ONLY))
		error_set(err, -EROFS, "the export has become read-only");
	else if (is->block_min > was->block_min || is->block_max < was->block_max)
		error_set(err, -EIO, "the export's block sizes have changed");
	else if ((is->flags ^ was->flags) & NBD_FLAG_SEND_FLUSH || was->flags & ~is->flags & NBD_FLAG_SEND_FUA)
		error_set(err, -EIO, "the export makes data durable in another way than before");
	return !err->code;
}

static void nap_over(struct loop_timer *t)
{
	struct nbd_attempt *a = (struct nbd_attempt *)((char *)t - offsetof(struct nbd_attempt, nap));

	co_queue_wake_all(&a->napping);
}

static void nap(struct nbd_attempt *a, uint64_t ns)
{
	if (a->cancelled)
		return;
	loop_timer_set(&a->nap, loop_now() + ns, nap_over);
	co_queue_wait(&a->napping);
	loop_timer_cancel(&a->nap);
}

/* One try.  A link that nobody wants any more, or that does not fit, is dropped. */
static bool attempt_once(struct nbd_attempt *a)
{
	struct nbd_link *l = nbd_establish(a);
	struct nbd *s = a->owner;

	if (l && s && link_fits(s, l, &a->err)) {
		s->link = l;
		co_queue_wake_all(&s->waiting);
		return true;
	}
	nbd_link_unref(l);
	return false;
}

/* A node that closes waits for its attempt to end, for a moment. */
struct parting {
	struct loop_timer timer;
	struct co_queue queue;
	struct nbd_attempt *attempt;	/* NULL: the wait is over */
};

static void parting_end(struct parting *p)
{
	if (p->attempt)
		p->attempt->parting = NULL;
	p->attempt = NULL;
	co_queue_wake_all(&p->queue);
}

static void parting_over(struct loop_timer *t)
{
	parting_end((struct parting *)t);
}

static void attempt_run(void *arg)
{
	struct nbd_attempt *a = arg;
	uint64_t pause = NAP_FIRST;
	bool told = false;

	while (!a->cancelled && !attempt_once(a)) {
		if (!told && !a->cancelled)
			log_warning("nbd connection is lost node='%s' error='%s'",
				    a->owner->node->name, a->err.text);
		told = true;
		nap(a, pause);
		pause = min_u64(2 * pause, NAP_LAST);
	}
	if (a->owner) {
		if (told)
			log_info("nbd connection is back node='%s'", a->owner->node->name);
		a->owner->attempt = NULL;
	}
	if (a->parting)
		parting_end(a->parting);
	nbd_attempt_free(a);
}

/* Without a loop the caller itself tries, once. */
static void attempt_start(struct nbd *s)
{
	struct nbd_attempt *a;

	if (s->attempt || s->closing || s->hopeless || (s->target->type == NBD_SERVER_FD && s->target->fd < 0))
		return;
	a = nbd_attempt_new(s);
	if (!a)
		return;
	if (loop_self()) {
		s->attempt = a;
		co_start(attempt_run, a);
		return;
	}
	attempt_once(a);
	nbd_attempt_free(a);
}

/* A try whose socket was shut down ends in this turn or the next; one that waits for a
 * name server is left alone with what it holds. */
static void part(struct nbd_attempt *a)
{
	struct parting p = { .attempt = a };

	a->parting = &p;
	loop_timer_set(&p.timer, loop_now() + PARTING_NS, parting_over);
	co_queue_wait(&p.queue);
	if (p.timer.armed)
		loop_timer_cancel(&p.timer);
}

void nbd_attempt_cancel(struct nbd *s)
{
	struct nbd_attempt *a = s->attempt;

	if (!a)
		return;
	s->attempt = NULL;
	a->owner = NULL;
	a->cancelled = true;
	if (a->fd >= 0)
		shutdown(a->fd, SHUT_RDWR);
	co_queue_wake_all(&a->napping);
	if (loop_self() && co_self())
		part(a);
}

static void give_up(struct loop_timer *t)
{
	struct nbd *s = (struct nbd *)((char *)t - offsetof(struct nbd, give_up));

	co_queue_wake_all(&s->waiting);
}

void nbd_link_lost(struct nbd *s, struct nbd_link *l)
{
	if (s->link != l)
		return;
	s->link = NULL;
	nbd_link_unref(l);
	s->give_up_at = loop_now() + s->reconnect_delay;
	if (s->reconnect_delay && loop_self())
		loop_timer_set(&s->give_up, s->give_up_at, give_up);
	attempt_start(s);
}

struct nbd_link *nbd_link_get(struct nbd *s)
{
	while (!s->link || s->link->dead) {
		if (s->closing || s->hopeless)
			return NULL;
		if (s->link)
			nbd_link_lost(s, s->link);
		attempt_start(s);
		if (s->link)
			break;
		if (loop_now() >= s->give_up_at || !loop_self())
			return NULL;
		co_queue_wait(&s->waiting);
	}
	s->link->refs++;
	return s->link;
}
