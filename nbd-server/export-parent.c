/* SPDX-License-Identifier: BSD-3-Clause */
/* export-parent: an export's clients stopped, and its node replaced by another.
 *
 *	stop: new requests wait outside ─▶ the gate closes: those begun have ended
 *	set_node: use the new node ─▶ connections follow ─▶ let go of the old one
 *	resume
 *
 * Requests wait on the export and not at the gate, because the gate is the node's,
 * and the node may have gone when they wake.  All on the export's loop.
 */
#include <errno.h>

#include "format/gate.h"
#include "nbd-server/conn.h"
#include "nbd-server/export.h"

int export_stop(struct export *e, uint64_t limit_ns)
{
	int rc;

	e->stopped++;
	rc = node_gate_close(e->node, limit_ns);
	if (rc)
		export_resume(e);
	else
		gate_open(&e->node->gate);	/* others may use the node meanwhile */
	return rc;
}

void export_resume(struct export *e)
{
	if (--e->stopped == 0)
		co_queue_wake_all(&e->resume);
}

/* A filter that lets nobody write beside it is put above the node that we write to, or
 * taken away: the old use steps aside while the new one is checked.  The storage keeps its
 * locks meanwhile, and then gets those that are right. */
static int use_in_place_of(struct node_use *old, struct node_use *next, struct node *n, struct error *err)
{
	struct node *before = old->node;
	unsigned perm = old->perm, shared = old->shared;
	int rc;

	node_freeze(before, true);
	node_freeze(n, true);
	old->aside = true;
	old->perm = 0;
	old->shared = PERM_ALL;
	node_use_refresh(before, NULL);		/* asks for less */
	rc = node_use_add(next, n, perm, shared, err, "%s", old->what);
	node_freeze(before, false);
	node_freeze(n, false);
	if (!rc)
		rc = node_use_refresh(n, err);	/* the locks */
	if (!rc) {
		node_use_drop(old);
		return 0;
	}
	node_use_drop(next);
	old->aside = false;
	old->perm = perm;
	old->shared = shared;
	node_use_refresh(before, NULL);
	return rc;
}

int export_set_node(struct export *e, struct node **n, struct error *err)
{
	struct node_use *next = e->use == &e->uses[0] ? &e->uses[1] : &e->uses[0];
	struct node *old = e->node;
	int rc;

	if ((*n)->loop != e->loop)
		return error_set(err, -EXDEV, "Node '%s' is on another thread than export '%s'",
				 (*n)->name, e->id);
	if ((*n)->size != e->size)
		return error_set(err, -EINVAL, "Node '%s' has another size than export '%s'",
				 (*n)->name, e->id);
	*next = (struct node_use){ .allow_inactive = e->use->allow_inactive };
	rc = use_in_place_of(e->use, next, *n, err);
	if (rc)
		return rc;
	if (e->hurried) {
		node_hurry(*n, true);
		node_hurry(old, false);
	}
	e->use = next;
	e->node = *n;
	for (struct conn *c = e->conns; c; c = c->next)
		c->node = *n;
	*n = old;
	return 0;
}
