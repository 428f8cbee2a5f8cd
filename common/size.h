/* SPDX-License-Identifier: BSD-3-Clause */
/* size: sizes as people type and read them, the way qemu-img does. */
#ifndef MERINO_SIZE_H
#define MERINO_SIZE_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/* Long enough for every size_format. */
#define SIZE_TEXT_MAX 16

/* Reads a number of bytes: decimal digits, optionally a fraction, optionally one
 * suffix out of b k M G T P E (either case, powers of 1024): "512", "64k",
 * "1.5G"; or hexadecimal "0x1000" without a suffix.  A fraction of a byte is cut
 * off; a fraction needs a suffix above b.  Signs, spaces, exponents and trailing
 * text are refused with -EINVAL, what passes 2^64 - 1 with -ERANGE; *OUT is then
 * untouched. */
int size_parse(const char *text, uint64_t *out, struct error *err);

/* Writes SIZE with three significant digits and a binary unit, "412 MiB"; returns
 * BUF. */
char *size_format(char *buf, size_t n, uint64_t size);

#endif
