/* SPDX-License-Identifier: BSD-3-Clause */
/* listener: sockets on which NBD clients arrive.  Main loop only.
 *
 * A process has any number of them; all offer all exports.  Each bounds its
 * connections, handshakes included.
 */
#ifndef MERINO_LISTENER_H
#define MERINO_LISTENER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

struct json_object;
struct listener;

#define LISTENER_CLIENTS_MAX 16384	/* of all listeners, whatever max-connections says */

struct listener_options {
	unsigned max_connections;	/* 0: no limit of its own; QEMU's default is 100 */
	unsigned handshake_max_seconds;	/* 0: no limit; QEMU's default is 10 */
	unsigned send_timeout;		/* seconds that a client may take nothing; 0: no limit */
	const char *tls_creds;		/* object's id; NULL: no TLS */
	const char *tls_authz;		/* object's id, with tls_creds only; NULL: no further check */
	bool tls_optional;		/* clients may go without */
};

/* Listens on ADDR, QEMU's flat SocketAddress ({"type":"unix","path":…}, "inet"
 * with host, port, ipv4, ipv6, to; "fd" with str) and starts accepting.  A
 * listener on the same address exists: -EADDRINUSE, "NBD server already running". */
int listener_start(struct json_object *addr, const struct listener_options *o, struct listener **out,
		   struct error *err);

/* Stops all listeners, ends all connections and waits for them (coroutine).
 * -ENOENT "NBD server not running" when there is none. */
int listener_stop_all(struct error *err);

/* The start is over: all exports that the command line asks for are there, and
 * clients, who could only connect so far, are served. */
void listener_accept_all(void);

/* At the start of the process: has it as many descriptors as clients may need. */
void listener_init(void);

/* Whether any listener runs. */
bool listener_any(void);

/* An NBD URI for EXPORT_NAME through L (NULL: the first), to paste; malloc'd. */
char *listener_uri(struct listener *l, const char *export_name);

/* The next one after L (NULL: the first); NULL at the end. */
struct listener *listener_next(struct listener *l);

/* From transmission.c, on the main loop: a connection of L has ended. */
void listener_connection_ended(struct listener *l);

#endif
