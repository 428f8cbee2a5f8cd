/* SPDX-License-Identifier: BSD-3-Clause */
/* backup: see backup.h.
 *
 * The source's loop has the view, the copier and the bitmaps; the target may belong to
 * another loop, which only its use and its references are touched on.
 *
 * A bit of the bitmap is cleaned only when what it stands for is in the target, durably:
 * when the job succeeds, or with bitmap-mode "always" after a flush that succeeded.
 */
#include "backup/backup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/checkpoint.h"
#include "backup/copier.h"
#include "backup/view-node.h"
#include "backup/view.h"
#include "bitmaps/bitmap-int.h"
#include "bitmaps/successor.h"
#include "common/checked.h"
#include "common/log.h"
#include "common/loop.h"
#include "format/node.h"
#include "format/qcow2.h"

#define CLUSTER_DEFAULT (64u << 10)	/* bytes that are copied whole, QEMU's */
#define WANTED_MAX (64ull << 20)	/* bytes of the bitmap that says what is copied */
#define NONE_NAP 200000000ull		/* ns between looks at whether the view is broken */
#define FINISH_NS 10000000000ull	/* ns that a cancelled job with sync=none still copies at most */

struct backup {
	struct backup_options o;	/* without its strings */
	char *bitmap_name, *filter_name;
	struct job *job;
	struct node *source, *target;	/* references */
	struct node_use source_use, target_use;
	uint64_t cluster;		/* bytes that are copied whole */
	bool fixed;			/* the source shows one instant itself: no view */
	struct node *overlay;		/* it stands on the source; the target, or below it */
	struct node *shown;		/* shows the view to it; a reference */
	/* Since the instant, on the source's loop: */
	struct view *view;		/* ours, or ->shown's */
	struct copier *copier;
	bool shown_is_set;		/* the overlay stood on the source before */
	struct bitmap *bitmap, *successor;
	bool copied_is_durable;		/* the job failed, but what it copied is safe */
};

struct job *backup_job(struct backup *b)
{
	return b->job;
}

struct node *backup_overlay(struct backup *b)
{
	return b->overlay;
}

/* -- checks and uses --------------------------------------------------------------- */

/* A call to a node's loop that may fail. */
struct call {
	struct backup *backup;
	struct error *err;
	int rc;
};

static int on_loop(struct loop *l, void (*fn)(void *arg), struct backup *b, struct error *err)
{
	struct call c = { b, err, 0 };

	loop_call(l, fn, &c);
	return c.rc;
}

/* The node below TARGET, or itself, whose backing image is SOURCE (or a former job's view
 * of it). */
static struct node *find_overlay(struct node *target, struct node *source)
{
	for (struct node *n = target; n; n = node_below(n)) {
		struct node *below = n->driver->filter ? NULL : n->child[CHILD_BACKING];

		if (below == source ||
		    (below && node_is_view(below) && below->child[CHILD_FILE] == source))
			return n;
	}
	return NULL;
}

static int no_bitmap(const struct backup *b, struct error *err)
{
	return error_set(err, -ENOENT, "Bitmap '%s' could not be found", b->bitmap_name);
}

static int find_relation(struct backup *b, struct error *err)
{
	if (b->target->loop != b->source->loop || !node_is_below(b->target, b->source))
		return 0;
	b->overlay = find_overlay(b->target, b->source);
	if (b->o.sync != BACKUP_NONE)
		return error_set(err, -ENOTSUP, "Node '%s' is the target and stands on node '%s': "
				 "that is supported with sync mode 'none' only",
				 b->target->name, b->source->name);
	if (!b->overlay)
		return error_set(err, -ENOTSUP, "Node '%s' must be the backing image of node '%s', "
				 "or not below it", b->source->name, b->target->name);
	return 0;
}

/* The node between the two; that of a former job serves again. */
static int make_shown(struct backup *b, struct error *err)
{
	struct node *below = b->overlay->child[CHILD_BACKING];

	if (!node_is_view(below))
		return view_node_new(b->source, b->filter_name, &b->shown, err);
	if (view_node_view(below))
		return error_set(err, -EBUSY, "Node '%s' shows another backup", below->name);
	b->shown = node_ref(below);
	return 0;
}

static void use_source(void *arg)
{
	struct call *c = arg;
	struct backup *b = c->backup;

	if (b->o.bitmap_is_there && !bitmap_find(b->source, b->bitmap_name, NULL)) {
		c->rc = no_bitmap(b, c->err);
		return;
	}
	c->rc = find_relation(b, c->err);
	if (!c->rc && b->overlay)
		c->rc = make_shown(b, c->err);
	if (!c->rc)
		c->rc = node_use_add(&b->source_use, b->source, PERM_CONSISTENT_READ,
				     PERM_ALL & ~(unsigned)PERM_RESIZE, c->err, "backup job '%s'",
				     b->o.id);
}

static uint64_t cluster_of(const struct backup *b)
{
	const struct node *t = node_skip_filters(b->target);
	uint64_t cluster = max_u64(CLUSTER_DEFAULT, b->o.cluster_min);

	if (node_is_qcow2(t))
		cluster = max_u64(cluster, qcow2_cluster_size(t));
	while (bitmap_data_bytes(b->target->size, (unsigned)__builtin_ctzll(cluster)) > WANTED_MAX)
		cluster *= 2;
	return cluster;
}

static bool can_compress(const struct node *target)
{
	return node_is_qcow2(node_skip_filters((struct node *)target));
}

/* QEMU's words, which clients know. */
static int refuse_busy(const struct node *target, struct error *err)
{
	for (const struct node_use *u = target->uses; u; u = u->next) {
		if (u->job)
			return error_set(err, -EBUSY, "Node '%s' is busy: block device is in use by "
					 "block job: backup", target->name);
	}
	return 0;
}

/* Others may write to a target that shows the disk of the instant: it is theirs to know. */
static void use_target(void *arg)
{
	struct call *c = arg;
	struct backup *b = c->backup;
	unsigned shared = PERM_ALL & ~(unsigned)PERM_RESIZE;

	if (b->o.compress && !can_compress(b->target)) {
		c->rc = error_set(c->err, -ENOTSUP, "Compression is not supported for this drive ");
		return;
	}
	c->rc = refuse_busy(b->target, c->err);
	if (c->rc)
		return;
	c->rc = node_use_add(&b->target_use, b->target, PERM_WRITE,
			     b->overlay ? shared : shared & ~(unsigned)PERM_WRITE, c->err,
			     "backup job '%s'", b->o.id);
	b->cluster = cluster_of(b);
}

/* From here on neither can get another size. */
static int check_sizes(const struct backup *b, struct error *err)
{
	if (b->source->size != b->target->size)
		return error_set(err, -EINVAL, "Source and target image have different sizes");
	if (b->cluster > BACKUP_CLUSTER_MAX)
		return error_set(err, -EFBIG, "Node '%s' is too large for a backup job",
				 b->source->name);
	if (b->o.max_chunk && b->o.max_chunk < b->cluster)
		return error_set(err, -EINVAL, "Required max-chunk (%llu) is less than backup cluster "
				 "size (%llu)", (unsigned long long)b->o.max_chunk,
				 (unsigned long long)b->cluster);
	return 0;
}

static void leave_source(void *arg)
{
	struct backup *b = ((struct call *)arg)->backup;

	node_use_drop(&b->source_use);
	node_unref(b->shown);
	node_unref(b->source);
}

static void leave_target(void *arg)
{
	struct backup *b = ((struct call *)arg)->backup;

	node_use_drop(&b->target_use);
	node_unref(b->target);
}

/* -- made and freed ------------------------------------------------------------------ */

static void backup_free(struct backup *b)
{
	free(b->bitmap_name);
	free(b->filter_name);
	free(b);
}

static void leave_nodes(struct backup *b)
{
	on_loop(b->target->loop, leave_target, b, NULL);
	on_loop(b->source->loop, leave_source, b, NULL);
}

static const struct job_driver backup_driver;

static int make_job(struct backup *b, struct error *err)
{
	b->job = job_new(&backup_driver, b->o.id, b->source->loop, b, err);
	if (!b->job)
		return err->code;
	b->job->auto_finalize = b->o.auto_finalize;
	b->job->auto_dismiss = b->o.auto_dismiss;
	b->job->speed = b->o.speed;
	return 0;
}

int backup_new(const struct backup_options *o, struct backup **out, struct error *err)
{
	struct backup *b = calloc(1, sizeof(*b));
	int rc = 0;

	if (b && o->bitmap)
		b->bitmap_name = strdup(o->bitmap);
	if (b && o->filter_name)
		b->filter_name = strdup(o->filter_name);
	if (!b || (o->bitmap && !b->bitmap_name) || (o->filter_name && !b->filter_name)) {
		if (b)
			backup_free(b);
		return error_set(err, -ENOMEM, "Out of memory");
	}
	b->o = *o;
	b->source_use.job = b->target_use.job = true;
	b->source = node_ref(o->source);
	b->target = node_ref(o->target);
	b->fixed = o->sync != BACKUP_NONE && !strcmp(b->source->driver->name, "snapshot-access");
	rc = on_loop(b->source->loop, use_source, b, err);
	if (!rc)
		rc = on_loop(b->target->loop, use_target, b, err);
	if (!rc)
		rc = check_sizes(b, err);
	if (!rc)
		rc = make_job(b, err);
	if (rc) {
		leave_nodes(b);
		backup_free(b);
		return rc;
	}
	b->o.id = b->o.bitmap = b->o.filter_name = NULL;	/* they were borrowed */
	*out = b;
	return 0;
}

/* -- the instant ------------------------------------------------------------------------ */

static int check_bitmap(struct backup *b, struct error *err)
{
	unsigned checks = b->o.bitmap_mode == BACKUP_NEVER
		? BITMAP_NOT_BUSY | BITMAP_NOT_INCONSISTENT : BITMAP_CHECK_DEFAULT;

	b->bitmap = bitmap_find(b->source, b->bitmap_name, NULL);
	if (!b->bitmap)
		return no_bitmap(b, err);
	if (b->o.bitmap_mode != BACKUP_NEVER && checkpoint_guard(b->bitmap->name, err))
		return -EPERM;
	return bitmap_check(b->bitmap, checks, err);
}

/* What is copied, in whole clusters: what the view has to keep.  W's bits are allocated. */
static int mark_wanted(struct backup *b, struct bitmap *w, struct error *err)
{
	uint64_t off, end, size = b->source->size;

	*w = (struct bitmap){ .size = size,
			      .granularity_bits = (unsigned)__builtin_ctzll(b->cluster) };
	if (bitmap_alloc_bits(w))
		return error_set(err, -ENOMEM, "Out of memory");
	for (off = 0; (off = bitmap_next_dirty(b->bitmap, off, size)) < size; off = end) {
		end = bitmap_next_clean(b->bitmap, off, size);
		bitmap_set(w, off, end - off);
	}
	return 0;
}

static int open_view(struct backup *b, const struct bitmap *wanted, struct error *err)
{
	struct view_options o = { .bitmap = wanted, .wait_ns = VIEW_WAIT_DEFAULT };
	int rc;

	if (b->fixed)
		return 0;
	if (!b->shown)
		return view_open(b->source, &o, &b->view, err);
	rc = view_node_begin(b->shown, &o, err);
	if (rc)
		return rc;
	b->view = view_node_view(b->shown);
	if (b->overlay->child[CHILD_BACKING] == b->shown)
		return 0;
	rc = node_set_backing(b->overlay, b->shown, err);
	b->shown_is_set = !rc;
	return rc;
}

static enum copier_action copier_failed(void *arg, int rc, bool is_read, uint64_t off,
					uint64_t len)
{
	struct backup *b = arg;
	enum job_on_error on_error = is_read ? b->o.on_source_error : b->o.on_target_error;

	if (job_is_cancelled(b->job) || (is_read && b->view && view_is_broken(b->view)))
		on_error = JOB_ON_REPORT;	/* it will never be there again */
	return job_error(b->job, on_error, is_read, rc) == JOB_REPORT ? COPIER_REPORT
								      : COPIER_RETRY;
}

/* A part of a disk is put on the rest later; so is what names a backing image. */
static bool stands_on_another(const struct backup *b)
{
	const struct node *t = node_skip_filters(b->target);

	return b->o.sync != BACKUP_FULL || (t->driver->names_backing && t->driver->names_backing(t));
}

static int make_copier(struct backup *b, const struct bitmap *wanted, struct error *err)
{
	struct copier_options o = {
		.job = b->job,
		.source = b->source,
		.view = b->view,
		.target = b->target,
		.granularity = (uint32_t)b->cluster,
		.speed = b->job->speed,
		.workers = b->o.workers,
		.max_chunk = b->o.max_chunk,
		.compress = b->o.compress,
		.discard_source = b->o.discard_source,
		.one_layer = b->o.sync == BACKUP_TOP,
		.mark_zeroes = stands_on_another(b),
		.failed = copier_failed,
		.arg = b,
	};
	int rc = copier_new(&o, &b->copier, err);

	if (rc)
		return rc;
	if (wanted)
		copier_add_bitmap(b->copier, wanted);
	else if (b->o.sync != BACKUP_NONE)
		copier_add(b->copier, 0, b->source->size);
	return 0;
}

static void kept(void *arg, uint64_t off, uint64_t len)
{
	struct backup *b = arg;
	uint64_t start = align_down(off, b->cluster);

	copier_add(b->copier, start, min_u64(align_up(off + len, b->cluster), b->source->size) - start);
	job_nudge(b->job);
}

static int begin(struct backup *b, struct bitmap *wanted, struct error *err)
{
	int rc = 0;

	if (b->bitmap_name)
		rc = check_bitmap(b, err);
	if (rc) {
		b->bitmap = NULL;
		return rc;
	}
	if (b->o.sync == BACKUP_BITMAP)
		rc = mark_wanted(b, wanted, err);
	if (!rc)
		rc = open_view(b, wanted->bits ? wanted : NULL, err);
	if (!rc && !b->overlay)
		rc = make_copier(b, wanted->bits ? wanted : NULL, err);
	if (!rc && b->o.sync == BACKUP_NONE && !b->overlay)
		view_listen(b->view, kept, b);
	if (!rc && b->bitmap)
		rc = successor_begin(b->bitmap, &b->successor, err);
	return rc;
}

static void let_go(struct backup *b)
{
	copier_free(b->copier);
	if (b->shown)
		view_node_end(b->shown);
	else
		view_close(b->view);
	b->copier = NULL;
	b->view = NULL;
}

void backup_undo(struct backup *b)
{
	if (b->shown_is_set)
		node_set_backing(b->overlay, b->source, NULL);
	b->shown_is_set = false;
	if (b->successor)
		successor_drop(b->bitmap, b->successor);
	b->bitmap = b->successor = NULL;
	let_go(b);
}

int backup_begin(struct backup *b, struct error *err)
{
	struct bitmap wanted = { 0 };
	int rc = begin(b, &wanted, err);

	bitmap_free_bits(&wanted);
	if (rc)
		backup_undo(b);
	return rc;
}

void backup_start(struct backup *b)
{
	job_start(b->job);
}

void backup_cancel(struct backup *b)
{
	job_user_cancel(b->job, NULL);
}

/* -- the work ------------------------------------------------------------------------------ */

static int view_gone(struct backup *b, struct error *err)
{
	*err = ERROR_INIT;
	return error_set(err, -EIO, "The disk as it was could not be kept: %s",
			 view_broken_why(b->view));
}

/* What was kept until people cancelled the job belongs into the target, and no more. */
static void finish(struct backup *b)
{
	struct error err = ERROR_INIT;

	view_listen(b->view, NULL, NULL);
	if (copier_left(b->copier) && !view_is_broken(b->view) && copier_finish(b->copier, FINISH_NS, &err))
		log_warning("a cancelled backup left old data that the target has not: job=%s bytes=%llu reason='%s'",
			    b->job->id, (unsigned long long)copier_left(b->copier), err.text);
}

/* sync=none: until people cancel it. */
static int wait_for_end(struct backup *b, struct error *err)
{
	int rc = 0;

	job_set_total(b->job, b->source->size);
	while (!rc) {
		if (b->view && view_is_broken(b->view))
			return view_gone(b, err);
		if (b->copier && copier_left(b->copier))
			rc = copier_run(b->copier, err);
		else
			rc = job_sleep(b->job, NONE_NAP);
	}
	if (rc == -ECANCELED && b->copier)
		finish(b);
	return rc;
}

static void flush_target(void *arg)
{
	struct call *c = arg;
	struct node *n = c->backup->target;

	gate_enter(&n->gate);
	c->rc = node_flush(n);
	gate_leave(&n->gate);
}

static int backup_run(struct job *j, struct error *err)
{
	struct backup *b = j->data;
	int rc;

	if (b->o.sync == BACKUP_NONE)
		return wait_for_end(b, err);
	copier_set_speed(b->copier, j->speed);
	rc = copier_run(b->copier, err);
	if (rc && rc != -ECANCELED && b->view && view_is_broken(b->view))
		rc = view_gone(b, err);
	if (rc && b->bitmap && b->o.bitmap_mode == BACKUP_ALWAYS && !copier_lost(b->copier))
		b->copied_is_durable = !on_loop(b->target->loop, flush_target, b, NULL);
	return rc;
}

static void backup_set_speed(struct job *j)
{
	struct backup *b = j->data;

	if (b->copier)
		copier_set_speed(b->copier, j->speed);
}

/* -- the end ---------------------------------------------------------------------------------- */

static void bitmap_on_success(void *arg)
{
	struct backup *b = ((struct call *)arg)->backup;

	if (b->o.bitmap_mode == BACKUP_NEVER)
		successor_drop(b->bitmap, b->successor);
	else
		successor_take_over(b->bitmap, b->successor);
	b->bitmap = b->successor = NULL;
}

/* "always": only what is safe in the target is cleaned. */
static void bitmap_on_failure(void *arg)
{
	struct backup *b = ((struct call *)arg)->backup;

	if (b->copied_is_durable) {
		copier_left_to_bitmap(b->copier, b->successor);
		successor_take_over(b->bitmap, b->successor);
	} else {
		successor_drop(b->bitmap, b->successor);
	}
	b->bitmap = b->successor = NULL;
}

static void backup_commit(struct job *j)
{
	struct backup *b = j->data;

	if (b->successor)
		on_loop(j->loop, bitmap_on_success, b, NULL);
}

static void backup_abort(struct job *j)
{
	struct backup *b = j->data;

	if (b->successor)
		on_loop(j->loop, bitmap_on_failure, b, NULL);
}

static void end_on_loop(void *arg)
{
	let_go(((struct call *)arg)->backup);
}

static void backup_clean(struct job *j)
{
	struct backup *b = j->data;

	on_loop(j->loop, end_on_loop, b, NULL);
	leave_nodes(b);
}

static void backup_job_free(struct job *j)
{
	backup_free(j->data);
}

static const struct job_driver backup_driver = {
	.type = "backup",
	.block = true,
	.run = backup_run,
	.commit = backup_commit,
	.abort = backup_abort,
	.clean = backup_clean,
	.set_speed = backup_set_speed,
	.free = backup_job_free,
};
