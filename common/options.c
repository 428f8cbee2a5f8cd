/* SPDX-License-Identifier: BSD-3-Clause */
/* options: every function looks the key up, converts, and only then takes it, so
 * that an error leaves object and output as they were.
 */
#include "common/options.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/size.h"

/* Where O stands in what the user gave: "" or "file." or "file.file."; see opts_set_path(). */
static const char *path_of(struct json_object *o)
{
	const char *path = json_object_get_userdata(o);

	return path ? path : "";
}

int opts_set_path(struct json_object *o, struct json_object *parent, const char *key)
{
	char *path;

	if (asprintf(&path, "%s%s.", path_of(parent), key) < 0)
		return -ENOMEM;
	json_object_set_userdata(o, path, json_object_free_userdata);
	return 0;
}

static int fail_type(struct error *err, struct json_object *o, const char *key,
		     const char *expected)
{
	return error_set(err, -EINVAL, "Invalid parameter type for '%s%s', expected: %s", path_of(o),
			 key, expected);
}

int opts_value(struct json_object *o, const char *key, struct json_object **out,
	       struct error *err)
{
	struct json_object *value;

	if (!json_object_object_get_ex(o, key, &value))
		return 0;
	json_object_put(*out);
	*out = json_object_get(value);
	json_object_object_del(o, key);
	return 0;
}

int opts_str(struct json_object *o, const char *key, char **out, struct error *err)
{
	struct json_object *value;
	char *copy;

	if (!json_object_object_get_ex(o, key, &value))
		return 0;
	if (!json_object_is_type(value, json_type_string))
		return fail_type(err, o, key, "string");
	copy = strdup(json_object_get_string(value));
	if (!copy)
		return error_set(err, -ENOMEM, "Parameter '%s': out of memory", key);
	free(*out);
	*out = copy;
	json_object_object_del(o, key);
	return 0;
}

/* 1 and 0 for QEMU's spellings, -1 for others. */
static int bool_word(const char *text)
{
	static const char *const yes[] = { "on", "yes", "true", "y" };
	static const char *const no[] = { "off", "no", "false", "n" };

	for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
		if (strcmp(text, yes[i]) == 0)
			return 1;
		if (strcmp(text, no[i]) == 0)
			return 0;
	}
	return -1;
}

int opts_bool(struct json_object *o, const char *key, bool *out, struct error *err)
{
	struct json_object *value;
	int word;

	if (!json_object_object_get_ex(o, key, &value))
		return 0;
	if (json_object_is_type(value, json_type_boolean)) {
		*out = json_object_get_boolean(value);
	} else if (json_object_is_type(value, json_type_string)) {
		word = bool_word(json_object_get_string(value));
		if (word < 0)
			return error_set(err, -EINVAL, "Parameter '%s%s' expects 'on' or 'off'",
					 path_of(o), key);
		*out = word;
	} else {
		return fail_type(err, o, key, "boolean");
	}
	json_object_object_del(o, key);
	return 0;
}

int opts_u64(struct json_object *o, const char *key, uint64_t *out, struct error *err)
{
	struct json_object *value;
	bool ok;

	if (!json_object_object_get_ex(o, key, &value))
		return 0;
	if (json_object_is_type(value, json_type_int)) {
		ok = json_object_get_int64(value) >= 0;
		if (ok)
			*out = json_object_get_uint64(value);
	} else if (json_object_is_type(value, json_type_string)) {
		ok = size_parse(json_object_get_string(value), out, NULL) == 0;
	} else {
		return fail_type(err, o, key, "integer");
	}
	if (!ok)
		return error_set(err, -EINVAL,
				 "Parameter '%s%s' expects a non-negative number below 2^64",
				 path_of(o), key);
	json_object_object_del(o, key);
	return 0;
}

int opts_object(struct json_object *o, const char *key, struct json_object **out,
		struct error *err)
{
	struct json_object *value;

	if (json_object_object_get_ex(o, key, &value) &&
	    !json_object_is_type(value, json_type_object))
		return fail_type(err, o, key, "object");
	return opts_value(o, key, out, err);
}

int opts_enum(struct json_object *o, const char *key, const char *const *names, int *out,
	      struct error *err)
{
	struct json_object *value;
	const char *text;

	if (!json_object_object_get_ex(o, key, &value))
		return 0;
	if (!json_object_is_type(value, json_type_string))
		return fail_type(err, o, key, "string");
	text = json_object_get_string(value);
	for (int i = 0; names[i]; i++) {
		if (strcmp(text, names[i]) != 0)
			continue;
		*out = i;
		json_object_object_del(o, key);
		return 0;
	}
	return error_set(err, -EINVAL, "Parameter '%s%s' does not accept value '%s'", path_of(o), key,
			 text);
}

int opts_require(struct json_object *o, const char *key, struct error *err)
{
	if (json_object_object_get_ex(o, key, NULL))
		return 0;
	return error_set(err, -EINVAL, "Parameter '%s%s' is missing", path_of(o), key);
}

int opts_end(struct json_object *o, struct error *err)
{
	struct json_object_iterator at = json_object_iter_begin(o);
	struct json_object_iterator end = json_object_iter_end(o);

	if (json_object_iter_equal(&at, &end))
		return 0;
	return error_set(err, -EINVAL, "Parameter '%s%s' is unexpected", path_of(o),
			 json_object_iter_peek_name(&at));
}

struct json_object *opts_copy(struct json_object *o)
{
	struct json_object *copy = NULL;

	return json_object_deep_copy(o, &copy, NULL) == 0 ? copy : NULL;
}

bool id_wellformed(const char *id)
{
	if (!isalpha((unsigned char)id[0]))
		return false;
	for (; *id; id++)
		if (!isalnum((unsigned char)*id) && !strchr("-._", *id))
			return false;
	return true;
}
