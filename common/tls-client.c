/* SPDX-License-Identifier: BSD-3-Clause */
/* tls-client: the handshake of one who connects.
 *
 * A server shows a certificate for the name that it was reached by, or knows our key;
 * what it sends is bounded as what a client sends is (tls.c).
 */
#include <errno.h>
#include <string.h>

#include <gnutls/x509.h>

#include "common/loop.h"
#include "common/tls-int.h"

static int use_key(struct tls *t)
{
	const struct tls_creds *c = t->creds;
	const struct psk_key *k = tls_creds_psk(c, c->username, strlen(c->username));
	gnutls_datum_t key;
	int rc;

	if (!k)
		return GNUTLS_E_INSUFFICIENT_CREDENTIALS;
	rc = gnutls_psk_allocate_client_credentials(&t->psk);
	if (rc < 0)
		return rc;
	key = (gnutls_datum_t){ k->key, (unsigned)k->key_len };
	rc = gnutls_psk_set_client_credentials(t->psk, c->username, &key, GNUTLS_PSK_KEY_RAW);
	return rc < 0 ? rc : gnutls_credentials_set(t->session, GNUTLS_CRD_PSK, t->psk);
}

static int use_certificate(struct tls *t, const char *hostname)
{
	int rc = 0;

	t->expected[0] = (gnutls_typed_vdata_st){
		GNUTLS_DT_DNS_HOSTNAME, (unsigned char *)hostname, 0,
	};
	t->expected[1] = (gnutls_typed_vdata_st){
		GNUTLS_DT_KEY_PURPOSE_OID, (unsigned char *)GNUTLS_KP_TLS_WWW_SERVER, 0,
	};
	if (t->creds->verify_peer)
		gnutls_session_set_verify_cert2(t->session, t->expected, 2, 0);
	if (hostname)
		rc = gnutls_server_name_set(t->session, GNUTLS_NAME_DNS, hostname, strlen(hostname));
	return rc < 0 ? rc : gnutls_credentials_set(t->session, GNUTLS_CRD_CERTIFICATE, t->creds->x509);
}

static int handshake(struct stream *s, struct tls *t, struct error *err)
{
	for (unsigned i = 0; i < TLS_HANDSHAKE_STEPS; i++) {
		struct tls_step step = { .t = t };
		ssize_t n;
		int rc;

		loop_work(tls_step_work, &step);
		rc = tls_flush(s, t);
		if (step.rc < 0 && step.rc != GNUTLS_E_AGAIN)
			return tls_fail(t, step.rc, err);
		if (rc)
			return error_errno(err, rc, "TLS handshake failed");
		if (step.rc >= 0)
			return 0;
		n = tls_fill(s, t, TLS_IN_HANDSHAKE);
		if (n <= 0)
			return error_set(err, n ? (int)n : -ECONNRESET,
					 "TLS handshake failed: the server has gone");
	}
	return error_set(err, -E2BIG, "TLS handshake failed: too many messages");
}

static bool is_too_old(const struct tls *t)
{
	gnutls_protocol_t version = gnutls_protocol_get_version(t->session);

	return version != GNUTLS_TLS1_2 && version != GNUTLS_TLS1_3;
}

int tls_connect(struct stream *s, const struct tls_creds *c, const char *hostname,
		struct error *err)
{
	struct tls *t = tls_new(c, GNUTLS_CLIENT);
	int rc;

	if (!t)
		return error_set(err, -ENOMEM, "TLS handshake failed: out of memory");
	rc = c->kind == TLS_PSK ? use_key(t) : use_certificate(t, hostname);
	if (rc < 0)
		rc = error_set(err, -EINVAL, "TLS handshake failed: %s", gnutls_strerror(rc));
	else
		rc = handshake(s, t, err);
	if (!rc && is_too_old(t))
		rc = error_set(err, -EPROTO, "TLS handshake failed: the server's protocol is too old");
	if (rc) {
		t->dead = true;
		tls_free(t, -1);
		return rc;
	}
	s->tls = t;
	return 0;
}
