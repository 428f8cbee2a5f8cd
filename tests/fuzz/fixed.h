/* SPDX-License-Identifier: BSD-3-Clause */
/* fixed: inputs that are the same in every run, for the gate.
 *
 * What libFuzzer tries next follows from what it has covered, and that is never the same
 * twice: threads, time and random numbers see to it, and the next change of any file that
 * is covered.  So with FUZZ_SEED in the environment nothing is learnt: the n-th input is
 * one of the seeds, changed by the target's own mutations (fuzz_change()) and by those
 * below, and follows from FUZZ_SEED, n and the seeds alone.  A slow machine gets less far
 * on the same way; FUZZ_INPUTS says where it ends for all.  Included by fuzz.h.
 */
#ifndef TESTS_FUZZ_FIXED_H
#define TESTS_FUZZ_FIXED_H

struct fixed_seed {
	uint8_t *data;
	size_t size;
};

static struct {
	bool asked, on, walking;	/* walking: all seeds were run */
	uint64_t number, inputs, state;
	uint64_t most;			/* inputs of the walk; what comes then is not run */
	struct fixed_seed *seeds;
	size_t n;
} fixed;

static inline uint64_t fixed_random(uint64_t below)
{
	fixed.state ^= fixed.state << 13;
	fixed.state ^= fixed.state >> 7;
	fixed.state ^= fixed.state << 17;
	return fixed.state % below;
}

static inline bool fixed_is_on(void)
{
	const char *number = getenv("FUZZ_SEED"), *most = getenv("FUZZ_INPUTS");

	if (!fixed.asked && number && *number) {
		fixed.on = true;
		fixed.number = strtoull(number, NULL, 10);
		fixed.most = most && *most ? strtoull(most, NULL, 10) : UINT64_MAX;
	}
	fixed.asked = true;
	return fixed.on;
}

/* -- the seeds: what libFuzzer runs before it changes anything ---------------------------------- */

static inline void fixed_keep(const uint8_t *data, size_t size)
{
	struct fixed_seed *s;

	if (!size)
		return;
	fixed.seeds = realloc(fixed.seeds, (fixed.n + 1) * sizeof(*fixed.seeds));
	fuzz_assert(fixed.seeds);
	s = &fixed.seeds[fixed.n++];
	*s = (struct fixed_seed){ malloc(size), size };
	fuzz_assert(s->data);
	memcpy(s->data, data, size);
}

static int fixed_compare(const void *a, const void *b)
{
	const struct fixed_seed *x = a, *y = b;

	return x->size != y->size ? (x->size < y->size ? -1 : 1) : memcmp(x->data, y->data, x->size);
}

/* In an order of their own, each once: files come as the folder has them, and libFuzzer runs one
 * again when it looks for a leak. */
static inline void fixed_sort(void)
{
	size_t n = 0;

	fuzz_assert(fixed.n);
	qsort(fixed.seeds, fixed.n, sizeof(*fixed.seeds), fixed_compare);
	for (size_t i = 0; i < fixed.n; i++) {
		if (n && !fixed_compare(&fixed.seeds[n - 1], &fixed.seeds[i]))
			free(fixed.seeds[i].data);
		else
			fixed.seeds[n++] = fixed.seeds[i];
	}
	fixed.n = n;
}

/* -- changes --------------------------------------------------------------------------------------- */

/* A number at which comparisons go wrong, or one near to what is there; either order of bytes. */
static inline void fixed_number(uint8_t *p, size_t size)
{
	static const uint64_t edges[] = { 0, 1, 2, 7, 8, 16, 63, 64, 127, 128, 255, 256, 511, 512, 4095, 4096, 32767,
		32768, 65535, 65536, INT32_MAX, 1ull << 31, UINT32_MAX, 1ull << 32, INT64_MAX, 1ull << 63, UINT64_MAX };
	size_t width = size >= 8 ? 1u << fixed_random(4) : size >= 4 ? 1u << fixed_random(3) : 1;
	size_t at = fixed_random(size - width + 1);
	bool big = fixed_random(2);
	uint64_t v = 0;

	for (size_t i = 0; i < width; i++)
		v |= (uint64_t)p[at + (big ? width - 1 - i : i)] << 8 * i;
	switch (fixed_random(3)) {
	case 0:
		v = edges[fixed_random(sizeof(edges) / sizeof(edges[0]))];
		break;
	case 1:
		v += fixed_random(33) - 16;
		break;
	default:
		v = 1ull << fixed_random(64);
	}
	for (size_t i = 0; i < width; i++)
		p[at + (big ? width - 1 - i : i)] = (uint8_t)(v >> 8 * i);
}

/* Some bytes of this input, or of another seed, or one byte again and again, put in or put over. */
static inline size_t fixed_part(uint8_t *p, size_t size, size_t max)
{
	const struct fixed_seed *other = &fixed.seeds[fixed_random(fixed.n)];
	const struct fixed_seed from = fixed_random(2) ? *other : (struct fixed_seed){ p, size };
	uint8_t part[512];
	size_t len, at = fixed_random(size + 1), start;

	len = 1 + fixed_random(1u << fixed_random(10));
	len = len < from.size ? len : from.size;
	start = fixed_random(from.size - len + 1);
	if (fixed_random(4))
		memcpy(part, from.data + start, len);
	else
		memset(part, (int)fixed_random(256), len);
	if (fixed_random(2)) {
		if (len > max - size)
			return size;
		memmove(p + at + len, p + at, size - at);
		memcpy(p + at, part, len);
		return size + len;
	}
	len = len < size - at ? len : size - at;
	memcpy(p + at, part, len);
	return size;
}

static inline size_t fixed_cut(uint8_t *p, size_t size)
{
	size_t len = 1 + fixed_random(1u << fixed_random(8)), at = fixed_random(size);

	if (len >= size)
		return size;
	at = at < size - len ? at : size - len;
	memmove(p + at, p + at + len, size - at - len);
	return size - len;
}

/* For targets, instead of LLVMFuzzerMutate(). */
static inline size_t fuzz_mutate(uint8_t *data, size_t size, size_t max)
{
	if (!fixed_is_on())
		return LLVMFuzzerMutate(data, size, max);
	if (!size)
		return fixed_part(data, size, max);
	switch (fixed_random(8)) {
	case 0:
		data[fixed_random(size)] ^= 1u << fixed_random(8);
		return size;
	case 1:
		data[fixed_random(size)] = (uint8_t)fixed_random(256);
		return size;
	case 2: case 3: case 4:
		fixed_number(data, size);
		return size;
	case 5:
		return fixed_cut(data, size);
	default:
		return fixed_part(data, size, max);
	}
}

/* -- what libFuzzer calls --------------------------------------------------------------------------- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int rc;

	if (fixed_is_on() && !fixed.walking)
		fixed_keep(data, size);
	if (fixed.walking && fixed.inputs > fixed.most)
		return -1;
	rc = fuzz_input(data, size);
	return fixed.walking ? -1 : rc;		/* -1: of no interest */
}

static inline size_t fixed_change(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	return fuzz_change ? fuzz_change(data, size, max, seed) : fuzz_mutate(data, size, max);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	const struct fixed_seed *s;

	if (!fixed_is_on())
		return fixed_change(data, size, max, seed);
	if (!fixed.walking)
		fixed_sort();
	fixed.walking = true;
	fixed.state = (fixed.number + 1) * 0x9e3779b97f4a7c15 ^ ++fixed.inputs * 0xd1342543de82ef95;
	for (unsigned i = 0; i < 8; i++)	/* numbers beside each other shall not look alike */
		fixed_random(1);
	s = &fixed.seeds[fixed_random(fixed.n)];
	size = s->size < max ? s->size : max;
	memcpy(data, s->data, size);
	for (unsigned n = 1 + (unsigned)fixed_random(1u << fixed_random(4)); n; n--)
		size = fixed_change(data, size, max, (unsigned)fixed_random(UINT32_MAX));
	return size ? size : 1;
}

#endif
