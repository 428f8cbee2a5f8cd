// SPDX-License-Identifier: BSD-3-Clause
/* pull-copy: the engine: one thread, one poll, a fixed pool of buffers.
 *
 * A turn: ask for block status when the plan has room, zero what is to be
 * zeroed, give reads to the connections that have room, wait, and store what
 * came.  libnbd's callbacks only note what happened: they run with the handle
 * locked.
 *
 * No result is ignored.  A read that ends with an error, or for which the
 * server sent fewer bytes than it was asked for, ends the copy; so does a
 * status that the plan doubts, and everything that the sink cannot store.
 * Buffers outlive the connections (source_close() completes what is in flight).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clients/pull-plan.h"
#include "clients/pull-sink.h"
#include "clients/pull-source.h"
#include "common/checked.h"

enum {
	WAIT_MS = 200,			/* so that the progress moves while nothing comes */
	ZEROES_PER_TURN = 64,
	ZERO_MAX = 1 << 30,		/* bytes in one call: signals are seen in between */
};

/* One read: free, in flight, or done and waiting to be stored. */
struct slot {
	struct copy *copy;
	struct slot *next;		/* in copy->free or copy->done */
	struct conn *conn;
	char *buf;			/* request_size bytes; owned */
	uint64_t off;
	size_t len;			/* asked for */
	struct cover came;		/* what the server sent, so far */
	int error;			/* errno of the completion */
};

struct copy {
	const struct pull_options *o;
	struct source *s;
	struct sink *k;
	struct pull_stats *st;
	struct progress *p;
	struct plan plan;
	uint64_t request_size;		/* bytes, a power of two, not below the block */
	struct slot *slots, *free, *done, **done_tail;
	unsigned n_slots, n_free;
	bool status_in_flight, status_done;
	int status_error;		/* errno of its completion */
	unsigned next_conn;		/* round robin */
};

static int slots_alloc(struct copy *c, unsigned n)
{
	c->slots = calloc(n, sizeof(*c->slots));
	if (!c->slots)
		return -ENOMEM;
	for (; c->n_slots < n; c->n_slots++, c->n_free++) {
		struct slot *s = &c->slots[c->n_slots];

		s->buf = malloc(c->request_size);
		if (!s->buf)
			return -ENOMEM;
		s->copy = c;
		s->next = c->free;
		c->free = s;
	}
	return 0;
}

static void slots_free(struct copy *c)
{
	for (unsigned i = 0; i < c->n_slots; i++)
		free(c->slots[i].buf);
	free(c->slots);
}

static void slot_release(struct copy *c, struct slot *s)
{
	s->next = c->free;
	c->free = s;
	c->n_free++;
}

/* --- block status */

static int status_extent(void *user_data, const char *metacontext, uint64_t offset,
			 uint32_t *entries, size_t nr_entries, int *error)
{
	struct copy *c = user_data;

	if (strcmp(metacontext, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0)
		plan_reply(&c->plan, PLAN_ALLOCATION, offset, entries, nr_entries);
	else if (strcmp(metacontext, c->s->context) == 0)
		plan_reply(&c->plan, PLAN_DIRTY, offset, entries, nr_entries);
	return 0;
}

static int status_complete(void *user_data, int *error)
{
	struct copy *c = user_data;

	c->status_done = true;
	c->status_error = *error;
	return 1;
}

static int ask_status(struct copy *c, struct error *err)
{
	uint64_t off, len;

	if (c->status_in_flight || !plan_ask(&c->plan, &off, &len))
		return 0;
	c->status_in_flight = true;
	if (nbd_aio_block_status(c->s->conn[0].h, len, off,
				 (nbd_extent_callback){ .callback = status_extent, .user_data = c },
				 (nbd_completion_callback){ .callback = status_complete, .user_data = c },
				 0) < 0)
		return error_set(err, -EIO, "%s: block status at offset %llu: %s", c->o->uri,
				 (unsigned long long)off, nbd_get_error());
	return 0;
}

static int take_status(struct copy *c, struct error *err)
{
	int rc;

	if (!c->status_done)
		return 0;
	c->status_done = c->status_in_flight = false;
	if (c->status_error)
		return error_errno(err, -c->status_error, "%s: block status at offset %llu", c->o->uri,
				   (unsigned long long)c->plan.at);
	rc = plan_reply_end(&c->plan, err);
	if (rc < 0)
		error_prefix(err, "%s: ", c->o->uri);
	return rc;
}

/* --- reads */

static int read_chunk(void *user_data, const void *subbuf, size_t count, uint64_t offset,
		      unsigned status, int *error)
{
	struct slot *s = user_data;

	if (status != LIBNBD_READ_ERROR)
		cover_add(&s->came, offset, count);
	return 0;
}

static int read_complete(void *user_data, int *error)
{
	struct slot *s = user_data;
	struct copy *c = s->copy;

	s->error = *error;
	s->next = NULL;
	*c->done_tail = s;
	c->done_tail = &s->next;
	s->conn->in_flight--;
	return 1;
}

/* A connection that may take one more read, or NULL. */
static struct conn *pick_conn(struct copy *c)
{
	for (unsigned i = 0; i < c->s->n; i++) {
		struct conn *conn = &c->s->conn[c->next_conn++ % c->s->n];

		if (conn->state == CONN_READY && conn->in_flight < c->o->requests)
			return conn;
	}
	return NULL;
}

static int read_failed(const struct copy *c, const struct slot *s, struct error *err, int code,
		       const char *why)
{
	return error_set(err, code, "%s: reading %zu bytes at offset %llu: %s", c->o->uri, s->len,
			 (unsigned long long)s->off, why);
}

/* Starts the next read of run R, which ends at a multiple of the request size so
 * that clusters are not cut.  The server's blocks are read as a whole. */
static int start_read(struct copy *c, const struct run *r, struct conn *conn, struct error *err)
{
	uint64_t off = align_down(r->off, c->s->block);
	uint64_t end = min_u64(r->off + r->len, align_down(off, c->request_size) + c->request_size);
	struct slot *s = c->free;

	plan_take(&c->plan, end - r->off);
	end = min_u64(align_up(end, c->s->block), c->s->size);
	c->free = s->next;
	c->n_free--;
	s->conn = conn;
	s->off = off;
	s->len = end - off;
	s->came.n = 0;
	s->came.bad = false;
	conn->in_flight++;
	c->st->requests++;
	if (nbd_aio_pread_structured(conn->h, s->buf, s->len, s->off,
				     (nbd_chunk_callback){ .callback = read_chunk, .user_data = s },
				     (nbd_completion_callback){ .callback = read_complete, .user_data = s },
				     0) < 0)
		return read_failed(c, s, err, -EIO, nbd_get_error());
	return 0;
}

static int store(struct copy *c, struct slot *s, struct error *err)
{
	int64_t stored;

	if (s->error)
		return read_failed(c, s, err, -s->error, strerror(s->error));
	if (!cover_is(&s->came, s->off, s->len))
		return read_failed(c, s, err, -EPROTO, "the server did not send all of it");
	c->st->read += s->len;
	stored = sink_write(c->k, s->buf, s->off, s->len, err);
	if (stored < 0)
		return stored;
	c->st->written += stored;
	return 0;
}

static int store_done(struct copy *c, struct error *err)
{
	int rc = 0;

	while (c->done && rc == 0) {
		struct slot *s = c->done;

		c->done = s->next;
		if (!c->done)
			c->done_tail = &c->done;
		rc = store(c, s, err);
		slot_release(c, s);
	}
	return rc;
}

/* --- the loop */

/* Works on the plan as far as buffers and connections allow.  *MORE: there is
 * work that does not have to wait for the server. */
static int work(struct copy *c, bool *more, struct error *err)
{
	const struct run *r;
	unsigned zeroes = 0;
	int rc = ask_status(c, err);

	*more = false;
	while (rc == 0 && (r = plan_next(&c->plan))) {
		uint64_t len = min_u64(r->len, ZERO_MAX);
		struct conn *conn;

		if (r->kind == RUN_SKIP) {
			c->st->skipped += r->len;
			plan_take(&c->plan, r->len);
		} else if (r->kind == RUN_ZERO) {
			*more = ++zeroes > ZEROES_PER_TURN;
			if (*more)
				return 0;
			rc = sink_zero(c->k, r->off, len, err);
			c->st->zero += len;
			plan_take(&c->plan, len);
		} else {
			conn = c->free ? pick_conn(c) : NULL;
			if (!conn)
				return 0;
			rc = start_read(c, r, conn, err);
		}
	}
	/* What was worked off may have made room to ask for more. */
	return rc ? rc : ask_status(c, err);
}

static bool finished(const struct copy *c)
{
	return plan_done(&c->plan) && c->n_free == c->n_slots;
}

static int run(struct copy *c, struct error *err)
{
	sigset_t none;
	int rc = 0;

	sigemptyset(&none);
	while (rc == 0) {
		uint64_t done;
		bool more;

		rc = work(c, &more, err);
		if (rc < 0 || finished(c))
			return rc;
		/* The plan without contexts is made by asking: nothing is in flight then. */
		if (c->n_free == c->n_slots && !c->status_in_flight)
			more = true;
		rc = source_poll(c->s, more ? 0 : WAIT_MS, &none, err);
		if (pull_signalled())
			return error_set(err, -EINTR, "stopped by a signal");
		if (rc == 0)
			rc = take_status(c, err);
		if (rc == 0)
			rc = store_done(c, err);
		done = c->st->read + c->st->zero + c->st->skipped;
		progress_update(c->p, min_u64(done, c->s->size), c->s->size, c->st->read);
	}
	return rc;
}

/* Not above what the server takes, not below its block. */
static uint64_t fit_request_size(uint64_t want, const struct source *s)
{
	uint64_t size = max_u64(want, s->block);

	while (size > s->max)
		size /= 2;
	return size;
}

/* More connections than the export has requests for would be idle. */
static unsigned fit_connections(const struct pull_options *o, const struct source *s)
{
	unsigned want = o->connections ? o->connections : 4;

	if (!s->multi_conn)
		return 1;
	return max_u64(1, min_u64(want, s->size / o->request_size));
}

int pull_copy(const struct pull_options *o, struct source *s, struct sink *k,
	      struct pull_stats *st, struct progress *p, struct error *err)
{
	struct copy c = { .o = o, .s = s, .k = k, .st = st, .p = p };
	unsigned want = fit_connections(o, s);
	int rc;

	c.done_tail = &c.done;
	c.request_size = fit_request_size(o->request_size, s);
	st->size = s->size;
	rc = plan_init(&c.plan, s->size, s->block, s->context[0] != 0, s->has_allocation,
		       sink_previous_size(k));
	c.plan.changes = s->tells_zeroes;
	if (rc == 0)
		rc = slots_alloc(&c, want * o->requests);
	if (rc < 0)
		error_errno(err, rc, "buffers");
	if (rc == 0) {
		source_grow(s, want);
		rc = run(&c, err);
	}
	st->connections = source_ready(s);
	source_close(s);
	slots_free(&c);
	plan_clear(&c.plan);
	return rc;
}
