/* SPDX-License-Identifier: BSD-3-Clause */
/* json: JSON from strangers into json-c objects; QMP's framing of a byte stream.
 *
 * A stream is read by value, not by line: values may come in any fragments and
 * back to back.  The reader is strict (RFC 8259) apart from one extension that
 * QEMU's clients use: strings in single quotes, and \' in strings.  Refused are
 * duplicate keys, NaN and Infinity, integers outside INT64_MIN..UINT64_MAX,
 * U+0000, lone surrogates, bad UTF-8, and what is past the limits.  Error texts
 * are QEMU's ("JSON parse error, ...").  null is a NULL json_object, as
 * everywhere in json-c.
 */
#ifndef MERINO_JSON_H
#define MERINO_JSON_H

#include <stddef.h>
#include <json-c/json.h>

#include "common/error.h"

/* What one value may cost.  A field that is 0 takes its default. */
struct json_limits {
	size_t bytes;			/* of text; default 1 MiB */
	unsigned depth;			/* nested objects and arrays; default and at most 64 */
	unsigned tokens;		/* values and keys, nested ones included; default 65536 */
};

/* LIMITS, or all zero for NULL, with the defaults filled in. */
struct json_limits json_limits_fill(const struct json_limits *limits);

struct json_stream;

/* LIMITS may be NULL: all defaults.  NULL when out of memory. */
struct json_stream *json_stream_new(const struct json_limits *limits);
void json_stream_free(struct json_stream *s);

/* Hands over N received bytes, which are copied.  Take everything out with
 * json_stream_next before feeding again: then the stream holds at most one
 * value's limit plus N.  0 or -ENOMEM (the bytes were not taken). */
int json_stream_feed(struct json_stream *s, const char *bytes, size_t n);

/* Returns 1 with the next value in *OUT (the caller owns the reference; NULL for
 * null), 0 when more bytes are needed, or -errno for a broken value, with text for
 * the peer in ERR.  After an error the stream goes on behind what was broken: call
 * again.  As QMP's specification has it, a control character other than tab, CR and
 * LF, or a byte 0xFF, drops what was begun and is an error itself; a line break
 * inside a string does too. */
int json_stream_next(struct json_stream *s, struct json_object **out, struct error *err);

/* Reads TEXT, which is one value with space around it at most, under the default
 * limits.  NULL with ERR set; a lone null is refused. */
struct json_object *json_parse_text(const char *text, struct error *err);

/* The same for N bytes of TEXT, which need no terminator and are overwritten.  *OUT is
 * NULL after an error, and for null. */
int json_parse_in_place(char *text, size_t n, const struct json_limits *limits,
			struct json_object **out, struct error *err);

/* Reads a file's TEXT of N bytes, which is one value by RFC 8259, without our
 * extensions.  *LINE is where reading ended, counted from 1. */
int json_parse_document(const char *text, size_t n, const struct json_limits *limits,
			struct json_object **out, unsigned *line, struct error *err);

/* The text of O on one line.  It belongs to O and lasts until O is changed, written
 * again or freed.  NULL when out of memory. */
const char *json_write(struct json_object *o);

#endif
