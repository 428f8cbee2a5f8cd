/* SPDX-License-Identifier: BSD-3-Clause */
/* session: one request of a client, and when which command may run.  The messages' form
 * is common/qmp-message.h's.
 */
#include "nbd-server/session.h"

#include <errno.h>
#include <string.h>

#include <json-c/json.h>

#include "common/qmp-message.h"
#include "nbd-server/commands.h"

static int session_begin(struct session *s, struct json_object *args, struct error *err)
{
	const struct qmp_command *c = qmp_command_find("qmp_capabilities");
	struct json_object *none = json_object_new_object(), *enable;
	int rc = qmp_check(c->args, args ? args : none, false, "", err);

	json_object_put(none);
	if (rc)
		return rc;
	enable = json_object_object_get(args, "enable");
	if (enable && json_object_array_length(enable))
		return error_set(err, -ENOTSUP, "Capability %s not available",
				 json_object_get_string(json_object_array_get_idx(enable, 0)));
	s->negotiated = true;
	return 0;
}

static int session_run(struct session *s, struct json_object *request, struct json_object **ret,
		       struct error *err)
{
	struct json_object *args = json_object_object_get(request, "arguments");
	const char *name = qmp_str(request, "execute");

	if (s->negotiated) {
		int rc;

		qmp_received = &s->received;	/* until the command waits */
		rc = qmp_run(name, args, ret, err);
		qmp_received = NULL;
		return rc;
	}
	if (strcmp(name, "qmp_capabilities"))
		return error_set_class(err, ERROR_COMMAND_NOT_FOUND, -EINVAL,
			"Expecting capabilities negotiation with 'qmp_capabilities'");
	return session_begin(s, args, err);
}

struct json_object *session_answer(struct session *s, struct json_object *request,
				   const struct error *bad)
{
	struct error err = bad ? *bad : ERROR_INIT;
	struct json_object *ret = NULL;
	int rc = bad ? -EINVAL : qmp_request_check(request, &err);

	if (!rc)
		rc = session_run(s, request, &ret, &err);
	return qmp_answer(request, rc, ret, &err);
}
