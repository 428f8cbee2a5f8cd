/* SPDX-License-Identifier: BSD-3-Clause */
/* tls: TLS under a stream.
 *
 * tls.c       the server's handshake, who the peer is, the end
 * tls-client.c  the client's
 * tls-io.c    records
 *
 * GnuTLS never sees the socket: its bytes come from and go to buffers, and the
 * coroutine does what waits.  A handshake's arithmetic is done by workers.
 */
#ifndef MERINO_TLS_H
#define MERINO_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "common/error.h"

struct stream;
struct tls;
struct tls_creds;

/* Coroutine, main loop.  Brings S, which is plain and of which nobody has read ahead,
 * under TLS; C must outlive the stream.  -errno with a text for the log: the stream is
 * of no use any more.  A time limit is the caller's, who shuts it down. */
int tls_accept(struct stream *s, const struct tls_creds *c, struct error *err);

/* The same from the other side, on any loop.  HOSTNAME, which must outlive the stream, is
 * what the server's certificate has to be for; NULL where keys are used. */
int tls_connect(struct stream *s, const struct tls_creds *c, const char *hostname,
		struct error *err);

/* Who the peer has proven to be: the distinguished name in its certificate or the user
 * of its key; NULL when it has shown nothing. */
const char *tls_peer(const struct tls *t);

/* "TLS1.3 AES-128-GCM", for logs; valid as long as T. */
const char *tls_describe(const struct tls *t);

/* Says good bye when that needs no waiting, and frees. */
void tls_free(struct tls *t, int fd);

/* tls-io.c: as stream_recv() and stream_send(). */
ssize_t tls_recv(struct stream *s, void *buf, size_t len);
ssize_t tls_send(struct stream *s, const struct iovec *iov, int n);

#endif
