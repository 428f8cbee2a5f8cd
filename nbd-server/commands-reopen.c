/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-reopen: blockdev-reopen: other options for nodes in use, all or nothing.
 *
 *	find nodes ─▶ stop the exports above ─▶ reopen each ─▶ resume
 *	                                           │ one fails
 *	                                           └─▶ the former options again, the last first
 *
 * What becomes read only goes before what is below it, what becomes writable after it.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/options.h"
#include "format/node.h"
#include "nbd-server/export.h"

#define STOP_LIMIT 100000000ull		/* ns that clients' requests may take to end … */
#define STOP_PAUSE 50000000ull		/* … before it is tried again, after this */
#define STOP_TRIES 40
#define NODES_MAX 1000

static const struct qmp_arg item_reopen = {
	"null", QMP_OBJECT, .members = args_blockdev_add,
};

const struct qmp_arg args_blockdev_reopen[] = {
	{ "options", QMP_ARRAY, true, "as for blockdev-add; what is left out is the default again",
	  .item = &item_reopen },
	{ NULL },
};

struct item {
	struct node *node;		/* a reference */
	struct json_object *opts, *former;
	struct node *kids[CHILD_COUNT];	/* references: nothing of the former goes before the end */
	bool read_only;			/* what is asked for */
	bool was_active;
	struct error *err;
	int rc;
};

/* -- exports --------------------------------------------------------------------------- */

struct stopping {
	struct export *export;		/* a reference */
	const struct item *items;
	size_t n_items;
	bool stopped;
	int rc;
};

/* Whether a node is below both: what is done to one reaches what is below it. */
static bool have_common(const struct node *root, const struct node *n)
{
	if (root->loop != n->loop)
		return false;
	if (node_is_below(root, n))
		return true;
	for (unsigned c = 0; c < CHILD_COUNT; c++) {
		if (n->child[c] && have_common(root, n->child[c]))
			return true;
	}
	return false;
}

static void stop_on_loop(void *arg)
{
	struct stopping *s = arg;
	bool concerned = false;

	for (size_t i = 0; i < s->n_items && s->export->node; i++)
		concerned = concerned || have_common(s->export->node, s->items[i].node);
	s->rc = concerned ? export_stop(s->export, STOP_LIMIT) : 0;
	s->stopped = concerned && !s->rc;
}

static void resume_on_loop(void *arg)
{
	struct stopping *s = arg;

	export_resume(s->export);
}

static void resume_all(struct stopping *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (v[i].stopped)
			loop_call(v[i].export->loop, resume_on_loop, &v[i]);
		v[i].stopped = false;
	}
}

static int stop_all(struct stopping *v, size_t n, struct error *err)
{
	for (unsigned try = 0; try < STOP_TRIES; try++) {
		size_t i = 0;

		if (try)
			io_sleep(loop_io(loop_self()), STOP_PAUSE);
		for (; i < n; i++) {
			loop_call(v[i].export->loop, stop_on_loop, &v[i]);
			if (v[i].rc)
				break;
		}
		if (i == n)
			return 0;
		resume_all(v, i);
	}
	return error_set(err, -ETIMEDOUT, "A disk was busy all the time; nothing was changed");
}

static struct stopping *all_exports(const struct item *items, size_t n_items, size_t *n)
{
	struct stopping *v;
	size_t count = 0;

	for (struct export *e = export_list(); e; e = e->next)
		count++;
	v = calloc(count + 1, sizeof(*v));
	*n = 0;
	for (struct export *e = export_list(); v && e; e = e->next) {
		if (!e->refs)
			continue;
		export_ref(e);
		v[(*n)++] = (struct stopping){ e, items, n_items };
	}
	return v;
}

/* -- nodes ------------------------------------------------------------------------------- */

static void reopen_on_loop(void *arg)
{
	struct item *i = arg;

	i->former = node_present_options(i->node);
	for (unsigned c = 0; c < CHILD_COUNT; c++)
		i->kids[c] = i->node->child[c] ? node_ref(i->node->child[c]) : NULL;
	i->rc = node_reopen(i->node, i->opts, i->err);
}

static void restore_on_loop(void *arg)
{
	struct item *i = arg;
	struct error err = ERROR_INIT;

	if (node_reopen(i->node, i->former, &err))
		error_prefix(i->err, "Node '%s' could not be given its former options (%s), after: ",
			     i->node->name, err.text);
}

static int reopen_all(struct item *v, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		v[i].err = err;
		v[i].rc = command_move_children(v[i].opts, v[i].node->loop, err);
		if (!v[i].rc)
			loop_call(v[i].node->loop, reopen_on_loop, &v[i]);
		if (!v[i].rc)
			continue;
		for (size_t k = i; k-- > 0;)
			loop_call(v[k].node->loop, restore_on_loop, &v[k]);
		return v[i].rc;
	}
	return 0;
}

/* Whether A has to come before B. */
static bool goes_before(const struct item *a, const struct item *b)
{
	if (a->node == b->node)
		return false;
	if (a->read_only && b->read_only)
		return node_is_below(a->node, b->node);
	return !a->read_only && node_is_below(b->node, a->node);
}

static void put_in_order(struct item *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		for (size_t k = i + 1; k < n; k++) {
			struct item first = v[i];

			if (!goes_before(&v[k], &v[i]))
				continue;
			v[i] = v[k];
			v[k] = first;
			k = i;		/* what is first now, against all others */
		}
	}
}

static int find_nodes(struct item *v, struct json_object *list, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		struct json_object *o = json_object_array_get_idx(list, i);
		const char *name = qmp_str(o, "node-name");

		if (!name)
			return error_set(err, -EINVAL, "node-name not specified");
		v[i].node = command_node_find(name);
		if (!v[i].node)
			return error_set(err, -ENOENT, "Failed to find node with node-name='%s'", name);
		v[i].read_only = qmp_bool(o, "read-only", false);
		v[i].opts = opts_copy(o);
		if (!v[i].opts)
			return error_set(err, -ENOMEM, "Out of memory");
		for (size_t k = 0; k < i; k++) {
			if (v[k].node == v[i].node)
				return error_set(err, -EINVAL, "Node '%s' is named twice", name);
		}
	}
	return 0;
}

static int run(struct item *v, size_t n,
	       int (*change)(struct item *v, size_t n, struct error *err), struct error *err)
{
	size_t n_exports;
	struct stopping *exports = all_exports(v, n, &n_exports);
	int rc = exports ? stop_all(exports, n_exports, err)
			 : error_set(err, -ENOMEM, "Out of memory");

	if (!rc) {
		rc = change(v, n, err);
		resume_all(exports, n_exports);
	}
	for (size_t i = 0; exports && i < n_exports; i++)
		export_unref(exports[i].export);
	free(exports);
	return rc;
}

COMMAND(command_blockdev_reopen)
{
	struct json_object *list = json_object_object_get(args, "options");
	size_t n = json_object_array_length(list);
	struct item *v;
	int rc;

	if (n > NODES_MAX)
		return error_set(err, -E2BIG, "More than %d nodes at a time", NODES_MAX);
	v = calloc(n + 1, sizeof(*v));
	rc = v ? find_nodes(v, list, n, err) : error_set(err, -ENOMEM, "Out of memory");
	if (!rc) {
		put_in_order(v, n);
		rc = run(v, n, reopen_all, err);
	}
	for (size_t i = 0; v && i < n; i++) {
		for (unsigned c = 0; c < CHILD_COUNT; c++)
			command_node_unref(v[i].kids[c]);
		command_node_unref(v[i].node);
		json_object_put(v[i].opts);
		json_object_put(v[i].former);
	}
	free(v);
	return rc;
}

/* -- blockdev-set-active ---------------------------------------------------------------- */

const struct qmp_arg args_set_active[] = {
	{ "node-name", QMP_STR, false, "the node, with what is below it; by default all" },
	{ "active", QMP_BOOL, true, "false: another process may write to it from now on" },
	{ NULL },
};

static void note_on_loop(void *arg)
{
	struct item *i = arg;

	i->was_active = !i->node->inactive;
}

static void activate_on_loop(void *arg)
{
	struct item *i = arg;

	i->rc = node_set_active(i->node, true, i->err);
}

/* Of all nodes, those go by themselves that no other needs. */
static void deactivate_on_loop(void *arg)
{
	struct item *i = arg;

	if (!i->opts && node_has_active_parent(i->node))
		return;
	i->rc = node_set_active(i->node, false, i->err);
}

/* What had gone before one refused; the error stays that one's. */
static void reactivate(struct item *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct error err = ERROR_INIT;

		v[i].err = &err;
		if (v[i].was_active)
			loop_call(v[i].node->loop, activate_on_loop, &v[i]);
		if (err.code)
			log_error("node stays inactive: node=%s error=%s", v[i].node->name, err.text);
	}
}

static int deactivate_all(struct item *v, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++)
		loop_call(v[i].node->loop, note_on_loop, &v[i]);
	for (size_t i = 0; i < n; i++) {
		int rc;

		v[i].err = err;
		loop_call(v[i].node->loop, deactivate_on_loop, &v[i]);
		rc = v[i].rc;
		if (rc) {
			reactivate(v, n);
			return rc;
		}
	}
	return 0;
}

/* Newer nodes first: what others need goes with the last of them. */
static void deactivate_again(struct item *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct error ignored = ERROR_INIT;

		v[i].err = &ignored;
		if (!v[i].was_active)
			loop_call(v[i].node->loop, deactivate_on_loop, &v[i]);
	}
}

static int activate_all(struct item *v, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++)
		loop_call(v[i].node->loop, note_on_loop, &v[i]);
	for (size_t i = 0; i < n; i++) {
		int rc;

		v[i].err = err;
		loop_call(v[i].node->loop, activate_on_loop, &v[i]);
		rc = v[i].rc;
		if (rc) {
			deactivate_again(v, n);
			return rc;
		}
	}
	return 0;
}

static int set_active(struct item *v, size_t n, bool active, struct error *err)
{
	int rc = run(v, n, active ? activate_all : deactivate_all, err);

	for (size_t i = 0; i < n; i++)
		command_node_unref(v[i].node);
	return rc;
}

int command_node_activate(const char *name, struct error *err)
{
	struct item i = { .node = command_node_find(name) };

	return i.node ? set_active(&i, 1, true, err) : -ENOENT;
}

COMMAND(command_set_active)
{
	const char *name = qmp_str(args, "node-name");
	bool active = qmp_bool(args, "active", true);
	struct item one = { .opts = args }, *v;
	struct node **nodes;
	unsigned n;
	int rc;

	if (name) {
		one.node = command_node_find(name);
		if (!one.node)
			return error_set(err, -ENOENT, "Failed to find node with node-name='%s'", name);
		return set_active(&one, 1, active, err);
	}
	nodes = command_all_nodes(&n);
	v = nodes ? calloc(n + 1, sizeof(*v)) : NULL;
	for (unsigned i = 0; v && i < n; i++)
		v[i].node = nodes[i];
	rc = v ? set_active(v, n, active, err) : error_set(err, -ENOMEM, "Out of memory");
	free(nodes);
	free(v);
	return rc;
}
