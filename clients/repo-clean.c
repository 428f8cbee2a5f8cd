// SPDX-License-Identifier: BSD-3-Clause
/* repo-clean: making and removing points, and what unfinished runs left.
 *
 * A mark, .POINT.unfinished, is made durably before the first file of a point, and
 * goes after its manifest is durable.  So a file is removed only where a mark says that
 * its point never came to exist, or was being removed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/repo-int.h"
#include "common/log.h"

static void mark_name(char out[REPO_FILE_MAX], const char *point)
{
	snprintf(out, REPO_FILE_MAX, ".%s.unfinished", point);
}

static bool has_manifest(const struct repo *r, const char *point)
{
	char name[REPO_FILE_MAX];

	snprintf(name, sizeof(name), "%s.json", point);
	return faccessat(r->dir, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT;
}

/* NAME is WANT. */
static bool is(const char *name, const char *want)
{
	return strcmp(name, want) == 0;
}

/* NAME is a file of POINT, which does not exist; ONLY_PARTIAL: it does, and only what was
 * being written goes. */
static bool belongs(const char *name, const char *point, bool only_partial)
{
	static const char *const suffixes[] = { "qcow2", "sums", "merged" };
	char want[REPO_FILE_MAX];
	const char *at = strchr(name, '@');

	snprintf(want, sizeof(want), ".%s.json.partial", point);
	if (is(name, want))
		return true;
	snprintf(want, sizeof(want), "%s.damaged", point);
	if (!only_partial && is(name, want))
		return true;
	for (unsigned i = 0; at && i < sizeof(suffixes) / sizeof(*suffixes); i++) {
		snprintf(want, sizeof(want), "@%s.%s", point, suffixes[i]);
		if (!only_partial && name[0] != '.' && is(at, want))
			return true;
		strcat(want, ".partial");
		if (name[0] == '.' && is(at, want))
			return true;
	}
	return false;
}

/* Calls EACH with the names of all files; what it removes may still be told. */
static int each_file(struct repo *r, void (*each)(struct repo *r, const char *name, void *arg),
		     void *arg, struct error *err)
{
	int fd = openat(r->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	int rc = 0;

	if (!d)
		return error_errno(err, -errno, "%s", r->path);
	while ((errno = 0, e = readdir(d)))
		each(r, e->d_name, arg);
	if (errno)
		rc = error_errno(err, -errno, "%s", r->path);
	closedir(d);
	return rc;
}

struct sweep {
	const char *point;
	bool only_partial;
	int rc;				/* of what could not be removed */
};

static void sweep_one(struct repo *r, const char *name, void *arg)
{
	struct sweep *s = arg;

	if (belongs(name, s->point, s->only_partial) && unlinkat(r->dir, name, 0) < 0 && errno != ENOENT)
		s->rc = -errno;
}

/* Removes what POINT's mark covers, then the mark. */
static int sweep(struct repo *r, const char *point, struct error *err)
{
	struct sweep s = { .point = point, .only_partial = has_manifest(r, point) };
	char mark[REPO_FILE_MAX];
	int rc = each_file(r, sweep_one, &s, err);

	if (rc < 0 || s.rc < 0)
		return rc ? rc : error_errno(err, s.rc, "%s: what is left of the unfinished restore point %s "
					     "cannot be removed", r->path, point);
	rc = repo_sync(r, err);		/* the mark goes last on storage, too */
	mark_name(mark, point);
	if (rc == 0 && unlinkat(r->dir, mark, 0) < 0 && errno != ENOENT)
		rc = error_errno(err, -errno, "%s/%s", r->path, mark);
	return rc;
}

struct found {
	char (*point)[REPO_NAME_MAX + 1];
	unsigned n;
};

static void find_mark(struct repo *r, const char *name, void *arg)
{
	static const char suffix[] = ".unfinished";
	size_t n = strlen(name), tail = strlen(suffix);
	struct found *f = arg;
	void *more;

	if (name[0] != '.' || n <= tail + 1 || n - tail - 1 > REPO_NAME_MAX ||
	    strcmp(name + n - tail, suffix) || f->n == REPO_POINTS)
		return;
	more = realloc(f->point, (f->n + 1) * sizeof(*f->point));
	if (!more)
		return;
	f->point = more;
	snprintf(f->point[f->n], sizeof(f->point[0]), "%.*s", (int)(n - tail - 1), name + 1);
	f->n += repo_id_valid(f->point[f->n]);
}

int repo_clean(struct repo *r, struct error *err)
{
	struct found f = { 0 };
	int rc = each_file(r, find_mark, &f, err);

	unlinkat(r->dir, ".repository.json.partial", 0);
	for (unsigned i = 0; i < f.n && rc == 0; i++) {
		if (!has_manifest(r, f.point[i]))
			log_info("%s: removing what an unfinished run left of %s", r->path, f.point[i]);
		rc = sweep(r, f.point[i], err);
	}
	free(f.point);
	return rc;
}

int repo_begin(struct repo *r, const char *point, struct error *err)
{
	char mark[REPO_FILE_MAX];
	int fd;

	mark_name(mark, point);
	fd = openat(r->dir, mark, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_errno(err, -errno, "%s/%s", r->path, mark);
	close(fd);
	return repo_sync(r, err);
}

/* A point that cannot be read had a number, too. */
static uint64_t next_sequence(const struct repo *r)
{
	uint64_t last = r->n ? r->point[r->n - 1].sequence : 0;

	for (unsigned i = 0; i < r->n; i++)
		last += !r->point[i].readable;
	return last + 1;
}

int repo_commit(struct repo *r, struct repo_point *p, struct error *err)
{
	char name[REPO_FILE_MAX], mark[REPO_FILE_MAX], *text;
	int rc = repo_sync(r, err);	/* the files' names, before the manifest's */

	if (rc < 0)
		return rc;
	if (!p->sequence)
		p->sequence = next_sequence(r);
	if (!p->finished)
		p->finished = time(NULL);
	repo_point_root(p, p->root);
	text = repo_manifest_text(p, r->id);
	if (!text)
		return error_errno(err, -ENOMEM, "%s/%s.json", r->path, p->id);
	if (strlen(text) > REPO_MANIFEST_MAX) {
		free(text);
		return error_set(err, -EFBIG, "%s/%s.json: the manifest would be too long", r->path, p->id);
	}
	snprintf(name, sizeof(name), "%s.json", p->id);
	rc = repo_write_file(r, name, text, err);
	free(text);
	if (rc < 0)
		return rc;
	mark_name(mark, p->id);
	unlinkat(r->dir, mark, 0);	/* one that stays is removed by the next writer */
	return 0;
}

void repo_abandon(struct repo *r, const char *point)
{
	struct error err = ERROR_INIT;

	if (sweep(r, point, &err) < 0)
		log_warning("%s", err.text);
}

int repo_remove(struct repo *r, const struct repo_point *p, struct error *err)
{
	char name[REPO_FILE_MAX];
	int rc = repo_begin(r, p->id, err);

	if (rc < 0)
		return rc;
	snprintf(name, sizeof(name), "%s.json", p->id);
	if (unlinkat(r->dir, name, 0) < 0 && errno != ENOENT)
		return error_errno(err, -errno, "%s/%s", r->path, name);
	rc = repo_sync(r, err);
	return rc ? rc : sweep(r, p->id, err);
}
