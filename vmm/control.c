/* SPDX-License-Identifier: BSD-3-Clause */
/* control: accepts QMP clients and moves their bytes.
 *
 * Each client has two coroutines: one reads requests and runs them in order, the other
 * sends what is queued.  Answers wait for a client that does not read, in its own reader;
 * events do not, and a client whose queue has outgrown its bound is dropped.  Nothing that
 * a client does or leaves undone holds up the machine or another client.
 */
#include "vmm/control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/qmp-message.h"
#include "vmm/control-int.h"
#include "vmm/unix.h"

#define CLIENTS_MAX 64
#define QUEUE_PAUSE (1u << 20)		/* bytes queued above which the reader waits */
#define QUEUE_MAX (16u << 20)		/* bytes queued above which the client is dropped */
#define READ_SIZE 4096
#define ACCEPT_PAUSE 100000000ull	/* ns, after an error such as EMFILE */
#define PATIENCE 10000000000ull		/* ns that a client may leave its answers unread */
#define CLOSE_PATIENCE 1000000000ull	/* ns, for the last bytes of all clients */

/* -- sending ---------------------------------------------------------------- */

static void client_break(struct control_client *c)
{
	c->broken = true;
	shutdown(c->fd, SHUT_RDWR);
	co_queue_wake_all(&c->writer);
	co_queue_wake_all(&c->reader);
}

static bool client_grow(struct control_client *c, size_t n)
{
	size_t size = c->size ? c->size : READ_SIZE;
	char *queue;

	if (c->sent) {
		memmove(c->queue, c->queue + c->sent, c->len - c->sent);
		c->len -= c->sent;
		c->sent = 0;
	}
	while (size < c->len + n)
		size *= 2;
	if (size == c->size)
		return true;
	queue = realloc(c->queue, size);
	if (!queue)
		return false;
	c->queue = queue;
	c->size = size;
	return true;
}

static void put_bytes(struct control_client *c, const char *p, size_t n)
{
	if (c->broken || c->closing)
		return;
	if (c->len - c->sent > QUEUE_MAX || (c->size - c->len < n && !client_grow(c, n))) {
		log_warning("dropping a QMP client that does not read fd=%d", c->fd);
		client_break(c);
		return;
	}
	memcpy(c->queue + c->len, p, n);
	c->len += n;
	co_queue_wake_all(&c->writer);
}

void control_put(struct control_client *c, struct json_object *o)
{
	const char *text = json_write(o);

	if (!text) {
		client_break(c);
		return;
	}
	put_bytes(c, text, strlen(text));
	put_bytes(c, "\r\n", 2);
}

/* The queue may move while the socket is waited for, so what goes out is copied. */
static int client_send_some(struct control_client *c, struct io *io)
{
	char piece[READ_SIZE];
	size_t n = c->len - c->sent < sizeof(piece) ? c->len - c->sent : sizeof(piece);
	struct iovec iov = { piece, n };
	int rc;

	memcpy(piece, c->queue + c->sent, n);
	rc = io_send_all(io, c->fd, &iov, 1);
	if (rc)
		return rc;
	c->sent += n;
	if (c->sent == c->len)
		c->sent = c->len = 0;
	co_queue_wake_all(&c->reader);
	return 0;
}

static void client_write(void *arg)
{
	struct control_client *c = arg;
	struct io *io = loop_io(loop_self());

	while (!c->broken) {
		if (c->sent < c->len) {
			if (client_send_some(c, io))
				client_break(c);
		} else if (c->closing) {
			break;
		} else {
			co_queue_wait(&c->writer);
		}
	}
	c->writer_ended = true;
	co_queue_wake_all(&c->reader);
}

void control_event(struct control *c, const char *name, struct json_object *data)
{
	struct json_object *o = qmp_event_new(name, data);

	for (struct control_client *k = c ? c->clients : NULL; k; k = k->next) {
		if (k->negotiated)
			control_put(k, o);
	}
	json_object_put(o);
}

/* -- reading ---------------------------------------------------------------- */

struct patience {
	struct loop_timer timer;
	struct control_client *client;
};

static void patience_over(struct loop_timer *t)
{
	client_break(((struct patience *)t)->client);
}

/* Waits until most of what was queued has been taken. */
static void client_wait_room(struct control_client *c)
{
	struct patience p = { .client = c };

	if (c->len - c->sent <= QUEUE_PAUSE)
		return;
	loop_timer_set(&p.timer, loop_now() + PATIENCE, patience_over);
	while (c->len - c->sent > QUEUE_PAUSE && !c->broken)
		co_queue_wait(&c->reader);
	loop_timer_cancel(&p.timer);
}

/* Serves all whole values that have come. */
static void client_serve(struct control_client *c, struct json_stream *in)
{
	while (!c->broken && !c->control->ending) {
		struct json_object *request = NULL, *answer;
		struct error bad = ERROR_INIT;
		int rc = json_stream_next(in, &request, &bad);

		if (!rc)
			return;
		answer = control_answer(c, request, rc < 0 ? &bad : NULL);
		control_put(c, answer);
		json_object_put(answer);
		json_object_put(request);
		client_wait_room(c);
	}
}

static void client_read(struct control_client *c)
{
	struct json_stream *in = json_stream_new(NULL);
	struct json_object *greeting = qmp_greeting();
	struct io *io = loop_io(loop_self());
	char bytes[READ_SIZE];
	ssize_t n = 1;

	control_put(c, greeting);
	json_object_put(greeting);
	while (in && n > 0 && !c->broken && !c->control->ending) {
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
	free(c->queue);
	free(c);
	co_queue_wake_all(&control->wait);
}

static void client_run(void *arg)
{
	struct control_client *c = arg;
	struct patience p = { .client = c };

	co_start(client_write, c);
	client_read(c);
	forward_end(c->forward);
	c->forward = NULL;
	c->closing = true;
	co_queue_wake_all(&c->writer);
	/* It said its last word, and has to take ours. */
	loop_timer_set(&p.timer, loop_now() + PATIENCE, patience_over);
	while (!c->writer_ended)
		co_queue_wait(&c->reader);
	loop_timer_cancel(&p.timer);
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
		client_break(c);
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
