/* SPDX-License-Identifier: BSD-3-Clause */
/* own-daemon: a private merinod under a verb: it listens where only this user can enter, and
 * ends with us, whatever we die of. */
#ifndef MERINO_OWN_DAEMON_H
#define MERINO_OWN_DAEMON_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/error.h"

/* GIVEN, or the merinod beside this program, or the one in the PATH; malloc'd, NULL: no memory. */
char *own_daemon_program(const char *given);

/* Runs ARGV.  What it says goes to the file LOG, or (NULL) to our stderr. */
int own_daemon_start(char **argv, const char *log, pid_t *pid, struct error *err);

/* In a child, before exec(2): signals that we hold, catch or ignore are as they were; those
 * that came meanwhile are its own. */
void own_daemon_reset_signals(void);

/* True when it has ended; *PID is 0 then, and *STATUS as of waitpid(2). */
bool own_daemon_ended(pid_t *pid, int *status);

/* Ends it: SIGTERM, and after SECONDS SIGKILL.  *PID is 0; its status. */
int own_daemon_end(pid_t *pid, unsigned seconds);

#endif
