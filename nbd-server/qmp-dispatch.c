/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-dispatch: checks arguments against the table of commands, and runs them.
 *
 * Arguments are checked in the table's order, what is left over last, with the
 * texts of QEMU's generated visitors.  A handler gets a private copy and may
 * rely on what the table says: presence, types, values.
 *
 * One command at a time: handlers wait for disk loops, and what they looked up
 * must be there afterwards.  Those marked "unlocked" never wait.  A job that takes
 * effect holds the same lock.
 */
#include "nbd-server/qmp.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "common/co.h"
#include "common/options.h"
#include "nbd-server/state.h"

static struct co_mutex qmp_lock;
static struct co *qmp_owner;		/* who has it */
static unsigned qmp_depth;		/* how often */
struct qmp_fds *qmp_received;

static const char *const type_names[] = {
	[QMP_STR] = "string",
	[QMP_BOOL] = "boolean",
	[QMP_INT] = "integer",
	[QMP_UINT] = "integer",
	[QMP_OBJECT] = "object",
	[QMP_ARRAY] = "array",
	[QMP_NUMBER] = "number",
	[QMP_ANY] = "any",
};

void qmp_lock_take(bool take)
{
	if (take) {
		if (!qmp_lock.held || qmp_owner != co_self())
			co_mutex_lock(&qmp_lock);
		qmp_owner = co_self();
		qmp_depth++;
	} else if (--qmp_depth == 0) {
		qmp_owner = NULL;
		co_mutex_unlock(&qmp_lock);
	}
}

const struct qmp_command *qmp_command_find(const char *name)
{
	for (const struct qmp_command *c = qmp_commands; c->name; c++) {
		if (!strcmp(c->name, name))
			return c;
	}
	return NULL;
}

const char *qmp_str(struct json_object *args, const char *name)
{
	struct json_object *v;

	return json_object_object_get_ex(args, name, &v) ? json_object_get_string(v) : NULL;
}

int qmp_choice(struct json_object *args, const char *name, const char *const *names, int absent)
{
	const char *v = qmp_str(args, name);
	int i = 0;

	while (v && names[i] && strcmp(names[i], v))
		i++;
	return v ? i : absent;
}

bool qmp_bool(struct json_object *args, const char *name, bool absent)
{
	struct json_object *v;

	return json_object_object_get_ex(args, name, &v) ? json_object_get_boolean(v) : absent;
}

/* json-c's own conversion makes 0 of a negative number. */
uint64_t qmp_u64(struct json_object *args, const char *name)
{
	struct json_object *v;
	int64_t n;

	if (!json_object_object_get_ex(args, name, &v))
		return 0;
	n = json_object_get_int64(v);
	return n < 0 ? (uint64_t)n : json_object_get_uint64(v);
}

/* -- checks ----------------------------------------------------------------- */

static bool has_type(struct json_object *v, enum qmp_type type)
{
	switch (type) {
	case QMP_STR:
		return json_object_is_type(v, json_type_string);
	case QMP_BOOL:
		return json_object_is_type(v, json_type_boolean);
	case QMP_INT:
	case QMP_UINT:
		return json_object_is_type(v, json_type_int);
	case QMP_OBJECT:
		return json_object_is_type(v, json_type_object);
	case QMP_ARRAY:
		return json_object_is_type(v, json_type_array);
	case QMP_STR_OBJECT_NULL:
		if (!v)
			return true;
		/* fallthrough */
	case QMP_STR_OR_OBJECT:
		return json_object_is_type(v, json_type_string) ||
		       json_object_is_type(v, json_type_object);
	case QMP_NUMBER:
		return json_object_is_type(v, json_type_int) ||
		       json_object_is_type(v, json_type_double);
	case QMP_ANY:
		return true;
	}
	return false;
}

static int check_value(const struct qmp_arg *a, struct json_object *v, const char *path,
		       struct error *err);

/* PATH ends with the array's name, without a dot. */
static int check_array(const struct qmp_arg *a, struct json_object *v, const char *path,
		       struct error *err)
{
	size_t n = json_object_array_length(v);

	for (size_t i = 0; a->item && i < n; i++) {
		char at[256];
		int rc;

		snprintf(at, sizeof(at), "%s[%zu]", path, i);
		rc = check_value(a->item, json_object_array_get_idx(v, i), at, err);
		if (rc)
			return rc;
	}
	return 0;
}

static int check_string(const struct qmp_arg *a, struct json_object *v, struct error *err)
{
	const char *text = json_object_get_string(v);

	for (const char *const *p = a->values; p && *p; p++) {
		if (!strcmp(*p, text))
			return 0;
	}
	for (const struct qmp_case *c = a->cases ? a->cases() : NULL; c && c->value; c++) {
		if (!strcmp(c->value, text))
			return 0;
	}
	if (!a->values && !a->cases)
		return 0;
	/* QEMU names the member without its path here. */
	return error_set(err, -EINVAL, "Parameter '%s' does not accept value '%s'", a->name, text);
}

static int check_value(const struct qmp_arg *a, struct json_object *v, const char *path,
		       struct error *err)
{
	char below[256];

	if (!has_type(v, a->type) && a->type == QMP_UINT)
		return error_set(err, -EINVAL, "Parameter '%s' expects uint64", path);
	if (!has_type(v, a->type))
		return error_set(err, -EINVAL, "Invalid parameter type for '%s', expected: %s",
				 path, a->alternate ? a->alternate : type_names[a->type]);
	if (json_object_is_type(v, json_type_string))
		return check_string(a, v, err);
	if (a->type == QMP_ARRAY)
		return check_array(a, v, path, err);
	if (json_object_is_type(v, json_type_object) && a->members) {
		snprintf(below, sizeof(below), "%s.", path);
		return qmp_check(a->members, v, a->open, below, err);
	}
	return 0;
}

static bool is_known(const struct qmp_arg *args, const char *name)
{
	for (const struct qmp_arg *a = args; a && a->name; a++) {
		if (!strcmp(a->name, name))
			return true;
	}
	return false;
}

const struct qmp_case *qmp_case_of(const struct qmp_arg *args, struct json_object *o)
{
	const struct qmp_arg *tag = args;
	const char *value;

	while (tag && tag->name && !tag->cases)
		tag++;
	if (!tag || !tag->name)
		return NULL;
	value = qmp_str(o, tag->name);
	for (const struct qmp_case *c = tag->cases(); value && c->value; c++) {
		if (!strcmp(c->value, value))
			return c;
	}
	return NULL;
}

static int check_members(const struct qmp_arg *args, struct json_object *o, const char *path,
			 struct error *err)
{
	for (const struct qmp_arg *a = args; a && a->name; a++) {
		struct json_object *v;
		char name[256];
		int rc;

		snprintf(name, sizeof(name), "%s%s", path, a->name);
		if (!json_object_object_get_ex(o, a->name, &v)) {
			if (a->required)
				return error_set(err, -EINVAL, "Parameter '%s' is missing", name);
			continue;
		}
		rc = check_value(a, v, name, err);
		if (rc)
			return rc;
	}
	return 0;
}

int qmp_check(const struct qmp_arg *args, struct json_object *o, bool open, const char *path,
	      struct error *err)
{
	const struct qmp_case *more;
	int rc = check_members(args, o, path, err);

	if (rc)
		return rc;
	more = qmp_case_of(args, o);
	rc = more ? check_members(more->members, o, path, err) : 0;
	if (rc || open)
		return rc;
	json_object_object_foreach(o, key, value) {
		(void)value;
		if (!is_known(args, key) && !(more && is_known(more->members, key)))
			return error_set(err, -EINVAL, "Parameter '%s%s' is unexpected", path, key);
	}
	return 0;
}

static struct qmp_arg row_of(const struct qmp_arg *rows, const char *name)
{
	while (rows->name && strcmp(rows->name, name))
		rows++;
	return rows->name ? *rows : (struct qmp_arg){ name, QMP_ANY };
}

struct qmp_arg *qmp_rows(const struct qmp_arg *rows, const char *const *names)
{
	struct qmp_arg *v;
	size_t n = 0;

	while (names && names[n])
		n++;
	v = calloc(n + 1, sizeof(*v));
	for (size_t i = 0; v && i < n; i++)
		v[i] = row_of(rows, names[i]);
	return v;
}

/* -- a command line's strings ------------------------------------------------ */

/* *OUT is a new value of A's type made out of V's text, or NULL when V is fine. */
static int type_value(const struct qmp_arg *a, struct json_object *v, struct json_object **out,
		      struct error *err)
{
	struct json_object *o = json_object_new_object();
	const char *name = a->name ? a->name : "item";	/* elements of arrays have none */
	uint64_t number = 0;
	bool flag = false;
	int rc = 0;

	*out = NULL;
	json_object_object_add(o, name, json_object_get(v));
	if (json_object_is_type(v, json_type_string) && a->type == QMP_BOOL) {
		rc = opts_bool(o, name, &flag, err);
		*out = rc ? NULL : json_object_new_boolean(flag);
	} else if (json_object_is_type(v, json_type_string) &&
		   (a->type == QMP_INT || a->type == QMP_UINT)) {
		rc = opts_u64(o, name, &number, err);
		*out = rc ? NULL : json_object_new_uint64(number);
	}
	json_object_put(o);
	return rc;
}

static int type_items(const struct qmp_arg *item, struct json_object *list, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < json_object_array_length(list) && !rc; i++) {
		struct json_object *v = json_object_array_get_idx(list, i), *typed = NULL;

		if (item->members && json_object_is_type(v, json_type_object))
			rc = qmp_keyval_types(item->members, v, err);
		else
			rc = type_value(item, v, &typed, err);
		if (typed)
			json_object_array_put_idx(list, i, typed);
	}
	return rc;
}

static int type_members(const struct qmp_arg *args, struct json_object *o, struct error *err)
{
	for (const struct qmp_arg *a = args; a && a->name; a++) {
		struct json_object *v, *typed;
		int rc;

		if (!json_object_object_get_ex(o, a->name, &v))
			continue;
		if (a->members && json_object_is_type(v, json_type_object)) {
			rc = qmp_keyval_types(a->members, v, err);
		} else if (a->item && json_object_is_type(v, json_type_array)) {
			rc = type_items(a->item, v, err);
		} else {
			rc = type_value(a, v, &typed, err);
			if (typed)
				json_object_object_add(o, a->name, typed);
		}
		if (rc)
			return rc;
	}
	return 0;
}

int qmp_keyval_types(const struct qmp_arg *args, struct json_object *o, struct error *err)
{
	const struct qmp_case *more = qmp_case_of(args, o);
	int rc = type_members(args, o, err);

	return !rc && more ? type_members(more->members, o, err) : rc;
}

/* -- running ---------------------------------------------------------------- */

static int run_checked(const struct qmp_command *c, struct json_object *args,
		       struct json_object **ret, struct error *err)
{
	struct state_change change;
	int rc = qmp_check(c->args, args, c->open_args, "", err);

	if (rc)
		return rc;
	if (!c->unlocked)
		qmp_lock_take(true);
	rc = state_prepare(c->name, args, &change, err);
	if (!rc)
		rc = state_finish(&change, c->run(args, ret, err), err);
	if (!c->unlocked)
		qmp_lock_take(false);
	/* A handler that failed without a word still fails. */
	if (rc && !err->code)
		error_errno(err, rc, "%s", c->name);
	return rc;
}

int qmp_run(const char *name, struct json_object *args, struct json_object **ret,
	    struct error *err)
{
	const struct qmp_command *c = qmp_command_find(name);
	struct json_object *copy;
	int rc;

	*ret = NULL;
	if (!c)
		return error_set_class(err, ERROR_COMMAND_NOT_FOUND, -ENOENT,
				       "The command %s has not been found", name);
	copy = args ? opts_copy(args) : json_object_new_object();
	if (!copy)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = run_checked(c, copy, ret, err);
	json_object_put(copy);
	if (rc) {
		json_object_put(*ret);
		*ret = NULL;
	}
	return rc;
}

int qmp_run_keyval(const char *name, struct json_object *args, struct error *err)
{
	const struct qmp_command *c = qmp_command_find(name);
	struct json_object *copy = opts_copy(args), *ret = NULL;
	int rc;

	if (!c || !copy) {
		json_object_put(copy);
		return error_set(err, -ENOMEM, "Out of memory");
	}
	rc = qmp_keyval_types(c->args, copy, err);
	if (!rc)
		rc = run_checked(c, copy, &ret, err);
	json_object_put(copy);
	json_object_put(ret);
	return rc;
}
