// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-backing: the image that shows through where this one has nothing.
 *
 * The user's "backing" option wins: a node's name, a description, or null.  Else
 * the header names a file, and whoever made the image chose that name: so only a
 * plain path is followed (relative to the image's directory), never "json:" or
 * another protocol, and it is opened read-only with the format that the header
 * records.  Without a recorded format only raw is taken, after a look that it is
 * not a qcow2 image: a guest that writes a qcow2 header into its raw disk shall
 * not make us read whatever file it names there.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

bool qcow2_names_protocol(const char *name)
{
	size_t n = strcspn(name, ":/");

	return name[n] == ':';
}

char *qcow2_beside(const char *image, const char *name)
{
	const char *slash = image ? strrchr(image, '/') : NULL;
	size_t dir = slash ? slash + 1 - image : 0;
	char *path;

	if (name[0] == '/' || !dir)
		return strdup(name);
	path = malloc(dir + strlen(name) + 1);
	if (path) {
		memcpy(path, image, dir);
		strcpy(path + dir, name);
	}
	return path;
}

/* {"driver": FORMAT, "file": {"driver": "file", "filename": PATH}} */
static struct json_object *describe(const char *format, const char *path)
{
	struct json_object *o = json_object_new_object(), *file = json_object_new_object();

	json_object_object_add(file, "driver", json_object_new_string("file"));
	json_object_object_add(file, "filename", json_object_new_string(path));
	json_object_object_add(o, "driver", json_object_new_string(format));
	json_object_object_add(o, "read-only", json_object_new_boolean(true));
	json_object_object_add(o, "file", file);
	return o;
}

static int refuse_unrecorded_qcow2(struct qcow2 *s, struct error *err)
{
	struct node *b = s->node->child[CHILD_BACKING];
	uint8_t magic[4] = { 0 };
	int rc = b->size >= sizeof(magic) ? node_read(b, magic, 0, sizeof(magic)) : 0;

	if (rc)
		return error_errno(err, rc, "Could not read the backing file of '%s'", qcow2_name(s));
	if (get_be32(magic) != QCOW2_MAGIC)
		return 0;
	return error_set(err, -EINVAL, "The image does not record the format of its backing file '%s', which looks like qcow2; "
			 "give it with backing.driver, or record it with 'qemu-img rebase -u -F'",
			 s->h.backing_name);
}

static int open_recorded(struct qcow2 *s, struct error *err)
{
	static const char prefix[] = "Could not open backing file: ";
	const char *format = s->h.backing_format;
	struct json_object *o;
	char *path;
	int rc;

	if (qcow2_names_protocol(s->h.backing_name))
		return error_set(err, -ENOTSUP, "The backing file '%s' that the image names is not a plain file; give it with the option 'backing'",
				 s->h.backing_name);
	if (format && (!strcmp(format, "file") || !strcmp(format, "host_device")))
		format = "raw";		/* what qemu-img calls a file without a format */
	if (format && !node_driver_find(format))
		return error_set(err, -ENOTSUP, "Unknown backing format '%s'", format);
	path = qcow2_beside(s->file->filename, s->h.backing_name);
	if (!path)
		return error_set(err, -ENOMEM, "Out of memory");
	o = describe(format ? format : "raw", path);
	rc = node_open_child_with(s->node, o, CHILD_BACKING, err);
	json_object_put(o);
	free(path);
	if (rc && err && strncmp(err->text, prefix, strlen(prefix)))	/* once per chain */
		error_prefix(err, "%s", prefix);
	if (!rc && !format)
		rc = refuse_unrecorded_qcow2(s, err);
	return rc;
}

int qcow2_open_backing(struct qcow2 *s, struct json_object *opts, struct error *err)
{
	struct json_object *o = NULL;
	int rc = 0;

	if (json_object_object_get_ex(opts, "backing", &o)) {
		if (o)
			rc = node_open_child(s->node, opts, "backing", CHILD_BACKING, err);
		else
			json_object_object_del(opts, "backing");
	} else if (s->h.backing_name) {
		rc = open_recorded(s, err);
	}
	s->has_backing = s->node->child[CHILD_BACKING] || s->h.backing_name;
	return rc;
}
