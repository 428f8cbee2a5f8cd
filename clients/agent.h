/* SPDX-License-Identifier: BSD-3-Clause */
/* agent: a conversation with a guest agent (qemu-ga), one command at a time.
 *
 * The guest is a stranger: it may answer nothing, or anything, as often as it likes.
 */
#ifndef MERINO_AGENT_H
#define MERINO_AGENT_H

#include <json-c/json.h>

#include "common/error.h"

struct agent;

/* Connects to the agent's socket, and waits until the agent answers to us alone.  What it
 * still had to say to others is passed over.  -ETIMEDOUT after SECONDS. */
int agent_open(const char *path, unsigned seconds, struct agent **out, struct error *err);
void agent_close(struct agent *a);	/* NULL is fine */

/* Runs COMMAND; *RET (the caller's, may be NULL'd JSON) is what it returned. */
int agent_call(struct agent *a, const char *command, unsigned seconds, struct json_object **ret,
	       struct error *err);

/* 0: nobody has frozen the guest, so it is ours to freeze, and to thaw.  -EBUSY: somebody has. */
int agent_check_thawed(struct agent *a, unsigned seconds, struct error *err);

#endif
