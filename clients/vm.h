/* SPDX-License-Identifier: BSD-3-Clause */
/* vm: what the verbs about virtual machines share: the run directory.
 *
 *	BASE/NAME/	0700, one machine; made by merino run, removed by it
 *		lock		locked while the machine runs
 *		qmp		the machine's control socket
 *		serial		its console, when it was started with --detach
 *		agent		its guest agent
 *		merinod.qmp, nbd, merinod.pid	of the merinod that was started for it
 *		frozen		while its guest is frozen: freeze.c
 *		log		what the programs said, with --detach
 */
#ifndef MERINO_VM_H
#define MERINO_VM_H

#include <limits.h>
#include <stdbool.h>

#include "clients/cli.h"
#include "common/error.h"

#define VM_PATH_MAX 92			/* of a run directory: a socket's path is at most 107 bytes */

struct vm {
	char name[65];
	char dir[VM_PATH_MAX];		/* BASE/NAME */
	int lock;			/* -1: not ours */
};

/* Rows for a verb's table of options. */
enum { VM_RUN_DIR = CLI_LONG + 96, VM_TIMEOUT };
#define VM_ROWS_LAST \
	{ VM_RUN_DIR, "run-dir", "DIR", "where run directories lie (default: see merino-run(1))" }, \
	{ 'h', "help", NULL, "print this text and exit" }, \
	{ 'V', "version", NULL, "print the version and exit" }, \
	{ 0 }

/* BASE: NULL for the default.  The base: "$XDG_RUNTIME_DIR/merino", for root /run/merino. */
int vm_base(const char *base, char out[VM_PATH_MAX], struct error *err);
/* Fills *VM; nothing needs to be there. */
int vm_find(struct vm *vm, const char *base, const char *name, struct error *err);

/* Makes the directory and takes its lock; -EBUSY when the machine runs.  What one that was
 * killed has left is removed. */
int vm_take(struct vm *vm, struct error *err);
void vm_give_up(struct vm *vm);		/* removes all */
/* Whether somebody holds the lock. */
bool vm_runs(const struct vm *vm);
bool vm_is_leaving(const struct vm *vm);	/* it does not run, and its directory is there for a moment */

/* "DIR/NAME" */
void vm_file(const struct vm *vm, const char *name, char out[PATH_MAX]);

int run_main(int argc, char **argv);
int stop_main(int argc, char **argv);
int status_main(int argc, char **argv);
int console_main(int argc, char **argv);
int freeze_main(int argc, char **argv);
int thaw_main(int argc, char **argv);

#endif
