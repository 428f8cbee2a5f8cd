// SPDX-License-Identifier: BSD-3-Clause
/* repo-chain: the files of one disk at one point, from the point down to its full.
 *
 * Which file lies below which is the manifests' word.  What an image's own header says of
 * its backing file is compared with that, since people will read it by qemu-img alone,
 * and never followed; an image that would take the reader elsewhere (an external data
 * file) is refused before it is opened.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/repo-int.h"
#include "common/bytes.h"
#include "common/checked.h"
#include "format/node.h"
#include "format/qcow2.h"

/* qcow2's header (QEMU docs/interop/qcow2.txt). */
enum {
	QCOW2_HEADER = 104,
	QCOW2_MAGIC = 0x514649fb,
	QCOW2_BACKING_OFFSET = 8, QCOW2_BACKING_SIZE = 16, QCOW2_CRYPT = 32, QCOW2_INCOMPATIBLE = 72,
	QCOW2_INCOMPATIBLE_DATA_FILE = 4,
};

static int take_layer(const struct repo *r, const struct repo_point *p, const char *disk,
		      struct repo_chain *c, struct error *err)
{
	const struct repo_layer *above = c->n ? &c->layer[c->n - 1] : NULL;
	const struct repo_disk *d = p && p->readable ? repo_disk(p, disk) : NULL;
	const char *id = above ? above->disk->parent : p ? p->id : "?";

	if (!p)
		return error_set(err, -ENOENT, "the restore point %s, on which %s rests, is missing", id,
				 above ? above->point->id : "it");
	if (!p->readable)
		return error_set(err, -EIO, "the restore point %s cannot be read: %s", id, p->why);
	if (!d)
		return error_set(err, -ENOENT, "the restore point %s has no disk %s", id, disk);
	if (c->n == REPO_CHAIN_MAX)
		return error_set(err, -ELOOP, "more than %d restore points of %s lie over one another",
				 REPO_CHAIN_MAX, disk);
	if (above && (p->sequence >= above->point->sequence || d->size > above->disk->size))
		return error_set(err, -EIO, "%s rests on %s, which is later or has a larger %s",
				 above->point->id, id, disk);
	c->layer[c->n++] = (struct repo_layer){ .point = p, .disk = d };
	return 0;
}

int repo_chain(const struct repo *r, const struct repo_point *p, const char *disk,
	       struct repo_chain *c, struct error *err)
{
	int rc;

	c->n = 0;
	rc = take_layer(r, p, disk, c, err);
	while (rc == 0 && c->layer[c->n - 1].disk->level == REPO_INCREMENTAL)
		rc = take_layer(r, repo_point(r, c->layer[c->n - 1].disk->parent), disk, c, err);
	return rc;
}

/* --- images */

static int read_header(const struct repo *r, const char *name, uint8_t h[QCOW2_HEADER],
		       char backing[REPO_FILE_MAX], struct error *err)
{
	int fd = openat(r->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;
	uint64_t off, len = 0;
	int rc = 0;

	if (fd < 0)
		return error_errno(err, -errno, "%s/%s", r->path, name);
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		rc = error_set(err, -EUCLEAN, "%s/%s is no regular file", r->path, name);
	else if (pread(fd, h, QCOW2_HEADER, 0) != QCOW2_HEADER || get_be32(h) != QCOW2_MAGIC ||
		 get_be32(h + 4) != 3)
		rc = error_set(err, -EUCLEAN, "%s/%s is no qcow2 image of version 3", r->path, name);
	if (rc == 0) {
		off = get_be64(h + QCOW2_BACKING_OFFSET);
		len = off ? get_be32(h + QCOW2_BACKING_SIZE) : 0;
		if (len >= REPO_FILE_MAX || off > INT64_MAX - REPO_FILE_MAX ||
		    (len && pread(fd, backing, len, off) != (ssize_t)len))
			rc = error_set(err, -EUCLEAN, "%s/%s: the backing file's name is none of ours",
				       r->path, name);
	}
	if (rc == 0)
		backing[len] = 0;
	close(fd);
	return rc;
}

int repo_image_backing(const struct repo *r, const struct repo_layer *l, char out[REPO_FILE_MAX],
		       struct error *err)
{
	char name[REPO_FILE_MAX];
	uint8_t h[QCOW2_HEADER];

	repo_file_name(name, l->disk->name, l->point->id, "qcow2");
	return read_header(r, name, h, out, err);
}

/* BACKING is the image of one of the two points that may be below. */
static bool backing_fits(const struct repo_disk *d, const char *backing)
{
	char want[REPO_FILE_MAX] = "", merged[REPO_FILE_MAX] = "";

	if (d->level == REPO_INCREMENTAL)
		repo_file_name(want, d->name, d->parent, "qcow2");
	if (d->merged[0])
		repo_file_name(merged, d->name, d->merged, "qcow2");
	return !strcmp(backing, want) || (d->merged[0] && !strcmp(backing, merged));
}

static int check_image(const struct repo *r, const struct repo_layer *l, const char *name,
		       struct error *err)
{
	char backing[REPO_FILE_MAX];
	uint8_t h[QCOW2_HEADER];
	int rc = read_header(r, name, h, backing, err);

	if (rc < 0)
		return rc;
	if (get_be64(h + QCOW2_INCOMPATIBLE) & QCOW2_INCOMPATIBLE_DATA_FILE)
		return error_set(err, -EUCLEAN, "%s/%s has an external data file, which no backup has",
				 r->path, name);
	if (get_be32(h + QCOW2_CRYPT))
		return error_set(err, -EUCLEAN, "%s/%s is encrypted, which no backup is", r->path, name);
	if (get_be64(h + 24) != align_up(l->disk->size, 512))
		return error_set(err, -EUCLEAN, "%s/%s has %llu bytes, the manifest says %llu", r->path, name,
				 (unsigned long long)get_be64(h + 24), (unsigned long long)l->disk->size);
	if (!backing_fits(l->disk, backing))
		return error_set(err, -EUCLEAN, "%s/%s has the backing file '%s', which the manifest does not "
				 "say", r->path, name, backing);
	return 0;
}

static struct json_object *text(const char *s)
{
	return json_object_new_string(s);
}

/* Layer I and all below, as BlockdevOptions; FULL is the directory's path. */
static struct json_object *layer_options(const struct repo *r, const struct repo_chain *c, unsigned i,
					 const char *full, struct error *err)
{
	struct json_object *o, *file, *backing = NULL;
	const struct repo_layer *l = &c->layer[i];
	char name[REPO_FILE_MAX], *path;

	repo_file_name(name, l->disk->name, l->point->id, "qcow2");
	if (check_image(r, l, name, err) < 0)
		return NULL;
	if (i + 1 < c->n) {
		backing = layer_options(r, c, i + 1, full, err);
		if (!backing)
			return NULL;
	}
	if (asprintf(&path, "%s/%s", full, name) < 0)
		abort();
	o = json_object_new_object();
	file = json_object_new_object();
	json_object_object_add(file, "driver", text("file"));
	json_object_object_add(file, "filename", text(path));
	json_object_object_add(file, "read-only", json_object_new_boolean(true));
	json_object_object_add(o, "driver", text("qcow2"));
	json_object_object_add(o, "read-only", json_object_new_boolean(true));
	json_object_object_add(o, "file", file);
	json_object_object_add(o, "backing", backing);	/* NULL: none, whatever the header says */
	free(path);
	return o;
}

struct json_object *repo_chain_blockdev(const struct repo *r, const struct repo_chain *c,
					struct error *err)
{
	char *full = realpath(r->path, NULL);
	struct json_object *o;

	if (!full) {
		error_errno(err, -errno, "%s", r->path);
		return NULL;
	}
	o = layer_options(r, c, 0, full, err);
	free(full);
	return o;
}

int repo_chain_node(const struct repo *r, const struct repo_chain *c, struct graph *g,
		    struct node **out, struct error *err)
{
	struct node_place where = { .graph = g, .io = io_blocking() };
	struct error local = ERROR_INIT;
	struct json_object *o = repo_chain_blockdev(r, c, err ? err : &local);
	int rc;

	if (!o)
		return err ? err->code : local.code;
	rc = node_open(&where, o, out, err);
	json_object_put(o);
	return rc;
}

static struct json_object *one_image(const char *path)
{
	struct json_object *o = json_object_new_object(), *file = json_object_new_object();

	json_object_object_add(o, "driver", text("qcow2"));
	json_object_object_add(o, "crash-log", text("off"));
	json_object_object_add(o, "backing", NULL);
	json_object_object_add(o, "file", file);
	json_object_object_add(file, "driver", text("file"));
	json_object_object_add(file, "filename", text(path));
	return o;
}

int repo_image_relink(const struct repo *r, const char *name, const char *backing, struct error *err)
{
	char *full = realpath(r->path, NULL), *path = NULL;
	struct json_object *o = NULL;
	struct node *n = NULL;
	struct graph g;
	struct node_place where = { .graph = &g, .io = io_blocking() };
	int rc = 0;

	graph_init(&g);
	if (!full || asprintf(&path, "%s/%s", full, name) < 0)
		rc = error_errno(err, full ? -ENOMEM : -errno, "%s", r->path);
	if (rc == 0) {
		o = one_image(path);
		rc = node_open(&where, o, &n, err);
	}
	if (rc == 0)
		rc = qcow2_relink(n, backing, "qcow2", err);
	node_unref(n);
	if (rc == 0 && g.close_rc)
		rc = error_errno(err, g.close_rc, "%s: could not be closed", path);
	pthread_mutex_destroy(&g.lock);
	json_object_put(o);
	free(path);
	free(full);
	return rc;
}

/* --- sums */

/* The file that D's manifest means: while prune is at work, the one it has made. */
static int open_sums(const struct repo *r, const struct repo_layer *l, struct error *err)
{
	char name[REPO_FILE_MAX];
	int fd;

	repo_file_name(name, l->disk->name, l->point->id, "merged");
	fd = openat(r->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd >= 0 && sums_file_is(fd, l->disk->sums_bytes, l->disk->sums_hash))
		return fd;
	if (fd >= 0)
		close(fd);
	repo_file_name(name, l->disk->name, l->point->id, "sums");
	fd = openat(r->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	return fd < 0 ? error_errno(err, -errno, "%s/%s", r->path, name) : fd;
}

int repo_chain_sums_files(const struct repo *r, const struct repo_chain *c, struct sums_file *f,
			  struct error *err)
{
	for (unsigned i = 0; i < c->n; i++) {
		const struct repo_disk *d = c->layer[i].disk;
		int fd = open_sums(r, &c->layer[i], err);

		if (fd < 0) {
			while (i > 0)
				close(f[--i].fd);
			return fd;
		}
		f[i] = (struct sums_file){ .fd = fd, .name = c->layer[i].point->id, .bytes = d->sums_bytes,
					   .size = d->size };
		memcpy(f[i].hash, d->sums_hash, SUMS_HASH);
	}
	return 0;
}

int repo_chain_sums(const struct repo *r, const struct repo_chain *c, struct sums **out,
		    struct error *err)
{
	struct sums_file f[REPO_CHAIN_MAX];
	int rc = repo_chain_sums_files(r, c, f, err);

	return rc ? rc : sums_open(f, c->n, REPO_CHUNK, out, err);
}
