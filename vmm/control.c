/* SPDX-License-Identifier: BSD-3-Clause */
/* control: accepts QMP clients and moves their bytes.
 *
 * Each client has a coroutine that reads requests and runs them in order, and one that
 * sends what is queued (common/qmp-sender.h).  Nothing that a client does or leaves undone
 * holds up the machine or another client.
 */
#include "vmm/control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"
#include "common/json.h"
#include "common/loop.h"
#include "common/qmp-message.h"
#include "vmm/control-int.h"
#include "vmm/unix.h"

#define CLIENTS_MAX 64
#define READ_SIZE 4096
#define ACCEPT_PAUSE 100000000ull	/* ns, after an error such as EMFILE */
#define CLOSE_PATIENCE 1000000000ull	/* ns, for the last bytes of all clients */

void control_event(struct control *c, const char *name, struct json_object *data)
{
	struct json_object *o = qmp_event_new(name, data);

	for (struct control_client *k = c ? c->clients : NULL; k; k = k->next) {
		if (k->negotiated)
			qmp_send(&k->out, o);
	}
	json_object_put(o);
}

/* -- reading ---------------------------------------------------------------- */

/* Serves all whole values that have come. */
static void client_serve(struct control_client *c, struct json_stream *in)
{
	while (!c->out.broken && !c->control->ending) {
		struct json_object *request = NULL, *answer;
		struct error bad = ERROR_INIT;
		int rc = json_stream_next(in, &request, &bad);

		if (!rc)
			return;
		answer = control_answer(c, request, rc < 0 ? &bad : NULL);
		qmp_send(&c->out, answer);
		json_object_put(answer);
		json_object_put(request);
		qmp_sender_wait_room(&c->out);
	}
}

static void client_read(struct control_client *c)
{
	struct json_stream *in = json_stream_new(NULL);
	struct json_object *greeting = qmp_greeting();
	struct io *io = loop_io(loop_self());
	char bytes[READ_SIZE];
	ssize_t n = 1;

	qmp_send(&c->out, greeting);
	json_object_put(greeting);
	while (in && n > 0 && !c->out.broken && !c->control->ending) {
		n = io_recv(io, c->fd, bytes, sizeof(bytes));
		if (n > 0 && !json_stream_feed(in, bytes, (size_t)n))
			client_serve(c, in);
	}
	json_stream_free(in);
}

static void client_free(struct control_client *c)
{
	struct control *control = c->control;
	struct control_client **p = &control->clients;

	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	control->n_clients--;
	close(c->fd);
	free(c);
	co_queue_wake_all(&control->wait);
}

static void client_run(void *arg)
{
	struct control_client *c = arg;
	qmp_sender_start(&c->out);
	client_read(c);
	forward_end(c->forward);
	c->forward = NULL;
	qmp_sender_end(&c->out);	/* it said its last word, and has to take ours */
	client_free(c);
}

static void client_start(struct control *control, int fd)
{
	struct control_client *c = calloc(1, sizeof(*c));

	if (!c) {
		close(fd);
		return;
	}
	c->control = control;
	c->fd = fd;
	c->out.fd = fd;
	c->next = control->clients;
	control->clients = c;
	control->n_clients++;
	co_start(client_run, c);
}

/* -- the socket ------------------------------------------------------------- */

static void acceptor(void *arg)
{
	struct control *c = arg;
	struct io *io = loop_io(loop_self());

	while (!c->ending) {
		int fd;

		if (c->n_clients >= CLIENTS_MAX) {
			co_queue_wait(&c->wait);
			continue;
		}
		fd = io_accept(io, c->fd);
		if (fd >= 0 && c->ending)
			close(fd);
		else if (fd >= 0)
			client_start(c, fd);
		else if (fd != -ECONNABORTED && fd != -EINTR && !c->ending)
			io_sleep(io, ACCEPT_PAUSE);
	}
	c->accepting = false;
	co_queue_wake_all(&c->wait);
}


int control_start(const struct control_config *config, struct control **out, struct error *err)
{
	struct control *c = calloc(1, sizeof(*c));

	if (!c)
		return error_set(err, -ENOMEM, "Out of memory");
	c->config = *config;
	c->fd = config->path ? unix_listen(config->path, err) : -1;
	if (config->path && c->fd < 0) {
		free(c);
		return err->code;
	}
	*out = c;
	c->watch = watch_start(c);
	if (c->fd >= 0) {
		c->accepting = true;
		co_start(acceptor, c);
	}
	return 0;
}

struct closing {
	struct loop_timer timer;
	struct control *control;
};

/* Gives up on clients that do not take their last bytes. */
static void close_timeout(struct loop_timer *t)
{
	for (struct control_client *c = ((struct closing *)t)->control->clients; c; c = c->next)
		qmp_sender_break(&c->out);
}

void control_end(struct control *c)
{
	struct closing closing = { .control = c };

	if (!c)
		return;
	c->ending = true;
	if (c->fd >= 0)
		shutdown(c->fd, SHUT_RDWR);
	for (struct control_client *k = c->clients; k; k = k->next) {
		shutdown(k->fd, SHUT_RD);
		forward_stop(k->forward);
	}
	co_queue_wake_all(&c->wait);
	watch_end(c->watch);
	loop_timer_set(&closing.timer, loop_now() + CLOSE_PATIENCE, close_timeout);
	while (c->n_clients || c->accepting)
		co_queue_wait(&c->wait);
	loop_timer_cancel(&closing.timer);
	if (c->fd >= 0) {
		close(c->fd);
		unlink(c->config.path);
	}
	free(c);
}
