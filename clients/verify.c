// SPDX-License-Identifier: BSD-3-Clause
/* verify: the verb: every point in turn, parents first; the marks; the report.
 *
 * Exit status: 0 all is good, 1 something is damaged, 2 it could not be found out.
 */
#include "clients/verify.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/pull.h"
#include "clients/repo-int.h"
#include "common/checked.h"
#include "common/log.h"
#include "common/size.h"

enum { OPT_QUICK = CLI_LONG };

static const struct cli_option table[] = {
	{ OPT_QUICK, "quick", NULL, "files, manifests and tables only: no data is read" },
	VERB_ROW_LIMIT,
	VERB_ROW_PROGRESS,
	VERB_ROWS_LAST
};

static void help(void)
{
	printf("usage: merino verify [OPTIONS] DIR[@WHEN]\n"
	       "Reads a repository, or one point of it, and proves every byte by its checksum.\n\n");
	cli_help(stdout, table);
	printf("\nexit status: 0 good, 1 damaged, 2 it could not be found out\n");
}

static enum verb_go parse(struct verify *o, int argc, char **argv)
{
	struct cli cli;
	int id;

	cli_init(&cli, table);
	while ((id = cli_next(&cli, argc, argv)) != -1) {
		enum verb_go go = VERB_GO;

		if (id == OPT_QUICK)
			o->quick = true;
		else
			go = verb_take(&o->v, id, help);
		if (go != VERB_GO)
			return go;
	}
	if (argc - optind != 1) {
		log_error("give one repository; see merino verify --help");
		return VERB_EXIT_BAD;
	}
	o->where = argv[optind];
	return VERB_GO;
}

/* --- the work */

static uint64_t image_bytes(const struct repo *r, const struct verify_disk *d)
{
	char name[REPO_FILE_MAX];
	struct stat st;

	repo_file_name(name, d->disk->name, d->point->id, "qcow2");
	return fstatat(r->dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 ? st.st_blocks * 512ull : 0;
}

static int list_disks(struct verify *o, struct error *err)
{
	size_t n = 0;

	for (unsigned i = 0; i < o->repo.n; i++)
		n += o->repo.point[i].n;
	o->disk = calloc(n ? n : 1, sizeof(*o->disk));
	if (!o->disk)
		return error_errno(err, -ENOMEM, "%s", o->repo.path);
	for (unsigned i = 0; i < o->repo.n; i++) {
		const struct repo_point *p = &o->repo.point[i];

		if (!p->readable || (o->only && o->only != p))
			continue;
		for (unsigned k = 0; k < p->n; k++) {
			struct verify_disk *d = &o->disk[o->n++];

			*d = (struct verify_disk){ .point = p, .disk = &p->disk[k] };
			o->total += o->quick ? 1 : image_bytes(&o->repo, d);
		}
	}
	return 0;
}

static int work(struct verify *o, struct error *err)
{
	int rc = 0;

	pull_signals_hold();
	o->limit.rate = o->v.limit;
	progress_init(&o->p, o->v.progress, o->v.progress_fd);
	for (size_t i = 0; i < o->n && rc == 0; i++) {
		*err = ERROR_INIT;
		rc = verify_disk(o, &o->disk[i], err);
		if (!o->alone)
			o->done += o->quick ? 1 : image_bytes(&o->repo, &o->disk[i]);
	}
	progress_end(&o->p, rc == 0, o->total, o->read);
	return rc;
}

/* Images of points that have neither a manifest nor a mark: the manifest was lost. */
static void list_strays(const struct verify *o, struct json_object *out)
{
	int fd = dup(o->repo.dir);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		const char *at = strrchr(e->d_name, '@');
		size_t n = strlen(e->d_name);
		char id[REPO_FILE_MAX];

		if (e->d_name[0] == '.' || !at || n < 7 || strcmp(e->d_name + n - 6, ".qcow2") || n >= sizeof(id))
			continue;
		snprintf(id, sizeof(id), "%.*s", (int)(e->d_name + n - 6 - at - 1), at + 1);
		if (!repo_point(&o->repo, id))
			json_object_array_add(out, json_object_new_string(e->d_name));
	}
	if (dir)
		closedir(dir);
	else if (fd >= 0)
		close(fd);
}

/* --- what was found */

/* A point's first fault as text; "" where it is good. */
static void describe(const struct verify *o, const struct repo_point *p, char *buf, size_t size)
{
	buf[0] = 0;
	for (size_t i = 0; i < o->n && !buf[0]; i++) {
		const struct verify_disk *d = &o->disk[i];

		if (d->point != p || verify_good(d))
			continue;
		if (d->text[0])
			snprintf(buf, size, "disk '%s': %s", d->disk->name, d->text);
		else
			snprintf(buf, size, "disk '%s': %zu chunks of 64 KiB are damaged, the first at offset %" PRIu64,
				 d->disk->name, d->n, d->wrong[0].index * REPO_CHUNK);
	}
}

/* POINT.damaged says so to everyone who lists the repository, until all of it was read and
 * is good. */
static void mark(struct verify *o, const struct repo_point *p, const char *text)
{
	char name[REPO_NAME_MAX + 16];
	struct error err = ERROR_INIT;

	snprintf(name, sizeof(name), "%s.damaged", p->id);
	if (!text[0]) {
		if (!o->quick && faccessat(o->repo.dir, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0 &&
		    unlinkat(o->repo.dir, name, 0) < 0)
			log_warning("%s/%s: %s", o->repo.path, name, strerror(errno));
		return;
	}
	if (repo_write_file(&o->repo, name, text, &err) < 0)
		log_warning("%s", err.text);
}

static bool shows(const struct verify_disk *d, const struct verify_disk *from, uint64_t first, uint64_t end)
{
	for (size_t i = 0; i < d->n; i++)
		if (d->wrong[i].from == from && d->wrong[i].index >= first && d->wrong[i].index < end)
			return true;
	return false;
}

static void add_affected(const struct verify *o, struct json_object *j, const struct verify_disk *from,
			 uint64_t first, uint64_t end)
{
	struct json_object *list = json_object_new_array();

	for (size_t i = 0; i < o->n; i++)
		if (&o->disk[i] == from || shows(&o->disk[i], from, first, end))
			json_object_array_add(list, json_object_new_string(o->disk[i].point->id));
	json_object_object_add(j, "affected", list);
}

static struct json_object *one_damage(const struct verify_disk *d, const char *what)
{
	struct json_object *j = json_object_new_object();

	verb_add_string(j, "point", d->point->id);
	verb_add_string(j, "disk", d->disk->name);
	verb_add_string(j, "what", what);
	return j;
}

/* Runs of chunks that D's image is to blame for. */
static void add_ranges(const struct verify *o, struct json_object *list, const struct verify_disk *d)
{
	for (size_t i = 0, k; i < d->n; i = k) {
		uint64_t first = d->wrong[i].index, end = first + 1;
		struct json_object *j;

		for (k = i + 1; k < d->n && d->wrong[k].index == end && d->wrong[k].from == d->wrong[i].from; k++)
			end++;
		if (d->wrong[i].from != d)
			continue;
		j = one_damage(d, "the data is not what its checksum says");
		verb_add_u64(j, "offset", first * REPO_CHUNK);
		verb_add_u64(j, "length", min_u64((end - first) * REPO_CHUNK, d->disk->size - first * REPO_CHUNK));
		add_affected(o, j, d, first, end);
		json_object_array_add(list, j);
	}
}

static struct json_object *list_damage(const struct verify *o)
{
	struct json_object *list = json_object_new_array(), *j;

	for (unsigned i = 0; i < o->repo.n; i++) {
		const struct repo_point *p = &o->repo.point[i];

		if (p->readable || p->state == REPO_UNFINISHED || o->only)
			continue;
		j = json_object_new_object();
		verb_add_string(j, "point", p->id);
		verb_add_string(j, "what", p->why);
		json_object_array_add(list, j);
	}
	for (size_t i = 0; i < o->n; i++) {
		const struct verify_disk *d = &o->disk[i];

		if (d->text[0]) {
			j = one_damage(d, d->text);
			add_affected(o, j, d, 0, 0);
			json_object_array_add(list, j);
		}
		add_ranges(o, list, d);
	}
	return list;
}

static struct json_object *list_points(struct verify *o)
{
	struct json_object *list = json_object_new_array();

	for (unsigned i = 0; i < o->repo.n; i++) {
		const struct repo_point *p = &o->repo.point[i];
		struct json_object *j = json_object_new_object();
		char text[1200] = "";

		if ((o->only && o->only != p) || p->state == REPO_UNFINISHED) {
			json_object_put(j);
			continue;
		}
		if (p->readable) {
			describe(o, p, text, sizeof(text));
			mark(o, p, text);
		} else {
			snprintf(text, sizeof(text), "%s", p->why);
		}
		verb_add_string(j, "point", p->id);
		verb_add_string(j, "state", text[0] ? "damaged" : "good");
		verb_add_string(j, "why", text[0] ? text : NULL);
		json_object_array_add(list, j);
	}
	return list;
}

static const char *text_of(struct json_object *o, const char *key)
{
	struct json_object *v;

	return json_object_object_get_ex(o, key, &v) ? json_object_get_string(v) : NULL;
}

static void tell_damage(struct json_object *d)
{
	const char *disk = text_of(d, "disk"), *offset = text_of(d, "offset");
	struct json_object *affected = NULL;

	printf("point %s%s%s%s%s%s%s%s: %s\n", text_of(d, "point"), disk ? ", disk '" : "", disk ? disk : "", disk ? "'" : "",
	       offset ? ", offset " : "", offset ? offset : "", offset ? ", length " : "",
	       offset ? text_of(d, "length") : "", text_of(d, "what"));
	json_object_object_get_ex(d, "affected", &affected);
	for (size_t i = 0; affected && i < json_object_array_length(affected); i++)
		printf("%s%s%s", i ? ", " : "    affected: ",
		       json_object_get_string(json_object_array_get_idx(affected, i)),
		       i + 1 == json_object_array_length(affected) ? "\n" : "");
}

static void tell(const struct verify *o, struct json_object *j, size_t damaged, double seconds)
{
	struct json_object *points, *damage, *strays;
	char read[SIZE_TEXT_MAX];

	json_object_object_get_ex(j, "points", &points);
	json_object_object_get_ex(j, "damage", &damage);
	json_object_object_get_ex(j, "strays", &strays);
	for (size_t i = 0; i < json_object_array_length(damage); i++)
		tell_damage(json_object_array_get_idx(damage, i));
	for (size_t i = 0; i < json_object_array_length(strays); i++)
		printf("%s: the manifest of its point is missing\n",
		       json_object_get_string(json_object_array_get_idx(strays, i)));
	if (o->v.quiet)
		return;
	size_format(read, sizeof(read), o->read);
	printf("%s: %zu points, %zu damaged%s, %s read in %.1f s\n", o->repo.path, json_object_array_length(points), damaged,
	       o->quick ? " (quick: no data was looked at)" : "", read, seconds);
}

static int report(struct verify *o, double seconds)
{
	struct json_object *j = json_object_new_object(), *strays = json_object_new_array();
	struct json_object *points = list_points(o), *damage = list_damage(o);
	size_t damaged = 0;
	int code;

	if (!o->only)
		list_strays(o, strays);
	for (size_t i = 0; i < json_object_array_length(points); i++)
		damaged += !strcmp(text_of(json_object_array_get_idx(points, i), "state"), "damaged");
	code = damaged || json_object_array_length(strays) ? VERB_NO : VERB_OK;
	verb_add_string(j, "repository", o->repo.path);
	verb_add_bool(j, "good", code == VERB_OK);
	verb_add_bool(j, "quick", o->quick);
	json_object_object_add(j, "points", points);
	json_object_object_add(j, "damage", damage);
	json_object_object_add(j, "strays", strays);
	verb_add_u64(j, "read-bytes", o->read);
	json_object_object_add(j, "seconds", json_object_new_double(seconds));
	if (o->v.json)
		return verb_print(j, code);
	tell(o, j, damaged, seconds);
	json_object_put(j);
	return fflush(stdout) == 0 ? code : VERB_TROUBLE;
}

static int verify(struct verify *o, struct error *err)
{
	char *dir = NULL, *when = NULL;
	int rc = verb_where(o->where, &dir, &when, err);

	if (rc == 0)
		rc = repo_open(&o->repo, dir, REPO_READ, err);
	if (rc == 0 && when) {
		o->only = verb_point(&o->repo, when, NULL, err);
		o->alone = true;
		rc = o->only ? 0 : err->code;
	}
	free(dir);
	free(when);
	if (rc == 0)
		rc = list_disks(o, err);
	return rc ? rc : work(o, err);
}

int verify_main(int argc, char **argv)
{
	struct verify o = { .repo = { .dir = -1, .lock = -1, .in_use = -1 } };
	uint64_t start = progress_now();
	struct error err = ERROR_INIT;
	enum verb_go go = parse(&o, argc, argv);
	int rc, code = VERB_TROUBLE;

	if (go != VERB_GO)
		return go == VERB_EXIT_OK ? VERB_OK : VERB_TROUBLE;
	rc = verify(&o, &err);
	if (rc == 0)
		code = report(&o, (progress_now() - start) / 1e9);
	else
		log_error("%s", err.text);
	for (size_t i = 0; i < o.n; i++)
		free(o.disk[i].wrong);
	free(o.disk);
	repo_close(&o.repo);
	if (rc < 0)
		verb_die_of_signal();
	return code;
}
