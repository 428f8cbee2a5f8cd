/* SPDX-License-Identifier: BSD-3-Clause */
/* fuzz: what the fuzz targets share.
 *
 * A target has fuzz_input(), and fuzz_change() when it knows better than to change bytes.
 * libFuzzer calls them through fixed.h.
 */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fuzz_input(const uint8_t *data, size_t size);	/* 0; -1: not worth keeping */
__attribute__((weak)) size_t fuzz_change(uint8_t *data, size_t size, size_t max, unsigned seed);

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

/* Seconds for what takes none: a machine may stand still for a while.  libFuzzer waits longer. */
#define FUZZ_PATIENCE 90

/* A promise that was broken; the sanitizers find the rest. */
#define fuzz_assert(x) do { \
		if (!(x)) { \
			fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #x); \
			abort(); \
		} \
	} while (0)

/* DATA as a string of its own. */
static inline char *fuzz_text(const uint8_t *data, size_t size)
{
	char *s = malloc(size + 1);

	fuzz_assert(s);
	memcpy(s, data, size);
	s[size] = 0;
	return s;
}

/* Takes numbers off the front of the input; zeroes when it is used up. */
struct fuzz_bytes {
	const uint8_t *at;
	size_t left;
};

static inline uint64_t fuzz_take(struct fuzz_bytes *b, unsigned bytes)
{
	uint64_t v = 0;

	for (; bytes && b->left; bytes--, b->left--)
		v = v << 8 | *b->at++;
	return v;
}

#include "tests/fuzz/fixed.h"

#endif
