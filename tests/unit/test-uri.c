/* SPDX-License-Identifier: BSD-3-Clause */
/* uri: the specification's own examples, what is refused, and the way back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/uri.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct uri parse(const char *text)
{
	struct error err = ERROR_INIT;
	struct uri uri;

	if (uri_parse(text, &uri, &err) < 0)
		fail_msg("%s: %s", text, err.text);
	return uri;
}

static void test_tcp(void **state)
{
	static const struct {
		const char *text, *host;
		uint16_t port;
		const char *export;
	} cases[] = {
		{ "nbd://example.com:10809/export", "example.com", 10809, "export" },
		{ "nbd://example.com/disk", "example.com", 10809, "disk" },
		{ "nbd://example.com/", "example.com", 10809, "" },
		{ "nbd://example.com", "example.com", 10809, "" },
		{ "nbd://example.com//disk", "example.com", 10809, "/disk" },
		{ "nbd://example.com/hello%20world", "example.com", 10809, "hello world" },
		{ "NBD://h:1/a%2Fb%3fc%25", "h", 1, "a/b?c%" },
		{ "nbd://[::1]/x", "::1", 10809, "x" },
		{ "nbd://[fe80::1%25eth0]:65535/x:y@z", "fe80::1%eth0", 65535, "x:y@z" },
		{ "nbd:///x", "localhost", 10809, "x" },
		{ "nbd://h:/x", "h", 10809, "x" },
		{ "nbd://:7/x", "localhost", 7, "x" },
		{ "nbd://h?", "h", 10809, "" },
		{ "nbd://h/\xc3\xa9-%F0%9F%90%91", "h", 10809, "\xc3\xa9-\xf0\x9f\x90\x91" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct uri uri = parse(cases[i].text);

		assert_string_equal(uri.host, cases[i].host);
		assert_int_equal(uri.port, cases[i].port);
		assert_string_equal(uri.export, cases[i].export);
		assert_null(uri.socket);
		assert_false(uri.tls);
		assert_true(uri_is_nbd(cases[i].text));
		uri_clear(&uri);
	}
}

static void test_unix(void **state)
{
	struct uri uri = parse("nbd+unix:///disk?socket=sock");

	assert_string_equal(uri.export, "disk");
	assert_string_equal(uri.socket, "sock");
	assert_null(uri.host);
	assert_false(uri.tls || uri.abstract);
	uri_clear(&uri);

	uri = parse("nbds+unix://alice@/?tls-type=psk&&tls-psk-file=/k%26&socket=/run/a%20b.sock"
		    "&tls-hostname=h&tls-verify-peer=0&tls-certificates=/c=d");
	assert_true(uri.tls && uri.tls_no_verify);
	assert_string_equal(uri.user, "alice");
	assert_string_equal(uri.socket, "/run/a b.sock");
	assert_string_equal(uri.export, "");
	assert_string_equal(uri.tls_type, "psk");
	assert_string_equal(uri.tls_psk_file, "/k&");
	assert_string_equal(uri.tls_hostname, "h");
	assert_string_equal(uri.tls_certificates, "/c=d");
	uri_clear(&uri);
	uri_clear(&uri);

	uri = parse("nbd+unix:///?socket=%00/abstract");
	assert_true(uri.abstract);
	assert_string_equal(uri.socket, "/abstract");
	uri_clear(&uri);
}

static void test_refused(void **state)
{
	static const char *const bad[] = {
		"", "nbd:", "nbd:/h", "http://h/", "/nbd://h", "nbd+vsock://2/", "nbd://-h/",
		"nbd://%2dh/", "nbd://[-::1]/", "nbd://h:-1/", "nbd://h:0/", "nbd://h:65536/",
		"nbd://h:123456/", "nbd://h:1x/", "nbd://h:+1/", "nbd://::1/", "nbd://[::1/",
		"nbd://[::1]x/", "nbd://[h]/", "nbd://[]/", "nbd://a%0ab/", "nbd://a%00b/",
		"nbd://a%2fb/", "nbd://a b/", "nbd://h/%", "nbd://h/%4", "nbd://h/%4g",
		"nbd://h/%00", "nbd://h/a%00b", "nbd://h/x#y", "nbd://h/?socket=/x",
		"nbd://h/?foo=1", "nbd://h/?tls-verify-peer=maybe", "nbd+unix:///x",
		"nbd+unix:///x?socket=", "nbd+unix:///x?socket", "nbd+unix://h/x?socket=/s",
		"nbd+unix:///x?socket=/a%0ab", "nbd+unix:///x?socket=a%00b",
		"nbd+unix:///x?socket=%00", "nbd+unix:///x?Socket=/s", "nbd://u@-h/", "nbd://a@b@c/",
	};
	struct error err;
	struct uri uri;

	for (size_t i = 0; i < COUNT(bad); i++) {
		err = ERROR_INIT;
		if (uri_parse(bad[i], &uri, &err) != -EINVAL)
			fail_msg("accepted: %s", bad[i]);
		assert_non_null(strstr(err.text, "NBD URI"));
		assert_null(uri.host);
		assert_null(uri.export);
	}
	assert_false(uri_is_nbd("nbd.img"));

	char text[400] = "nbd://";
	memset(text + 6, 'h', 300);
	assert_int_equal(uri_parse(text, &uri, NULL), -EINVAL);
}

static void test_build(void **state)
{
	struct error err;
	char *text;

	assert_int_equal(uri_build_unix(false, "/run/m.sock", "vda", &text, &err), 0);
	assert_string_equal(text, "nbd+unix:///vda?socket=/run/m.sock");
	free(text);
	assert_int_equal(uri_build_unix(true, "a b&c", NULL, &text, &err), 0);
	assert_string_equal(text, "nbds+unix:///?socket=a%20b%26c");
	free(text);
	assert_int_equal(uri_build_abstract(false, "x", "", &text, &err), 0);
	assert_string_equal(text, "nbd+unix:///?socket=%00x");
	free(text);
	assert_int_equal(uri_build_tcp(false, "h", 10809, "a?b#c/d%", &text, &err), 0);
	assert_string_equal(text, "nbd://h/a%3Fb%23c/d%25");
	free(text);
	assert_int_equal(uri_build_tcp(true, "::1", 10810, "\xc3\xa9", &text, &err), 0);
	assert_string_equal(text, "nbds://[::1]:10810/%C3%A9");
	free(text);
	assert_int_equal(uri_build_tcp(false, "[fe80::1%eth0]", 0, NULL, &text, &err), 0);
	assert_string_equal(text, "nbd://[fe80::1%25eth0]/");
	free(text);
}

static void test_build_refused(void **state)
{
	static const char *const bad[] = { "", "-h", "[-::1]", "[", "[]", "a/b", "a b", "a\nb", "a@b" };
	struct error err;
	char *text = NULL, host[300];

	for (size_t i = 0; i < COUNT(bad); i++)
		assert_int_equal(uri_build_tcp(false, bad[i], 1, "x", &text, &err), -EINVAL);
	memset(host, 'h', sizeof(host) - 1);
	host[sizeof(host) - 1] = '\0';
	assert_int_equal(uri_build_tcp(false, host, 1, "x", &text, &err), -EINVAL);
	assert_int_equal(uri_build_unix(false, "", "x", &text, &err), -EINVAL);
	assert_int_equal(uri_build_unix(false, "a\nb", "x", &text, &err), -EINVAL);
	assert_null(text);
}

/* Every byte but NUL survives in an export name and in a path's printable part. */
static void test_round_trip(void **state)
{
	char name[256], path[256], *text;
	size_t n = 0;
	struct uri uri;

	for (int c = 1; c < 256; c++) {
		name[c - 1] = c;
		if (c >= 0x20 && c != 0x7f)
			path[n++] = c;
	}
	name[255] = path[n] = '\0';
	assert_int_equal(uri_build_unix(false, path, name, &text, NULL), 0);
	uri = parse(text);
	assert_string_equal(uri.export, name);
	assert_string_equal(uri.socket, path);
	uri_clear(&uri);
	free(text);
	assert_int_equal(uri_build_tcp(true, "fe80::1%eth0", 9, name, &text, NULL), 0);
	uri = parse(text);
	assert_string_equal(uri.export, name);
	assert_string_equal(uri.host, "fe80::1%eth0");
	assert_int_equal(uri.port, 9);
	uri_clear(&uri);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tcp),	cmocka_unit_test(test_unix),
		cmocka_unit_test(test_refused), cmocka_unit_test(test_build),
		cmocka_unit_test(test_build_refused), cmocka_unit_test(test_round_trip),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
