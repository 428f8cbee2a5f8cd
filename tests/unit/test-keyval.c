/* SPDX-License-Identifier: BSD-3-Clause */
/* keyval: what qemu-storage-daemon 7.2 makes of the same texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/keyval.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

typedef struct json_object *parse_fn(const char *, const char *, struct error *);

static void expect(parse_fn *parse, const char *text, const char *implied, const char *wanted)
{
	struct error err = ERROR_INIT;
	struct json_object *o = parse(text, implied, &err);

	if (!o)
		fail_msg("%s: %s", text, err.text);
	assert_string_equal(json_write(o), wanted);
	json_object_put(o);
}

static void test_good(void **state)
{
	static const char *const cases[][2] = {
		{ "", "{}" },
		{ "driver=file", "{'driver':'file'}" },
		{ "file,node-name=a", "{'driver':'file','node-name':'a'}" },
		{ "file", "{'driver':'file'}" },
		{ "file,", "{'driver':'file'}" },
		{ "a=b,", "{'a':'b'}" },
		{ "a=b,,c", "{'a':'b,c'}" },
		{ "a=,,", "{'a':','}" },
		{ "a=,b=", "{'a':'','b':''}" },
		{ "a=,,,b=c", "{'a':',','b':'c'}" },
		{ "a=b=c,d==", "{'a':'b=c','d':'='}" },
		{ "a=1,a=2", "{'a':'2'}" },
		{ "raw,file.driver=file,file.filename=/x.y=z",
		  "{'driver':'raw','file':{'driver':'file','filename':'/x.y=z'}}" },
		{ "a.b.c=1,a.b.d=2,a.e=3", "{'a':{'b':{'c':'1','d':'2'},'e':'3'}}" },
		{ "bitmaps.0=x", "{'bitmaps':['x']}" },
		{ "b.1=y,b.0=x", "{'b':['x','y']}" },
		{ "b.0.node=n,b.0.name=m,b.1=z", "{'b':[{'node':'n','name':'m'},'z']}" },
		{ "b.0.0=x,b.0.1.0=y", "{'b':[['x',['y']]]}" },
		{ "b.10=k,b.0=a,b.1=b,b.2=c,b.3=d,b.4=e,b.5=f,b.6=g,b.7=h,b.8=i,b.9=j",
		  "{'b':['a','b','c','d','e','f','g','h','i','j','k']}" },
		{ "cache_x.no-flush1=on", "{'cache_x':{'no-flush1':'on'}}" },
		{ "{\"a\":{\"b\":[1,true]}}", "{'a':{'b':[1,true]}}" },
		{ "a={", "{'a':'{'}" },
		{ "filename=caf\xc3\xa9 \"'\\", "{'filename':'caf\xc3\xa9 \\\"Q\\\\'}" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		char wanted[512];
		size_t n = 0;

		for (const char *p = cases[i][1]; *p; p++)
			wanted[n++] = *p == '\'' ? '"' : *p == 'Q' ? '\'' : *p;
		wanted[n] = '\0';
		expect(keyval_parse, cases[i][0], "driver", wanted);
	}
}

static void refuse(const char *text, const char *implied, const char *wanted)
{
	struct error err = ERROR_INIT;

	assert_null(keyval_parse(text, implied, &err));
	assert_string_equal(err.text, wanted);
	assert_true(err.code < 0);
}

static void test_bad(void **state)
{
	static const char *const cases[][2] = {
		{ "x,foo", "Expected '=' after parameter 'foo'" },
		{ "=x", "Invalid parameter ''" },
		{ ",a=b", "Invalid parameter ''" },
		{ "a=b,,,c", "Expected '=' after parameter 'c'" },
		{ "null,,co,a=b", "Invalid parameter ''" },
		{ "a..b=1", "Invalid parameter 'a..b'" },
		{ ".a=1", "Invalid parameter '.a'" },
		{ "a.=1", "Invalid parameter 'a.'" },
		{ "0=1", "Invalid parameter '0'" },
		{ "0.a=1", "Invalid parameter '0.a'" },
		{ "a.00=1", "Invalid parameter 'a.00'" },
		{ "a.1b=1", "Invalid parameter 'a.1b'" },
		{ "-x=1", "Invalid parameter '-x'" },
		{ "x:y=1", "Invalid parameter 'x:y'" },
		{ "\xc3\xa9=1", "Invalid parameter '\xc3\xa9'" },
		{ "a=1,a.b=2", "Parameters 'a.*' used inconsistently" },
		{ "a.b=2,a=1", "Parameters 'a.*' used inconsistently" },
		{ "a.x.0=1,a.x=2", "Parameters 'a.x.*' used inconsistently" },
		{ "a.0=1,a.b=2", "Parameters 'a.*' used inconsistently" },
		{ "z.a.0=1,z.a.b=2", "Parameters 'z.a.*' used inconsistently" },
		{ "a.0=1,a.2=2", "Parameter 'a.1' missing" },
		{ "z.a.1=1", "Parameter 'z.a.0' missing" },
		{ "a.999999999=1", "Parameter 'a.0' missing" },
		{ "a.9999999999999999999=1", "Invalid parameter 'a.9999999999999999999'" },
		{ "{\"a\":1", "JSON parse error, premature EOI" },
		{ "{\"a\":1},b=c", "Expecting at most one JSON value" },
	};

	for (size_t i = 0; i < COUNT(cases); i++)
		refuse(cases[i][0], "driver", cases[i][1]);
	refuse("file", NULL, "Expected '=' after parameter 'file'");
	refuse("a=b,file", "driver", "Expected '=' after parameter 'file'");
	assert_null(keyval_parse("=", NULL, NULL));
}

static void test_bounds(void **state)
{
	char *text = malloc(70000), wanted[256];
	struct error err;

	memset(text, 'a', 128);
	strcpy(text + 128, "=1");
	snprintf(wanted, sizeof(wanted), "Parameter '%.128s' is too long", text);
	refuse(text, NULL, wanted);
	text[1] = '.';			/* a.aaa... of 126: fits */
	struct json_object *o = keyval_parse(text, NULL, &err);
	assert_non_null(o);
	json_object_put(o);

	for (int i = 0; i < 33; i++)
		strcpy(text + 2 * i, i < 32 ? "a." : "a=1");
	assert_null(keyval_parse(text, NULL, &err));
	assert_non_null(strstr(err.text, "is nested too deeply"));
	o = keyval_parse(text + 2, NULL, &err);
	assert_non_null(o);
	json_object_put(o);

	memset(text, 'a', 69999);
	text[1] = '=';
	text[65536] = '\0';
	o = keyval_parse(text, NULL, &err);
	assert_non_null(o);
	json_object_put(o);
	text[65536] = 'a';
	text[65537] = '\0';
	refuse(text, NULL, "Parameters are longer than 65536 bytes");
	free(text);
}

static void test_bare(void **state)
{
	struct error err;

	expect(keyval_parse_bare, "socket,id=c,path=p,server=on,wait=off", "backend",
	       "{\"backend\":\"socket\",\"id\":\"c\",\"path\":\"p\",\"server\":\"on\",\"wait\":\"off\"}");
	expect(keyval_parse_bare, "socket,path=p,server,nowait", "backend",
	       "{\"backend\":\"socket\",\"path\":\"p\",\"server\":\"on\",\"wait\":\"off\"}");
	expect(keyval_parse_bare, "socket,no", "backend", "{\"backend\":\"socket\",\"no\":\"on\"}");
	expect(keyval_parse_bare, "server", NULL, "{\"server\":\"on\"}");
	assert_null(keyval_parse_bare("socket,-x", "backend", &err));
	assert_string_equal(err.text, "Invalid parameter '-x'");
	assert_null(keyval_parse_bare("socket,no0", "backend", &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_bare),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
