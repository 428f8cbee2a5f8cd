/* SPDX-License-Identifier: BSD-3-Clause */
/* quick: serves images with one word per image.
 *
 * One disk is the default export (""); several are named after their files.
 *
 * Without -f, a file that starts as qcow2 is taken for qcow2, anything else is
 * raw and read only.  Were it writable, a guest could write a qcow2 header into
 * its first sector, and the next start would follow that header's backing file
 * name wherever it points (HAZARDS.md 26).  With -f raw nothing is guessed.  A disk
 * that was written to as raw may begin with such a header all the same: what is taken
 * for qcow2 and names another file is refused until somebody says that it is qcow2.
 */
#include "nbd-server/quick.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <json-c/json.h>

#include "common/bytes.h"
#include "common/log.h"
#include "common/private-dir.h"
#include "common/uri.h"
#include "format/nbd.h"
#include "nbd-server/activation.h"
#include "nbd-server/listener.h"
#include "nbd-server/qmp.h"

static char *private_dir;		/* of the socket */

void quick_end(void)
{
	if (private_dir)
		rmdir(private_dir);
	free(private_dir);
	private_dir = NULL;
}

static struct json_object *string(const char *s)
{
	return json_object_new_string(s);
}

/* Runs a command and drops its result; ARGS is consumed. */
static int run(const char *command, struct json_object *args, struct error *err)
{
	struct json_object *ret = NULL;
	int rc = qmp_run(command, args, &ret, err);

	json_object_put(ret);
	json_object_put(args);
	return rc;
}

/* -- where to listen ---------------------------------------------------------- */

/* What a run before ours has left where it lies is found by its name and cleared away. */
int quick_private_dir(const char **dir, struct error *err)
{
	const char *base = getenv("XDG_RUNTIME_DIR");
	int rc = private_dir_make(base && *base == '/' ? base : NULL, "/tmp", "merinod", &private_dir, err);

	*dir = private_dir;
	return rc;
}

/* A path only this user can reach; malloc'd. */
static char *private_socket(struct error *err)
{
	char *path = NULL;

	assert(private_dir);
	if (asprintf(&path, "%s/nbd", private_dir) < 0)
		error_set(err, -ENOMEM, "Out of memory");
	return path;
}

/* On an address of TYPE whose only member is KEY. */
static int listen_on(const char *type, const char *key, const char *value, struct error *err)
{
	struct json_object *args = json_object_new_object(), *addr = json_object_new_object();
	struct json_object *data = json_object_new_object();

	json_object_object_add(data, key, string(value));
	json_object_object_add(addr, "type", string(type));
	json_object_object_add(addr, "data", data);
	json_object_object_add(args, "addr", addr);
	return run("nbd-server-start", args, err);
}

/* On all sockets that were passed. */
static int listen_activated(struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < activation_count() && !rc; i++) {
		char number[16];

		snprintf(number, sizeof(number), "%u", 3 + i);
		rc = listen_on("fd", "str", number, err);
	}
	return rc;
}

static int listen_somewhere(const struct quick *q, struct error *err)
{
	char *path;
	int rc;

	/* An --nbd-server on the same command line is as good. */
	if (!q->socket && listener_any())
		return 0;
	if (!q->socket && activation_count())
		return listen_activated(err);
	path = q->socket ? strdup(q->socket) : private_socket(err);
	rc = path ? listen_on("unix", "path", path, err) : -ENOMEM;
	free(path);
	return rc;
}

/* -- what to serve ------------------------------------------------------------ */

struct image {
	const char *file;
	const char *name;		/* of the export */
	char node[16];
	bool is_device;
	bool read_only;
	const char *format;
};

enum guess { GUESS_RAW, GUESS_QCOW2, GUESS_QCOW2_AND_MORE };

/* What FILE starts as: GUESS_QCOW2_AND_MORE names a backing or data file.  -errno. */
static int guess_format(const char *file)
{
	static const uint8_t magic[4] = { 'Q', 'F', 'I', 0xfb };
	uint8_t head[80] = { 0 };
	int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = pread(fd, head, sizeof(head), 0);
	close(fd);
	if (n < (ssize_t)sizeof(magic) || memcmp(head, magic, sizeof(magic)))
		return GUESS_RAW;
	/* The backing file's offset; the incompatible features' bit for a data file. */
	return get_be64(head + 8) || (head[79] & 4) ? GUESS_QCOW2_AND_MORE : GUESS_QCOW2;
}

static int image_find_out(const struct quick *q, struct image *i, struct error *err)
{
	struct stat st;
	int guess;

	i->read_only = q->read_only;
	i->format = q->format;
	if (uri_is_nbd(i->file)) {
		if (!i->format)
			i->format = "raw";	/* what that server says; nothing is guessed */
		return 0;
	}
	if (stat(i->file, &st) < 0)
		return error_errno(err, -errno, "Could not open '%s'", i->file);
	i->is_device = S_ISBLK(st.st_mode);
	if (i->format)
		return 0;
	guess = guess_format(i->file);
	if (guess < 0)
		return error_errno(err, guess, "Could not open '%s'", i->file);
	if (guess == GUESS_QCOW2_AND_MORE) {
		error_set(err, -EPERM, "%s: format not given; it looks like qcow2 and names another file", i->file);
		error_hint(err, "If it is a qcow2 image, and not a disk on which somebody wrote that: use -f qcow2.");
		return -EPERM;
	}
	i->format = guess == GUESS_QCOW2 ? "qcow2" : "raw";
	if (guess == GUESS_RAW && !i->read_only) {
		log_warning("%s: format not given and taken for raw, so it is read only; "
			    "use -f raw to write to it", i->file);
		i->read_only = true;
	}
	return 0;
}

/* What is below the format; NULL with ERR. */
static struct json_object *storage_of(const struct image *i, struct error *err)
{
	struct json_object *o;

	if (uri_is_nbd(i->file))
		return nbd_options_of_uri(i->file, err);
	o = json_object_new_object();
	json_object_object_add(o, "driver", string(i->is_device ? "host_device" : "file"));
	json_object_object_add(o, "filename", string(i->file));
	return o;
}

static int image_open(const struct image *i, struct error *err)
{
	struct json_object *args, *file = storage_of(i, err);

	if (!file)
		return err->code ? err->code : -EINVAL;
	args = json_object_new_object();
	json_object_object_add(args, "driver", string(i->format));
	json_object_object_add(args, "node-name", string(i->node));
	json_object_object_add(args, "read-only", json_object_new_boolean(i->read_only));
	json_object_object_add(args, "discard", string("unmap"));
	json_object_object_add(args, "file", file);
	return run("blockdev-add", args, err);
}

static int image_export(const struct quick *q, const struct image *i, struct error *err)
{
	struct json_object *args = json_object_new_object();
	struct json_object *bitmaps = json_object_new_array();

	for (unsigned b = 0; b < q->n_bitmaps; b++)
		json_object_array_add(bitmaps, string(q->bitmaps[b]));
	json_object_object_add(args, "type", string("nbd"));
	json_object_object_add(args, "id", string(i->node));
	json_object_object_add(args, "node-name", string(i->node));
	json_object_object_add(args, "name", string(i->name));
	json_object_object_add(args, "writable", json_object_new_boolean(!i->read_only));
	json_object_object_add(args, "allocation-depth", json_object_new_boolean(true));
	json_object_object_add(args, "bitmaps", bitmaps);
	return run("block-export-add", args, err);
}

static int image_serve(const struct quick *q, unsigned n, struct error *err)
{
	const char *slash = strrchr(q->files[n], '/');
	struct image i = { .file = q->files[n] };
	char *uri;
	int rc;

	if (q->n_files > 1)
		i.name = slash ? slash + 1 : i.file;
	else
		i.name = "";
	snprintf(i.node, sizeof(i.node), "disk%u", n);
	rc = image_find_out(q, &i, err);
	if (!rc)
		rc = image_open(&i, err);
	if (!rc)
		rc = image_export(q, &i, err);
	if (rc)
		return rc;
	uri = listener_uri(NULL, i.name);
	if (uri)
		puts(uri);
	free(uri);
	return 0;
}

int quick_run(const struct quick *q, struct error *err)
{
	int rc = listen_somewhere(q, err);

	for (unsigned n = 0; n < q->n_files && !rc; n++) {
		rc = image_serve(q, n, err);
		if (rc)
			error_prefix(err, "%s: ", q->files[n]);
	}
	fflush(stdout);
	return rc;
}
