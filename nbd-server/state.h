/* SPDX-License-Identifier: BSD-3-Clause */
/* state: --state DIR: objects, nodes, listeners and exports as they are now, kept
 * durably, so that a daemon that is started again serves them again.
 *
 * Two lists.  The graph: what is there, whoever made it; it is what the next start
 * makes.  The configuration: what options said when the graph was begun, by which
 * the next start tells an item that is unchanged (and does nothing: the graph has
 * it, or a command has removed it) from one that was changed (and is refused).
 *
 *	dispatch: state_prepare ─▶ the command ─▶ state_finish ─▶ reply
 *	           the new file is written         it is renamed, or removed
 *
 * state.c         the table of what is kept, and the two lists
 * state-file.c    DIR/lock and DIR/state
 * state-replay.c  the start
 *
 * Main loop only, in coroutines unless it says otherwise.
 */
#ifndef MERINO_STATE_H
#define MERINO_STATE_H

#include <stdbool.h>

#include <json-c/json.h>

#include "common/error.h"

struct cmdline;

enum state_kind { STATE_OBJECT, STATE_NODE, STATE_SERVER, STATE_EXPORT, STATE_KINDS };

struct state_options {
	const char *dir;		/* NULL: nothing is kept */
	bool reset;			/* forget what DIR has */
	bool skip;			/* start without what cannot be made again */
};

/* Before any thread and before the sandbox: makes DIR, takes its lock, reads it. */
int state_open(const struct state_options *o, struct error *err);
bool state_is_on(void);
/* Items are being made again: an export may do without its bitmaps. */
bool state_is_replaying(void);
/* Any time: frees what is in memory, and the lock. */
void state_close(void);

/* A command under way.  NEXT NULL: it changes nothing that is kept. */
struct state_change {
	struct json_object *next;	/* the graph afterwards */
	struct json_object *lost;	/* descriptions of nodes that it has not, or has otherwise; NULL: none */
	bool forgets_missing;		/* it removes what this start could not make */
	bool activates;			/* it may change which nodes are inactive */
};

/* Before COMMAND runs with ARGS: refuses what cannot be kept, and sees to it that
 * there is room for the new state. */
int state_prepare(const char *command, struct json_object *args, struct state_change *c,
		  struct error *err);
/* After it: RC is the command's result; returns what to tell the client. */
int state_finish(struct state_change *c, int rc, struct error *err);

/* state-replay.c.  Runs C's settings and makes the graph again; in place of plain
 * cmdline_run() when the state is on. */
int state_start(struct cmdline *c, struct error *err);
/* The start is over: writes the state for the first time. */
int state_started(struct error *err);

#endif
