/* SPDX-License-Identifier: BSD-3-Clause */
/* move: a group of nodes goes to another loop.
 *
 * What hangs together goes together: parents, children, and what a driver says
 * belongs with them (throttle groups).  A group moves only while nobody but its own
 * nodes and the monitor uses it: no export, no job.  Then nothing is in flight, and
 * what drivers do by themselves they end when they leave.
 *
 *	old loop: the group is collected and checked ─▶ drivers leave ─▶ loop and io are set
 *	new loop: drivers take up again
 *
 * Commands run one at a time, so nobody opens or closes a node meanwhile.
 */
#include <errno.h>
#include <stdlib.h>

#include "common/loop.h"
#include "format/node.h"

#define GROUP_MAX 4096

struct move {
	struct node *first;		/* the caller holds one reference of it */
	struct loop *to;
	struct error *err;
	struct node **v;		/* the group */
	unsigned n;
	int rc;
};

static bool is_in(const struct move *m, const struct node *n)
{
	for (unsigned i = 0; i < m->n; i++)
		if (m->v[i] == n)
			return true;
	return false;
}

static const void *token_of(struct node *n)
{
	return n->driver->together && n->state ? n->driver->together(n) : NULL;
}

/* Whether N, which is not in the group, belongs to it by one that is. */
static bool belongs(const struct move *m, struct node *n)
{
	const void *token = token_of(n);

	for (unsigned c = 0; c < CHILD_COUNT; c++)
		if (n->child[c] && is_in(m, n->child[c]))
			return true;
	for (unsigned i = 0; i < m->n; i++) {
		struct node *o = m->v[i];

		if (token && token_of(o) == token)
			return true;
		for (unsigned c = 0; c < CHILD_COUNT; c++)
			if (o->child[c] == n)
				return true;
	}
	return false;
}

/* With the graph's lock held. */
static int collect(struct move *m)
{
	struct loop *from = m->first->loop;
	bool more = true;

	m->v[m->n++] = m->first;
	while (more) {
		more = false;
		for (struct node *n = m->first->graph->nodes; n; n = n->next) {
			if (n->loop != from || is_in(m, n) || !belongs(m, n))
				continue;
			if (m->n == GROUP_MAX)
				return error_set(m->err, -E2BIG, "More than %d nodes hang together", GROUP_MAX);
			m->v[m->n++] = n;
			more = true;
		}
	}
	return 0;
}

/* References that N has from the group, the monitor and our caller. */
static unsigned known_refs(const struct move *m, const struct node *n)
{
	unsigned refs = n->monitor_owned + (n == m->first);

	for (unsigned i = 0; i < m->n; i++)
		for (unsigned c = 0; c < CHILD_COUNT; c++)
			refs += m->v[i]->child[c] == n;
	return refs;
}

static bool is_groups_own(const struct move *m, const struct node_use *u)
{
	for (unsigned i = 0; i < m->n; i++)
		for (unsigned c = 0; c < CHILD_COUNT; c++)
			if (u == &m->v[i]->child_use[c])
				return true;
	return false;
}

static int check(struct move *m)
{
	for (unsigned i = 0; i < m->n; i++) {
		struct node *n = m->v[i];

		for (struct node_use *u = n->uses; u; u = u->next)
			if (!is_groups_own(m, u))
				return error_set(m->err, -EBUSY, "Node '%s' cannot go to another thread: it is used by %s",
						 n->name, u->what);
		if (n->refs != known_refs(m, n) || n->gate.inside)
			return error_set(m->err, -EBUSY, "Node '%s' cannot go to another thread: it is in use",
					 n->name);
	}
	return 0;
}

static void leave_on_loop(void *arg)
{
	struct move *m = arg;
	struct graph *g = m->first->graph;

	pthread_mutex_lock(&g->lock);
	m->rc = collect(m);
	if (!m->rc)
		m->rc = check(m);
	pthread_mutex_unlock(&g->lock);
	for (unsigned i = 0; i < m->n && !m->rc; i++) {
		if (m->v[i]->driver->leave)
			m->v[i]->driver->leave(m->v[i]);
		if (node_bitmap_hooks && node_bitmap_hooks->leave)
			node_bitmap_hooks->leave(m->v[i]);
	}
	for (unsigned i = 0; i < m->n && !m->rc; i++) {
		m->v[i]->loop = m->to;
		m->v[i]->io = loop_io(m->to);
	}
}

static void arrive_on_loop(void *arg)
{
	struct move *m = arg;

	for (unsigned i = 0; i < m->n; i++) {
		if (m->v[i]->driver->moved)
			m->v[i]->driver->moved(m->v[i]);
		if (node_bitmap_hooks && node_bitmap_hooks->moved)
			node_bitmap_hooks->moved(m->v[i]);
	}
}

int node_move(struct node *n, struct loop *to, struct error *err)
{
	struct move m = { .first = n, .to = to, .err = err };

	if (n->loop == to)
		return 0;
	m.v = calloc(GROUP_MAX, sizeof(*m.v));
	if (!m.v)
		return error_set(err, -ENOMEM, "Out of memory");
	loop_call(n->loop, leave_on_loop, &m);
	if (!m.rc)
		loop_call(to, arrive_on_loop, &m);
	free(m.v);
	return m.rc;
}
