/* SPDX-License-Identifier: BSD-3-Clause */
/* stream: the connection to an NBD client, as the handshake and transmission
 * see it: bytes in, bytes out.  Whether they travel in the clear is known here
 * alone.
 *
 * One coroutine may receive while another one sends.  A stream belongs to one
 * loop at a time; stream_move() takes it to another one while nobody uses it.
 */
#ifndef MERINO_STREAM_H
#define MERINO_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "common/io.h"
#include "common/tls.h"

struct stream {
	struct io *io;			/* of the loop that it belongs to */
	int fd;				/* the connected socket; owned */
	struct tls *tls;		/* owned; NULL: in the clear */
	uint64_t sent;			/* bytes that the socket took: does the peer read? */
};

static inline void stream_init(struct stream *s, struct io *io, int fd)
{
	*s = (struct stream){ .io = io, .fd = fd };
}

static inline void stream_move(struct stream *s, struct io *io)
{
	s->io = io;
}

/* Whether sendfile(2) into ->fd is the same as sending. */
static inline bool stream_is_plain(const struct stream *s)
{
	return !s->tls;
}

/* Bytes, 0 at the end of the stream, -errno. */
static inline ssize_t stream_recv(struct stream *s, void *buf, size_t len)
{
	if (__builtin_expect(s->tls != NULL, false))
		return tls_recv(s, buf, len);
	return io_recv(s->io, s->fd, buf, len);
}

/* Bytes taken (may be fewer), -errno; MORE: another send follows at once. */
static inline ssize_t stream_send(struct stream *s, const struct iovec *iov, int n, bool more)
{
	ssize_t sent;

	if (__builtin_expect(s->tls != NULL, false))
		return tls_send(s, iov, n);
	sent = io_send(s->io, s->fd, iov, n, more);
	if (sent > 0)
		s->sent += (uint64_t)sent;
	return sent;
}

/* Exactly LEN bytes: 0, or -errno; -ECONNRESET at the end of the stream. */
int stream_recv_all(struct stream *s, void *buf, size_t len);
/* All of IOV, which is modified: 0 or -errno. */
int stream_send_all(struct stream *s, struct iovec *iov, int n, bool more);

/* Everybody who waits for the stream gets the end of it, or an error. */
void stream_shutdown(struct stream *s);
/* Nobody uses it any more.  Closes the socket. */
void stream_close(struct stream *s);

#endif
