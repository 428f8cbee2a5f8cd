/* SPDX-License-Identifier: BSD-3-Clause */
/* stream: whole messages, and the end. */
#include "common/stream.h"

#include <errno.h>
#include <limits.h>
#include <sys/socket.h>
#include <unistd.h>

int stream_recv_all(struct stream *s, void *buf, size_t len)
{
	char *p = buf;

	while (len) {
		ssize_t n = stream_recv(s, p, len);

		if (n <= 0)
			return n ? (int)n : -ECONNRESET;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

/* Leaves out what was sent; *N counts what is left. */
static struct iovec *iov_advance(struct iovec *v, int *n, size_t sent)
{
	while (*n && sent >= v->iov_len) {
		sent -= v->iov_len;
		v++;
		(*n)--;
	}
	if (*n) {
		v->iov_base = (char *)v->iov_base + sent;
		v->iov_len -= sent;
	}
	return v;
}

int stream_send_all(struct stream *s, struct iovec *iov, int n, bool more)
{
	iov = iov_advance(iov, &n, 0);
	while (n) {
		ssize_t sent = stream_send(s, iov, n < IOV_MAX ? n : IOV_MAX, more);

		if (sent <= 0)
			return sent < 0 ? (int)sent : -EPIPE;
		iov = iov_advance(iov, &n, (size_t)sent);
	}
	return 0;
}

void stream_shutdown(struct stream *s)
{
	shutdown(s->fd, SHUT_RDWR);
}

void stream_close(struct stream *s)
{
	tls_free(s->tls, s->fd);
	s->tls = NULL;
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}
