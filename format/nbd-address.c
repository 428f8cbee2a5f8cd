/* SPDX-License-Identifier: BSD-3-Clause */
/* nbd-address: QEMU's SocketAddress of a server, and the way there.
 *
 * Nothing blocks the loop: names are looked up by a worker, connect(2) is waited
 * for with poll.  Several addresses of one name are tried in turn.
 */
#include "format/nbd-int.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "common/options.h"
#include "common/uri.h"

#define SEND_BUFFER (4 << 20)		/* bytes; the kernel may allow less */

/* -- options ------------------------------------------------------------------ */

static int parse_unix(struct nbd_target *t, struct json_object *o, struct error *err)
{
	int rc = opts_require(o, "path", err);

	t->tight = true;
	if (!rc)
		rc = opts_str(o, "path", &t->path, err);
	if (!rc)
		rc = opts_bool(o, "abstract", &t->abstract, err);
	if (!rc)
		rc = opts_bool(o, "tight", &t->tight, err);
	if (!rc && (!*t->path || strlen(t->path) >= sizeof(((struct sockaddr_un *)0)->sun_path) - 1))
		rc = error_set(err, -ENAMETOOLONG, "UNIX socket path '%s' is empty or too long", t->path);
	return rc;
}

static int parse_inet(struct nbd_target *t, struct json_object *o, struct error *err)
{
	bool keep_alive;
	int rc = opts_require(o, "host", err);

	t->has_ipv4 = json_object_object_get_ex(o, "ipv4", NULL);
	t->has_ipv6 = json_object_object_get_ex(o, "ipv6", NULL);
	if (!rc)
		rc = opts_require(o, "port", err);
	if (!rc)
		rc = opts_str(o, "host", &t->path, err);
	if (!rc)
		rc = opts_str(o, "port", &t->port, err);
	if (!rc)
		rc = opts_bool(o, "ipv4", &t->ipv4, err);
	if (!rc)
		rc = opts_bool(o, "ipv6", &t->ipv6, err);
	if (!rc)
		rc = opts_bool(o, "numeric", &t->numeric, err);
	if (!rc)
		rc = opts_bool(o, "keep-alive", &keep_alive, err);	/* always on */
	return rc;
}

static int parse_vsock(struct nbd_target *t, struct json_object *o, struct error *err)
{
	int rc = opts_require(o, "cid", err);

	if (!rc)
		rc = opts_require(o, "port", err);
	if (!rc)
		rc = opts_str(o, "cid", &t->cid, err);
	return rc ? rc : opts_str(o, "port", &t->port, err);
}

/* A connected socket that was passed to us: it serves once. */
static int parse_fd(struct nbd_target *t, struct json_object *o, struct error *err)
{
	char *text = NULL, *end;
	int type, rc = opts_require(o, "str", err);
	socklen_t len = sizeof(type);
	long n;

	if (!rc)
		rc = opts_str(o, "str", &text, err);
	if (rc)
		return rc;
	n = strtol(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || n > INT32_MAX ||
	    getsockopt((int)n, SOL_SOCKET, SO_TYPE, &type, &len) || type != SOCK_STREAM)
		rc = error_set(err, -EBADF, "File descriptor '%s' is not a stream socket", text);
	else
		t->fd = fcntl((int)n, F_DUPFD_CLOEXEC, 3);
	free(text);
	return rc;
}

int nbd_target_parse(struct nbd_target *t, struct json_object *o, struct error *err)
{
	static const char *const types[] = { "inet", "unix", "fd", "vsock", NULL };
	static int (*const parsers[])(struct nbd_target *, struct json_object *, struct error *) = {
		parse_inet, parse_unix, parse_fd, parse_vsock,
	};
	int type = 0, rc = opts_require(o, "type", err);

	if (!rc)
		rc = opts_enum(o, "type", types, &type, err);
	t->type = (enum nbd_server_type)type;
	if (!rc)
		rc = parsers[type](t, o, err);
	return rc ? rc : opts_end(o, err);
}

void nbd_target_unref(struct nbd_target *t)
{
	if (!t || --t->refs)
		return;
	if (t->fd >= 0)
		close(t->fd);
	object_put(t->tls);
	free(t->path);
	free(t->port);
	free(t->cid);
	free(t->export);
	free(t->tls_hostname);
	free(t);
}

char *nbd_target_uri(const struct nbd_target *t)
{
	char *text = NULL;
	int port = t->port ? atoi(t->port) : 0;

	if (t->type == NBD_SERVER_UNIX && t->abstract)
		uri_build_abstract(t->tls, t->path, t->export, &text, NULL);
	else if (t->type == NBD_SERVER_UNIX)
		uri_build_unix(t->tls, t->path, t->export, &text, NULL);
	else if (t->type == NBD_SERVER_INET)
		uri_build_tcp(t->tls, t->path, (uint16_t)port, t->export, &text, NULL);
	else if (t->type == NBD_SERVER_VSOCK && asprintf(&text, "nbd+vsock://%s:%s/%s", t->cid, t->port, t->export) < 0)
		text = NULL;
	return text ? text : strdup("nbd://");
}

/* -- connecting --------------------------------------------------------------- */

static int connect_to(struct nbd_attempt *a, const struct sockaddr *sa, socklen_t len)
{
	int error = 0, rc;
	socklen_t n = sizeof(error);

	a->fd = socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (a->fd < 0)
		return -errno;
	rc = connect(a->fd, sa, len) ? -errno : 0;
	if (rc == -EINPROGRESS || rc == -EINTR) {
		rc = io_poll(a->io, a->fd, POLLOUT);
		if (rc >= 0)
			rc = getsockopt(a->fd, SOL_SOCKET, SO_ERROR, &error, &n) ? -errno : -error;
	}
	if (!rc && a->cancelled)
		rc = -ECANCELED;
	if (rc) {
		close(a->fd);
		a->fd = -1;
	}
	return rc;
}

static int connect_unix(struct nbd_attempt *a)
{
	const struct nbd_target *t = a->target;
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	size_t at = t->abstract ? 1 : 0, n = strlen(t->path);
	int bytes = SEND_BUFFER, rc;

	memcpy(un.sun_path + at, t->path, n);
	rc = connect_to(a, (struct sockaddr *)&un,
			t->abstract && t->tight ? (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n)
						: sizeof(un));
	if (!rc)	/* a unix socket's does not grow by itself */
		setsockopt(a->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	return rc;
}

static int connect_vsock(struct nbd_attempt *a)
{
	struct sockaddr_vm vm = {
		.svm_family = AF_VSOCK,
		.svm_cid = (unsigned)strtoul(a->target->cid, NULL, 0),
		.svm_port = (unsigned)strtoul(a->target->port, NULL, 0),
	};

	return connect_to(a, (struct sockaddr *)&vm, sizeof(vm));
}

struct lookup {
	const struct nbd_target *target;
	struct addrinfo hints, *found;
	int rc;
};

static void look_up(void *arg)
{
	struct lookup *l = arg;

	l->rc = getaddrinfo(l->target->path, l->target->port, &l->hints, &l->found);
}

static int family_of(const struct nbd_target *t)
{
	bool v4 = t->has_ipv4 ? t->ipv4 : !(t->has_ipv6 && t->ipv6);
	bool v6 = t->has_ipv6 ? t->ipv6 : !(t->has_ipv4 && t->ipv4);

	return v4 && v6 ? AF_UNSPEC : v4 ? AF_INET : AF_INET6;
}

static int connect_inet(struct nbd_attempt *a)
{
	struct lookup l = {
		.target = a->target,
		.hints = {
			.ai_family = family_of(a->target), .ai_socktype = SOCK_STREAM,
			.ai_flags = a->target->numeric ? AI_NUMERICHOST : AI_ADDRCONFIG,
		},
	};
	int one = 1, rc = -EADDRNOTAVAIL;

	loop_work(look_up, &l);
	if (l.rc)
		return error_set(&a->err, -EADDRNOTAVAIL, "address resolution failed for %s:%s: %s",
				 a->target->path, a->target->port, gai_strerror(l.rc));
	for (struct addrinfo *i = l.found; i && rc && !a->cancelled; i = i->ai_next)
		rc = connect_to(a, i->ai_addr, i->ai_addrlen);
	freeaddrinfo(l.found);
	if (!rc) {
		setsockopt(a->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		setsockopt(a->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	}
	return rc;
}

static int connect_fd(struct nbd_attempt *a)
{
	int flags;

	if (a->target->fd < 0)
		return -ENOTCONN;	/* it was used up */
	a->fd = a->target->fd;
	a->target->fd = -1;
	flags = fcntl(a->fd, F_GETFL);
	fcntl(a->fd, F_SETFL, flags | O_NONBLOCK);
	return 0;
}

int nbd_connect(struct nbd_attempt *a)
{
	static const char *const what[] = { "address", "socket", "descriptor", "vsock address" };
	static int (*const ways[])(struct nbd_attempt *) = {
		connect_inet, connect_unix, connect_fd, connect_vsock,
	};
	const struct nbd_target *t = a->target;
	int rc = a->cancelled ? -ECANCELED : ways[t->type](a);

	if (rc && !a->err.code)
		error_errno(&a->err, rc, "Failed to connect to %s '%s%s%s'", what[t->type],
			    t->path ? t->path : t->cid ? t->cid : "", t->port ? ":" : "",
			    t->port ? t->port : "");
	return rc;
}
