/* SPDX-License-Identifier: BSD-3-Clause */
/* tls-sanity: mistakes in certificates that would only show when a client is refused,
 * with a text that says less.  QEMU makes the same checks.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <gnutls/x509.h>

#include "common/tls-creds.h"

struct certs {
	gnutls_x509_crt_t *v;
	unsigned n;
};

static void certs_free(struct certs *s)
{
	for (unsigned i = 0; i < s->n; i++)
		gnutls_x509_crt_deinit(s->v[i]);
	gnutls_free(s->v);
}

static int certs_read(struct certs *s, const gnutls_datum_t *pem, const char *what,
		      struct error *err)
{
	int rc = gnutls_x509_crt_list_import2(&s->v, &s->n, pem, GNUTLS_X509_FMT_PEM, 0);

	if (rc < 0)
		return error_set(err, -EINVAL, "Unable to import %s: %s", what, gnutls_strerror(rc));
	return 0;
}

static int check_time(gnutls_x509_crt_t cert, const char *what, struct error *err)
{
	time_t now = time(NULL);

	if (gnutls_x509_crt_get_expiration_time(cert) < now)
		return error_set(err, -EINVAL, "The %s has expired", what);
	if (gnutls_x509_crt_get_activation_time(cert) > now)
		return error_set(err, -EINVAL, "The %s is not yet active", what);
	return 0;
}

static int check_ca(gnutls_x509_crt_t cert, const char *what, struct error *err)
{
	unsigned usage = 0, critical;
	int rc = gnutls_x509_crt_get_basic_constraints(cert, NULL, NULL, NULL);

	if (rc == 0)
		return error_set(err, -EINVAL, "The %s basic constraints do not show a CA", what);
	if (rc < 0 && rc != GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
		return error_set(err, -EINVAL, "Unable to query %s basic constraints: %s", what,
				 gnutls_strerror(rc));
	rc = gnutls_x509_crt_get_key_usage(cert, &usage, &critical);
	if (rc >= 0 && critical && !(usage & GNUTLS_KEY_KEY_CERT_SIGN))
		return error_set(err, -EINVAL, "The %s usage does not permit certificate signing",
				 what);
	return 0;
}

/* Without the extension a certificate is for any purpose. */
static bool has_purpose(gnutls_x509_crt_t cert, const char *wanted)
{
	for (unsigned i = 0; ; i++) {
		char oid[128];
		size_t size = sizeof(oid);
		unsigned critical;
		int rc = gnutls_x509_crt_get_key_purpose_oid(cert, i, oid, &size, &critical);

		if (rc == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
			return i == 0;
		if (rc < 0)
			continue;	/* one that is longer than any that we know */
		if (!strcmp(oid, wanted) || !strcmp(oid, GNUTLS_KP_ANY))
			return true;
	}
}

static int check_own(gnutls_x509_crt_t cert, enum tls_endpoint endpoint, const char *what,
		     struct error *err)
{
	const char *role = endpoint == TLS_SERVER ? "server" : "client";
	int rc = gnutls_x509_crt_get_basic_constraints(cert, NULL, NULL, NULL);

	if (rc > 0)
		return error_set(err, -EINVAL, "The %s basic constraints show a CA, "
				 "but we need one for a %s", what, role);
	if (!has_purpose(cert, endpoint == TLS_SERVER ? GNUTLS_KP_TLS_WWW_SERVER
						      : GNUTLS_KP_TLS_WWW_CLIENT))
		return error_set(err, -EINVAL, "The %s purpose does not allow use with a TLS %s",
				 what, role);
	return 0;
}

static int check_chain(const struct tls_creds *c, const struct certs *own, const struct certs *ca,
		       struct error *err)
{
	const char *reason = "Invalid certificate";
	unsigned status = 0;
	int rc = gnutls_x509_crt_list_verify(own->v, (int)own->n, ca->v, (int)ca->n, NULL, 0, 0,
					     &status);

	if (rc < 0)
		return error_set(err, -EINVAL, "Unable to verify our own certificate in %s: %s",
				 c->dir, gnutls_strerror(rc));
	if (!status)
		return 0;
	if (status & GNUTLS_CERT_SIGNER_NOT_FOUND)
		reason = "The certificate hasn't got a known issuer";
	else if (status & GNUTLS_CERT_INSECURE_ALGORITHM)
		reason = "The certificate uses an insecure algorithm";
	else if (status & (GNUTLS_CERT_EXPIRED | GNUTLS_CERT_NOT_ACTIVATED))
		reason = "A certificate of the chain is not valid now";
	return error_set(err, -EINVAL, "Our own certificate in %s failed validation against "
			 "%s/ca-cert.pem: %s", c->dir, c->dir, reason);
}

static int check(const struct tls_creds *c, const struct certs *ca, const struct certs *own,
		 struct error *err)
{
	const char *role = c->endpoint == TLS_SERVER ? "server certificate" : "client certificate";
	int rc = ca->n ? 0 : error_set(err, -EINVAL, "There is no CA certificate in %s", c->dir);

	for (unsigned i = 0; i < ca->n && !rc; i++) {
		rc = check_time(ca->v[i], "CA certificate", err);
		if (!rc)
			rc = check_ca(ca->v[i], "CA certificate", err);
	}
	if (!rc && own->n) {
		rc = check_time(own->v[0], role, err);
		if (!rc)
			rc = check_own(own->v[0], c->endpoint, role, err);
		if (!rc)
			rc = check_chain(c, own, ca, err);
	}
	return rc;
}

int tls_sanity_check(const struct tls_creds *c, const gnutls_datum_t *ca, const gnutls_datum_t *own,
		     struct error *err)
{
	struct certs cas = { 0 }, mine = { 0 };
	int rc = certs_read(&cas, ca, "CA certificate", err);

	if (!rc && own->data)
		rc = certs_read(&mine, own, "our own certificate", err);
	if (!rc)
		rc = check(c, &cas, &mine, err);
	certs_free(&cas);
	certs_free(&mine);
	if (rc)
		error_hint(err, "the files are in %s", c->dir);
	return rc;
}
