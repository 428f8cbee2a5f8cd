/* SPDX-License-Identifier: BSD-3-Clause */
/* listener: accepts NBD clients and brings them through the handshake.
 *
 * Each socket of a listener has one coroutine that accepts; each client has
 * one for its handshake, with a timer that shuts the client's socket down.  A
 * client counts against its listener from accept(2) until transmission says
 * that it has ended, so a listener outlives its clients.
 *
 * Nothing here trusts a client: it costs a descriptor and a handshake's
 * buffers, both for a bounded time.
 */
#include "nbd-server/listener.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/co.h"
#include "common/io.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/options.h"
#include "common/uri.h"
#include "nbd-server/address.h"
#include "nbd-server/daemon.h"
#include "nbd-server/export.h"
#include "nbd-server/negotiate.h"
#include "nbd-server/tls-policy.h"

#define SECOND 1000000000ull		/* ns */
#define ACCEPT_PAUSE (SECOND / 10)	/* after an error such as EMFILE */
#define DESCRIPTORS_KEPT 512		/* for images and control sockets */

struct listener {
	struct listener *next;
	struct address address;
	struct listener_options options;	/* its strings are NULL: TLS has what they named */
	struct tls_policy tls;
	unsigned connections;		/* handshakes and transmissions */
	unsigned acceptors;		/* coroutines that accept */
	bool stopping;
	struct client *handshakes;
	struct co_queue room;		/* acceptors that wait for a client to end */
	struct co_queue idle;		/* waits for connections and acceptors to end */
};

/* A client in its handshake. */
struct client {
	struct loop_timer timer;	/* first: client_timeout() finds the client by it */
	struct client *next;
	struct listener *listener;
	struct agreement agreement;
};

/* What an acceptor's coroutine starts with. */
struct acceptor {
	struct listener *listener;
	unsigned socket;		/* of its address */
};

static struct listener *listeners;
static bool accepting;			/* listener_accept_all() was called */
static unsigned n_clients;		/* of all listeners, those that are stopping included */
static unsigned clients_max = LISTENER_CLIENTS_MAX;

bool listener_any(void)
{
	return listeners;
}

/* Each client has a descriptor, and at times two stacks, which the kernel counts. */
void listener_init(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) < 0)
		return;
	if (r.rlim_cur < LISTENER_CLIENTS_MAX + DESCRIPTORS_KEPT) {
		r.rlim_cur = LISTENER_CLIENTS_MAX + DESCRIPTORS_KEPT;
		if (r.rlim_cur > r.rlim_max)
			r.rlim_cur = r.rlim_max;
		setrlimit(RLIMIT_NOFILE, &r);
		getrlimit(RLIMIT_NOFILE, &r);
	}
	if (r.rlim_cur < LISTENER_CLIENTS_MAX + DESCRIPTORS_KEPT)
		clients_max = r.rlim_cur > 2 * DESCRIPTORS_KEPT
			? (unsigned)r.rlim_cur - DESCRIPTORS_KEPT : (unsigned)r.rlim_cur / 2;
}

/* -- clients ---------------------------------------------------------------- */

void listener_connection_ended(struct listener *l)
{
	l->connections--;
	if (n_clients-- == clients_max) {
		for (struct listener *other = listeners; other; other = other->next)
			co_queue_wake_all(&other->room);
	}
	co_queue_wake_all(&l->room);
	co_queue_wake_all(&l->idle);
}

static void client_timeout(struct loop_timer *t)
{
	struct client *c = (struct client *)t;

	log_debug("handshake took too long fd=%d", c->agreement.stream.fd);
	stream_shutdown(&c->agreement.stream);
}

static void client_unlink(struct client *c)
{
	struct client **p = &c->listener->handshakes;

	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
}

static void client_run(void *arg)
{
	struct client *c = arg;
	struct listener *l = c->listener;
	int rc;

	if (l->options.handshake_max_seconds)
		loop_timer_set(&c->timer,
			       loop_now() + l->options.handshake_max_seconds * SECOND,
			       client_timeout);
	rc = negotiate(&c->agreement);
	loop_timer_cancel(&c->timer);
	client_unlink(c);
	if (!rc) {
		transmission_start(&c->agreement);
	} else {
		stream_close(&c->agreement.stream);
		listener_connection_ended(l);
	}
	free(c);
}

static void client_start(struct listener *l, int fd)
{
	struct client *c = calloc(1, sizeof(*c));

	if (!c) {
		close(fd);
		return;
	}
	address_tune(fd);
	c->listener = l;
	stream_init(&c->agreement.stream, loop_io(loop_self()), fd);
	c->agreement.listener = l;
	c->agreement.send_timeout_ns = l->options.send_timeout * SECOND;
	c->agreement.tls = &l->tls;
	c->next = l->handshakes;
	l->handshakes = c;
	l->connections++;
	if (++n_clients == clients_max)
		log_warning("no more clients for now: %u are connected", n_clients);
	co_start(client_run, c);
}

static bool listener_is_full(const struct listener *l)
{
	return n_clients >= clients_max ||
	       (l->options.max_connections && l->connections >= l->options.max_connections);
}

/* A client that gave up before it was accepted says nothing about the socket. */
static bool is_transient(int rc)
{
	return rc == -ECONNABORTED || rc == -EINTR || rc == -EAGAIN || rc == -EPROTO;
}

static void acceptor_run(void *arg)
{
	struct acceptor *a = arg;
	struct listener *l = a->listener;
	struct io *io = loop_io(loop_self());
	unsigned socket = a->socket;
	int last = 0;

	free(a);
	while (!l->stopping) {
		int rc;

		if (!accepting || listener_is_full(l)) {
			co_queue_wait(&l->room);
			continue;
		}
		rc = address_accept(&l->address, socket, io);
		if (rc >= 0 && l->stopping) {
			close(rc);
		} else if (rc >= 0) {
			client_start(l, rc);
			last = 0;
		} else if (!is_transient(rc) && !l->stopping) {
			if (rc != last)
				log_warning("cannot accept clients for now: %s", strerror(-rc));
			last = rc;
			io_sleep(io, ACCEPT_PAUSE);
		}
	}
	l->acceptors--;
	co_queue_wake_all(&l->idle);
}

/* -- listeners -------------------------------------------------------------- */

/* A second listener at the same place would steal the first one's file. */
static bool listener_is_at(struct json_object *addr)
{
	struct json_object *path;

	if (!json_object_object_get_ex(addr, "path", &path))
		return false;
	for (struct listener *l = listeners; l; l = l->next) {
		const char *text = json_object_get_string(path);

		if (l->address.type == ADDRESS_UNIX &&
		    ((text && !strcmp(text, l->address.path)) ||
		     (text && address_is_file(&l->address, text))))
			return true;
	}
	return false;
}

void listener_accept_all(void)
{
	accepting = true;
	for (struct listener *l = listeners; l; l = l->next)
		co_queue_wake_all(&l->room);
}

static int listener_start_acceptors(struct listener *l)
{
	for (unsigned i = 0; i < l->address.n_fds; i++) {
		struct acceptor *a = malloc(sizeof(*a));

		if (!a)
			return -ENOMEM;
		*a = (struct acceptor){ l, i };
		l->acceptors++;
		co_start(acceptor_run, a);
	}
	return 0;
}

static void listener_stop(struct listener *l)
{
	l->stopping = true;
	address_shutdown(&l->address);
	co_queue_wake_all(&l->room);
	for (struct client *c = l->handshakes; c; c = c->next)
		stream_shutdown(&c->agreement.stream);
}

static void listener_free(struct listener *l)
{
	while (l->connections || l->acceptors)
		co_queue_wait(&l->idle);
	address_clear(&l->address);
	tls_policy_clear(&l->tls);
	free(l);
}

int listener_start(struct json_object *addr, const struct listener_options *o, struct listener **out,
		   struct error *err)
{
	struct json_object *copy;
	struct listener *l, **p;
	int rc;

	if (listener_is_at(addr))
		return error_set(err, -EADDRINUSE, "NBD server already running");
	l = calloc(1, sizeof(*l));
	copy = opts_copy(addr);
	if (!l || !copy) {
		free(l);
		json_object_put(copy);
		return error_set(err, -ENOMEM, "Out of memory");
	}
	l->options = *o;
	l->options.tls_creds = l->options.tls_authz = NULL;
	rc = tls_policy_make(o, &l->tls, err);
	if (!rc)
		rc = address_listen(copy, &l->address, err);
	json_object_put(copy);
	if (rc) {
		tls_policy_clear(&l->tls);
		free(l);
		return rc;
	}
	if (listener_start_acceptors(l)) {
		listener_stop(l);
		listener_free(l);
		return error_set(err, -ENOMEM, "Out of memory");
	}
	for (p = &listeners; *p; p = &(*p)->next)
		;
	*p = l;
	if (out)
		*out = l;
	return 0;
}

int listener_stop_all(struct error *err)
{
	struct listener *l = listeners;

	if (!l)
		return error_set(err, -ENOENT, "NBD server not running");
	/* From here on there is no server; clients end while we wait. */
	listeners = NULL;
	for (struct listener *s = l; s; s = s->next)
		listener_stop(s);
	export_close_all();
	while (l) {
		struct listener *next = l->next;

		listener_free(l);
		l = next;
	}
	return 0;
}

struct listener *listener_next(struct listener *l)
{
	return l ? l->next : listeners;
}

static char *inet_uri(const struct address *a, bool tls, const char *export_name)
{
	const char *host = a->path;
	char *uri = NULL;

	/* "Every address" is no place to connect to; this machine is. */
	if (!*host || !strcmp(host, "0.0.0.0") || !strcmp(host, "::"))
		host = "localhost";
	return uri_build_tcp(tls, host, a->port, export_name, &uri, NULL) ? NULL : uri;
}

/* A client has another working directory than we. */
static char *unix_uri(const struct address *a, bool tls, const char *export_name)
{
	char *cwd = a->path[0] == '/' ? NULL : getcwd(NULL, 0), *full = NULL, *uri = NULL;

	if (cwd && asprintf(&full, "%s/%s", cwd, a->path) < 0)
		full = NULL;
	if (uri_build_unix(tls, full ? full : a->path, export_name, &uri, NULL))
		uri = NULL;
	free(cwd);
	free(full);
	return uri;
}

char *listener_uri(struct listener *l, const char *export_name)
{

	if (!l)
		l = listeners;
	if (!l || l->address.abstract)
		return NULL;
	if (l->address.type == ADDRESS_INET)
		return inet_uri(&l->address, l->tls.creds, export_name);
	if (l->address.type != ADDRESS_UNIX)
		return NULL;
	return unix_uri(&l->address, l->tls.creds, export_name);
}
