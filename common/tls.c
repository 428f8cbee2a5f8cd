/* SPDX-License-Identifier: BSD-3-Clause */
/* tls: the life of a session.
 *
 *	tls_accept:   new ─▶ { a step on a worker ─▶ send ─▶ receive } … ─▶ checks ─▶ s->tls
 *
 * The peer has shown nothing before the end of it.  What it may send is bounded by the
 * length of a message and the number of steps, what it costs by the workers that do
 * handshakes; a certificate is verified inside, so that a peer that is refused gets an
 * alert that says why.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <gnutls/crypto.h>
#include <gnutls/x509.h>

#include "common/loop.h"
#include "common/tls-int.h"

enum { UNKNOWN_KEY_BYTES = 32 };

static unsigned handshakes;		/* steps that workers are at; main loop */
static struct co_queue handshakes_wait;

/* -- keys of users ----------------------------------------------------------- */

/* A user whom nobody knows gets a key that nobody knows: from outside that looks like
 * the wrong key of a user who is known. */
int tls_find_key(gnutls_session_t session, const gnutls_datum_t *user, gnutls_datum_t *key)
{
	struct tls *t = gnutls_session_get_ptr(session);
	const struct psk_key *k = tls_creds_psk(t->creds, user->data, user->size);

	t->unknown_user = !k;
	key->size = k ? (unsigned)k->key_len : UNKNOWN_KEY_BYTES;
	key->data = gnutls_malloc(key->size);
	if (!key->data)
		return -1;
	if (k)
		memcpy(key->data, k->key, k->key_len);
	else if (gnutls_rnd(GNUTLS_RND_RANDOM, key->data, key->size) < 0)
		return -1;
	return 0;
}

/* -- making a session --------------------------------------------------------- */

static int is_there(gnutls_transport_ptr_t p, unsigned ms)
{
	const struct tls *t = p;

	return t->in_at < t->in_len;
}

static int use_creds(struct tls *t)
{
	static gnutls_typed_vdata_st purpose = {
		GNUTLS_DT_KEY_PURPOSE_OID, (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT, 0,
	};
	const struct tls_creds *c = t->creds;

	if (c->kind == TLS_PSK)
		return gnutls_credentials_set(t->session, GNUTLS_CRD_PSK, c->psk);
	if (c->verify_peer) {
		gnutls_certificate_server_set_request(t->session, GNUTLS_CERT_REQUIRE);
		gnutls_session_set_verify_cert2(t->session, &purpose, 1, 0);
	} else {
		gnutls_certificate_server_set_request(t->session, GNUTLS_CERT_IGNORE);
	}
	return gnutls_credentials_set(t->session, GNUTLS_CRD_CERTIFICATE, c->x509);
}

struct tls *tls_new(const struct tls_creds *c, unsigned side)
{
	struct tls *t = calloc(1, sizeof(*t));
	int rc;

	if (!t)
		return NULL;
	t->creds = c;
	rc = gnutls_init(&t->session, side | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
	if (rc < 0) {
		free(t);
		return NULL;
	}
	gnutls_session_set_ptr(t->session, t);
	gnutls_transport_set_ptr(t->session, t);
	gnutls_transport_set_pull_function(t->session, tls_pull);
	gnutls_transport_set_pull_timeout_function(t->session, is_there);
	gnutls_transport_set_vec_push_function(t->session, tls_push);
	gnutls_handshake_set_max_packet_length(t->session, TLS_HANDSHAKE_MESSAGE);
	rc = gnutls_priority_set(t->session, c->priorities);
	if (rc >= 0 && side == GNUTLS_SERVER)
		rc = use_creds(t);
	if (rc < 0) {
		tls_free(t, -1);
		return NULL;
	}
	return t;
}

void tls_free(struct tls *t, int fd)
{
	if (!t)
		return;
	if (fd >= 0 && !t->dead && !t->out_len && gnutls_bye(t->session, GNUTLS_SHUT_WR) >= 0 &&
	    t->out_len)
		send(fd, t->out, t->out_len, MSG_DONTWAIT | MSG_NOSIGNAL);
	gnutls_deinit(t->session);
	if (t->psk)
		gnutls_psk_free_client_credentials(t->psk);
	free(t->in);
	free(t->out);
	free(t->peer);
	free(t->description);
	free(t);
}

/* -- the handshake ----------------------------------------------------------- */

void tls_step_work(void *arg)
{
	struct tls_step *s = arg;
	uint32_t before;

	do {
		before = s->t->in_at;
		s->rc = gnutls_handshake(s->t->session);
	} while (tls_goes_on(s->t, s->rc, before));
	if (s->rc == GNUTLS_E_AGAIN && s->t->in_at < s->t->in_len)
		s->rc = GNUTLS_E_UNEXPECTED_PACKET;	/* it does not want what is there */
	if (s->rc < 0 && s->rc != GNUTLS_E_AGAIN)
		gnutls_alert_send_appropriate(s->t->session, s->rc);
}

static int handshake_step(struct tls *t)
{
	struct tls_step s = { .t = t };

	while (handshakes >= TLS_HANDSHAKES)
		co_queue_wait(&handshakes_wait);
	handshakes++;
	loop_work(tls_step_work, &s);
	handshakes--;
	co_queue_wake_one(&handshakes_wait);
	return s.rc;
}

static const char *why(const struct tls *t, int rc)
{
	if (t->unknown_user)
		return "nobody has the name that the client gave";
	if (rc == GNUTLS_E_FATAL_ALERT_RECEIVED)
		return gnutls_alert_get_name(gnutls_alert_get(t->session));
	return gnutls_strerror(rc);
}

/* What is wrong with a certificate, in GnuTLS's words. */
int tls_fail(struct tls *t, int rc, struct error *err)
{
	unsigned status = gnutls_session_get_verify_cert_status(t->session);
	gnutls_datum_t text = { 0 };

	if (rc != GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR ||
	    gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) < 0)
		return error_set(err, -EPROTO, "TLS handshake failed: %s", why(t, rc));
	error_set(err, -EACCES, "TLS handshake failed: %s", (char *)text.data);
	gnutls_free(text.data);
	return -EACCES;
}

static int handshake(struct stream *s, struct tls *t, struct error *err)
{
	for (unsigned i = 0; i < TLS_HANDSHAKE_STEPS; i++) {
		int done = handshake_step(t), rc = tls_flush(s, t);
		ssize_t n;

		if (done < 0 && done != GNUTLS_E_AGAIN)
			return tls_fail(t, done, err);
		if (rc)
			return error_errno(err, rc, "TLS handshake failed");
		if (done >= 0)
			return 0;
		n = tls_fill(s, t, TLS_IN_HANDSHAKE);
		if (n <= 0)
			return error_set(err, n ? (int)n : -ECONNRESET,
					 "TLS handshake failed: the client has gone");
	}
	return error_set(err, -E2BIG, "TLS handshake failed: too many messages");
}

/* -- afterwards -------------------------------------------------------------- */

/* The subject of the peer's certificate, as QEMU writes it for its authz objects. */
static int subject(struct tls *t)
{
	unsigned n = 0;
	const gnutls_datum_t *der = gnutls_certificate_get_peers(t->session, &n);
	size_t size = TLS_PEER_MAX;
	gnutls_x509_crt_t cert;
	int rc;

	if (!der || !n || gnutls_x509_crt_init(&cert) < 0)
		return -EACCES;
	t->peer = malloc(size);
	rc = t->peer ? gnutls_x509_crt_import(cert, der, GNUTLS_X509_FMT_DER) : -1;
	if (rc >= 0)
		rc = gnutls_x509_crt_get_dn(cert, t->peer, &size);
	gnutls_x509_crt_deinit(cert);
	return rc < 0 ? -EACCES : 0;
}

static int psk_user(struct tls *t)
{
	gnutls_datum_t user = { 0 };

	if (gnutls_psk_server_get_username2(t->session, &user) < 0 || !user.data ||
	    memchr(user.data, 0, user.size))
		return -EACCES;
	t->peer = strndup((char *)user.data, user.size);
	return t->peer ? 0 : -ENOMEM;
}

static int check(struct tls *t, struct error *err)
{
	gnutls_protocol_t version = gnutls_protocol_get_version(t->session);
	int rc = 0;

	if (version != GNUTLS_TLS1_2 && version != GNUTLS_TLS1_3)
		return error_set(err, -EPROTO, "TLS handshake failed: %s is too old",
				 gnutls_protocol_get_name(version));
	if (t->creds->kind == TLS_PSK)
		rc = psk_user(t);
	else if (t->creds->verify_peer)
		rc = subject(t);
	if (rc)
		return error_set(err, rc, "TLS handshake failed: the client has no name");
	if (asprintf(&t->description, "%s %s", gnutls_protocol_get_name(version),
		     gnutls_cipher_get_name(gnutls_cipher_get(t->session))) < 0) {
		t->description = NULL;
		return error_set(err, -ENOMEM, "Out of memory");
	}
	return 0;
}

int tls_accept(struct stream *s, const struct tls_creds *c, struct error *err)
{
	struct tls *t = tls_new(c, GNUTLS_SERVER);
	int rc;

	if (!t)
		return error_set(err, -ENOMEM, "TLS handshake failed: out of memory");
	rc = handshake(s, t, err);
	if (!rc)
		rc = check(t, err);
	if (rc) {
		t->dead = true;
		tls_free(t, -1);
		return rc;
	}
	s->tls = t;
	return 0;
}

const char *tls_peer(const struct tls *t)
{
	return t->peer;
}

const char *tls_describe(const struct tls *t)
{
	return t->description;
}
