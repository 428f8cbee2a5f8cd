/* SPDX-License-Identifier: BSD-3-Clause */
/* authz: one name; or a list of rules, of which the first that matches decides; or such
 * a list in a JSON file, read again when the file is another one than before:
 *
 *	{"policy": "deny", "rules": [{"match": "*CN=fred,*", "format": "glob", "policy": "allow"}]}
 */
#include "common/authz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/options.h"
#include "common/read-small.h"

#define AUTHZ_FILE_MAX (1u << 20)	/* bytes */

static const char *const policies[] = { "deny", "allow", NULL };
static const char *const formats[] = { "exact", "glob", NULL };

enum { DENY, ALLOW };
enum { EXACT, GLOB };

struct rule {
	char *match;
	int policy, format;
};

struct rules {
	struct rule *v;
	size_t n;
	int policy;			/* when none matches */
};

struct authz {
	char *identity;			/* simple */
	struct rules rules;
	char *filename;			/* listfile */
	bool refresh;
	struct stat st;			/* of the file that the rules come from */
};

/* -- rules ------------------------------------------------------------------ */

static void rules_clear(struct rules *r)
{
	for (size_t i = 0; i < r->n; i++)
		free(r->v[i].match);
	free(r->v);
	*r = (struct rules){ 0 };
}

static int take_rule(struct json_object *o, struct rule *r, struct error *err)
{
	int rc = opts_require(o, "match", err);

	if (!rc)
		rc = opts_str(o, "match", &r->match, err);
	if (!rc)
		rc = opts_require(o, "policy", err);
	if (!rc)
		rc = opts_enum(o, "policy", policies, &r->policy, err);
	if (!rc)
		rc = opts_enum(o, "format", formats, &r->format, err);
	return rc ? rc : opts_end(o, err);
}

static int take_list(struct json_object *list, struct rules *r, struct error *err)
{
	size_t n = json_object_array_length(list);
	int rc = 0;

	r->v = calloc(n + 1, sizeof(*r->v));
	if (!r->v)
		return error_set(err, -ENOMEM, "Out of memory");
	for (size_t i = 0; i < n && !rc; i++) {
		struct json_object *o = json_object_array_get_idx(list, i);
		char *path;

		if (!json_object_is_type(o, json_type_object))
			return error_set(err, -EINVAL,
					 "Invalid parameter type for 'rules[%zu]', expected: object",
					 i);
		if (asprintf(&path, "rules[%zu].", i) < 0)
			return error_set(err, -ENOMEM, "Out of memory");
		json_object_set_userdata(o, path, json_object_free_userdata);
		r->n = i + 1;
		rc = take_rule(o, &r->v[i], err);
	}
	return rc;
}

/* The members policy and rules, and no others.  *R is overwritten. */
static int take_rules(struct json_object *opts, struct rules *r, struct error *err)
{
	struct json_object *list = NULL;
	int rc = opts_enum(opts, "policy", policies, &r->policy, err);

	if (!rc)
		rc = opts_value(opts, "rules", &list, err);
	if (!rc && list && !json_object_is_type(list, json_type_array))
		rc = error_set(err, -EINVAL, "Invalid parameter type for 'rules', expected: array");
	if (!rc && list)
		rc = take_list(list, r, err);
	json_object_put(list);
	return rc ? rc : opts_end(opts, err);
}

/* '*' is any number of bytes, '?' one, everything else itself. */
static bool glob(const char *pattern, const char *text)
{
	const char *star = NULL, *resume = NULL;

	while (*text) {
		if (*pattern == '*') {
			star = ++pattern;
			resume = text;
		} else if (*pattern && (*pattern == '?' || *pattern == *text)) {
			pattern++;
			text++;
		} else if (star) {
			pattern = star;
			text = ++resume;
		} else {
			return false;
		}
	}
	while (*pattern == '*')
		pattern++;
	return !*pattern;
}

static bool rules_allow(const struct rules *r, const char *identity)
{
	for (size_t i = 0; i < r->n; i++) {
		const struct rule *rule = &r->v[i];

		if (rule->format == GLOB ? glob(rule->match, identity)
					 : !strcmp(rule->match, identity))
			return rule->policy == ALLOW;
	}
	return r->policy == ALLOW;
}

/* -- a file of rules --------------------------------------------------------- */

static int parse_file(uint8_t *data, size_t len, struct rules *r, struct error *err)
{
	struct json_object *o = NULL;
	int rc = json_parse_in_place((char *)data, len, NULL, &o, err);

	if (!rc && !json_object_is_type(o, json_type_object))
		rc = error_set(err, -EINVAL, "it is not a JSON object");
	if (!rc)
		rc = take_rules(o, r, err);
	json_object_put(o);
	return rc;
}

static int read_file(struct authz *a, struct error *err)
{
	struct rules rules = { 0 };
	uint8_t *data = NULL;
	struct stat st;
	size_t len = 0;
	int rc = read_small(a->filename, AUTHZ_FILE_MAX, &data, &len, &st);

	if (rc)
		return error_errno(err, rc, "Unable to read '%s'", a->filename);
	rc = parse_file(data, len, &rules, err);
	read_small_free(data, len);
	if (rc) {
		rules_clear(&rules);
		error_prefix(err, "Unable to read '%s': ", a->filename);
		return rc;
	}
	rules_clear(&a->rules);
	a->rules = rules;
	a->st = st;
	return 0;
}

struct stat_job {
	const char *path;
	struct stat st;
	int rc;
};

static void stat_run(void *arg)
{
	struct stat_job *j = arg;

	j->rc = stat(j->path, &j->st);
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* False when the file cannot be read any more: then nobody may. */
static bool file_is_read(struct authz *a)
{
	struct stat_job j = { .path = a->filename };
	struct error err = ERROR_INIT;

	if (!a->refresh)
		return true;
	loop_work(stat_run, &j);
	if (!j.rc && same_file(&j.st, &a->st))
		return true;
	if (!read_file(a, &err))
		return true;
	log_warning("%s: everybody is refused", err.text);
	return false;
}

/* -- the classes ------------------------------------------------------------- */

static void authz_destroy(void *data)
{
	struct authz *a = data;

	if (!a)
		return;
	rules_clear(&a->rules);
	free(a->identity);
	free(a->filename);
	free(a);
}

static struct authz *authz_new(void **data, struct error *err)
{
	*data = calloc(1, sizeof(struct authz));
	if (!*data)
		error_set(err, -ENOMEM, "Out of memory");
	return *data;
}

static int simple_create(const char *id, struct json_object *opts, void **data, struct error *err)
{
	struct authz *a = authz_new(data, err);
	int rc = a ? opts_require(opts, "identity", err) : -ENOMEM;

	return rc ? rc : opts_str(opts, "identity", &a->identity, err);
}

static int list_create(const char *id, struct json_object *opts, void **data, struct error *err)
{
	struct authz *a = authz_new(data, err);

	return a ? take_rules(opts, &a->rules, err) : -ENOMEM;
}

static int listfile_create(const char *id, struct json_object *opts, void **data,
			   struct error *err)
{
	struct authz *a = authz_new(data, err);
	int rc = a ? opts_require(opts, "filename", err) : -ENOMEM;

	if (rc)
		return rc;
	a->refresh = true;
	rc = opts_str(opts, "filename", &a->filename, err);
	if (!rc)
		rc = opts_bool(opts, "refresh", &a->refresh, err);
	if (!rc)
		rc = opts_end(opts, err);
	return rc ? rc : read_file(a, err);
}

struct object_class authz_simple_class = {
	.name = "authz-simple",
	.options = (const char *const[]){
		"identity", NULL
	},
	.create = simple_create,
	.destroy = authz_destroy,
};

struct object_class authz_list_class = {
	.name = "authz-list",
	.options = (const char *const[]){
		"policy", "rules", NULL
	},
	.create = list_create,
	.destroy = authz_destroy,
};

struct object_class authz_listfile_class = {
	.name = "authz-listfile",
	.options = (const char *const[]){
		"filename", "refresh", NULL
	},
	.create = listfile_create,
	.destroy = authz_destroy,
};

struct object *authz_get(const char *id, struct error *err)
{
	struct object *o = NULL;

	object_get(id, NULL, &o, NULL);
	if (!o) {
		error_set(err, -ENOENT, "Cannot find QAuthZ object ID %s", id);
		return NULL;
	}
	if (object_class_of(o)->destroy == authz_destroy)
		return o;
	object_put(o);
	error_set(err, -EINVAL, "Object '%s' is not a QAuthZ subclass", id);
	return NULL;
}

bool authz_allows(struct object *o, const char *identity)
{
	struct authz *a = object_data(o);

	if (a->identity)
		return !strcmp(a->identity, identity);
	return (!a->filename || file_is_read(a)) && rules_allow(&a->rules, identity);
}
