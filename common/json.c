/* SPDX-License-Identifier: BSD-3-Clause */
/* json: a strict parser of one value.
 *
 * It recurses once per level, 64 at most, and trusts nothing in the text.  Strings
 * are decoded in place (no escape is shorter than what it stands for), so the text
 * it is given is ours and is destroyed; keys and values are copied by json-c.
 * Nothing of a refused value survives.  Error texts quote what was read as ASCII.
 */
#include "common/json.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"

#define JSON_BYTES_MAX (1024 * 1024)
#define JSON_DEPTH_MAX 64
#define JSON_TOKENS_MAX 65536
#define JSON_NUMBER_MAX 64		/* characters; the longest exact double has 24 */

struct parser {
	char *at;			/* next byte; text before it may be overwritten */
	char *end;
	unsigned depth;			/* levels that may still be opened */
	unsigned tokens;		/* values and keys that may still come */
	bool strict;			/* no single quotes */
	struct error *err;
};

static int parse_value(struct parser *p, struct json_object **out);

static int fail(struct parser *p, const char *what)
{
	return error_set(p->err, -EINVAL, "JSON parse error, %s", what);
}

static int fail_memory(struct parser *p)
{
	return error_set(p->err, -ENOMEM, "JSON parse error, out of memory");
}

static int fail_stray(struct parser *p, unsigned char c)
{
	if (c > 0x20 && c < 0x7f)
		return error_set(p->err, -EINVAL, "JSON parse error, stray '%c'", c);
	return error_set(p->err, -EINVAL, "JSON parse error, stray '\\x%02x'", c);
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_word(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* The next byte that is no space, or NUL at the end (a NUL in the text is refused
 * wherever one is looked at). */
static char peek(struct parser *p)
{
	while (p->at < p->end && is_space(*p->at))
		p->at++;
	return p->at < p->end ? *p->at : '\0';
}

/* Consumes C and returns true if it comes next. */
static bool take(struct parser *p, char c)
{
	if (peek(p) != c)
		return false;
	p->at++;
	return true;
}

static int take_token(struct parser *p)
{
	if (p->tokens == 0)
		return error_set(p->err, -E2BIG, "JSON token count limit exceeded");
	p->tokens--;
	return 0;
}

static int open_level(struct parser *p)
{
	if (p->depth == 0)
		return error_set(p->err, -E2BIG, "JSON nesting depth limit exceeded");
	p->depth--;
	p->at++;
	return 0;
}

/* Four hex digits at P->at; -1 if they are not there. */
static int32_t hex4(struct parser *p)
{
	int32_t value = 0;

	if (p->end - p->at < 4)
		return -1;
	for (int i = 0; i < 4; i++) {
		char c = *p->at++;

		if (is_digit(c))
			value = value << 4 | (c - '0');
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			value = value << 4 | ((c | 0x20) - 'a' + 10);
		else
			return -1;
	}
	return value;
}

static char *put_utf8(char *to, uint32_t point)
{
	if (point < 0x80) {
		*to++ = point;
	} else if (point < 0x800) {
		*to++ = 0xc0 | point >> 6;
		*to++ = 0x80 | (point & 0x3f);
	} else if (point < 0x10000) {
		*to++ = 0xe0 | point >> 12;
		*to++ = 0x80 | (point >> 6 & 0x3f);
		*to++ = 0x80 | (point & 0x3f);
	} else {
		*to++ = 0xf0 | point >> 18;
		*to++ = 0x80 | (point >> 12 & 0x3f);
		*to++ = 0x80 | (point >> 6 & 0x3f);
		*to++ = 0x80 | (point & 0x3f);
	}
	return to;
}

/* \uXXXX, or a surrogate pair of them; P->at is behind the first u. */
static int parse_unicode(struct parser *p, char **to)
{
	int32_t point = hex4(p), low;

	if (point < 0)
		return fail(p, "invalid hex escape in string");
	if (point >= 0xd800 && point < 0xdc00 && p->end - p->at >= 2 &&
	    p->at[0] == '\\' && p->at[1] == 'u') {
		p->at += 2;
		low = hex4(p);
		if (low >= 0xdc00 && low < 0xe000)
			point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
	}
	if (point == 0 || (point >= 0xd800 && point < 0xe000))
		return error_set(p->err, -EINVAL,
				 "JSON parse error, \\u%04x is not a valid Unicode character",
				 (unsigned)point);
	*to = put_utf8(*to, point);
	return 0;
}

static int parse_escape(struct parser *p, char **to)
{
	static const char from[] = "\"'\\/bfnrt", into[] = "\"'\\/\b\f\n\r\t";
	const char *found;
	char c;

	if (p->at == p->end)
		return fail(p, "premature EOI");
	c = *p->at++;
	if (c == 'u')
		return parse_unicode(p, to);
	found = c ? strchr(from, c) : NULL;
	if (!found)
		return fail(p, "invalid escape sequence in string");
	*(*to)++ = into[found - from];
	return 0;
}

/* Decodes the string at P->at in place; *OUT is terminated, *LEN its length. */
static int parse_string(struct parser *p, char **out, size_t *len)
{
	char quote = *p->at++, *to = p->at;
	size_t n;
	int rc;

	*out = to;
	while (p->at < p->end && *p->at != quote) {
		if ((unsigned char)*p->at < 0x20)
			return fail(p, "control character in string");
		if (*p->at == '\\') {
			p->at++;
			rc = parse_escape(p, &to);
			if (rc < 0)
				return rc;
			continue;
		}
		n = utf8_length(p->at, p->end - p->at);
		if (n == 0)
			return fail(p, "invalid UTF-8 sequence in string");
		memmove(to, p->at, n);
		to += n;
		p->at += n;
	}
	if (p->at == p->end)
		return fail(p, "premature EOI");
	p->at++;
	*to = '\0';
	*len = to - *out;
	return 0;
}

static int parse_string_value(struct parser *p, struct json_object **out)
{
	char *text;
	size_t len;
	int rc = parse_string(p, &text, &len);

	if (rc < 0)
		return rc;
	*out = json_object_new_string_len(text, len);
	return *out ? 0 : fail_memory(p);
}

static char *skip_digits(char *at, char *end)
{
	while (at < end && is_digit(*at))
		at++;
	return at;
}

/* Finds the end of the number at P->at in JSON's grammar; NULL where it breaks it.
 * *WHOLE: there is no fraction and no exponent. */
static char *number_end(struct parser *p, bool *whole)
{
	char *at = p->at, *digits;

	at += *at == '-';
	digits = at;
	at = skip_digits(at, p->end);
	if (at == digits || (*digits == '0' && at - digits > 1))
		return NULL;
	*whole = true;
	if (at < p->end && *at == '.') {
		*whole = false;
		digits = ++at;
		at = skip_digits(at, p->end);
		if (at == digits)
			return NULL;
	}
	if (at < p->end && (*at | 0x20) == 'e') {
		*whole = false;
		at++;
		if (at < p->end && (*at == '+' || *at == '-'))
			at++;
		digits = at;
		at = skip_digits(at, p->end);
		if (at == digits)
			return NULL;
	}
	return at < p->end && (is_word(*at) || *at == '.') ? NULL : at;
}

/* An integer keeps all of its 64 bits; NULL when it has more. */
static struct json_object *make_integer(const char *text)
{
	errno = 0;
	if (*text == '-') {
		long long value = strtoll(text, NULL, 10);

		return errno ? NULL : json_object_new_int64(value);
	}
	unsigned long long value = strtoull(text, NULL, 10);
	if (errno)
		return NULL;
	return value <= INT64_MAX ? json_object_new_int64(value) : json_object_new_uint64(value);
}

/* A double keeps its text too, for an id that is echoed.  Under a locale with
 * another decimal point strtod stops early, and the number is refused. */
static struct json_object *make_double(const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (*end || !isfinite(value)) {
		errno = ERANGE;
		return NULL;
	}
	errno = 0;
	return json_object_new_double_s(value, text);
}

static int parse_number(struct parser *p, struct json_object **out)
{
	char text[JSON_NUMBER_MAX], *end;
	bool whole;

	end = number_end(p, &whole);
	if (!end)
		return fail(p, "malformed number");
	if (end - p->at >= JSON_NUMBER_MAX)
		return fail(p, "number too long");
	memcpy(text, p->at, end - p->at);
	text[end - p->at] = '\0';
	*out = whole ? make_integer(text) : make_double(text);
	if (!*out && errno == ERANGE)
		return error_set(p->err, -ERANGE, "JSON parse error, number out of range: %s",
				 text);
	if (!*out)
		return fail_memory(p);
	p->at = end;
	return 0;
}

static int parse_keyword(struct parser *p, struct json_object **out)
{
	char *word = p->at;
	size_t len;

	while (p->at < p->end && is_word(*p->at))
		p->at++;
	len = p->at - word;
	if (len == 4 && memcmp(word, "null", len) == 0)
		return 0;
	bool yes = len == 4 && memcmp(word, "true", len) == 0;
	if (!yes && !(len == 5 && memcmp(word, "false", len) == 0))
		return error_set(p->err, -EINVAL, "JSON parse error, invalid keyword '%.*s'",
				 (int)min_u64(len, 64), word);
	*out = json_object_new_boolean(yes);
	return *out ? 0 : fail_memory(p);
}

/* One "key": value of OBJECT. */
static int parse_pair(struct parser *p, struct json_object *object)
{
	struct json_object *value = NULL;
	char *key, c = peek(p);
	size_t len;
	int rc = take_token(p);

	if (rc < 0)
		return rc;
	if (p->at == p->end)
		return fail(p, "premature EOI");
	if (c != '"' && (c != '\'' || p->strict))
		return fail(p, c && strchr("}],:", c) ? "expecting value"
						       : "key is not a string in object");
	rc = parse_string(p, &key, &len);
	if (rc < 0)
		return rc;
	if (json_object_object_get_ex(object, key, NULL))
		return fail(p, "duplicate key");
	if (!take(p, ':'))
		return fail(p, p->at == p->end ? "premature EOI" : "missing : in object pair");
	rc = parse_value(p, &value);
	if (rc < 0)
		return rc;
	if (json_object_object_add(object, key, value) < 0) {
		json_object_put(value);
		return fail_memory(p);
	}
	return 0;
}

/* Pairs up to the closing brace; the opening one is consumed. */
static int parse_pairs(struct parser *p, struct json_object *object)
{
	int rc;

	if (take(p, '}'))
		return 0;
	do {
		rc = parse_pair(p, object);
		if (rc < 0)
			return rc;
	} while (take(p, ','));
	if (take(p, '}'))
		return 0;
	return fail(p, p->at == p->end ? "premature EOI" : "expected separator in dict");
}

static int parse_items(struct parser *p, struct json_object *array)
{
	struct json_object *value;
	int rc;

	if (take(p, ']'))
		return 0;
	do {
		value = NULL;
		rc = parse_value(p, &value);
		if (rc < 0)
			return rc;
		if (json_object_array_add(array, value) < 0) {
			json_object_put(value);
			return fail_memory(p);
		}
	} while (take(p, ','));
	if (take(p, ']'))
		return 0;
	return fail(p, p->at == p->end ? "premature EOI" : "expected separator in list");
}

static int parse_nested(struct parser *p, struct json_object **out)
{
	bool object = *p->at == '{';
	struct json_object *o;
	int rc = open_level(p);

	if (rc < 0)
		return rc;
	/* An array starts with room for 32 otherwise: 256 bytes for each "[]". */
	o = object ? json_object_new_object() : json_object_new_array_ext(1);
	if (!o)
		return fail_memory(p);
	rc = object ? parse_pairs(p, o) : parse_items(p, o);
	if (rc < 0) {
		json_object_put(o);
		return rc;
	}
	p->depth++;
	*out = o;
	return 0;
}

static int parse_value(struct parser *p, struct json_object **out)
{
	char c = peek(p);
	int rc = take_token(p);

	*out = NULL;
	if (rc < 0)
		return rc;
	if (p->at == p->end)
		return fail(p, "premature EOI");
	if (c == '{' || c == '[')
		return parse_nested(p, out);
	if (c == '"' || (c == '\'' && !p->strict))
		return parse_string_value(p, out);
	if (c == '-' || is_digit(c))
		return parse_number(p, out);
	if (is_word(c))
		return parse_keyword(p, out);
	if (c && strchr("}],:", c))
		return fail(p, "expecting value");
	return fail_stray(p, c);
}

struct json_limits json_limits_fill(const struct json_limits *limits)
{
	struct json_limits l = limits ? *limits : (struct json_limits){ 0 };

	if (l.bytes == 0)
		l.bytes = JSON_BYTES_MAX;
	if (l.depth == 0 || l.depth > JSON_DEPTH_MAX)
		l.depth = JSON_DEPTH_MAX;
	if (l.tokens == 0)
		l.tokens = JSON_TOKENS_MAX;
	assert(l.bytes <= INT32_MAX);	/* json-c counts lengths in int */
	return l;
}

static int parse_one(struct parser *p, struct json_object **out)
{
	int rc = parse_value(p, out);

	if (rc < 0)
		return rc;
	peek(p);
	if (p->at == p->end)
		return 0;
	json_object_put(*out);
	*out = NULL;
	return error_set(p->err, -EINVAL, "Expecting at most one JSON value");
}

int json_parse_in_place(char *text, size_t n, const struct json_limits *limits,
			struct json_object **out, struct error *err)
{
	struct json_limits l = json_limits_fill(limits);
	struct parser p = { text, text + n, l.depth, l.tokens, false, err };

	*out = NULL;
	if (n > l.bytes)
		return error_set(err, -E2BIG, "JSON token size limit exceeded");
	return parse_one(&p, out);
}

int json_parse_document(const char *text, size_t n, const struct json_limits *limits,
			struct json_object **out, unsigned *line, struct error *err)
{
	struct json_limits l = json_limits_fill(limits);
	char *copy = n > l.bytes ? NULL : malloc(n + 1);
	struct parser p = { copy, copy + n, l.depth, l.tokens, true, err };
	int rc;

	*out = NULL;
	*line = 1;
	if (!copy)
		return error_set(err, n > l.bytes ? -E2BIG : -ENOMEM, n > l.bytes
				 ? "JSON token size limit exceeded" : "Out of memory");
	memcpy(copy, text, n);
	rc = parse_one(&p, out);
	for (size_t i = 0; i < (size_t)(p.at - copy); i++)
		*line += text[i] == '\n';
	free(copy);
	return rc;
}

struct json_object *json_parse_text(const char *text, struct error *err)
{
	struct json_object *o = NULL;
	char *copy = strdup(text);

	if (!copy) {
		error_set(err, -ENOMEM, "JSON parse error, out of memory");
		return NULL;
	}
	if (json_parse_in_place(copy, strlen(copy), NULL, &o, err) == 0 && !o)
		error_set(err, -EINVAL, "JSON parse error, null is not expected");
	free(copy);
	return o;
}

const char *json_write(struct json_object *o)
{
	return json_object_to_json_string_ext(o,
			JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
}
