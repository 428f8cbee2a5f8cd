/* SPDX-License-Identifier: BSD-3-Clause */
/* repo-int: what the files of the repository share. */
#ifndef MERINO_REPO_INT_H
#define MERINO_REPO_INT_H

#include <stddef.h>

#include "clients/repo.h"

struct json_object;

enum { REPO_TIME = 32 };

/* "2026-11-21T16:40:00Z" */
void repo_time_text(int64_t t, char out[REPO_TIME]);

/* Fills P, whose id is set, from the manifest's TEXT (N bytes and a terminator; it is
 * changed).  -EUCLEAN with what is wrong; P may be half filled then. */
int repo_manifest_parse(char *t, size_t n, const char *repository, struct repo_point *p,
			struct error *err);
/* P as its manifest; malloc'd, NULL without memory. */
char *repo_manifest_text(const struct repo_point *p, const char *repository);

/* What the manifest and --json share. */
struct json_object *repo_point_json(const struct repo_point *p);
struct json_object *repo_disk_json(const struct repo_point *p, const struct repo_disk *d);

/* A small file of the repository, with a terminator; malloc'd. */
int repo_read_file(const struct repo *r, const char *name, size_t max, char **out, size_t *n,
		   struct error *err);
/* Written under a temporary name, synced, renamed, the directory synced. */
int repo_write_file(struct repo *r, const char *name, const char *text, struct error *err);

/* BACKING (NULL: none) becomes the backing file's name in the header of the image NAME,
 * durably: prune. */
int repo_image_relink(const struct repo *r, const char *name, const char *backing, struct error *err);

/* Marks and what they cover: repo-clean.c. */
int repo_clean(struct repo *r, struct error *err);

#endif
