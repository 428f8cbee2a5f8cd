/* SPDX-License-Identifier: BSD-3-Clause */
/* checked: arithmetic on lengths and offsets that somebody else chose.
 *
 * A number from a guest, a network, a disk or a user is added, multiplied and
 * rounded only here.  The checked_ functions return false, and leave *OUT
 * alone, where the exact result does not fit; the others cannot overflow.
 * Alignments are ours, so a bad one is an assertion.
 */
#ifndef MERINO_CHECKED_H
#define MERINO_CHECKED_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#define CHECKED __attribute__((warn_unused_result)) static inline

/* Rounds N / D up; constant when its operands are.  D is evaluated twice. */
#define DIV_ROUND_UP(n, d) ((n) / (d) + ((n) % (d) != 0))

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline bool is_pow2(uint64_t n)
{
	return n != 0 && (n & (n - 1)) == 0;
}

CHECKED bool checked_add(uint64_t a, uint64_t b, uint64_t *out)
{
	uint64_t sum;

	if (__builtin_add_overflow(a, b, &sum))
		return false;
	*out = sum;
	return true;
}

CHECKED bool checked_sub(uint64_t a, uint64_t b, uint64_t *out)
{
	if (b > a)
		return false;
	*out = a - b;
	return true;
}

CHECKED bool checked_mul(uint64_t a, uint64_t b, uint64_t *out)
{
	uint64_t product;

	if (__builtin_mul_overflow(a, b, &product))
		return false;
	*out = product;
	return true;
}

/* True iff [OFF, OFF + LEN) lies in [0, SIZE).  An empty range at SIZE does. */
CHECKED bool checked_range(uint64_t off, uint64_t len, uint64_t size)
{
	return off <= size && len <= size - off;
}

/* True iff [A, A + ALEN) and [B, B + BLEN) share a byte; both ranges are known
 * not to wrap.  An empty range shares nothing. */
static inline bool ranges_overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
	return a < b ? b - a < alen && blen != 0 : a - b < blen && alen != 0;
}

/* ALIGN is a power of two in all of these. */
static inline bool is_aligned(uint64_t n, uint64_t align)
{
	assert(is_pow2(align));
	return (n & (align - 1)) == 0;
}

static inline uint64_t align_down(uint64_t n, uint64_t align)
{
	assert(is_pow2(align));
	return n & ~(align - 1);
}

/* Unchecked: for numbers that were bounded before (an offset inside an image). */
static inline uint64_t align_up(uint64_t n, uint64_t align)
{
	assert(is_pow2(align) && n <= UINT64_MAX - (align - 1));
	return (n + align - 1) & ~(align - 1);
}

CHECKED bool checked_align_up(uint64_t n, uint64_t align, uint64_t *out)
{
	uint64_t sum;

	assert(is_pow2(align));
	if (!checked_add(n, align - 1, &sum))
		return false;
	*out = align_down(sum, align);
	return true;
}

#undef CHECKED
#endif
