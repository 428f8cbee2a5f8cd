/* SPDX-License-Identifier: BSD-3-Clause */
/* address: QEMU's SocketAddress made into sockets that listen.
 *
 *	{"type":"unix","path":…[,"abstract":true[,"tight":false]]}
 *	{"type":"inet","host":…,"port":…[,"to":…][,"ipv4":…][,"ipv6":…]}
 *	{"type":"fd","str":"3"}
 */
#ifndef MERINO_ADDRESS_H
#define MERINO_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "common/error.h"

struct json_object;

#define ADDRESS_FDS_MAX 4		/* a host name may stand for several addresses */

enum address_type { ADDRESS_UNIX, ADDRESS_INET, ADDRESS_FD };

struct address {
	enum address_type type;
	char *path;			/* unix: as given; inet: the host */
	bool abstract;			/* unix: no file behind it */
	uint16_t port;			/* inet: the one that is bound */
	int fds[ADDRESS_FDS_MAX];	/* listening, close-on-exec, non-blocking */
	unsigned n_fds;
	struct stat st;			/* unix: the socket's file, to remove no other one */
};

/* Listens on O, a flat SocketAddress that is consumed in place (coroutine: a
 * host name may be looked up).  *A is overwritten; cleared on failure. */
int address_listen(struct json_object *o, struct address *a, struct error *err);

/* Makes all pending and future accepts fail. */
void address_shutdown(struct address *a);

/* Closes the sockets and removes the unix socket's file when it is still ours. */
void address_clear(struct address *a);

/* Whether a file at PATH is the socket of A. */
bool address_is_file(const struct address *a, const char *path);

/* What is useful for every stream that was accepted: no delay, keepalive, a
 * large send buffer.  Failures are of no consequence. */
void address_tune(int fd);

#endif
