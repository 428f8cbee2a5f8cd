/* SPDX-License-Identifier: BSD-3-Clause */
/* copier-move: one range from the source to the target.
 *
 * Data is read in pieces of a buffer's size; blocks of it that turn out to be zero are
 * stored as zeroes.  Buffers are used last in, first out: where reads and writes end at
 * once, one buffer serves all, and stays in the processor's cache.
 */
#include <errno.h>
#include <stdlib.h>

#include "backup/copier-int.h"
#include "common/bytes.h"

#define ZERO_QUICK_NS 2000000u		/* requests for zeroes grow while they take less … */
#define ZERO_SLOW_NS 20000000u		/* … and shrink when they take more */

/* -- buffers ----------------------------------------------------------------------------- */

/* There is one for each worker, so nobody waits. */
static void *buffer_get(struct copier *c)
{
	void *buf = NULL;

	if (c->n_buffers)
		return c->buffers[--c->n_buffers];
	return posix_memalign(&buf, 4096, c->chunk) ? NULL : buf;
}

static void buffer_put(struct copier *c, void *buf)
{
	c->buffers[c->n_buffers++] = buf;
}

void copier_buffers_free(struct copier *c)
{
	while (c->n_buffers)
		free(c->buffers[--c->n_buffers]);
}

/* -- the target, which may be another loop's ----------------------------------------------- */

struct put {
	struct node *target;
	const void *buf;		/* NULL: zeroes */
	uint64_t off, len;
	unsigned flags;
	bool beside;			/* by another thread than the loop's */
	int rc;
};

/* The kernel's workers write while the loop reads: two processors share the work.  With a
 * guest there the loop writes itself: its own share is what manners can measure.  Returns
 * the target's file, if it has one. */
static struct io_file *choose_writer(const struct node *target, bool beside)
{
	struct io_file *f = copier_storage(target);

	if (f)
		f->no_inline_write = beside;
	return f;
}

/* A short write into the page cache has ended before the loop would be asleep. */
static void look_for_end(const struct put *p, const struct io_file *f)
{
	if (f && !f->direct && p->beside && p->len <= COPIER_SHORT_WRITE)
		loop_expect_soon();
}

void copier_write_inline(void *arg)
{
	choose_writer(((struct copier *)arg)->o.target, false);
}

static void put_on_loop(void *arg)
{
	struct put *p = arg;
	struct io_file *f;

	gate_enter(&p->target->gate);
	f = choose_writer(p->target, p->beside);
	if (p->buf) {
		look_for_end(p, f);
		p->rc = node_write(p->target, p->buf, p->off, p->len, p->flags);
	} else {
		p->rc = node_zero(p->target, p->off, p->len, p->flags);
	}
	gate_leave(&p->target->gate);
}

static int put(struct copier *c, struct put p)
{
	struct copier_watch w = copier_watch();

	p.target = c->o.target;
	p.beside = loop_self() && !manners_needed(&c->manners, w.begun);
	if (p.target->loop)
		loop_call(p.target->loop, put_on_loop, &p);
	else
		put_on_loop(&p);
	if (p.buf)
		copier_took(c, &w, p.len, false);
	return p.rc;
}

static void flush_on_loop(void *arg)
{
	struct put *p = arg;

	gate_enter(&p->target->gate);
	p->rc = node_flush(p->target);
	gate_leave(&p->target->gate);
}

int copier_flush(struct copier *c)
{
	struct put p = { .target = c->o.target };

	if (p.target->loop)
		loop_call(p.target->loop, flush_on_loop, &p);
	else
		flush_on_loop(&p);
	return p.rc;
}

/* -- zeroes ---------------------------------------------------------------------------------- */

/* How long the next request for zeroes may be: it should not take long. */
static void judge_zero(struct copier *c, uint64_t len, uint64_t ns)
{
	if (ns > ZERO_SLOW_NS)
		c->zero_len = max_u64(c->zero_len / 2, COPIER_CHUNK_MAX);
	else if (ns < ZERO_QUICK_NS && len == c->zero_len)
		c->zero_len = min_u64(2 * c->zero_len, COPIER_ZERO_MAX);
}

/* Zeroes from OFF on, where they are not yet: *LEN bytes at most, of which it does some. */
static int put_zeroes(struct copier *c, uint64_t off, uint64_t *len)
{
	enum copier_kind kind;
	uint64_t start;
	int rc;

	if (c->o.target_is_zero)
		return 0;
	copier_target_kind(c, off, *len, &kind, len);
	if (kind != COPIER_DATA)
		return 0;
	*len = min_u64(*len, c->zero_len);
	start = loop_now();
	rc = put(c, (struct put){ .off = off, .len = *len,
				  .flags = NODE_MAY_UNMAP | (c->o.mark_zeroes ? NODE_MARK : 0u) });
	judge_zero(c, *len, loop_now() - start);
	return rc;
}

/* -- data ------------------------------------------------------------------------------------- */

static int get(struct copier *c, void *buf, uint64_t off, uint64_t len)
{
	struct copier_watch w = copier_watch();
	struct node *n = c->o.source;
	int rc;

	if (c->o.view) {
		rc = view_read(c->o.view, buf, off, len);	/* passes the gate itself */
	} else {
		gate_enter(&n->gate);
		rc = node_read(n, buf, off, len);
		gate_leave(&n->gate);
	}
	copier_took(c, &w, len, true);
	return rc;
}

/* How many bytes at the start of BUF are zero blocks, or blocks with data. */
static uint64_t block_run(const struct copier *c, const uint8_t *buf, uint64_t len, bool *zero)
{
	uint64_t n = 0;

	while (n < len) {
		uint64_t now = min_u64(c->block, len - n);
		bool z = bytes_are_zero(buf + n, now);

		if (n && z != *zero)
			break;
		*zero = z;
		n += now;
	}
	return n;
}

static int put_data(struct copier *c, const uint8_t *buf, uint64_t off, uint64_t len)
{
	unsigned flags = (c->o.compress ? NODE_COMPRESS : 0u) | (c->o.mark_zeroes ? NODE_MARK : 0u);
	int rc = 0;

	while (len && !rc) {
		bool zero = false;
		uint64_t now = block_run(c, buf, len, &zero);

		if (zero)
			rc = put_zeroes(c, off, &now);
		else
			rc = put(c, (struct put){ .buf = buf, .off = off, .len = now, .flags = flags });
		buf += now;
		off += now;
		len -= now;
	}
	return rc;
}

static int move_data(struct copier *c, uint64_t off, uint64_t len, bool *is_read)
{
	void *buf = buffer_get(c);
	int rc;

	*is_read = true;
	if (!buf)
		return -ENOMEM;
	rc = get(c, buf, off, len);
	if (!rc) {
		*is_read = false;
		rc = put_data(c, buf, off, len);
	}
	buffer_put(c, buf);
	return rc;
}

/* One piece from OFF on, *LEN bytes at most: how much it was.  *IS_READ: what failed. */
static int move_piece(struct copier *c, uint64_t off, uint64_t *len, bool *is_read)
{
	enum copier_kind kind;
	int rc;

	*is_read = true;
	rc = copier_source_kind(c, off, *len, &kind, len);
	if (rc || kind == COPIER_NOTHING)
		return rc;
	if (kind == COPIER_DATA)
		return move_data(c, off, *len = min_u64(*len, copier_piece(c)), is_read);
	*is_read = false;
	return put_zeroes(c, off, len);
}

int copier_move(struct copier *c, struct copier_task *t, struct copier_failure *f)
{
	uint64_t off = t->off, end = t->off + t->len, len;
	int rc;

	while (off < end) {
		bool is_read;

		if (is_aligned(off, bitmap_granularity(&c->left)) && copier_should_stop(c))
			break;
		len = end - off;
		rc = move_piece(c, off, &len, &is_read);
		if (rc) {
			*f = (struct copier_failure){ .rc = rc, .is_read = is_read, .off = off, .len = len };
			return rc;
		}
		off += len;
	}
	t->len = off - t->off;
	return 0;
}
