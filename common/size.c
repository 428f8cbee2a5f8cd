/* SPDX-License-Identifier: BSD-3-Clause */
/* size: reads "1.5G" and writes "1.5 GiB".
 *
 * Sizes are computed exactly in integers: a fraction is kept as up to 18 decimal
 * digits, which with the largest unit fits 128 bits, and is cut, not rounded.
 */
#include "common/size.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Reads digits at *AT.  False when they pass 64 bits. */
static bool parse_whole(const char **at, uint64_t *out)
{
	uint64_t value = 0;

	for (; is_digit(**at); (*at)++)
		if (!checked_mul(value, 10, &value) ||
		    !checked_add(value, **at - '0', &value))
			return false;
	*out = value;
	return true;
}

/* Reads the digits behind a '.' as *NUM / *DEN; those past the 18th are dropped. */
static void parse_fraction(const char **at, uint64_t *num, uint64_t *den)
{
	*num = 0;
	*den = 1;
	for (int digits = 0; is_digit(**at); (*at)++, digits++) {
		if (digits >= 18)
			continue;
		*num = *num * 10 + (**at - '0');
		*den *= 10;
	}
}

/* The power of two that a suffix stands for; -1: none. */
static int suffix_shift(char c)
{
	static const char suffixes[] = "bkmgtpe";
	const char *found = strchr(suffixes, c | 0x20);

	return found ? 10 * (found - suffixes) : -1;
}

static int fail_syntax(struct error *err, const char *text)
{
	return error_set(err, -EINVAL,
			 "Invalid size '%s': use a number of bytes, or one with k, M, G, T, P or E",
			 text);
}

static int fail_range(struct error *err, const char *text)
{
	return error_set(err, -ERANGE, "Size '%s' is too large", text);
}

static int parse_hex(const char *text, uint64_t *out, struct error *err)
{
	size_t digits = strspn(text + 2, "0123456789abcdefABCDEF");
	unsigned long long value;

	if (digits == 0 || text[2 + digits])
		return fail_syntax(err, text);
	errno = 0;
	value = strtoull(text + 2, NULL, 16);
	if (errno)
		return fail_range(err, text);
	*out = value;
	return 0;
}

int size_parse(const char *text, uint64_t *out, struct error *err)
{
	uint64_t whole, num = 0, den = 1;
	const char *at = text;
	int shift = 0;

	if (text[0] == '0' && (text[1] | 0x20) == 'x')
		return parse_hex(text, out, err);
	if (!is_digit(*at))
		return fail_syntax(err, text);
	if (!parse_whole(&at, &whole))
		return fail_range(err, text);
	if (*at == '.') {
		at++;
		parse_fraction(&at, &num, &den);
	}
	if (*at)
		shift = suffix_shift(*at++);
	if (shift < 0 || (shift == 0 && num > 0) || *at)
		return fail_syntax(err, text);
	if (!checked_mul(whole, UINT64_C(1) << shift, &whole))
		return fail_range(err, text);
	/* Less than one unit: it cannot overflow what whole units left room for. */
	*out = whole + (uint64_t)(((unsigned __int128)num << shift) / den);
	return 0;
}

char *size_format(char *buf, size_t n, uint64_t size)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double value = size;
	int unit = 0;

	/* From 999.5 on, three digits would show an exponent. */
	for (; value >= 999.5; unit++)
		value /= 1024;
	snprintf(buf, n, "%.3g %s", value, units[unit]);
	return buf;
}
