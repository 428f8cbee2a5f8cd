/* SPDX-License-Identifier: BSD-3-Clause */
/* tls-creds-x509: certificates.
 *
 *	DIR/ca-cert.pem                      who may sign the peer's
 *	DIR/ca-crl.pem                       what they took back; optional
 *	DIR/{server,client}-cert.pem, -key   ours; a client may have none
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "common/options.h"
#include "common/secret.h"
#include "common/tls-creds.h"

struct files {
	gnutls_datum_t ca, crl, cert, key;
};

static int read_files(const struct tls_creds *c, struct files *f, struct error *err)
{
	bool server = c->endpoint == TLS_SERVER;
	int rc = tls_creds_read(c, "ca-cert.pem", false, false, &f->ca, err);

	if (!rc)
		rc = tls_creds_read(c, "ca-crl.pem", false, true, &f->crl, err);
	if (!rc)
		rc = tls_creds_read(c, server ? "server-cert.pem" : "client-cert.pem", false,
				    !server, &f->cert, err);
	if (!rc)
		rc = tls_creds_read(c, server ? "server-key.pem" : "client-key.pem", true,
				    !f->cert.data, &f->key, err);
	return rc;
}

static int use_key(struct tls_creds *c, const struct files *f, struct error *err)
{
	struct object *ref = NULL;
	const char *password = NULL;
	int rc;

	if (c->passwordid) {
		password = secret_get_text(c->passwordid, &ref, err);
		if (!password)
			return -EINVAL;
	}
	rc = gnutls_certificate_set_x509_key_mem2(c->x509, &f->cert, &f->key, GNUTLS_X509_FMT_PEM,
						  password, 0);
	object_put(ref);
	if (rc < 0)
		return error_set(err, -EINVAL, "Cannot load certificate and key of %s: %s", c->dir,
				 gnutls_strerror(rc));
	return 0;
}

static int use_files(struct tls_creds *c, const struct files *f, struct error *err)
{
	int rc;

	if (gnutls_certificate_allocate_credentials(&c->x509) < 0)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = gnutls_certificate_set_x509_trust_mem(c->x509, &f->ca, GNUTLS_X509_FMT_PEM);
	if (rc <= 0)
		return error_set(err, -EINVAL, "Cannot load CA certificate '%s/ca-cert.pem': %s",
				 c->dir, rc ? gnutls_strerror(rc) : "no certificate");
	if (f->crl.data) {
		rc = gnutls_certificate_set_x509_crl_mem(c->x509, &f->crl, GNUTLS_X509_FMT_PEM);
		if (rc < 0)
			return error_set(err, -EINVAL, "Cannot load CRL '%s/ca-crl.pem': %s",
					 c->dir, gnutls_strerror(rc));
	}
	return f->cert.data ? use_key(c, f, err) : 0;
}

struct load {
	struct tls_creds *c;
	struct error *err;
	int rc;
};

/* On a worker: checking keys is work. */
static void load(void *arg)
{
	struct load *l = arg;
	struct files f = { 0 };

	l->rc = read_files(l->c, &f, l->err);
	if (!l->rc && l->c->sanity_check)
		l->rc = tls_sanity_check(l->c, &f.ca, &f.cert, l->err);
	if (!l->rc)
		l->rc = use_files(l->c, &f, l->err);
	if (!l->rc)
		l->rc = tls_creds_priorities(l->c, l->err);
	tls_creds_unread(&f.ca);
	tls_creds_unread(&f.crl);
	tls_creds_unread(&f.cert);
	tls_creds_unread(&f.key);
}

static int x509_create(const char *id, struct json_object *opts, void **data, struct error *err)
{
	struct tls_creds *c = calloc(1, sizeof(*c));
	struct load l = { c, err, 0 };
	int rc;

	*data = c;
	if (!c)
		return error_set(err, -ENOMEM, "Out of memory");
	c->kind = TLS_X509;
	c->verify_peer = c->sanity_check = true;
	rc = tls_creds_take(c, opts, err);
	if (!rc)
		rc = opts_bool(opts, "verify-peer", &c->verify_peer, err);
	if (!rc)
		rc = opts_bool(opts, "sanity-check", &c->sanity_check, err);
	if (!rc)
		rc = opts_str(opts, "passwordid", &c->passwordid, err);
	if (!rc)
		rc = opts_end(opts, err);
	if (rc)
		return rc;
	loop_work(load, &l);
	return l.rc;
}

struct object_class tls_creds_x509_class = {
	.name = "tls-creds-x509",
	.options = (const char *const[]){
		"dir", "endpoint", "verify-peer", "priority", "passwordid", "sanity-check", NULL
	},
	.create = x509_create,
	.destroy = tls_creds_destroy,
};
