/* SPDX-License-Identifier: BSD-3-Clause */
/* node: the narrow waist that every request crosses.
 *
 * Opening and closing are in graph.c, users and their permissions in
 * node-use.c.  Here: bounds, taps, the driver's call, and the ways out when a
 * driver cannot do what was asked.
 */
#include "format/node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"

#define ZERO_PIECE (1u << 20)	/* bytes of zeroes written at a time when nothing better works */
#define ZERO_BLOCK 4096u	/* detect-zeroes looks at blocks of this size … */
#define ZERO_RUN_MIN (64u << 10)	/* … and cuts a write for this many zeroes in a row */

static inline int node_check_read(const struct node *n, uint64_t off, uint64_t len)
{
	if (n->protocol)
		return off <= INT64_MAX && len <= INT64_MAX - off ? 0 : -EINVAL;
	return checked_range(off, len, n->size) ? 0 : -EINVAL;
}

static inline int node_check_write(const struct node *n, uint64_t off, uint64_t len)
{
	if (n->read_only)
		return -EPERM;
	if (checked_range(off, len, n->size))
		return 0;
	return n->may_grow && off <= INT64_MAX && len <= INT64_MAX - off ? 0 : -ENOSPC;
}

static inline void node_taps_before(struct node *n, struct tap_request *rq)
{
	if (__builtin_expect(!n->taps, 1))
		return;
	rq->next = n->passing;
	rq->prev = &n->passing;
	if (rq->next)
		rq->next->prev = &rq->next;
	n->passing = rq;
	for (struct tap *t = n->taps; t; t = t->next)
		t->ops->before(t, rq);
}

static inline void node_taps_after(struct node *n, struct tap_request *rq, int rc)
{
	if (__builtin_expect(!rq->prev, 1))
		return;
	for (struct tap *t = n->taps; t; t = t->next)
		if (t->ops->after)
			t->ops->after(t, rq, rc);
	*rq->prev = rq->next;
	if (rq->next)
		rq->next->prev = rq->prev;
}

static inline int node_count(struct node *n, enum io_kind kind, uint64_t len, int rc)
{
	struct io_stats *s = &n->stats;

	if (__builtin_expect(rc, 0)) {
		s->failed[kind]++;
		return rc;
	}
	s->ops[kind]++;
	s->bytes[kind] += len;
	return 0;
}

/* One event, then the threshold is gone.  It is told before the write, so that
 * whoever makes the storage larger has time. */
static void threshold_passed(struct node *n, uint64_t end)
{
	uint64_t threshold = n->write_threshold;

	n->write_threshold = 0;
	if (node_event_hooks && node_event_hooks->threshold_exceeded)
		node_event_hooks->threshold_exceeded(n, end - threshold, threshold);
}

static inline void node_note_end(struct node *n, uint64_t end)
{
	if (end > n->wr_highest)
		n->wr_highest = end;
	if (__builtin_expect(n->write_threshold && end > n->write_threshold, 0))
		threshold_passed(n, end);
}

int node_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	int rc = node_check_read(n, off, len);

	if (__builtin_expect(rc || !len, 0))
		return rc;
	return node_count(n, IO_KIND_READ, len, n->driver->read(n, buf, off, len));
}

/* The slow way: zeroes from memory. */
static int node_zero_by_writing(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	size_t piece = (size_t)min_u64(len, ZERO_PIECE);
	void *zeroes = NULL;
	int rc = 0;

	if (posix_memalign(&zeroes, 4096, align_up(piece, 4096)))
		return -ENOMEM;
	memset(zeroes, 0, piece);
	while (len && !rc) {
		size_t now = (size_t)min_u64(len, piece);

		rc = n->driver->write(n, zeroes, off, now, flags & NODE_FUA);
		off += now;
		len -= now;
	}
	free(zeroes);
	return rc;
}

/* Zeroes of a range that was checked, taps told. */
static int zero_now(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	int rc = n->driver->zero ? n->driver->zero(n, off, len, flags) : -ENOTSUP;

	if (rc == -ENOTSUP && !(flags & NODE_NO_FALLBACK))
		rc = node_zero_by_writing(n, off, len, flags);
	return rc;
}

/* How many bytes from the start of BUF are of one kind: all zeroes (*ZERO), or
 * data up to the next run of zeroes that is worth a request of its own. */
static size_t detect_run(const uint8_t *buf, uint64_t off, size_t len, bool *zero)
{
	size_t run = 0, data = 0, piece;

	*zero = false;
	while (data + run < len) {
		const uint8_t *p = buf + data + run;

		piece = (size_t)(ZERO_BLOCK - (off + data + run) % ZERO_BLOCK);
		piece = (size_t)min_u64(piece, len - data - run);
		if (bytes_are_zero(p, piece)) {
			run += piece;
			continue;
		}
		if (!data && run >= ZERO_RUN_MIN)
			break;
		if (data && run >= ZERO_RUN_MIN)
			return data;
		data += run + piece;
		run = 0;
	}
	*zero = !data && (run == len || run >= ZERO_RUN_MIN);
	if (*zero || (data && run >= ZERO_RUN_MIN))
		return *zero ? run : data;
	return data + run;
}

/* detect-zeroes: a write all of zeroes, or a long aligned run of them inside it,
 * is stored as zeroes, which are marked: as data they would have a place of their own, too.
 * Pieces meet at multiples of ZERO_BLOCK: no block tears. */
static int node_write_detect(struct node *n, const void *buf, uint64_t off, size_t len,
			     unsigned flags)
{
	unsigned how = (flags & NODE_FUA) | NODE_MARK | (n->detect_unmap ? NODE_MAY_UNMAP : 0u);
	int rc = 0;

	while (len && !rc) {
		bool zero;
		size_t now = detect_run(buf, off, len, &zero);

		rc = zero ? zero_now(n, off, now, how) : n->driver->write(n, buf, off, now, flags);
		buf = (const uint8_t *)buf + now;
		off += now;
		len -= now;
	}
	return rc;
}

int node_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	struct tap_request rq = { .off = off, .len = len, .kind = TAP_WRITE, .flags = flags };
	int rc = node_check_write(n, off, len);

	if (__builtin_expect(rc || !len, 0))
		return rc;
	if (n->cache_no_flush)
		flags &= ~(unsigned)NODE_FUA;
	node_note_end(n, off + len);
	node_taps_before(n, &rq);
	rc = n->detect_zeroes && !(flags & NODE_COMPRESS) ? node_write_detect(n, buf, off, len, flags)
			      : n->driver->write(n, buf, off, len, flags);
	node_taps_after(n, &rq, rc);
	return node_count(n, IO_KIND_WRITE, len, rc);
}

int node_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct tap_request rq = { .off = off, .len = len, .kind = TAP_ZERO };
	int rc = node_check_write(n, off, len);

	if (rc || !len)
		return rc;
	if (!n->discard_unmap)
		flags &= ~(unsigned)NODE_MAY_UNMAP;
	if (n->cache_no_flush)
		flags &= ~(unsigned)NODE_FUA;
	rq.flags = flags;
	node_note_end(n, off + len);
	node_taps_before(n, &rq);
	rc = zero_now(n, off, len, flags);
	node_taps_after(n, &rq, rc);
	return node_count(n, IO_KIND_WRITE, len, rc);
}

int node_discard(struct node *n, uint64_t off, uint64_t len)
{
	bool drop = false;
	struct tap_request rq = { .off = off, .len = len, .kind = TAP_DISCARD, .drop = &drop };
	int rc = node_check_write(n, off, len);

	if (rc || !len || !n->discard_unmap || !n->driver->discard)
		return rc;
	node_taps_before(n, &rq);
	rc = drop ? -ENOTSUP : n->driver->discard(n, off, len);
	if (rc == -ENOTSUP)
		rc = 0;			/* a hint that nobody could take */
	node_taps_after(n, &rq, rc);
	return node_count(n, IO_KIND_UNMAP, len, rc);
}

/* cache.no-flush saves the fsync of the storage; a format's tables are written to
 * its file all the same, so that who flushed hears of what fails. */
int node_flush(struct node *n)
{
	if (!n->driver->flush || (n->cache_no_flush && n->protocol))
		return 0;
	return node_count(n, IO_KIND_FLUSH, 0, n->driver->flush(n));
}

int node_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	int rc = node_check_read(n, off, len);

	if (rc || !len)
		return rc;
	if (n->driver->map)
		return n->driver->map(n, off, len, x);
	if (n->driver->filter)
		return node_map(n->child[CHILD_FILE], off, len, x);
	extents_add(x, len, 0, 1);
	return 0;
}

static int map_chain(struct node *n, uint64_t off, uint64_t len, struct extents *x, uint32_t depth);

/* [off, off+len) has nothing in N: what the layers below say.  1: X is full. */
static int map_below(struct node *n, uint64_t off, uint64_t len, struct extents *x, uint32_t depth)
{
	struct node *below = node_skip_filters(n)->child[CHILD_BACKING];
	uint64_t there = 0;
	int rc = 0;

	if (below && off < below->size) {
		there = min_u64(len, below->size - off);
		rc = map_chain(below, off, there, x, depth + 1);
	}
	if (rc || there == len)
		return rc;
	return extents_add(x, len - there, EXTENT_ZERO | EXTENT_HOLE | EXTENT_UNALLOCATED, 0) ? 0 : 1;
}

bool node_is_below(const struct node *n, const struct node *what)
{
	if (n == what)
		return true;
	for (unsigned c = 0; c < CHILD_COUNT; c++) {
		if (n->child[c] && node_is_below(n->child[c], what))
			return true;
	}
	return false;
}

struct node *node_skip_filters(struct node *n)
{
	while (n->driver->filter)
		n = n->child[CHILD_FILE];
	return n;
}

/* Appends until [off, off+len) is covered (0), X is full (1) or an error. */
static int map_chain(struct node *n, uint64_t off, uint64_t len, struct extents *x, uint32_t depth)
{
	enum { AT_ONCE = 256 };
	struct extents t = { .v = malloc(AT_ONCE * sizeof(struct extent)), .max = AT_ONCE };
	int rc = t.v ? 0 : -ENOMEM;

	while (len && !rc) {
		t.n = 0;
		t.total = 0;
		rc = node_map(n, off, len, &t);
		if (!rc && !t.n)
			rc = -EIO;	/* a driver must make progress */
		for (uint32_t i = 0; i < t.n && !rc; i++) {
			struct extent *e = &t.v[i];

			if (e->flags & EXTENT_UNALLOCATED)
				rc = map_below(n, off, e->len, x, depth);
			else
				rc = extents_add(x, e->len, e->flags, depth) ? 0 : 1;
			off += e->len;
			len -= e->len;
		}
	}
	free(t.v);
	return rc;
}

int node_map_chain(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	int rc = node_check_read(n, off, len);

	if (!rc && len)
		rc = map_chain(n, off, len, x, 1);
	return rc < 0 ? rc : 0;
}

static int taps_allow_shrink(struct node *n, uint64_t size, struct error *err)
{
	int rc = 0;

	for (struct tap *t = n->taps; t && !rc; t = t->next)
		if (t->ops->may_shrink)
			rc = t->ops->may_shrink(t, size, err);
	return rc;
}

int node_truncate(struct node *n, uint64_t size, struct error *err)
{
	int rc;

	if (n->read_only)
		return error_set(err, -EPERM, "Image is read-only");
	if (size > INT64_MAX)
		return error_set(err, -EFBIG, "Image size cannot be larger than %lld", (long long)INT64_MAX);
	if (!n->driver->truncate)
		return error_set(err, -ENOTSUP, "Image format driver '%s' does not support resize",
				 n->driver->name);
	rc = size < n->size ? taps_allow_shrink(n, size, err) : 0;
	return rc ? rc : n->driver->truncate(n, size, err);
}

bool node_host_range(struct node *n, uint64_t off, uint64_t len, struct io_file **f,
		     uint64_t *host_off)
{
	return n->driver->host_range && !node_check_read(n, off, len) &&
	       n->driver->host_range(n, off, len, f, host_off);
}

void node_hurry(struct node *n, bool on)
{
	if (n->driver->hurry && n->state)
		n->driver->hurry(n, on);
	for (unsigned c = 0; c < CHILD_COUNT; c++)
		if (n->child[c])
			node_hurry(n->child[c], on);
}

int node_gate_close(struct node *n, uint64_t timeout_ns)
{
	int rc;

	node_hurry(n, true);
	rc = gate_close(&n->gate, timeout_ns);
	node_hurry(n, false);
	return rc;
}

void node_tap_add(struct node *n, struct tap *t)
{
	struct tap **p = &n->taps;

	while (*p)
		p = &(*p)->next;
	t->next = NULL;
	*p = t;
}

void node_tap_remove(struct node *n, struct tap *t)
{
	for (struct tap **p = &n->taps; *p; p = &(*p)->next) {
		if (*p == t) {
			*p = t->next;
			return;
		}
	}
}
