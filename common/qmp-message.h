/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-message: the envelope of QMP requests, answers and events (QEMU's qmp-spec).
 *
 *	{"execute": NAME, "arguments": {…}, "id": ANY}
 *	{"return": …, "id": ANY}  or  {"error": {"class": …, "desc": …}, "id": ANY}
 *	{"timestamp": {…}, "event": NAME, "data": {…}}
 */
#ifndef MERINO_QMP_MESSAGE_H
#define MERINO_QMP_MESSAGE_H

#include <json-c/json.h>

#include "common/error.h"

/* The version that query-version and the greeting tell: of QEMU, whose commands we have. */
struct json_object *qmp_version(void);

/* The first message to a client.  No capability is offered: out-of-band execution would
 * have nothing to overtake. */
struct json_object *qmp_greeting(void);

/* Finds fault with a request (NULL is JSON's null) in the order in which QEMU does. */
int qmp_request_check(struct json_object *request, struct error *err);

/* The answer to REQUEST: RET (taken over; NULL: {}) or, when RC is not 0, ERR. */
struct json_object *qmp_answer(struct json_object *request, int rc, struct json_object *ret,
			       const struct error *err);

/* DATA (NULL: none) is taken over. */
struct json_object *qmp_event_new(const char *name, struct json_object *data);

#endif
