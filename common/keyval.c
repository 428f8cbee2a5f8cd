/* SPDX-License-Identifier: BSD-3-Clause */
/* keyval: "a.b=c,d=e" is first read into objects whose leaves are strings; objects
 * with numbers for keys become arrays at the end, when all of them are there.
 *
 * The text comes from a command line, but it is bounded all the same: its length,
 * the length of a name and the depth.  A list costs no more than its text, because
 * its indices must be 0..n-1.
 */
#include "common/keyval.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"

#define TEXT_MAX 65536
#define NAME_MAX_LEN 127
#define DEPTH_MAX 32

struct reader {
	const char *at;
	bool bare;			/* NAME is NAME=on, noNAME is NAME=off */
	struct error *err;
};

static int fail_memory(struct reader *r)
{
	return error_set(r->err, -ENOMEM, "Out of memory for parameters");
}

static int fail_inconsistent(struct reader *r, const char *key, size_t len)
{
	return error_set(r->err, -EINVAL, "Parameters '%.*s.*' used inconsistently",
			 (int)len, key);
}

static bool is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* A number without leading zeroes, so that each index has one spelling. */
static bool is_index(const char *name, size_t len)
{
	if (len == 0 || len > 9 || (name[0] == '0' && len > 1))
		return false;
	for (size_t i = 0; i < len; i++)
		if (!is_digit(name[i]))
			return false;
	return true;
}

static bool is_name(const char *name, size_t len)
{
	if (len == 0 || !is_letter(name[0]))
		return false;
	for (size_t i = 1; i < len; i++)
		if (!is_letter(name[i]) && !is_digit(name[i]) && name[i] != '-' && name[i] != '_')
			return false;
	return true;
}

/* Bytes of KEY up to the next '.' or its end. */
static size_t fragment_length(const char *key, size_t len)
{
	const char *dot = memchr(key, '.', len);

	return dot ? (size_t)(dot - key) : len;
}

/* Every fragment is a name or, behind the first, an index. */
static int check_key(struct reader *r, const char *key, size_t len)
{
	size_t n, depth = 0;

	for (size_t off = 0; off <= len; off += n + 1, depth++) {
		n = fragment_length(key + off, len - off);
		if (!is_name(key + off, n) && !(off > 0 && is_index(key + off, n)))
			return error_set(r->err, -EINVAL, "Invalid parameter '%.*s'",
					 (int)len, key);
		if (n > NAME_MAX_LEN)
			return error_set(r->err, -EINVAL, "Parameter '%.*s' is too long",
					 (int)len, key);
	}
	if (depth > DEPTH_MAX)
		return error_set(r->err, -EINVAL, "Parameter '%.*s' is nested too deeply",
				 (int)len, key);
	return 0;
}

/* Finds or makes the object KEY[0..len) in O, where fragment NAME is the last. */
static int enter(struct reader *r, struct json_object **o, const char *name,
		 const char *key, size_t len)
{
	struct json_object *child;

	if (!json_object_object_get_ex(*o, name, &child)) {
		child = json_object_new_object();
		if (!child || json_object_object_add(*o, name, child) < 0) {
			json_object_put(child);
			return fail_memory(r);
		}
	}
	if (!json_object_is_type(child, json_type_object))
		return fail_inconsistent(r, key, len);
	*o = child;
	return 0;
}

/* Puts VALUE, which is consumed, at KEY below ROOT; KEY was checked. */
static int put(struct reader *r, struct json_object *root, const char *key, size_t len,
	       struct json_object *value)
{
	struct json_object *o = root, *old;
	char name[NAME_MAX_LEN + 1];
	size_t off = 0, n;
	int rc = value ? 0 : fail_memory(r);

	while (rc == 0) {
		n = fragment_length(key + off, len - off);
		snprintf(name, sizeof(name), "%.*s", (int)n, key + off);
		off += n + 1;
		if (off > len)
			break;
		rc = enter(r, &o, name, key, off - 1);
	}
	if (rc == 0 && json_object_object_get_ex(o, name, &old) &&
	    json_object_is_type(old, json_type_object))
		rc = fail_inconsistent(r, key, len);
	if (rc == 0 && json_object_object_add(o, name, value) < 0)
		rc = fail_memory(r);
	if (rc < 0)
		json_object_put(value);
	return rc;
}

/* The text up to a single comma, which is consumed too; ",," stands for one. */
static struct json_object *read_value(struct reader *r)
{
	char *buf = malloc(strlen(r->at) + 1);
	struct json_object *value;
	size_t n = 0;

	if (!buf)
		return NULL;
	for (; *r->at; r->at++) {
		if (*r->at == ',' && *++r->at != ',')
			break;
		buf[n++] = *r->at;
	}
	value = json_object_new_string_len(buf, n);
	free(buf);
	return value;
}

/* A pair without '=': LEN bytes that are the value of IMPLIED, or a bare name. */
static int read_lone(struct reader *r, struct json_object *root, const char *implied, size_t len)
{
	const char *text = r->at;
	bool off;
	int rc;

	r->at += len + (text[len] == ',');
	if (implied && len > 0)
		return put(r, root, implied, strlen(implied),
			   json_object_new_string_len(text, len));
	off = r->bare && len > 2 && memcmp(text, "no", 2) == 0;
	text += off ? 2 : 0;
	len -= off ? 2 : 0;
	rc = check_key(r, text, len);
	if (rc < 0)
		return rc;
	if (!r->bare)
		return error_set(r->err, -EINVAL, "Expected '=' after parameter '%.*s'",
				 (int)len, text);
	return put(r, root, text, len, json_object_new_string(off ? "off" : "on"));
}

static int read_pair(struct reader *r, struct json_object *root, const char *implied)
{
	const char *key = r->at;
	size_t len = strcspn(key, "=,");
	int rc;

	if (key[len] != '=')
		return read_lone(r, root, implied, len);
	rc = check_key(r, key, len);
	if (rc < 0)
		return rc;
	r->at += len + 1;
	return put(r, root, key, len, read_value(r));
}

/* Where in the tree an object is, for messages. */
struct path {
	const struct path *up;
	const char *name;
};

static void format_path(char *buf, size_t size, const struct path *path)
{
	size_t len;

	buf[0] = '\0';
	if (path->up)
		format_path(buf, size, path->up);
	len = strlen(buf);
	snprintf(buf + len, size - len, "%s%s", len ? "." : "", path->name);
}

static int fail_path(struct reader *r, const struct path *path)
{
	char text[256];

	format_path(text, sizeof(text), path);
	return fail_inconsistent(r, text, strlen(text));
}

/* *O has only numbers for keys: an array takes its place. */
static int make_array(struct reader *r, struct json_object **o, const struct path *path)
{
	int n = json_object_object_length(*o);
	struct json_object *array = json_object_new_array_ext(n), *item;
	char name[16], text[256];

	if (!array)
		return fail_memory(r);
	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "%d", i);
		if (!json_object_object_get_ex(*o, name, &item)) {
			json_object_put(array);
			format_path(text, sizeof(text), path);
			return error_set(r->err, -EINVAL, "Parameter '%s.%d' missing", text, i);
		}
		if (json_object_array_add(array, json_object_get(item)) < 0) {
			json_object_put(item);
			json_object_put(array);
			return fail_memory(r);
		}
	}
	json_object_put(*o);
	*o = array;
	return 0;
}

/* Turns every object below *O, and *O itself, into an array where its keys say so.
 * *O is replaced; the caller's reference goes with it. */
static int listify(struct reader *r, struct json_object **o, const struct path *path)
{
	int numbers = 0, rc;

	json_object_object_foreach(*o, key, value) {
		struct path below = { path, key };
		struct json_object *child = json_object_get(value);

		numbers += is_index(key, strlen(key));
		if (!json_object_is_type(value, json_type_object)) {
			json_object_put(child);
			continue;
		}
		rc = listify(r, &child, &below);
		if (rc < 0) {
			json_object_put(child);
			return rc;
		}
		/* Replaces the value of a key that is there: the iteration goes on. */
		if (child == value || json_object_object_add(*o, key, child) < 0)
			json_object_put(child);
	}
	if (numbers == 0)
		return 0;
	if (numbers != json_object_object_length(*o))
		return fail_path(r, path);
	return make_array(r, o, path);
}

static int read_all(struct reader *r, struct json_object **root, const char *implied)
{
	int rc;

	if (strnlen(r->at, TEXT_MAX + 1) > TEXT_MAX)
		return error_set(r->err, -E2BIG, "Parameters are longer than %d bytes", TEXT_MAX);
	for (; *r->at; implied = NULL) {
		rc = read_pair(r, *root, implied);
		if (rc < 0)
			return rc;
	}
	return listify(r, root, &(struct path){ NULL, "" });
}

static struct json_object *parse(const char *text, const char *implied, bool bare,
				 struct error *err)
{
	struct reader r = { text, bare, err };
	struct json_object *root;

	if (text[0] == '{')
		return json_parse_text(text, err);
	root = json_object_new_object();
	if (!root) {
		fail_memory(&r);
		return NULL;
	}
	if (read_all(&r, &root, implied) < 0) {
		json_object_put(root);
		return NULL;
	}
	return root;
}

struct json_object *keyval_parse(const char *text, const char *implied_key, struct error *err)
{
	return parse(text, implied_key, false, err);
}

struct json_object *keyval_parse_bare(const char *text, const char *implied_key,
				      struct error *err)
{
	return parse(text, implied_key, true, err);
}
