/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-message: see qmp-message.h. */
#include "common/qmp-message.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define QEMU_MAJOR 7			/* whose interface this is: what clients look at */
#define QEMU_MINOR 2

struct json_object *qmp_version(void)
{
	struct json_object *version = json_object_new_object();
	struct json_object *qemu = json_object_new_object();

	json_object_object_add(qemu, "major", json_object_new_int(QEMU_MAJOR));
	json_object_object_add(qemu, "minor", json_object_new_int(QEMU_MINOR));
	json_object_object_add(qemu, "micro", json_object_new_int(0));
	json_object_object_add(version, "qemu", qemu);
	json_object_object_add(version, "package",
			       json_object_new_string("merino-" MERINO_VERSION));
	return version;
}

struct json_object *qmp_greeting(void)
{
	struct json_object *o = json_object_new_object(), *qmp = json_object_new_object();

	json_object_object_add(qmp, "version", qmp_version());
	json_object_object_add(qmp, "capabilities", json_object_new_array());
	json_object_object_add(o, "QMP", qmp);
	return o;
}

int qmp_request_check(struct json_object *request, struct error *err)
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

static struct json_object *error_json(const struct error *err)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "class", json_object_new_string(error_class_name(err->class)));
	json_object_object_add(o, "desc", json_object_new_string(err->text));
	return o;
}

struct json_object *qmp_answer(struct json_object *request, int rc, struct json_object *ret,
			       const struct error *err)
{
	struct json_object *answer = json_object_new_object(), *id;

	if (rc) {
		json_object_object_add(answer, "error", error_json(err));
		json_object_put(ret);
	} else {
		json_object_object_add(answer, "return", ret ? ret : json_object_new_object());
	}
	if (json_object_is_type(request, json_type_object) &&
	    json_object_object_get_ex(request, "id", &id))
		json_object_object_add(answer, "id", json_object_get(id));
	return answer;
}

struct json_object *qmp_event_new(const char *name, struct json_object *data)
{
	struct json_object *o = json_object_new_object(), *t = json_object_new_object();
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	json_object_object_add(t, "seconds", json_object_new_int64(now.tv_sec));
	json_object_object_add(t, "microseconds", json_object_new_int64(now.tv_nsec / 1000));
	json_object_object_add(o, "timestamp", t);
	json_object_object_add(o, "event", json_object_new_string(name));
	if (data)
		json_object_object_add(o, "data", data);
	return o;
}
