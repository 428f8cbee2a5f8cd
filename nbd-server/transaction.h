/* SPDX-License-Identifier: BSD-3-Clause */
/* transaction: several changes at one instant, all or nothing: to bitmaps, views, jobs.
 *
 *	prepare each ─▶ close gates ─▶ apply each ─▶ commit each ─▶ open gates ─▶ clean each
 *	     │ one fails                   │ one fails                               ▲
 *	     │                             └─▶ undo what was applied, last first ────┤
 *	     └───────────────────────────────────────────────────────────────────────┘
 *
 * Prepare and clean run on the main loop, and guests go on: there is time to look up,
 * to open, to allocate and to check; and to start jobs.  Apply, undo and commit run on
 * the loop of the action's node while no request is inside any disk above a node
 * concerned, and guests wait: they should be short.  What cannot be undone waits for
 * commit.
 *
 * QMP's commands are in verbs.c.  C callers bring actions of their own: a static struct
 * verb without args, and struct action with ->verb and what they want in ->own.
 */
#ifndef MERINO_TRANSACTION_H
#define MERINO_TRANSACTION_H

#include <stdbool.h>

#include "common/error.h"

struct action;
struct bitmap;
struct bitmap_backup;
struct job_group;
struct json_object;
struct node;
struct qmp_arg;

struct verb {
	const char *name;		/* of the command and the action; NULL ends the table */
	const struct qmp_arg *args;
	/* Finds ->node and ->others (action_node(), action_other()); NULL: nothing to do. */
	int (*prepare)(struct action *a, struct error *err);
	int (*apply)(struct action *a, struct error *err);	/* NULL: nothing to do */
	void (*undo)(struct action *a);			/* NULL: nothing to undo */
	/* What of commit waits for storage, once all are applied.  A transaction of nothing but
	 * such actions does it, and applies them, while guests go on; NULL: there is none. */
	int (*ahead)(struct action *a, struct error *err);
	int (*commit)(struct action *a, struct error *err);	/* NULL: nothing is left to do */
	/* Whenever prepare was called, also when it failed.  DONE: all went well.  The
	 * action's nodes go after it. */
	void (*clean)(struct action *a, bool done);
	bool starts_job;		/* may be part of a group: completion-mode */
	bool changes_nothing;		/* abort */
};

/* One action.  NODE and OTHERS carry references. */
struct action {
	const struct verb *verb;
	struct json_object *data;	/* checked; borrowed; NULL for C callers */
	struct node *node;		/* NULL: the verb concerns none */
	struct node **others;		/* further nodes that it concerns (merge: the sources) */
	unsigned n_others;
	struct job_group *group;	/* of the transaction's jobs; NULL: each for itself */
	void *own;			/* the verb's; freed by its clean */
	/* The bitmap verbs': */
	struct bitmap *bitmap;		/* what apply changed */
	struct bitmap_backup *backup;	/* its bits before */
	bool was_enabled;
	bool expects;			/* an area was reserved for it */
	bool first;			/* nothing in the transaction comes before it */
	/* transaction.c's: */
	bool prepared, applied, committed;
};

extern const struct verb verbs[];	/* verbs.c */
const struct verb *verb_find(const char *name);

/* For prepare.  The node NAME ("Node 'x' not found") becomes the action's, or a further
 * one that it concerns; action_other() takes the caller's reference in any case. */
int action_node(struct action *a, const char *name, struct error *err);
int action_other(struct action *a, struct node *n, struct error *err);

/* Coroutine on the main loop, under the QMP lock (qmp-dispatch.c).  Runs the N actions at
 * V, of which verb and what the verb wants are set; forgets everything else that they
 * hold.  On failure nothing has changed. */
int transaction_run(struct action *v, unsigned n, struct error *err);

/* FN on N's loop while no request is inside N or any node above it.  As above. */
int gated_call(struct node *n, int (*fn)(struct node *n, void *arg, struct error *err), void *arg,
	       struct error *err);

#endif
