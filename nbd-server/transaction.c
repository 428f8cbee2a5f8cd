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
#include <string.h>

#include <json-c/json.h>

#include "bitmaps/bitmap.h"
#include "common/io.h"
#include "common/loop.h"
#include "format/node.h"
#include "nbd-server/commands.h"
#include "nbd-server/export.h"

#define GATE_LIMIT 100000000ull		/* ns that guests wait at most for one disk */
#define GATE_PAUSE 50000000ull		/* ns of air between two tries */
#define GATE_TRIES 40

/* -- nodes ---------------------------------------------------------------------- */

static int take_node(const char *name, struct node **out, struct error *err)
{
	*out = command_node_find(name);
	return *out ? 0 : error_set(err, -ENOENT, "Node '%s' not found", name);
}

static int take_sources(struct action *a, struct json_object *bitmaps, struct error *err)
{
	size_t n = json_object_array_length(bitmaps);
	int rc = 0;

	a->sources = calloc(n + 1, sizeof(struct node *));
	if (!a->sources)
		return error_set(err, -ENOMEM, "Out of memory");
	for (size_t i = 0; i < n && !rc; i++) {
		struct json_object *ref = json_object_array_get_idx(bitmaps, i);
		const char *name = json_object_is_type(ref, json_type_string)
			? a->node->name : qmp_str(ref, "node");

		rc = take_node(name, &a->sources[a->n_sources], err);
		a->n_sources += !rc;
	}
	return rc;
}

static int take_nodes(struct action *a, struct error *err)
{
	const char *name = qmp_str(a->data, "node");
	struct json_object *bitmaps = json_object_object_get(a->data, "bitmaps");
	int rc = name ? take_node(name, &a->node, err) : 0;

	if (!rc && bitmaps)
		rc = take_sources(a, bitmaps, err);
	return rc;
}

static void drop_nodes(struct action *a)
{
	for (unsigned i = 0; i < a->n_sources; i++)
		command_node_unref(a->sources[i]);
	free(a->sources);
	command_node_unref(a->node);
}

/* -- gates ---------------------------------------------------------------------- */

/* An export whose disk's gate we close.  It keeps a reference of the export, so
 * that the node stays. */
struct closing {
	struct export *export;
	const struct action *actions;
	unsigned n_actions;
	int rc;				/* 1: closed; 0: not concerned; -errno */
};

static bool concerns(const struct action *a, const struct node *root)
{
	if (a->node && node_is_below(root, a->node))
		return true;
	for (unsigned i = 0; i < a->n_sources; i++) {
		if (node_is_below(root, a->sources[i]))
			return true;
	}
	return false;
}

static void close_on_loop(void *arg)
{
	struct closing *c = arg;
	struct node *root = c->export->node;
	bool concerned = false;

	for (unsigned i = 0; root && i < c->n_actions; i++)
		concerned = concerned || concerns(&c->actions[i], root);
	c->rc = 0;
	if (!concerned)
		return;
	c->rc = node_gate_close(root, GATE_LIMIT);
	if (!c->rc)
		c->rc = 1;
}

static void open_on_loop(void *arg)
{
	struct closing *c = arg;

	gate_open(&c->export->node->gate);
}

static void open_gates(struct closing *v, unsigned n)
{
	while (n--) {
		if (v[n].rc == 1)
			loop_call(v[n].export->loop, open_on_loop, &v[n]);
		v[n].rc = 0;
	}
}

static int close_gates_once(struct closing *v, unsigned n, const char **busy)
{
	for (unsigned i = 0; i < n; i++) {
		loop_call(v[i].export->loop, close_on_loop, &v[i]);
		if (v[i].rc < 0) {
			int rc = v[i].rc;

			*busy = v[i].export->id;
			open_gates(v, i);
			return rc;
		}
	}
	return 0;
}

static int close_gates(struct closing *v, unsigned n, struct error *err)
{
	const char *busy = NULL;
	int rc = -ETIMEDOUT;

	for (unsigned try = 0; try < GATE_TRIES && rc == -ETIMEDOUT; try++) {
		if (try)
			io_sleep(loop_io(loop_self()), GATE_PAUSE);
		rc = close_gates_once(v, n, &busy);
	}
	if (rc)
		return error_set(err, rc, "The disk of export '%s' was busy all the time; "
				 "nothing was changed", busy);
	return 0;
}

/* Every export, with a reference; malloc'd. */
static struct closing *all_exports(const struct action *actions, unsigned n_actions, unsigned *n)
{
	struct closing *v;

	*n = 0;
	for (struct export *e = export_list(); e; e = e->next)
		++*n;
	v = calloc(*n + 1, sizeof(*v));
	*n = 0;
	for (struct export *e = export_list(); v && e; e = e->next) {
		/* Without a reference left, no request is inside. */
		if (!e->refs)
			continue;
		export_ref(e);
		v[(*n)++] = (struct closing){ e, actions, n_actions };
	}
	return v;
}

static void drop_exports(struct closing *v, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		export_unref(v[i].export);
	free(v);
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
	}
}

static int apply_all(struct action *v, unsigned n, struct error *err)
{
	for (unsigned i = 0; i < n; i++) {
		struct step s = { &v[i], err };

		loop_call(action_loop(&v[i]), apply_on_loop, &s);
		if (s.rc)
			return s.rc;
		v[i].applied = true;
	}
	return 0;
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
			if (done)
				error_prefix(err, "%u bitmaps are removed for good, then: ", done);
			return s.rc;
		}
		v[i].committed = true;
		done++;
	}
	return 0;
}

static int run_gated(struct action *v, unsigned n, struct error *err)
{
	unsigned n_exports;
	struct closing *exports = all_exports(v, n, &n_exports);
	int rc;

	if (!exports)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = close_gates(exports, n_exports, err);
	if (!rc) {
		rc = apply_all(v, n, err);
		if (!rc)
			rc = commit_all(v, n, err);
		if (rc)
			undo_all(v, n);
		open_gates(exports, n_exports);
	}
	drop_exports(exports, n_exports);
	return rc;
}

int transaction_run(struct action *v, unsigned n, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < n && !rc; i++)
		rc = take_nodes(&v[i], err);
	if (!rc)
		rc = run_gated(v, n, err);
	for (unsigned i = 0; i < n; i++) {
		bitmap_backup_free(v[i].backup);
		drop_nodes(&v[i]);
	}
	return rc;
}
