/* SPDX-License-Identifier: BSD-3-Clause */
/* tls-policy: what a listener wants of its clients before they may see an export. */
#ifndef MERINO_TLS_POLICY_H
#define MERINO_TLS_POLICY_H

#include <stdbool.h>

#include "common/error.h"

struct listener_options;
struct object;
struct tls_creds;

/* Outlives the listener's connections. */
struct tls_policy {
	const struct tls_creds *creds;	/* NULL: there is no TLS */
	struct object *authz;		/* one reference; NULL: whoever has proven who he is */
	bool required;
	struct object *creds_object;	/* one reference */
};

/* Finds what O names; *P is overwritten. */
int tls_policy_make(const struct listener_options *o, struct tls_policy *p, struct error *err);
void tls_policy_clear(struct tls_policy *p);

#endif
