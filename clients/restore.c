// SPDX-License-Identifier: BSD-3-Clause
/* restore: the verb: open the point, copy each disk while it is proven, finish, tell.
 *
 * The first chunk that is not what its checksum says ends it, and so does a root that is
 * not the manifest's: no target is finished before that.  Exit status: 0 when every
 * target is complete and durable, else 1.
 */
#include "clients/restore.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "clients/repo-read.h"
#include "clients/restore-out.h"
#include "clients/verb.h"
#include "common/checked.h"
#include "common/log.h"
#include "common/size.h"
#include "common/uri.h"

enum { OPT_ALL = CLI_LONG, OPT_FORCE };
enum { ZERO_MAX = 1 << 30 };		/* bytes in one call: signals are seen in between */

static const struct cli_option table[] = {
	{ OPT_ALL, "all", "OUTDIR", "restore every disk of the point, into this directory" },
	{ 'f', "format", "FMT", "format of OUT: raw, or qcow2 (default where OUT ends in .qcow2)" },
	{ OPT_FORCE, "force", NULL, "replace an existing OUT" },
	VERB_ROW_LIMIT,
	VERB_ROW_PROGRESS,
	VERB_ROWS_LAST
};

struct restore {
	struct verb_options v;
	const char *where, *disk, *out, *all;
	const char *format;		/* "raw", "qcow2", or NULL */
	bool force;
	struct repo repo;
	const struct repo_point *point;
	struct verb_limit limit;
	struct progress p;
	uint64_t total, done, data;	/* bytes of all disks; dealt with; read */
	struct json_object *disks;
};

static void help(void)
{
	printf("usage: merino restore [OPTIONS] DIR[@WHEN] [DISK] OUT\n"
	       "       merino restore [OPTIONS] --all OUTDIR DIR[@WHEN]\n"
	       "Restores disks of a restore point, and proves every byte by its checksum.  OUT is a new\n"
	       "file, a block device, or an NBD URI.\n\n");
	cli_help(stdout, table);
	printf("\nexamples:\n"
	       "  merino restore /srv/backups vda.qcow2\n"
	       "  merino restore /srv/backups@2026-11-20 vda /dev/vg/vda\n"
	       "  merino restore --all /var/tmp/back /srv/backups@latest\n");
}

static enum verb_go bad(const char *text)
{
	log_error("%s; see merino restore --help", text);
	return VERB_EXIT_BAD;
}

static enum verb_go take(struct restore *o, int id)
{
	switch (id) {
	case OPT_ALL: o->all = optarg; return VERB_GO;
	case OPT_FORCE: o->force = true; return VERB_GO;
	case 'f':
		if (strcmp(optarg, "raw") && strcmp(optarg, "qcow2"))
			return bad("--format: the formats are raw and qcow2");
		o->format = optarg;
		return VERB_GO;
	default: return verb_take(&o->v, id, help);
	}
}

static enum verb_go parse(struct restore *o, int argc, char **argv)
{
	struct cli cli;
	int id, n;

	cli_init(&cli, table);
	while ((id = cli_next(&cli, argc, argv)) != -1) {
		enum verb_go go = take(o, id);

		if (go != VERB_GO)
			return go;
	}
	n = argc - optind;
	if (o->all && (n != 1 || !*o->all))
		return bad("with --all give a repository and nothing else");
	if (!o->all && n != 2 && n != 3)
		return bad("give a repository, perhaps a disk, and where to restore to");
	o->where = argv[optind];
	o->out = o->all ? NULL : argv[optind + n - 1];
	o->disk = n == 3 ? argv[optind + 1] : NULL;
	if (o->out && !*o->out)
		return bad("the output's name is empty");
	return VERB_GO;
}

static bool ends_in_qcow2(const char *path)
{
	size_t n = strlen(path);

	return n > 6 && strcmp(path + n - 6, ".qcow2") == 0;
}

static enum pull_format format_of(const struct restore *o, const char *out)
{
	if (o->format)
		return strcmp(o->format, "qcow2") ? PULL_RAW : PULL_QCOW2;
	return !uri_is_nbd(out) && ends_in_qcow2(out) ? PULL_QCOW2 : PULL_RAW;
}

static int write_piece(struct restore_out *out, struct repo_reader *d, const struct repo_piece *p,
		       struct error *err)
{
	uint32_t wrong;
	int rc = repo_reader_data(d, p, &wrong);

	if (rc < 0)
		return repo_reader_fail(d, p->off, rc, strerror(-rc), err);
	if (wrong)
		return repo_reader_fail(d, p->off + (uint64_t)__builtin_ctz(wrong) * REPO_CHUNK, -EIO,
					"the backup is damaged: the data is not what its checksum says", err);
	return restore_out_write(out, d->buf, p->off, p->len, err);
}

static int zero_piece(struct restore_out *out, const struct repo_piece *p, struct error *err)
{
	int rc = 0;

	for (uint64_t at = 0, n; at < p->len && rc == 0; at += n) {
		n = min_u64(p->len - at, ZERO_MAX);
		rc = restore_out_zero(out, p->off + at, n, err);
		if (rc == 0 && pull_signalled())
			rc = error_set(err, -EINTR, "stopped by a signal");
	}
	return rc;
}

static int copy(struct restore *o, struct repo_reader *d, struct restore_out *out, uint64_t *data,
		struct error *err)
{
	struct repo_piece p;
	int rc;

	while ((rc = repo_reader_next(d, &p, err)) > 0) {
		rc = p.zero ? zero_piece(out, &p, err) : write_piece(out, d, &p, err);
		if (rc == 0 && !p.zero)
			verb_limit_wait(&o->limit, p.len);
		if (rc == 0 && pull_signalled())
			rc = error_set(err, -EINTR, "stopped by a signal");
		if (rc < 0)
			return rc;
		*data += p.zero ? 0 : p.len;
		o->data += p.zero ? 0 : p.len;
		o->done += p.len;
		progress_update(&o->p, o->done, o->total, o->data);
	}
	return rc;
}

static void note(struct restore *o, const struct repo_disk *disk, const char *out, uint64_t data, double seconds)
{
	struct json_object *j = json_object_new_object();

	verb_add_string(j, "disk", disk->name);
	verb_add_string(j, "output", out);
	verb_add_string(j, "format", format_of(o, out) == PULL_RAW ? "raw" : "qcow2");
	verb_add_u64(j, "virtual-size", disk->size);
	verb_add_u64(j, "data-bytes", data);
	verb_add_u64(j, "zero-bytes", disk->size - data);
	verb_add_hash(j, "root", disk->root);
	json_object_object_add(j, "seconds", json_object_new_double(seconds));
	json_object_array_add(o->disks, j);
	if (!o->v.quiet && !o->v.json) {
		char text[SIZE_TEXT_MAX], size[SIZE_TEXT_MAX];

		printf("%s: '%s' of %s restored and proven: %s of data, %s in all, in %.1f s\n", out, disk->name,
		       o->point->id, size_format(text, sizeof(text), data),
		       size_format(size, sizeof(size), disk->size), seconds);
	}
}

static int restore_disk(struct restore *o, const struct repo_disk *disk, const char *target, struct error *err)
{
	uint64_t start = progress_now(), data = 0;
	struct restore_out *out = NULL;
	struct repo_reader d;
	int rc = repo_reader_open(&d, &o->repo, o->point, disk->name, err);

	if (rc == 0)
		rc = restore_out_open(&out, target, format_of(o, target), o->force, disk->size, err);
	if (rc == 0)
		rc = copy(o, &d, out, &data, err);
	if (rc == 0)
		rc = restore_out_finish(out, err);
	repo_reader_close(&d);
	if (restore_out_close(out))
		log_error("%s holds a part of the disk: it is not restored", target);
	if (rc == 0)
		note(o, disk, target, data, (progress_now() - start) / 1e9);
	return rc;
}

/* OUTDIR/DISK.raw or .qcow2, the disk's name as in the repository's files; malloc'd. */
static char *target_in(const struct restore *o, const struct repo_disk *disk)
{
	char name[REPO_FILE_MAX], *out = NULL;

	repo_file_name(name, disk->name, "x", "x");
	*strrchr(name, '@') = 0;
	if (asprintf(&out, "%s/%s.%s", o->all, name, o->format && !strcmp(o->format, "qcow2") ? "qcow2" : "raw") < 0)
		return NULL;
	return out;
}

static int restore_all(struct restore *o, struct error *err)
{
	int rc = mkdir(o->all, 0777) < 0 && errno != EEXIST ? -errno : 0;

	if (rc < 0)
		return error_errno(err, rc, "%s", o->all);
	for (int pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < o->point->n && rc == 0; i++) {
			char *out = target_in(o, &o->point->disk[i]);

			rc = !out ? error_errno(err, -ENOMEM, "%s", o->all)
			   : pass ? restore_disk(o, &o->point->disk[i], out, err)
				  : restore_out_check(out, format_of(o, out), o->force, err);
			free(out);
		}
	}
	return rc;
}

static int the_disk(const struct restore *o, const struct repo_disk **disk, struct error *err)
{
	char names[300] = "";

	*disk = o->disk ? repo_disk(o->point, o->disk) : o->point->n == 1 ? o->point->disk : NULL;
	if (*disk)
		return 0;
	for (unsigned i = 0; i < o->point->n && strlen(names) + REPO_DISK_MAX + 3 < sizeof(names); i++)
		sprintf(names + strlen(names), "%s%s", i ? ", " : "", o->point->disk[i].name);
	return error_set(err, -EINVAL, "point %s has several disks: say which one (%s), or use --all", o->point->id,
			 names);
}

static int restore(struct restore *o, struct error *err)
{
	const struct repo_disk *disk = NULL;
	char *dir = NULL, *when = NULL;
	int rc = verb_where(o->where, &dir, &when, err);

	if (rc == 0)
		rc = repo_open(&o->repo, dir, REPO_READ, err);
	free(dir);
	if (rc == 0) {
		o->point = verb_point(&o->repo, when, o->disk, err);
		rc = o->point ? 0 : err->code;
	}
	free(when);
	if (rc == 0 && !o->all)
		rc = the_disk(o, &disk, err);
	if (rc == 0 && !o->all)
		rc = restore_out_check(o->out, format_of(o, o->out), o->force, err);
	if (rc < 0)
		return rc;
	for (unsigned i = 0; i < o->point->n; i++)
		o->total += disk && disk != &o->point->disk[i] ? 0 : o->point->disk[i].size;
	o->limit.rate = o->v.limit;
	pull_signals_hold();
	progress_init(&o->p, o->v.progress, o->v.progress_fd);
	rc = o->all ? restore_all(o, err) : restore_disk(o, disk, o->out, err);
	progress_end(&o->p, rc == 0, o->total, o->data);
	return rc;
}

static int tell(struct restore *o)
{
	struct json_object *j = json_object_new_object();

	verb_add_string(j, "point", o->point->id);
	json_object_object_add(j, "disks", o->disks);
	o->disks = NULL;
	return verb_print(j, VERB_OK) == VERB_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}

int restore_main(int argc, char **argv)
{
	struct restore o = { .repo = { .dir = -1, .lock = -1, .in_use = -1 } };
	struct error err = ERROR_INIT;
	enum verb_go go = parse(&o, argc, argv);
	int rc;

	if (go != VERB_GO)
		return go == VERB_EXIT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
	o.disks = json_object_new_array();
	rc = restore(&o, &err);
	if (rc < 0)
		log_error("%s", err.text);
	else if (o.v.json)
		rc = tell(&o) == EXIT_SUCCESS ? 0 : -EIO;
	json_object_put(o.disks);
	repo_close(&o.repo);
	if (rc < 0)
		verb_die_of_signal();
	return rc == 0 && fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
