/* SPDX-License-Identifier: BSD-3-Clause */
/* address: QEMU's SocketAddress made into sockets that listen.
 *
 *	{"type":"unix","path":…[,"abstract":true[,"tight":false]]}
 *	{"type":"inet","host":…,"port":…[,"to":…][,"ipv4":…][,"ipv6":…]}
 *	{"type":"fd","str":"3"}	or the name of a socket that systemd passed
 *	{"type":"vsock","cid":"2","port":"10809"}
 */
#ifndef MERINO_ADDRESS_H
#define MERINO_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "common/error.h"

struct io;
struct json_object;

#define ADDRESS_FDS_MAX 4		/* a host name may stand for several addresses */

enum address_type { ADDRESS_UNIX, ADDRESS_INET, ADDRESS_FD, ADDRESS_VSOCK };

struct address {
	enum address_type type;
	char *path;			/* unix: as given; inet: the host */
	bool abstract;			/* unix: no file behind it */
	uint16_t port;			/* inet: the one that is bound */
	int fds[ADDRESS_FDS_MAX];	/* listening, close-on-exec, non-blocking */
	/* What an acceptor waits on before it accepts: the same, but for fd and vsock an
	 * epoll descriptor (address-fd.c). */
	int waits[ADDRESS_FDS_MAX];
	unsigned n_fds;
	int end_fd;			/* fd and vsock: ends the waiting; else 0 */
	struct stat st;			/* unix: the socket's file, to remove no other one */
};

/* Listens on O, a flat SocketAddress that is consumed in place (coroutine: a
 * host name may be looked up).  *A is overwritten; cleared on failure. */
int address_listen(struct json_object *o, struct address *a, struct error *err);

/* Ends all pending and future waiting; whoever waited has to look whether this was
 * called.  Sockets of our own stop listening, those that others made do not. */
void address_shutdown(struct address *a);

/* Coroutine: the next client of socket I, non-blocking and close-on-exec, or -errno:
 * -EAGAIN when somebody else had it, or the waiting was ended. */
int address_accept(const struct address *a, unsigned i, struct io *io);

/* Closes the sockets and removes the unix socket's file when it is still ours. */
void address_clear(struct address *a);

/* Whether a file at PATH is the socket of A. */
bool address_is_file(const struct address *a, const char *path);

/* What is useful for every stream that was accepted: no delay, keepalive, a
 * large send buffer.  Failures are of no consequence. */
void address_tune(int fd);

#endif
