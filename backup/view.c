// SPDX-License-Identifier: BSD-3-Clause
/* view: opening and closing one, its taps, and giving it up: see view.h.
 *
 * A write may reach the disk's data below the node that is viewed: an export of the
 * file under a raw node.  So the tap is not on the node but below its filters and raw
 * layers, on the node that everybody passes.  Backing images are read for what the disk
 * did not have: as long as a view is open nobody may write to them.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "backup/view-int.h"
#include "bitmaps/bitmap.h"
#include "bitmaps/bits.h"
#include "common/log.h"

static char *default_dir;
static uint64_t default_max;

void view_defaults(const char *log_dir, uint64_t log_max)
{
	free(default_dir);
	default_dir = log_dir ? strdup(log_dir) : NULL;
	default_max = log_max;
}

/* -- who is inside ---------------------------------------------------------------------- */

void view_enter(struct view *v)
{
	v->inside++;
}

void view_leave(struct view *v)
{
	if (--v->inside == 0 && v->closing)
		co_queue_wake_all(&v->leaving);
}

void view_break(struct view *v, const char *fmt, ...)
{
	va_list ap;

	if (v->broken)
		return;
	va_start(ap, fmt);
	vsnprintf(v->why, sizeof(v->why), fmt, ap);
	va_end(ap);
	v->broken = true;
	log_warning("a view is given up so that the guest goes on: node=%s reason='%s'",
		    v->node->name, v->why);
	view_log_give_up(v);
	view_aside_give_up(v);
}

/* -- waiting ------------------------------------------------------------------------------ */

bool patience_wait(struct patience *p, struct co_queue *q)
{
	uint64_t begun, took;

	if (!loop_self()) {		/* a simulation: its time is another */
		if (!co_self() || p->gives_way)
			return false;
		co_queue_wait(q);
		return true;
	}
	if (!p->no_end && !p->left)
		return false;
	begun = loop_now();
	loop_queue_wait(q, p->no_end ? UINT64_MAX : begun + p->left);
	took = loop_now() - begun;
	p->waited += took;
	p->left -= min_u64(took, p->left);
	return true;
}

/* -- the bitmap ------------------------------------------------------------------------------ */

#define PAGE 4096u

/* Only pages with a dirty granule take memory. */
static int copy_bitmap(struct view *v, const struct bitmap *b, struct error *err)
{
	uint64_t words = b->bits_len / sizeof(uint64_t);

	v->wanted_len = max_u64(b->bits_len, PAGE);
	v->wanted = mmap(NULL, v->wanted_len, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (v->wanted == MAP_FAILED) {
		v->wanted = NULL;
		return error_set(err, -ENOMEM, "Out of memory");
	}
	v->wanted_bits = b->granularity_bits;
	v->wanted_n = DIV_ROUND_UP(b->size, 1ull << b->granularity_bits);
	for (uint64_t i = bits_next_set(b->bits, 0, v->wanted_n) / 64; i < words;) {
		uint64_t n = min_u64(words - i, PAGE / sizeof(uint64_t));

		memcpy(v->wanted + i, b->bits + i, n * sizeof(uint64_t));
		if (v->wanted_n <= (i + n) * 64)
			break;
		i = bits_next_set(b->bits, (i + n) * 64, v->wanted_n) / 64;
	}
	return 0;
}

/* Whether a granule of the block is dirty. */
static bool is_wanted(const struct view *v, uint64_t block)
{
	uint64_t from = view_bytes(v, block) >> v->wanted_bits;
	uint64_t to = min_u64(((view_bytes(v, block + 1) - 1) >> v->wanted_bits) + 1, v->wanted_n);

	return from < to && bits_next_set(v->wanted, from, to) < to;
}

/* The first block after BLOCK whose granules may be of another kind. */
static uint64_t run_end(const struct view *v, uint64_t block, uint64_t end, bool wanted)
{
	uint64_t from = view_bytes(v, block) >> v->wanted_bits;
	uint64_t to = min_u64(((view_bytes(v, end) - 1) >> v->wanted_bits) + 1, v->wanted_n);
	uint64_t g;

	if (from >= to)
		return end;
	g = wanted ? bits_next_clear(v->wanted, from, to) : bits_next_set(v->wanted, from, to);
	if (g == to)
		return wanted && to == v->wanted_n
			? min_u64(end, DIV_ROUND_UP(to << v->wanted_bits, 1ull << v->bits)) : end;
	return max_u64(block + 1, min_u64(end, (g << v->wanted_bits) >> v->bits));
}

uint64_t view_wanted_run(const struct view *v, uint64_t block, uint64_t end, bool *wanted)
{
	uint64_t next = block;

	*wanted = true;
	if (!v->wanted)
		return end - block;
	*wanted = is_wanted(v, block);
	do
		next = run_end(v, next, end, *wanted);
	while (next < end && is_wanted(v, next) == *wanted);
	return next - block;
}

/* -- taps -------------------------------------------------------------------------------------- */

static void tap_before(struct tap *t, const struct tap_request *rq)
{
	struct view_tap *vt = (struct view_tap *)t;
	uint64_t off = rq->off, len = rq->len, first, end;

	if (off < vt->begin) {
		len -= min_u64(len, vt->begin - off);
		off = vt->begin;
	}
	if (rq->kind == TAP_DISCARD) {
		*rq->drop |= !view_keep_for_discard(vt->view, off - vt->begin, len);
	} else if (view_aside_takes(vt->view, rq, &first, &end)) {
		view_keep(vt->view, off, first - off);
		view_keep(vt->view, end, off + len - end);
	} else {
		view_keep(vt->view, off - vt->begin, len);
	}
}

static int tap_may_shrink(struct tap *t, uint64_t size, struct error *err)
{
	struct view_tap *vt = (struct view_tap *)t;
	struct view *v = vt->view;

	if (v->broken || v->closing || (size >= vt->begin && size - vt->begin >= v->size))
		return 0;
	return error_set(err, -EBUSY, "Node '%s' cannot become smaller while a backup reads it as it was",
			 vt->node->name);
}

static const struct tap_ops view_tap_ops = {
	.name = "view",
	.before = tap_before,
	.may_shrink = tap_may_shrink,
};

/* Below filters and raw layers: there all that writes to the disk's data passes. */
static int add_tap(struct view *v)
{
	struct node *n = v->node;
	struct view_tap *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	while (n->driver->filter || n->driver == &raw_driver) {
		t->begin += raw_offset_of(n);
		n = n->child[CHILD_FILE];
	}
	t->tap.ops = &view_tap_ops;
	t->view = v;
	t->node = n;
	node_tap_add(n, &t->tap);
	v->taps = t;
	v->n_taps = 1;
	return 0;
}

/* -- opening and closing ------------------------------------------------------------------------- */

/* "beside the image, or /var/tmp where it has no directory". */
static char *log_dir_of(const struct node *n)
{
	const struct node *file = n;
	const char *slash = NULL;

	while (file->child[CHILD_FILE])
		file = file->child[CHILD_FILE];
	if (file->protocol && node_storage(file) && !node_storage(file)->is_block_device && file->filename)
		slash = strrchr(file->filename, '/');
	if (!slash || file->filename[0] != '/')
		return strdup("/var/tmp");
	return strndup(file->filename, slash > file->filename ? (size_t)(slash - file->filename) : 1);
}

static int open_log(struct view *v, const struct view_options *o, struct error *err)
{
	const char *given = o->log_dir ? o->log_dir : default_dir;
	uint64_t max = o->log_max ? o->log_max : default_max;
	struct error why = ERROR_INIT;
	char *dir;
	int rc;

	if (given)
		return view_log_open(v, given, max, err);
	dir = log_dir_of(v->node);
	rc = dir ? view_log_open(v, dir, max, &why) : error_set(&why, -ENOMEM, "Out of memory");
	if (rc && dir && strcmp(dir, "/var/tmp"))
		rc = view_log_open(v, "/var/tmp", max, &why);
	free(dir);
	if (rc && err)
		*err = why;
	return rc;
}

static int check(const struct node *n, const struct view_options *o, struct error *err)
{
	uint64_t most = o->store ? NODE_REQUEST_MAX : VIEW_PIECE;

	if (o->granularity && (!is_pow2(o->granularity) || o->granularity < VIEW_GRANULARITY_MIN ||
			       o->granularity > most))
		return error_set(err, -EINVAL, "The granularity of a view must be a power of two from %u to %llu",
				 VIEW_GRANULARITY_MIN, (unsigned long long)most);
	if (o->store && o->store->size < n->size)
		return error_set(err, -EINVAL, "Node '%s' is smaller than node '%s'", o->store->name, n->name);
	return 0;
}

/* Backing images are read long after: they stay as they are. */
static int hold_below(struct view *v, struct error *err)
{
	struct node *below = node_skip_filters(v->node)->child[CHILD_BACKING];
	int rc;

	if (!below)
		return 0;
	rc = node_use_add(&v->below_use, below, PERM_CONSISTENT_READ,
			  PERM_ALL & ~(unsigned)(PERM_WRITE | PERM_RESIZE), err, "view of node '%s'", v->node->name);
	if (!rc)
		v->below = node_ref(below);
	return rc;
}

static int open_steps(struct view *v, const struct view_options *o, struct error *err)
{
	int rc = 0;

	if (o->bitmap)
		rc = copy_bitmap(v, o->bitmap, err);
	if (!rc && !v->store)
		rc = hold_below(v, err);
	if (!rc && !v->store)
		rc = open_log(v, o, err);
	if (!rc && !o->no_tap && add_tap(v))
		rc = error_set(err, -ENOMEM, "Out of memory");
	if (!rc && !v->store)
		view_aside_begin(v);
	return rc;
}

int view_open(struct node *n, const struct view_options *o, struct view **out, struct error *err)
{
	struct view *v;
	int rc = check(n, o, err);

	if (rc)
		return rc;
	v = calloc(1, sizeof(*v));
	if (!v)
		return error_set(err, -ENOMEM, "Out of memory");
	v->owned = !o->no_tap;
	v->readers_in_gate = o->readers_in_gate || o->no_tap;
	v->node = v->owned ? node_ref(n) : n;
	v->node->viewed++;
	v->store = o->store;
	v->size = n->size;
	v->opened = loop_now();
	v->bits = (unsigned)__builtin_ctz(o->granularity ? o->granularity : VIEW_GRANULARITY_MIN);
	v->n_blocks = DIV_ROUND_UP(v->size, 1ull << v->bits);
	v->may_be_sparse = n->driver->map || n->driver->filter;
	v->wait_ns = o->wait_ns;
	v->break_guest = o->break_guest && o->no_tap;	/* a tap cannot refuse a write */
	view_tree_init(&v->tree, v->n_blocks);
	rc = open_steps(v, o, err);
	if (rc)
		view_close(v);
	else
		*out = v;
	return rc;
}

/* What was kept may be many pieces. */
static void free_kept(void *arg)
{
	struct view *v = arg;

	view_tree_free(&v->tree);
	view_log_close(v);
	if (v->wanted)
		munmap(v->wanted, v->wanted_len);
}

void view_close(struct view *v)
{
	if (!v)
		return;
	v->closing = true;
	while (v->inside)
		co_queue_wait(&v->leaving);
	/* Nobody is in a tap of ours, so nobody holds its place in the list of taps. */
	for (unsigned i = 0; i < v->n_taps; i++)
		node_tap_remove(v->taps[i].node, &v->taps[i].tap);
	view_aside_end(v);
	free(v->taps);
	view_log_empty(v);
	if (loop_self() && co_self() && v->stats.kept)
		loop_work(free_kept, v);
	else
		free_kept(v);
	node_use_drop(&v->below_use);
	node_unref(v->below);
	v->node->viewed--;
	if (v->owned)
		node_unref(v->node);
	free(v);
}

/* -- asking -------------------------------------------------------------------------------------- */

uint64_t view_opened(const struct view *v)
{
	return v->opened;
}

uint64_t view_size(const struct view *v)
{
	return v->size;
}

bool view_is_broken(const struct view *v)
{
	return v->broken;
}

const char *view_broken_why(const struct view *v)
{
	return v->why;
}

void view_listen(struct view *v, void (*kept)(void *arg, uint64_t off, uint64_t len), void *arg)
{
	v->kept = kept;
	v->kept_arg = arg;
}

void view_stats(const struct view *v, struct view_stats *s)
{
	*s = v->stats;
	s->memory = v->log.memory + v->tree.bytes;
	s->stored = v->log.stored + v->aside.held;
}
