/* SPDX-License-Identifier: BSD-3-Clause */
/* negotiate-tls: STARTTLS, and what a client may ask before it.
 *
 * Everything before TLS may have been said by somebody in the middle: what was
 * negotiated is forgotten, and whoever sends on before the server has agreed to
 * TLS is dropped, since those bytes would be taken for the client's afterwards.
 */
#include "nbd-server/negotiate-int.h"

#include <errno.h>

#include "common/authz.h"
#include "common/log.h"
#include "nbd-server/tls-policy.h"

bool handshake_needs_tls(const struct handshake *h)
{
	const struct tls_policy *p = h->a->tls;

	return p && p->creds && p->required && !h->s->tls;
}

int negotiate_refuse_plain(struct handshake *h)
{
	if (h->option == NBD_OPT_EXPORT_NAME)
		return -EACCES;			/* has no error reply */
	return handshake_refuse(h, NBD_REP_ERR_TLS_REQD, "option %u is not permitted before TLS",
				h->option);
}

/* 0 when the client may come in. */
static int check_peer(struct handshake *h, const struct tls_policy *p)
{
	const char *peer = tls_peer(h->s->tls);

	if (p->authz && !(peer && authz_allows(p->authz, peer))) {
		log_info("client refused reason='not authorised' name='%s'", peer ? peer : "");
		return -EACCES;
	}
	log_debug("tls='%s' name='%s'", tls_describe(h->s->tls), peer ? peer : "");
	return 0;
}

int negotiate_starttls(struct handshake *h)
{
	const struct tls_policy *p = h->a->tls;
	struct error err = ERROR_INIT;
	int rc;

	if (h->len)
		return handshake_refuse(h, NBD_REP_ERR_INVALID, "option STARTTLS has no payload");
	if (!p || !p->creds)
		return handshake_refuse(h, NBD_REP_ERR_POLICY, "TLS not configured");
	if (h->s->tls)
		return handshake_refuse(h, NBD_REP_ERR_INVALID, "TLS already enabled");
	if (h->in_at != h->in_len) {
		log_info("client refused reason='bytes behind STARTTLS'");
		return -EPROTO;
	}
	rc = handshake_reply(h, NBD_REP_ACK, NULL, 0);
	if (!rc)
		rc = handshake_flush(h);
	if (rc)
		return rc;
	handshake_forget(h);
	rc = tls_accept(h->s, p->creds, &err);
	if (rc) {
		log_info("client refused reason='%s'", err.text);
		return rc;
	}
	return check_peer(h, p);
}
