// SPDX-License-Identifier: BSD-3-Clause
/* verb: shared by restore, verify, prune and serve. */
#include "clients/verb.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "clients/pull.h"
#include "clients/repo.h"
#include "common/checked.h"
#include "common/log.h"

enum { NAP_NS = 50000000, NAMES = 400 };

enum verb_go verb_take(struct verb_options *o, int id, void (*help)(void))
{
	int64_t n;

	switch (id) {
	case 'p':
		o->progress = optarg ? PROGRESS_FD : PROGRESS_BAR;
		n = optarg ? cli_number("progress", optarg, 0, INT32_MAX) : 0;
		o->progress_fd = n;
		return n < 0 ? VERB_EXIT_BAD : VERB_GO;
	case VERB_LIMIT:
		n = cli_number("limit", optarg, 1, INT64_MAX);
		o->limit = n;
		return n < 0 ? VERB_EXIT_BAD : VERB_GO;
	case VERB_JSON: o->json = true; return VERB_GO;
	case 'q': o->quiet = true; return VERB_GO;
	case 'h': help(); return VERB_EXIT_OK;
	case 'V': cli_version(); return VERB_EXIT_OK;
	default: return VERB_EXIT_BAD;
	}
}

static bool is_directory(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int verb_where(const char *text, char **dir, char **when, struct error *err)
{
	const char *at = strrchr(text, '@');

	*when = NULL;
	if (!at || at == text || is_directory(text)) {
		*dir = strdup(text);
		return *dir ? 0 : error_errno(err, -ENOMEM, "%s", text);
	}
	if (!at[1])
		return error_set(err, -EINVAL, "%s: behind the @ belongs a point's id, a time, or latest", text);
	*dir = strndup(text, at - text);
	*when = strdup(at + 1);
	return *dir && *when ? 0 : error_errno(err, -ENOMEM, "%s", text);
}

/* "2026-11-21T16:40:00Z" */
static void time_text(int64_t t, char *buf, size_t n)
{
	time_t clock = t;
	struct tm tm;

	if (!gmtime_r(&clock, &tm) || !strftime(buf, n, "%Y-%m-%dT%H:%M:%SZ", &tm))
		snprintf(buf, n, "?");
}

static bool begins_so(const struct repo_point *p, const char *when)
{
	char text[64];

	time_text(p->time, text, sizeof(text));
	return strncmp(text, when, strlen(when)) == 0 || strncmp(p->id, when, strlen(when)) == 0;
}

static bool has(const struct repo_point *p, const char *disk)
{
	return p->readable && (!disk || repo_disk(p, disk));
}

/* Appends the disks of P that are not in TEXT, as long as there is room. */
static void list_disks(const struct repo_point *p, char text[NAMES])
{
	for (unsigned i = 0; i < p->n; i++) {
		char one[REPO_DISK_MAX + 3];
		size_t n = strlen(text);

		snprintf(one, sizeof(one), "'%s'", p->disk[i].name);
		if (!strstr(text, one) && n + strlen(one) + 2 < NAMES)
			sprintf(text + n, "%s%s", n ? ", " : "", one);
	}
}

/* "; there are 'a', 'b'", the newest first. */
static const char *there_are(const struct repo *r, char text[NAMES])
{
	static const char head[] = "; there are ";
	size_t n = strlen(head);

	text[0] = 0;
	for (unsigned i = r->n; i-- > 0;)
		if (r->point[i].state == REPO_GOOD)
			list_disks(&r->point[i], text);
	if (!text[0] || strlen(text) + n >= NAMES)
		return text;
	memmove(text + n, text, strlen(text) + 1);
	memcpy(text, head, n);
	return text;
}

static const struct repo_point *last_good(const struct repo *r, const char *disk, struct error *err)
{
	const struct repo_point *p = repo_last(r, disk);
	char text[NAMES];

	if (!p && disk)
		error_set(err, -ENOENT, "%s: there is no good point with a disk '%s'%s", r->path, disk, there_are(r, text));
	else if (!p)
		error_set(err, -ENOENT, "%s: there is no good point", r->path);
	for (unsigned i = 0; p && i < r->n; i++)
		if (r->point[i].state == REPO_DAMAGED && (!r->point[i].readable || r->point[i].sequence > p->sequence))
			log_warning("point %s is damaged (%s): the last good one is %s", r->point[i].id,
				    r->point[i].why, p->id);
	return p;
}

const struct repo_point *verb_point(const struct repo *r, const char *when, const char *disk,
				    struct error *err)
{
	const struct repo_point *p;
	char text[NAMES];

	if (!when || !strcmp(when, "latest"))
		return last_good(r, disk, err);
	p = repo_id_valid(when) ? repo_point(r, when) : NULL;
	for (unsigned i = r->n; i-- && !p;)
		if (has(&r->point[i], disk) && begins_so(&r->point[i], when))
			p = &r->point[i];
	if (!p) {
		error_set(err, -ENOENT, "%s has no point '%s', and none whose time begins so", r->path, when);
		return NULL;
	}
	if (!p->readable) {
		error_set(err, -EIO, "point %s: %s", p->id, p->why[0] ? p->why : "it has no manifest");
		return NULL;
	}
	if (disk && !repo_disk(p, disk)) {
		list_disks(p, strcpy(text, ""));
		error_set(err, -ENOENT, "point %s has no disk '%s'; it has %s", p->id, disk, text);
		return NULL;
	}
	return p;
}

void verb_limit_wait(struct verb_limit *l, uint64_t bytes)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };

	if (!l->rate)
		return;
	if (!l->start)
		l->start = progress_now();
	l->bytes += bytes;
	while ((progress_now() - l->start) / 1e9 < (double)l->bytes / l->rate && !pull_signalled())
		nanosleep(&nap, NULL);
}

void verb_die_of_signal(void)
{
	if (pull_signalled())
		pull_die_of_signal();
}

void verb_add_u64(struct json_object *o, const char *key, uint64_t v)
{
	json_object_object_add(o, key, json_object_new_uint64(v));
}

void verb_add_string(struct json_object *o, const char *key, const char *v)
{
	if (v)
		json_object_object_add(o, key, json_object_new_string(v));
}

void verb_add_bool(struct json_object *o, const char *key, bool v)
{
	json_object_object_add(o, key, json_object_new_boolean(v));
}

void verb_add_hash(struct json_object *o, const char *key, const uint8_t hash[32])
{
	char hex[2 * SUMS_HASH + 1];

	sums_hex(hash, hex);
	verb_add_string(o, key, hex);
}

int verb_print(struct json_object *o, int code)
{
	int n = printf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY |
							      JSON_C_TO_STRING_NOSLASHESCAPE));

	json_object_put(o);
	return n < 0 || fflush(stdout) != 0 ? VERB_TROUBLE : code;
}
