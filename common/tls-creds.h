/* SPDX-License-Identifier: BSD-3-Clause */
/* tls-creds: the object classes "tls-creds-x509" and "tls-creds-psk": who we are, and
 * how a peer proves who it is.
 *
 * tls-creds.c       what both have in common, and priorities
 * tls-creds-x509.c  certificates in DIR, named as QEMU and libvirt name them
 * tls-creds-psk.c   DIR/keys.psk, as psktool(1) writes it
 * tls-sanity.c      certificates that could never work
 *
 * Files are read once, when the object is made.
 */
#ifndef MERINO_TLS_CREDS_H
#define MERINO_TLS_CREDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <gnutls/gnutls.h>

#include "common/objects.h"

enum tls_endpoint { TLS_SERVER, TLS_CLIENT };
enum tls_kind { TLS_X509, TLS_PSK };

#define TLS_FILE_MAX (1u << 20)		/* bytes of a file of credentials */

/* One line of keys.psk. */
struct psk_key {
	uint8_t *user, *key;		/* user has a zero byte behind it */
	size_t user_len, key_len;
};

/* Does not change once it is made: any thread may read it. */
struct tls_creds {
	enum tls_kind kind;
	enum tls_endpoint endpoint;
	bool verify_peer;		/* x509: clients need a certificate; the server's is checked */
	bool sanity_check;
	char *dir;			/* owned, as all strings here */
	char *priority;			/* as the user gave it; NULL: ours */
	char *passwordid;		/* x509: of the secret that opens the key; NULL */
	char *username;			/* psk, client */
	gnutls_priority_t priorities;
	gnutls_certificate_credentials_t x509;
	gnutls_psk_server_credentials_t psk;
	struct psk_key *keys;
	size_t n_keys;
};

extern struct object_class tls_creds_x509_class, tls_creds_psk_class;

/* The credentials ID with one more reference in *REF (object_put), which must outlive all
 * sessions.  NULL with ERR, in QEMU's words, when there are none or they are for the
 * other endpoint.
 *
 * For a client that is set up by libnbd: a PSK's ->dir has "keys.psk"
 * (nbd_set_tls_psk_file), ->username goes to nbd_set_tls_username; an x509's ->dir is
 * nbd_set_tls_certificates', ->verify_peer nbd_set_tls_verify_peer's.  ->priority and
 * ->passwordid have no counterpart there. */
const struct tls_creds *tls_creds_get(const char *id, enum tls_endpoint endpoint,
				      struct object **ref, struct error *err);

/* The key of a user; NULL: nobody has that name. */
const struct psk_key *tls_creds_psk(const struct tls_creds *c, const void *user, size_t len);

/* -- the files' own --------------------------------------------------------- */

/* Takes what both classes have: dir, endpoint, priority. */
int tls_creds_take(struct tls_creds *c, struct json_object *opts, struct error *err);
int tls_creds_priorities(struct tls_creds *c, struct error *err);
/* Frees all of it; NULL is fine. */
void tls_creds_destroy(void *data);
/* DIR/NAME, malloc'd; NULL when out of memory. */
char *tls_creds_path(const struct tls_creds *c, const char *name);
/* Reads DIR/NAME (read_small), with QEMU's words for one that is missing; a file of KEYS that others
 * can read is warned of.  A missing one that is OPTIONAL: 0, and D->data is NULL. */
int tls_creds_read(const struct tls_creds *c, const char *name, bool keys, bool optional,
		   gnutls_datum_t *d, struct error *err);
void tls_creds_unread(gnutls_datum_t *d);

/* tls.c: tells GnuTLS a user's key. */
int tls_find_key(gnutls_session_t session, const gnutls_datum_t *user, gnutls_datum_t *key);

/* Refuses certificates (PEM) that no peer would accept, in QEMU's words.  OWN may be empty. */
int tls_sanity_check(const struct tls_creds *c, const gnutls_datum_t *ca, const gnutls_datum_t *own,
		     struct error *err);

#endif
