// SPDX-License-Identifier: BSD-3-Clause
/* backup: the verb: lock, instant, copy, prove, commit, tell.
 *
 * Exit status: 0 when the restore point exists, durably; else 1, and nothing that looks
 * like one is left.  After a signal the process dies of it, cleaned up.
 *
 * A parent of which we see that it has rotted is marked, and the run begins anew, until
 * it finds one that is not, or makes a full.  So it does where a disk has grown while
 * another program had it.
 */
#include "clients/backup.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/backup-target.h"
#include "clients/repo-int.h"
#include "common/log.h"
#include "common/size.h"

/* --- the point's name */

static int name_point(struct backup *b, struct error *err)
{
	char base[REPO_NAME_MAX - 8];
	time_t now = time(NULL);
	struct tm tm;

	if (b->o->name) {
		if (repo_point(&b->repo, b->o->name))
			return error_set(err, -EEXIST, "%s has a restore point %s", b->repo.path, b->o->name);
		strcpy(b->point, b->o->name);
		return 0;
	}
	if (!gmtime_r(&now, &tm) || !strftime(base, sizeof(base), "%Y-%m-%dT%H%M%SZ", &tm))
		return error_set(err, -EINVAL, "the clock tells no time");
	strcpy(b->point, base);
	for (unsigned i = 2; repo_point(&b->repo, b->point); i++)
		snprintf(b->point, sizeof(b->point), "%s-%u", base, i);
	return 0;
}

/* --- copying */

/* The point below is worth nothing any more: the next run sees it at once. */
static void mark_rotten(struct backup *b, const struct backup_disk *d, const struct error *why)
{
	char name[REPO_FILE_MAX], text[sizeof(why->text) + 1];
	struct error err = ERROR_INIT;

	snprintf(name, sizeof(name), "%s.damaged", d->d.parent);
	snprintf(text, sizeof(text), "%s\n", why->text);
	b->rotten = repo_write_file(&b->repo, name, text, &err) == 0;
	log_warning("%s", why->text);
}

static int copy_disk(struct backup *b, struct backup_disk *d, struct error *err)
{
	struct target *t;
	int rc = target_open(&b->repo, b->point, &d->d, d->chain.n ? &d->chain : NULL, b->o->compress, &t,
			     err);

	if (rc < 0)
		return rc;
	rc = backup_copy(b, d, t, err);
	if (rc == 0)
		rc = target_finish(t, err);
	if (rc < 0 && target_below_is_rotten(t))
		mark_rotten(b, d, err);
	target_close(t);
	return rc;
}

/* --- the point */

static int commit(struct backup *b, struct error *err)
{
	struct repo_point p = { .time = b->time, .arguments = b->o->argv, .n = b->n };
	int rc;

	strcpy(p.id, b->point);
	p.consistency = (char *)b->consistency;
	p.tool = "merino " MERINO_VERSION;
	p.server = b->server;
	p.disk = calloc(b->n, sizeof(*p.disk));
	if (!p.disk)
		return error_errno(err, -ENOMEM, "%s", b->point);
	for (unsigned i = 0; i < b->n; i++)
		p.disk[i] = b->disk[i].d;
	rc = pull_signalled() ? error_set(err, -EINTR, "stopped by a signal") : repo_commit(&b->repo, &p, err);
	free(p.disk);
	return rc;
}

static int copy_all(struct backup *b, struct error *err)
{
	int rc = repo_begin(&b->repo, b->point, err);

	b->begun = rc == 0;
	for (unsigned i = 0; i < b->n; i++)
		b->total += b->disk[i].d.size;
	progress_init(&b->progress, b->o->progress, b->o->progress_fd);
	for (unsigned i = 0; i < b->n && rc == 0; i++)
		rc = copy_disk(b, &b->disk[i], err);
	if (rc == 0)
		rc = commit(b, err);
	progress_end(&b->progress, rc == 0, b->total, b->copied);
	return rc;
}

void backup_forget_disks(struct backup *b)
{
	for (unsigned i = 0; i < b->n; i++) {
		free(b->disk[i].d.reason);
		free(b->disk[i].d.checkpoint);
		free(b->disk[i].d.source);
		free(b->disk[i].uri);
		free(b->disk[i].bitmap);
	}
	free(b->disk);
	b->disk = NULL;
	b->n = 0;
}

static void forget(struct backup *b)
{
	backup_forget_disks(b);
	free(b->server);
	b->server = NULL;
	b->total = b->done = b->copied = 0;
	b->begun = b->rotten = b->grown = b->quiesced = false;
}

/* From the instant to the manifest; *B holds what was made, or nothing is left of it. */
static int attempt(struct backup *b, struct error *err)
{
	struct error end = ERROR_INIT;
	int rc = name_point(b, err);

	if (rc < 0)
		return rc;
	rc = b->source->open(b, err);
	if (rc == 0)
		rc = copy_all(b, err);
	if (rc < 0 && b->begun)
		repo_abandon(&b->repo, b->point);
	if (b->source->end && b->source->end(b, rc == 0, &end) < 0)
		log_warning("%s", end.text);
	return rc;
}

static int backup(struct backup *b, struct error *err)
{
	int rc = repo_open(&b->repo, b->o->to, REPO_WRITE | REPO_CREATE, err);

	if (rc < 0)
		return rc;
	rc = attempt(b, err);
	/* This ends: each time one point more is marked, or growth is doubted, once. */
	while (rc < 0 && (b->rotten || b->grown)) {
		b->doubt_growth |= b->grown;
		forget(b);
		*err = ERROR_INIT;
		rc = repo_rescan(&b->repo, err);
		if (rc == 0)
			rc = attempt(b, err);
	}
	return rc;
}

/* --- telling */

static void tell_json(struct backup *b, double seconds)
{
	const struct repo_point *p;
	struct error err = ERROR_INIT;
	struct json_object *j;

	if (repo_rescan(&b->repo, &err) < 0 || !(p = repo_point(&b->repo, b->point)))
		return;
	j = repo_point_json(p);
	json_object_object_add(j, "directory", json_object_new_string(b->o->to));
	json_object_object_add(j, "seconds", json_object_new_double(seconds));
	json_object_object_add(j, "quiesced", json_object_new_boolean(b->quiesced));
	printf("%s\n", json_object_to_json_string_ext(j, JSON_C_TO_STRING_PRETTY |
						      JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(j);
}

static void tell_person(const struct backup *b, double seconds)
{
	char read[SIZE_TEXT_MAX], size[SIZE_TEXT_MAX];

	for (unsigned i = 0; i < b->n; i++) {
		const struct repo_disk *d = &b->disk[i].d;

		size_format(read, sizeof(read), d->read);
		size_format(size, sizeof(size), d->size);
		printf("%s: %s: %s of %s, %s%s%s%s\n", b->point, d->name, read, size,
		       d->level == REPO_FULL ? "full" : "incremental since ", d->parent,
		       d->reason ? ": " : "", d->reason ? d->reason : "");
	}
	size_format(read, sizeof(read), b->copied);
	printf("%s@%s: %s in %.1f s%s\n", b->o->to, b->point, read, seconds, b->quiesced ? ", quiesced" : "");
}

int backup_main(int argc, char **argv)
{
	uint64_t start = progress_now();
	struct error err = ERROR_INIT;
	struct backup_options o;
	struct backup b = { .o = &o, .repo = { .dir = -1, .lock = -1, .in_use = -1 } };
	char **copy = argv;
	enum pull_go go = backup_parse(&o, argc, argv);
	double seconds;
	int rc;

	if (go != PULL_GO)
		return go == PULL_EXIT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
	o.argv = copy;
	b.source = o.socket ? &backup_checkpoint : backup_is_uri(o.what[0]) ? &backup_uris : &backup_images;
	pull_signals_hold();
	rc = backup(&b, &err);
	seconds = (progress_now() - start) / 1e9;
	if (rc == 0 && o.json)
		tell_json(&b, seconds);
	else if (rc == 0 && !o.quiet)
		tell_person(&b, seconds);
	forget(&b);
	repo_close(&b.repo);
	if (rc < 0) {
		log_error("%s", err.text);
		if (pull_signalled())
			pull_die_of_signal();
		return EXIT_FAILURE;
	}
	if (fflush(stdout) == 0)
		return EXIT_SUCCESS;
	log_error("the restore point %s is good, but could not be told: %s", b.point, strerror(errno));
	return EXIT_FAILURE;
}
