// SPDX-License-Identifier: BSD-3-Clause
/* repo-manifest: a restore point as JSON, and back (doc/formats/backup-repository.md).
 *
 * Reading doubts everything: a manifest is taken when its own checksum is right and each
 * member is what the format says, with names that are the ones we would have made.
 */
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/repo-int.h"
#include "common/bytes.h"
#include "common/json.h"

#define SELF "\"manifest-sha256\": \""

static const char zeros[] = "0000000000000000000000000000000000000000000000000000000000000000";

/* --- times */

void repo_time_text(int64_t t, char out[REPO_TIME])
{
	time_t when = t;
	struct tm tm;

	if (!gmtime_r(&when, &tm) || !strftime(out, REPO_TIME, "%Y-%m-%dT%H:%M:%SZ", &tm))
		snprintf(out, REPO_TIME, "1970-01-01T00:00:00Z");
}

static bool parse_time(const char *text, int64_t *out)
{
	struct tm tm = { 0 };
	const char *end = strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm);

	if (!end || *end)
		return false;
	*out = timegm(&tm);
	return true;
}

/* --- reading: after the first fault nothing more is looked at */

struct reader {
	struct json_object *o;
	struct error *err;
	bool bad;
};

static void fault(struct reader *r, const char *key, const char *what)
{
	if (!r->bad)
		error_set(r->err, -EUCLEAN, "'%s' %s", key, what);
	r->bad = true;
}

/* The member KEY of TYPE, or NULL; it may be missing when OPTIONAL. */
static struct json_object *member(struct reader *r, const char *key, enum json_type type, bool optional)
{
	struct json_object *v;

	if (r->bad || (!json_object_object_get_ex(r->o, key, &v) && optional))
		return NULL;
	if (!json_object_object_get_ex(r->o, key, &v) || !json_object_is_type(v, type)) {
		fault(r, key, "is missing or of the wrong type");
		return NULL;
	}
	return v;
}

static const char *text(struct reader *r, const char *key)
{
	struct json_object *v = member(r, key, json_type_string, false);

	return v ? json_object_get_string(v) : "";
}

static char *text_copy(struct reader *r, const char *key, bool optional)
{
	struct json_object *v = member(r, key, json_type_string, optional);
	char *copy = v ? strdup(json_object_get_string(v)) : NULL;

	if (v && !copy)
		fault(r, key, "does not fit into memory");
	for (const char *c = copy; c && *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			fault(r, key, "has control characters");
	return copy;
}

static uint64_t number(struct reader *r, const char *key, uint64_t min, uint64_t max)
{
	struct json_object *v = member(r, key, json_type_int, false);

	if (v && (json_object_get_int64(v) < 0 || json_object_get_uint64(v) < min ||
		  json_object_get_uint64(v) > max))
		fault(r, key, "is out of range");
	return v ? json_object_get_uint64(v) : 0;
}

static void hash(struct reader *r, const char *key, uint8_t out[SUMS_HASH])
{
	if (!sums_unhex(text(r, key), out))
		fault(r, key, "is no checksum");
}

static int64_t moment(struct reader *r, const char *key)
{
	int64_t t = 0;

	if (!parse_time(text(r, key), &t))
		fault(r, key, "is no time");
	return t;
}

/* KEY must say WANT. */
static void must_be(struct reader *r, const char *key, const char *want)
{
	if (strcmp(text(r, key), want))
		fault(r, key, "is not what it has to be");
}

static void name_must_be(struct reader *r, const char *key, const char *disk, const char *point,
			 const char *suffix)
{
	char want[REPO_FILE_MAX];

	repo_file_name(want, disk, point, suffix);
	must_be(r, key, want);
}

static void read_level(struct reader *r, struct repo_disk *d)
{
	const char *level = text(r, "level"), *parent;

	if (!strcmp(level, "full")) {
		d->level = REPO_FULL;
		d->reason = text_copy(r, "reason", false);
		return;
	}
	if (strcmp(level, "incremental"))
		return fault(r, "level", "is neither full nor incremental");
	d->level = REPO_INCREMENTAL;
	parent = text(r, "parent");
	if (!repo_id_valid(parent))
		return fault(r, "parent", "is no restore point's name");
	strcpy(d->parent, parent);
}

static void read_disk(struct reader *r, const char *point, struct repo_disk *d)
{
	const char *name = text(r, "name");

	if (!repo_disk_valid(name))
		return fault(r, "name", "is no disk's name");
	strcpy(d->name, name);
	d->size = number(r, "size", 0, REPO_SIZE_MAX);
	must_be(r, "format", "qcow2");
	name_must_be(r, "file", d->name, point, "qcow2");
	name_must_be(r, "sums", d->name, point, "sums");
	read_level(r, d);
	if (member(r, "merged", json_type_string, true)) {
		const char *merged = text(r, "merged");

		if (!repo_id_valid(merged))
			return fault(r, "merged", "is no restore point's name");
		strcpy(d->merged, merged);
	}
	d->checkpoint = text_copy(r, "checkpoint", true);
	d->source = text_copy(r, "source", true);
	d->read = number(r, "read-bytes", 0, INT64_MAX);
	d->data = number(r, "data-bytes", 0, INT64_MAX);
	d->zero = number(r, "zero-bytes", 0, INT64_MAX);
	d->sums_bytes = number(r, "sums-bytes", 0, INT64_MAX);
	hash(r, "sums-sha256", d->sums_hash);
	hash(r, "root", d->root);
}

static void read_disks(struct reader *r, struct repo_point *p)
{
	struct json_object *list = member(r, "disks", json_type_array, false);
	size_t n = list ? json_object_array_length(list) : 0;

	if (list && (n == 0 || n > REPO_DISKS))
		fault(r, "disks", "are too many, or none");
	p->disk = r->bad ? NULL : calloc(n, sizeof(*p->disk));
	if (!p->disk)
		return fault(r, "disks", "do not fit into memory");
	for (size_t i = 0; i < n && !r->bad; i++) {
		struct reader one = { .o = json_object_array_get_idx(list, i), .err = r->err };

		if (!json_object_is_type(one.o, json_type_object))
			return fault(r, "disks", "has something that is no disk");
		p->n = i + 1;
		read_disk(&one, p->id, &p->disk[i]);
		r->bad = one.bad;
		for (size_t j = 0; j < i && !r->bad; j++)
			if (!strcmp(p->disk[j].name, p->disk[i].name))
				fault(r, "disks", "has a disk twice");
	}
}

static void read_arguments(struct reader *r, struct repo_point *p)
{
	struct json_object *list = member(r, "arguments", json_type_array, false);
	size_t n = list ? json_object_array_length(list) : 0;

	p->arguments = r->bad ? NULL : calloc(n + 1, sizeof(char *));
	for (size_t i = 0; p->arguments && i < n; i++) {
		struct json_object *v = json_object_array_get_idx(list, i);

		if (!json_object_is_type(v, json_type_string))
			return fault(r, "arguments", "has something that is no text");
		p->arguments[i] = strdup(json_object_get_string(v));
		if (!p->arguments[i])
			return fault(r, "arguments", "do not fit into memory");
	}
}

static void read_point(struct reader *r, const char *repository, struct repo_point *p)
{
	uint8_t root[SUMS_HASH];

	if (number(r, "merino-point", 0, INT64_MAX) != 1)
		return fault(r, "merino-point", "is a version that this program does not know");
	must_be(r, "repository", repository);
	must_be(r, "point", p->id);
	p->sequence = number(r, "sequence", 1, INT64_MAX);
	p->time = moment(r, "time");
	p->finished = moment(r, "finished");
	p->consistency = text_copy(r, "consistency", false);
	p->tool = text_copy(r, "tool", false);
	p->server = text_copy(r, "server", true);
	number(r, "chunk-size", REPO_CHUNK, REPO_CHUNK);
	read_arguments(r, p);
	read_disks(r, p);
	hash(r, "root", p->root);
	if (r->bad)
		return;
	repo_point_root(p, root);
	if (memcmp(root, p->root, SUMS_HASH))
		fault(r, "root", "is not the root of its disks");
}

/* Where the manifest's own checksum stands in TEXT, or NULL. */
static char *find_self(char *t)
{
	char *at = strstr(t, SELF);

	return at && strlen(at) > strlen(SELF) + 2 * SUMS_HASH ? at + strlen(SELF) : NULL;
}

/* TEXT of N bytes and a terminator proves itself. */
static int check_self(char *t, size_t n, struct error *err)
{
	char want[2 * SUMS_HASH + 1], said[2 * SUMS_HASH + 1] = "", *at = find_self(t);
	uint8_t sum[SUMS_HASH];

	if (!at || strlen(t) != n)
		return error_set(err, -EUCLEAN, "its checksum is missing");
	memcpy(said, at, 2 * SUMS_HASH);
	memcpy(at, zeros, 2 * SUMS_HASH);
	sums_hash(t, n, sum);
	memcpy(at, said, 2 * SUMS_HASH);
	sums_hex(sum, want);
	return strcmp(said, want) ? error_set(err, -EUCLEAN, "its checksum is wrong") : 0;
}

int repo_manifest_parse(char *t, size_t n, const char *repository, struct repo_point *p,
			struct error *err)
{
	const struct json_limits limits = { .bytes = REPO_MANIFEST_MAX, .depth = 8 };
	struct json_object *o = NULL;
	struct reader r = { .err = err };
	unsigned line;
	int rc = check_self(t, n, err);

	if (rc == 0)
		rc = json_parse_document(t, n, &limits, &o, &line, err);
	if (rc < 0)
		return rc;
	r.o = o;
	if (json_object_is_type(o, json_type_object))
		read_point(&r, repository, p);
	else
		fault(&r, "manifest", "is no object");
	json_object_put(o);
	p->readable = !r.bad;
	return r.bad ? -EUCLEAN : 0;
}

/* --- writing */

static void add_text(struct json_object *o, const char *key, const char *v)
{
	if (v)
		json_object_object_add(o, key, json_object_new_string(v));
}

static void add_number(struct json_object *o, const char *key, uint64_t v)
{
	json_object_object_add(o, key, json_object_new_uint64(v));
}

static void add_hash(struct json_object *o, const char *key, const uint8_t v[SUMS_HASH])
{
	char hex[2 * SUMS_HASH + 1];

	sums_hex(v, hex);
	add_text(o, key, hex);
}

static void add_time(struct json_object *o, const char *key, int64_t t)
{
	char when[REPO_TIME];

	repo_time_text(t, when);
	add_text(o, key, when);
}

static void add_name(struct json_object *o, const char *key, const char *disk, const char *point,
		     const char *suffix)
{
	char name[REPO_FILE_MAX];

	repo_file_name(name, disk, point, suffix);
	add_text(o, key, name);
}

struct json_object *repo_disk_json(const struct repo_point *p, const struct repo_disk *d)
{
	struct json_object *o = json_object_new_object();

	add_text(o, "name", d->name);
	add_number(o, "size", d->size);
	add_text(o, "format", "qcow2");
	add_name(o, "file", d->name, p->id, "qcow2");
	add_text(o, "level", d->level == REPO_FULL ? "full" : "incremental");
	if (d->level == REPO_FULL)
		add_text(o, "reason", d->reason ? d->reason : "");
	else
		add_text(o, "parent", d->parent);
	if (d->merged[0])
		add_text(o, "merged", d->merged);
	add_text(o, "checkpoint", d->checkpoint);
	add_text(o, "source", d->source);
	add_number(o, "read-bytes", d->read);
	add_number(o, "data-bytes", d->data);
	add_number(o, "zero-bytes", d->zero);
	add_name(o, "sums", d->name, p->id, "sums");
	add_number(o, "sums-bytes", d->sums_bytes);
	add_hash(o, "sums-sha256", d->sums_hash);
	add_hash(o, "root", d->root);
	return o;
}

struct json_object *repo_point_json(const struct repo_point *p)
{
	struct json_object *o = json_object_new_object(), *list = json_object_new_array();

	add_text(o, "point", p->id);
	add_number(o, "sequence", p->sequence);
	add_time(o, "time", p->time);
	add_time(o, "finished", p->finished);
	add_text(o, "consistency", p->consistency);
	add_text(o, "tool", p->tool);
	add_text(o, "server", p->server);
	json_object_object_add(o, "arguments", list);
	for (char **a = p->arguments; a && *a; a++)
		json_object_array_add(list, json_object_new_string(*a));
	add_number(o, "chunk-size", REPO_CHUNK);
	list = json_object_new_array();
	json_object_object_add(o, "disks", list);
	for (unsigned i = 0; i < p->n; i++)
		json_object_array_add(list, repo_disk_json(p, &p->disk[i]));
	add_hash(o, "root", p->root);
	return o;
}

char *repo_manifest_text(const struct repo_point *p, const char *repository)
{
	struct json_object *o = json_object_new_object(), *body = repo_point_json(p);
	uint8_t sum[SUMS_HASH];
	char hex[2 * SUMS_HASH + 1], *t, *at;

	add_number(o, "merino-point", 1);
	add_text(o, "repository", repository);
	json_object_object_foreach(body, key, v)
		json_object_object_add(o, key, json_object_get(v));
	add_text(o, "manifest-sha256", zeros);
	if (asprintf(&t, "%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY |
				JSON_C_TO_STRING_SPACED | JSON_C_TO_STRING_NOSLASHESCAPE)) < 0)
		t = NULL;
	json_object_put(body);
	json_object_put(o);
	at = t ? find_self(t) : NULL;
	if (at) {
		sums_hash(t, strlen(t), sum);
		sums_hex(sum, hex);
		memcpy(at, hex, 2 * SUMS_HASH);
	}
	return t;
}

static int by_name(const void *a, const void *b)
{
	const struct repo_disk *const *x = a, *const *y = b;

	return strcmp((*x)->name, (*y)->name);
}

void repo_point_root(const struct repo_point *p, uint8_t root[SUMS_HASH])
{
	const struct repo_disk *sorted[REPO_DISKS];
	static const char head[] = "merino point\n";
	char *buf = malloc(sizeof(head) + p->n * (REPO_DISK_MAX + 1 + SUMS_HASH)), *at = buf;

	if (!buf)
		abort();
	at = mempcpy(at, head, strlen(head));
	for (unsigned i = 0; i < p->n; i++)
		sorted[i] = &p->disk[i];
	qsort(sorted, p->n, sizeof(sorted[0]), by_name);
	for (unsigned i = 0; i < p->n; i++) {
		at = mempcpy(at, sorted[i]->name, strlen(sorted[i]->name) + 1);
		at = mempcpy(at, sorted[i]->root, SUMS_HASH);
	}
	sums_hash(buf, at - buf, root);
	free(buf);
}
