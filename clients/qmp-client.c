// SPDX-License-Identifier: BSD-3-Clause
/* qmp-client: see qmp-client.h.
 *
 * What the daemon sends is read by the strict parser of common/json.h; an answer that
 * does not fit the question ends the connection.
 */
#include "clients/qmp-client.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "clients/progress.h"
#include "clients/pull.h"
#include "common/json.h"

enum { ANSWER_S = 60, TRY_MS = 20, READ = 65536 };

struct qmp {
	int fd;
	char *path;
	struct json_stream *in;
	char package[128];
	unsigned id;
};

/* --- bytes */

static int wait_for(struct qmp *q, short events, uint64_t deadline, enum qmp_how how, struct error *err)
{
	struct pollfd p = { .fd = q->fd, .events = events };
	sigset_t none;

	sigemptyset(&none);
	for (;;) {
		uint64_t now = progress_now();
		struct timespec ts = { .tv_nsec = 200 * 1000000 };
		int rc;

		if (how == QMP_MAY_STOP && pull_signalled())
			return error_set(err, -EINTR, "stopped by a signal");
		if (now > deadline)
			return error_set(err, -ETIMEDOUT, "%s: the daemon does not answer", q->path);
		rc = ppoll(&p, 1, &ts, how == QMP_MAY_STOP ? &none : NULL);
		if (rc < 0 && errno != EINTR)
			return error_errno(err, -errno, "%s", q->path);
		if (rc > 0)
			return 0;
	}
}

static int send_text(struct qmp *q, const char *text, uint64_t deadline, enum qmp_how how,
		     struct error *err)
{
	for (size_t n = strlen(text); n;) {
		ssize_t sent = send(q->fd, text, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		int rc = 0;

		if (sent < 0 && errno != EAGAIN && errno != EINTR)
			return error_errno(err, -errno, "%s", q->path);
		if (sent < 0)
			rc = wait_for(q, POLLOUT, deadline, how, err);
		if (rc < 0)
			return rc;
		text += sent > 0 ? sent : 0;
		n -= sent > 0 ? sent : 0;
	}
	return 0;
}

/* The next value that the daemon sends. */
static int next_value(struct qmp *q, struct json_object **out, uint64_t deadline, enum qmp_how how,
		      struct error *err)
{
	char buf[READ];

	for (;;) {
		int rc = json_stream_next(q->in, out, err);
		ssize_t got;

		if (rc < 0)
			return error_set(err, -EPROTO, "%s: no QMP: %s", q->path, err->text);
		if (rc > 0 && json_object_is_type(*out, json_type_object))
			return 0;
		if (rc > 0) {
			json_object_put(*out);
			return error_set(err, -EPROTO, "%s: no QMP", q->path);
		}
		rc = wait_for(q, POLLIN, deadline, how, err);
		if (rc < 0)
			return rc;
		got = recv(q->fd, buf, sizeof(buf), MSG_DONTWAIT);
		if (got == 0)
			return error_set(err, -ECONNRESET, "%s: the daemon closed the connection", q->path);
		if (got < 0 && errno != EAGAIN && errno != EINTR)
			return error_errno(err, -errno, "%s", q->path);
		if (got > 0 && json_stream_feed(q->in, buf, got) < 0)
			return error_errno(err, -ENOMEM, "%s", q->path);
	}
}

/* --- commands */

static int refused(const char *command, struct json_object *error, struct error *err)
{
	struct json_object *class = NULL, *desc = NULL;
	const char *text = "refused";
	int code = -EREMOTEIO;

	if (json_object_is_type(error, json_type_object)) {
		json_object_object_get_ex(error, "class", &class);
		json_object_object_get_ex(error, "desc", &desc);
	}
	if (json_object_is_type(desc, json_type_string))
		text = json_object_get_string(desc);
	if (json_object_is_type(class, json_type_string) &&
	    !strcmp(json_object_get_string(class), "CommandNotFound"))
		code = -ENOSYS;
	return error_set(err, code, "%s: %s", command, text);
}

static bool is_answer(const struct qmp *q, struct json_object *o)
{
	struct json_object *id;

	return json_object_object_get_ex(o, "id", &id) && json_object_is_type(id, json_type_int) &&
	       json_object_get_uint64(id) == q->id;
}

/* The answer to the last command; events before it are passed over. */
static int answer(struct qmp *q, const char *command, struct json_object **ret, uint64_t deadline,
		  enum qmp_how how, struct error *err)
{
	struct json_object *o, *v;
	int rc;

	do {
		rc = next_value(q, &o, deadline, how, err);
		if (rc < 0)
			return rc;
		if (!is_answer(q, o)) {
			json_object_put(o);
			o = NULL;
		}
	} while (!o);
	if (json_object_object_get_ex(o, "error", &v))
		rc = refused(command, v, err);
	else if (!json_object_object_get_ex(o, "return", &v))
		rc = error_set(err, -EPROTO, "%s: %s: no answer that could be understood", q->path, command);
	else if (ret)
		*ret = json_object_get(v);
	json_object_put(o);
	return rc;
}

int qmp_call(struct qmp *q, const char *command, struct json_object *args,
	     struct json_object **ret, enum qmp_how how, struct error *err)
{
	uint64_t deadline = progress_now() + ANSWER_S * 1000000000ull;
	struct json_object *o = json_object_new_object();
	const char *text;
	int rc;

	json_object_object_add(o, "execute", json_object_new_string(command));
	if (args)
		json_object_object_add(o, "arguments", args);
	json_object_object_add(o, "id", json_object_new_uint64(++q->id));
	text = json_write(o);
	rc = text ? send_text(q, text, deadline, how, err) : error_errno(err, -ENOMEM, "%s", command);
	if (rc == 0)
		rc = send_text(q, "\n", deadline, how, err);
	json_object_put(o);
	return rc ? rc : answer(q, command, ret, deadline, how, err);
}

/* --- connecting */

static int greet(struct qmp *q, struct error *err)
{
	uint64_t deadline = progress_now() + ANSWER_S * 1000000000ull;
	struct json_object *o, *v;
	int rc = next_value(q, &o, deadline, QMP_MAY_STOP, err);

	if (rc < 0)
		return rc;
	if (!json_object_object_get_ex(o, "QMP", &v))
		rc = error_set(err, -EPROTO, "%s: no QMP socket", q->path);
	else if (json_object_object_get_ex(v, "version", &v) && json_object_object_get_ex(v, "package", &v) &&
		 json_object_is_type(v, json_type_string))
		snprintf(q->package, sizeof(q->package), "%s", json_object_get_string(v));
	for (char *c = q->package; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = '?';
	json_object_put(o);
	return rc ? rc : qmp_call(q, "qmp_capabilities", NULL, NULL, QMP_MAY_STOP, err);
}

static int connect_socket(struct qmp *q, int tries_ms, struct error *err)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	uint64_t until = progress_now() + tries_ms * 1000000ull;
	struct timespec ts = { .tv_nsec = TRY_MS * 1000000 };

	if (strlen(q->path) >= sizeof(un.sun_path))
		return error_set(err, -ENAMETOOLONG, "%s: longer than a socket's path may be", q->path);
	strcpy(un.sun_path, q->path);
	q->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (q->fd < 0)
		return error_errno(err, -errno, "%s", q->path);
	while (connect(q->fd, (struct sockaddr *)&un, sizeof(un)) < 0) {
		if ((errno != ENOENT && errno != ECONNREFUSED && errno != EINTR) || progress_now() >= until)
			return error_errno(err, -errno, "%s", q->path);
		if (pull_signalled())
			return error_set(err, -EINTR, "stopped by a signal");
		nanosleep(&ts, NULL);
	}
	return 0;
}

int qmp_connect(const char *path, int tries_ms, struct qmp **out, struct error *err)
{
	const struct json_limits limits = { .bytes = 16 << 20, .tokens = 1 << 20 };
	struct qmp *q = calloc(1, sizeof(*q));
	int rc = q ? 0 : -ENOMEM;

	if (q) {
		q->fd = -1;
		q->path = strdup(path);
		q->in = json_stream_new(&limits);
		rc = q->path && q->in ? 0 : -ENOMEM;
	}
	rc = rc ? error_errno(err, rc, "%s", path) : connect_socket(q, tries_ms, err);
	if (rc == 0)
		rc = greet(q, err);
	if (rc < 0) {
		qmp_close(q);
		return rc;
	}
	*out = q;
	return 0;
}

void qmp_close(struct qmp *q)
{
	if (!q)
		return;
	if (q->fd >= 0)
		close(q->fd);
	json_stream_free(q->in);
	free(q->path);
	free(q);
}

const char *qmp_package(const struct qmp *q)
{
	return q->package[0] ? q->package : "unknown";
}
