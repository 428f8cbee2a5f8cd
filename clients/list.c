// SPDX-License-Identifier: BSD-3-Clause
/* list: the verb: the restore points of a repository, without reading the images.
 *
 * Exit status: 0; 1 when there is no repository, or it cannot be read; 2 when a point of it
 * is damaged.  A point that is being made says "unfinished" and harms nobody.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "clients/backup.h"
#include "clients/cli.h"
#include "clients/repo-int.h"
#include "common/log.h"
#include "common/size.h"

enum { OPT_JSON = CLI_LONG, EXIT_DAMAGED = 2 };

static const struct cli_option table[] = {
	{ OPT_JSON, "json", NULL, "print everything as JSON" },
	{ 'h', "help", NULL, "print this text and exit" },
	{ 'V', "version", NULL, "print the version and exit" },
	{ 0 },
};

static const char *const states[] = { "good", "damaged", "unfinished" };

static void help(void)
{
	printf("usage: merino list [OPTIONS] DIR\n"
	       "Shows the restore points of a backup repository.\n\n");
	cli_help(stdout, table);
	printf("\nexamples:\n  merino list /srv/backups/vm1\n");
}

/* Bytes that the image of D takes on storage. */
static uint64_t stored(const struct repo *r, const struct repo_point *p, const struct repo_disk *d)
{
	char name[REPO_FILE_MAX];
	struct stat st;

	repo_file_name(name, d->name, p->id, "qcow2");
	if (fstatat(r->dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return 0;
	return st.st_blocks * 512ull;
}

/* How many images lie over one another; 0: the chain is broken. */
static unsigned chain_length(const struct repo *r, const struct repo_point *p, const struct repo_disk *d)
{
	struct repo_chain c;

	return repo_chain(r, p, d->name, &c, NULL) == 0 ? c.n : 0;
}

/* --- JSON */

static struct json_object *point_json(const struct repo *r, const struct repo_point *p)
{
	struct json_object *o, *disks;

	if (p->readable) {
		o = repo_point_json(p);
		json_object_object_get_ex(o, "disks", &disks);
	} else {
		o = json_object_new_object();
		json_object_object_add(o, "point", json_object_new_string(p->id));
	}
	json_object_object_add(o, "state", json_object_new_string(states[p->state]));
	if (p->why[0])
		json_object_object_add(o, "why", json_object_new_string(p->why));
	for (unsigned i = 0; i < p->n && p->readable; i++) {
		struct json_object *d = json_object_array_get_idx(disks, i);

		json_object_object_add(d, "stored-bytes",
				       json_object_new_uint64(stored(r, p, &p->disk[i])));
		json_object_object_add(d, "chain-length",
				       json_object_new_int(chain_length(r, p, &p->disk[i])));
	}
	return o;
}

static void tell_json(const struct repo *r)
{
	struct json_object *o = json_object_new_object(), *points = json_object_new_array();

	json_object_object_add(o, "directory", json_object_new_string(r->path));
	json_object_object_add(o, "repository", json_object_new_string(r->id));
	json_object_object_add(o, "points", points);
	for (unsigned i = 0; i < r->n; i++)
		json_object_array_add(points, point_json(r, &r->point[i]));
	printf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY |
						      JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
}

/* --- for people */

static void tell_disk(const struct repo *r, const struct repo_point *p, const struct repo_disk *d)
{
	char size[SIZE_TEXT_MAX], kept[SIZE_TEXT_MAX];

	size_format(size, sizeof(size), d->size);
	size_format(kept, sizeof(kept), stored(r, p, d));
	printf("    %-16s %10s %10s  ", d->name, size, kept);
	if (d->level == REPO_FULL)
		printf("full: %s\n", d->reason);
	else
		printf("incremental on %s, %u images\n", d->parent, chain_length(r, p, d));
}

static void tell_point(const struct repo *r, const struct repo_point *p)
{
	char when[REPO_TIME] = "";

	if (p->readable)
		repo_time_text(p->time, when);
	printf("%-24s %-20s  %s%s%s\n", p->id, when, states[p->state], p->why[0] ? ": " : "", p->why);
	for (unsigned i = 0; i < p->n && p->readable; i++)
		tell_disk(r, p, &p->disk[i]);
}

static void tell_person(const struct repo *r)
{
	char sum[SIZE_TEXT_MAX];
	uint64_t bytes = 0;

	for (unsigned i = 0; i < r->n; i++) {
		tell_point(r, &r->point[i]);
		for (unsigned d = 0; d < r->point[i].n; d++)
			bytes += stored(r, &r->point[i], &r->point[i].disk[d]);
	}
	size_format(sum, sizeof(sum), bytes);
	printf("%s: %u restore point%s, %s\n", r->path, r->n, r->n == 1 ? "" : "s", sum);
}

static int list(const char *path, bool json)
{
	struct error err = ERROR_INIT;
	int status = EXIT_SUCCESS;
	struct repo r;

	if (repo_open(&r, path, REPO_LOOK, &err) < 0) {
		log_error("%s", err.text);
		return EXIT_FAILURE;
	}
	if (json)
		tell_json(&r);
	else
		tell_person(&r);
	for (unsigned i = 0; i < r.n; i++)
		if (r.point[i].state == REPO_DAMAGED)
			status = EXIT_DAMAGED;
	repo_close(&r);
	return fflush(stdout) == 0 ? status : EXIT_FAILURE;
}

int list_main(int argc, char **argv)
{
	bool json = false;
	struct cli cli;
	int id;

	cli_init(&cli, table);
	while ((id = cli_next(&cli, argc, argv)) != -1) {
		switch (id) {
		case OPT_JSON: json = true; break;
		case 'h': help(); return EXIT_SUCCESS;
		case 'V': cli_version(); return EXIT_SUCCESS;
		default: return EXIT_FAILURE;
		}
	}
	if (argc - optind != 1) {
		log_error("give the repository's directory; see merino list --help");
		return EXIT_FAILURE;
	}
	return list(argv[optind], json);
}
