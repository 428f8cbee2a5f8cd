// SPDX-License-Identifier: BSD-3-Clause
/* io-sim-store: the contents of a simulated file, and what a power loss leaves.
 *
 * A file is a hash of pages, each with its current and its durable bytes, and
 * the list of operations that are not durable, in the order in which they were
 * executed.  A sector on storage can only be what the page cache held at some
 * moment: the effect of all operations on it up to a certain one.  So every way
 * to become durable is one routine, sim_settle(): it asks for each operation
 * and sector whether that state was written out, finds each sector's last such
 * operation, and applies what is between the durable state and that.
 *
 * Invariants: every page that an operation with data touches exists; a sector's
 * durable bytes include all operations up to dur_seq and no later one; an
 * operation whose sequence is not above dur_seq has no effect on that sector.
 */
#include "common/io-sim-store.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static void *must(void *p)
{
	if (!p)
		abort();	/* tests only: out of memory */
	return p;
}

/* --- pages --- */

static void bytes_unref(struct sim_bytes **b)
{
	if (*b && --(*b)->refs == 0)
		free(*b);
	*b = NULL;
}

static struct sim_bytes *bytes_ref(struct sim_bytes *b)
{
	if (b)
		b->refs++;
	return b;
}

/* *B for writing: this holder's alone. */
static uint8_t *bytes_own(struct sim_bytes **b)
{
	struct sim_bytes *old = *b, *own;

	if (old && old->refs == 1)
		return old->b;
	own = must(calloc(1, sizeof(*own)));
	own->refs = 1;
	if (old)
		memcpy(own->b, old->b, SIM_PAGE);
	bytes_unref(b);
	*b = own;
	return own->b;
}

static struct sim_page **bucket_of(const struct sim_file *f, uint64_t index)
{
	return &f->bucket[(index * 0x9e3779b97f4a7c15) >> (64 - f->bucket_bits)];
}

static struct sim_page *page_find(const struct sim_file *f, uint64_t index)
{
	struct sim_page *p = *bucket_of(f, index);

	while (p && p->index != index)
		p = p->next;
	return p;
}

static void page_insert(struct sim_file *f, struct sim_page *p)
{
	struct sim_page **b = bucket_of(f, p->index);

	p->next = *b;
	*b = p;
}

static void pages_grow(struct sim_file *f)
{
	struct sim_page **old = f->bucket;
	size_t n = (size_t)1 << f->bucket_bits;

	f->bucket_bits += 2;
	f->bucket = must(calloc((size_t)1 << f->bucket_bits, sizeof(*f->bucket)));
	for (size_t i = 0; i < n; i++)
		for (struct sim_page *p = old[i], *next; p; p = next) {
			next = p->next;
			page_insert(f, p);
		}
	free(old);
}

static struct sim_page *page_get(struct sim_file *f, uint64_t index)
{
	struct sim_page *p = page_find(f, index);

	if (p)
		return p;
	if (f->n_pages > (uint64_t)2 << f->bucket_bits)
		pages_grow(f);
	p = must(calloc(1, sizeof(*p)));
	p->index = index;
	page_insert(f, p);
	f->n_pages++;
	return p;
}

#define for_each_page(f, p) \
	for (size_t i_ = 0; i_ < (size_t)1 << (f)->bucket_bits; i_++) \
		for (struct sim_page *p = (f)->bucket[i_]; p; p = p->next)

/* --- an operation's pieces, one per page --- */

struct piece {
	struct sim_page *page;
	unsigned start, len;		/* bytes within the page */
	const uint8_t *src;		/* NULL: zeroes */
};

typedef void piece_fn(const struct piece *pc, const struct sim_op *op, const void *arg);

static void piece_call(struct sim_page *p, const struct sim_op *op, piece_fn *fn, const void *arg)
{
	uint64_t base = p->index * SIM_PAGE, end = op->off + op->len;
	struct piece pc = { .page = p };

	if (base >= end || base + SIM_PAGE <= op->off)
		return;
	pc.start = op->off > base ? op->off - base : 0;
	pc.len = (end < base + SIM_PAGE ? end - base : SIM_PAGE) - pc.start;
	pc.src = op->data ? op->data + (base + pc.start - op->off) : NULL;
	fn(&pc, op, arg);
}

/* Pages that do not exist have never been written: zeroing skips them. */
static void each_piece(struct sim_file *f, const struct sim_op *op, piece_fn *fn, const void *arg)
{
	uint64_t first = op->off / SIM_PAGE, last;

	if (!op->len)
		return;
	last = (op->off + op->len - 1) / SIM_PAGE;
	if (last - first > f->n_pages) {
		for_each_page(f, p)
			piece_call(p, op, fn, arg);
		return;
	}
	for (uint64_t i = first; i <= last; i++) {
		struct sim_page *p = page_find(f, i);

		assert(p || !op->data);
		if (p)
			piece_call(p, op, fn, arg);
	}
}

static void put_bytes(struct sim_bytes **b, unsigned start, unsigned len, const uint8_t *src)
{
	if (!src && len == SIM_PAGE)
		bytes_unref(b);
	else if (src)
		memcpy(bytes_own(b) + start, src, len);
	else if (*b)
		memset(bytes_own(b) + start, 0, len);
}

static void piece_apply(const struct piece *pc, const struct sim_op *op, const void *arg)
{
	put_bytes(&pc->page->cur, pc->start, pc->len, pc->src);
}

/* --- files --- */

struct sim_file *sim_file_new(const char *path)
{
	struct sim_file *f = must(calloc(1, sizeof(*f)));

	f->path = must(strdup(path));
	f->bucket_bits = 4;
	f->bucket = must(calloc((size_t)1 << f->bucket_bits, sizeof(*f->bucket)));
	return f;
}

static struct sim_op *op_new(struct sim_file *f)
{
	if (f->n_ops == f->max_ops) {
		f->max_ops = f->max_ops ? f->max_ops * 2 : 64;
		f->op = must(realloc(f->op, f->max_ops * sizeof(*f->op)));
	}
	memset(&f->op[f->n_ops], 0, sizeof(*f->op));
	return &f->op[f->n_ops++];
}

static uint8_t *bytes_copy(const void *data, size_t len)
{
	uint8_t *copy = must(malloc(len + 1));

	return memcpy(copy, data, len);
}

struct sim_file *sim_file_clone(const struct sim_file *f)
{
	struct sim_file *c = sim_file_new(f->path);

	c->cur_size = f->cur_size;
	c->dur_size = f->dur_size;
	for_each_page(f, p) {
		struct sim_page *q = page_get(c, p->index);

		q->cur = bytes_ref(p->cur);
		q->dur = bytes_ref(p->dur);
		memcpy(q->dur_seq, p->dur_seq, sizeof(q->dur_seq));
	}
	for (size_t i = 0; i < f->n_ops; i++) {
		struct sim_op *op = op_new(c);

		*op = f->op[i];
		if (op->data)
			op->data = bytes_copy(op->data, op->len);
	}
	return c;
}

void sim_file_free(struct sim_file *f)
{
	for (size_t i = 0; i < (size_t)1 << f->bucket_bits; i++)
		for (struct sim_page *p = f->bucket[i], *next; p; p = next) {
			next = p->next;
			bytes_unref(&p->cur);
			bytes_unref(&p->dur);
			free(p);
		}
	for (size_t i = 0; i < f->n_ops; i++)
		free(f->op[i].data);
	free(f->op);
	free(f->bucket);
	free(f->path);
	free(f);
}

size_t sim_file_read(const struct sim_file *f, void *buf, size_t len, uint64_t off)
{
	uint8_t *out = buf;

	if (off >= f->cur_size)
		return 0;
	if (len > f->cur_size - off)
		len = f->cur_size - off;
	for (size_t done = 0, n; done < len; done += n) {
		unsigned start = (off + done) % SIM_PAGE;
		struct sim_page *p = page_find(f, (off + done) / SIM_PAGE);

		n = SIM_PAGE - start;
		if (n > len - done)
			n = len - done;
		if (p && p->cur)
			memcpy(out + done, p->cur->b + start, n);
		else
			memset(out + done, 0, n);
	}
	return len;
}

static bool page_is_hole(const struct sim_page *p)
{
	return !p || !p->cur;
}

/* The first page with bytes at or after INDEX; UINT64_MAX: none. */
static uint64_t next_data(const struct sim_file *f, uint64_t index)
{
	uint64_t best = UINT64_MAX;

	for (uint64_t i = index; i < index + 64; i++)
		if (!page_is_hole(page_find(f, i)))
			return i;
	for_each_page(f, p)
		if (!page_is_hole(p) && p->index >= index && p->index < best)
			best = p->index;
	return best;
}

uint64_t sim_file_run(const struct sim_file *f, uint64_t off, bool *hole)
{
	uint64_t index = off / SIM_PAGE, end;

	*hole = off >= f->cur_size || page_is_hole(page_find(f, index));
	if (off >= f->cur_size)
		return INT64_MAX;
	if (*hole) {
		index = next_data(f, index);
		return index == UINT64_MAX ? INT64_MAX : index * SIM_PAGE;
	}
	do
		end = ++index * SIM_PAGE;
	while (end < f->cur_size && !page_is_hole(page_find(f, index)));
	return end < f->cur_size ? end : f->cur_size;
}

/* --- changes --- */

static void op_resize(struct sim_file *f, struct sim_op *op, uint64_t size)
{
	op->resizes = true;
	op->size = size;
	f->cur_size = size;
}

void sim_file_write(struct sim_file *f, uint64_t seq, const void *data, uint64_t off, uint64_t len)
{
	struct sim_op *op;

	if (!len)
		return;
	op = op_new(f);
	op->seq = seq;
	op->off = off;
	op->len = len;
	op->data = bytes_copy(data, len);
	for (uint64_t i = off / SIM_PAGE; i <= (off + len - 1) / SIM_PAGE; i++)
		page_get(f, i);
	each_piece(f, op, piece_apply, NULL);
	if (off + len > f->cur_size)
		op_resize(f, op, off + len);
}

void sim_file_zero(struct sim_file *f, uint64_t seq, uint64_t off, uint64_t len, bool extend)
{
	struct sim_op *op = op_new(f);

	op->seq = seq;
	op->off = off;
	op->len = len;
	each_piece(f, op, piece_apply, NULL);
	if (extend && off + len > f->cur_size)
		op_resize(f, op, off + len);
}

void sim_file_truncate(struct sim_file *f, uint64_t seq, uint64_t size)
{
	struct sim_op *op = op_new(f);

	op->seq = seq;
	if (size < f->cur_size) {
		op->off = size;
		op->len = f->cur_size - size;
		each_piece(f, op, piece_apply, NULL);
	}
	op_resize(f, op, size);
}

/* --- becoming durable --- */

struct keep {
	sim_keep_fn *fn;
	const void *arg;
};

static void piece_choose(const struct piece *pc, const struct sim_op *op, const void *arg)
{
	const struct keep *k = arg;
	uint64_t base = pc->page->index * SIM_PAGE_SECTORS;
	unsigned last = (pc->start + pc->len - 1) / SIM_SECTOR;

	for (unsigned s = pc->start / SIM_SECTOR; s <= last; s++)
		if (k->fn(op, base + s, k->arg))
			pc->page->keep_seq[s] = op->seq;
}

static void piece_settle(const struct piece *pc, const struct sim_op *op, const void *arg)
{
	struct sim_page *p = pc->page;
	unsigned end = pc->start + pc->len, next;

	for (unsigned at = pc->start; at < end; at = next) {
		unsigned s = at / SIM_SECTOR;

		next = (s + 1) * SIM_SECTOR < end ? (s + 1) * SIM_SECTOR : end;
		if (op->seq > p->dur_seq[s] && op->seq <= p->keep_seq[s])
			put_bytes(&p->dur, at, next - at, pc->src ? pc->src + (at - pc->start) : NULL);
	}
}

void sim_settle(struct sim_file *f, sim_keep_fn *keep, const void *arg)
{
	struct keep k = { keep, arg };

	for (size_t i = 0; i < f->n_ops; i++) {
		each_piece(f, &f->op[i], piece_choose, &k);
		if (f->op[i].resizes && keep(&f->op[i], SIM_SECTOR_SIZE, arg))
			f->dur_size = f->op[i].size;
	}
	for (size_t i = 0; i < f->n_ops; i++)
		each_piece(f, &f->op[i], piece_settle, NULL);
	for_each_page(f, p)
		for (unsigned s = 0; s < SIM_PAGE_SECTORS; s++) {
			if (p->keep_seq[s] > p->dur_seq[s])
				p->dur_seq[s] = p->keep_seq[s];
			p->keep_seq[s] = 0;
		}
}

/* Forgets operations up to SEQ; ORPHANS too. */
static void ops_forget(struct sim_file *f, uint64_t seq, bool orphans)
{
	size_t n = 0;

	for (size_t i = 0; i < f->n_ops; i++)
		if (f->op[i].seq <= seq && (orphans || !f->op[i].orphan))
			free(f->op[i].data);
		else
			f->op[n++] = f->op[i];
	f->n_ops = n;
}

static bool keep_until(const struct sim_op *op, uint64_t sector, const void *arg)
{
	return !op->orphan && op->seq <= *(const uint64_t *)arg;
}

void sim_settle_fsync(struct sim_file *f, uint64_t seq)
{
	sim_settle(f, keep_until, &seq);
	ops_forget(f, seq, false);
}

static bool keep_only(const struct sim_op *op, uint64_t sector, const void *arg)
{
	return op->seq == *(const uint64_t *)arg;
}

/* The size that the range needs is durable too: whichever of the older sizes a
 * power loss picks, it does not cut this range off. */
void sim_settle_dsync(struct sim_file *f, uint64_t seq)
{
	struct sim_op *op = f->n_ops ? &f->op[f->n_ops - 1] : NULL;
	uint64_t end;

	if (!op || op->seq != seq)
		return;
	end = op->off + op->len;
	sim_settle(f, keep_only, &seq);
	free(op->data);
	f->n_ops--;
	if (f->dur_size < end)
		f->dur_size = end;
	for (size_t i = 0; i < f->n_ops; i++)
		if (f->op[i].resizes && f->op[i].size < end)
			f->op[i].size = end;
}

void sim_settle_loss(struct sim_file *f, sim_keep_fn *keep, const void *arg)
{
	struct sim_op cut = { 0 };

	sim_settle(f, keep, arg);
	ops_forget(f, UINT64_MAX, true);
	for_each_page(f, p) {
		bytes_unref(&p->cur);
		p->cur = p->dur;
		p->dur = NULL;
	}
	f->cur_size = f->dur_size;
	cut.off = f->cur_size;
	cut.len = INT64_MAX - cut.off;
	each_piece(f, &cut, piece_apply, NULL);
	for_each_page(f, p)
		p->dur = bytes_ref(p->cur);
}

void sim_orphan(struct sim_file *f, uint64_t seq)
{
	for (size_t i = 0; i < f->n_ops; i++)
		if (f->op[i].seq <= seq)
			f->op[i].orphan = true;
}
