/* SPDX-License-Identifier: BSD-3-Clause */
/* control-forward: a connection to merinod: a client's, or the machine's own.
 *
 * One coroutine connects, negotiates and reads: events go to who wants them, the answer to the
 * client's reader, which waits for it.  When merinod goes away the command that ran there
 * fails, and the connection is made anew, for the next command and for events.  merinod is
 * trusted with the disks, not with this process: what it sends is parsed as strictly as
 * what strangers send.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "common/loop.h"
#include "vmm/control-int.h"
#include "vmm/unix.h"

#define READ_SIZE 16384
#define RETRY 500000000ull		/* ns between attempts to connect */
#define CONNECT_WAIT 5000000000ull	/* ns that a command waits for a connection */

struct forward {
	forward_event *event;		/* NULL: nobody wants them */
	void *arg;
	const char *path;
	int fd;				/* -1: not connected */
	bool ready;			/* negotiated */
	bool stopping, ended;
	bool waiting;			/* a command is there */
	uint64_t id;			/* of the last one */
	struct json_object *answer;	/* its */
	unsigned made, lost;		/* connections: that were ready, that broke */
	struct co_queue change;		/* any of the above has changed */
};

struct alarm {
	struct loop_timer timer;
	struct co_queue *queue;
	bool rang;
};

static void ring(struct loop_timer *t)
{
	struct alarm *a = (struct alarm *)t;

	a->rang = true;
	co_queue_wake_all(a->queue);
}

/* -- reading ---------------------------------------------------------------- */

static void take_event(struct forward *f, struct json_object *o, struct json_object *name)
{
	if (!f->ready || !f->event || !json_object_is_type(name, json_type_string))
		return;
	f->event(f->arg, json_object_get_string(name), o);
	co_queue_wake_all(&f->change);
}

static bool is_answer(const struct forward *f, struct json_object *o)
{
	struct json_object *id;

	return f->waiting && !f->answer && json_object_object_get_ex(o, "id", &id) &&
	       json_object_is_type(id, json_type_int) && json_object_get_uint64(id) == f->id;
}

/* 0, or -EPROTO: this is no QMP. */
static int take(struct forward *f, struct json_object *o)
{
	struct json_object *v;

	if (!json_object_is_type(o, json_type_object))
		return -EPROTO;
	if (json_object_object_get_ex(o, "event", &v)) {
		take_event(f, o, v);
	} else if (is_answer(f, o)) {
		f->answer = json_object_get(o);
		co_queue_wake_all(&f->change);
		/* What merinod said after it comes after it. */
		while (f->answer && !f->stopping)
			co_queue_wait(&f->change);
	}
	return 0;
}

/* The next value, within the stream: 0 with *OUT, or -errno. */
static int next_value(struct forward *f, struct json_stream *in, struct json_object **out)
{
	struct io *io = loop_io(loop_self());
	struct error err = ERROR_INIT;
	char bytes[READ_SIZE];

	for (;;) {
		int rc = json_stream_next(in, out, &err);
		ssize_t n;

		if (rc)
			return rc > 0 ? 0 : -EPROTO;
		n = io_recv(io, f->fd, bytes, sizeof(bytes));
		if (n <= 0)
			return n ? (int)n : -ECONNRESET;
		rc = json_stream_feed(in, bytes, (size_t)n);
		if (rc)
			return rc;
	}
}

static int send_text(struct forward *f, const char *text)
{
	struct iovec iov[2] = { { (char *)text, strlen(text) }, { (char *)"\r\n", 2 } };

	return io_send_all(loop_io(loop_self()), f->fd, iov, 2);
}

/* The greeting, and the answer to qmp_capabilities. */
static int negotiate(struct forward *f, struct json_stream *in)
{
	static const char *const expect[] = { "QMP", "return" };
	int rc = 0;

	for (unsigned i = 0; i < 2 && !rc; i++) {
		struct json_object *o = NULL;

		if (i == 1)
			rc = send_text(f, "{\"execute\": \"qmp_capabilities\"}");
		if (!rc)
			rc = next_value(f, in, &o);
		if (!rc && (!json_object_is_type(o, json_type_object) ||
			    !json_object_object_get_ex(o, expect[i], NULL)))
			rc = -EPROTO;
		json_object_put(o);
	}
	return rc;
}

static int serve(struct forward *f)
{
	const struct json_limits limits = { .bytes = 16u << 20, .tokens = 1u << 20 };
	struct json_stream *in = json_stream_new(&limits);
	int rc = in ? negotiate(f, in) : -ENOMEM;

	f->ready = !rc;
	f->made += f->ready;
	co_queue_wake_all(&f->change);
	while (!rc && !f->stopping) {
		struct json_object *o = NULL;

		rc = next_value(f, in, &o);
		if (!rc)
			rc = take(f, o);
		json_object_put(o);
	}
	json_stream_free(in);
	return rc;
}

/* -- the connection --------------------------------------------------------- */

static void pause_for(struct forward *f, uint64_t ns)
{
	struct alarm a = { .queue = &f->change };

	loop_timer_set(&a.timer, loop_now() + ns, ring);
	while (!a.rang && !f->stopping)
		co_queue_wait(&f->change);
	loop_timer_cancel(&a.timer);
}

static void connection(void *arg)
{
	struct forward *f = arg;

	while (!f->stopping) {
		f->fd = unix_connect(f->path);
		if (f->fd >= 0) {
			serve(f);
			close(f->fd);
			f->fd = -1;
			f->lost++;
			f->ready = false;
			co_queue_wake_all(&f->change);
		}
		pause_for(f, RETRY);
	}
	f->ended = true;
	co_queue_wake_all(&f->change);
}

struct forward *forward_start(const char *path, forward_event *event, void *arg)
{
	struct forward *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->path = path;
	f->event = event;
	f->arg = arg;
	f->fd = -1;
	co_start(connection, f);
	return f;
}

void forward_stop(struct forward *f)
{
	if (!f)
		return;
	f->stopping = true;
	if (f->fd >= 0)
		shutdown(f->fd, SHUT_RDWR);
	co_queue_wake_all(&f->change);
}

void forward_end(struct forward *f)
{
	if (!f)
		return;
	forward_stop(f);
	while (!f->ended)
		co_queue_wait(&f->change);
	json_object_put(f->answer);
	free(f);
}

bool forward_wait(struct forward *f, unsigned *seen, const bool *also)
{
	while (!f->stopping && *seen == f->made && !*also)
		co_queue_wait(&f->change);
	*seen = f->made;
	return !f->stopping;
}

/* -- commands --------------------------------------------------------------- */

static bool wait_ready(struct forward *f)
{
	struct alarm a = { .queue = &f->change };

	loop_timer_set(&a.timer, loop_now() + CONNECT_WAIT, ring);
	while (!f->ready && !f->stopping && !a.rang)
		co_queue_wait(&f->change);
	loop_timer_cancel(&a.timer);
	return f->ready && !f->stopping;
}

static int send_command(struct forward *f, const char *name, struct json_object *args)
{
	struct json_object *o = json_object_new_object();
	const char *text;
	int rc;

	json_object_object_add(o, "execute", json_object_new_string(name));
	if (args)
		json_object_object_add(o, "arguments", json_object_get(args));
	json_object_object_add(o, "id", json_object_new_uint64(++f->id));
	text = json_write(o);
	rc = text ? send_text(f, text) : -ENOMEM;
	json_object_put(o);
	return rc;
}

static enum error_class class_of(const char *name)
{
	for (enum error_class c = ERROR_GENERIC; c <= ERROR_DEVICE_NOT_FOUND; c++) {
		if (!strcmp(error_class_name(c), name))
			return c;
	}
	return ERROR_GENERIC;
}

static const char *member(struct json_object *o, const char *name)
{
	struct json_object *v;

	if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, name, &v) ||
	    !json_object_is_type(v, json_type_string))
		return "";
	return json_object_get_string(v);
}

static int judge(struct json_object *answer, struct json_object **ret, struct error *err)
{
	struct json_object *v;

	if (json_object_object_get_ex(answer, "return", &v)) {
		*ret = json_object_get(v);
		return 0;
	}
	if (!json_object_object_get_ex(answer, "error", &v))
		return error_set(err, -EPROTO, "merinod gave no answer that could be understood");
	return error_set_class(err, class_of(member(v, "class")), -EREMOTEIO, "%s", member(v, "desc"));
}

int forward_run(struct forward *f, const char *name, struct json_object *args,
		struct json_object **ret, struct error *err)
{
	unsigned lost;
	int rc;

	if (!wait_ready(f))
		return error_set(err, -ENOTCONN, "merinod does not answer at %s", f->path);
	lost = f->lost;
	f->waiting = true;
	rc = send_command(f, name, args);
	while (!rc && !f->answer && !f->stopping && f->lost == lost)
		co_queue_wait(&f->change);
	f->waiting = false;
	if (f->answer)
		rc = judge(f->answer, ret, err);
	else
		rc = error_set(err, -ECONNRESET, "merinod at %s went away while it ran '%s'", f->path, name);
	json_object_put(f->answer);
	f->answer = NULL;
	co_queue_wake_all(&f->change);
	return rc;
}
