/* SPDX-License-Identifier: BSD-3-Clause */
/* session: the envelope of QMP requests and answers (QEMU's qmp-spec).
 *
 *	{"execute": NAME, "arguments": {…}, "id": ANY}
 *	{"return": …, "id": ANY}  or  {"error": {"class": …, "desc": …}, "id": ANY}
 *
 * No capability is offered; out-of-band execution would have nothing to overtake.
 */
#include "nbd-server/session.h"

#include <errno.h>
#include <string.h>

#include <json-c/json.h>

#include "nbd-server/commands.h"

struct json_object *session_greeting(void)
{
	struct json_object *o = json_object_new_object(), *qmp = json_object_new_object();

	json_object_object_add(qmp, "version", qmp_version());
	json_object_object_add(qmp, "capabilities", json_object_new_array());
	json_object_object_add(o, "QMP", qmp);
	return o;
}

static struct json_object *error_json(const struct error *err)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "class", json_object_new_string(error_class_name(err->class)));
	json_object_object_add(o, "desc", json_object_new_string(err->text));
	return o;
}

/* The request's members, in the order in which QEMU finds fault with them. */
static int envelope_check(struct json_object *request, struct error *err)
{
	if (!json_object_is_type(request, json_type_object))
		return error_set(err, -EINVAL, "QMP input must be a JSON object");
	json_object_object_foreach(request, key, value) {
		if (!strcmp(key, "execute")) {
			if (!json_object_is_type(value, json_type_string))
				return error_set(err, -EINVAL,
						 "QMP input member 'execute' must be a string");
		} else if (!strcmp(key, "arguments")) {
			if (!json_object_is_type(value, json_type_object))
				return error_set(err, -EINVAL,
						 "QMP input member 'arguments' must be an object");
		} else if (strcmp(key, "id")) {
			return error_set(err, -EINVAL, "QMP input member '%s' is unexpected", key);
		}
	}
	if (!json_object_object_get_ex(request, "execute", NULL))
		return error_set(err, -EINVAL, "QMP input lacks member 'execute'");
	return 0;
}

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
	struct json_object *answer = json_object_new_object(), *ret = NULL, *id;
	struct error err = bad ? *bad : ERROR_INIT;
	int rc = bad ? -EINVAL : envelope_check(request, &err);

	if (!rc)
		rc = session_run(s, request, &ret, &err);
	if (rc)
		json_object_object_add(answer, "error", error_json(&err));
	else
		json_object_object_add(answer, "return", ret ? ret : json_object_new_object());
	if (json_object_is_type(request, json_type_object) &&
	    json_object_object_get_ex(request, "id", &id))
		json_object_object_add(answer, "id", json_object_get(id));
	return answer;
}
