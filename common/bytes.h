/* SPDX-License-Identifier: BSD-3-Clause */
/* bytes: what is read from and written to wires and disks byte by byte.
 *
 * Big-endian loads and stores need no alignment; the compiler makes each one
 * movbe or mov and bswap.  The UTF-8 check is the one that JSON, errors and
 * logs share.
 */
#ifndef MERINO_BYTES_H
#define MERINO_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t get_be16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return be16toh(v);
}

static inline uint32_t get_be32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static inline uint64_t get_be64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static inline void put_be16(void *p, uint16_t v)
{
	v = htobe16(v);
	memcpy(p, &v, sizeof(v));
}

static inline void put_be32(void *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, sizeof(v));
}

static inline void put_be64(void *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, sizeof(v));
}

/* True iff all N bytes at P are zero (N = 0: true).  Stops early at data, and
 * runs at memory bandwidth over zeroes. */
bool bytes_are_zero(const void *p, size_t n);

/* Length (1 to 4) of the well-formed UTF-8 sequence that starts at P within N
 * bytes; 0 where there is none: N is 0, a stray or missing continuation, an
 * overlong form, a surrogate, or past U+10FFFF.  A NUL byte has length 1. */
size_t utf8_length(const void *p, size_t n);

/* True iff the N bytes at P are well-formed UTF-8. */
bool utf8_valid(const void *p, size_t n);

#endif
