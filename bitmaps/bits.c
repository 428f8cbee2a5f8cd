/* SPDX-License-Identifier: BSD-3-Clause */
/* bits: runs of bits in an array of words (bits.h). */

#include "bitmaps/bits.h"

#include "common/checked.h"

#define ALL (~0ull)

static inline uint64_t popcount(uint64_t w)
{
	return (uint64_t)__builtin_popcountll(w);
}

static inline uint64_t set_in_word(uint64_t *w, uint64_t mask)
{
	uint64_t add = mask & ~*w;

	if (!add)
		return 0;
	*w |= add;
	return popcount(add);
}

static inline uint64_t clear_in_word(uint64_t *w, uint64_t mask)
{
	uint64_t gone = mask & *w;

	if (!gone)
		return 0;
	*w &= ~gone;
	return popcount(gone);
}

uint64_t bits_set(uint64_t *v, uint64_t first, uint64_t last)
{
	uint64_t i = first / 64, end = last / 64, n = 0;
	uint64_t mask = ALL << (first % 64);

	for (; i < end; i++, mask = ALL)
		n += set_in_word(&v[i], mask);
	return n + set_in_word(&v[end], mask & ALL >> (63 - last % 64));
}

uint64_t bits_clear(uint64_t *v, uint64_t first, uint64_t last)
{
	uint64_t i = first / 64, end = last / 64, n = 0;
	uint64_t mask = ALL << (first % 64);

	for (; i < end; i++, mask = ALL)
		n += clear_in_word(&v[i], mask);
	return n + clear_in_word(&v[end], mask & ALL >> (63 - last % 64));
}

/* The first word at or after I and before END that is not SAME; END when none.
 * Eight words are compared per branch: the scan runs at memory speed. */
static uint64_t skip_words(const uint64_t *v, uint64_t i, uint64_t end, uint64_t same)
{
	while (i + 8 <= end) {
		const uint64_t *w = v + i;

		if (((w[0] ^ same) | (w[1] ^ same) | (w[2] ^ same) | (w[3] ^ same) |
		     (w[4] ^ same) | (w[5] ^ same) | (w[6] ^ same) | (w[7] ^ same)) != 0)
			break;
		i += 8;
	}
	while (i < end && v[i] == same)
		i++;
	return i;
}

/* FLIP is 0 to look for set bits, ALL to look for clear ones. */
static inline uint64_t next(const uint64_t *v, uint64_t from, uint64_t end, uint64_t flip)
{
	uint64_t i = from / 64, words = DIV_ROUND_UP(end, 64), w;

	if (from >= end)
		return end;
	w = (v[i] ^ flip) & ALL << (from % 64);
	if (!w) {
		i = skip_words(v, i + 1, words, flip);
		if (i == words)
			return end;
		w = v[i] ^ flip;
	}
	return min_u64(i * 64 + (uint64_t)__builtin_ctzll(w), end);
}

uint64_t bits_next_set(const uint64_t *v, uint64_t from, uint64_t end)
{
	return next(v, from, end, 0);
}

uint64_t bits_next_clear(const uint64_t *v, uint64_t from, uint64_t end)
{
	return next(v, from, end, ALL);
}

uint64_t bits_count(const uint64_t *v, uint64_t n)
{
	uint64_t sum = 0;

	for (uint64_t i = skip_words(v, 0, n, 0); i < n; i = skip_words(v, i + 1, n, 0))
		sum += popcount(v[i]);
	return sum;
}

uint64_t bits_or(uint64_t *dst, const uint64_t *src, uint64_t n)
{
	uint64_t sum = 0;

	for (uint64_t i = skip_words(src, 0, n, 0); i < n; i = skip_words(src, i + 1, n, 0))
		sum += set_in_word(&dst[i], src[i]);
	return sum;
}
