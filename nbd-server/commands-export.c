/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-export: nbd-server-start and -stop, block-export-add and -del.
 *
 * nbd-server-start may be used several times, with different addresses: every
 * listener offers every export.  nbd-server-stop ends all of it, as in QEMU.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/options.h"
#include "format/node.h"
#include "nbd-server/export.h"
#include "nbd-server/iothread.h"
#include "nbd-server/listener.h"
#include "nbd-server/state.h"

#define DEFAULT_CONNECTIONS 100
#define DEFAULT_HANDSHAKE 10		/* seconds */

static const struct qmp_arg args_unix[] = {
	{ "path", QMP_STR, true, "of the socket" },
	{ "abstract", QMP_BOOL, false, "a name without a file" },
	{ "tight", QMP_BOOL, false, "of an abstract name: its length counts; default true" },
	{ NULL },
};

static const struct qmp_arg args_inet[] = {
	{ "host", QMP_STR, true, "name or address; empty: all addresses" },
	{ "port", QMP_STR, true, "number or service; 0: any that is free" },
	{ "numeric", QMP_BOOL, false, "host is not looked up" },
	{ "to", QMP_UINT, false, "last port to try" },
	{ "ipv4", QMP_BOOL, false, "whether to use IPv4" },
	{ "ipv6", QMP_BOOL, false, "whether to use IPv6" },
	{ "keep-alive", QMP_BOOL, false, "always on" },
	{ "mptcp", QMP_BOOL, false, "true is not supported" },
	{ NULL },
};

static const struct qmp_arg args_fd[] = {
	{ "str", QMP_STR, true, "a listening socket's descriptor, or its name in LISTEN_FDNAMES" },
	{ NULL },
};

static const struct qmp_arg args_vsock[] = {
	{ "cid", QMP_STR, true, "context id; 4294967295: any of ours" },
	{ "port", QMP_STR, true, "number" },
	{ NULL },
};

/* On the command line they stand beside the type … */
static const struct qmp_case *flat_address_cases(void)
{
	static const struct qmp_case cases[] = {
		{ "inet", args_inet }, { "unix", args_unix }, { "fd", args_fd },
		{ "vsock", args_vsock }, { NULL },
	};

	return cases;
}

const struct qmp_arg args_flat_address[] = {
	{ "type", QMP_STR, true, "inet, unix, fd or vsock", .cases = flat_address_cases },
	{ NULL },
};

const char *const tls_values[] = { "require", "on", NULL };

static const struct qmp_arg args_nbd_server_flat[] = {
	{ "addr", QMP_OBJECT, true, "where to listen: addr.type=unix,addr.path=...",
	  .members = args_flat_address },
	{ "handshake-max-seconds", QMP_UINT, false, "limit of a handshake, 0: none; default 10" },
	{ "tls-creds", QMP_STR, false, "TLS with these credentials, an object's id" },
	{ "tls-authz", QMP_STR, false, "clients that this object lets in, an authz object's id" },
	{ "tls", QMP_STR, false, "require (the default with tls-creds) or on: clients may go without",
	  .values = tls_values },
	{ "max-connections", QMP_UINT, false, "clients at a time, 0: any number; default 100" },
	{ "send-timeout", QMP_UINT, false,
	  "seconds that a client may take no reply, 0: any time; default --send-timeout" },
	{ NULL },
};

/* … and in QMP, which knows QEMU's legacy form here, in an object of their own. */
static const struct qmp_arg args_legacy_inet[] = {
	{ "data", QMP_OBJECT, true, "the address", .members = args_inet }, { NULL },
};

static const struct qmp_arg args_legacy_unix[] = {
	{ "data", QMP_OBJECT, true, "the address", .members = args_unix }, { NULL },
};

static const struct qmp_arg args_legacy_fd[] = {
	{ "data", QMP_OBJECT, true, "the address", .members = args_fd }, { NULL },
};

static const struct qmp_arg args_legacy_vsock[] = {
	{ "data", QMP_OBJECT, true, "the address", .members = args_vsock }, { NULL },
};

const struct qmp_case *address_cases(void)
{
	static const struct qmp_case cases[] = {
		{ "inet", args_legacy_inet }, { "unix", args_legacy_unix },
		{ "fd", args_legacy_fd }, { "vsock", args_legacy_vsock }, { NULL },
	};

	return cases;
}

unsigned nbd_server_send_timeout;

static int take_limit(struct json_object *args, const char *name, unsigned *out, struct error *err)
{
	uint64_t n = *out;
	int rc = opts_u64(args, name, &n, err);

	if (!rc && n > UINT_MAX)
		rc = error_set(err, -ERANGE, "Parameter '%s' is out of range", name);
	if (!rc)
		*out = (unsigned)n;
	return rc;
}

/* ARGS have been checked, and addr is flat. */
static int nbd_server_start(struct json_object *args, struct error *err)
{
	struct listener_options o = {
		.max_connections = DEFAULT_CONNECTIONS,
		.handshake_max_seconds = DEFAULT_HANDSHAKE,
		.send_timeout = nbd_server_send_timeout,
	};
	const char *tls = qmp_str(args, "tls");
	int rc;

	o.tls_creds = qmp_str(args, "tls-creds");
	o.tls_authz = qmp_str(args, "tls-authz");
	o.tls_optional = tls && !strcmp(tls, "on");
	if (tls && !o.tls_creds)
		return error_set(err, -EINVAL, "tls=%s needs tls-creds", tls);
	rc = take_limit(args, "max-connections", &o.max_connections, err);
	if (!rc)
		rc = take_limit(args, "handshake-max-seconds", &o.handshake_max_seconds, err);
	if (!rc)
		rc = take_limit(args, "send-timeout", &o.send_timeout, err);
	if (rc)
		return rc;
	return listener_start(json_object_object_get(args, "addr"), &o, NULL, err);
}

/* The form of QMP, made flat: its data with the type beside it. */
static void flatten(struct json_object *args)
{
	struct json_object *addr = json_object_object_get(args, "addr");
	struct json_object *data = json_object_object_get(addr, "data");

	json_object_object_add(data, "type", json_object_new_string(qmp_str(addr, "type")));
	json_object_object_add(args, "addr", json_object_get(data));
}

/* Both forms are taken. */
int nbd_server_start_keyval(struct json_object *o, struct error *err)
{
	struct json_object *addr = json_object_object_get(o, "addr");
	const struct qmp_arg *args = args_nbd_server_flat;
	int rc;

	if (json_object_is_type(addr, json_type_object) &&
	    json_object_is_type(json_object_object_get(addr, "data"), json_type_object))
		args = args_nbd_server_start;
	rc = qmp_keyval_types(args, o, err);
	if (!rc)
		rc = qmp_check(args, o, false, "", err);
	if (rc)
		return rc;
	if (args == args_nbd_server_start)
		flatten(o);
	return nbd_server_start(o, err);
}

COMMAND(command_nbd_server_start)
{
	flatten(args);
	return nbd_server_start(args, err);
}

COMMAND(command_nbd_server_stop)
{
	return listener_stop_all(err);
}

/* -- exports ----------------------------------------------------------------- */

static int export_refuse(struct json_object *args, struct error *err)
{
	static const char *const unsupported[] = { "writethrough", NULL };
	for (const char *const *p = unsupported; *p; p++) {
		if (qmp_bool(args, *p, false))
			return error_set(err, -ENOTSUP, "Parameter '%s' is not supported", *p);
	}
	return 0;
}

/* The disk goes to the thread that was asked for; one that cannot stays where it is,
 * unless fixed-iothread says that this is an error (as in QEMU). */
static int export_place(struct json_object *args, struct node *n, struct error *err)
{
	const char *id = qmp_str(args, "iothread");
	struct loop *l = id ? iothread_loop(id, err) : NULL;
	struct error why = ERROR_INIT;
	int rc;

	if (!id)
		return 0;
	if (!l)
		return -ENOENT;
	rc = node_move(n, l, &why);
	if (!rc || !qmp_bool(args, "fixed-iothread", false))
		return 0;
	*err = why;
	return rc;
}

COMMAND(command_block_export_add)
{
	struct export_options o = {
		.id = qmp_str(args, "id"),
		.name = qmp_str(args, "name"),
		.description = qmp_str(args, "description"),
		.writable = qmp_bool(args, "writable", false),
		.allocation_depth = qmp_bool(args, "allocation-depth", false),
		.lossy = state_is_replaying(),
		.allow_inactive = qmp_bool(args, "allow-inactive", false),
		.bitmaps = json_object_object_get(args, "bitmaps"),
	};
	const char *name = qmp_str(args, "node-name");
	int rc = export_refuse(args, err);

	if (!rc)
		rc = take_limit(args, "max-connections", &o.max_connections, err);
	if (rc)
		return rc;
	if (export_find_id(o.id))
		return error_set(err, -EEXIST, "Block export id '%s' is already in use", o.id);
	o.node = command_node_find(name);
	if (!o.node)
		return error_set(err, -ENOENT, "Cannot find device='' nor node-name='%s'", name);
	if (!listener_any())
		rc = error_set(err, -ENOTCONN, "NBD server not running");
	else
		rc = export_place(args, o.node, err);
	if (!rc && !o.allow_inactive && o.node->inactive)
		rc = command_node_activate(name, err);
	if (!rc)
		rc = export_add(&o, err);
	command_node_unref(o.node);
	if (!rc)
		machine_stop_new(o.id);
	return rc;
}

COMMAND(command_block_export_del)
{
	const char *id = qmp_str(args, "id"), *mode = qmp_str(args, "mode");
	struct export *e = export_find_id(id);

	if (!e)
		return error_set(err, -ENOENT, "Export '%s' is not found", id);
	if (e->removed)
		return error_set(err, -EBUSY, "Export '%s' is already shutting down", id);
	if (export_is_used(e) && !(mode && !strcmp(mode, "hard")))
		return error_set(err, -EBUSY, "export '%s' still in use", id);
	export_remove(e);
	return 0;
}

COMMAND(command_query_block_exports)
{
	*ret = json_object_new_array();
	for (struct export *e = export_list(); e; e = e->next) {
		struct json_object *o;

		if (e->opening)
			continue;
		o = json_object_new_object();
		json_object_object_add(o, "id", json_object_new_string(e->id));
		json_object_object_add(o, "type", json_object_new_string("nbd"));
		json_object_object_add(o, "node-name", json_object_new_string(e->node_name));
		json_object_object_add(o, "shutting-down", json_object_new_boolean(e->removed));
		json_object_array_add(*ret, o);
	}
	return 0;
}
