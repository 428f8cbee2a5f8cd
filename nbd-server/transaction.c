/* SPDX-License-Identifier: BSD-3-Clause */
/* transaction: see transaction.h.
 *
 * A gate is asked for with a limit (DESIGN.md, idea 3): guests wait for it.
 * When a disk is busy for longer, everything is opened again, guests get air,
 * and it is tried anew, for a bounded number of times.
 */
#include "nbd-server/transaction.h"

#include <errno.h>
#include <stdlib.h>

#include "bitmaps/bitmap.h"
#include "common/io.h"
#include "common/loop.h"
#include "format/node.h"
#include "nbd-server/commands.h"

#define GATE_LIMIT 100000000ull		/* ns that guests wait at most for one disk */
#define GATE_PAUSE 50000000ull		/* ns of air between two tries */
#define GATE_TRIES 40

/* -- nodes ---------------------------------------------------------------------- */

int action_node(struct action *a, const char *name, struct error *err)
{
	a->node = command_node_find(name);
	return a->node ? 0 : error_set(err, -ENOENT, "Node '%s' not found", name);
}

int action_other(struct action *a, struct node *n, struct error *err)
{
	struct node **v = reallocarray(a->others, a->n_others + 1, sizeof(*v));

	if (!v) {
		command_node_unref(n);
		return error_set(err, -ENOMEM, "Out of memory");
	}
	a->others = v;
	v[a->n_others++] = n;
	return 0;
}

static void drop_nodes(struct action *a)
{
	for (unsigned i = 0; i < a->n_others; i++)
		command_node_unref(a->others[i]);
	free(a->others);
	command_node_unref(a->node);
}

/* -- gates ---------------------------------------------------------------------- */

/* Requests enter where somebody uses a node: exports, jobs.  Every node has a gate, so
 * those of all nodes above the ones concerned are closed; where nobody enters, that is
 * nothing but a number.  The nodes are kept by a reference each. */
struct gates {
	struct node **nodes;
	bool *closed;
	unsigned n;
	const struct action *actions;
	unsigned n_actions;
	const char *busy;		/* the name of the node that kept us waiting */
	int rc;
};

static bool concerns(const struct action *a, const struct node *above)
{
	if (a->node && node_is_below(above, a->node))
		return true;
	for (unsigned i = 0; i < a->n_others; i++) {
		if (node_is_below(above, a->others[i]))
			return true;
	}
	return false;
}

static bool is_concerned(const struct gates *g, const struct node *n)
{
	for (unsigned i = 0; i < g->n_actions; i++) {
		if (concerns(&g->actions[i], n))
			return true;
	}
	return false;
}

static void open_on_loop(void *arg)
{
	struct gates *g = arg;

	for (unsigned i = g->n; i-- > 0;) {
		if (g->closed[i] && g->nodes[i]->loop == loop_self()) {
			gate_open(&g->nodes[i]->gate);
			g->closed[i] = false;
		}
	}
}

/* Whether a node above the I-th is still to be closed: its requests may be on their way to
 * this one's gate (a view's reader), so it comes first. */
static bool is_below_another(const struct gates *g, unsigned i)
{
	for (unsigned k = 0; k < g->n; k++) {
		if (k != i && g->nodes[k]->loop == loop_self() && !g->closed[k] &&
		    node_is_below(g->nodes[k], g->nodes[i]))
			return true;
	}
	return false;
}

static int close_one(struct gates *g, unsigned i)
{
	struct node *n = g->nodes[i];
	/* Nobody is hurried who has nothing to do with it. */
	int rc = n->gate.inside ? node_gate_close(n, GATE_LIMIT) : gate_close(&n->gate, 0);

	g->closed[i] = !rc;
	if (rc)
		g->busy = n->name;
	return rc;
}

/* Those of this loop's nodes, from the top. */
static void close_on_loop(void *arg)
{
	struct gates *g = arg;
	bool more = true;

	g->rc = 0;
	while (more && !g->rc) {
		more = false;
		for (unsigned i = 0; i < g->n && !g->rc; i++) {
			if (g->closed[i] || g->nodes[i]->loop != loop_self() ||
			    !is_concerned(g, g->nodes[i]))
				continue;
			if (is_below_another(g, i))
				more = true;
			else
				g->rc = close_one(g, i);
		}
	}
	if (g->rc)
		open_on_loop(g);
}

/* FN on each loop that has nodes, until it fails. */
static int on_each_loop(struct gates *g, void (*fn)(void *arg))
{
	g->rc = 0;
	for (unsigned i = 0; i < g->n && !g->rc; i++) {
		unsigned first = 0;

		while (g->nodes[first]->loop != g->nodes[i]->loop)
			first++;
		if (first == i)
			loop_call(g->nodes[i]->loop, fn, g);
	}
	return g->rc;
}

static void open_gates(struct gates *g)
{
	on_each_loop(g, open_on_loop);
}

static int close_gates(struct gates *g, struct error *err)
{
	int rc = -ETIMEDOUT;

	for (unsigned try = 0; try < GATE_TRIES && rc == -ETIMEDOUT; try++) {
		if (try)
			io_sleep(loop_io(loop_self()), GATE_PAUSE);
		rc = on_each_loop(g, close_on_loop);
		if (rc)
			open_gates(g);
	}
	if (rc)
		return error_set(err, rc, "The disk at node '%s' was busy all the time; "
				 "nothing was changed", g->busy);
	return 0;
}

static int gates_init(struct gates *g, const struct action *v, unsigned n, struct error *err)
{
	*g = (struct gates){ .actions = v, .n_actions = n };
	g->nodes = command_all_nodes(&g->n);
	g->closed = calloc(g->n + 1, sizeof(*g->closed));
	return g->nodes && g->closed ? 0 : error_set(err, -ENOMEM, "Out of memory");
}

static void gates_free(struct gates *g)
{
	for (unsigned i = 0; i < g->n; i++)
		command_node_unref(g->nodes[i]);
	free(g->nodes);
	free(g->closed);
}

int gated_call(struct node *n, int (*fn)(struct node *n, void *arg, struct error *err), void *arg,
	       struct error *err)
{
	struct action a = { .node = n };
	struct gates gates;
	int rc = gates_init(&gates, &a, 1, err);

	if (!rc)
		rc = close_gates(&gates, err);
	if (!rc) {
		rc = command_node_call(n, fn, arg, err);
		open_gates(&gates);
	}
	gates_free(&gates);
	return rc;
}

/* -- actions -------------------------------------------------------------------- */

struct step {
	struct action *a;
	struct error *err;
	int rc;
};

static void apply_on_loop(void *arg)
{
	struct step *s = arg;

	s->rc = s->a->verb->apply(s->a, s->err);
}

static void ahead_on_loop(void *arg)
{
	struct step *s = arg;

	s->rc = s->a->verb->ahead(s->a, s->err);
}

static void commit_on_loop(void *arg)
{
	struct step *s = arg;

	s->rc = s->a->verb->commit(s->a, s->err);
}

static void undo_on_loop(void *arg)
{
	struct step *s = arg;

	s->a->verb->undo(s->a);
}

static struct loop *action_loop(const struct action *a)
{
	return a->node ? a->node->loop : loop_self();
}

static void undo_all(struct action *v, unsigned n)
{
	while (n--) {
		struct step s = { &v[n] };

		if (v[n].applied && !v[n].committed && v[n].verb->undo)
			loop_call(action_loop(&v[n]), undo_on_loop, &s);
		v[n].applied = false;
	}
}

static int apply_all(struct action *v, unsigned n, struct error *err)
{
	for (unsigned i = 0; i < n; i++) {
		struct step s = { &v[i], err };

		if (v[i].verb->apply)
			loop_call(action_loop(&v[i]), apply_on_loop, &s);
		if (s.rc)
			return s.rc;
		v[i].applied = true;
	}
	return 0;
}

static void say_removed(struct error *err, unsigned done)
{
	if (done)
		error_prefix(err, "%u bitmaps are removed for good, then: ", done);
}

/* Only removals wait for this.  When the storage fails after the first of
 * several, those done stay done, and the text says so. */
static int commit_all(struct action *v, unsigned n, struct error *err)
{
	unsigned done = 0;

	for (unsigned i = 0; i < n; i++) {
		struct step s = { &v[i], err };

		if (!v[i].verb->commit)
			continue;
		loop_call(action_loop(&v[i]), commit_on_loop, &s);
		if (s.rc) {
			say_removed(err, done);
			return s.rc;
		}
		v[i].committed = true;
		done++;
	}
	return 0;
}

/* *DONE: how many of them went well. */
static int go_ahead(struct action *v, unsigned n, unsigned *done, struct error *err)
{
	for (*done = 0; *done < n; ++*done) {
		struct step s = { &v[*done], err };

		loop_call(action_loop(s.a), ahead_on_loop, &s);
		if (s.rc) {
			say_removed(err, *done);
			return s.rc;
		}
	}
	return 0;
}

/* -- bitmaps on storage ----------------------------------------------------------- */

static void hold_on_loop(void *arg)
{
	bitmaps_hold(((struct action *)arg)->node);
}

static void release_on_loop(void *arg)
{
	bitmaps_release(((struct action *)arg)->node);
}

static void make_durable_on_loop(void *arg)
{
	bitmaps_commit(((struct action *)arg)->node, NULL);	/* what fails is in the log */
}

/* FN for each action's node, on its loop. */
static void on_nodes(struct action *v, unsigned n, void (*fn)(void *arg))
{
	for (unsigned i = 0; i < n; i++)
		if (v[i].node)
			loop_call(v[i].node->loop, fn, &v[i]);
}

/* The first AHEAD of them have gone ahead: only they are committed, and the rest is undone. */
static int run_gated(struct action *v, unsigned n, unsigned ahead, struct error *err)
{
	struct gates gates;
	int rc = gates_init(&gates, v, n, err);

	if (!rc)
		rc = close_gates(&gates, err);
	if (!rc) {
		/* A process that dies in here has done all to a node's bitmaps, or nothing. */
		on_nodes(v, n, hold_on_loop);
		if (!ahead)
			rc = apply_all(v, n, err);
		if (!rc)
			rc = commit_all(v, ahead ? ahead : n, err);
		if (rc || ahead)
			undo_all(v, n);
		on_nodes(v, n, release_on_loop);
		open_gates(&gates);
		on_nodes(v, n, make_durable_on_loop);
	}
	gates_free(&gates);
	return rc;
}

static bool can_go_ahead(const struct action *v, unsigned n)
{
	unsigned i = 0;

	while (i < n && v[i].verb->ahead)
		i++;
	return n && i == n;
}

/* With the gates open but for a moment at the end.  Bitmaps that the image has lost while
 * the disk was too busy for that moment are there until they are removed again. */
static int run_ahead(struct action *v, unsigned n, struct error *err)
{
	int rc = apply_all(v, n, err), closed = 0;
	unsigned done = 0;

	if (!rc)
		rc = go_ahead(v, n, &done, err);
	if (done)
		closed = run_gated(v, n, done, NULL);
	undo_all(v, n);
	if (rc || !closed)
		return rc;
	return error_set(err, closed, "The disk was busy all the time; the bitmaps have vanished from the image, "
			 "and are still in memory");
}

static int prepare_all(struct action *v, unsigned n, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < n && !rc; i++) {
		v[i].prepared = true;
		v[i].first = !i;
		if (v[i].verb->prepare)
			rc = v[i].verb->prepare(&v[i], err);
	}
	return rc;
}

int transaction_run(struct action *v, unsigned n, struct error *err)
{
	int rc = prepare_all(v, n, err);

	if (!rc)
		rc = can_go_ahead(v, n) ? run_ahead(v, n, err) : run_gated(v, n, 0, err);
	for (unsigned i = 0; i < n; i++) {
		if (v[i].prepared && v[i].verb->clean)
			v[i].verb->clean(&v[i], !rc);
		drop_nodes(&v[i]);
	}
	return rc;
}
