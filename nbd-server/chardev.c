/* SPDX-License-Identifier: BSD-3-Clause */
/* chardev: --chardev socket,id=… and stdio,id=…: where monitors meet clients.
 *
 * It exists because QEMU names the socket apart from the monitor that uses it.
 * We never wait for a client at start (wait=on is refused), and never connect.
 */
#include "nbd-server/monitor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <json-c/json.h>

#include "common/options.h"
#include "nbd-server/address.h"
#include "nbd-server/process.h"
#include "nbd-server/stdio.h"

struct chardev {
	struct chardev *next;
	char *id;
	bool taken;
	struct address address;
	int stream;			/* stdio: connected already; else -1 */
};

static struct chardev *chardevs;

static struct chardev *chardev_find(const char *id)
{
	struct chardev *c = chardevs;

	while (c && strcmp(c->id, id))
		c = c->next;
	return c;
}

/* Takes the options that say how, not where; all refusals about them. */
static int chardev_take_manner(struct json_object *opts, struct error *err)
{
	bool server = false, wait = false, delay = false, nodelay = false, telnet = false;
	int rc = opts_bool(opts, "server", &server, err);

	if (!rc)
		rc = opts_bool(opts, "wait", &wait, err);
	if (!rc)
		rc = opts_bool(opts, "delay", &delay, err);
	if (!rc)
		rc = opts_bool(opts, "nodelay", &nodelay, err);
	if (!rc)
		rc = opts_bool(opts, "telnet", &telnet, err);
	if (rc)
		return rc;
	if (!server)
		return error_set(err, -ENOTSUP, "a chardev that connects is not supported; "
				 "use server=on");
	if (wait)
		return error_set(err, -ENOTSUP, "wait=on is not supported; use wait=off");
	if (telnet)
		return error_set(err, -ENOTSUP, "telnet=on is not supported");
	return 0;
}

static void move_key(struct json_object *opts, const char *from, struct json_object *o,
		     const char *to)
{
	struct json_object *v;

	if (!json_object_object_get_ex(opts, from, &v))
		return;
	json_object_object_add(o, to, json_object_get(v));
	json_object_object_del(opts, from);
}

/* The flat SocketAddress in OPTS, which loses its members. */
static struct json_object *chardev_address(struct json_object *opts)
{
	static const char *const shared[] = { "path", "abstract", "tight", "host", "port", "to",
					      "ipv4", "ipv6", NULL };
	struct json_object *o = json_object_new_object();
	const char *type = "unix";

	if (json_object_object_get_ex(opts, "fd", NULL))
		type = "fd";
	else if (json_object_object_get_ex(opts, "port", NULL))
		type = "inet";
	json_object_object_add(o, "type", json_object_new_string(type));
	move_key(opts, "fd", o, "str");
	for (const char *const *p = shared; *p; p++)
		move_key(opts, *p, o, *p);
	if (!strcmp(type, "inet") && !json_object_object_get_ex(o, "host", NULL))
		json_object_object_add(o, "host", json_object_new_string(""));
	return o;
}

static int chardev_read(struct json_object *opts, char **id, bool *stdio, struct error *err)
{
	char *backend = NULL;
	int rc = opts_require(opts, "backend", err);

	if (!rc)
		rc = opts_str(opts, "backend", &backend, err);
	if (!rc)
		*stdio = !strcmp(backend, "stdio");
	if (!rc && !*stdio && strcmp(backend, "socket"))
		rc = error_set(err, -EINVAL, "'%s' is not a valid char driver name", backend);
	free(backend);
	if (!rc)
		rc = opts_require(opts, "id", err);
	if (!rc)
		rc = opts_str(opts, "id", id, err);
	if (!rc && chardev_find(*id))
		rc = error_set(err, -EEXIST, "Chardev with id '%s' already exists", *id);
	return rc;
}

static int chardev_open_socket(struct chardev *c, struct json_object *opts, struct error *err)
{
	struct json_object *addr;
	int rc = chardev_take_manner(opts, err);

	if (rc)
		return rc;
	addr = chardev_address(opts);
	rc = opts_end(opts, err);
	if (!rc)
		rc = address_listen(addr, &c->address, err);
	json_object_put(addr);
	return rc;
}

static int chardev_open_stdio(struct chardev *c, struct json_object *opts, struct error *err)
{
	int rc = opts_end(opts, err);

	if (!rc && process_is_daemon())
		rc = error_set(err, -EINVAL, "cannot use stdio with --daemonize");
	if (rc)
		return rc;
	c->stream = stdio_open(err);
	return c->stream < 0 ? c->stream : 0;
}

int chardev_add(struct json_object *opts, struct error *err)
{
	struct chardev *c = calloc(1, sizeof(*c));
	bool stdio = false;
	int rc;

	if (!c)
		return error_set(err, -ENOMEM, "Out of memory");
	c->stream = -1;
	rc = chardev_read(opts, &c->id, &stdio, err);
	if (!rc)
		rc = stdio ? chardev_open_stdio(c, opts, err) : chardev_open_socket(c, opts, err);
	if (rc) {
		free(c->id);
		free(c);
		return rc;
	}
	c->next = chardevs;
	chardevs = c;
	return 0;
}

int chardev_take(const char *id, struct address *a, int *stream, struct error *err)
{
	struct chardev *c = chardev_find(id);

	if (!c)
		return error_set(err, -ENOENT, "chardev \"%s\" not found", id);
	if (c->taken)
		return error_set(err, -EBUSY, "Device '%s' is in use", id);
	c->taken = true;
	*a = c->address;
	c->address = (struct address){ 0 };
	*stream = c->stream;
	c->stream = -1;
	return 0;
}

void chardev_close_all(void)
{
	while (chardevs) {
		struct chardev *c = chardevs;

		chardevs = c->next;
		address_clear(&c->address);
		if (c->stream >= 0)
			close(c->stream);
		free(c->id);
		free(c);
	}
	stdio_close();
}
