// SPDX-License-Identifier: BSD-3-Clause
/* disk-cmd: requests become NBD commands, and their answers complete them.
 *
 *	disk_submit --> waiting --(a command, memory for it)--> commands --> the connection
 *	                                                            ^             |
 *	                                                            +-- lost -----+
 *
 * A request is one command or several: contiguous memory goes in place, scattered memory
 * through a bounce buffer, and no command exceeds what the server takes.  Commands keep the
 * order in which they were made; a new connection gets those that were not answered, in that
 * order.  Requests beyond what the pools hold wait; the queue's size bounds them.
 *
 * libnbd's callbacks only note an answer: they run inside of libnbd.
 */
#include "vmm/disk-int.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"

void cmd_init(struct disk_channel *c)
{
	c->answered_end = &c->answered;
	c->waiting_end = &c->waiting;
	for (unsigned i = 0; i < COMMANDS_MAX; i++) {
		c->command[i].channel = c;
		c->command[i].next = c->free;
		c->free = &c->command[i];
	}
}

void cmd_free(struct disk_channel *c)
{
	assert(!c->in_flight);
	while (c->n_bounce)
		free(c->bounce[--c->n_bounce]);
}

static void *bounce_take(struct disk_channel *c)
{
	void *p;

	if (c->n_bounce)
		return c->bounce[--c->n_bounce];
	if (c->n_bounce_made == BOUNCES_MAX || !(p = malloc(BOUNCE_BYTES)))
		return NULL;
	c->n_bounce_made++;
	return p;
}

/* --- commands in order */

static void append(struct disk_channel *c, struct command *m)
{
	m->next = NULL;
	m->prev = c->last;
	*(c->last ? &c->last->next : &c->first) = m;
	c->last = m;
	if (!c->unsent)
		c->unsent = m;
}

static void release(struct disk_channel *c, struct command *m)
{
	*(m->prev ? &m->prev->next : &c->first) = m->next;
	*(m->next ? &m->next->prev : &c->last) = m->prev;
	if (c->unsent == m)
		c->unsent = m->next;
	if (m->bounce)
		c->bounce[c->n_bounce++] = m->bounce;
	m->next = c->free;
	c->free = m;
}

bool cmd_several_sent(const struct disk_channel *c)
{
	return c->first && c->first->next && c->first->next->sent;
}

void cmd_unsend(struct disk_channel *c)
{
	for (struct command *m = c->first; m; m = m->next)
		m->sent = false;
	c->unsent = c->first;
	c->answered = NULL;
	c->answered_end = &c->answered;
}

/* --- a request's memory */

static void advance(const struct iovec *iov, unsigned *seg, size_t *off, size_t n)
{
	*off += n;
	while (*off && *off >= iov[*seg].iov_len) {
		*off -= iov[*seg].iov_len;
		++*seg;
	}
}

/* Between M's bounce buffer and the guest. */
static void copy(const struct command *m, bool to_guest)
{
	const struct iovec *iov = m->request->iov;
	unsigned seg = m->seg;
	size_t off = m->seg_off;

	for (size_t done = 0; done < m->len; ) {
		size_t n = min_u64(iov[seg].iov_len - off, m->len - done);
		char *guest = (char *)iov[seg].iov_base + off, *ours = (char *)m->bounce + done;

		memcpy(to_guest ? guest : ours, to_guest ? ours : guest, n);
		done += n;
		advance(iov, &seg, &off, n);
	}
}

/* Where the data of the next command lies: in place when that is worth a command, or is all
 * that is left.  False: no bounce buffer is free. */
static bool place(struct disk_channel *c, struct disk_request *r, struct command *m)
{
	const struct disk_facts *f = &c->disk->facts;
	size_t most = align_down(min_u64(PIECE_MAX, f->block_max), max_u64(f->block_min, 1));
	uint64_t left = r->len - r->made;
	size_t run = min_u64(r->iov[r->seg].iov_len - r->seg_off, left);

	m->seg = r->seg;
	m->seg_off = r->seg_off;
	if (run < left)
		run = align_down(run, f->block_min);
	if (run == left || run >= IN_PLACE_MIN) {
		m->len = min_u64(run, most);
		m->data = (char *)r->iov[r->seg].iov_base + r->seg_off;
		return true;
	}
	m->len = min_u64(left, min_u64(most, BOUNCE_BYTES));
	m->data = m->bounce = bounce_take(c);
	if (m->bounce && r->op == DISK_WRITE)
		copy(m, false);
	return m->bounce;
}

static bool has_data(const struct disk_request *r)
{
	return r->op == DISK_READ || r->op == DISK_WRITE;
}

/* The next command of R.  False: the pools are empty. */
static bool make(struct disk_channel *c, struct disk_request *r)
{
	struct command *m = c->free;

	if (!m)
		return false;
	m->request = r;
	m->bounce = m->data = NULL;
	m->len = min_u64(r->len - r->made, RANGE_MAX);
	if (has_data(r) && !place(c, r, m))
		return false;
	c->free = m->next;
	m->off = r->off + r->made;
	m->sent = m->flush_after = false;
	m->error = 0;
	r->made += m->len;
	if (has_data(r))
		advance(r->iov, &r->seg, &r->seg_off, m->len);
	r->commands++;
	append(c, m);
	return true;
}

/* --- to the server */

static int answer(void *arg, int *error)
{
	struct command *m = arg;
	struct disk_channel *c = m->channel;

	m->error = *error;
	m->next_answered = NULL;
	*c->answered_end = m;
	c->answered_end = &m->next_answered;
	c->taken_bytes += 16 + (m->request->op == DISK_READ && !*error ? m->len : 0);
	return 1;			/* libnbd forgets it */
}

static int64_t issue(struct disk_channel *c, struct command *m)
{
	const struct disk_request *r = m->request;
	nbd_completion_callback cb = { .callback = answer, .user_data = m };
	uint32_t fua = r->fua && c->disk->facts.can_fua ? LIBNBD_CMD_FLAG_FUA : 0;

	if (m->flush_after)
		return nbd_aio_flush(c->h, cb, 0);
	switch (r->op) {
	case DISK_READ: return nbd_aio_pread(c->h, m->data, m->len, m->off, cb, 0);
	case DISK_WRITE: return nbd_aio_pwrite(c->h, m->data, m->len, m->off, cb, fua);
	case DISK_FLUSH: return nbd_aio_flush(c->h, cb, 0);
	case DISK_DISCARD: return nbd_aio_trim(c->h, m->len, m->off, cb, fua);
	case DISK_ZERO:
		return nbd_aio_zero(c->h, m->len, m->off, cb,
				    fua | (r->may_unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE));
	}
	return -1;
}

/* With TLS, libnbd may wait inside of a reply that nobody sends (a record came that held no
 * data) and keeps new commands back.  Then only another connection helps. */
static bool is_stuck(struct disk_channel *c)
{
	return c->tls && nbd_aio_in_flight(c->h) == 1 && nbd_aio_is_ready(c->h) == 0 &&
	       nbd_aio_get_direction(c->h) == LIBNBD_AIO_DIRECTION_READ;
}

static void send_unsent(struct disk_channel *c)
{
	while (c->state == CHANNEL_READY && c->unsent) {
		struct command *m = c->unsent;

		if (nbd_aio_is_dead(c->h) > 0 || nbd_aio_is_closed(c->h) > 0)
			return;		/* seen to by disk_work() */
		m->sent = true;
		c->unsent = m->next;
		if (issue(c, m) < 0) {
			int error = nbd_get_errno() ? nbd_get_errno() : EIO;

			answer(m, &error);
		} else if (is_stuck(c)) {
			c->drop_why = "libnbd waits for a reply that does not come";
			return;
		}
	}
}

/* --- and back */

static void request_done(struct disk_channel *c, struct disk_request *r)
{
	c->in_flight--;
	r->done(r, r->rc);
}

/* All its data is on the server: is that durable, where it must be? */
static bool needs_flush(struct disk_channel *c, const struct disk_request *r)
{
	const struct disk_facts *f = &c->disk->facts;

	return r->fua && r->op != DISK_FLUSH && r->op != DISK_READ && !r->rc && !f->can_fua &&
	       f->can_flush;
}

static void command_done(struct disk_channel *c, struct command *m, int rc)
{
	struct disk_request *r = m->request;
	bool was_flush = m->flush_after;

	if (!rc && m->bounce && r->op == DISK_READ)
		copy(m, true);
	if (rc && !r->rc)
		r->rc = rc;
	r->commands--;
	if (r->commands || (r->made < r->len && !r->rc)) {
		release(c, m);
		return;
	}
	if (!was_flush && needs_flush(c, r)) {	/* the command's place serves for that */
		release(c, m);
		m = c->free;
		c->free = m->next;
		m->bounce = NULL;
		m->sent = false;
		m->flush_after = true;
		m->error = 0;
		m->request = r;
		r->commands = 1;
		append(c, m);
		return;
	}
	release(c, m);
	if (r->made == r->len)		/* else it still waits, and ends there */
		request_done(c, r);
}

/* Answers come: the connection is a good one. */
static void is_alive(struct disk_channel *c)
{
	c->lost_at = c->retry_ms = 0;
}

void cmd_answers(struct disk_channel *c)
{
	bool dead = c->h && (nbd_aio_is_dead(c->h) > 0 || nbd_aio_is_closed(c->h) > 0);
	struct command *m;

	while ((m = c->answered)) {
		c->answered = m->next_answered;
		if (!c->answered)
			c->answered_end = &c->answered;
		/* No answer of the server's, or one that will be another one soon. */
		if (m->error == ESHUTDOWN)
			c->drop_why = "the server shuts down";
		if (m->error && (dead || m->error == ESHUTDOWN))
			continue;	/* conn_drop() makes it unsent */
		is_alive(c);
		command_done(c, m, -m->error);
	}
}

/* --- requests */

/* What needs no server is done at once: a flush where the server says that none is needed. */
static bool is_void(struct disk_channel *c, const struct disk_request *r)
{
	return r->op == DISK_FLUSH ? !c->disk->facts.can_flush : r->len == 0;
}

static void make_commands(struct disk_channel *c)
{
	struct disk_request *r;

	while ((r = c->waiting)) {
		if (!r->rc && !is_void(c, r)) {
			do {
				if (!make(c, r))
					return;
			} while (r->made < r->len);
		}
		r->made = r->len;
		c->waiting = r->next;
		if (!c->waiting)
			c->waiting_end = &c->waiting;
		if (!r->commands)
			request_done(c, r);
	}
}

void cmd_send(struct disk_channel *c)
{
	make_commands(c);
	send_unsent(c);
}

void disk_submit(struct disk_channel *c, struct disk_request *r)
{
	r->next = NULL;
	r->made = r->seg_off = 0;
	r->seg = r->commands = 0;
	r->rc = 0;
	c->in_flight++;
	*c->waiting_end = r;
	c->waiting_end = &r->next;
}

void cmd_fail(struct disk_channel *c, int rc)
{
	struct disk_request *r;

	/* Only those that are here now: done() may submit others. */
	for (unsigned n = c->in_flight; n && (c->first || c->waiting); ) {
		if (c->first) {
			struct command *m = c->first;

			r = m->request;
			r->rc = r->rc ? r->rc : rc;
			if (r->commands == 1 && r->made == r->len)
				n--;
			command_done(c, m, rc);
			continue;
		}
		r = c->waiting;
		c->waiting = r->next;
		if (!c->waiting)
			c->waiting_end = &c->waiting;
		r->made = r->len;
		r->rc = r->rc ? r->rc : rc;
		n--;
		request_done(c, r);
	}
}

unsigned disk_in_flight(const struct disk_channel *c)
{
	return c->in_flight;
}
