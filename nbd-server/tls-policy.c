/* SPDX-License-Identifier: BSD-3-Clause */
/* tls-policy: refuses what would look like a check and be none. */
#include "nbd-server/tls-policy.h"

#include <errno.h>

#include "common/authz.h"
#include "common/tls-creds.h"
#include "nbd-server/listener.h"

static int check(const struct listener_options *o, const struct tls_policy *p, struct error *err)
{
	if (!p->authz)
		return 0;
	if (!p->creds)
		return error_set(err, -EINVAL, "TLS authorization is not supported without tls-creds");
	if (o->tls_optional)
		return error_set(err, -EINVAL,
				 "tls-authz needs tls=require: clients without TLS have no name");
	if (p->creds->kind == TLS_X509 && !p->creds->verify_peer)
		return error_set(err, -EINVAL,
				 "tls-authz needs credentials with verify-peer=on: "
				 "other clients have no name");
	return 0;
}

int tls_policy_make(const struct listener_options *o, struct tls_policy *p, struct error *err)
{
	int rc = 0;

	*p = (struct tls_policy){ .required = !o->tls_optional };
	if (o->tls_creds) {
		p->creds = tls_creds_get(o->tls_creds, TLS_SERVER, &p->creds_object, err);
		rc = p->creds ? 0 : -EINVAL;
	}
	if (!rc && o->tls_authz) {
		p->authz = authz_get(o->tls_authz, err);
		rc = p->authz ? 0 : -EINVAL;
	}
	if (!rc)
		rc = check(o, p, err);
	if (rc)
		tls_policy_clear(p);
	return rc;
}

void tls_policy_clear(struct tls_policy *p)
{
	object_put(p->creds_object);
	object_put(p->authz);
	*p = (struct tls_policy){ 0 };
}
