/* SPDX-License-Identifier: BSD-3-Clause */
/* drive-backup: blockdev-backup into a file that the command makes, or finds there.
 *
 * The target's nodes have no names that people gave; they go with the job.  They are on
 * the source's loop, since with sync=none the target stands on the source.
 */
#include "nbd-server/commands-backup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "format/file-create.h"
#include "format/qcow2.h"
#include "nbd-server/commands.h"
#include "nbd-server/daemon.h"

/* What is made, and where. */
struct making {
	struct node *source;
	struct node *below;		/* what the image stands on; NULL: nothing */
	const char *filename, *format;
	bool existing;
	bool on_source;			/* opened with the source as its backing image */
	struct node *target;
	struct error *err;
	int rc;
};

static struct json_object *file_options(const struct making *m)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "driver", json_object_new_string("file"));
	json_object_object_add(o, "filename", json_object_new_string(m->filename));
	return o;
}

/* A qcow2 image in the new, empty file. */
static int format_file(const struct making *m, const struct node_place *where)
{
	struct node *below = m->below ? node_skip_filters(m->below) : NULL;
	struct qcow2_create q = {
		.size = m->source->size,
		.backing_file = below ? below->filename : NULL,
		.backing_format = below ? below->driver->name : NULL,
	};
	struct json_object *o = file_options(m);
	struct node_use use = { .job = true };
	struct node *file = NULL;
	int rc = node_open(where, o, &file, m->err);

	json_object_put(o);
	if (rc)
		return rc;
	rc = node_use_add(&use, file, PERM_WRITE | PERM_RESIZE, 0, m->err, "drive-backup");
	if (!rc)
		rc = qcow2_create_node(file, NULL, &q, m->err);
	node_use_drop(&use);
	node_unref(file);
	return rc;
}

static int open_target(struct making *m, const struct node_place *where)
{
	struct json_object *o = json_object_new_object();
	int rc;

	json_object_object_add(o, "driver", json_object_new_string(m->format));
	json_object_object_add(o, "file", file_options(m));
	json_object_object_add(o, "discard", json_object_new_string("unmap"));
	json_object_object_add(o, "detect-zeroes", json_object_new_string("unmap"));
	if (!strcmp(m->format, "qcow2"))
		json_object_object_add(o, "backing", m->on_source
				       ? json_object_new_string(m->source->name) : NULL);
	rc = node_open(where, o, &m->target, m->err);
	json_object_put(o);
	return rc;
}

static void make_on_loop(void *arg)
{
	struct making *m = arg;
	struct node_place where = {
		.graph = &the_daemon.graph, .loop = m->source->loop, .io = m->source->io,
	};
	bool raw = !strcmp(m->format, "raw");
	struct file_create f = { .filename = m->filename, .size = raw ? m->source->size : 0 };

	if (!m->existing)
		m->rc = file_create(&where, &f, m->err);
	if (!m->rc && !m->existing && !raw)
		m->rc = format_file(m, &where);
	if (!m->rc)
		m->rc = open_target(m, &where);
}

/* The format, and what the image stands on. */
static int plan(struct making *m, struct json_object *args, struct backup_options *o,
		struct error *err)
{
	struct node *source = node_skip_filters(m->source);
	const char *mode = qmp_str(args, "mode");

	m->filename = qmp_str(args, "target");
	m->format = qmp_str(args, "format");
	m->existing = mode && !strcmp(mode, "existing");
	if (!m->format && m->existing)
		return error_set(err, -EINVAL, "Parameter 'format' is missing: what an image is is not guessed");
	if (!m->format)
		m->format = source->driver->name;
	if (strcmp(m->format, "qcow2") && strcmp(m->format, "raw"))
		return error_set(err, -ENOTSUP, "Format '%s' is not supported as a target; use 'qcow2' or 'raw'",
				 m->format);
	if (o->sync == BACKUP_TOP)
		m->below = source->child[CHILD_BACKING];
	if (o->sync == BACKUP_TOP && !m->below)
		o->sync = BACKUP_FULL;
	if (o->sync == BACKUP_NONE) {
		m->below = m->source;
		m->on_source = true;
	}
	if (m->below && !strcmp(m->format, "raw"))
		return error_set(err, -EINVAL, "Format 'raw' does not support backing files");
	if (m->below && !node_skip_filters(m->below)->filename)
		return error_set(err, -ENOTSUP, "Node '%s' has no file name that an image could stand on",
				 m->below->name);
	return 0;
}

int drive_backup_prepare(struct action *a, struct error *err)
{
	struct making m = { .err = err };
	struct backup_options o = { 0 };
	int rc = backup_arguments(a->data, &o, err);

	o.bitmap_is_there = o.bitmap && a->first;
	if (!rc)
		rc = backup_source(a, &o, err);
	m.source = a->node;
	if (!rc)
		rc = plan(&m, a->data, &o, err);
	if (rc)
		return rc;
	loop_call(m.source->loop, make_on_loop, &m);
	if (m.rc)
		return m.rc;
	o.target = m.target;
	rc = backup_prepare(a, &o, err);
	command_node_unref(m.target);		/* the job has it, if there is one */
	return rc;
}

COMMAND(command_drive_backup)
{
	struct action a = { .verb = verb_find("drive-backup"), .data = args };

	return transaction_run(&a, 1, err);
}
