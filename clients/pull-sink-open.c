// SPDX-License-Identifier: BSD-3-Clause
/* pull-sink-open: making a new image, or opening one that is there.
 *
 * A backing file is named on the command line relative to where the user is, as
 * every other file.  In the image's header it is named relative to the image
 * when both are in one directory (so that they can be moved together), else by
 * its full path.
 */
#include <errno.h>
#include <json-c/json.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/pull-sink-int.h"
#include "common/checked.h"
#include "format/qcow2.h"

enum { RAW_FRESH_GRANULE = 4096, RAW_ONTO_GRANULE = 65536, NAME_TRIES = 100 };

int sink_check(const struct pull_options *o, struct error *err)
{
	struct stat st;
	bool there = lstat(o->out, &st) == 0;
	size_t n = strlen(o->out);

	if (!there && errno != ENOENT)
		return error_errno(err, -errno, "%s", o->out);
	if (n && o->out[n - 1] == '/')
		return error_set(err, -EISDIR, "%s: a directory's name; say what the file is called", o->out);
	if (o->onto)
		return there ? 0 : error_errno(err, -ENOENT, "%s", o->out);
	if (there && S_ISREG(st.st_mode) && !o->force)
		return error_set(err, -EEXIST, "%s exists: --force replaces it, --onto brings it up to date",
				 o->out);
	if (there && !S_ISREG(st.st_mode))
		return error_set(err, -EEXIST, "%s exists and is no regular file; onto a device: --onto -f raw",
				 o->out);
	if (o->backing && access(o->backing, R_OK) < 0)
		return error_errno(err, -errno, "%s", o->backing);
	return 0;
}

/* The part of PATH before its last component; the caller frees it. */
static char *directory_of(const char *path)
{
	char *copy = strdup(path), *dir = copy ? strdup(dirname(copy)) : NULL;

	free(copy);
	return dir;
}

static bool same_file(const char *a, const char *b)
{
	struct stat sa, sb;

	return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
	       sa.st_ino == sb.st_ino;
}

/* The backing file's name for the header; the caller frees it. */
static int backing_name(const struct sink *k, char **out, struct error *err)
{
	char *full = realpath(k->o->backing, NULL), *dir = full ? directory_of(full) : NULL;
	int rc = full && dir ? 0 : -errno;

	*out = NULL;
	if (rc < 0)
		error_errno(err, rc, "%s", k->o->backing);
	else if (!same_file(dir, k->dir))
		*out = strdup(full);
	/* "a:b" would be read as a protocol's name. */
	else if (asprintf(out, "%s%s", strchr(strrchr(full, '/'), ':') ? "./" : "",
			  strrchr(full, '/') + 1) < 0)
		*out = NULL;
	free(full);
	free(dir);
	return rc == 0 && !*out ? error_errno(err, -ENOMEM, "%s", k->o->backing) : rc;
}

/* Makes the new file under a name that nobody else has. */
static int create_temp(struct sink *k, struct error *err)
{
	char *copy = strdup(k->o->out);
	const char *base = copy ? basename(copy) : "";
	int rc = -ENOMEM;

	for (int i = 0; copy && i < NAME_TRIES && !k->file; i++) {
		uint32_t r = 0;

		free(k->temp);
		k->temp = NULL;
		if (getrandom(&r, sizeof(r), 0) != sizeof(r) ||
		    asprintf(&k->temp, "%s/.%.200s.%08x.partial", k->dir, base, r) < 0)
			break;
		*err = ERROR_INIT;
		k->file = io_open(io_blocking(), k->temp, IO_RDWR | IO_CREATE, err);
		rc = k->file ? 0 : err->code;
		if (rc != 0 && rc != -EEXIST)
			break;
	}
	free(copy);
	if (!k->file) {
		free(k->temp);
		k->temp = NULL;		/* not ours to remove */
	}
	return rc == -ENOMEM ? error_errno(err, rc, "%s", k->o->out) : rc;
}

static int format_qcow2(struct sink *k, struct error *err)
{
	struct qcow2_create create = { .size = k->size };
	char *name = NULL;
	int rc = k->o->backing ? backing_name(k, &name, err) : 0;

	if (rc == 0) {
		create.backing_file = name;
		create.backing_format = name ? k->o->backing_format : NULL;
		rc = qcow2_create(k->file, &create, err);
	}
	free(name);
	return rc;
}

static int format_raw(struct sink *k, struct error *err)
{
	int rc = io_truncate(k->file, k->size);

	return rc < 0 ? error_errno(err, rc, "%s: cannot have %llu bytes", k->o->out,
				    (unsigned long long)k->size) : 0;
}

static int open_node(struct sink *k, const char *path, struct error *err)
{
	struct node_place where = { .graph = &k->graph, .io = io_blocking() };
	struct json_object *o = json_object_new_object(), *file = json_object_new_object();
	struct json_object *cache = json_object_new_object();
	struct stat st;
	bool device = stat(path, &st) == 0 && S_ISBLK(st.st_mode);
	int rc;

	json_object_object_add(o, "driver",
			       json_object_new_string(k->o->format == PULL_RAW ? "raw" : "qcow2"));
	json_object_object_add(o, "discard", json_object_new_string("unmap"));
	json_object_object_add(o, "cache", cache);
	json_object_object_add(cache, "no-flush", json_object_new_boolean(!k->o->onto || k->o->no_flush));
	if (k->o->format != PULL_RAW)	/* who is killed here has told nobody that anything is stored */
		json_object_object_add(o, "crash-log", json_object_new_string("off"));
	json_object_object_add(o, "file", file);
	json_object_object_add(file, "driver",
			       json_object_new_string(device ? "host_device" : "file"));
	json_object_object_add(file, "filename", json_object_new_string(path));
	rc = node_open(&where, o, &k->node, err);
	json_object_put(o);
	if (rc < 0)
		return rc;
	return node_use_add(&k->use, k->node, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
			    PERM_CONSISTENT_READ, err, "merino pull");
}

/* --force must not replace what the new image rests on. */
static int check_chain(const struct sink *k, struct error *err)
{
	for (struct node *n = k->node->child[CHILD_BACKING]; n; n = n->child[CHILD_BACKING])
		if (n->filename && same_file(n->filename, k->o->out))
			return error_set(err, -EINVAL, "%s is part of the backing chain of the new image",
					 k->o->out);
	return 0;
}

/* A file that somebody has open lives on without a name when it is replaced, and is
 * gone with its last user: --force is not meant for a disk in use. */
static int lock_replaced(struct sink *k, struct error *err)
{
	struct node_place where = { .graph = &k->graph, .io = io_blocking() };
	struct json_object *o;
	int rc;

	if (!k->o->force || access(k->o->out, F_OK) < 0)
		return 0;
	o = json_object_new_object();
	json_object_object_add(o, "driver", json_object_new_string("file"));
	json_object_object_add(o, "filename", json_object_new_string(k->o->out));
	json_object_object_add(o, "read-only", json_object_new_boolean(true));
	rc = node_open(&where, o, &k->replaced, err);
	json_object_put(o);
	return rc ? rc : node_use_add(&k->replaced_use, k->replaced, PERM_CONSISTENT_READ, 0, err,
				      "merino pull --force");
}

/* The image, or the previous backup, called NAME is longer than the export. */
static int too_long(const char *name, uint64_t has, uint64_t want, struct error *err)
{
	return error_set(err, -EINVAL, "%s has %llu bytes, the export only %llu: not the same disk, "
			 "or it was shrunk; make a new full copy", name, (unsigned long long)has,
			 (unsigned long long)want);
}

/* What the bitmap leaves out comes from the previous backup, so that has to be of this disk. */
static int check_previous(struct sink *k, struct error *err)
{
	struct node *b = k->node->child[CHILD_BACKING];

	if (!b)
		return 0;
	k->previous_size = b->size;
	if (k->o->bitmap && b->size > k->node->size)
		return too_long(k->o->backing, b->size, k->size, err);
	return 0;
}

static int open_new(struct sink *k, struct error *err)
{
	int rc;

	k->dir = directory_of(k->o->out);
	if (!k->dir)
		return error_errno(err, -ENOMEM, "%s", k->o->out);
	rc = create_temp(k, err);
	if (rc == 0)
		rc = k->o->format == PULL_RAW ? format_raw(k, err) : format_qcow2(k, err);
	if (rc == 0)
		rc = open_node(k, k->temp, err);
	if (rc < 0)
		return rc;
	k->fresh = !k->o->backing;
	rc = check_previous(k, err);
	if (rc == 0)
		rc = check_chain(k, err);
	return rc ? rc : lock_replaced(k, err);
}

/* An image that is there: as long as the export, or grown to that. */
static int open_onto(struct sink *k, struct error *err)
{
	uint64_t want = k->size;
	int rc = open_node(k, k->o->out, err);

	if (rc < 0)
		return rc;
	k->previous_size = k->node->size;
	if (k->o->format == PULL_QCOW2 && !checked_align_up(want, 512, &want))
		return error_errno(err, -EFBIG, "%s", k->o->out);
	if (k->node->size < want)
		return node_truncate(k->node, want, err);
	if (k->node->size > want && !node_on_block_device(k->node))
		return too_long(k->o->out, k->node->size, want, err);
	return 0;
}

struct sink *sink_open(const struct pull_options *o, uint64_t size, struct error *err)
{
	struct sink *k = calloc(1, sizeof(*k));
	int rc;

	if (!k) {
		error_errno(err, -ENOMEM, "%s", o->out);
		return NULL;
	}
	k->o = o;
	k->size = k->previous_size = size;
	graph_init(&k->graph);
	rc = o->onto ? open_onto(k, err) : open_new(k, err);
	if (rc < 0) {
		sink_close(k);
		return NULL;
	}
	if (o->format == PULL_QCOW2)
		k->granule = qcow2_cluster_size(k->node);
	else
		k->granule = k->fresh ? RAW_FRESH_GRANULE : RAW_ONTO_GRANULE;
	return k;
}
