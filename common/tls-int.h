/* SPDX-License-Identifier: BSD-3-Clause */
/* tls-int: a session, shared by tls.c, tls-client.c and tls-io.c. */
#ifndef MERINO_TLS_INT_H
#define MERINO_TLS_INT_H

#include <stdint.h>

#include <gnutls/gnutls.h>

#include "common/co.h"
#include "common/stream.h"
#include "common/tls-creds.h"
#include "common/tls.h"

#define TLS_RECORD 16384u		/* bytes of plaintext in a record */
#define TLS_BATCH (8 * TLS_RECORD)	/* plaintext turned into records before a send: under 50 us */
#define TLS_TURN 32			/* records opened before others have their turn: short ones cost as much */
#define TLS_OUT_SPARE 2048u		/* room for what GnuTLS itself has to say: alerts, key updates */
#define TLS_OUT_MAX (1u << 20)
#define TLS_OUT_LARGE ((TLS_BATCH + TLS_RECORD) / 4 * 5 + TLS_OUT_SPARE)	/* holds any batch */
#define TLS_IN (128u << 10)		/* bytes that one receive may bring */
#define TLS_IN_SMALL 8192u		/* … on a connection that is idle */
#define TLS_IN_HANDSHAKE 4096u		/* … from somebody who has shown nothing yet */
#define TLS_HANDSHAKE_MESSAGE (32u << 10)	/* longest handshake message: a chain of certificates */
#define TLS_HANDSHAKE_STEPS 256		/* times that a handshake may need more bytes */
#define TLS_HANDSHAKES 2		/* worked at at the same time: other work needs workers, too */
#define TLS_PEER_MAX 1024		/* bytes of a peer's name */

struct tls {
	gnutls_session_t session;
	const struct tls_creds *creds;
	/* Ciphertext that came and that GnuTLS has not asked for yet: in[in_at .. in_len). */
	uint8_t *in;
	uint32_t in_at, in_len, in_size;
	/* Ciphertext to go: out[out_at .. out_len).  Who sends holds SENDING; what is added
	 * meanwhile lies behind it, and the buffer does not move. */
	uint8_t *out;
	uint32_t out_at, out_len, out_size;
	struct co_mutex sending;
	bool out_full;			/* GnuTLS had more to say than a peer may leave unread */
	gnutls_psk_client_credentials_t psk;	/* a client's; NULL */
	gnutls_typed_vdata_st expected[2];	/* a client: of the server's certificate */
	bool unknown_user;		/* a PSK's */
	bool dead;			/* no good bye */
	char *peer;			/* NULL: nobody */
	char *description;
};

/* One go at the handshake, with the bytes that are there: a worker runs it. */
struct tls_step {
	struct tls *t;
	int rc;				/* GnuTLS's */
};
void tls_step_work(void *step);

/* SIDE: GNUTLS_SERVER, or GNUTLS_CLIENT, which sets its credentials itself. */
struct tls *tls_new(const struct tls_creds *c, unsigned side);
/* Why the handshake ended with RC, which is GnuTLS's. */
int tls_fail(struct tls *t, int rc, struct error *err);

/* tls-io.c: GnuTLS's callbacks. */
ssize_t tls_pull(gnutls_transport_ptr_t p, void *buf, size_t len);
ssize_t tls_push(gnutls_transport_ptr_t p, const giovec_t *iov, int n);

/* Whether RC means only that GnuTLS has handled a part of what is in IN, of which it had read up
 * to BEFORE: it says GNUTLS_E_AGAIN after a fragment of a message, too. */
static inline bool tls_goes_on(const struct tls *t, ssize_t rc, uint32_t before)
{
	return rc == GNUTLS_E_WARNING_ALERT_RECEIVED || rc == GNUTLS_E_INTERRUPTED ||
	       (rc == GNUTLS_E_AGAIN && t->in_at < t->in_len && t->in_at != before);
}

/* Receives at most SIZE bytes into IN, which is empty: bytes, 0 at the end, -errno. */
ssize_t tls_fill(struct stream *s, struct tls *t, uint32_t size);
/* Sends all of OUT: 0 or -errno. */
int tls_flush(struct stream *s, struct tls *t);

#endif
