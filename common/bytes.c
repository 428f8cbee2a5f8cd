/* SPDX-License-Identifier: BSD-3-Clause */
/* bytes: zero detection and UTF-8 validation. */
#include "common/bytes.h"

/* One SIMD register of any machine that we run on; GCC lowers it elsewhere. */
typedef uint64_t vec __attribute__((vector_size(16)));

static inline vec load(const unsigned char *p)
{
	vec v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* ORs 64 bytes; not zero iff one of them is not. */
static inline vec line_bits(const unsigned char *p)
{
	return (load(p) | load(p + 16)) | (load(p + 32) | load(p + 48));
}

static inline bool any(vec v)
{
	return (v[0] | v[1]) != 0;
}

bool bytes_are_zero(const void *buf, size_t n)
{
	const unsigned char *p = buf;

	/* Data nearly always shows in the first, middle or last byte. */
	if (n == 0)
		return true;
	if (p[0] | p[n / 2] | p[n - 1])
		return false;
	for (; n >= 256; p += 256, n -= 256)
		if (any((line_bits(p) | line_bits(p + 64)) |
			(line_bits(p + 128) | line_bits(p + 192))))
			return false;
	for (; n >= 64; p += 64, n -= 64)
		if (any(line_bits(p)))
			return false;
	for (; n > 0; p++, n--)
		if (*p)
			return false;
	return true;
}

size_t utf8_length(const void *buf, size_t n)
{
	const unsigned char *p = buf;
	uint32_t point, least;
	size_t len;

	if (n == 0)
		return 0;
	if (p[0] < 0x80)
		return 1;
	if (p[0] < 0xe0) {
		len = 2, least = 0x80, point = p[0] & 0x1f;
	} else if (p[0] < 0xf0) {
		len = 3, least = 0x800, point = p[0] & 0x0f;
	} else {
		len = 4, least = 0x10000, point = p[0] & 0x0f;
	}
	if (p[0] < 0xc0 || p[0] > 0xf7 || n < len)
		return 0;
	for (size_t i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		point = point << 6 | (p[i] & 0x3f);
	}
	bool surrogate = point >= 0xd800 && point <= 0xdfff;
	return point < least || surrogate || point > 0x10ffff ? 0 : len;
}

bool utf8_valid(const void *buf, size_t n)
{
	const unsigned char *p = buf;
	size_t len;

	for (; n > 0; p += len, n -= len) {
		len = utf8_length(p, n);
		if (len == 0)
			return false;
	}
	return true;
}
