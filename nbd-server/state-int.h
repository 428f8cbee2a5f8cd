/* SPDX-License-Identifier: BSD-3-Clause */
/* state-int: shared by the state*.c files. */
#ifndef MERINO_STATE_INT_H
#define MERINO_STATE_INT_H

#include "nbd-server/state.h"

/* Entries are {"kind":…,"key":…,"args":{…}}; with "missing":true for those that
 * this process went on without. */
struct state {
	struct state_options o;
	int dir_fd;			/* -1: off */
	int lock_fd;
	bool starting;			/* changes are kept in memory, and written once */
	bool replaying;
	struct json_object *graph, *config;
	struct json_object *outliving;	/* names: see state-inside.c; NULL: none yet */
};

extern struct state the_state;

const char *state_kind_name(enum state_kind kind);
/* The command that makes such things. */
const char *state_kind_command(enum state_kind kind);
/* The kind that COMMAND makes; STATE_KINDS: none. */
enum state_kind state_kind_of(const char *command);

/* What ARGS of a command that makes a KIND is known by; malloc'd, NULL: nothing. */
char *state_key(enum state_kind kind, struct json_object *args);
/* Its index in LIST, or -1. */
int state_find(struct json_object *list, enum state_kind kind, const char *key);
/* LIST with the entry added, or in the place of the one with the same key. */
int state_put(struct json_object *list, enum state_kind kind, const char *key,
	      struct json_object *args);
struct json_object *state_entry_args(struct json_object *entry);
const char *state_entry_key(struct json_object *entry);
bool state_entry_is(struct json_object *entry, enum state_kind kind);

/* Why ARGS cannot be kept: what they have inside; NULL: they can. */
const char *state_unkeepable(enum state_kind kind, struct json_object *args);

/* state-active.c: GRAPH has the nodes inactive that are so now.  0 or -ENOMEM. */
int state_follow_nodes(struct json_object *graph, bool *changed);

/* state-inside.c: nodes that are described inside of others. */
typedef void (*state_inside_fn)(struct json_object *holder, const char *key,
				struct json_object *description, void *arg);
void state_each_inside(struct json_object *args, state_inside_fn fn, void *arg);
/* What GRAPH says of a node, wherever; borrowed; NULL: nothing. */
struct json_object *state_description(struct json_object *graph, const char *name);
/* GRAPH, which says something of the node, says NOW.  0 or -ENOMEM. */
int state_describe(struct json_object *graph, const char *name, struct json_object *now);
/* blockdev-reopen's options O of a node that was described as BEFORE: children that are
 * described there take their descriptions along.  NULL: no memory. */
struct json_object *state_with_descriptions(struct json_object *o, struct json_object *before);
/* ARGS of a node inside of another, which do not inherit what N is, say it. */
struct node;
void state_say_inherited(struct json_object *args, const struct node *n);
/* Whether ARGS refer to a node by a name that the next process does not know. */
bool state_names_unnamed(struct json_object *args);
/* LOST: descriptions that GRAPH had.  What was inside of them and lives gets an entry. */
int state_keep_outliving(struct json_object *graph, struct json_object *lost, bool *changed);
/* … and loses it when it does not live any more. */
void state_forget_gone(struct json_object *graph, bool *changed);

/* state-file.c */
int state_file_open(struct state *s, struct error *err);
void state_file_close(struct state *s);
/* Coroutine.  GRAPH with the configuration, into a new file, on storage … */
int state_file_write(struct state *s, struct json_object *graph, struct error *err);
/* … which becomes the state, or goes. */
int state_file_commit(struct state *s, struct error *err);
void state_file_drop(struct state *s);

#endif
