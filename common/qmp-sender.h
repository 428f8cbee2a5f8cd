/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-sender: what leaves for one QMP client.
 *
 * A coroutine sends what is queued.  Answers wait for a client that does not read, in the
 * one who gives them (qmp_sender_wait_room); events do not, and a client whose queue has
 * outgrown its bound is dropped.
 */
#ifndef MERINO_QMP_SENDER_H
#define MERINO_QMP_SENDER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/co.h"

struct json_object;

struct qmp_sender {
	int fd;				/* a socket, the caller's */
	bool pretty;			/* for people */
	char *queue;			/* bytes to send: queue[sent .. len) */
	size_t sent, len, size;
	bool closing;			/* nothing more will be queued */
	bool broken;			/* sending failed or was given up */
	bool ended;			/* the coroutine */
	struct co_queue bytes;		/* it waits for some; … */
	struct co_queue progress;	/* … others for room, or for its end */
};

/* Zeroes, but for fd and pretty, before. */
void qmp_sender_start(struct qmp_sender *s);
/* Queues O, which stays the caller's. */
void qmp_send(struct qmp_sender *s, struct json_object *o);
/* From a coroutine: waits until most of what was queued has been taken, or nobody will. */
void qmp_sender_wait_room(struct qmp_sender *s);
/* Gives up on the client: neither side says anything more. */
void qmp_sender_break(struct qmp_sender *s);
/* From a coroutine, before the socket is closed: waits until the last bytes were taken, or
 * nobody will. */
void qmp_sender_end(struct qmp_sender *s);

#endif
