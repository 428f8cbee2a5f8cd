/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoint-ends: checkpoints go: what is left behind, what is deleted; and those of
 * which a crash left it to us whether they count.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "format/node.h"
#include "nbd-server/checkpoints-int.h"
#include "nbd-server/commands.h"
#include "nbd-server/transaction.h"

static int base_on_loop(struct node *n, void *arg, struct error *err)
{
	struct node **base = arg;

	*base = node_ref(checkpoint_node(n));
	return 0;
}

struct node *checkpoint_base(struct node *n)
{
	struct node *base;

	command_node_call(n, base_on_loop, &base, NULL);
	return base;
}

/* -- what is left behind -------------------------------------------------------------- */

struct leftovers {
	struct node *node;
	bool useless_too;
	unsigned count;
	struct error *err;
	int rc;
};

static void leftovers_on_loop(void *arg)
{
	struct leftovers *x = arg;

	x->rc = checkpoint_end_leftovers(x->node, x->useless_too, &x->count, x->err);
}

static int drop_commit(struct action *a, struct error *err)
{
	checkpoint_drop_ended(a->node);
	return 0;
}

/* Ends what is left on the nodes of C; what cannot be done now waits for the next time. */
int checkpoint_end_leftovers_of(struct checkpoint *c, bool useless_too, struct error *err)
{
	static const struct verb drop_verb = { .name = "checkpoint-end", .commit = drop_commit };
	struct action *v = calloc(c->n + 1, sizeof(*v));
	unsigned n = 0;
	int rc = v ? 0 : error_set(err, -ENOMEM, "Out of memory");

	for (unsigned i = 0; i < c->n && v; i++) {
		struct node *node = c->parts[i].disk.node;
		struct leftovers x = { node, useless_too, 0, err, 0 };

		loop_call(node->loop, leftovers_on_loop, &x);
		rc = rc ? rc : x.rc;
		if (x.count)
			v[n++] = (struct action){ .verb = &drop_verb, .node = node_ref(node) };
	}
	if (n) {
		int gated = transaction_run(v, n, rc ? NULL : err);

		rc = rc ? rc : gated;
	}
	free(v);
	return rc;
}

static void leftovers_of(struct node *n)
{
	struct error err = ERROR_INIT;
	struct checkpoint_part part = { .disk.node = n };
	struct checkpoint c = { .parts = &part, .n = 1 };

	if (checkpoint_end_leftovers_of(&c, false, &err))
		log_warning("a checkpoint that was left pending is not gone yet node=%s: %s", n->name,
			    err.text);
}

void checkpoint_node_opened(struct node *n)
{
	struct node *base = checkpoint_base(n);

	leftovers_of(base);
	command_node_unref(base);
}

/* -- does it count? ----------------------------------------------------------------------- */

/* A disk that is ready: the process died between the first disk's "active" and the last
 * one's, or before that. */
struct ready {
	struct node *node;
	struct label label;
};

struct census {
	struct ready *v;		/* all labels that are not pending, of all nodes */
	unsigned n, max;
};

static int census_of_node(struct node *n, void *arg, struct error *err)
{
	struct census *c = arg;
	struct epochs e;
	int rc = epochs_list(n, &e, err);

	for (unsigned i = 0; i < e.n && !rc; i++) {
		struct ready *v = c->v;

		if (e.v[i].label.state == CHECKPOINT_PENDING)
			continue;
		if (c->n == c->max) {
			v = reallocarray(c->v, c->max * 2 + 16, sizeof(*v));
			if (!v) {
				rc = error_set(err, -ENOMEM, "Out of memory");
				break;
			}
			c->v = v;
			c->max = c->max * 2 + 16;
		}
		v[c->n++] = (struct ready){ n, e.v[i].label };
	}
	epochs_free(&e);
	return rc;
}

/* All disks are ready, or one has gone on from there: then all were. */
static bool counts(const struct census *c, const struct label *l)
{
	unsigned here = 0;

	for (unsigned i = 0; i < c->n; i++) {
		const struct label *x = &c->v[i].label;

		if (x->group != l->group || strcmp(x->name, l->name))
			continue;
		if (x->state == CHECKPOINT_ACTIVE)
			return true;
		here++;
	}
	return here >= l->disks;
}

static int settle_on_loop(struct node *n, void *arg, struct error *err)
{
	const struct ready *r = arg;

	return checkpoint_settle(n, &r->label, r->label.state, err);
}

static bool is_part(const struct checkpoint *c, const struct node *n)
{
	for (unsigned i = 0; c && i < c->n; i++) {
		if (c->parts[i].disk.node == n)
			return true;
	}
	return false;
}

static int settle(struct census *all, const struct checkpoint *parts, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < all->n && !rc; i++) {
		struct ready *r = &all->v[i];
		struct ready x = *r;

		if (r->label.state != CHECKPOINT_READY)
			continue;
		if (!counts(all, &r->label) && !is_part(parts, r->node))
			continue;
		x.label.state = counts(all, &r->label) ? CHECKPOINT_ACTIVE : CHECKPOINT_PENDING;
		rc = command_node_call(r->node, settle_on_loop, &x, err);
	}
	return rc;
}

int checkpoint_settle_all(const struct checkpoint *parts, struct error *err)
{
	struct census all = { 0 };
	unsigned n;
	struct node **v = command_all_nodes(&n);
	int rc = v ? 0 : error_set(err, -ENOMEM, "Out of memory");

	for (unsigned i = 0; i < n && !rc; i++)
		rc = command_node_call(v[i], census_of_node, &all, err);
	if (!rc)
		rc = settle(&all, parts, err);
	for (unsigned i = 0; i < n && v; i++)
		command_node_unref(v[i]);
	free(v);
	free(all.v);
	return rc;
}

/* -- deletion -------------------------------------------------------------------------- */

struct folding {
	const char *name;
	bool found;
};

static int may_fold(struct node *n, void *arg, struct error *err)
{
	struct folding *f = arg;
	int rc = checkpoint_may_fold(n, f->name, err);

	f->found = f->found || rc != -ENOENT;
	return rc;
}

static int fold_apply(struct action *a, struct error *err)
{
	return checkpoint_fold(a->node, a->own, err);
}

/* V: what is to be done on each node of NODES that has the checkpoint. */
static int plan_folds(struct node **nodes, unsigned n, const char *name, struct action *v,
		      unsigned *n_actions, struct error *err)
{
	static const struct verb verb = { .name = "checkpoint-delete", .apply = fold_apply };
	struct folding f = { name, false };

	for (unsigned i = 0; i < n; i++) {
		struct error why = ERROR_INIT;
		int rc = command_node_call(nodes[i], may_fold, &f, &why);

		if (rc && rc != -ENOENT) {
			*err = why;
			return rc;
		}
		if (!rc)
			v[(*n_actions)++] = (struct action){ .verb = &verb, .own = (void *)name,
							     .node = node_ref(nodes[i]) };
	}
	return f.found ? 0 : error_set(err, -ENOENT, "Checkpoint '%s' not found", name);
}

static void drop_actions(struct action *v, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		command_node_unref(v[i].node);
}

/* At one instant for all disks; then what was deleted goes from the images. */
static int run_folds(struct action *v, unsigned n, struct error *err)
{
	struct checkpoint_part *parts = calloc(n + 1, sizeof(*parts));
	struct checkpoint c = { .parts = parts, .n = n };
	int rc = parts ? 0 : error_set(err, -ENOMEM, "Out of memory");

	for (unsigned i = 0; i < n && !rc; i++)
		parts[i].disk.node = node_ref(v[i].node);
	if (rc)
		drop_actions(v, n);
	else
		rc = transaction_run(v, n, err);
	if (!rc)
		rc = checkpoint_end_leftovers_of(&c, false, err);
	for (unsigned i = 0; i < n && parts; i++)
		command_node_unref(parts[i].disk.node);
	free(parts);
	return rc;
}

int checkpoint_delete(const char *name, struct error *err)
{
	unsigned n, n_actions = 0;
	struct node **nodes = command_all_nodes(&n);
	struct action *v = calloc(n + 1, sizeof(*v));
	int rc = nodes && v ? 0 : error_set(err, -ENOMEM, "Out of memory");

	if (!rc)
		rc = checkpoint_settle_all(NULL, err);
	if (!rc)
		rc = plan_folds(nodes, n, name, v, &n_actions, err);
	if (!rc)
		rc = run_folds(v, n_actions, err);
	else
		drop_actions(v, n_actions);
	for (unsigned i = 0; i < n && nodes; i++)
		command_node_unref(nodes[i]);
	free(nodes);
	free(v);
	return rc;
}
