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

#include "common/error.h"

struct json_object;

enum qmp_type { QMP_STR, QMP_BOOL, QMP_INT, QMP_OBJECT, QMP_ARRAY, QMP_ANY };

struct qmp_arg {
	const char *name;		/* NULL ends the list */
	enum qmp_type type;
	bool required;
	const char *help;
};

struct qmp_command {
	const char *name;		/* NULL ends the table */
	const struct qmp_arg *args;	/* NULL: none */
	bool open_args;			/* further members are the handler's to check (blockdev-add) */
	bool any_mode;			/* allowed before qmp_capabilities */
	/* In a coroutine on the main loop.  ARGS is a private copy that has passed
	 * the checks; *RET (NULL: {}) becomes the "return" member.  0 or -errno. */
	int (*run)(struct json_object *args, struct json_object **ret, struct error *err);
	const char *help;		/* one line */
	const char *since;
};

extern const struct qmp_command qmp_commands[];

const struct qmp_command *qmp_command_find(const char *name);

/* Checks ARGS (NULL: none) against the table and runs the command. */
int qmp_run(const char *name, struct json_object *args, struct json_object **ret,
	    struct error *err);

#endif
