// SPDX-License-Identifier: BSD-3-Clause
/* serve-daemon: a private merinod over the images of a restore point.
 *
 * It gets each chain as the manifests have it, spelled out, so that it follows no name in an
 * image; it may open nothing but the repository and our own directories; it dies with us.
 * What is written goes to overlays in a directory that is removed at the end.
 */
#include <errno.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "clients/own-daemon.h"
#include "clients/pull.h"
#include "clients/serve.h"
#include "common/checked.h"
#include "common/json.h"
#include "common/log.h"
#include "common/private-dir.h"
#include "common/uri.h"
#include "format/qcow2.h"

enum { ARGS_MAX = 4 * REPO_DISKS + 32, NAP_NS = 5000000, END_S = 10 };

bool serve_wanted(const struct serve *o, const struct repo_disk *d)
{
	return !o->disk || !strcmp(o->disk, d->name);
}

/* --- what is served */

static struct json_object *text(const char *s)
{
	return json_object_new_string(s);
}

/* A new image that takes what is written over CHAIN, which is consumed. */
static struct json_object *overlay(const struct serve *o, unsigned i, uint64_t size, struct json_object *chain,
				   struct error *err)
{
	struct json_object *j, *file, *cache;
	struct qcow2_create create = { .size = size };
	struct io_file *f = NULL;
	char *path;
	int rc = asprintf(&path, "%s/%u.qcow2", o->overlays, i) < 0 ? error_errno(err, -ENOMEM, "%s", o->overlays) : 0;

	if (rc == 0) {
		f = io_open(io_blocking(), path, IO_RDWR | IO_CREATE, err);
		rc = f ? qcow2_create(f, &create, err) : err->code;
		io_file_unref(f);
	} else {
		path = NULL;
	}
	if (rc < 0) {
		json_object_put(chain);
		free(path);
		return NULL;
	}
	j = json_object_new_object();
	file = json_object_new_object();
	cache = json_object_new_object();
	json_object_object_add(file, "driver", text("file"));
	json_object_object_add(file, "filename", text(path));
	json_object_object_add(cache, "no-flush", json_object_new_boolean(true));
	json_object_object_add(j, "driver", text("qcow2"));
	json_object_object_add(j, "crash-log", text("off"));
	json_object_object_add(j, "discard", text("unmap"));
	json_object_object_add(j, "cache", cache);
	json_object_object_add(j, "file", file);
	json_object_object_add(j, "backing", chain);
	free(path);
	return j;
}

/* An image ends with a sector, a disk need not. */
static struct json_object *cut(const struct serve *o, uint64_t size, struct json_object *image)
{
	struct json_object *j;

	if (size % 512 == 0)
		return image;
	j = json_object_new_object();
	json_object_object_add(j, "driver", text("raw"));
	json_object_object_add(j, "size", json_object_new_int64(size));
	json_object_object_add(j, "read-only", json_object_new_boolean(!o->writable));
	json_object_object_add(j, "file", image);
	return j;
}

static struct json_object *blockdev(const struct serve *o, unsigned i, const struct repo_disk *d, struct error *err)
{
	struct repo_chain c;
	struct json_object *j = NULL;
	char name[16];

	if (repo_chain(&o->repo, o->point, d->name, &c, err) == 0)
		j = repo_chain_blockdev(&o->repo, &c, err);
	if (j && o->writable)
		j = overlay(o, i, d->size, j, err);
	if (!j)
		return NULL;
	j = cut(o, d->size, j);
	snprintf(name, sizeof(name), "disk%u", i);
	json_object_object_add(j, "node-name", text(name));
	return j;
}

static struct json_object *export(const struct serve *o, unsigned i, const struct repo_disk *d)
{
	struct json_object *j = json_object_new_object();
	char name[16];

	snprintf(name, sizeof(name), "disk%u", i);
	json_object_object_add(j, "type", text("nbd"));
	json_object_object_add(j, "id", text(name));
	json_object_object_add(j, "node-name", text(name));
	json_object_object_add(j, "name", text(d->name));
	json_object_object_add(j, "writable", json_object_new_boolean(o->writable));
	return j;
}

static struct json_object *listener(const struct serve *o)
{
	struct json_object *j = json_object_new_object(), *addr = json_object_new_object();
	char port[8];

	json_object_object_add(j, "addr", addr);
	if (o->listen) {
		json_object_object_add(addr, "type", text("unix"));
		json_object_object_add(addr, "path", text(o->listen));
	} else {
		snprintf(port, sizeof(port), "%d", o->port);
		json_object_object_add(addr, "type", text("inet"));
		json_object_object_add(addr, "host", text(o->bind));
		json_object_object_add(addr, "port", text(port));
	}
	return j;
}

/* --- the command line */

struct args {
	char *v[ARGS_MAX + 1];		/* owned */
	unsigned n;
};

static void add(struct args *a, const char *s)
{
	if (a->n < ARGS_MAX)
		a->v[a->n++] = strdup(s);
}

static void add_json(struct args *a, const char *option, struct json_object *j)
{
	add(a, option);
	add(a, json_write(j));
	json_object_put(j);
}

static void args_free(struct args *a)
{
	for (unsigned i = 0; i < a->n; i++)
		free(a->v[i]);
}

static int make_args(const struct serve *o, struct args *a, struct error *err)
{
	char *full = realpath(o->repo.path, NULL), path[PATH_MAX];

	if (!full)
		return error_errno(err, -errno, "%s", o->repo.path);
	a->v[a->n++] = own_daemon_program(NULL);
	add(a, "--allow-dir");
	add(a, full);
	free(full);
	add(a, "--allow-dir");
	add(a, o->dir);
	if (o->overlays) {
		add(a, "--allow-dir");
		add(a, o->overlays);
	}
	snprintf(path, sizeof(path), "%s/pid", o->dir);
	add(a, "--pidfile");
	add(a, path);
	add_json(a, "--nbd-server", listener(o));
	for (unsigned i = 0; i < o->point->n; i++) {
		const struct repo_disk *d = &o->point->disk[i];
		struct json_object *j;

		if (!serve_wanted(o, d))
			continue;
		j = blockdev(o, i, d, err);
		if (!j)
			return err->code;
		add_json(a, "--blockdev", j);
		add_json(a, "--export", export(o, i, d));
	}
	for (unsigned i = 0; i < a->n; i++)
		if (!a->v[i])
			return error_errno(err, -ENOMEM, "merinod");
	return 0;
}

/* --- the process */

/* The pid file is written when everything is in place. */
static int wait_ready(struct serve *o, struct error *err)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };
	char path[PATH_MAX];
	struct stat st;

	snprintf(path, sizeof(path), "%s/pid", o->dir);
	while (stat(path, &st) < 0 || st.st_size == 0) {
		int status;

		if (own_daemon_ended(&o->daemon, &status))
			return error_set(err, -ECHILD, "merinod did not start: see above");
		if (pull_signalled())
			return error_set(err, -EINTR, "stopped by a signal");
		nanosleep(&nap, NULL);
	}
	return 0;
}

int serve_start(struct serve *o, struct error *err)
{
	struct args a = { .n = 0 };
	int rc = private_dir_make(getenv("XDG_RUNTIME_DIR"), "/tmp", "merino-serve", &o->dir, err);

	if (rc == 0 && o->writable)
		rc = private_dir_make(getenv("TMPDIR"), "/var/tmp", "merino-serve", &o->overlays, err);
	if (rc == 0 && o->port < 0 && (o->socket ? !(o->listen = strdup(o->socket))
						 : asprintf(&o->listen, "%s/nbd", o->dir) < 0))
		rc = error_errno(err, -ENOMEM, "%s", o->dir);
	if (rc == 0)
		rc = make_args(o, &a, err);
	if (rc == 0)
		rc = own_daemon_start(a.v, NULL, &o->daemon, err);
	args_free(&a);
	return rc ? rc : wait_ready(o, err);
}

int serve_uri(const struct serve *o, const char *disk, char **uri, struct error *err)
{
	if (o->listen)
		return uri_build_unix(false, o->listen, disk, uri, err);
	return uri_build_tcp(false, o->bind, o->port, disk, uri, err);
}

static void remove_dir(char **dir, const char *const *names)
{
	char path[PATH_MAX];

	for (unsigned i = 0; *dir && names[i]; i++) {
		snprintf(path, sizeof(path), "%s/%s", *dir, names[i]);
		unlink(path);
	}
	if (*dir && rmdir(*dir) < 0)
		log_warning("%s: %s", *dir, strerror(errno));
	free(*dir);
	*dir = NULL;
}

void serve_stop(struct serve *o)
{
	static const char *const ours[] = { "pid", "nbd", NULL };
	static const char *const none[] = { NULL };
	char path[PATH_MAX];

	own_daemon_end(&o->daemon, END_S);
	for (unsigned i = 0; o->overlays && i < o->point->n; i++) {
		snprintf(path, sizeof(path), "%s/%u.qcow2", o->overlays, i);
		unlink(path);
	}
	remove_dir(&o->overlays, none);
	remove_dir(&o->dir, ours);
	free(o->listen);
	o->listen = NULL;
}
