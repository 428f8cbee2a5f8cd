/* SPDX-License-Identifier: BSD-3-Clause */
/* address: binding.  Options are read and refused first, then sockets made.
 *
 * A socket file in the way of a unix socket is removed when nobody listens on it:
 * a daemon that was killed left it.  Anything else is left alone, and bind(2) says
 * so.  What a killed process listened on, its ring can hold for tens of milliseconds
 * longer: what is in use is tried again for a while.
 */
#include "nbd-server/address-int.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/io.h"
#include "common/loop.h"
#include "common/options.h"

#define IN_USE_RETRIES 150
#define DYING_RETRIES 1500		/* of somebody who is known to be gone */
#define IN_USE_PAUSE 20000000u		/* ns */
#define ADDRESS_SEND_BUFFER (1 << 20)	/* bytes; the kernel takes twice as much */

/* -- unix ------------------------------------------------------------------- */

struct unix_options {
	char *path;
	bool abstract, tight;
};

static int unix_fill(const struct unix_options *o, struct sockaddr_un *un, socklen_t *len,
		     struct error *err)
{
	size_t n = strlen(o->path), at = o->abstract ? 1 : 0;

	*un = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (!n)
		return error_set(err, -EINVAL, "UNIX socket path is empty");
	if (at + n > sizeof(un->sun_path) - 1)
		return error_set(err, -ENAMETOOLONG,
				 "UNIX socket path '%s' is too long", o->path);
	memcpy(un->sun_path + at, o->path, n);
	*len = o->abstract && o->tight ? (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n)
				       : sizeof(*un);
	return 0;
}

/* Whether somebody listens there.  *DYING: a process that is gone already. */
static bool unix_is_served(const struct sockaddr_un *un, socklen_t len, bool *dying)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct ucred peer = { 0 };
	socklen_t peer_len = sizeof(peer);
	bool served;

	if (fd < 0)
		return false;
	served = connect(fd, (const struct sockaddr *)un, len) == 0 || errno == EAGAIN;
	if (served && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_len) == 0)
		*dying = peer.pid > 0 && kill(peer.pid, 0) < 0 && errno == ESRCH;
	close(fd);
	return served;
}

static int unix_remove_stale(const char *path, const struct sockaddr_un *un, socklen_t len)
{
	struct stat st;
	bool dying = false;

	if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return 0;
	for (unsigned i = 0; unix_is_served(un, len, &dying); i++) {
		if (!dying || i == DYING_RETRIES)
			return -EADDRINUSE;
		io_sleep(loop_io(loop_self()), IN_USE_PAUSE);
	}
	unlink(path);
	return 0;
}

/* A name without a file is in use as long as anybody holds the socket. */
static int unix_bind(int fd, const struct sockaddr_un *un, socklen_t len, bool abstract)
{
	int rc = bind(fd, (const struct sockaddr *)un, len) < 0 ? -errno : 0;

	for (unsigned i = 0; rc == -EADDRINUSE && abstract && i < IN_USE_RETRIES; i++) {
		io_sleep(loop_io(loop_self()), IN_USE_PAUSE);
		rc = bind(fd, (const struct sockaddr *)un, len) < 0 ? -errno : 0;
	}
	return rc;
}

static int unix_listen(struct unix_options *o, struct address *a, struct error *err)
{
	struct sockaddr_un un;
	socklen_t len = 0;
	int fd, rc = unix_fill(o, &un, &len, err);

	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_errno(err, -errno, "Failed to create Unix socket");
	a->waits[a->n_fds] = a->fds[a->n_fds] = fd;
	a->n_fds++;
	if (!o->abstract)
		rc = unix_remove_stale(o->path, &un, len);
	if (rc)
		return error_errno(err, rc, "Failed to bind socket to %s", o->path);
	rc = unix_bind(fd, &un, len, o->abstract);
	if (rc)
		return error_errno(err, rc, "Failed to bind socket to %s", o->path);
	a->path = o->path;
	o->path = NULL;
	a->abstract = o->abstract;
	if (!a->abstract && lstat(a->path, &a->st) < 0)
		return error_errno(err, -errno, "%s", a->path);
	if (listen(fd, ADDRESS_BACKLOG) < 0)
		return error_errno(err, -errno, "Failed to listen on socket %s", a->path);
	return 0;
}

static int address_unix(struct json_object *json, struct address *a, struct error *err)
{
	struct unix_options o = { .tight = true };
	int rc = opts_require(json, "path", err);

	if (!rc)
		rc = opts_str(json, "path", &o.path, err);
	if (!rc)
		rc = opts_bool(json, "abstract", &o.abstract, err);
	if (!rc)
		rc = opts_bool(json, "tight", &o.tight, err);
	if (!rc)
		rc = opts_end(json, err);
	if (!rc)
		rc = unix_listen(&o, a, err);
	free(o.path);
	return rc;
}

/* -- inet ------------------------------------------------------------------- */

struct inet_options {
	char *host, *port;
	uint64_t to;			/* last port to try; 0: only the one given */
	bool ipv4, ipv6, has_ipv4, has_ipv6;
	bool keep_alive, numeric, mptcp;
	struct addrinfo hints, *found;	/* of the look-up */
	int gai;
};

static bool has(struct json_object *json, const char *key)
{
	return json_object_object_get_ex(json, key, NULL);
}

static int inet_parse(struct json_object *json, struct inet_options *o, struct error *err)
{
	int rc = opts_require(json, "host", err);

	o->has_ipv4 = has(json, "ipv4");
	o->has_ipv6 = has(json, "ipv6");
	if (!rc)
		rc = opts_require(json, "port", err);
	if (!rc)
		rc = opts_str(json, "host", &o->host, err);
	if (!rc)
		rc = opts_str(json, "port", &o->port, err);
	if (!rc)
		rc = opts_u64(json, "to", &o->to, err);
	if (!rc)
		rc = opts_bool(json, "ipv4", &o->ipv4, err);
	if (!rc)
		rc = opts_bool(json, "ipv6", &o->ipv6, err);
	if (!rc)
		rc = opts_bool(json, "keep-alive", &o->keep_alive, err);
	if (!rc)
		rc = opts_bool(json, "numeric", &o->numeric, err);
	if (!rc)
		rc = opts_bool(json, "mptcp", &o->mptcp, err);
	if (!rc)
		rc = opts_end(json, err);
	if (rc)
		return rc;
	if (o->mptcp)
		return error_set(err, -ENOTSUP, "Parameter 'mptcp' is not supported");
	if (strspn(o->port, "0123456789") == strlen(o->port) && strtoul(o->port, NULL, 10) > 65535)
		return error_set(err, -EINVAL, "port '%s' is above 65535", o->port);
	if (o->to > 65535)
		return error_set(err, -EINVAL, "port 'to' is above 65535");
	if (o->has_ipv4 && o->has_ipv6 && !o->ipv4 && !o->ipv6)
		return error_set(err, -EINVAL, "Cannot disable IPv4 and IPv6 at same time");
	return 0;
}

static void inet_look_up(void *arg)
{
	struct inet_options *o = arg;

	o->gai = getaddrinfo(*o->host ? o->host : NULL, o->port, &o->hints, &o->found);
}

static int inet_family(const struct inet_options *o)
{
	if ((o->has_ipv4 && !o->ipv4) || (o->ipv6 && !o->has_ipv4))
		return AF_INET6;
	if ((o->has_ipv6 && !o->ipv6) || (o->ipv4 && !o->has_ipv6))
		return AF_INET;
	return AF_UNSPEC;
}

/* One socket that listens on AI at PORT: its descriptor or -errno. */
static int inet_bind(const struct addrinfo *ai, uint16_t port)
{
	struct sockaddr_storage ss = { 0 };
	int on = 1, rc;
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	memcpy(&ss, ai->ai_addr, ai->ai_addrlen);
	if (ai->ai_family == AF_INET6) {
		((struct sockaddr_in6 *)&ss)->sin6_port = htons(port);
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
	} else {
		((struct sockaddr_in *)&ss)->sin_port = htons(port);
	}
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&ss, ai->ai_addrlen) == 0 &&
	    listen(fd, ADDRESS_BACKLOG) == 0)
		return fd;
	rc = -errno;
	close(fd);
	return rc;
}

static uint16_t inet_port(int fd)
{
	struct sockaddr_storage ss = { 0 };
	socklen_t len = sizeof(ss);

	if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
		return 0;
	return ntohs(ss.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&ss)->sin6_port
					      : ((struct sockaddr_in *)&ss)->sin_port);
}

/* Every address of the list at one port; port 0 becomes what the first one got. */
static int inet_bind_all(const struct addrinfo *list, uint16_t port, struct address *a)
{
	int rc = -EADDRNOTAVAIL;

	for (const struct addrinfo *ai = list; ai && a->n_fds < ADDRESS_FDS_MAX; ai = ai->ai_next) {
		int fd;

		if (ai->ai_family != AF_INET && ai->ai_family != AF_INET6)
			continue;
		fd = inet_bind(ai, a->n_fds ? a->port : port);
		/* Hosts without IPv6 still look it up: one address that listens is enough. */
		if (fd < 0) {
			rc = fd;
			if (fd == -EADDRINUSE)
				break;
			continue;
		}
		if (!a->n_fds)
			a->port = inet_port(fd);
		a->waits[a->n_fds] = a->fds[a->n_fds] = fd;
		a->n_fds++;
	}
	if (rc == -EADDRINUSE) {
		while (a->n_fds)
			close(a->fds[--a->n_fds]);
	}
	return a->n_fds ? 0 : rc;
}

static int inet_listen(struct inet_options *o, struct address *a, struct error *err)
{
	const struct sockaddr *first = o->found->ai_addr;
	uint16_t port = ntohs(first->sa_family == AF_INET6
			      ? ((const struct sockaddr_in6 *)first)->sin6_port
			      : ((const struct sockaddr_in *)first)->sin_port);
	int rc = inet_bind_all(o->found, port, a);

	for (unsigned i = 0; rc == -EADDRINUSE && !o->to && i < IN_USE_RETRIES; i++) {
		io_sleep(loop_io(loop_self()), IN_USE_PAUSE);
		rc = inet_bind_all(o->found, port, a);
	}
	for (uint64_t p = (uint64_t)port + 1; rc == -EADDRINUSE && p <= o->to; p++)
		rc = inet_bind_all(o->found, (uint16_t)p, a);
	if (rc == -EADDRINUSE)
		return error_errno(err, rc, "Failed to find an available port");
	if (rc)
		return error_errno(err, rc, "Failed to listen on %s:%s", o->host, o->port);
	return 0;
}

static int address_inet(struct json_object *json, struct address *a, struct error *err)
{
	struct inet_options o = { 0 };
	int rc = inet_parse(json, &o, err);

	if (!rc) {
		o.hints.ai_flags = AI_PASSIVE | (o.numeric ? AI_NUMERICHOST : 0);
		o.hints.ai_family = inet_family(&o);
		o.hints.ai_socktype = SOCK_STREAM;
		loop_work(inet_look_up, &o);
		if (o.gai)
			rc = error_set(err, -EINVAL, "address resolution failed for %s:%s: %s",
				       o.host, o.port, gai_strerror(o.gai));
	}
	if (!rc)
		rc = inet_listen(&o, a, err);
	if (o.found)
		freeaddrinfo(o.found);
	a->path = o.host;
	free(o.port);
	return rc;
}

/* -- all -------------------------------------------------------------------- */

int address_listen(struct json_object *o, struct address *a, struct error *err)
{
	static const char *const types[] = { "unix", "inet", "fd", "vsock", NULL };
	int type = -1, rc;

	*a = (struct address){ 0 };
	rc = opts_require(o, "type", err);
	if (!rc)
		rc = opts_enum(o, "type", types, &type, err);
	if (rc)
		return rc;
	a->type = (enum address_type)type;
	switch (a->type) {
	case ADDRESS_UNIX:
		rc = address_unix(o, a, err);
		break;
	case ADDRESS_INET:
		rc = address_inet(o, a, err);
		break;
	case ADDRESS_FD:
		rc = address_fd(o, a, err);
		break;
	case ADDRESS_VSOCK:
		rc = address_vsock(o, a, err);
		break;
	}
	if (rc)
		address_clear(a);
	return rc;
}

bool address_is_file(const struct address *a, const char *path)
{
	struct stat st;

	return a->type == ADDRESS_UNIX && !a->abstract && a->st.st_ino &&
	       lstat(path, &st) == 0 && st.st_dev == a->st.st_dev && st.st_ino == a->st.st_ino;
}

void address_shutdown(struct address *a)
{
	if (a->end_fd > 0) {
		address_end_watched(a);
		return;
	}
	for (unsigned i = 0; i < a->n_fds; i++)
		shutdown(a->fds[i], SHUT_RDWR);
}

int address_accept(const struct address *a, unsigned i, struct io *io)
{
	int rc, fd = a->fds[i];

	if (!a->end_fd)
		return io_accept(io, fd);
	rc = io_poll(io, a->waits[i], POLLIN);
	if (rc < 0)
		return rc;
	rc = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	return rc < 0 ? -errno : rc;
}

void address_clear(struct address *a)
{
	if (a->path && address_is_file(a, a->path))
		unlink(a->path);
	while (a->n_fds) {
		int wait = a->waits[--a->n_fds];

		if (wait != a->fds[a->n_fds] && wait >= 0)
			close(wait);
		close(a->fds[a->n_fds]);
	}
	if (a->end_fd > 0)
		close(a->end_fd);
	free(a->path);
	*a = (struct address){ 0 };
}

void address_tune(int fd)
{
	int on = 1, bytes = ADDRESS_SEND_BUFFER, flags = fcntl(fd, F_GETFL);

	if (flags >= 0)
		fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	/* Without privilege the kernel clips the size to net.core.wmem_max. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) < 0)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}
