// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-data: where guest data lies: in the image file, or in an external data file.
 *
 * With a data file (incompatible bit 2) a guest cluster lies there at its own guest
 * offset; the image file holds the tables alone.  Nothing in it is counted, so
 * nothing is taken or given back: a discard goes down at once.  With the autoclear
 * bit "raw external data" the file can be read as a raw image, so what is zeroed in
 * the tables is zeroed there, too.
 *
 * The user's "data-file" option names the node.  Else the header does, and as with
 * a backing image only a plain path is followed (HAZARDS 27).
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

static int open_recorded(struct qcow2 *s, struct error *err)
{
	const struct qcow2_ext *e = qcow2_ext_find(&s->h, QCOW2_EXT_DATA_FILE);
	struct json_object *o;
	char *name, *path;
	int rc;

	if (!e || !e->len)
		return error_set(err, -EINVAL, "'data-file' is required for this image");
	name = strndup((const char *)e->data, e->len);
	if (!name)
		return error_set(err, -ENOMEM, "Out of memory");
	if (strlen(name) != e->len || qcow2_names_protocol(name)) {
		rc = error_set(err, -ENOTSUP, "The data file '%s' that the image names is not a plain file; give it with the option 'data-file'",
			       utf8_valid(name, strlen(name)) ? name : "?");
		free(name);
		return rc;
	}
	path = qcow2_beside(s->file->filename, name);
	free(name);
	if (!path)
		return error_set(err, -ENOMEM, "Out of memory");
	o = json_object_new_object();
	json_object_object_add(o, "driver", json_object_new_string("file"));
	json_object_object_add(o, "filename", json_object_new_string(path));
	rc = node_open_child_with(s->node, o, CHILD_DATA_FILE, err);
	json_object_put(o);
	free(path);
	if (rc)
		error_prefix(err, "Could not open the data file: ");
	return rc;
}

int qcow2_open_data_file(struct qcow2 *s, struct json_object *opts, struct error *err)
{
	bool given = json_object_object_get_ex(opts, "data-file", NULL);
	int rc;

	s->data = s->file;
	if (!s->has_data_file)
		return given ? error_set(err, -EINVAL, "'data-file' can only be set for images with an external data file") : 0;
	rc = given ? node_open_child(s->node, opts, "data-file", CHILD_DATA_FILE, err)
		   : open_recorded(s, err);
	if (rc)
		return rc;
	s->data = s->node->child[CHILD_DATA_FILE];
	if (!s->node->read_only && s->data->read_only)
		return error_set(err, -EACCES, "Could not open '%s' for writing: its data file is opened read-only",
				 qcow2_name(s));
	return 0;
}

bool qcow2_data_is_raw(const struct qcow2 *s)
{
	return s->has_data_file && s->h.autoclear & QCOW2_RAW_DATA_FILE;
}

int qcow2_read_end(struct node *n, void *buf, uint64_t off, size_t len)
{
	uint64_t there = off < n->size ? min_u64(len, n->size - off) : 0;
	int rc = there ? node_read(n, buf, off, there) : 0;

	memset((char *)buf + there, 0, len - there);
	return rc;
}

/* The tables' file last: what is durable there points to what is durable here. */
int qcow2_sync_below(struct qcow2 *s)
{
	int rc = s->has_data_file ? node_flush(s->data) : 0;

	return rc ? rc : node_flush(s->file);
}

int qcow2_data_alloc(struct qcow2 *s, uint64_t guest, uint64_t want, uint64_t *host, uint64_t *got,
		     bool *fresh)
{
	if (!s->has_data_file)
		return qcow2_alloc(s, want, host, got, fresh);
	*host = guest;
	*got = want;
	*fresh = false;
	return 0;
}

void qcow2_data_unref_now(struct qcow2 *s, uint64_t host, uint64_t count)
{
	if (!s->has_data_file)
		qcow2_unref_now(s, host, count);
}

void qcow2_data_unref_later(struct qcow2 *s, uint64_t host, uint64_t count)
{
	if (!s->has_data_file)
		qcow2_unref_later(s, host, count);
	else if (s->node->discard_unmap && !qcow2_data_is_raw(s))
		node_discard(s->data, host, count << s->cluster_bits);	/* a hint: it may fail */
}
