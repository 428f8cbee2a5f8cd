/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp: the control socket's commands.  Main loop only.
 *
 * One table (commands.c): query-commands, argument checks, the schema and the
 * man page's list all come from it.  The command line's --blockdev, --export …
 * run the same commands.
 */
#ifndef MERINO_QMP_H
#define MERINO_QMP_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct json_object;

enum qmp_type {
	QMP_STR,
	QMP_BOOL,
	QMP_INT,			/* QAPI's int: may be negative */
	QMP_UINT,			/* QAPI's unsigned kinds */
	QMP_OBJECT,
	QMP_ARRAY,
	QMP_STR_OR_OBJECT,		/* QAPI's alternates; ->alternate names the type */
	QMP_STR_OBJECT_NULL,
	QMP_NUMBER,			/* integer or fraction; only returned */
	QMP_ANY,
};

/* What further members an object has when its tag says VALUE (QAPI's unions). */
struct qmp_case {
	const char *value;		/* NULL ends the list */
	const struct qmp_arg *members;
};

struct qmp_arg {
	const char *name;		/* NULL ends the list */
	enum qmp_type type;
	bool required;
	const char *help;
	const char *const *values;	/* QMP_STR: what it may be, NULL-terminated; NULL: any */
	const struct qmp_arg *members;	/* QMP_OBJECT; NULL: the handler's to check */
	const struct qmp_arg *item;	/* QMP_ARRAY: what each element is; NULL: anything */
	/* QMP_STR: this member is its object's tag.  A case's member takes the place of
	 * one that all cases have. */
	const struct qmp_case *(*cases)(void);
	const char *alternate;		/* QAPI's name of an alternate, for error texts */
	const char *only;		/* for this value of the tag, in the schema; a
					 * table whose rows say so has values for its tag */
	bool open;			/* further members are the handler's to check */
};

struct qmp_command {
	const char *name;		/* NULL ends the table */
	const struct qmp_arg *args;	/* NULL: none */
	bool open_args;			/* further members are the handler's to check (blockdev-add) */
	bool any_mode;			/* allowed before qmp_capabilities */
	bool unlocked;			/* never waits: need not wait for another client's command */
	/* In a coroutine on the main loop.  ARGS is a private copy that has passed
	 * the checks; *RET (NULL: {}) becomes the "return" member.  0 or -errno. */
	int (*run)(struct json_object *args, struct json_object **ret, struct error *err);
	const char *help;		/* one line */
	const char *since;
	const struct qmp_arg *ret;	/* what it returns; NULL: {} */
};

extern const struct qmp_command qmp_commands[];

/* events.c: what may come unasked. */
struct qmp_event_def {
	const char *name;		/* NULL ends the table */
	const struct qmp_arg *data;
};

extern const struct qmp_event_def qmp_events[];

/* The case of O's tag among ARGS; NULL: no tag, or none fits. */
const struct qmp_case *qmp_case_of(const struct qmp_arg *args, struct json_object *o);

/* qmp-schema.c: all of it as QEMU's SchemaInfo. */
struct json_object *qmp_schema(void);

const struct qmp_command *qmp_command_find(const char *name);

/* Checks ARGS (NULL: none) against the table and runs the command. */
int qmp_run(const char *name, struct json_object *args, struct json_object **ret,
	    struct error *err);

/* The same with the strings of a command line: "on" and digits become what the
 * table says they are. */
int qmp_run_keyval(const char *name, struct json_object *args, struct error *err);

/* TAKE (else give back) what keeps commands and jobs that take effect from each other.
 * Coroutine on the main loop; who has it may take it again. */
void qmp_lock_take(bool take);

/* Gives the strings in O, a command line's, the types that ARGS says. */
int qmp_keyval_types(const struct qmp_arg *args, struct json_object *o, struct error *err);

/* Checks O against ARGS; PATH ("" or "actions[0].data.") goes in front of names
 * in errors.  OPEN: further members are somebody else's. */
int qmp_check(const struct qmp_arg *args, struct json_object *o, bool open, const char *path,
	      struct error *err);

/* monitor.c: tells every client that has negotiated.  DATA (NULL: none) is consumed. */
void qmp_event(const char *name, struct json_object *data);

/* Descriptors that came with a client's bytes: the newest, until a command takes them. */
#define QMP_FDS_MAX 16
struct qmp_fds {
	unsigned n;
	int fds[QMP_FDS_MAX];
};

/* Those of the client whose command runs: for commands that are unlocked and never
 * wait.  NULL: no client. */
extern struct qmp_fds *qmp_received;

/* The rows of NAMES (NULL-terminated; NULL: none) in ROWS, in a list that the caller
 * keeps; what has no row may be anything.  NULL when out of memory. */
struct qmp_arg *qmp_rows(const struct qmp_arg *rows, const char *const *names);

/* A string member of checked arguments; NULL when absent.  Belongs to ARGS. */
const char *qmp_str(struct json_object *args, const char *name);
bool qmp_bool(struct json_object *args, const char *name, bool absent);
/* The place of a string member in NAMES, which ends with NULL and has it (checked). */
int qmp_choice(struct json_object *args, const char *name, const char *const *names, int absent);
/* A QMP_UINT; 0 when absent.  A negative number is what it is modulo 2^64, as in QEMU. */
uint64_t qmp_u64(struct json_object *args, const char *name);

#endif
