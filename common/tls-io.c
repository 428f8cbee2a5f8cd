/* SPDX-License-Identifier: BSD-3-Clause */
/* tls-io: records.
 *
 * Receiving: one receive brings many records; all that are whole are opened into the
 * caller's buffer.  Sending: what is short is gathered into whole records, eight of
 * them leave in one send.  Between two batches others have their turn.
 *
 * One coroutine receives while another one sends, on one thread: GnuTLS is never
 * suspended inside, because its bytes come from and go to memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/loop.h"
#include "common/tls-int.h"

/* -- GnuTLS's side ---------------------------------------------------------- */

ssize_t tls_pull(gnutls_transport_ptr_t p, void *buf, size_t len)
{
	struct tls *t = p;
	size_t n = min_u64(len, t->in_len - t->in_at);

	if (!n) {
		gnutls_transport_set_errno(t->session, EAGAIN);
		return -1;
	}
	memcpy(buf, t->in + t->in_at, n);
	t->in_at += (uint32_t)n;
	return (ssize_t)n;
}

/* Makes room for BYTES more.  What is being sent must not move. */
static bool out_reserve(struct tls *t, size_t bytes)
{
	uint8_t *p;

	if (bytes <= t->out_size - t->out_len)
		return true;
	bytes += t->out_len;
	if ((t->out_len && t->sending.held) || bytes > TLS_OUT_MAX)
		return false;
	p = realloc(t->out, bytes);
	if (!p)
		return false;
	t->out = p;
	t->out_size = (uint32_t)bytes;
	return true;
}

ssize_t tls_push(gnutls_transport_ptr_t p, const giovec_t *iov, int n)
{
	struct tls *t = p;
	size_t len = 0;

	for (int i = 0; i < n; i++)
		len += iov[i].iov_len;
	if (len > t->out_size - t->out_len && !out_reserve(t, len + TLS_OUT_SPARE)) {
		t->out_full = true;
		gnutls_transport_set_errno(t->session, ENOBUFS);
		return -1;
	}
	for (int i = 0; i < n; i++) {
		memcpy(t->out + t->out_len, iov[i].iov_base, iov[i].iov_len);
		t->out_len += (uint32_t)iov[i].iov_len;
	}
	return (ssize_t)len;
}

/* -- the socket's side ------------------------------------------------------ */

ssize_t tls_fill(struct stream *s, struct tls *t, uint32_t size)
{
	ssize_t n;

	if (t->in_size != size) {
		free(t->in);
		t->in = malloc(size);
		t->in_size = t->in ? size : 0;
	}
	if (!t->in)
		return -ENOMEM;
	n = io_recv(s->io, s->fd, t->in, t->in_size);
	t->in_at = 0;
	t->in_len = n > 0 ? (uint32_t)n : 0;
	return n;
}

/* With SENDING held. */
static int flush_held(struct stream *s, struct tls *t)
{
	int rc = 0;

	while (t->out_at < t->out_len && rc >= 0) {
		struct iovec v = { t->out + t->out_at, t->out_len - t->out_at };

		rc = (int)io_send(s->io, s->fd, &v, 1, false);
		if (rc > 0) {
			t->out_at += (uint32_t)rc;
			s->sent += (uint64_t)rc;
		}
	}
	t->out_at = t->out_len = 0;
	if (rc < 0)
		t->dead = true;
	return rc < 0 ? rc : 0;
}

int tls_flush(struct stream *s, struct tls *t)
{
	int rc;

	co_mutex_lock(&t->sending);
	rc = flush_held(s, t);
	co_mutex_unlock(&t->sending);
	return rc;
}

/* -- receiving -------------------------------------------------------------- */

/* Opens records into BUF as long as there are whole ones: bytes, or GnuTLS's error. */
static ssize_t open_records(struct tls *t, uint8_t *buf, size_t len)
{
	size_t got = 0;
	ssize_t n = 0;

	for (unsigned i = 1; got < len; i++) {
		uint32_t before = t->in_at;

		if (i % TLS_TURN == 0 && co_self())
			co_yield();
		n = gnutls_record_recv(t->session, buf + got, len - got);
		if (tls_goes_on(t, n, before))
			continue;
		if (n <= 0)
			break;
		got += (size_t)n;
	}
	return got ? (ssize_t)got : n;
}

ssize_t tls_recv(struct stream *s, void *buf, size_t len)
{
	struct tls *t = s->tls;

	for (;;) {
		ssize_t n = open_records(t, buf, len);

		/* An answer to a key update; a sender who is at work takes it along. */
		if (t->out_len && !t->sending.held && tls_flush(s, t))
			return -EPIPE;
		if (n >= 0)
			return n;
		if (n != GNUTLS_E_AGAIN || t->out_full || t->in_at < t->in_len) {
			t->dead = true;
			return -EPROTO;
		}
		/* Whoever has little room is idle, or nearly so. */
		n = tls_fill(s, t, len <= TLS_IN_SMALL ? TLS_IN_SMALL : TLS_IN);
		if (n <= 0)
			return n;
	}
}

/* -- sending ---------------------------------------------------------------- */

/* Where in an iovec we are. */
struct cursor {
	const struct iovec *v;
	int n;				/* left, with the one at hand */
	size_t at;			/* bytes of it that are done */
};

static void cursor_skip_done(struct cursor *c)
{
	while (c->n && c->at == c->v->iov_len) {
		c->v++;
		c->n--;
		c->at = 0;
	}
}

/* Up to a record's worth of bytes: in place where they lie together, else gathered in SCRATCH. */
static const uint8_t *next_record(struct cursor *c, uint8_t *scratch, size_t *len)
{
	size_t here, got = 0;

	cursor_skip_done(c);
	here = c->n ? c->v->iov_len - c->at : 0;
	if (here >= TLS_RECORD || c->n <= 1) {
		const uint8_t *p = c->n ? (uint8_t *)c->v->iov_base + c->at : NULL;

		*len = min_u64(here, TLS_RECORD);
		c->at += *len;
		return p;
	}
	while (c->n && got < TLS_RECORD) {
		size_t now = min_u64(c->v->iov_len - c->at, TLS_RECORD - got);

		memcpy(scratch + got, (uint8_t *)c->v->iov_base + c->at, now);
		got += now;
		c->at += now;
		cursor_skip_done(c);
	}
	*len = got;
	return scratch;
}

/* Seals about a batch of bytes from C into OUT: how many, or -errno. */
static ssize_t seal_batch(struct tls *t, struct cursor *c)
{
	uint8_t scratch[TLS_RECORD];
	size_t sealed = 0;

	while (sealed < TLS_BATCH) {
		size_t len;
		const uint8_t *p = next_record(c, scratch, &len);
		ssize_t n;

		if (!len)
			break;
		n = gnutls_record_send(t->session, p, len);
		/* Records are at most as long as we agreed; the rest of a longer one follows. */
		while (n > 0 && (size_t)n < len) {
			sealed += (size_t)n;
			p += n;
			len -= (size_t)n;
			n = gnutls_record_send(t->session, p, len);
		}
		if (n <= 0)
			return -EPROTO;
		sealed += (size_t)n;
	}
	return (ssize_t)sealed;
}

static size_t iov_bytes(const struct iovec *iov, int n)
{
	size_t len = 0;

	for (int i = 0; i < n; i++)
		len += iov[i].iov_len;
	return len;
}

static __thread uint8_t *spare;		/* a buffer of TLS_OUT_LARGE bytes, for who sends next */

static void spare_drop(struct loop_hook *h)
{
	free(spare);
	spare = NULL;
}

/* A large buffer for T, which has nothing to send. */
static bool out_take_large(struct tls *t)
{
	uint8_t *p;

	if (t->out_size == TLS_OUT_LARGE)
		return true;
	p = spare ? spare : malloc(TLS_OUT_LARGE);
	spare = NULL;
	if (!p)
		return false;
	free(t->out);
	t->out = p;
	t->out_size = TLS_OUT_LARGE;
	return true;
}

/* It goes back: a connection that is idle holds little. */
static void out_give_large(struct tls *t)
{
	static __thread struct loop_hook end;

	if (t->out_len || t->out_size != TLS_OUT_LARGE)
		return;
	if (!spare && loop_self()) {
		loop_end_hook_queue(&end, spare_drop);
		spare = t->out;
	} else {
		free(t->out);
	}
	t->out = NULL;
	t->out_size = 0;
}

ssize_t tls_send(struct stream *s, const struct iovec *iov, int n)
{
	struct tls *t = s->tls;
	struct cursor c = { iov, n, 0 };
	size_t len = iov_bytes(iov, n), done = 0;
	int rc = 0;

	co_mutex_lock(&t->sending);
	while (done < len && !rc) {
		size_t now = min_u64(len - done, TLS_BATCH + TLS_RECORD);
		ssize_t sealed;

		/* A peer may ask for records of 512 bytes, and 85 more are around each at most. */
		rc = flush_held(s, t);
		if (!rc && !(now > TLS_RECORD ? out_take_large(t)
					      : out_reserve(t, now + now / 4 + TLS_OUT_SPARE)))
			rc = -ENOMEM;
		if (rc)
			break;
		sealed = seal_batch(t, &c);
		rc = sealed < 0 ? (int)sealed : flush_held(s, t);
		done += sealed > 0 ? (size_t)sealed : 0;
		if (done < len && co_self())
			co_yield();
	}
	out_give_large(t);
	if (rc)
		t->dead = true;
	co_mutex_unlock(&t->sending);
	return rc ? rc : (ssize_t)done;
}
