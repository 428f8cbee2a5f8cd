/* SPDX-License-Identifier: BSD-3-Clause */
/* null-co: a disk of any size that takes everything and keeps nothing.
 *
 * For benches and tests.  Reads always give zeroes: what lies in a buffer may be
 * another client's.  The option read-zeroes says whether the map promises that.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "format/node.h"

#define NULL_SIZE_DEFAULT (1ull << 30)
#define NULL_LATENCY_MAX 3600000000000ull	/* an hour, ns */

struct null {
	uint64_t latency;		/* of each request, ns */
	bool read_zeroes;
};

static int null_open(struct node *n, struct json_object *opts, struct error *err)
{
	struct null *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return error_set(err, -ENOMEM, "Out of memory");
	n->state = s;
	n->protocol = true;
	n->size = NULL_SIZE_DEFAULT;
	n->filename = strdup("null-co://");
	rc = opts_u64(opts, "size", &n->size, err);
	if (!rc)
		rc = opts_u64(opts, "latency-ns", &s->latency, err);
	if (!rc)
		rc = opts_bool(opts, "read-zeroes", &s->read_zeroes, err);
	if (!rc && s->latency > NULL_LATENCY_MAX)
		rc = error_set(err, -EINVAL, "latency-ns is invalid");
	if (!rc && n->size > INT64_MAX)
		rc = error_set(err, -EFBIG, "Parameter 'size' is too large");
	return rc;
}

static void null_close(struct node *n)
{
	free(n->state);
	n->state = NULL;
}

static int null_wait(struct node *n)
{
	const struct null *s = n->state;

	if (s->latency)
		io_sleep(n->io, s->latency);
	return 0;
}

static int null_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	memset(buf, 0, len);
	return null_wait(n);
}

static int null_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	return null_wait(n);
}

static int null_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	return null_wait(n);
}

static int null_discard(struct node *n, uint64_t off, uint64_t len)
{
	return null_wait(n);
}

static int null_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	const struct null *s = n->state;

	extents_add(x, len, s->read_zeroes ? EXTENT_ZERO | EXTENT_HOLE : EXTENT_HOLE, 1);
	return 0;
}

static const char *const null_options[] = { "size", "latency-ns", "read-zeroes", NULL };

const struct node_driver null_driver = {
	.name = "null-co",
	.options = null_options,
	.open = null_open,
	.close = null_close,
	.read = null_read,
	.write = null_write,
	.zero = null_zero,
	.discard = null_discard,
	.flush = null_wait,
	.map = null_map,
};
