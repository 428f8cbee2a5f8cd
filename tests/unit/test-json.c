/* SPDX-License-Identifier: BSD-3-Clause */
/* json: the grammar, the limits, and a stream cut at every byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ---- One text ---- */

static void test_good(void **state)
{
	static const struct {
		const char *text, *written;
	} cases[] = {
		{ "{}", "{}" },
		{ " [ ] ", "[]" },
		{ "\t{\r\n\"a\" : [ 1 , -2 ] }\n", "{\"a\":[1,-2]}" },
		{ "true", "true" },
		{ "false", "false" },
		{ "[null]", "[null]" },
		{ "0", "0" },
		{ "-0", "0" },
		{ "9223372036854775807", "9223372036854775807" },
		{ "9223372036854775808", "9223372036854775808" },
		{ "18446744073709551615", "18446744073709551615" },
		{ "-9223372036854775808", "-9223372036854775808" },
		{ "[1.50,1e2,1E+2,0.0,-1.25e-3]", "[1.50,1e2,1E+2,0.0,-1.25e-3]" },
		{ "1e-999", "1e-999" },
		{ "\"\"", "\"\"" },
		{ "'it\\'s \"q\"'", "\"it's \\\"q\\\"\"" },
		{ "\"it's\"", "\"it's\"" },
		{ "\"\\\"\\'\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\\"'\\\\/\\b\\f\\n\\r\\t\"" },
		{ "\"\\u0041\\u00e9\\u20AC\"", "\"A\xc3\xa9\xe2\x82\xac\"" },
		{ "\"\\ud83d\\udc11\\uffff\\u0001\"", "\"\xf0\x9f\x90\x91\xef\xbf\xbf\\u0001\"" },
		{ "\"\x7f\xf4\x8f\xbf\xbf\"", "\"\x7f\xf4\x8f\xbf\xbf\"" },
		{ "{'a':{'a':1},'b':{'a':2},'':3}", "{\"a\":{\"a\":1},\"b\":{\"a\":2},\"\":3}" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct error err = ERROR_INIT;
		struct json_object *o = json_parse_text(cases[i].text, &err);

		if (!o)
			fail_msg("%s: %s", cases[i].text, err.text);
		assert_string_equal(json_write(o), cases[i].written);
		json_object_put(o);
	}
}

static void test_bad(void **state)
{
	static const struct {
		const char *text, *error;
	} cases[] = {
		{ "", "premature EOI" },
		{ "  ", "premature EOI" },
		{ "{", "premature EOI" },
		{ "{\"a\"", "premature EOI" },
		{ "{\"a\":", "premature EOI" },
		{ "{\"a\":1", "premature EOI" },
		{ "{\"a\":1,", "premature EOI" },
		{ "[1", "premature EOI" },
		{ "\"abc", "premature EOI" },
		{ "\"abc\\", "premature EOI" },
		{ "\"abc'", "premature EOI" },
		{ "{\"a\":1,}", "expecting value" },
		{ "{,}", "expecting value" },
		{ "{1:2}", "key is not a string in object" },
		{ "{a:2}", "key is not a string in object" },
		{ "{\"a\"}", "missing : in object pair" },
		{ "{\"a\" 1}", "missing : in object pair" },
		{ "{\"a\":1 \"b\":2}", "expected separator in dict" },
		{ "{\"a\":1]", "expected separator in dict" },
		{ "[1 2]", "expected separator in list" },
		{ "[1}", "expected separator in list" },
		{ "[1,]", "expecting value" },
		{ "[,1]", "expecting value" },
		{ "]", "expecting value" },
		{ "{\"a\":1,\"b\":2,\"a\":3}", "duplicate key" },
		{ "{\"a\":1,\"\\u0061\":3}", "duplicate key" },
		{ "{\"a\":null,\"a\":null}", "duplicate key" },
		{ "nul", "invalid keyword 'nul'" },
		{ "True", "invalid keyword 'True'" },
		{ "NaN", "invalid keyword 'NaN'" },
		{ "nulll", "invalid keyword 'nulll'" },
		{ "[Infinity]", "invalid keyword 'Infinity'" },
		{ "-Infinity", "malformed number" },
		{ "01", "malformed number" },
		{ "-01", "malformed number" },
		{ "-", "malformed number" },
		{ "1.", "malformed number" },
		{ "1.e1", "malformed number" },
		{ "1e", "malformed number" },
		{ "1e+", "malformed number" },
		{ "0x10", "malformed number" },
		{ "1.2.3", "malformed number" },
		{ "12a", "malformed number" },
		{ "+1", "stray '+'" },
		{ ".5", "stray '.'" },
		{ "/*x*/1", "stray '/'" },
		{ "\xef\xbb\xbf{}", "stray '\\xef'" },
		{ "\x0b", "stray '\\x0b'" },
		{ "18446744073709551616", "number out of range: 18446744073709551616" },
		{ "-9223372036854775809", "number out of range: -9223372036854775809" },
		{ "1e999", "number out of range: 1e999" },
		{ "\"a\tb\"", "control character in string" },
		{ "\"a\x1f\"", "control character in string" },
		{ "\"\\x41\"", "invalid escape sequence in string" },
		{ "\"\\u12\"", "invalid hex escape in string" },
		{ "\"\\u12g4\"", "invalid hex escape in string" },
		{ "\"\\u-123\"", "invalid hex escape in string" },
		{ "\"\\u0000\"", "\\u0000 is not a valid Unicode character" },
		{ "\"\\ud800\"", "\\ud800 is not a valid Unicode character" },
		{ "\"\\udc00\\ud800\"", "\\udc00 is not a valid Unicode character" },
		{ "\"\\ud800\\u0041\"", "\\ud800 is not a valid Unicode character" },
		{ "\"\\ud800\\ud800\"", "\\ud800 is not a valid Unicode character" },
		{ "\"\xc0\x80\"", "invalid UTF-8 sequence in string" },
		{ "\"\xe0\x80\x80\"", "invalid UTF-8 sequence in string" },
		{ "\"\xed\xa0\x80\"", "invalid UTF-8 sequence in string" },
		{ "\"\xf4\x90\x80\x80\"", "invalid UTF-8 sequence in string" },
		{ "\"\xe2\x82\"", "invalid UTF-8 sequence in string" },
		{ "\"\xff\"", "invalid UTF-8 sequence in string" },
		{ "null", "null is not expected" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct error err = ERROR_INIT;
		char expected[128];

		snprintf(expected, sizeof(expected), "JSON parse error, %s", cases[i].error);
		assert_null(json_parse_text(cases[i].text, &err));
		assert_string_equal(err.text, expected);
		assert_true(err.code < 0);
	}
	struct error err;
	assert_null(json_parse_text("{} {}", &err));
	assert_string_equal(err.text, "Expecting at most one JSON value");
	assert_null(json_parse_text("1,", &err));
	assert_null(json_parse_text("{", NULL));
}

/* Integers keep all bits, and their C type can be asked for. */
static void test_integers(void **state)
{
	struct json_object *o = json_parse_text("[18446744073709551615,-9223372036854775808]", NULL);

	assert_int_equal(json_object_get_uint64(json_object_array_get_idx(o, 0)), UINT64_MAX);
	assert_int_equal(json_object_get_int64(json_object_array_get_idx(o, 1)), INT64_MIN);
	json_object_put(o);
}

/* OPEN n times, then MIDDLE, then CLOSE n times. */
static char *nested(const char *open, const char *middle, const char *close, int n)
{
	char *text = malloc(n * (strlen(open) + strlen(close)) + strlen(middle) + 1), *at = text;

	for (int i = 0; i < n; i++)
		at = stpcpy(at, open);
	at = stpcpy(at, middle);
	for (int i = 0; i < n; i++)
		at = stpcpy(at, close);
	return text;
}

static void test_depth(void **state)
{
	static const char *const open[] = { "[", "{\"a\":" }, *const close[] = { "]", "}" };

	for (int i = 0; i < 2; i++) {
		struct error err;
		char *text = nested(open[i], "1", close[i], 64);
		struct json_object *o = json_parse_text(text, &err);

		assert_non_null(o);
		json_object_put(o);
		free(text);
		text = nested(open[i], "1", close[i], 65);
		assert_null(json_parse_text(text, &err));
		assert_string_equal(err.text, "JSON nesting depth limit exceeded");
		assert_int_equal(err.code, -E2BIG);
		free(text);
	}
}

static void test_sizes(void **state)
{
	struct json_limits limits = { .bytes = 16, .tokens = 4 };
	char text[] = "[1,2,3]", many[] = "[1,2,3,4]", pairs[] = "{'a':1,'b':2}",
	     big[] = "'123456789012345'", number[80];
	struct json_object *o;
	struct error err;

	assert_int_equal(json_parse_in_place(text, strlen(text), &limits, &o, &err), 0);
	json_object_put(o);
	assert_int_equal(json_parse_in_place(many, strlen(many), &limits, &o, &err), -E2BIG);
	assert_string_equal(err.text, "JSON token count limit exceeded");
	assert_null(o);
	assert_int_equal(json_parse_in_place(pairs, strlen(pairs), &limits, &o, &err), -E2BIG);
	assert_int_equal(json_parse_in_place(big, strlen(big), &limits, &o, &err), -E2BIG);
	assert_string_equal(err.text, "JSON token size limit exceeded");
	memset(number, '1', sizeof(number) - 1);
	number[79] = '\0';
	assert_null(json_parse_text(number, &err));
	assert_string_equal(err.text, "JSON parse error, number too long");
}

/* ---- The stream ---- */

/* Appends what the stream has to say to LOG: values as text, errors as "!text". */
static void drain(struct json_stream *s, char *log)
{
	struct json_object *o;
	struct error err;
	int rc;

	while ((rc = json_stream_next(s, &o, &err)) != 0) {
		log += strlen(log);
		if (rc > 0)
			sprintf(log, "%s;", o ? json_write(o) : "null");
		else
			sprintf(log, "!%s;", err.text);
		if (rc < 0)
			assert_null(o);
		json_object_put(o);
	}
}

/* Feeds INPUT in pieces of STEP bytes and compares the whole log. */
static void expect(const char *input, size_t n, size_t step, const char *expected)
{
	struct json_stream *s = json_stream_new(NULL);
	char log[4096] = "";

	for (size_t at = 0; at < n; at += step) {
		assert_int_equal(json_stream_feed(s, input + at, at + step < n ? step : n - at), 0);
		drain(s, log);
	}
	assert_string_equal(log, expected);
	json_stream_free(s);
}

#define OK "{\"execute\":\"x\"}"
#define PE "!JSON parse error, "

static void test_stream(void **state)
{
	static const struct {
		const char *input, *log;
	} cases[] = {
		{ OK, OK ";" },
		{ OK OK "\r\n" OK, OK ";" OK ";" OK ";" },
		{ "\r\n \t" OK " ", OK ";" },
		{ "{'execute':'x'}", OK ";" },
		{ "{\"a\":\"}]{[\\\"'\"}" OK, "{\"a\":\"}]{[\\\"'\"};" OK ";" },
		{ "{'a':'\"}'}{\"a\":\"'}\"}", "{\"a\":\"\\\"}\"};{\"a\":\"'}\"};" },
		{ "{\"a\":\"\\\\\"}" OK, "{\"a\":\"\\\\\"};" OK ";" },
		{ "1 2\nnull true'x'\"y\"[]", "1;2;null;true;\"x\";\"y\";[];" },
		{ "1[2]3{}", "1;[2];3;{};" },
		{ "12", "" },
		{ "{\"a\":1", "" },
		/* An error inside costs that value only. */
		{ "{\"a\":1,}" OK, PE "expecting value;" OK ";" },
		{ "{ ] " OK, PE "expecting value;" OK ";" },
		{ "{\"a\": nan}" OK, PE "invalid keyword 'nan';" OK ";" },
		{ "{\"a\":\"x\ty\"}" OK, PE "control character in string;" OK ";" },
		{ "{\"x\":@{\"execute\":\"quit\"}}" OK, PE "stray '@';" OK ";" },
		/* Garbage between values is reported once per line. */
		{ "xyz " OK, PE "invalid keyword 'xyz';" OK ";" },
		{ "xyz" OK, PE "invalid keyword 'xyz';" OK ";" },
		{ "}" OK "\n" OK, PE "expecting value;" OK ";" OK ";" },
		{ "}]},:" OK, PE "expecting value;" OK ";" },
		{ ":" OK, PE "expecting value;" OK ";" },
		{ "@@@ @ @ x 'y' [1]\n" OK, PE "stray '@';" OK ";" },
		{ "GET / HTTP/1.1\r\nHost: a:1\r\n\r\n" OK,
		  PE "invalid keyword 'GET';" PE "invalid keyword 'Host';" OK ";" },
		{ "01\n2\n", PE "malformed number;2;" },
		/* Resets. */
		{ "\xff" OK, PE "stray '\\xff';" OK ";" },
		{ "{\"exec\xff" OK, PE "stray '\\xff';" OK ";" },
		{ "{\"a\":[1,{\xff" OK, PE "stray '\\xff';" OK ";" },
		{ "{\"a\":\"\\\xff" OK, PE "stray '\\xff';" OK ";" },
		{ "xyz\xff" OK, PE "stray '\\xff';" OK ";" },
		{ "{\"a\":\"\x01" OK, PE "stray '\\x01';" OK ";" },
		{ "{\"a\":\"foo\n" OK, PE "stray '\\x0a';" OK ";" },
		{ "{\"a\":\"foo\r\n" OK, PE "stray '\\x0d';" OK ";" },
		{ "{\"a\":'foo\\\n" OK, PE "stray '\\x0a';" OK ";" },
		{ "{\"a\":\xfe}" OK, PE "stray '\\xfe';" OK ";" },
	};

	for (size_t i = 0; i < COUNT(cases); i++)
		for (size_t step = 1; step <= strlen(cases[i].input); step++)
			expect(cases[i].input, strlen(cases[i].input), step, cases[i].log);
	expect("\0{}", 3, 1, PE "stray '\\x00';{};");
	expect("{\"a\0:1}{}", 9, 4, PE "stray '\\x00';" PE "expecting value;{};");
}

/* What passes a limit is reported once and swallowed, then the stream goes on. */
static void test_stream_limits(void **state)
{
	struct json_limits limits = { .bytes = 20, .depth = 3 };
	struct json_stream *s = json_stream_new(&limits);
	const char *input = "{'a':'12345678901234567890}{[','b':{}}" OK "[[[[[]]],{'x':[['}']]}]]" OK
			    "111111111111111111111111 22 [[[1]]]";
	const char *log_wanted = "!JSON token size limit exceeded;" OK ";"
				 "!JSON nesting depth limit exceeded;" OK ";"
				 "!JSON token size limit exceeded;22;[[[1]]];";

	for (size_t step = 1; step < 80; step++) {
		char log[1024] = "";

		for (size_t at = 0; at < strlen(input); at += step) {
			size_t left = strlen(input) - at;

			json_stream_feed(s, input + at, step < left ? step : left);
			drain(s, log);
		}
		assert_string_equal(log, log_wanted);
	}
	json_stream_free(s);
}

/* Hostile streams that never end a value: memory stays bounded, a reset helps. */
static void test_stream_endless(void **state)
{
	static const char *const fill[] = { "[", "{\"a\":", "\"aaaaaaa", "1", "[1],[", " ", "x" };
	struct json_limits limits = { .bytes = 4096 };
	char log[2048], piece[1000];

	for (size_t i = 0; i < COUNT(fill); i++) {
		struct json_stream *s = json_stream_new(&limits);

		log[0] = '\0';
		json_stream_feed(s, i == 2 ? "\"" : "[\"\",", i == 2 ? 1 : 4);
		for (size_t at = 0; at + strlen(fill[i]) < sizeof(piece); at += strlen(fill[i]))
			memcpy(piece + at, fill[i], strlen(fill[i]) + 1);
		if (i == 2)
			memset(piece, 'a', strlen(piece));
		for (int n = 0; n < 300; n++) {
			assert_int_equal(json_stream_feed(s, piece, strlen(piece)), 0);
			drain(s, log);
		}
		assert_string_equal(strchr(log, ';'), ";");
		log[0] = '\0';
		json_stream_feed(s, "\xff" OK, 1 + strlen(OK));
		drain(s, log);
		assert_string_equal(log, PE "stray '\\xff';" OK ";");
		json_stream_free(s);
	}
}

/* A value of nearly the limit, byte by byte and at once. */
static void test_stream_big(void **state)
{
	size_t n = 1024 * 1024;
	char *text = malloc(n + 2);
	struct json_stream *s = json_stream_new(NULL);
	struct json_object *o;
	struct error err;

	memset(text, 'a', n);
	text[0] = text[n - 1] = '"';
	text[n] = ' ';
	for (size_t i = 0; i < n - 1; i++) {
		assert_int_equal(json_stream_feed(s, text + i, 1), 0);
		if (json_stream_next(s, &o, &err) != 0)
			fail();
	}
	assert_int_equal(json_stream_feed(s, text + n - 1, 1), 0);
	assert_int_equal(json_stream_next(s, &o, &err), 1);
	assert_int_equal(json_object_get_string_len(o), n - 2);
	json_object_put(o);
	/* Written over by the parser: make it anew, one byte longer. */
	memset(text, 'a', n + 1);
	text[0] = text[n] = '"';
	json_stream_feed(s, text, n + 1);
	assert_int_equal(json_stream_next(s, &o, &err), -E2BIG);
	assert_int_equal(json_stream_next(s, &o, &err), 0);
	json_stream_free(s);
	json_stream_free(NULL);
	free(text);
}

/* Pseudo-random mixtures of what the grammar is made of: no crash, no hang, and
 * cutting the input elsewhere changes nothing. */
static void test_stream_random(void **state)
{
	static const char *const parts[] = {
		"{", "}", "[", "]", ",", ":", "\"", "'", "\\", "a", "\"a\"", "1", "-", ".", "e9",
		"null", "\n", " ", "\t", "\x01", "\xff", "\xc3\xa9", "\xc3", "\\u0041", "\\ud800",
		"{\"a\":1}", "[1,2]", "'b':",
	};
	uint32_t seed = 12345;

	for (int round = 0; round < 3000; round++) {
		struct json_stream *one = json_stream_new(NULL), *two = json_stream_new(NULL);
		char input[512] = "", log_one[65536] = "", log_two[65536] = "";

		for (int i = 0; i < 40; i++) {
			seed = seed * 1664525 + 1013904223;
			strcat(input, parts[(seed >> 8) % COUNT(parts)]);
		}
		json_stream_feed(one, input, strlen(input));
		drain(one, log_one);
		for (size_t at = 0; at < strlen(input); at++) {
			json_stream_feed(two, input + at, 1);
			drain(two, log_two);
		}
		assert_string_equal(log_one, log_two);
		json_stream_free(one);
		json_stream_free(two);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),	     cmocka_unit_test(test_bad),
		cmocka_unit_test(test_integers),     cmocka_unit_test(test_depth),
		cmocka_unit_test(test_sizes),	     cmocka_unit_test(test_stream),
		cmocka_unit_test(test_stream_limits), cmocka_unit_test(test_stream_endless),
		cmocka_unit_test(test_stream_big),   cmocka_unit_test(test_stream_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
