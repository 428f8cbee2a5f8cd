/* SPDX-License-Identifier: BSD-3-Clause */
/* control-commands: what the VMM itself answers; the rest goes on to merinod.
 *
 * Names, members, events and error texts are QEMU's.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/qmp-message.h"
#include "vmm/control-int.h"

#define COMMAND(name) \
	static int name(struct control_client *c, struct json_object *args, \
			struct json_object **ret, struct error *err)

struct command {
	const char *name;		/* NULL ends the table */
	const char *argument;		/* the one that it takes; NULL: none */
	int (*run)(struct control_client *c, struct json_object *args, struct json_object **ret,
		   struct error *err);
};

static void add_str(struct json_object *o, const char *key, const char *v)
{
	json_object_object_add(o, key, json_object_new_string(v));
}

static void add_bool(struct json_object *o, const char *key, bool v)
{
	json_object_object_add(o, key, json_object_new_boolean(v));
}

static void add_int(struct json_object *o, const char *key, int64_t v)
{
	json_object_object_add(o, key, json_object_new_int64(v));
}

/* -- the machine's state ---------------------------------------------------- */

void control_event_cause(struct control *c, const char *name, bool guest, const char *reason)
{
	struct json_object *data = json_object_new_object();

	add_bool(data, "guest", guest);
	add_str(data, "reason", reason);
	control_event(c, name, data);
}

void control_pause(struct control *c, struct machine *m)
{
	if (m->state != RUN_RUNNING)
		return;
	machine_pause(m);
	control_event(c, "STOP", NULL);
}

void control_run(struct control *c, struct machine *m)
{
	if (m->state == RUN_RUNNING)
		return;
	machine_run(m);
	if (m->state == RUN_RUNNING)
		control_event(c, "RESUME", NULL);
}

COMMAND(command_stop)
{
	control_pause(c->control, c->control->config.machine);
	return 0;
}

COMMAND(command_cont)
{
	struct machine *m = c->control->config.machine;

	if (m->state == RUN_SHUTDOWN || m->state == RUN_INTERNAL_ERROR)
		return error_set(err, -EINVAL, "Resetting the Virtual Machine is required");
	control_run(c->control, m);
	return 0;
}

COMMAND(command_powerdown)
{
	control_event(c->control, "POWERDOWN", NULL);
	machine_powerdown(c->control->config.machine);
	return 0;
}

COMMAND(command_reset)
{
	struct machine *m = c->control->config.machine;

	if (m->config->no_reboot) {
		control_event_cause(c->control, "SHUTDOWN", false, "host-qmp-system-reset");
		c->control->config.quit();
		return 0;
	}
	machine_reset(m);
	control_event_cause(c->control, "RESET", false, "host-qmp-system-reset");
	return 0;
}

COMMAND(command_quit)
{
	control_event_cause(c->control, "SHUTDOWN", false, "host-qmp-quit");
	c->control->config.quit();
	return 0;
}

/* -- queries ---------------------------------------------------------------- */

COMMAND(command_query_version)
{
	*ret = qmp_version();
	return 0;
}

COMMAND(command_query_status)
{
	struct machine *m = c->control->config.machine;

	*ret = json_object_new_object();
	add_str(*ret, "status", run_state_name(m->state));
	add_bool(*ret, "singlestep", false);
	add_bool(*ret, "running", m->state == RUN_RUNNING);
	return 0;
}

COMMAND(command_query_name)
{
	struct machine *m = c->control->config.machine;

	*ret = json_object_new_object();
	if (m->config->name)
		add_str(*ret, "name", m->config->name);
	return 0;
}

COMMAND(command_query_cpus_fast)
{
	const struct control_config *config = &c->control->config;

	*ret = json_object_new_array();
	for (unsigned i = 0; i < config->machine->config->vcpus; i++) {
		struct json_object *o = json_object_new_object();
		struct json_object *props = json_object_new_object();
		char path[64];

		snprintf(path, sizeof(path), "/machine/unattached/device[%u]", i);
		add_int(props, "socket-id", 0);
		add_int(props, "core-id", i);
		add_int(props, "thread-id", 0);
		add_int(o, "cpu-index", i);
		add_str(o, "qom-path", path);
		add_int(o, "thread-id", config->thread_id(i));
		json_object_object_add(o, "props", props);
		add_str(o, "target", "x86_64");
		json_object_array_add(*ret, o);
	}
	return 0;
}

/* -- with merinod ----------------------------------------------------------- */

static const char *string_at(struct json_object *o, const char *key)
{
	struct json_object *v;

	if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, key, &v) ||
	    !json_object_is_type(v, json_type_string))
		return "";
	return json_object_get_string(v);
}

/* What merinod's query-block says of the disk: its device, or its node, has the same name. */
static struct json_object *inserted(struct json_object *devices, const struct control_disk *d,
				    const char *qdev)
{
	size_t n = json_object_is_type(devices, json_type_array) ? json_object_array_length(devices) : 0;

	for (size_t i = 0; i < n; i++) {
		struct json_object *o = json_object_array_get_idx(devices, i), *in;

		if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, "inserted", &in))
			continue;
		if (!strcmp(string_at(o, "qdev"), qdev) || !strcmp(string_at(in, "node-name"), d->node))
			return json_object_get(in);
	}
	return NULL;
}

COMMAND(command_query_block)
{
	const struct control_config *config = &c->control->config;
	struct json_object *devices = NULL;
	int rc = c->forward ? forward_run(c->forward, "query-block", NULL, &devices, err) : 0;

	if (rc)
		return rc;
	*ret = json_object_new_array();
	for (unsigned i = 0; i < config->n_disks; i++) {
		const struct control_disk *d = &config->disks[i];
		struct json_object *o = json_object_new_object(), *in;
		char qdev[320];

		snprintf(qdev, sizeof(qdev), "/machine/peripheral/%s/virtio-backend", d->id);
		add_str(o, "device", "");
		add_str(o, "qdev", qdev);
		add_str(o, "type", "unknown");
		add_bool(o, "removable", false);
		add_bool(o, "locked", false);
		in = inserted(devices, d, qdev);
		if (in)
			json_object_object_add(o, "inserted", in);
		json_object_array_add(*ret, o);
	}
	json_object_put(devices);
	return 0;
}

static const struct command *command_find(const char *name);
static const struct command commands[];

COMMAND(command_query_commands)
{
	struct json_object *theirs = NULL;
	int rc = c->forward ? forward_run(c->forward, "query-commands", NULL, &theirs, err) : 0;
	size_t n = json_object_is_type(theirs, json_type_array) ? json_object_array_length(theirs) : 0;

	if (rc)
		return rc;
	*ret = json_object_new_array();
	for (const struct command *k = commands; k->name; k++) {
		struct json_object *o = json_object_new_object();

		add_str(o, "name", k->name);
		json_object_array_add(*ret, o);
	}
	for (size_t i = 0; i < n; i++) {
		struct json_object *o = json_object_array_get_idx(theirs, i);

		if (!command_find(string_at(o, "name")))
			json_object_array_add(*ret, json_object_get(o));
	}
	json_object_put(theirs);
	return 0;
}

static void pass_on(void *arg, const char *name, struct json_object *event)
{
	if (!control_owns_event(name))
		qmp_send(&((struct control_client *)arg)->out, event);
}

COMMAND(command_capabilities)
{
	struct json_object *enable = NULL;

	if (c->negotiated)
		return error_set_class(err, ERROR_COMMAND_NOT_FOUND, -EINVAL,
				       "Capabilities negotiation is already complete, command ignored");
	if (args && json_object_object_get_ex(args, "enable", &enable)) {
		if (!json_object_is_type(enable, json_type_array))
			return error_set(err, -EINVAL,
					 "Invalid parameter type for 'enable', expected: array");
		if (json_object_array_length(enable))
			return error_set(err, -ENOTSUP, "Capability %s not available",
					 json_object_get_string(json_object_array_get_idx(enable, 0)));
	}
	if (c->control->config.merinod) {
		c->forward = forward_start(c->control->config.merinod, pass_on, c);
		if (!c->forward)
			return error_set(err, -ENOMEM, "Out of memory");
	}
	c->negotiated = true;
	return 0;
}

/* -- the table -------------------------------------------------------------- */

static const struct command commands[] = {
	{ "qmp_capabilities", "enable", command_capabilities },
	{ "query-version", NULL, command_query_version },
	{ "query-commands", NULL, command_query_commands },
	{ "query-status", NULL, command_query_status },
	{ "query-name", NULL, command_query_name },
	{ "query-cpus-fast", NULL, command_query_cpus_fast },
	{ "query-block", NULL, command_query_block },
	{ "stop", NULL, command_stop },
	{ "cont", NULL, command_cont },
	{ "system_powerdown", NULL, command_powerdown },
	{ "system_reset", NULL, command_reset },
	{ "quit", NULL, command_quit },
	{ NULL }
};

static const struct command *command_find(const char *name)
{
	for (const struct command *k = commands; k->name; k++) {
		if (!strcmp(k->name, name))
			return k;
	}
	return NULL;
}

/* merinod's are about guests of its own: all who write to its exports. */
bool control_owns_event(const char *name)
{
	static const char *const ours[] = { "STOP", "RESUME", "SHUTDOWN", "RESET", "POWERDOWN" };

	for (unsigned i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
		if (!strcmp(ours[i], name))
			return true;
	}
	return false;
}

static int check_arguments(const struct command *k, struct json_object *args, struct error *err)
{
	if (!args)
		return 0;
	json_object_object_foreach(args, key, value) {
		(void)value;
		if (!k->argument || strcmp(key, k->argument))
			return error_set(err, -EINVAL, "Parameter '%s' is unexpected", key);
	}
	return 0;
}

static int run(struct control_client *c, struct json_object *request, struct json_object **ret,
	       struct error *err)
{
	struct json_object *args = json_object_object_get(request, "arguments");
	const char *name = string_at(request, "execute");
	const struct command *k = command_find(name);
	int rc;

	if (!c->negotiated && strcmp(name, "qmp_capabilities"))
		return error_set_class(err, ERROR_COMMAND_NOT_FOUND, -EINVAL,
			"Expecting capabilities negotiation with 'qmp_capabilities'");
	if (!k && !c->forward)
		return error_set_class(err, ERROR_COMMAND_NOT_FOUND, -ENOENT,
				       "The command %s has not been found", name);
	if (!k)
		return forward_run(c->forward, name, args, ret, err);
	rc = check_arguments(k, args, err);
	return rc ? rc : k->run(c, args, ret, err);
}

struct json_object *control_answer(struct control_client *c, struct json_object *request,
				   const struct error *bad)
{
	struct error err = bad ? *bad : ERROR_INIT;
	struct json_object *ret = NULL;
	int rc = bad ? -EINVAL : qmp_request_check(request, &err);

	if (!rc)
		rc = run(c, request, &ret, &err);
	return qmp_answer(request, rc, ret, &err);
}
