/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-client: one connection to a daemon's control socket; one command at a time.
 *
 * Events are passed over.  A wait ends when a signal comes that pull_signals_hold()
 * holds, unless the caller says that the command has to come to its end.
 */
#ifndef MERINO_QMP_CLIENT_H
#define MERINO_QMP_CLIENT_H

#include <stdbool.h>
#include <json-c/json.h>

#include "common/error.h"

struct qmp;

/* Connects to the socket at PATH and negotiates.  TRIES_MS: how long a socket that is not
 * there yet, or does not listen, is waited for. */
int qmp_connect(const char *path, int tries_ms, struct qmp **out, struct error *err);
void qmp_close(struct qmp *q);			/* NULL is fine */

/* "merino-0.1.0": the greeting's package, or QEMU's version. */
const char *qmp_package(const struct qmp *q);

enum qmp_how { QMP_MAY_STOP, QMP_MUST_END };

/* Runs COMMAND with ARGS (taken over; NULL: none).  *RET, if RET is not NULL, is the caller's.
 * The daemon's error: -EREMOTEIO with its text; -ENOSYS, where it has no such command.  Anything
 * else means that the connection is of no use any more. */
int qmp_call(struct qmp *q, const char *command, struct json_object *args,
	     struct json_object **ret, enum qmp_how how, struct error *err);

#endif
