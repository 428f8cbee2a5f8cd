// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes what reads a line of text from a user or a peer: keyval, sizes, URIs.
 *
 * The first byte chooses the reader, the rest is the text.  What is accepted must
 * keep its promises: a URI that was read can be built again and read the same.
 */
#include "tests/fuzz/fuzz.h"

#include <json-c/json.h>

#include "common/json.h"
#include "common/keyval.h"
#include "common/size.h"
#include "common/uri.h"

static bool is_ascii(const char *text)
{
	while (*text)
		if (*text++ & 0x80)
			return false;
	return true;
}

/* Leaves of keyval are strings, and containers are objects and arrays: JSON that is
 * written can be read. */
static void keyval_case(const char *text, bool bare)
{
	struct error err = ERROR_INIT;
	struct json_object *o = bare ? keyval_parse_bare(text, "driver", &err)
				     : keyval_parse(text, "driver", &err), *again;

	fuzz_assert(!o == !!err.text[0]);
	if (!o)
		return;
	again = json_parse_text(json_write(o), &err);
	/* A file name need not be UTF-8; and the limits may stand in the way. */
	fuzz_assert(again || !is_ascii(text) || strlen(json_write(o)) > 4096);
	if (again)
		fuzz_assert(json_object_equal(o, again));
	json_object_put(again);
	json_object_put(o);
}

static void size_case(const char *text)
{
	struct error err = ERROR_INIT;
	uint64_t v = 0xfeed, plain;
	char buf[32];

	if (size_parse(text, &v, &err)) {
		fuzz_assert(v == 0xfeed && err.text[0]);
		return;
	}
	fuzz_assert(!strpbrk(text, " +-\t"));
	size_format(buf, sizeof(buf), v);
	fuzz_assert(strlen(buf) < SIZE_TEXT_MAX);
	snprintf(buf, sizeof(buf), "%llu", (unsigned long long)v);
	fuzz_assert(!size_parse(buf, &plain, &err) && plain == v);
}

static void uri_case(const char *text)
{
	struct error err = ERROR_INIT;
	struct uri u, v;
	char *built = NULL;
	int rc;

	if (uri_parse(text, &u, &err)) {
		fuzz_assert(err.text[0] && !u.export && !u.host && !u.socket);
		return;
	}
	fuzz_assert(uri_is_nbd(text) && u.export && !u.host == !!u.socket);
	fuzz_assert(!u.host || u.host[0] != '-');
	rc = u.host ? uri_build_tcp(u.tls, u.host, u.port, u.export, &built, &err)
	   : u.abstract ? uri_build_abstract(u.tls, u.socket, u.export, &built, &err)
			: uri_build_unix(u.tls, u.socket, u.export, &built, &err);
	if (!rc) {
		fuzz_assert(!uri_parse(built, &v, &err));
		fuzz_assert(!strcmp(u.export, v.export) && u.tls == v.tls && u.abstract == v.abstract);
		fuzz_assert(!u.host || (!strcmp(u.host, v.host) && u.port == v.port));
		fuzz_assert(!u.socket || !strcmp(u.socket, v.socket));
		uri_clear(&v);
	}
	free(built);
	uri_clear(&u);
}

int fuzz_input(const uint8_t *data, size_t size)
{
	char *text;

	if (!size)
		return 0;
	text = fuzz_text(data + 1, size - 1);
	switch (data[0] % 4) {
	case 0:
		keyval_case(text, false);
		break;
	case 1:
		keyval_case(text, true);
		break;
	case 2:
		size_case(text);
		break;
	default:
		uri_case(text);
	}
	free(text);
	return 0;
}
