/* SPDX-License-Identifier: BSD-3-Clause */
/* uri: NBD URIs, as NetworkBlockDevice/nbd doc/uri.md defines them.
 *
 * nbd://host[:port]/export and nbd+unix:///export?socket=path, with nbds for TLS.
 * Everything is percent-decoded and free of NUL; host and socket are free of control
 * characters too.  A host never starts with '-', whether read or built: it may
 * end up as an argument of another program.
 */
#ifndef MERINO_URI_H
#define MERINO_URI_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#define URI_NBD_PORT 10809

/* All strings are owned; uri_clear frees them. */
struct uri {
	bool tls;			/* nbds, nbds+unix */
	bool abstract;			/* socket is a name in Linux's abstract namespace (%00) */
	char *socket;			/* path of a unix socket; NULL for TCP */
	char *host;			/* name or address, IPv6 without brackets; NULL for unix */
	uint16_t port;			/* TCP: URI_NBD_PORT where the text gives none */
	char *user;			/* "user@": the TLS-PSK or SASL identity, or NULL */
	char *export;			/* never NULL; "" is the default export */
	char *tls_type;			/* ?tls-type=anon|x509|psk, or NULL */
	char *tls_certificates;		/* ?tls-certificates=DIR, or NULL */
	char *tls_psk_file;		/* ?tls-psk-file=PATH, or NULL */
	char *tls_hostname;		/* ?tls-hostname=NAME, or NULL */
	bool tls_no_verify;		/* ?tls-verify-peer=false */
};

/* True iff TEXT starts with a scheme that uri_parse reads (so it is no file name). */
bool uri_is_nbd(const char *text);

/* Reads TEXT; *OUT is overwritten and owned by the caller.  -EINVAL with *OUT
 * cleared.  Unknown query parameters are refused: the specification wants them
 * diagnosed, and one may have been meant to protect the connection. */
int uri_parse(const char *text, struct uri *out, struct error *err);

void uri_clear(struct uri *uri);

/* Make a URI that can be pasted into any NBD client; *OUT is malloc'd.  EXPORT may
 * be NULL or "".  HOST is a name or an address, IPv6 with or without brackets;
 * port 10809 is left out of the text. */
int uri_build_unix(bool tls, const char *socket, const char *export, char **out,
		   struct error *err);
int uri_build_abstract(bool tls, const char *name, const char *export, char **out,
		       struct error *err);
int uri_build_tcp(bool tls, const char *host, uint16_t port, const char *export, char **out,
		  struct error *err);

#endif
