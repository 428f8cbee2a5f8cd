/* SPDX-License-Identifier: BSD-3-Clause */
/* options: types from QMP and from keyval, take semantics, QEMU's words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "common/json.h"
#include "common/options.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct json_object *json(const char *text)
{
	struct error err;
	struct json_object *o = json_parse_text(text, &err);

	if (!o)
		fail_msg("%s: %s", text, err.text);
	return o;
}

static bool has(struct json_object *o, const char *key)
{
	return json_object_object_get_ex(o, key, NULL);
}

static void test_str(void **state)
{
	struct json_object *o = json("{'a':'x','b':7,'c':null,'d':'y','e':''}");
	struct error err;
	char *out = NULL;

	assert_int_equal(opts_str(o, "absent", &out, &err), 0);
	assert_null(out);
	assert_int_equal(opts_str(o, "a", &out, &err), 0);
	assert_string_equal(out, "x");
	assert_false(has(o, "a"));
	assert_int_equal(opts_str(o, "b", &out, &err), -EINVAL);
	assert_string_equal(err.text, "Invalid parameter type for 'b', expected: string");
	assert_true(has(o, "b"));
	assert_int_equal(opts_str(o, "c", &out, &err), -EINVAL);
	assert_string_equal(out, "x");
	assert_int_equal(opts_str(o, "d", &out, &err), 0);	/* frees the previous one */
	assert_string_equal(out, "y");
	assert_int_equal(opts_str(o, "e", &out, &err), 0);
	assert_string_equal(out, "");
	free(out);
	json_object_put(o);
}

static void test_bool(void **state)
{
	static const char *const yes[] = { "{'a':true}", "{'a':'on'}", "{'a':'yes'}", "{'a':'true'}" };
	static const char *const no[] = { "{'a':false}", "{'a':'off'}", "{'a':'no'}", "{'a':'n'}" };
	struct json_object *o;
	struct error err;
	bool out;

	for (size_t i = 0; i < COUNT(yes); i++) {
		o = json(yes[i]);
		out = false;
		assert_int_equal(opts_bool(o, "a", &out, &err), 0);
		assert_true(out);
		assert_int_equal(opts_end(o, &err), 0);
		json_object_put(o);
		o = json(no[i]);
		assert_int_equal(opts_bool(o, "a", &out, &err), 0);
		assert_false(out);
		json_object_put(o);
	}
	o = json("{'a':1,'b':'maybe','c':'ON','d':null}");
	out = true;
	assert_int_equal(opts_bool(o, "a", &out, &err), -EINVAL);
	assert_string_equal(err.text, "Invalid parameter type for 'a', expected: boolean");
	assert_int_equal(opts_bool(o, "b", &out, &err), -EINVAL);
	assert_string_equal(err.text, "Parameter 'b' expects 'on' or 'off'");
	assert_int_equal(opts_bool(o, "c", &out, &err), -EINVAL);
	assert_int_equal(opts_bool(o, "d", &out, &err), -EINVAL);
	assert_int_equal(opts_bool(o, "absent", &out, NULL), 0);
	assert_true(out && has(o, "a") && has(o, "b"));
	json_object_put(o);
}

static void test_u64(void **state)
{
	static const struct {
		const char *text;
		uint64_t value;
	} good[] = {
		{ "{'a':0}", 0 },
		{ "{'a':18446744073709551615}", UINT64_MAX },
		{ "{'a':9223372036854775808}", UINT64_C(1) << 63 },
		{ "{'a':'18446744073709551615'}", UINT64_MAX },
		{ "{'a':'1.5G'}", 1610612736 },
		{ "{'a':'0'}", 0 },
	};
	static const char *const bad[] = {
		"{'a':-1}", "{'a':-9223372036854775808}", "{'a':'-1'}", "{'a':'x'}", "{'a':''}",
		"{'a':'16E'}",
	};
	static const char *const type[] = { "{'a':1.0}", "{'a':true}", "{'a':null}", "{'a':[1]}" };
	struct json_object *o;
	struct error err;
	uint64_t out;

	for (size_t i = 0; i < COUNT(good); i++) {
		o = json(good[i].text);
		out = 77;
		assert_int_equal(opts_u64(o, "a", &out, &err), 0);
		assert_int_equal(out, good[i].value);
		assert_false(has(o, "a"));
		assert_int_equal(opts_u64(o, "a", &out, &err), 0);
		assert_int_equal(out, good[i].value);
		json_object_put(o);
	}
	out = 77;
	for (size_t i = 0; i < COUNT(bad); i++) {
		o = json(bad[i]);
		assert_int_equal(opts_u64(o, "a", &out, &err), -EINVAL);
		assert_string_equal(err.text,
				    "Parameter 'a' expects a non-negative number below 2^64");
		assert_true(has(o, "a"));
		json_object_put(o);
	}
	for (size_t i = 0; i < COUNT(type); i++) {
		o = json(type[i]);
		assert_int_equal(opts_u64(o, "a", &out, &err), -EINVAL);
		assert_string_equal(err.text, "Invalid parameter type for 'a', expected: integer");
		json_object_put(o);
	}
	assert_int_equal(out, 77);
}

static void test_object_and_value(void **state)
{
	struct json_object *o = json("{'a':{'x':1},'b':'s','c':null,'d':[1],'e':{'y':2}}");
	struct json_object *out = NULL;
	struct error err;

	assert_int_equal(opts_object(o, "b", &out, &err), -EINVAL);
	assert_string_equal(err.text, "Invalid parameter type for 'b', expected: object");
	assert_int_equal(opts_object(o, "c", &out, &err), -EINVAL);
	assert_int_equal(opts_object(o, "absent", &out, &err), 0);
	assert_null(out);
	assert_int_equal(opts_object(o, "a", &out, &err), 0);
	assert_string_equal(json_write(out), "{\"x\":1}");
	assert_int_equal(opts_object(o, "e", &out, &err), 0);	/* puts the previous one */
	assert_string_equal(json_write(out), "{\"y\":2}");
	assert_int_equal(opts_value(o, "d", &out, &err), 0);
	assert_string_equal(json_write(out), "[1]");
	assert_true(has(o, "c"));
	assert_int_equal(opts_value(o, "c", &out, &err), 0);
	assert_null(out);
	assert_false(has(o, "c"));
	assert_string_equal(json_write(o), "{\"b\":\"s\"}");
	json_object_put(o);
}

static void test_enum(void **state)
{
	static const char *const names[] = { "report", "ignore", "stop", NULL };
	struct json_object *o = json("{'a':'stop','b':'x','c':1,'d':'report'}");
	struct error err;
	int out = 9;

	assert_int_equal(opts_enum(o, "absent", names, &out, &err), 0);
	assert_int_equal(out, 9);
	assert_int_equal(opts_enum(o, "b", names, &out, &err), -EINVAL);
	assert_string_equal(err.text, "Parameter 'b' does not accept value 'x'");
	assert_int_equal(opts_enum(o, "c", names, &out, &err), -EINVAL);
	assert_int_equal(out, 9);
	assert_int_equal(opts_enum(o, "a", names, &out, &err), 0);
	assert_int_equal(out, 2);
	assert_int_equal(opts_enum(o, "d", names, &out, &err), 0);
	assert_int_equal(out, 0);
	json_object_put(o);
}

static void test_require_and_end(void **state)
{
	struct json_object *o = json("{'a':null}");
	struct json_object *out = NULL;
	struct error err;

	assert_int_equal(opts_require(o, "a", &err), 0);
	assert_int_equal(opts_require(o, "b", &err), -EINVAL);
	assert_string_equal(err.text, "Parameter 'b' is missing");
	assert_int_equal(opts_end(o, &err), -EINVAL);
	assert_string_equal(err.text, "Parameter 'a' is unexpected");
	assert_int_equal(opts_value(o, "a", &out, &err), 0);
	assert_int_equal(opts_end(o, &err), 0);
	json_object_put(o);
}

static void test_copy(void **state)
{
	const char *text = "{\"a\":[1,{\"b\":null}],\"c\":1.50,\"d\":18446744073709551615,\"e\":\"x\"}";
	struct json_object *o = json(text), *copy = opts_copy(o), *out = NULL;

	assert_int_equal(opts_value(o, "a", &out, NULL), 0);
	json_object_array_add(out, json_object_new_int(5));
	json_object_put(out);
	json_object_put(o);
	assert_string_equal(json_write(copy), text);
	json_object_put(copy);
	assert_null(opts_copy(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_str),  cmocka_unit_test(test_bool),
		cmocka_unit_test(test_u64),  cmocka_unit_test(test_object_and_value),
		cmocka_unit_test(test_enum), cmocka_unit_test(test_require_and_end),
		cmocka_unit_test(test_copy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
