/* SPDX-License-Identifier: BSD-3-Clause */
/* copier: made, fed, asked, and run: see copier.h.
 *
 * copier_run() is the coordinator.  It starts workers, one coroutine each, which pick
 * ranges until nothing is left, and it sleeps until they have ended: because nothing is
 * left, because the job is paused or cancelled, or because a request failed.  Only then
 * are a pause taken and a failure judged, so that nothing is in flight meanwhile and a
 * failure is told once, not by each worker.
 *
 * A range is in exactly one of ->left, ->busy (a worker's) and ->skipped, or it is
 * done.  What is added while it is busy is in ->left as well, and waits for the worker:
 * two requests to the same bytes never race on the target.
 */
#include "backup/copier-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "format/qcow2.h"

#define RETRY_NS_MIN 10000000ull
#define RETRY_NS_MAX 1000000000ull

/* -- made and freed -------------------------------------------------------------- */

static uint32_t default_granularity(const struct copier_options *o)
{
	const struct node *t = node_skip_filters(o->target);
	uint32_t cluster = node_is_qcow2(t) ? qcow2_cluster_size(t) : 0;

	return (uint32_t)max_u64(COPIER_BLOCK, cluster);
}

/* Granules grow with the disk, so that the bits stay small. */
static unsigned granularity_bits(const struct copier_options *o, uint64_t size)
{
	uint32_t want = o->granularity ? o->granularity : default_granularity(o);
	unsigned bits = 0;

	while (1ull << bits < want)
		bits++;
	while (bitmap_data_bytes(size, bits) > COPIER_BITS_MAX)
		bits++;
	return bits;
}

static int check(const struct copier_options *o, uint64_t size, struct error *err)
{
	if (size > INT64_MAX || o->target->size < size)
		return error_set(err, -EINVAL, "The target is smaller than the source");
	if (o->granularity && (!is_pow2(o->granularity) || o->granularity < 512))
		return error_set(err, -EINVAL, "The granularity must be a power of two, 512 or more");
	return 0;
}

static int make_maps(struct copier *c)
{
	c->source.x.v = calloc(COPIER_EXTENTS, sizeof(struct extent));
	c->target.x.v = calloc(COPIER_EXTENTS, sizeof(struct extent));
	c->buffers = calloc(COPIER_WORKERS_MAX, sizeof(void *));
	c->source.x.max = c->target.x.max = COPIER_EXTENTS;
	return c->source.x.v && c->target.x.v && c->buffers ? bitmap_alloc_bits(&c->left) : -ENOMEM;
}

struct io_file *copier_storage(const struct node *n)
{
	while (n->child[CHILD_FILE])
		n = n->child[n->child[CHILD_DATA_FILE] ? CHILD_DATA_FILE : CHILD_FILE];
	return node_storage(n);
}

/* Files that the page cache stands before take short requests better: the processor's
 * cache holds them, and the kernel finds its pages one by one. */
static uint64_t default_chunk(const struct node *target)
{
	const struct io_file *f = copier_storage(target);

	return f && !f->direct ? COPIER_CHUNK_CACHED : COPIER_CHUNK_MAX;
}

/* Buffers of all workers together keep to the copier's memory. */
static void set_sizes(struct copier *c)
{
	uint64_t g = bitmap_granularity(&c->left), most;

	c->block = min_u64(g, COPIER_BLOCK);
	c->chunk = default_chunk(c->o.target);
	if (c->o.max_chunk)
		c->chunk = min_u64(c->chunk, align_down(c->o.max_chunk, 4096));
	if (c->o.compress)
		c->chunk = max_u64(c->chunk, min_u64(g, COPIER_CLUSTER_MAX));
	c->chunk = min_u64(max_u64(c->chunk, c->block), COPIER_MEMORY);
	most = min_u64(COPIER_WORKERS_MAX, COPIER_MEMORY / c->chunk);
	c->workers = (unsigned)min_u64(c->o.workers ? c->o.workers : COPIER_WORKERS, max_u64(1, most));
	c->zero_len = max_u64(COPIER_CHUNK_MAX, g);
}

int copier_new(const struct copier_options *o, struct copier **out, struct error *err)
{
	uint64_t size = o->view ? view_size(o->view) : o->source->size;
	struct copier *c;
	int rc = check(o, size, err);

	if (rc)
		return rc;
	c = calloc(1, sizeof(*c));
	if (!c)
		return error_set(err, -ENOMEM, "Out of memory");
	c->o = *o;
	c->size = size;
	c->left.size = c->skipped.size = size;
	c->left.granularity_bits = c->skipped.granularity_bits = granularity_bits(o, size);
	c->wake = o->job ? &o->job->wake : &c->own_wake;
	c->target_direct = copier_storage(o->target) && copier_storage(o->target)->direct;
	c->target_tells = copier_map_tells(o->target);
	set_sizes(c);
	if (make_maps(c)) {
		copier_free(c);
		return error_set(err, -ENOMEM, "Out of memory");
	}
	if (o->view)
		view_listen(o->view, copier_kept, c);
	*out = c;
	return 0;
}

void copier_free(struct copier *c)
{
	if (!c)
		return;
	if (c->o.view)
		view_listen(c->o.view, NULL, NULL);
	copier_buffers_free(c);
	bitmap_free_bits(&c->left);
	bitmap_free_bits(&c->skipped);
	free(c->source.x.v);
	free(c->target.x.v);
	free(c->buffers);
	free(c);
}

/* -- fed and asked ----------------------------------------------------------------- */

/* Bytes of B that are dirty; the last granule may be a short one. */
static uint64_t dirty_bytes(const struct bitmap *b)
{
	uint64_t bytes = b->dirty << b->granularity_bits, tail = b->size % bitmap_granularity(b);

	if (tail && b->bits && bitmap_get(b, b->size - 1))
		bytes -= bitmap_granularity(b) - tail;
	return bytes;
}

uint64_t copier_left(const struct copier *c)
{
	uint64_t left = dirty_bytes(&c->left);

	if (c->skipped.bits)
		left += dirty_bytes(&c->skipped);
	for (const struct copier_task *t = c->busy; t; t = t->next)
		left += t->len;
	return left;
}

bool copier_wants(const struct copier *c, uint64_t off)
{
	if (bitmap_get(&c->left, off))
		return true;
	for (const struct copier_task *t = c->busy; t; t = t->next)
		if (off >= t->off && off - t->off < t->len)
			return true;
	return false;
}

static void tell_total(struct copier *c)
{
	if (c->o.job)
		job_set_total(c->o.job, c->done + copier_left(c));
}

static void add(struct copier *c, uint64_t off, uint64_t len)
{
	bitmap_set(&c->left, off, len);
	if (c->skipped.bits)
		bitmap_reset(&c->skipped, off, len);
	copier_map_drop(&c->source, off, len);
	copier_map_drop(&c->target, off, len);
}

void copier_add(struct copier *c, uint64_t off, uint64_t len)
{
	add(c, off, len);
	tell_total(c);
	co_queue_wake_all(&c->idle);
}

void copier_add_bitmap(struct copier *c, const struct bitmap *b)
{
	uint64_t off, end;

	for (off = 0; (off = bitmap_next_dirty(b, off, c->size)) < c->size; off = end) {
		end = bitmap_next_clean(b, off, c->size);
		add(c, off, end - off);
	}
	tell_total(c);
	co_queue_wake_all(&c->idle);
}

static void bits_to(const struct bitmap *from, struct bitmap *b)
{
	uint64_t off, end;

	for (off = 0; from->bits && (off = bitmap_next_dirty(from, off, from->size)) < from->size; off = end) {
		end = bitmap_next_clean(from, off, from->size);
		bitmap_set(b, off, end - off);
	}
}

void copier_left_to_bitmap(const struct copier *c, struct bitmap *b)
{
	bits_to(&c->left, b);
	bits_to(&c->skipped, b);
	for (const struct copier_task *t = c->busy; t; t = t->next)
		bitmap_set(b, t->off, t->len);
}

/* -- workers ------------------------------------------------------------------------- */

bool copier_should_stop(const struct copier *c)
{
	return c->stop || c->over || c->failure.rc || c->flush_rc || (c->o.job && job_wants_stop(c->o.job));
}

static void task_end(struct copier *c, struct copier_task *t)
{
	struct copier_task **p = &c->busy;

	while (*p != t)
		p = &(*p)->next;
	*p = t->next;
	c->in_flight -= t->flight;
	if (t->flight)
		manners_took(&c->manners, loop_now() - t->begun);
}

static void task_failed(struct copier *c, struct copier_task *t, const struct copier_failure *f)
{
	add(c, t->off, t->len);
	if (!c->failure.rc)
		c->failure = *f;
	c->retry_ns = c->retry_ns ? min_u64(2 * c->retry_ns, RETRY_NS_MAX) : RETRY_NS_MIN;
}

static void task_done(struct copier *c, const struct copier_task *t)
{
	c->done += t->len;
	c->unflushed += t->flight;
	if (c->o.job)
		job_progress(c->o.job, t->len);
	if (!c->failure.rc)
		c->retry_ns = 0;
	if (c->o.view)
		view_release(c->o.view, t->off, t->len);
	else if (c->o.discard_source)
		node_discard(c->o.source, t->off, t->len);
}

/* What T was, and what of it was copied. */
static void task_settle(struct copier *c, struct copier_task *t, uint64_t was, int rc,
			const struct copier_failure *f)
{
	task_end(c, t);
	if (!rc && t->len < was)
		bitmap_set(&c->left, t->off + t->len, was - t->len);
	if (rc)
		task_failed(c, t, f);
	else
		task_done(c, t);
	co_queue_wake_all(&c->idle);
}

static void worker(void *arg);

/* One worker is enough for requests that end at once; one that had to wait calls for
 * another. */
static void start_worker(struct copier *c)
{
	c->running++;
	if (co_self())
		co_start(worker, c);
	else
		worker(c);
}

/* What was copied goes to storage as the copy goes on, beside the other workers' requests:
 * a last flush of all of it would take long, and hold up a guest on the same storage. */
static void flush_some(struct copier *c)
{
	int rc;

	c->flushing = true;
	c->unflushed = 0;
	if (c->running < c->workers)
		start_worker(c);
	rc = copier_flush(c);
	if (!c->flush_rc)		/* the first counts: storage may say it only once */
		c->flush_rc = rc;
	c->flushing = false;
}

/* Picks and copies one range.  False: there is none for this worker any more. */
static bool work_once(struct copier *c)
{
	struct copier_failure f = { 0 };
	struct copier_task t = { 0 };
	unsigned turn = loop_self() ? loop_turn() : 0;
	int rc = copier_pick(c, &t);
	uint64_t was = t.len;

	if (rc == -EAGAIN) {
		if (!c->busy || copier_should_stop(c))
			return false;
		co_queue_wait(&c->idle);
		return true;
	}
	if (rc)
		f = (struct copier_failure){ .rc = rc, .is_read = true, .off = t.off, .len = t.len };
	else
		rc = copier_move(c, &t, &f);
	task_settle(c, &t, was, rc, &f);
	if (loop_self() && loop_turn() != turn && c->running < c->workers)
		start_worker(c);
	if (c->unflushed >= COPIER_UNFLUSHED && !c->target_direct && !c->flushing && co_self())
		flush_some(c);
	return true;
}

static void worker(void *arg)
{
	struct copier *c = arg;

	while (!copier_should_stop(c) && work_once(c))
		if (co_self())
			co_yield();
	c->running--;
	co_queue_wake_all(&c->idle);
	co_queue_wake_all(c->wake);
}

/* A target that does not answer would hold up a cancelled job: it gives up earlier. */
static void hurry_target(void *arg)
{
	node_hurry(((struct copier *)arg)->o.target, true);
}

static void let_target_be(void *arg)
{
	node_hurry(((struct copier *)arg)->o.target, false);
}

static void on_target_loop(struct copier *c, void (*fn)(void *arg))
{
	if (c->o.target->loop)
		loop_call(c->o.target->loop, fn, c);
	else
		fn(c);
}

static void run_workers(struct copier *c)
{
	bool hurried = false;

	start_worker(c);
	while (c->running) {
		if (!hurried && c->o.job && job_is_cancelled(c->o.job)) {
			hurried = c->stop = true;
			co_queue_wake_all(&c->idle);
			on_target_loop(c, hurry_target);
			continue;
		}
		co_queue_wait(c->wake);
		if (copier_should_stop(c))
			co_queue_wake_all(&c->idle);
	}
	c->stop = false;
	on_target_loop(c, copier_write_inline);
	if (hurried)
		on_target_loop(c, let_target_be);
}

/* -- the coordinator -------------------------------------------------------------------- */

static void skip(struct copier *c, const struct copier_failure *f)
{
	uint64_t g = bitmap_granularity(&c->left), start = align_down(f->off, g);

	if (!c->skipped.bits && bitmap_alloc_bits(&c->skipped))
		return;			/* no memory: it is tried again instead */
	bitmap_set(&c->skipped, start, f->off + f->len - start);
	bitmap_reset(&c->left, start, align_up(f->off + f->len, g) - start);
}

/* Something failed and all workers have ended: what its owner says.  -errno: that was it. */
static int judge(struct copier *c, struct error *err)
{
	struct copier_failure f = c->failure;
	enum copier_action action = COPIER_REPORT;

	c->failure.rc = 0;
	if (c->o.view && view_is_broken(c->o.view))
		return error_set(err, f.rc, "The view of node '%s' was given up: %s", c->o.source->name,
				 view_broken_why(c->o.view));
	if (c->o.failed)
		action = c->o.failed(c->o.arg, f.rc, f.is_read, f.off, f.len);
	switch (action) {
	case COPIER_REPORT:
		return error_set(err, f.rc, "%s", strerror(-f.rc));
	case COPIER_IGNORE:
		skip(c, &f);
		return 0;
	case COPIER_RETRY:
		copier_nap(c, c->retry_ns);
		return 0;
	}
	return -EINVAL;
}

/* Until nothing is left.  0 or -errno. */
static int drain(struct copier *c, struct error *err)
{
	int rc = 0;

	for (;;) {
		if (c->o.job)
			rc = job_pause_point(c->o.job);
		if (rc || !c->left.dirty)
			return rc;
		if (c->over)
			return error_set(err, -ETIMEDOUT, "%s", strerror(ETIMEDOUT));
		run_workers(c);
		if (c->flush_rc)
			return error_set(err, c->flush_rc, "%s", strerror(-c->flush_rc));
		if (c->failure.rc && !(c->o.job && job_is_cancelled(c->o.job)))
			rc = judge(c, err);
		if (rc)
			return rc;
	}
}

int copier_run(struct copier *c, struct error *err)
{
	int rc;

	tell_total(c);
	c->flush_rc = 0;
	do {
		rc = drain(c, err);
		if (!rc && (rc = copier_flush(c))) {
			c->flush_rc = rc;
			error_set(err, rc, "%s", strerror(-rc));
		}
	} while (!rc && c->left.dirty);		/* fed during the flush */
	return rc;
}

bool copier_lost(const struct copier *c)
{
	return c->flush_rc;
}

struct finish {
	struct loop_timer timer;
	struct copier *copier;
};

static void finish_over(struct loop_timer *t)
{
	struct copier *c = ((struct finish *)t)->copier;

	c->over = true;
	co_queue_wake_all(&c->idle);
	co_queue_wake_all(c->wake);
}

int copier_finish(struct copier *c, uint64_t ns, struct error *err)
{
	struct finish f = { .copier = c };
	struct job *job = c->o.job;
	int rc;

	c->o.job = NULL;		/* which says that we should stop */
	copier_set_speed(c, 0);
	on_target_loop(c, hurry_target);
	loop_timer_set(&f.timer, loop_now() + ns, finish_over);
	rc = copier_run(c, err);
	loop_timer_cancel(&f.timer);
	on_target_loop(c, let_target_be);
	c->o.job = job;
	return rc;
}

void copier_set_speed(struct copier *c, uint64_t bytes_per_second)
{
	c->o.speed = bytes_per_second;
	c->next_ns = 0;
	c->limits++;
	co_queue_wake_all(c->wake);
}
