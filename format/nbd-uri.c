/* SPDX-License-Identifier: BSD-3-Clause */
/* nbd-uri: an NBD URI made into options of the nbd driver. */
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>

#include "common/uri.h"
#include "format/nbd.h"

static void add(struct json_object *o, const char *key, const char *value)
{
	json_object_object_add(o, key, json_object_new_string(value));
}

static struct json_object *server_of(const struct uri *u)
{
	struct json_object *o = json_object_new_object();
	char port[8];

	if (u->socket) {
		add(o, "type", "unix");
		add(o, "path", u->socket);
		if (u->abstract)
			json_object_object_add(o, "abstract", json_object_new_boolean(true));
		return o;
	}
	snprintf(port, sizeof(port), "%u", u->port);
	add(o, "type", "inet");
	add(o, "host", u->host);
	add(o, "port", port);
	return o;
}

struct json_object *nbd_options_of_uri(const char *uri, struct error *err)
{
	struct json_object *o = NULL;
	struct uri u;

	if (uri_parse(uri, &u, err))
		return NULL;
	if (u.tls) {
		error_set(err, -ENOTSUP, "A URI has no TLS credentials: use --object tls-creds-x509 or tls-creds-psk, and --blockdev driver=nbd with tls-creds");
	} else {
		o = json_object_new_object();
		add(o, "driver", "nbd");
		json_object_object_add(o, "server", server_of(&u));
		add(o, "export", u.export);
	}
	uri_clear(&u);
	return o;
}
