/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-create: blockdev-create, a job that makes a file or an image in a node.
 *
 * What can be refused without a look at storage is refused by the command; the rest is
 * the job's error, as in QEMU.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "backup/job.h"
#include "common/checked.h"
#include "common/loop.h"
#include "common/options.h"
#include "format/file-create.h"
#include "format/node.h"
#include "format/qcow2.h"
#include "nbd-server/daemon.h"

static const char *const preallocations[] = { "off", "metadata", "falloc", "full", NULL };
static const char *const versions[] = { "v2", "v3", NULL };
static const char *const compressions[] = { "zlib", "zstd", NULL };

static const struct qmp_arg args_create_file[] = {
	{ "filename", QMP_STR, true, "path of the file" },
	{ "size", QMP_UINT, true, "bytes" },
	{ "preallocation", QMP_STR, false, "off, falloc or full", .values = preallocations },
	{ "nocow", QMP_BOOL, false, "asks btrfs to write in place" },
	{ NULL },
};

static const struct qmp_arg args_create_qcow2[] = {
	{ "file", QMP_STR_OR_OBJECT, true, "name of the node that the image is made in",
	  .alternate = "BlockdevRef", .members = args_blockdev_add, .open = true },
	{ "data-file", QMP_STR_OR_OBJECT, false, "name of the node for the data",
	  .alternate = "BlockdevRef", .members = args_blockdev_add, .open = true },
	{ "data-file-raw", QMP_BOOL, false, "the data file is a raw image, too" },
	{ "extended-l2", QMP_BOOL, false, "with subclusters" },
	{ "size", QMP_UINT, true, "bytes, a multiple of 512" },
	{ "version", QMP_STR, false, "v3 (the default) or v2", .values = versions },
	{ "backing-file", QMP_STR, false, "name of the backing file, as recorded" },
	{ "backing-fmt", QMP_STR, false, "its format", .cases = blockdev_cases },
	{ "cluster-size", QMP_UINT, false, "bytes" },
	{ "preallocation", QMP_STR, false, "off, metadata, falloc or full",
	  .values = preallocations },
	{ "lazy-refcounts", QMP_BOOL, false, "reference counts may be late" },
	{ "refcount-bits", QMP_UINT, false, "1 to 64" },
	{ "compression-type", QMP_STR, false, "zlib or zstd", .values = compressions },
	{ NULL },
};

static int create_file(struct job *j, struct error *err);
static int create_qcow2(struct job *j, struct error *err);

/* Which drivers can. */
static const struct creator {
	const char *driver;
	const struct qmp_arg *args;
	int (*run)(struct job *j, struct error *err);
} creators[] = {
	{ "file", args_create_file, create_file },
	{ "qcow2", args_create_qcow2, create_qcow2 },
};

#define N_CREATORS (sizeof(creators) / sizeof(creators[0]))

static const struct creator *creator_of(const char *driver)
{
	for (unsigned i = 0; i < N_CREATORS; i++) {
		if (!strcmp(creators[i].driver, driver))
			return &creators[i];
	}
	return NULL;
}

/* Every driver may be named; those that cannot take nothing else. */
static const struct qmp_case *create_cases(void)
{
	static const struct qmp_case none = { NULL };
	static struct qmp_case *cases;
	size_t n = 0;

	if (cases)
		return cases;
	while (node_drivers[n])
		n++;
	cases = calloc(n + 1, sizeof(*cases));
	for (size_t i = 0; cases && i < n; i++) {
		const struct creator *c = creator_of(node_drivers[i]->name);

		cases[i] = (struct qmp_case){ node_drivers[i]->name, c ? c->args : args_nothing };
	}
	return cases ? cases : &none;
}

static const struct qmp_arg args_create_options[] = {
	{ "driver", QMP_STR, true, "file or qcow2", .cases = create_cases },
	{ NULL },
};

const struct qmp_arg args_blockdev_create[] = {
	{ "job-id", QMP_STR, true, "the job's name" },
	{ "options", QMP_OBJECT, true, "what to make; its members depend on driver",
	  .members = args_create_options },
	{ NULL },
};

/* -- the work --------------------------------------------------------------------------- */

struct creation {
	const struct creator *creator;
	struct json_object *options;	/* checked */
	struct node *file, *data;	/* qcow2's; references */
	struct error bad;		/* found before the job began; code 0: nothing */
};

static int still_wanted(void *arg)
{
	return job_pause_point(arg);
}

static int create_file(struct job *j, struct error *err)
{
	static const enum file_preallocation modes[] = {
		FILE_PREALLOC_OFF, FILE_PREALLOC_OFF, FILE_PREALLOC_FALLOC, FILE_PREALLOC_FULL,
	};
	struct creation *c = j->data;
	struct json_object *o = c->options;
	int mode = qmp_choice(o, "preallocation", preallocations, 0);
	struct file_create f = {
		.filename = qmp_str(o, "filename"),
		.size = qmp_u64(o, "size"),
		.preallocation = modes[mode],
		.nocow = qmp_bool(o, "nocow", false),
		.go_on = still_wanted,
		.arg = j,
	};
	struct node_place where = {
		.graph = &the_daemon.graph, .loop = j->loop, .io = loop_io(j->loop),
	};

	if (mode == 1)
		return error_set(err, -ENOTSUP, "Unsupported preallocation mode: metadata");
	return file_create(&where, &f, err);
}

static int check_qcow2(struct json_object *o, struct error *err)
{
	if (qmp_u64(o, "size") % 512)
		return error_set(err, -EINVAL, "Image size must be a multiple of 512 bytes");
	if (qmp_u64(o, "cluster-size") > UINT32_MAX ||
	    (json_object_object_get_ex(o, "cluster-size", NULL) && !qmp_u64(o, "cluster-size")))
		return error_set(err, -EINVAL,
				 "Cluster size must be a power of two between 512 and 2048k");
	if (qmp_u64(o, "refcount-bits") > 64 ||
	    (json_object_object_get_ex(o, "refcount-bits", NULL) && !qmp_u64(o, "refcount-bits")))
		return error_set(err, -EINVAL,
				 "Refcount width must be a power of two and may not exceed 64 bits");
	return 0;
}

static int make_qcow2(struct creation *c, void *arg, struct error *err)
{
	struct json_object *o = c->options;
	struct qcow2_create q = {
		.size = qmp_u64(o, "size"),
		.version = qmp_choice(o, "version", versions, 1) ? 3 : 2,
		.cluster_size = (uint32_t)qmp_u64(o, "cluster-size"),
		.refcount_bits = (uint32_t)qmp_u64(o, "refcount-bits"),
		.lazy_refcounts = qmp_bool(o, "lazy-refcounts", false),
		.zstd = qmp_choice(o, "compression-type", compressions, 0) == 1,
		.extended_l2 = qmp_bool(o, "extended-l2", false),
		.data_file_raw = qmp_bool(o, "data-file-raw", false),
		.preallocation = (enum qcow2_preallocation)qmp_choice(o, "preallocation",
								      preallocations, 0),
		.data_file = c->data ? c->data->filename : NULL,
		.backing_file = qmp_str(o, "backing-file"),
		.backing_format = qmp_str(o, "backing-fmt"),
		.go_on = still_wanted,
		.arg = arg,
	};

	return qcow2_create_node(c->file, c->data, &q, err);
}

static int create_qcow2(struct job *j, struct error *err)
{
	struct node_use file = { .job = true }, data = { .job = true };
	struct creation *c = j->data;
	int rc = check_qcow2(c->options, err);

	if (!rc)
		rc = node_use_add(&file, c->file, PERM_WRITE | PERM_RESIZE,
				  PERM_ALL & ~PERM_RESIZE, err, "job '%s'", j->id);
	if (!rc && c->data)
		rc = node_use_add(&data, c->data, PERM_WRITE | PERM_RESIZE,
				  PERM_ALL & ~PERM_RESIZE, err, "job '%s'", j->id);
	if (!rc)
		rc = make_qcow2(c, j, err);
	node_use_drop(&data);
	node_use_drop(&file);
	return rc;
}

/* The file of an image, and where its data goes, are nodes on one loop. */
static int find_node(struct json_object *o, const char *key, struct node **n, struct error *err)
{
	struct json_object *v = json_object_object_get(o, key);

	if (!v)
		return 0;
	if (!json_object_is_type(v, json_type_string))
		return error_set(err, -ENOTSUP, "Parameter '%s' must be the name of a node", key);
	*n = command_node_find(json_object_get_string(v));
	return *n ? 0 : error_set(err, -ENOENT, "Cannot find device='%s' nor node-name='%s'",
				  json_object_get_string(v), json_object_get_string(v));
}

static void find_nodes(struct creation *c)
{
	if (find_node(c->options, "file", &c->file, &c->bad) ||
	    find_node(c->options, "data-file", &c->data, &c->bad))
		return;
	if (c->file && c->data)
		node_move(c->data, c->file->loop, &c->bad);
}

static int create_run(struct job *j, struct error *err)
{
	struct creation *c = j->data;
	int rc;

	job_set_total(j, 1);
	if (c->bad.code) {
		*err = c->bad;
		return err->code;
	}
	rc = c->creator->run(j, err);
	if (!rc)
		job_progress(j, 1);
	return rc;
}

static void create_clean(struct job *j)
{
	struct creation *c = j->data;

	command_node_unref(c->file);
	command_node_unref(c->data);
	c->file = c->data = NULL;
}

static void create_free(struct job *j)
{
	struct creation *c = j->data;

	json_object_put(c->options);
	free(c);
}

static const struct job_driver create_driver = {
	.type = "create",
	.run = create_run,
	.clean = create_clean,
	.free = create_free,
};

/* -- the command ---------------------------------------------------------------------- */

COMMAND(command_blockdev_create)
{
	struct json_object *options = json_object_object_get(args, "options");
	const struct creator *creator = creator_of(qmp_str(options, "driver"));
	struct creation *c;
	struct job *j;

	if (!creator)
		return error_set(err, -ENOTSUP, "Driver does not support blockdev-create");
	c = calloc(1, sizeof(*c));
	if (!c)
		return error_set(err, -ENOMEM, "Out of memory");
	c->creator = creator;
	c->options = json_object_get(options);
	find_nodes(c);
	j = job_new(&create_driver, qmp_str(args, "job-id"),
		    c->file ? c->file->loop : command_loop_in_turn(), c, err);
	if (!j) {
		struct job gone = { .data = c };

		create_clean(&gone);
		create_free(&gone);
		return err->code;
	}
	j->auto_dismiss = false;
	job_start(j);
	return 0;
}
