/* SPDX-License-Identifier: BSD-3-Clause */
/* throttle: a filter that holds to the limits of its group.
 *
 * The requests of a node wait in a line, reads and writes each in their own, and
 * the first of it for the group.  While a gate is being closed nothing waits: what
 * passes early is made up for by what comes after it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "format/filter.h"
#include "format/throttle-int.h"

struct throttle {
	struct throttle_group *group;
	struct object *ref;
	bool joined;
	struct co_mutex line[2];	/* reads, writes */
	struct co_queue first[2];	/* the head of each line, until its time has come */
	unsigned hurried;
};

static int throttle_open(struct node *n, struct json_object *opts, struct error *err)
{
	struct throttle *s = calloc(1, sizeof(*s));
	char *id = NULL;
	int rc;

	if (!s)
		return error_set(err, -ENOMEM, "Out of memory");
	n->state = s;
	rc = opts_require(opts, "throttle-group", err);
	if (!rc)
		rc = opts_str(opts, "throttle-group", &id, err);
	if (!rc) {
		s->group = object_get(id, throttle_group_class.name, &s->ref, NULL);
		if (!s->group)
			rc = error_set(err, -ENOENT, "Throttle group '%s' does not exist", id);
	}
	free(id);
	if (!rc && throttle_group_join(s->group, n->loop))
		rc = error_set(err, -EXDEV, "The disks of the throttle group are on another loop");
	s->joined = !rc;
	return rc ? rc : filter_open_child(n, opts, "file", err);
}

static void throttle_close(struct node *n)
{
	struct throttle *s = n->state;

	if (s->joined)
		throttle_group_leave(s->group);
	object_put(s->ref);
	free(s);
	n->state = NULL;
}

static void nap(struct node *n, struct co_queue *q, uint64_t ns)
{
	if (loop_self())
		loop_queue_wait(q, loop_now() + ns);
	else
		io_sleep(n->io, ns);
}

static void throttle(struct node *n, bool write, uint64_t bytes)
{
	struct throttle *s = n->state;
	uint64_t ns;

	co_mutex_lock(&s->line[write]);
	while (!s->hurried && (ns = throttle_group_wait(s->group, write)))
		nap(n, &s->first[write], ns);
	throttle_group_account(s->group, write, bytes);
	co_mutex_unlock(&s->line[write]);
}

static void throttle_hurry(struct node *n, bool on)
{
	struct throttle *s = n->state;

	s->hurried += on ? 1u : -1u;
	co_queue_wake_all(&s->first[0]);
	co_queue_wake_all(&s->first[1]);
}

static int throttle_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	throttle(n, false, len);
	return filter_read(n, buf, off, len);
}

static int throttle_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	throttle(n, true, len);
	return filter_write(n, buf, off, len, flags);
}

static int throttle_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	throttle(n, true, len);
	return filter_zero(n, off, len, flags);
}

static int throttle_discard(struct node *n, uint64_t off, uint64_t len)
{
	throttle(n, true, len);
	return filter_discard(n, off, len);
}

static const void *throttle_together(struct node *n)
{
	struct throttle *s = n->state;

	return s->group;
}

static void throttle_moved(struct node *n)
{
	struct throttle *s = n->state;

	throttle_group_moved(s->group, n->loop);
}

static const char *const throttle_options[] = { "throttle-group", "file", NULL };

const struct node_driver throttle_driver = {
	.name = "throttle",
	.options = throttle_options,
	.filter = true,
	.open = throttle_open,
	.close = throttle_close,
	.read = throttle_read,
	.write = throttle_write,
	.zero = throttle_zero,
	.discard = throttle_discard,
	.flush = filter_flush,
	.map = filter_map,
	.truncate = filter_truncate,
	.child_perm = filter_child_perm,
	.hurry = throttle_hurry,
	.together = throttle_together,
	.moved = throttle_moved,
};
