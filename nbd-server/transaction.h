/* SPDX-License-Identifier: BSD-3-Clause */
/* transaction: changes to bitmaps, several at one instant, all or nothing.
 *
 *	look up ─▶ close gates ─▶ apply each ─▶ commit each ─▶ open gates
 *	                              │ one fails
 *	                              └─▶ undo what was applied, the last one first
 *
 * Apply and undo run on the loop of the action's node while no request is inside
 * any disk above a bitmap concerned.  What cannot be undone waits for commit.
 */
#ifndef MERINO_TRANSACTION_H
#define MERINO_TRANSACTION_H

#include <stdbool.h>

#include "common/error.h"

struct action;
struct bitmap;
struct bitmap_backup;
struct json_object;
struct node;
struct qmp_arg;

struct verb {
	const char *name;		/* of the command and the action; NULL ends the table */
	const struct qmp_arg *args;
	int (*apply)(struct action *a, struct error *err);
	void (*undo)(struct action *a);			/* NULL: nothing to undo */
	int (*commit)(struct action *a, struct error *err);	/* NULL: nothing is left to do */
};

/* One action.  NODE and SOURCES carry references. */
struct action {
	const struct verb *verb;
	struct json_object *data;	/* checked; borrowed */
	struct node *node;		/* NULL: the verb concerns none */
	struct node **sources;		/* merge: the nodes of the sources, in their order */
	unsigned n_sources;
	struct bitmap *bitmap;		/* what apply changed */
	struct bitmap_backup *backup;	/* its bits before */
	bool was_enabled;
	bool applied, committed;
};

extern const struct verb verbs[];	/* verbs.c */
const struct verb *verb_find(const char *name);

/* Coroutine on the main loop.  Runs the N actions at V, of which verb and data
 * are set; forgets everything else that they hold. */
int transaction_run(struct action *v, unsigned n, struct error *err);

#endif
