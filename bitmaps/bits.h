/* SPDX-License-Identifier: BSD-3-Clause */
/* bits: runs of bits in an array of words, a word at a time.
 *
 * Bit i is bit i % 64 of word i / 64.  Bounds are the caller's business.  A word
 * that would not change is not written: memory that nobody marked stays untouched.
 */
#ifndef MERINO_BITS_H
#define MERINO_BITS_H

#include <stdbool.h>
#include <stdint.h>

/* FIRST <= LAST, both inclusive.  Return how many bits changed. */
uint64_t bits_set(uint64_t *v, uint64_t first, uint64_t last);
uint64_t bits_clear(uint64_t *v, uint64_t first, uint64_t last);

/* The first set (clear) bit in [FROM, END), or END. */
uint64_t bits_next_set(const uint64_t *v, uint64_t from, uint64_t end);
uint64_t bits_next_clear(const uint64_t *v, uint64_t from, uint64_t end);

/* How many of the first N words' bits are set. */
uint64_t bits_count(const uint64_t *v, uint64_t n);

/* dst |= src over N words; returns how many bits that set. */
uint64_t bits_or(uint64_t *dst, const uint64_t *src, uint64_t n);

static inline bool bits_test(const uint64_t *v, uint64_t i)
{
	return v[i / 64] >> (i % 64) & 1;
}

#endif
