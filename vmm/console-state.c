/* SPDX-License-Identifier: BSD-3-Clause */
/* console-state: what of the ports is saved and loaded.
 *
 * A buffer that a port holds is a head that its queue has lent out; bytes of it that a client
 * has got are not sent again.
 */
#include <errno.h>

#include "vmm/console-int.h"
#include "vmm/state.h"

/* How much of B's chain lies before where it stands. */
static uint64_t sent(const struct console_buffer *b)
{
	uint64_t n = b->skip;

	for (unsigned i = 0; i < b->at; i++)
		n += b->chain.iov[i].iov_len;
	return n;
}

int console_save(struct virtio *v, struct device_state *s, struct error *err)
{
	struct console *c = (struct console *)v;

	pthread_mutex_lock(&c->lock);
	s->console.version = 1;
	for (unsigned i = 0; i < CONSOLE_PORTS; i++) {
		const struct console_port *p = &c->port[i];

		s->console.port[i].there = p->there;
		s->console.port[i].due = (uint8_t)p->due;
		s->console.port[i].guest_open = p->guest_open;
		s->console.port[i].in_taken = p->in.taken;
		s->console.port[i].out_taken = p->out.taken;
		s->console.port[i].in_head = p->in.taken ? p->in.chain.head : 0;
		s->console.port[i].out_head = p->out.taken ? p->out.chain.head : 0;
		s->console.port[i].out_sent = p->out.taken ? sent(&p->out) : 0;
	}
	pthread_mutex_unlock(&c->lock);
	return 0;
}

/* The buffer HEAD of queue Q is B's again; without one (TAKEN is 0) none may be lent out. */
static bool retake(struct queue *q, struct console_buffer *b, uint8_t taken, uint16_t head)
{
	*b = (struct console_buffer){ .chain.iov = b->iov };
	if (q->n_taken != taken || (taken && !queue_has_taken(q, head)))
		return false;
	if (taken && q->s.broken)		/* nobody will give it back */
		return true;
	b->taken = taken && queue_retake(q, head, &b->chain) > 0;
	return b->taken == taken;
}

static bool port_load(struct console *c, struct console_port *p, const struct console_state *s)
{
	const typeof(s->port[0]) *t = &s->port[p->id];
	struct queue *in = &c->virtio.queue[console_in_queue(p->id)];
	struct queue *out = &c->virtio.queue[console_out_queue(p->id)];

	if (t->there != p->there || t->due & ~DUE_ALL || t->guest_open > 1 || t->in_taken > 1 ||
	    t->out_taken > 1 || (!t->there && (t->due || t->in_taken || t->out_taken)))
		return false;
	if (!retake(in, &p->in, t->in_taken, t->in_head) ||
	    !retake(out, &p->out, t->out_taken, t->out_head) || t->out_sent > p->out.chain.out_bytes)
		return false;
	console_advance(&p->out, t->out_sent);
	p->due = t->due;
	p->guest_open = t->guest_open;
	if (p->guest_open && !p->is_terminal)	/* whether there is a client may have changed */
		p->due |= DUE_OPEN;
	return true;
}

int console_load(struct virtio *v, const struct device_state *s, struct error *err)
{
	struct console *c = (struct console *)v;
	bool good = s->console.version == 1;

	pthread_mutex_lock(&c->lock);
	c->active = c->resting = true;
	for (unsigned i = 0; i < CONSOLE_PORTS && good; i++)
		good = port_load(c, &c->port[i], &s->console);
	good = good && !v->queue[CONSOLE_CONTROL_IN].n_taken && !v->queue[CONSOLE_CONTROL_OUT].n_taken;
	pthread_mutex_unlock(&c->lock);
	return good ? 0 : error_set(err, -EINVAL, "device %s: ports that there are not", v->id);
}
