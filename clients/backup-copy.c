// SPDX-License-Identifier: BSD-3-Clause
/* backup-copy: from one export into one target, in order, over connections that may break.
 *
 *	this thread     asks for block status, makes the plan, reads: libnbd is touched here only
 *	hashers         look for zeroes in what came, and sum it: any order
 *	the storer      writes it, oldest first
 *
 * Pieces of work stand in a ring in the order of the disk.  So the sums come out in order,
 * and what is held is bounded by the ring.
 *
 * A connection that breaks costs nothing but time: what was asked for over it is asked for
 * again, of the same export, which must still be what it was.  A server that answers with
 * an error, or with a lie, ends the copy: nothing that could not be read is passed over.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clients/backup-target.h"
#include "clients/backup.h"
#include "clients/pull-plan.h"
#include "clients/pull-source.h"
#include "common/checked.h"
#include "common/log.h"

enum {
	WAIT_MS = 200,
	REQUEST = 256 << 10,		/* bytes, whole chunks */
	CHUNKS = REQUEST / REPO_CHUNK + 1,
	HASHERS = 2,
	KEEP_NS = 1000000000,		/* between two calls of keep() */
	RETRY_FIRST_MS = 100, RETRY_LAST_MS = 2000,
	BREAKS = 10,			/* of the connections, with nothing read between them */
	ZERO_MAX = 1 << 30,		/* bytes zeroed in one piece */
};

enum piece_state {
	PIECE_UNASKED,			/* or to be asked for again */
	PIECE_ASKED,
	PIECE_READ,
	PIECE_SUMMING,
	PIECE_READY,			/* to be stored */
};

struct piece {
	struct copy *copy;
	enum piece_state state;		/* with the lock held */
	bool zero;			/* no data: the range is zero */
	struct conn *conn;		/* that it was asked of */
	char *buf;			/* owned */
	uint64_t off, len;		/* what is stored */
	uint64_t ask_off, ask_len;	/* what is read: whole blocks of the server's */
	struct cover came;		/* what the server sent, so far */
	bool answered;			/* the completion came */
	int error;			/* its errno */
	struct chunk_sum sum[CHUNKS];
};

struct copy {
	struct backup *b;
	struct backup_disk *d;
	struct target *t;
	struct source s;
	struct plan plan;
	uint64_t request_size;
	unsigned next_conn;
	bool status_in_flight, status_done, broken;
	int status_error;
	unsigned breaks;		/* since something was read */
	uint64_t heard;			/* when the server last did something, ns */
	uint64_t kept;			/* keep() was called last */
	uint64_t allowed_from, started;	/* the limit: bytes asked for since then */
	/* Shared, under the lock, which is not held while libnbd is called: a handle has a lock
	 * of its own, and a completion takes ours inside it. */
	pthread_mutex_t lock;
	pthread_cond_t to_sum, to_store;
	struct piece *ring;
	unsigned size, head, n;		/* head: the oldest */
	bool stop;
	int failed;			/* of the storer; -errno */
	struct error error;
	/* */
	pthread_t thread[HASHERS + 1];
	unsigned threads;
	int wake;			/* eventfd: the storer has made room */
};

static struct piece *nth(struct copy *c, unsigned i)
{
	return &c->ring[(c->head + i) % c->size];
}

/* --- the other threads */

static struct piece *find_state(struct copy *c, enum piece_state state)
{
	for (unsigned i = 0; i < c->n; i++)
		if (nth(c, i)->state == state)
			return nth(c, i);
	return NULL;
}

static void *hasher(void *arg)
{
	struct copy *c = arg;
	struct piece *p;

	pthread_mutex_lock(&c->lock);
	while (!c->stop) {
		p = find_state(c, PIECE_READ);
		if (!p) {
			pthread_cond_wait(&c->to_sum, &c->lock);
			continue;
		}
		p->state = PIECE_SUMMING;
		pthread_mutex_unlock(&c->lock);
		target_sum(p->buf + (p->off - p->ask_off), p->off, p->len, c->d->d.size, p->sum);
		pthread_mutex_lock(&c->lock);
		p->state = PIECE_READY;
		pthread_cond_signal(&c->to_store);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

static void ring_bell(struct copy *c)
{
	uint64_t one = 1;
	ssize_t done = write(c->wake, &one, sizeof(one));

	(void)done;
}

static void *storer(void *arg)
{
	struct error err = ERROR_INIT;
	struct copy *c = arg;
	struct piece *p;
	int rc = 0;

	pthread_mutex_lock(&c->lock);
	while (!c->stop && rc == 0) {
		p = nth(c, 0);
		if (!c->n || p->state != PIECE_READY) {
			pthread_cond_wait(&c->to_store, &c->lock);
			continue;
		}
		pthread_mutex_unlock(&c->lock);
		rc = p->zero ? target_zero(c->t, p->off, p->len, &err)
			     : target_data(c->t, p->buf + (p->off - p->ask_off), p->off, p->len,
					   p->sum, &err);
		pthread_mutex_lock(&c->lock);
		c->head = (c->head + 1) % c->size;
		c->n--;
		c->failed = rc;
		c->error = err;
		ring_bell(c);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

static int start_threads(struct copy *c)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned hashers = cpus > 2 ? HASHERS : 1;
	int rc = 0;

	for (unsigned i = 0; i <= hashers && rc == 0; i++) {
		rc = -pthread_create(&c->thread[i], NULL, i ? hasher : storer, c);
		c->threads += rc == 0;
	}
	return rc;
}

static void stop_threads(struct copy *c)
{
	pthread_mutex_lock(&c->lock);
	c->stop = true;
	pthread_cond_broadcast(&c->to_sum);
	pthread_cond_broadcast(&c->to_store);
	pthread_mutex_unlock(&c->lock);
	for (unsigned i = 0; i < c->threads; i++)
		pthread_join(c->thread[i], NULL);
}

/* --- block status */

static int status_extent(void *user_data, const char *metacontext, uint64_t offset,
			 uint32_t *entries, size_t nr_entries, int *error)
{
	struct copy *c = user_data;

	if (strcmp(metacontext, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0)
		plan_reply(&c->plan, PLAN_ALLOCATION, offset, entries, nr_entries);
	else if (strcmp(metacontext, c->s.context) == 0)
		plan_reply(&c->plan, PLAN_DIRTY, offset, entries, nr_entries);
	return 0;
}

static int status_complete(void *user_data, int *error)
{
	struct copy *c = user_data;

	c->status_done = true;
	c->status_error = *error;
	c->heard = progress_now();
	return 1;
}

/* Whether a request failed because its connection did. */
static bool is_broken(const struct conn *conn, int error)
{
	return error == ESHUTDOWN ||
	       (error == ENOTCONN && (!conn->h || nbd_aio_is_dead(conn->h) || nbd_aio_is_closed(conn->h)));
}

static int ask_status(struct copy *c, struct error *err)
{
	uint64_t off, len;

	if (c->status_in_flight || !plan_ask(&c->plan, &off, &len))
		return 0;
	c->status_in_flight = true;
	if (nbd_aio_block_status(c->s.conn[0].h, len, off,
				 (nbd_extent_callback){ .callback = status_extent, .user_data = c },
				 (nbd_completion_callback){ .callback = status_complete, .user_data = c },
				 0) < 0) {
		c->status_in_flight = false;
		plan_forget(&c->plan);
		c->broken = true;
		return error_set(err, -ECONNRESET, "%s: block status at offset %llu: %s", c->d->uri,
				 (unsigned long long)off, nbd_get_error());
	}
	return 0;
}

static int take_status(struct copy *c, struct error *err)
{
	int rc;

	if (!c->status_done)
		return 0;
	c->status_done = c->status_in_flight = false;
	if (c->status_error) {
		c->broken |= is_broken(&c->s.conn[0], c->status_error);
		plan_forget(&c->plan);
		return error_errno(err, -c->status_error, "%s: block status at offset %llu", c->d->uri,
				   (unsigned long long)c->plan.at);
	}
	rc = plan_reply_end(&c->plan, err);
	if (rc < 0)
		error_prefix(err, "%s: ", c->d->uri);
	if (rc == 0 && c->plan.unsaid && c->d->d.checkpoint) {
		c->b->grown = true;	/* and a checkpoint lets us read what changed, only */
		rc = error_set(err, -ESTALE, "%s: the disk has grown, and its bitmap does not know", c->d->d.name);
	}
	return rc;
}

/* --- reads */

static int read_chunk(void *user_data, const void *subbuf, size_t count, uint64_t offset,
		      unsigned status, int *error)
{
	struct piece *p = user_data;

	if (status != LIBNBD_READ_ERROR)
		cover_add(&p->came, offset, count);
	p->copy->heard = progress_now();
	return 0;
}

static int read_complete(void *user_data, int *error)
{
	struct piece *p = user_data;

	p->error = *error;
	if (!p->error && !cover_is(&p->came, p->ask_off, p->ask_len))
		p->error = EPROTO;
	p->conn->in_flight--;
	p->answered = true;
	pthread_mutex_lock(&p->copy->lock);
	if (!p->error) {
		p->state = PIECE_READ;
		p->copy->breaks = 0;
	}
	pthread_cond_signal(&p->copy->to_sum);
	pthread_mutex_unlock(&p->copy->lock);
	p->copy->heard = progress_now();
	return 1;
}

/* A connection that may take one more read, or NULL. */
static struct conn *pick_conn(struct copy *c)
{
	unsigned ready = source_ready(&c->s), most = DIV_ROUND_UP(c->size, ready ? ready : 1);

	for (unsigned i = 0; i < c->s.n; i++) {
		struct conn *conn = &c->s.conn[c->next_conn++ % c->s.n];

		if (conn->state == CONN_READY && conn->in_flight < most)
			return conn;
	}
	return NULL;
}

/* With the lock held, which it gives back for a moment: the other threads pass over what is
 * asked for. */
static int ask(struct copy *c, struct piece *p, struct conn *conn, struct error *err)
{
	int64_t cookie;

	p->conn = conn;
	p->came.n = 0;
	p->came.bad = false;
	p->error = 0;
	p->answered = false;
	p->state = PIECE_ASKED;
	conn->in_flight++;
	pthread_mutex_unlock(&c->lock);
	cookie = nbd_aio_pread_structured(conn->h, p->buf, p->ask_len, p->ask_off,
					  (nbd_chunk_callback){ .callback = read_chunk, .user_data = p },
					  (nbd_completion_callback){ .callback = read_complete, .user_data = p },
					  0);
	pthread_mutex_lock(&c->lock);
	if (cookie >= 0)
		return 0;
	conn->in_flight -= !p->answered;
	if (p->state == PIECE_ASKED)	/* else it has come, and others may be at it */
		p->state = PIECE_UNASKED;
	c->broken = true;
	return error_set(err, -ECONNRESET, "%s: reading %llu bytes at offset %llu: %s", c->d->uri,
			 (unsigned long long)p->len, (unsigned long long)p->off, nbd_get_error());
}

/* Reads that ended with an error: an answer of the server ends the copy. */
static int check_reads(struct copy *c, struct error *err)
{
	int rc = 0;

	pthread_mutex_lock(&c->lock);
	for (unsigned i = 0; i < c->n && rc == 0; i++) {
		struct piece *p = nth(c, i);

		if (p->zero || p->state != PIECE_ASKED || !p->error)
			continue;
		if (is_broken(p->conn, p->error))
			c->broken = true;
		rc = error_set(err, -p->error, "%s: reading %llu bytes at offset %llu: %s", c->d->uri,
			       (unsigned long long)p->len, (unsigned long long)p->off,
			       p->error == EPROTO ? "the server did not send all of it" : strerror(p->error));
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

/* How many ms the limit has us wait before more is asked for. */
static int limit_wait(struct copy *c)
{
	uint64_t limit = c->b->o->limit, now = progress_now();
	double due = limit ? (double)c->started / limit : 0, past = (now - c->allowed_from) / 1e9;

	if (past > due + 1) {		/* what was not used is not saved up */
		c->allowed_from = now;
		c->started = 0;
	}
	return due <= past ? 0 : (due - past) * 1000 + 1 < WAIT_MS ? (due - past) * 1000 + 1 : WAIT_MS;
}

/* --- making pieces of the plan */

static void add_zero(struct copy *c, const struct run *r)
{
	struct piece *p = nth(c, c->n);

	*p = (struct piece){ .copy = c, .buf = p->buf, .state = PIECE_READY, .zero = true, .off = r->off,
			     .len = min_u64(r->len, ZERO_MAX) };
	c->n++;
	c->b->done += p->len;
	plan_take(&c->plan, p->len);
	pthread_cond_signal(&c->to_store);
}

/* The next read of run R ends where a request's size does, so that chunks are not cut.
 * The server's blocks are read as a whole; of them only what is the run's is stored. */
static struct piece *add_read(struct copy *c, const struct run *r)
{
	struct piece *p = nth(c, c->n);
	uint64_t off = align_down(r->off, c->s.block);
	uint64_t end = min_u64(r->off + r->len, align_down(off, c->request_size) + c->request_size);

	*p = (struct piece){ .copy = c, .buf = p->buf, .state = PIECE_UNASKED, .off = r->off,
			     .len = end - r->off, .ask_off = off };
	p->ask_len = min_u64(align_up(end, c->s.block), c->s.size) - off;
	plan_take(&c->plan, p->len);
	c->n++;
	c->b->done += p->len;
	c->b->copied += p->ask_len;
	c->d->d.read += p->ask_len;
	return p;
}

/* Asks for what is not asked for, as far as the ring, the connections and the limit
 * allow.  With the lock held.  *WAIT: ms until there may be more. */
static int work_locked(struct copy *c, int *wait, struct error *err)
{
	const struct run *r = NULL;
	struct piece *p;
	int rc = 0;

	for (;;) {
		struct conn *conn = pick_conn(c);

		p = find_state(c, PIECE_UNASKED);
		*wait = limit_wait(c);
		if (p ? !conn || *wait : c->n == c->size || !(r = plan_next(&c->plan)))
			break;
		if (!p && r->kind == RUN_SKIP) {
			c->b->done += r->len;
			plan_take(&c->plan, r->len);
		} else if (!p && r->kind == RUN_ZERO) {
			add_zero(c, r);
		} else if (!conn || *wait) {
			break;
		} else {
			if (!p)
				p = add_read(c, r);
			c->started += p->ask_len;
			rc = ask(c, p, conn, err);
			if (rc < 0)
				return rc;
		}
	}
	if (!*wait || (!p && !plan_next(&c->plan)))
		*wait = WAIT_MS;
	return 0;
}

/* --- connections */

static unsigned fit_connections(const struct copy *c)
{
	unsigned want = c->b->o->connections ? c->b->o->connections : 4;

	if (!c->s.multi_conn)
		return 1;
	return max_u64(1, min_u64(want, c->s.size / REQUEST));
}

static int connect_once(struct copy *c, bool first, struct error *err)
{
	bool allocation = c->s.has_allocation, zeroes = c->s.tells_zeroes;
	uint64_t block = c->s.block, max = c->s.max;
	int wake = c->wake, rc;

	rc = source_open(&c->s, c->d->uri, c->d->bitmap, err);
	c->s.has_wake = true;
	c->s.wake = wake;
	if (rc < 0)
		return rc;
	if (c->s.size != c->d->d.size)
		return error_set(err, -ESTALE, "%s: the export's size has changed", c->d->uri);
	if (!first && (c->s.has_allocation != allocation || c->s.tells_zeroes != zeroes || c->s.block != block ||
		       c->s.max < max))
		return error_set(err, -ESTALE, "%s: the server has become another one", c->d->uri);
	source_grow(&c->s, fit_connections(c));
	c->heard = progress_now();
	return 0;
}

/* Waits MS or until a signal. */
static int wait_ms(struct copy *c, int ms, struct error *err)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };

	if (!pull_signalled())
		nanosleep(&ts, NULL);
	return pull_signalled() ? error_set(err, -EINTR, "stopped by a signal") : 0;
}

static int keep(struct copy *c, struct error *err)
{
	uint64_t now = progress_now();

	if (!c->b->source->keep || now - c->kept < KEEP_NS)
		return 0;
	c->kept = now;
	return c->b->source->keep(c->b, err);
}

/* All that was asked for is asked for again, of new connections. */
static int reconnect(struct copy *c, const struct error *why, struct error *err)
{
	uint64_t start = progress_now();
	int ms = RETRY_FIRST_MS, rc = -ECONNRESET;

	log_warning("%s; connecting again", why->text);
	source_close(&c->s);		/* completes what is in flight */
	pthread_mutex_lock(&c->lock);
	for (unsigned i = 0; i < c->n; i++)
		if (nth(c, i)->state == PIECE_ASKED)
			nth(c, i)->state = PIECE_UNASKED;
	pthread_mutex_unlock(&c->lock);
	if (c->status_in_flight)
		plan_forget(&c->plan);
	c->status_in_flight = c->status_done = c->broken = false;
	while (rc < 0) {
		rc = wait_ms(c, ms, err);
		if (rc == 0)
			rc = keep(c, err);
		if (rc < 0)
			return rc;
		*err = ERROR_INIT;
		rc = connect_once(c, false, err);
		if (rc == -ESTALE || rc == -ENOENT)
			return rc;
		if (rc < 0) {
			source_close(&c->s);
			if (progress_now() - start > c->b->o->timeout * 1000000000ull)
				return error_set(err, rc, "%s; given up after %u s", why->text,
						 c->b->o->timeout);
		}
		ms = min_u64(2 * ms, RETRY_LAST_MS);
	}
	return rc;
}

/* --- the loop */

static int look_at_storer(struct copy *c, bool *finished, struct error *err)
{
	uint64_t bells;
	ssize_t got = read(c->wake, &bells, sizeof(bells));
	int rc;

	(void)got;
	pthread_mutex_lock(&c->lock);
	rc = c->failed;
	if (rc < 0 && err)
		*err = c->error;
	*finished = c->n == 0 && plan_done(&c->plan);
	pthread_mutex_unlock(&c->lock);
	return rc;
}

static bool in_flight(const struct copy *c)
{
	unsigned n = c->status_in_flight;

	for (unsigned i = 0; i < c->s.n; i++)
		n += c->s.conn[i].in_flight;
	return n;
}

/* One turn; -ECONNRESET and c->broken when a connection is lost. */
static int turn(struct copy *c, struct error *err)
{
	sigset_t none;
	int wait, rc = ask_status(c, err);

	sigemptyset(&none);
	if (rc < 0)
		return rc;
	pthread_mutex_lock(&c->lock);
	rc = work_locked(c, &wait, err);
	pthread_mutex_unlock(&c->lock);
	if (rc == 0)
		rc = ask_status(c, err);	/* there may be room for more now */
	if (rc < 0)
		return rc;
	rc = source_poll(&c->s, wait, &none, err);
	if (pull_signalled())
		return error_set(err, -EINTR, "stopped by a signal");
	c->broken |= rc < 0;
	if (rc == 0)
		rc = take_status(c, err);
	if (rc == 0)
		rc = check_reads(c, err);
	if (rc == 0 && in_flight(c) && progress_now() - c->heard > c->b->o->timeout * 1000000000ull) {
		c->broken = true;
		rc = error_set(err, -ETIMEDOUT, "%s: no answer for %u s", c->d->uri, c->b->o->timeout);
	}
	if (!in_flight(c))
		c->heard = progress_now();
	return rc;
}

static int run(struct copy *c, struct error *err)
{
	bool finished = false;
	int rc = 0;

	while (rc == 0) {
		rc = look_at_storer(c, &finished, err);
		if (rc < 0 || finished)
			return rc;
		rc = keep(c, err);
		if (rc == 0)
			rc = turn(c, err);
		if (rc < 0 && c->broken && rc != -EPROTO && rc != -EINTR) {
			struct error why = *err;

			rc = ++c->breaks > BREAKS ? rc : reconnect(c, &why, err);
		}
		progress_update(&c->b->progress, min_u64(c->b->done, c->b->total), c->b->total, c->b->copied);
	}
	return rc;
}

static int make_ring(struct copy *c)
{
	c->size = c->b->o->requests;
	c->ring = calloc(c->size, sizeof(*c->ring));
	for (unsigned i = 0; c->ring && i < c->size; i++) {
		c->ring[i].buf = malloc(c->request_size);
		if (!c->ring[i].buf)
			return -ENOMEM;
	}
	return c->ring ? 0 : -ENOMEM;
}

/* Not above what the server takes, not below its block. */
static uint64_t fit_request_size(const struct source *s)
{
	uint64_t size = max_u64(REQUEST, s->block);

	while (size > s->max)
		size /= 2;
	return size;
}

static int copy(struct copy *c, struct error *err)
{
	uint64_t below = c->d->chain.n ? c->d->chain.layer[0].disk->size : c->d->d.size;
	int rc = connect_once(c, true, err);

	if (rc < 0)
		return rc;
	c->request_size = fit_request_size(&c->s);
	if (c->request_size > REQUEST)
		return error_set(err, -ENOTSUP, "%s: the server's smallest block has %llu bytes, more than %d",
				 c->d->uri, (unsigned long long)c->s.block, REQUEST);
	rc = plan_init(&c->plan, c->s.size, c->s.block, c->s.context[0] != 0, c->s.has_allocation, below);
	c->plan.changes = c->s.tells_zeroes;
	if (rc == 0)
		rc = make_ring(c);
	if (rc == 0)
		rc = start_threads(c);
	if (rc < 0)
		return error_errno(err, rc, "%s", c->d->uri);
	c->allowed_from = progress_now();
	return run(c, err);
}

int backup_copy(struct backup *b, struct backup_disk *d, struct target *t, struct error *err)
{
	struct copy c = { .b = b, .d = d, .t = t, .lock = PTHREAD_MUTEX_INITIALIZER,
			  .to_sum = PTHREAD_COND_INITIALIZER, .to_store = PTHREAD_COND_INITIALIZER };
	int rc;

	c.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c.wake < 0)
		return error_errno(err, -errno, "eventfd");
	rc = copy(&c, err);
	stop_threads(&c);
	source_close(&c.s);
	plan_clear(&c.plan);
	for (unsigned i = 0; c.ring && i < c.size; i++)
		free(c.ring[i].buf);
	free(c.ring);
	close(c.wake);
	return rc;
}
