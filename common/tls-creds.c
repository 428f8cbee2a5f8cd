/* SPDX-License-Identifier: BSD-3-Clause */
/* tls-creds: what certificates and keys have in common.
 *
 * Priorities.  TLS 1.3 and 1.2 only, key exchanges with forward secrecy only, and the
 * server's order wins: GnuTLS's own order puts ChaCha20 before AES-128, and a PSK in
 * TLS 1.3 can use no AES-256 suite (its hash is SHA-256), so that most clients would
 * end up with a cipher that is ten times slower where there are AES instructions.  The
 * order of the groups begins with the one that every client sends a share for.
 */
#include "common/tls-creds.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/options.h"
#include "common/read-small.h"

#define TLS_PRIORITY "NORMAL:-RSA:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305" \
	":-GROUP-ALL:+GROUP-X25519:+GROUP-SECP256R1:+GROUP-SECP384R1:+GROUP-SECP521R1" \
	":+GROUP-X448:+GROUP-FFDHE2048:+GROUP-FFDHE3072:+GROUP-FFDHE4096:%SERVER_PRECEDENCE"
#define TLS_PRIORITY_PSK ":+ECDHE-PSK:+DHE-PSK"
#define TLS_PRIORITY_ALWAYS ":-VERS-SSL3.0:-VERS-TLS1.0:-VERS-TLS1.1"

static const char *const endpoints[] = { "server", "client", NULL };

char *tls_creds_path(const struct tls_creds *c, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s", c->dir, name) < 0 ? NULL : path;
}

void tls_creds_unread(gnutls_datum_t *d)
{
	read_small_free(d->data, d->size);
	*d = (gnutls_datum_t){ 0 };
}

static int read_path(const char *path, bool keys, bool optional, gnutls_datum_t *d,
		     struct error *err)
{
	struct stat st;
	size_t len = 0;
	int rc = read_small(path, TLS_FILE_MAX, &d->data, &len, &st);

	if (rc == -ENOENT && optional)
		return 0;
	if (rc)
		return error_errno(err, rc, "Unable to access credentials %s", path);
	d->size = (unsigned)len;
	if (keys && st.st_mode & (S_IRWXO | S_IWGRP))
		log_warning("%s: other users can read or change these keys (mode %04o)", path,
			    st.st_mode & 07777);
	return 0;
}

int tls_creds_read(const struct tls_creds *c, const char *name, bool keys, bool optional,
		   gnutls_datum_t *d, struct error *err)
{
	char *path = tls_creds_path(c, name);
	int rc = path ? read_path(path, keys, optional, d, err)
		      : error_set(err, -ENOMEM, "Out of memory");

	free(path);
	return rc;
}

/* -- the class's common part ------------------------------------------------ */

int tls_creds_take(struct tls_creds *c, struct json_object *opts, struct error *err)
{
	int endpoint = TLS_CLIENT;
	int rc = opts_str(opts, "dir", &c->dir, err);

	if (!rc)
		rc = opts_enum(opts, "endpoint", endpoints, &endpoint, err);
	if (!rc)
		rc = opts_str(opts, "priority", &c->priority, err);
	if (!rc && !c->dir)
		rc = error_set(err, -EINVAL, "Missing 'dir' property value");
	c->endpoint = (enum tls_endpoint)endpoint;
	return rc;
}

int tls_creds_priorities(struct tls_creds *c, struct error *err)
{
	const char *base = c->priority ? c->priority : TLS_PRIORITY, *at = NULL;
	char *text;
	int rc;

	if (asprintf(&text, "%s%s%s", base, c->kind == TLS_PSK ? TLS_PRIORITY_PSK : "",
		     TLS_PRIORITY_ALWAYS) < 0)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = gnutls_priority_init(&c->priorities, text, &at);
	if (rc < 0)
		error_set(err, -EINVAL, "Unable to set TLS session priority %s: %s at '%s'", text,
			  gnutls_strerror(rc), at ? at : "");
	free(text);
	return rc < 0 ? -EINVAL : 0;
}

static void free_keys(struct tls_creds *c)
{
	for (size_t i = 0; i < c->n_keys; i++) {
		free(c->keys[i].user);
		read_small_free(c->keys[i].key, c->keys[i].key_len);
	}
	free(c->keys);
}

void tls_creds_destroy(void *data)
{
	struct tls_creds *c = data;

	if (!c)
		return;
	if (c->x509)
		gnutls_certificate_free_credentials(c->x509);
	if (c->psk)
		gnutls_psk_free_server_credentials(c->psk);
	if (c->priorities)
		gnutls_priority_deinit(c->priorities);
	free_keys(c);
	free(c->dir);
	free(c->priority);
	free(c->passwordid);
	free(c->username);
	free(c);
}

const struct tls_creds *tls_creds_get(const char *id, enum tls_endpoint endpoint,
				      struct object **ref, struct error *err)
{
	const struct tls_creds *c = object_get(id, NULL, ref, NULL);
	const struct object_class *class = c ? object_class_of(*ref) : NULL;

	if (!c) {
		error_set(err, -ENOENT, "No TLS credentials with id '%s'", id);
		return NULL;
	}
	if (class != &tls_creds_x509_class && class != &tls_creds_psk_class)
		error_set(err, -EINVAL, "Object with id '%s' is not TLS credentials", id);
	else if (c->endpoint != endpoint)
		error_set(err, -EINVAL, "Expected TLS credentials for a %s endpoint",
			  endpoints[endpoint]);
	else
		return c;
	object_put(*ref);
	*ref = NULL;
	return NULL;
}
