/* SPDX-License-Identifier: BSD-3-Clause */
/* monitor: QMP clients on sockets.  Main loop only, in coroutines.
 *
 * Unlike QEMU's, a monitor serves several clients at a time; each has its own
 * session and gets all events.
 */
#ifndef MERINO_MONITOR_H
#define MERINO_MONITOR_H

#include <stdbool.h>

#include "common/error.h"

struct json_object;
struct address;

/* --chardev: a socket that listens, or stdio, until a monitor takes it.  OPTS are strings
 * (keyval_parse_bare) and consumed in place. */
int chardev_add(struct json_object *opts, struct error *err);

/* Moves the listening sockets of the character device ID to *A, or a connected one
 * to *STREAM (else -1); -ENOENT "chardev "x" not found", -EBUSY when another
 * monitor has it. */
int chardev_take(const char *id, struct address *a, int *stream, struct error *err);

/* Closes the sockets that no monitor took. */
void chardev_close_all(void);

/* --monitor: serves QMP clients on a character device.  OPTS as above. */
int monitor_add(struct json_object *opts, struct error *err);

/* The start is over: clients that came before are served now.  Their commands find
 * everything in place, and the rights that the process keeps. */
void monitor_admit_all(void);

/* The process ends: accepts no client and no command any more, and waits until
 * the commands that run have ended.  Events still go out. */
void monitor_quiesce(void);

/* Sends what is queued, for a second at most, and disconnects all clients. */
void monitor_close_all(void);

#endif
