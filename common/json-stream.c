/* SPDX-License-Identifier: BSD-3-Clause */
/* json-stream: finds where each value of a byte stream ends.
 *
 * It looks at brackets and quotes only, and holds one unfinished value at most.
 * All that JSON forbids inside a balanced value is the parser's to refuse, so an
 * error there costs exactly that value.  Past the limit on bytes or depth it
 * reports once and swallows the rest, without storing it, until the brackets
 * balance.  Between values, what starts no value is reported once and skipped to
 * the next line break, reset or '{', so that garbage is not answered per word.
 */
#include "common/json.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"

#define STREAM_KEEP 65536		/* an empty stream gives back a larger buffer */

enum mode {
	BETWEEN,			/* no value is begun */
	NESTED,				/* inside brackets, outside strings */
	STRING,
	ESCAPE,				/* behind a backslash in a string */
	ATOM,				/* a number or a word outside brackets */
	SKIP,				/* behind garbage: nothing is stored */
};

struct json_stream {
	struct json_limits limits;
	enum mode mode;
	char quote;			/* STRING, ESCAPE: what ends the string */
	unsigned depth;			/* open brackets; saturates, see scan_structure */
	bool swallow;			/* the value passed a limit and was reported */
	char *buf;
	size_t start;			/* in buf: where the value begun starts */
	size_t pos;			/* the next byte to look at */
	size_t len, size;		/* bytes filled, allocated */
};

struct json_stream *json_stream_new(const struct json_limits *limits)
{
	struct json_stream *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->limits = json_limits_fill(limits);
	return s;
}

void json_stream_free(struct json_stream *s)
{
	if (!s)
		return;
	free(s->buf);
	free(s);
}

/* Moves the unfinished value to the front of the buffer. */
static void compact(struct json_stream *s)
{
	if (s->start == 0)
		return;
	memmove(s->buf, s->buf + s->start, s->len - s->start);
	s->len -= s->start;
	s->pos -= s->start;
	s->start = 0;
}

int json_stream_feed(struct json_stream *s, const char *bytes, size_t n)
{
	size_t size = s->size;
	char *buf;

	if (n == 0)
		return 0;
	compact(s);
	if (n > size - s->len) {
		size = max_u64(s->len + n, size * 2);
		buf = realloc(s->buf, size);
		if (!buf)
			return -ENOMEM;
		s->buf = buf;
		s->size = size;
	}
	memcpy(s->buf + s->len, bytes, n);
	s->len += n;
	return 0;
}

/* Nothing is begun; the next value starts at the next byte. */
static void restart(struct json_stream *s, enum mode mode)
{
	s->mode = mode;
	s->depth = 0;
	s->swallow = false;
	s->start = s->pos;
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_reset(unsigned char c)
{
	return c == 0xff || (c < 0x20 && !is_space(c));
}

/* One byte outside strings; true when it ends the value, which includes it. */
static bool scan_structure(struct json_stream *s, char c)
{
	switch (c) {
	case '"':
	case '\'':
		s->quote = c;
		s->mode = STRING;
		return false;
	case '{':
	case '[':
		s->mode = NESTED;
		/* Four billion brackets balance wrongly, in a value refused long ago. */
		s->depth += s->depth < UINT32_MAX;
		return false;
	case '}':
	case ']':
		if (s->depth > 0)
			s->depth--;
		return s->depth == 0;
	case ',':
	case ':':
		return s->depth == 0;
	}
	if (s->mode == BETWEEN)
		s->mode = ATOM;
	return false;
}

/* One byte of a string; true when it ends a value that is a string. */
static bool scan_string(struct json_stream *s, char c)
{
	if (s->mode == ESCAPE) {
		s->mode = STRING;
		return false;
	}
	if (c == '\\')
		s->mode = ESCAPE;
	if (c != s->quote)
		return false;
	s->mode = NESTED;
	return s->depth == 0;
}

/* Bytes that stand alone where a value should begin, or end an atom. */
static bool ends_atom(char c)
{
	return is_space(c) || (c && strchr("{}[]\"',:", c));
}

/* The value [start, pos) is whole: parse it, and begin anew behind it. */
static int finish(struct json_stream *s, struct json_object **out, struct error *err)
{
	bool atom = s->depth == 0 && s->mode != NESTED, swallowed = s->swallow;
	size_t start = s->start;
	int rc;

	restart(s, BETWEEN);
	if (swallowed)
		return 0;
	rc = json_parse_in_place(s->buf + start, s->pos - start, &s->limits, out, err);
	if (rc < 0 && atom)
		s->mode = SKIP;
	return rc < 0 ? rc : 1;
}

/* Reports a limit that the value begun has passed; it is swallowed from here on. */
static int check_limits(struct json_stream *s, struct error *err)
{
	if (s->swallow) {
		s->start = s->pos;
		return 0;
	}
	if (s->depth > s->limits.depth) {
		s->swallow = true;
		return error_set(err, -E2BIG, "JSON nesting depth limit exceeded");
	}
	if (s->pos - s->start > s->limits.bytes) {
		s->swallow = true;
		return error_set(err, -E2BIG, "JSON token size limit exceeded");
	}
	return 0;
}

/* One byte between values; true when it belongs to none and was dropped. */
static bool drop_between(struct json_stream *s, char c)
{
	if (s->mode == SKIP && (c == '{' || c == '\n' || c == '\r'))
		s->mode = BETWEEN;
	if (s->mode != SKIP && (s->mode != BETWEEN || !is_space(c)))
		return false;
	s->pos++;
	restart(s, s->mode);
	return true;
}

/* Looks at one byte; results as json_stream_next. */
static int scan(struct json_stream *s, struct json_object **out, struct error *err)
{
	unsigned char c = s->buf[s->pos];
	bool in_string = s->mode == STRING || s->mode == ESCAPE, whole;

	if (is_reset(c) || (in_string && (c == '\n' || c == '\r'))) {
		s->pos++;
		restart(s, BETWEEN);
		return error_set(err, -EINVAL, "JSON parse error, stray '\\x%02x'", c);
	}
	if (drop_between(s, c))
		return 0;
	if (s->mode == ATOM && ends_atom(c))
		return finish(s, out, err);
	s->pos++;
	if (s->mode == ATOM)
		return check_limits(s, err);
	whole = in_string ? scan_string(s, c) : scan_structure(s, c);
	return whole ? finish(s, out, err) : check_limits(s, err);
}

int json_stream_next(struct json_stream *s, struct json_object **out, struct error *err)
{
	int rc;

	*out = NULL;
	while (s->pos < s->len) {
		rc = scan(s, out, err);
		if (rc != 0)
			return rc;
	}
	compact(s);
	if (s->len == 0 && s->size > STREAM_KEEP) {
		free(s->buf);
		s->buf = NULL;
		s->size = 0;
	}
	return 0;
}
