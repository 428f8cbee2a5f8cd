/* SPDX-License-Identifier: BSD-3-Clause */
/* monitor: accepts QMP clients and moves their bytes.
 *
 * Each client has a coroutine that reads values and runs their commands in order, and
 * one that sends what is queued (common/qmp-sender.h).
 */
#include "nbd-server/monitor.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/co.h"
#include "common/fdset.h"
#include "common/io.h"
#include "common/json.h"
#include "common/loop.h"
#include "common/options.h"
#include "common/qmp-message.h"
#include "common/qmp-sender.h"
#include "nbd-server/address.h"
#include "nbd-server/commands.h"
#include "nbd-server/session.h"

#define CLIENTS_MAX 64			/* of one monitor */
#define READ_SIZE 4096
#define ACCEPT_PAUSE 100000000ull	/* ns, after an error such as EMFILE */
#define CLOSE_PATIENCE 1000000000ull	/* ns, for the last bytes of all clients */

struct monitor {
	struct monitor *next;
	struct address address;
	bool pretty;			/* replies for people */
	unsigned n_clients;
	unsigned acceptors;
	struct client *clients;
	struct co_queue room;		/* acceptors that wait for a client to leave */
};

struct client {
	struct client *next;
	struct monitor *monitor;
	int fd;
	struct session session;
	struct qmp_sender out;
};

/* What an acceptor's coroutine starts with. */
struct acceptor {
	struct monitor *monitor;
	unsigned socket;		/* of its address */
};

static struct monitor *monitors;
static bool admitted;			/* monitor_admit_all() was called */
static struct co_queue admission;
static bool quiescing, closing_all;
static unsigned running;		/* commands */
static struct co_queue all_wait;	/* woken when a command, client or acceptor has ended,
					 * and when closing_all is set */

void qmp_event(const char *name, struct json_object *data)
{
	struct json_object *o = qmp_event_new(name, data);

	for (struct monitor *m = monitors; m; m = m->next) {
		for (struct client *c = m->clients; c; c = c->next) {
			if (c->session.negotiated)
				qmp_send(&c->out, o);
		}
	}
	json_object_put(o);
}

/* -- reading ---------------------------------------------------------------- */

static void client_answer(struct client *c, struct json_object *request, struct error *bad)
{
	struct json_object *reply;

	running++;
	reply = session_answer(&c->session, request, bad);
	qmp_send(&c->out, reply);
	json_object_put(reply);
	running--;
	co_queue_wake_all(&all_wait);
}

/* Serves all whole values that have come. */
static void client_serve(struct client *c, struct json_stream *in)
{
	while (!c->out.broken && !quiescing) {
		struct json_object *request = NULL;
		struct error bad = ERROR_INIT;
		int rc = json_stream_next(in, &request, &bad);

		if (!rc)
			return;
		client_answer(c, request, rc < 0 ? &bad : NULL);
		json_object_put(request);
		qmp_sender_wait_room(&c->out);
	}
}

static void fds_close(struct qmp_fds *f)
{
	while (f->n)
		close(f->fds[--f->n]);
}

/* Those that came with a message take the place of those that nobody wanted. */
static void fds_receive(struct qmp_fds *f, struct msghdr *msg)
{
	for (struct cmsghdr *m = CMSG_FIRSTHDR(msg); m; m = CMSG_NXTHDR(msg, m)) {
		size_t n = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
			continue;
		fds_close(f);
		memcpy(f->fds, CMSG_DATA(m), n * sizeof(int));	/* no more than there is room for */
		f->n = (unsigned)n;
	}
}

/* Bytes, and descriptors beside them: 0 at the end of the stream, or -errno. */
static ssize_t client_receive(struct client *c, struct io *io, char *bytes, size_t size)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(QMP_FDS_MAX * sizeof(int))];
	} control;
	struct iovec iov = { bytes, size };

	for (;;) {
		struct msghdr msg = {
			.msg_iov = &iov, .msg_iovlen = 1,
			.msg_control = &control, .msg_controllen = sizeof(control),
		};
		ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		int rc;

		if (n >= 0) {
			fds_receive(&c->session.received, &msg);
			return n;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		rc = io_poll(io, c->fd, POLLIN);
		if (rc < 0)
			return rc;
	}
}

static void client_read(struct client *c)
{
	struct json_stream *in = json_stream_new(NULL);
	struct json_object *greeting = qmp_greeting();
	struct io *io = loop_io(loop_self());
	char bytes[READ_SIZE];
	ssize_t n = 1;

	qmp_send(&c->out, greeting);
	json_object_put(greeting);
	while (in && n > 0 && !c->out.broken && !quiescing) {
		n = client_receive(c, io, bytes, sizeof(bytes));
		if (n > 0 && !json_stream_feed(in, bytes, (size_t)n))
			client_serve(c, in);
	}
	json_stream_free(in);
}

static bool any_client(void)
{
	for (struct monitor *m = monitors; m; m = m->next) {
		if (m->clients)
			return true;
	}
	return false;
}

static void client_free(struct client *c)
{
	struct monitor *m = c->monitor;
	struct client **p = &m->clients;

	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	m->n_clients--;
	close(c->fd);
	fds_close(&c->session.received);
	free(c);
	if (!any_client())
		fdset_remove_unused();	/* who sent them has gone */
	co_queue_wake_all(&m->room);
	co_queue_wake_all(&all_wait);
}

static void client_run(void *arg)
{
	struct client *c = arg;
	while (!admitted && !quiescing)
		co_queue_wait(&admission);
	qmp_sender_start(&c->out);
	client_read(c);
	/* The last events of the process still go to this client. */
	while (quiescing && !closing_all && !c->out.broken)
		co_queue_wait(&all_wait);
	qmp_sender_end(&c->out);	/* it said its last word, and has to take ours */
	client_free(c);
}

static void client_start(struct monitor *m, int fd)
{
	struct client *c = calloc(1, sizeof(*c));

	if (!c) {
		close(fd);
		return;
	}
	c->monitor = m;
	c->fd = fd;
	c->out = (struct qmp_sender){ .fd = fd, .pretty = m->pretty };
	c->next = m->clients;
	m->clients = c;
	m->n_clients++;
	co_start(client_run, c);
}

/* -- monitors --------------------------------------------------------------- */

static void acceptor_run(void *arg)
{
	struct acceptor *a = arg;
	struct monitor *m = a->monitor;
	struct io *io = loop_io(loop_self());
	unsigned socket = a->socket;

	free(a);
	while (!quiescing) {
		int rc;

		if (m->n_clients >= CLIENTS_MAX) {
			co_queue_wait(&m->room);
			continue;
		}
		rc = address_accept(&m->address, socket, io);
		if (rc >= 0 && quiescing)
			close(rc);
		else if (rc >= 0)
			client_start(m, rc);
		else if (rc != -ECONNABORTED && rc != -EINTR && rc != -EAGAIN && !quiescing)
			io_sleep(io, ACCEPT_PAUSE);
	}
	m->acceptors--;
	co_queue_wake_all(&all_wait);
}

static int monitor_start(struct monitor *m, struct error *err)
{
	for (unsigned i = 0; i < m->address.n_fds; i++) {
		struct acceptor *a = malloc(sizeof(*a));

		if (!a)
			return error_set(err, -ENOMEM, "Out of memory");
		*a = (struct acceptor){ m, i };
		m->acceptors++;
		co_start(acceptor_run, a);
	}
	return 0;
}

int monitor_add(struct json_object *opts, struct error *err)
{
	static const char *const modes[] = { "control", NULL };
	struct monitor *m = calloc(1, sizeof(*m));
	char *chardev = NULL, *id = NULL;
	int mode, stream = -1, rc;

	if (!m)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = opts_require(opts, "chardev", err);
	if (!rc)
		rc = opts_str(opts, "chardev", &chardev, err);
	if (!rc)
		rc = opts_str(opts, "id", &id, err);
	if (!rc)
		rc = opts_enum(opts, "mode", modes, &mode, err);
	if (!rc)
		rc = opts_bool(opts, "pretty", &m->pretty, err);
	if (!rc)
		rc = opts_end(opts, err);
	if (!rc)
		rc = chardev_take(chardev, &m->address, &stream, err);
	free(chardev);
	free(id);
	if (rc) {
		free(m);
		return rc;
	}
	m->next = monitors;
	monitors = m;
	if (stream >= 0)
		client_start(m, stream);
	return monitor_start(m, err);
}

void monitor_admit_all(void)
{
	admitted = true;
	co_queue_wake_all(&admission);
}

void monitor_quiesce(void)
{
	quiescing = true;
	co_queue_wake_all(&admission);
	for (struct monitor *m = monitors; m; m = m->next) {
		address_shutdown(&m->address);
		co_queue_wake_all(&m->room);
		for (struct client *c = m->clients; c; c = c->next)
			shutdown(c->fd, SHUT_RD);
	}
	while (running)
		co_queue_wait(&all_wait);
}

/* Gives up on clients that do not take their last bytes. */
static void close_timeout(struct loop_timer *t)
{
	for (struct monitor *m = monitors; m; m = m->next) {
		for (struct client *c = m->clients; c; c = c->next)
			qmp_sender_break(&c->out);
	}
}

void monitor_close_all(void)
{
	struct loop_timer timer = { 0 };

	closing_all = true;
	co_queue_wake_all(&all_wait);
	loop_timer_set(&timer, loop_now() + CLOSE_PATIENCE, close_timeout);
	for (struct monitor *m = monitors; m; m = m->next) {
		while (m->n_clients || m->acceptors)
			co_queue_wait(&all_wait);
	}
	loop_timer_cancel(&timer);
	while (monitors) {
		struct monitor *m = monitors;

		monitors = m->next;
		address_clear(&m->address);
		free(m);
	}
}
