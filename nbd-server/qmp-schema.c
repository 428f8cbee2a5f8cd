/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-schema: the tables of commands and events as QEMU's SchemaInfo.
 *
 * A type is one of our tables (its address says which), and gets a number for a
 * name when it is met first: names of types are nobody's business, and QEMU masks
 * its own in the same way.  A type is listed under its number before its members
 * are looked at, so tables may refer to themselves.
 */
#include "nbd-server/qmp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "nbd-server/commands.h"

enum { TYPE_NAME = 32 };		/* "[[[123]]]", "str" */

struct schema {
	struct json_object *list;
	const void **types;		/* whose number is their index */
	unsigned n, room;
	struct json_object *arrays;	/* names of array types that are listed */
	bool builtins[6];
};

static const struct {
	const char *name, *json;
} builtins[6] = {
	{ "str", "string" }, { "int", "int" }, { "number", "number" }, { "bool", "boolean" },
	{ "null", "null" }, { "any", "value" },
};

static void type_of(struct schema *s, const struct qmp_arg *a, char *name);

static void add_str(struct json_object *o, const char *key, const char *value)
{
	json_object_object_add(o, key, json_object_new_string(value));
}

/* A new element of the list. */
static struct json_object *element(struct schema *s, const char *name, const char *meta)
{
	struct json_object *o = json_object_new_object();

	add_str(o, "name", name);
	add_str(o, "meta-type", meta);
	json_object_array_add(s->list, o);
	return o;
}

/* NAME becomes the number of the type KEY; true when it is new. */
static bool number_of(struct schema *s, const void *key, char *name)
{
	unsigned i = 0;

	while (i < s->n && s->types[i] != key)
		i++;
	snprintf(name, TYPE_NAME, "%u", i);
	if (i < s->n)
		return false;
	if (s->n == s->room) {
		const void **types = realloc(s->types, (s->room * 2 + 64) * sizeof(*types));

		if (!types)
			abort();	/* a few KiB, for a table of our own */
		s->types = types;
		s->room = s->room * 2 + 64;
	}
	s->types[s->n++] = key;
	return true;
}

static void builtin_type(struct schema *s, const char *type, char *name)
{
	snprintf(name, TYPE_NAME, "%s", type);
	for (unsigned i = 0; i < 6; i++) {
		if (strcmp(builtins[i].name, type) || s->builtins[i])
			continue;
		s->builtins[i] = true;
		add_str(element(s, type, "builtin"), "json-type", builtins[i].json);
	}
}

/* -- enums, arrays, alternates --------------------------------------------------- */

static void add_value(struct json_object *o, const char *value)
{
	struct json_object *member = json_object_new_object();

	add_str(member, "name", value);
	json_object_array_add(json_object_object_get(o, "members"), member);
	json_object_array_add(json_object_object_get(o, "values"), json_object_new_string(value));
}

static void enum_type(struct schema *s, const struct qmp_arg *a, char *name)
{
	const struct qmp_case *cases = a->cases ? a->cases() : NULL;
	struct json_object *o;

	if (!number_of(s, a->values ? (const void *)a->values : (const void *)cases, name))
		return;
	o = element(s, name, "enum");
	json_object_object_add(o, "members", json_object_new_array());
	json_object_object_add(o, "values", json_object_new_array());
	for (const char *const *v = a->values; v && *v; v++)
		add_value(o, *v);
	for (const struct qmp_case *c = a->values ? NULL : cases; c && c->value; c++)
		add_value(o, c->value);
}

static void array_type(struct schema *s, const struct qmp_arg *item, char *name)
{
	static const struct qmp_arg any = { "null", QMP_ANY };
	char below[TYPE_NAME];

	type_of(s, item ? item : &any, below);
	snprintf(name, TYPE_NAME, "[%.*s]", TYPE_NAME - 3, below);
	if (json_object_object_get_ex(s->arrays, name, NULL))
		return;
	json_object_object_add(s->arrays, name, NULL);
	add_str(element(s, name, "array"), "element-type", below);
}

static void add_alternative(struct json_object *members, const char *type)
{
	struct json_object *o = json_object_new_object();

	add_str(o, "type", type);
	json_object_array_add(members, o);
}

/* Known by its name: several rows are of the same alternate. */
static const void *alternate_key(const char *name)
{
	static const char *const names[] = {
		"BlockdevRef", "BlockdevRefOrNull", "BlockDirtyBitmapOrStr",
	};

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (!strcmp(names[i], name))
			return names[i];
	}
	return name;
}

static void alternate_type(struct schema *s, const struct qmp_arg *a, char *name)
{
	struct qmp_arg object = { "null", QMP_OBJECT, .members = a->members };
	struct json_object *members = json_object_new_array();
	char type[TYPE_NAME];

	if (!number_of(s, alternate_key(a->alternate), name)) {
		json_object_put(members);
		return;
	}
	json_object_object_add(element(s, name, "alternate"), "members", members);
	type_of(s, &object, type);
	add_alternative(members, type);
	builtin_type(s, "str", type);
	add_alternative(members, type);
	if (a->type != QMP_STR_OBJECT_NULL)
		return;
	builtin_type(s, "null", type);
	add_alternative(members, type);
}

/* -- objects ----------------------------------------------------------------------- */

static bool has_member(const struct qmp_arg *args, const char *name)
{
	for (const struct qmp_arg *a = args; a && a->name; a++) {
		if (!strcmp(a->name, name))
			return true;
	}
	return false;
}

/* ONLY: the members of this case; NULL: those that all cases have. */
static void add_members(struct schema *s, struct json_object *o, const struct qmp_arg *args,
			const struct qmp_case *cases, const char *only)
{
	struct json_object *members = json_object_new_array();

	json_object_object_add(o, "members", members);
	for (const struct qmp_arg *a = args; a && a->name; a++) {
		struct json_object *m;
		char type[TYPE_NAME];

		if ((cases && has_member(cases->members, a->name)) ||
		    (a->only ? !only || strcmp(a->only, only) : only != NULL))
			continue;
		m = json_object_new_object();
		type_of(s, a, type);
		add_str(m, "name", a->name);
		add_str(m, "type", type);
		if (!a->required)
			json_object_object_add(m, "default", NULL);
		json_object_array_add(members, m);
	}
}

static void add_variant(struct json_object *variants, const char *value, const char *type)
{
	struct json_object *v = json_object_new_object();

	add_str(v, "case", value);
	add_str(v, "type", type);
	json_object_array_add(variants, v);
}

/* The variants of a table whose rows say for which value of TAG they are. */
static void add_own_variants(struct schema *s, struct json_object *o, const struct qmp_arg *args,
			     const struct qmp_arg *tag)
{
	struct json_object *variants = json_object_new_array();

	add_str(o, "tag", tag->name);
	json_object_object_add(o, "variants", variants);
	for (const char *const *v = tag->values; *v; v++) {
		char type[TYPE_NAME];

		if (number_of(s, *v, type))
			add_members(s, element(s, type, "object"), args, NULL, *v);
		add_variant(variants, *v, type);
	}
}

/* The row that the others' ->only is about; NULL: none says so. */
static const struct qmp_arg *own_tag(const struct qmp_arg *args)
{
	const struct qmp_arg *a = args, *tag = args;

	while (a->name && !a->only)
		a++;
	while (a->name && tag->name && !tag->values)
		tag++;
	return a->name && tag->name ? tag : NULL;
}

static void object_type(struct schema *s, const struct qmp_arg *args, char *name);

static void add_variants(struct schema *s, struct json_object *o, const struct qmp_case *cases)
{
	struct json_object *variants = json_object_new_array();

	json_object_object_add(o, "variants", variants);
	for (const struct qmp_case *c = cases; c->value; c++) {
		char type[TYPE_NAME];

		object_type(s, c->members, type);
		add_variant(variants, c->value, type);
	}
}

static void object_type(struct schema *s, const struct qmp_arg *args, char *name)
{
	const struct qmp_arg *tag = args;
	struct json_object *o;

	if (!args || !args->name)
		args = args_nothing;	/* there is one empty object */
	if (!number_of(s, args, name))
		return;
	o = element(s, name, "object");
	while (tag && tag->name && !tag->cases)
		tag++;
	if (!tag || !tag->name) {
		add_members(s, o, args, NULL, NULL);
		tag = own_tag(args);
		if (tag)
			add_own_variants(s, o, args, tag);
		return;
	}
	add_members(s, o, args, tag->cases(), NULL);
	add_str(o, "tag", tag->name);
	add_variants(s, o, tag->cases());
}

static void type_of(struct schema *s, const struct qmp_arg *a, char *name)
{
	switch (a->type) {
	case QMP_STR:
		if (a->values || a->cases)
			enum_type(s, a, name);
		else
			builtin_type(s, "str", name);
		break;
	case QMP_BOOL:
		builtin_type(s, "bool", name);
		break;
	case QMP_INT:
	case QMP_UINT:
		builtin_type(s, "int", name);
		break;
	case QMP_NUMBER:
		builtin_type(s, "number", name);
		break;
	case QMP_OBJECT:
		if (a->members)
			object_type(s, a->members, name);
		else
			builtin_type(s, "any", name);
		break;
	case QMP_ARRAY:
		array_type(s, a->item, name);
		break;
	case QMP_STR_OR_OBJECT:
	case QMP_STR_OBJECT_NULL:
		alternate_type(s, a, name);
		break;
	case QMP_ANY:
		builtin_type(s, "any", name);
		break;
	}
}

/* -- all ----------------------------------------------------------------------------- */

struct json_object *qmp_schema(void)
{
	struct schema s = { .list = json_object_new_array(), .arrays = json_object_new_object() };
	char type[TYPE_NAME];

	for (const struct qmp_command *c = qmp_commands; c->name; c++) {
		struct json_object *o = element(&s, c->name, "command");

		object_type(&s, c->args, type);
		add_str(o, "arg-type", type);
		if (c->ret)
			type_of(&s, c->ret, type);
		else
			object_type(&s, NULL, type);
		add_str(o, "ret-type", type);
	}
	for (const struct qmp_event_def *e = qmp_events; e->name; e++) {
		struct json_object *o = element(&s, e->name, "event");

		object_type(&s, e->data, type);
		add_str(o, "arg-type", type);
	}
	json_object_put(s.arrays);
	free(s.types);
	return s.list;
}
