/* SPDX-License-Identifier: BSD-3-Clause */
/* Who uses a node, and how: QEMU's permissions.
 *
 * Every user says what it does with a node and what it lets others do.  What
 * all users of a node add up to is passed down to its children by the driver,
 * and at the bottom becomes the lock bytes that keep other processes out.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "format/node.h"

static const char *perm_name(unsigned perm)
{
	if (perm & PERM_CONSISTENT_READ)
		return "consistent read";
	if (perm & PERM_WRITE)
		return "write";
	if (perm & PERM_WRITE_UNCHANGED)
		return "write unchanged";
	return "resize";
}

static int conflict(struct error *err, const struct node *n, const struct node_use *with,
		    unsigned perms)
{
	unsigned first = perms & -perms;

	return error_set(err, -EPERM, "Conflicts with use by %s, which does not allow '%s' on %s",
			 with->what, perm_name(first), n->name);
}

static int use_check(struct node *n, const struct node_use *self, unsigned perm, unsigned shared,
		     struct error *err)
{
	if ((perm & (PERM_WRITE | PERM_RESIZE | PERM_WRITE_UNCHANGED)) && n->read_only &&
	    !(n->inactive && n->wants_write))
		return error_set(err, -EPERM, "Block node is read-only");
	for (struct node_use *o = n->uses; o; o = o->next) {
		if (o == self)
			continue;
		if (perm & ~o->shared)
			return conflict(err, n, o, perm & ~o->shared);
		if (o->perm & ~shared)
			return error_set(err, -EPERM,
					 "Conflicts with use by %s, which uses '%s' on %s", o->what,
					 perm_name((o->perm & ~shared) & -(o->perm & ~shared)),
					 n->name);
	}
	return 0;
}

static int perm_refresh(struct node *n, struct error *err);

static int perm_refresh_child(struct node *n, enum node_child c, unsigned perm, unsigned shared,
			      struct error *err)
{
	struct node_use *u = &n->child_use[c];
	struct node_use old = *u;
	unsigned cperm = perm, cshared = shared;
	int rc;

	if (!u->linked)
		return 0;
	n->driver->child_perm(n, c, perm, shared, &cperm, &cshared);
	if (n->inactive) {
		cperm = 0;
		cshared = PERM_ALL;
	}
	rc = use_check(u->node, u, cperm, cshared, err);
	if (rc)
		return rc;
	u->perm = cperm;
	u->shared = cshared;
	rc = perm_refresh(u->node, err);
	if (rc) {
		u->perm = old.perm;
		u->shared = old.shared;
		perm_refresh(u->node, NULL);
	}
	return rc;
}

/* Adds up N's users, and has the storage and the children follow. */
static int perm_refresh(struct node *n, struct error *err)
{
	unsigned perm = 0, shared = PERM_ALL;
	int rc = 0;

	for (struct node_use *o = n->uses; o; o = o->next) {
		perm |= o->perm;
		shared &= o->shared;
	}
	if (n->sidecar.held) {
		perm |= PERM_WRITE;
		shared &= ~(unsigned)(PERM_WRITE | PERM_RESIZE);
	}
	if (n->inactive) {
		perm = 0;
		shared = PERM_ALL;
	}
	if (n->driver->set_perm && !n->frozen)
		rc = n->driver->set_perm(n, perm, shared, err);
	for (unsigned c = 0; c < CHILD_COUNT && !rc; c++)
		rc = perm_refresh_child(n, c, perm, shared, err);
	if (!rc)
		n->may_grow = n->protocol && (perm & PERM_RESIZE);
	return rc;
}

int node_use_refresh(struct node *n, struct error *err)
{
	return perm_refresh(n, err);
}

int node_use_add(struct node_use *u, struct node *n, unsigned perm, unsigned shared,
		 struct error *err, const char *what_fmt, ...)
{
	va_list ap;
	int rc = use_check(n, NULL, perm, shared, err);

	if (rc)
		return rc;
	va_start(ap, what_fmt);
	vsnprintf(u->what, sizeof(u->what), what_fmt, ap);
	va_end(ap);
	u->node = n;
	u->perm = perm;
	u->shared = shared;
	u->next = n->uses;
	u->linked = true;
	n->uses = u;
	rc = perm_refresh(n, err);
	if (rc)
		node_use_drop(u);
	return rc;
}

void node_use_drop(struct node_use *u)
{
	if (!u->linked)
		return;
	for (struct node_use **p = &u->node->uses; *p; p = &(*p)->next) {
		if (*p == u) {
			*p = u->next;
			break;
		}
	}
	u->linked = false;
	perm_refresh(u->node, NULL);
}
