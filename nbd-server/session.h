/* SPDX-License-Identifier: BSD-3-Clause */
/* session: what QMP says to one client, apart from moving bytes. */
#ifndef MERINO_SESSION_H
#define MERINO_SESSION_H

#include <stdbool.h>

#include "nbd-server/qmp.h"

struct session {
	bool negotiated;		/* qmp_capabilities has succeeded */
	struct qmp_fds received;
};

/* Coroutine.  Checks and runs one request (NULL is JSON's null); the caller owns
 * the answer.  BAD, if not NULL, says why the request could not be read. */
struct json_object *session_answer(struct session *s, struct json_object *request,
				   const struct error *bad);

#endif
