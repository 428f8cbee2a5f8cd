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
	rc = node_use_add(next, *n, e->use->perm, e->use->shared, err, "export '%s'", e->id);
	if (rc)
		return rc;
	node_use_drop(e->use);
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
