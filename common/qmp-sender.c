/* SPDX-License-Identifier: BSD-3-Clause */
/* qmp-sender: see qmp-sender.h. */
#include "common/qmp-sender.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "common/loop.h"

#define QUEUE_FIRST 4096
#define QUEUE_PAUSE (1u << 20)		/* bytes queued above which answers wait */
#define QUEUE_MAX (16u << 20)		/* bytes queued above which the client is dropped */
#define PIECE 4096
#define PATIENCE 10000000000ull		/* ns, with a client that says no more */

void qmp_sender_break(struct qmp_sender *s)
{
	s->broken = true;
	shutdown(s->fd, SHUT_RDWR);
	co_queue_wake_all(&s->bytes);
	co_queue_wake_all(&s->progress);
}

static bool grow(struct qmp_sender *s, size_t n)
{
	size_t size = s->size ? s->size : QUEUE_FIRST;
	char *queue;

	if (s->sent) {
		memmove(s->queue, s->queue + s->sent, s->len - s->sent);
		s->len -= s->sent;
		s->sent = 0;
	}
	while (size < s->len + n)
		size *= 2;
	if (size == s->size)
		return true;
	queue = realloc(s->queue, size);
	if (!queue)
		return false;
	s->queue = queue;
	s->size = size;
	return true;
}

static void put(struct qmp_sender *s, const char *p, size_t n)
{
	if (s->broken || s->closing)
		return;
	if (s->len - s->sent > QUEUE_MAX || (s->size - s->len < n && !grow(s, n))) {
		log_warning("dropping a QMP client that does not read fd=%d", s->fd);
		qmp_sender_break(s);
		return;
	}
	memcpy(s->queue + s->len, p, n);
	s->len += n;
	co_queue_wake_all(&s->bytes);
}

void qmp_send(struct qmp_sender *s, struct json_object *o)
{
	int flags = JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE;
	const char *text = s->pretty ? json_object_to_json_string_ext(o, flags) : json_write(o);

	if (!text) {
		qmp_sender_break(s);
		return;
	}
	put(s, text, strlen(text));
	put(s, "\r\n", 2);		/* libvirt looks for both */
}

/* The queue may move while the socket is waited for, so what goes out is copied. */
static int send_some(struct qmp_sender *s, struct io *io)
{
	char piece[PIECE];
	size_t n = s->len - s->sent < sizeof(piece) ? s->len - s->sent : sizeof(piece);
	struct iovec iov = { piece, n };
	int rc;

	memcpy(piece, s->queue + s->sent, n);
	rc = io_send_all(io, s->fd, &iov, 1);
	if (rc)
		return rc;
	s->sent += n;
	if (s->sent == s->len)
		s->sent = s->len = 0;
	co_queue_wake_all(&s->progress);
	return 0;
}

static void run(void *arg)
{
	struct qmp_sender *s = arg;
	struct io *io = loop_io(loop_self());

	while (!s->broken) {
		if (s->sent < s->len) {
			if (send_some(s, io))
				qmp_sender_break(s);
		} else if (s->closing) {
			break;
		} else {
			co_queue_wait(&s->bytes);
		}
	}
	s->ended = true;
	co_queue_wake_all(&s->progress);
}

void qmp_sender_start(struct qmp_sender *s)
{
	co_start(run, s);
}

static bool has_hung_up(const struct qmp_sender *s)
{
	struct pollfd p = { .fd = s->fd, .events = POLLRDHUP };

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

/* One wake-up.  Whoever may still say something is waited for; whoever has said its last
 * word has until *END to take ours. */
static void wait(struct qmp_sender *s, uint64_t *end)
{
	if (loop_queue_wait(&s->progress, *end))
		return;
	if (has_hung_up(s))
		qmp_sender_break(s);
	*end = loop_now() + PATIENCE;
}

void qmp_sender_wait_room(struct qmp_sender *s)
{
	uint64_t end = loop_now() + PATIENCE;

	while (s->len - s->sent > QUEUE_PAUSE && !s->broken)
		wait(s, &end);
}

void qmp_sender_end(struct qmp_sender *s)
{
	uint64_t end = loop_now() + PATIENCE;

	s->closing = true;
	co_queue_wake_all(&s->bytes);
	while (!s->ended)
		wait(s, &end);
	free(s->queue);
	s->queue = NULL;
}
