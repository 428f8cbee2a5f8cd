/* SPDX-License-Identifier: BSD-3-Clause */
/* powerloss-model: what each block of a disk may hold after a crash.
 *
 * A block is 512 bytes and has one writer at a time, so its operations have an
 * order.  A write fills it with a tag that names the block and the write, so
 * that data in a wrong place or of a wrong time is told apart.  After a crash a
 * block may hold what the last operation left that is durable for certain
 * (acknowledged, and then covered by a flush or its own FUA), or any later one.
 * A discard leaves zeroes or what was there; so does an operation that failed.
 */
#ifndef MERINO_POWERLOSS_MODEL_H
#define MERINO_POWERLOSS_MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 512 };

/* What a block holds, or what an operation left in it. */
enum {
	VAL_ZERO = 0,
	VAL_BACKING = 1,		/* the backing image's data */
	VAL_GARBAGE = 2,		/* nothing that was ever written */
	VAL_DISCARD = 3,		/* an operation only: zero, or as before */
	VAL_FIRST = 16,			/* writes count from here */
};

struct block_op {
	uint32_t val;
	uint64_t acked;			/* the count of acknowledgements when it came; 0: it never did */
	bool durable;			/* by its own FUA */
};

struct block {
	struct block_op *op;		/* never empty: the first is durable */
	unsigned n, max;
};

struct model {
	struct block *block;
	uint32_t n_blocks;
	uint32_t next_val;
	uint64_t acks;			/* operations acknowledged */
	uint64_t flushed;		/* acknowledgements that a flush covers */
};

static inline void block_add(struct block *b, struct block_op op)
{
	if (b->n == b->max) {
		b->max = b->max ? b->max * 2 : 8;
		b->op = realloc(b->op, b->max * sizeof(*b->op));
		if (!b->op)
			abort();
	}
	b->op[b->n++] = op;
}

/* From now on block I holds VAL for certain. */
static inline void model_reset(struct model *m, uint32_t i, uint32_t val)
{
	m->block[i].n = 0;
	block_add(&m->block[i], (struct block_op){ .val = val, .durable = true });
}

static inline void model_init(struct model *m, uint32_t n_blocks)
{
	*m = (struct model){ .n_blocks = n_blocks, .next_val = VAL_FIRST };
	m->block = calloc(n_blocks, sizeof(*m->block));
	if (!m->block)
		abort();
}

static inline void model_free(struct model *m)
{
	for (uint32_t i = 0; i < m->n_blocks; i++)
		free(m->block[i].op);
	free(m->block);
}

/* An operation on blocks [FIRST, FIRST+N) is issued … */
static inline void model_issue(struct model *m, uint32_t first, uint32_t n, uint32_t val)
{
	for (uint32_t i = first; i < first + n; i++)
		block_add(&m->block[i], (struct block_op){ .val = val });
}

/* … and acknowledged. */
static inline void model_ack(struct model *m, uint32_t first, uint32_t n, bool fua)
{
	m->acks++;
	for (uint32_t i = first; i < first + n; i++) {
		struct block *b = &m->block[i];

		b->op[b->n - 1].acked = m->acks;
		b->op[b->n - 1].durable = fua;
	}
}

/* A flush that began at ACKS was acknowledged. */
static inline void model_flushed(struct model *m, uint64_t acks)
{
	if (acks > m->flushed)
		m->flushed = acks;
}

/* Whether operation I may have left VAL.  One that was not acknowledged, and a
 * discard, may have done nothing. */
static inline bool block_op_leaves(const struct block *b, unsigned i, uint32_t val)
{
	for (;; i--) {
		const struct block_op *op = &b->op[i];

		if (val == (op->val == VAL_DISCARD ? VAL_ZERO : op->val))
			return true;
		if (op->val != VAL_DISCARD && (op->acked || op->durable))
			return false;
	}
}

/* Whether block I may hold VAL: after a crash, or now that nothing crashed. */
static inline bool model_allows(const struct model *m, uint32_t i, uint32_t val, bool crashed)
{
	const struct block *b = &m->block[i];

	for (unsigned k = b->n - 1;; k--) {
		const struct block_op *op = &b->op[k];

		if (block_op_leaves(b, k, val))
			return true;
		if (k == 0 || !crashed || op->durable || (op->acked && op->acked <= m->flushed))
			return false;
	}
}

/* --- tags --- */

static inline void tag_fill(void *buf, uint32_t first, uint32_t n, uint32_t val)
{
	uint32_t *p = buf;

	for (uint32_t i = first; i < first + n; i++)
		for (uint32_t w = 0; w < BLOCK / 16; w++, p += 4) {
			p[0] = 0x4f4e524d;
			p[1] = val;
			p[2] = i;
			p[3] = w;
		}
}

/* What block I holds. */
static inline uint32_t tag_read(const void *buf, uint32_t i)
{
	static const char zero[BLOCK];
	uint32_t expect[BLOCK / 4], val;

	if (!memcmp(buf, zero, BLOCK))
		return VAL_ZERO;
	val = ((const uint32_t *)buf)[1];
	tag_fill(expect, i, 1, val);
	return memcmp(buf, expect, BLOCK) || (val != VAL_BACKING && val < VAL_FIRST) ? VAL_GARBAGE : val;
}

#endif
