/* SPDX-License-Identifier: BSD-3-Clause */
/* copy-on-read: what a read finds in a backing image is stored in the image itself.
 *
 * Whole clusters are copied, so that no read comes back for the rest of one.  The
 * copy keeps writes through this node away from its clusters: between reading and
 * storing nothing newer may come.  With "bottom", only what lies below that node is
 * left where it is.  A copy that cannot be stored does not fail the read.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/log.h"
#include "common/options.h"
#include "format/filter.h"
#include "format/qcow2.h"
#include "format/ranges.h"

#define COPY_PIECE (256u << 10)		/* bytes copied at a time */
#define COPIES_MAX 16u			/* at a time: each has a buffer */
#define GRANULE_DEFAULT (64u << 10)	/* where the image has no clusters */

struct cor {
	struct ranges ranges;
	struct node *bottom;		/* NULL: every backing image; one reference */
	uint64_t granule;		/* bytes */
	unsigned copies;		/* running */
	struct co_queue queue;		/* wait to be one of them */
	bool told;			/* that copies cannot be stored */
};

static struct node *child_of(struct node *n)
{
	return n->child[CHILD_FILE];
}

static int find_bottom(struct node *n, const char *name, struct error *err)
{
	struct cor *s = n->state;
	struct node *b = node_find(n->graph, name);

	if (!b)
		return error_set(err, -EINVAL, "Bottom node '%s' not found", name);
	s->bottom = b;
	for (struct node *i = child_of(n); i; i = node_skip_filters(i)->child[CHILD_BACKING])
		if (i == b || node_skip_filters(i) == b)
			return 0;
	return error_set(err, -EINVAL, "Bottom node '%s' is not in the backing chain of '%s'", name,
			 child_of(n)->name);
}

static int cor_open(struct node *n, struct json_object *opts, struct error *err)
{
	struct cor *s = calloc(1, sizeof(*s));
	struct node *image;
	char *bottom = NULL;
	int rc;

	if (!s)
		return error_set(err, -ENOMEM, "Out of memory");
	n->state = s;
	rc = opts_str(opts, "bottom", &bottom, err);
	if (!rc)
		rc = filter_open_child(n, opts, "file", err);
	if (!rc && bottom)
		rc = find_bottom(n, bottom, err);
	free(bottom);
	if (rc)
		return rc;
	image = node_skip_filters(child_of(n));
	s->granule = node_is_qcow2(image) ? qcow2_cluster_size(image) : GRANULE_DEFAULT;
	return 0;
}

static void cor_close(struct node *n)
{
	struct cor *s = n->state;

	node_unref(s->bottom);
	free(s);
	n->state = NULL;
}

/* Which layer is the last to copy from; the map counts them from 1. */
static uint32_t depth_max(const struct node *n, const struct cor *s)
{
	uint32_t depth = 1;

	if (!s->bottom)
		return UINT32_MAX;
	for (struct node *i = n->child[CHILD_FILE]; i; i = i->child[CHILD_BACKING]) {
		if (i == s->bottom)
			return depth;
		i = node_skip_filters(i);
		if (i == s->bottom)
			return depth;
		depth++;
	}
	return depth;
}

/* How much from OFF on is alike: to be copied (*COPY), or not. */
static int look(struct node *n, uint64_t off, uint64_t len, uint64_t *alike, bool *copy)
{
	struct extent v[16];
	struct extents x = { .v = v, .max = 16 };
	uint32_t max = depth_max(n, n->state);
	int rc = node_map_chain(child_of(n), off, len, &x);

	*alike = 0;
	for (uint32_t i = 0; i < x.n && !rc; i++) {
		/* Zeroes that are nowhere (depth 0) stay nowhere. */
		bool is = v[i].depth > 1 && v[i].depth <= max;

		if (i && is != *copy)
			break;
		*copy = is;
		*alike += v[i].len;
	}
	return rc ? rc : *alike ? 0 : -EIO;
}

static int store(struct node *n, const void *buf, uint64_t off, size_t len)
{
	if (bytes_are_zero(buf, len))
		return node_zero(child_of(n), off, len, 0);
	return node_write(child_of(n), buf, off, len, 0);
}

/* Copies the granules around [off, off+len). */
static int copy_now(struct node *n, uint64_t off, uint64_t len)
{
	struct cor *s = n->state;
	uint64_t end = min_u64(align_up(off + len, s->granule), n->size);
	void *buf;
	int rc = 0;

	off = align_down(off, s->granule);
	if (posix_memalign(&buf, 4096, align_up(max_u64(COPY_PIECE, s->granule), 4096)))
		return -ENOMEM;
	while (off < end && !rc) {
		uint64_t alike, now = min_u64(end - off, max_u64(COPY_PIECE, s->granule));
		struct range r;
		bool wanted;

		range_enter(&s->ranges, &r, off, now, RANGE_ALLOC);
		rc = look(n, off, now, &alike, &wanted);
		if (!rc && wanted)
			rc = node_read(child_of(n), buf, off, alike);
		if (!rc && wanted)
			rc = store(n, buf, off, alike);
		range_leave(&s->ranges, &r);
		off += alike;
	}
	free(buf);
	return rc;
}

static int copy(struct node *n, uint64_t off, uint64_t len)
{
	struct cor *s = n->state;
	int rc;

	while (s->copies >= COPIES_MAX)
		co_queue_wait(&s->queue);
	s->copies++;
	rc = copy_now(n, off, len);
	s->copies--;
	co_queue_wake_one(&s->queue);
	return rc;
}

static int cor_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	struct cor *s = n->state;
	uint64_t at = off, end = min_u64(off + len, n->size);
	int rc = 0;

	while (at < end && !rc && !child_of(n)->read_only) {
		uint64_t alike;
		bool wanted;

		rc = look(n, at, end - at, &alike, &wanted);
		if (!rc && wanted)
			rc = copy(n, at, alike);
		at += alike;
	}
	if (rc && !s->told) {
		s->told = true;
		log_warning("copy-on-read: what was read could not be stored node='%s' error='%s'",
			    n->name, strerror(-rc));
	}
	return filter_read(n, buf, off, len);
}

static int cor_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	struct cor *s = n->state;
	struct range r;
	int rc;

	range_enter(&s->ranges, &r, off, len, RANGE_WRITE);
	rc = filter_write(n, buf, off, len, flags);
	range_leave(&s->ranges, &r);
	return rc;
}

static int cor_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct cor *s = n->state;
	struct range r;
	int rc;

	range_enter(&s->ranges, &r, off, len, RANGE_WRITE);
	rc = filter_zero(n, off, len, flags);
	range_leave(&s->ranges, &r);
	return rc;
}

static int cor_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct cor *s = n->state;
	struct range r;
	int rc;

	range_enter(&s->ranges, &r, off, len, RANGE_WRITE);
	rc = filter_discard(n, off, len);
	range_leave(&s->ranges, &r);
	return rc;
}

/* Stores what the guest sees anyway: no reader minds.  A writer beside us does: his
 * data could come between our reading and our storing. */
static void cor_child_perm(struct node *n, enum node_child c, unsigned perm, unsigned shared,
			   unsigned *cperm, unsigned *cshared)
{
	bool stores = n->child[c] && !n->child[c]->read_only;

	*cperm = perm | PERM_CONSISTENT_READ | (stores ? PERM_WRITE_UNCHANGED : 0);
	*cshared = (stores ? shared & ~(unsigned)PERM_WRITE : shared) | PERM_WRITE_UNCHANGED;
}

static const char *const cor_options[] = { "file", "bottom", NULL };

const struct node_driver cor_driver = {
	.name = "copy-on-read",
	.options = cor_options,
	.filter = true,
	.open = cor_open,
	.close = cor_close,
	.read = cor_read,
	.write = cor_write,
	.zero = cor_zero,
	.discard = cor_discard,
	.flush = filter_flush,
	.map = filter_map,
	.truncate = filter_truncate,
	.child_perm = cor_child_perm,
};
