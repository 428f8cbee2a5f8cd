// SPDX-License-Identifier: BSD-3-Clause
/* repo: opening a repository, its locks, and which points there are.
 *
 * Files are reached through the directory's descriptor and never through a symbolic link.
 */
#include "clients/repo.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/repo-int.h"
#include "common/bytes.h"
#include "common/json.h"

#define MARK_FILE "repository.json"

enum { SMALL_MAX = 4096 };

/* --- names */

static bool is_plain(unsigned char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

bool repo_id_valid(const char *s)
{
	size_t n = strlen(s);

	if (n == 0 || n > REPO_NAME_MAX || !is_plain(s[0]) || !strcmp(s, "repository"))
		return false;
	for (; *s; s++)
		if (!is_plain(*s) && !strchr("._+-", *s))
			return false;
	return true;
}

bool repo_disk_valid(const char *s)
{
	size_t n = strlen(s);

	if (n == 0 || n > REPO_DISK_MAX || !utf8_valid(s, n))
		return false;
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			return false;
	return true;
}

void repo_file_name(char out[REPO_FILE_MAX], const char *disk, const char *point, const char *suffix)
{
	char *to = out;

	for (const char *s = disk; *s; s++) {
		if (is_plain(*s) || strchr("_+-", *s) || (*s == '.' && s != disk))
			*to++ = *s;
		else
			to += sprintf(to, "%%%02X", (unsigned char)*s);
	}
	sprintf(to, "@%s.%s", point, suffix);
}

/* --- small files */

int repo_read_file(const struct repo *r, const char *name, size_t max, char **out, size_t *n,
		   struct error *err)
{
	int fd = openat(r->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	char *buf = malloc(max + 2);
	size_t have = 0;
	ssize_t got = 1;

	while (fd >= 0 && buf && have <= max && got > 0) {
		got = read(fd, buf + have, max + 1 - have);
		if (got < 0 && errno == EINTR)
			got = 1;
		else if (got > 0)
			have += got;
	}
	if (fd < 0 || !buf || got < 0 || have > max) {
		int rc = have > max ? -EFBIG : -errno;

		if (fd >= 0)
			close(fd);
		free(buf);
		return error_errno(err, rc, "%s/%s", r->path, name);
	}
	close(fd);
	buf[have] = 0;
	*out = buf;
	*n = have;
	return 0;
}

int repo_sync(struct repo *r, struct error *err)
{
	if (fsync(r->dir) < 0 && errno != EINVAL)	/* what cannot be synced has nothing to sync */
		return error_errno(err, -errno, "%s: the directory could not be synced", r->path);
	return 0;
}

static int write_all(int fd, const char *text)
{
	for (size_t n = strlen(text); n;) {
		ssize_t done = write(fd, text, n);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		text += done;
		n -= done;
	}
	return fsync(fd) < 0 ? -errno : 0;
}

int repo_write_file(struct repo *r, const char *name, const char *text, struct error *err)
{
	char temp[REPO_FILE_MAX + 16];
	int fd, rc;

	snprintf(temp, sizeof(temp), ".%s.partial", name);
	unlinkat(r->dir, temp, 0);
	fd = openat(r->dir, temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	rc = fd < 0 ? -errno : write_all(fd, text);
	if (fd >= 0 && close(fd) < 0 && rc == 0)
		rc = -errno;
	if (rc == 0 && renameat(r->dir, temp, r->dir, name) < 0)
		rc = -errno;
	if (rc < 0) {
		if (fd >= 0)
			unlinkat(r->dir, temp, 0);
		return error_errno(err, rc, "%s/%s: writing failed", r->path, name);
	}
	return repo_sync(r, err);
}

/* --- points */

void repo_point_clear(struct repo_point *p)
{
	for (unsigned i = 0; i < p->n; i++) {
		free(p->disk[i].reason);
		free(p->disk[i].checkpoint);
		free(p->disk[i].source);
	}
	for (char **a = p->arguments; a && *a; a++)
		free(*a);
	free(p->arguments);
	free(p->disk);
	free(p->consistency);
	free(p->tool);
	free(p->server);
	*p = (struct repo_point){ 0 };
}

static void set_why(struct repo_point *p, enum repo_state state, const char *why)
{
	p->state = state;
	snprintf(p->why, sizeof(p->why), "%.*s", (int)sizeof(p->why) - 1, why);
	for (char *c = p->why; *c; c++)		/* it may quote a stranger */
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = '?';
}

static void load(const struct repo *r, struct repo_point *p)
{
	struct error err = ERROR_INIT;
	char name[REPO_FILE_MAX], *t = NULL;
	size_t n;
	int rc;

	snprintf(name, sizeof(name), "%s.json", p->id);
	rc = repo_read_file(r, name, REPO_MANIFEST_MAX, &t, &n, &err);
	if (rc == 0 && repo_manifest_parse(t, n, r->id, p, &err) < 0)
		error_prefix(&err, "the manifest is damaged: ");
	free(t);
	if (err.code)
		set_why(p, REPO_DAMAGED, err.text);
}

/* What `merino verify` left. */
static void load_damage(const struct repo *r, struct repo_point *p)
{
	struct error err = ERROR_INIT;
	char name[REPO_FILE_MAX], *t;
	size_t n;

	snprintf(name, sizeof(name), "%s.damaged", p->id);
	if (p->state != REPO_GOOD || repo_read_file(r, name, SMALL_MAX, &t, &n, &err) == -ENOENT)
		return;
	if (err.code)
		return set_why(p, REPO_DAMAGED, err.text);
	t[strcspn(t, "\n")] = 0;
	set_why(p, REPO_DAMAGED, *t ? t : "merino verify found it damaged");
	free(t);
}

/* Adds the point that the file NAME speaks of, if it does. */
static int take_name(struct repo *r, const char *name, struct error *err)
{
	static const char json[] = ".json", unfinished[] = ".unfinished";
	bool mark = name[0] == '.';
	const char *suffix = mark ? unfinished : json;
	size_t n = strlen(name), tail = strlen(suffix);
	struct repo_point p = { 0 }, *more;

	name += mark;
	n -= mark;
	if (n <= tail || n - tail > REPO_NAME_MAX || strcmp(name + n - tail, suffix))
		return 0;
	memcpy(p.id, name, n - tail);
	if (!repo_id_valid(p.id))
		return 0;
	if (r->n == REPO_POINTS)
		return error_set(err, -E2BIG, "%s: more than %d restore points", r->path, REPO_POINTS);
	more = realloc(r->point, (r->n + 1) * sizeof(*more));
	if (!more)
		return error_errno(err, -ENOMEM, "%s", r->path);
	r->point = more;
	if (mark)
		set_why(&p, REPO_UNFINISHED, "the run that makes it has not come to its end");
	else
		load(r, &p);
	load_damage(r, &p);
	more[r->n++] = p;
	return 0;
}

/* Points that cannot be read first, then as they were made. */
static int by_sequence(const void *a, const void *b)
{
	const struct repo_point *x = a, *y = b;

	if (x->sequence != y->sequence)
		return x->sequence < y->sequence ? -1 : 1;
	return strcmp(x->id, y->id);
}

/* A mark whose point exists says nothing to a reader. */
static void drop_marks_of_points(struct repo *r)
{
	unsigned n = 0;

	for (unsigned i = 0; i < r->n; i++) {
		struct repo_point *p = &r->point[i];
		bool twice = false;

		for (unsigned j = 0; j < r->n && p->state == REPO_UNFINISHED; j++)
			twice |= j != i && r->point[j].state != REPO_UNFINISHED &&
				 !strcmp(r->point[j].id, p->id);
		if (!twice)
			r->point[n++] = *p;
	}
	r->n = n;
}

static bool file_is_there(const struct repo *r, const char *name, int64_t bytes)
{
	struct stat st;

	return fstatat(r->dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
	       (bytes < 0 || st.st_size == bytes);
}

/* Files that are missing, and points that rest on what is not good.  P's parents come
 * before P, and were judged. */
static void judge(const struct repo *r, struct repo_point *p)
{
	char name[REPO_FILE_MAX], why[REPO_FILE_MAX + 64];

	for (unsigned i = 0; i < p->n && p->state == REPO_GOOD; i++) {
		const struct repo_disk *d = &p->disk[i];
		const struct repo_point *parent = d->level == REPO_FULL ? NULL : repo_point(r, d->parent);

		repo_file_name(name, d->name, p->id, "qcow2");
		snprintf(why, sizeof(why), "%s is missing", name);
		if (!file_is_there(r, name, -1))
			set_why(p, REPO_DAMAGED, why);
		repo_file_name(name, d->name, p->id, "sums");
		snprintf(why, sizeof(why), "%s is missing, or too short or long", name);
		if (!file_is_there(r, name, d->sums_bytes)) {
			repo_file_name(name, d->name, p->id, "merged");
			if (!file_is_there(r, name, d->sums_bytes))
				set_why(p, REPO_DAMAGED, why);
		}
		if (d->level == REPO_FULL)
			continue;
		snprintf(why, sizeof(why), "it rests on %s, which %s", d->parent,
			 parent ? "is damaged" : "is missing");
		if (!parent || parent->state != REPO_GOOD || !repo_disk(parent, d->name) ||
		    parent->sequence >= p->sequence)
			set_why(p, REPO_DAMAGED, why);
	}
}

int repo_rescan(struct repo *r, struct error *err)
{
	int fd = openat(r->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	for (unsigned i = 0; i < r->n; i++)
		repo_point_clear(&r->point[i]);
	r->n = 0;
	if (!d)
		return error_errno(err, -errno, "%s", r->path);
	while (rc == 0 && (errno = 0, e = readdir(d)))
		rc = strcmp(e->d_name, MARK_FILE) ? take_name(r, e->d_name, err) : 0;
	if (rc == 0 && errno)
		rc = error_errno(err, -errno, "%s", r->path);
	closedir(d);
	drop_marks_of_points(r);
	if (r->n)
		qsort(r->point, r->n, sizeof(*r->point), by_sequence);
	for (unsigned i = 0; i < r->n; i++)
		judge(r, &r->point[i]);
	return rc;
}

const struct repo_point *repo_point(const struct repo *r, const char *id)
{
	for (unsigned i = 0; i < r->n; i++)
		if (!strcmp(r->point[i].id, id))
			return &r->point[i];
	return NULL;
}

const struct repo_disk *repo_disk(const struct repo_point *p, const char *name)
{
	for (unsigned i = 0; i < p->n; i++)
		if (!strcmp(p->disk[i].name, name))
			return &p->disk[i];
	return NULL;
}

const struct repo_point *repo_last(const struct repo *r, const char *disk)
{
	for (unsigned i = r->n; i > 0; i--) {
		const struct repo_point *p = &r->point[i - 1];

		if (p->state == REPO_GOOD && (!disk || repo_disk(p, disk)))
			return p;
	}
	return NULL;
}

/* --- opening */

/* Locks NAME with OP.  A reader takes what there is: a medium that cannot be written to
 * is written to by nobody. */
static int take_lock(struct repo *r, const char *name, int op, int *out, struct error *err)
{
	int fd = openat(r->dir, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0 && (errno == EROFS || errno == EACCES) && op == LOCK_SH) {
		fd = openat(r->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
		if (fd < 0)
			return 0;
	}
	if (fd < 0)
		return error_errno(err, -errno, "%s/%s", r->path, name);
	if (flock(fd, op | LOCK_NB) < 0) {
		int rc = -errno;

		close(fd);
		if (rc != -EWOULDBLOCK)
			return error_errno(err, rc, "%s/%s", r->path, name);
		return error_set(err, -EBUSY, "%s is in use: %s", r->path, !strcmp(name, ".lock") ?
				 "another backup or prune writes to it" : op == LOCK_SH ?
				 "prune is at work" : "somebody reads restore points");
	}
	*out = fd;
	return 0;
}

static int make_id(char id[40])
{
	uint8_t b[16];

	if (getrandom(b, sizeof(b), 0) != sizeof(b))
		return -EIO;
	b[6] = (b[6] & 0x0f) | 0x40;
	b[8] = (b[8] & 0x3f) | 0x80;
	snprintf(id, 40, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		 b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13],
		 b[14], b[15]);
	return 0;
}

/* Nothing but what an interrupted creation left is in it. */
static bool is_empty(const struct repo *r)
{
	int fd = openat(r->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	bool empty = d;

	while (empty && (e = readdir(d)))
		empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ||
			!strcmp(e->d_name, ".lock") || !strcmp(e->d_name, "." MARK_FILE ".partial") ||
			!strcmp(e->d_name, "lost+found");
	if (d)
		closedir(d);
	return empty;
}

/* Our name in the directory above; where we may not read that, all there is. */
static int sync_parent(struct repo *r, struct error *err)
{
	int fd = openat(r->dir, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc = (fd < 0 ? syncfs(r->dir) : fsync(fd)) < 0 && errno != EINVAL ? -errno : 0;

	if (fd >= 0)
		close(fd);
	return rc < 0 ? error_errno(err, rc, "%s: the directory above could not be synced", r->path) : 0;
}

static int create(struct repo *r, struct error *err)
{
	char text[128];
	int rc = sync_parent(r, err);

	if (rc < 0)
		return rc;
	if (!is_empty(r))
		return error_set(err, -ENOTEMPTY, "%s is no backup repository, and is not empty: nothing "
				 "is made of it", r->path);
	if (make_id(r->id) < 0)
		return error_set(err, -EIO, "no random numbers");
	snprintf(text, sizeof(text), "{ \"merino-repository\": 1, \"id\": \"%s\" }\n", r->id);
	return repo_write_file(r, MARK_FILE, text, err);
}

static int read_mark(struct repo *r, struct error *err)
{
	struct json_object *o = NULL, *v;
	char *t;
	size_t n;
	unsigned line;
	int rc = repo_read_file(r, MARK_FILE, SMALL_MAX, &t, &n, err);

	if (rc == -ENOENT)
		return error_set(err, rc, "%s is no backup repository: " MARK_FILE " is missing", r->path);
	if (rc < 0)
		return rc;
	rc = json_parse_document(t, n, NULL, &o, &line, err);
	free(t);
	if (rc < 0) {
		error_prefix(err, "%s/" MARK_FILE ": ", r->path);
		return rc;
	}
	if (!json_object_object_get_ex(o, "merino-repository", &v) || !json_object_is_type(v, json_type_int))
		rc = error_set(err, -EUCLEAN, "%s/" MARK_FILE " makes no repository", r->path);
	else if (json_object_get_int64(v) != 1)
		rc = error_set(err, -ENOTSUP, "%s is a repository of version %lld, which this program does "
			       "not know", r->path, (long long)json_object_get_int64(v));
	else if (!json_object_object_get_ex(o, "id", &v) || !json_object_is_type(v, json_type_string) ||
		 json_object_get_string_len(v) != 36 || !repo_id_valid(json_object_get_string(v)))
		rc = error_set(err, -EUCLEAN, "%s/" MARK_FILE ": 'id' is missing or no id", r->path);
	else
		strcpy(r->id, json_object_get_string(v));
	json_object_put(o);
	return rc;
}

static int open_all(struct repo *r, unsigned how, struct error *err)
{
	int rc = 0;

	if ((how & REPO_CREATE) && mkdir(r->path, 0700) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "%s", r->path);
	r->dir = open(r->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (r->dir < 0)
		return error_errno(err, -errno, "%s", r->path);
	if (!(how & REPO_CREATE))
		rc = read_mark(r, err);		/* nothing is made where there is no repository */
	if (rc == 0 && (how & REPO_WRITE))
		rc = take_lock(r, ".lock", LOCK_EX, &r->lock, err);
	if (rc == 0 && (how & REPO_CREATE))
		rc = faccessat(r->dir, MARK_FILE, F_OK, 0) == 0 ? read_mark(r, err) : create(r, err);
	if (rc == 0 && (how & (REPO_READ | REPO_MERGE)))
		rc = take_lock(r, ".in-use", how & REPO_MERGE ? LOCK_EX : LOCK_SH, &r->in_use, err);
	if (rc == 0 && (how & REPO_WRITE))
		rc = repo_clean(r, err);
	return rc ? rc : repo_rescan(r, err);
}

int repo_open(struct repo *r, const char *path, unsigned how, struct error *err)
{
	int rc;

	*r = (struct repo){ .path = strdup(path), .dir = -1, .lock = -1, .in_use = -1 };
	rc = r->path ? open_all(r, how, err) : error_errno(err, -ENOMEM, "%s", path);
	if (rc < 0)
		repo_close(r);
	return rc;
}

void repo_close(struct repo *r)
{
	int *fd[] = { &r->dir, &r->lock, &r->in_use };

	for (unsigned i = 0; i < r->n; i++)
		repo_point_clear(&r->point[i]);
	free(r->point);
	for (unsigned i = 0; i < sizeof(fd) / sizeof(*fd); i++)
		if (*fd[i] >= 0)
			close(*fd[i]);
	free(r->path);
	*r = (struct repo){ .dir = -1, .lock = -1, .in_use = -1 };
}
