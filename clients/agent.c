// SPDX-License-Identifier: BSD-3-Clause
/* agent: see agent.h.
 *
 * The port has no connections of its own: answers of an earlier client may still come.  So
 * a conversation begins with guest-sync-delimited: a byte 0xff, which resets the agent's
 * parser and ours, and a number that comes back.
 */
#include "clients/agent.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "clients/progress.h"
#include "common/json.h"

enum { READ = 4096 };

struct agent {
	int fd;
	struct json_stream *in;
};

static int wait_for(struct agent *a, short events, uint64_t deadline, struct error *err)
{
	struct pollfd p = { .fd = a->fd, .events = events };

	for (;;) {
		uint64_t now = progress_now();
		int rc;

		if (now >= deadline)
			return error_set(err, -ETIMEDOUT, "the guest agent does not answer");
		rc = poll(&p, 1, (int)((deadline - now) / 1000000) + 1);
		if (rc < 0 && errno != EINTR)
			return error_errno(err, -errno, "the guest agent");
		if (rc > 0)
			return 0;
	}
}

static int send_bytes(struct agent *a, const char *p, size_t n, uint64_t deadline, struct error *err)
{
	while (n) {
		ssize_t sent = send(a->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		int rc = 0;

		if (sent < 0 && errno != EAGAIN && errno != EINTR)
			return error_errno(err, -errno, "the guest agent");
		if (sent < 0)
			rc = wait_for(a, POLLOUT, deadline, err);
		if (rc < 0)
			return rc;
		p += sent > 0 ? sent : 0;
		n -= sent > 0 ? (size_t)sent : 0;
	}
	return 0;
}

/* The next value; what is none is passed over. */
static int next_value(struct agent *a, uint64_t deadline, struct json_object **out, struct error *err)
{
	for (;;) {
		struct error none = ERROR_INIT;
		char buf[READ];
		ssize_t n;
		int rc = json_stream_next(a->in, out, &none);

		if (rc > 0)
			return 0;
		if (rc < 0)
			continue;	/* behind it may be more */
		rc = wait_for(a, POLLIN, deadline, err);
		if (rc < 0)
			return rc;
		n = recv(a->fd, buf, sizeof(buf), MSG_DONTWAIT);
		if (n == 0)
			return error_set(err, -ECONNRESET, "the machine has closed the guest agent's port");
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return error_errno(err, -errno, "the guest agent");
		if (n > 0 && json_stream_feed(a->in, buf, (size_t)n) < 0)
			return error_set(err, -ENOMEM, "Out of memory");
	}
}

static int synchronize(struct agent *a, unsigned seconds, struct error *err)
{
	uint64_t deadline = progress_now() + seconds * 1000000000ull;
	char text[128];
	uint32_t id = 0;
	int rc, n;

	if (getrandom(&id, sizeof(id), 0) != sizeof(id))
		return error_errno(err, -errno, "getrandom");
	n = snprintf(text, sizeof(text), "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%u}}\n", id);
	rc = send_bytes(a, text, (size_t)n, deadline, err);
	while (rc == 0) {
		struct json_object *o = NULL, *v;
		bool ours;

		rc = next_value(a, deadline, &o, err);
		ours = rc == 0 && json_object_is_type(o, json_type_object) &&
		       json_object_object_get_ex(o, "return", &v) && json_object_is_type(v, json_type_int) &&
		       json_object_get_int64(v) == id;
		json_object_put(o);
		if (ours)
			return 0;
	}
	return rc;
}

static int connect_socket(const char *path, unsigned seconds, struct error *err)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct timeval patience = { .tv_sec = seconds };
	int fd, rc;

	if (strlen(path) >= sizeof(un.sun_path))
		return error_set(err, -ENAMETOOLONG, "%s: longer than a socket's path may be", path);
	strcpy(un.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	/* The port has one client, and too many may wait for it. */
	if (fd >= 0)
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (fd >= 0 && connect(fd, (struct sockaddr *)&un, sizeof(un)) == 0)
		return fd;
	if (errno == EAGAIN)
		errno = ETIMEDOUT;
	rc = error_errno(err, -errno, "%s", path);
	if (fd >= 0)
		close(fd);
	return rc;
}

int agent_open(const char *path, unsigned seconds, struct agent **out, struct error *err)
{
	struct agent *a = calloc(1, sizeof(*a));
	int rc;

	if (!a)
		return error_set(err, -ENOMEM, "Out of memory");
	a->fd = rc = connect_socket(path, seconds, err);
	a->in = json_stream_new(NULL);
	if (rc >= 0)
		rc = a->in ? synchronize(a, seconds, err) : error_set(err, -ENOMEM, "Out of memory");
	if (rc < 0) {
		agent_close(a);
		return rc;
	}
	*out = a;
	return 0;
}

void agent_close(struct agent *a)
{
	if (!a)
		return;
	if (a->fd >= 0)
		close(a->fd);
	json_stream_free(a->in);
	free(a);
}

static int judge(const char *command, struct json_object *o, struct json_object **ret, struct error *err)
{
	struct json_object *v, *desc;
	const char *text = "refused";

	if (json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, "return", &v)) {
		*ret = json_object_get(v);
		return 0;
	}
	if (json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, "error", &v) &&
	    json_object_is_type(v, json_type_object) && json_object_object_get_ex(v, "desc", &desc) &&
	    json_object_is_type(desc, json_type_string))
		text = json_object_get_string(desc);
	return error_set(err, -EREMOTEIO, "the guest agent: %s: %s", command, text);
}

int agent_call(struct agent *a, const char *command, unsigned seconds, struct json_object **ret,
	       struct error *err)
{
	uint64_t deadline = progress_now() + seconds * 1000000000ull;
	struct json_object *o = NULL;
	char text[128];
	int n = snprintf(text, sizeof(text), "{\"execute\":\"%s\"}\n", command);
	int rc = send_bytes(a, text, (size_t)n, deadline, err);

	*ret = NULL;
	if (rc == 0)
		rc = next_value(a, deadline, &o, err);
	if (rc == 0)
		rc = judge(command, o, ret, err);
	json_object_put(o);
	return rc;
}

int agent_check_thawed(struct agent *a, unsigned seconds, struct error *err)
{
	struct json_object *ret = NULL;
	int rc = agent_call(a, "guest-fsfreeze-status", seconds, &ret, err);
	const char *text = json_object_is_type(ret, json_type_string) ? json_object_get_string(ret) : "";

	if (rc == 0 && !strcmp(text, "frozen"))
		rc = error_set(err, -EBUSY, "somebody else has frozen the guest");
	else if (rc == 0 && strcmp(text, "thawed"))
		rc = error_set(err, -EPROTO, "the guest agent: no answer that could be understood");
	json_object_put(ret);
	return rc;
}
