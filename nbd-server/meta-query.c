/* SPDX-License-Identifier: BSD-3-Clause */
/* meta-query: which metadata contexts a client's queries name (proto.md,
 * "Metadata querying"; QEMU's docs/interop/nbd.txt for the qemu: namespace).
 *
 *	base:allocation				the export's contexts[0]
 *	qemu:allocation-depth
 *	qemu:dirty-bitmap:NAME
 *
 * LIST also takes "base:", "qemu:" and "qemu:dirty-bitmap:" for all below them,
 * and no query at all for everything.  SET takes whole names; what matches
 * nothing is left out, not an error.  Every SET, a failed one too, replaces what
 * the one before it selected.
 */
#include "nbd-server/negotiate-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"

struct meta_request {
	const char *name;		/* the export's */
	uint32_t name_len;
	uint32_t n_queries;
	struct payload queries;		/* each a string; checked */
};

/* Reads the whole payload, so that nothing is selected out of a broken one. */
static bool meta_parse(struct handshake *h, struct meta_request *r)
{
	struct payload p = { h->data, h->len };
	const char *query;
	uint32_t len;

	if (!payload_string(&p, &r->name, &r->name_len) || !payload_u32(&p, &r->n_queries))
		return false;
	r->queries = p;
	for (uint32_t i = 0; i < r->n_queries; i++) {
		if (!payload_string(&p, &query, &len))
			return false;
	}
	return p.left == 0;
}

/* "base:", "qemu:" or "qemu:dirty-bitmap:", and CONTEXT lies below it. */
static bool meta_is_above(const char *query, uint32_t len, const char *context)
{
	static const char *const above[] = { "base:", "qemu:", "qemu:dirty-bitmap:" };

	for (unsigned i = 0; i < sizeof(above) / sizeof(above[0]); i++) {
		if (len == strlen(above[i]) && !memcmp(query, above[i], len))
			return !strncmp(context, above[i], len);
	}
	return false;
}

static bool meta_matches(const struct export_context *c, const char *query, uint32_t len,
			 bool listing)
{
	if (strlen(c->name) == len && !memcmp(c->name, query, len))
		return true;
	return listing && meta_is_above(query, len, c->name);
}

/* Sets CHOSEN[i] for every context i that a query names. */
static void meta_choose(const struct export *e, const struct meta_request *r, bool listing,
			bool *chosen)
{
	struct payload p = r->queries;
	const char *query;
	uint32_t len;

	if (listing && !r->n_queries)
		memset(chosen, true, e->n_contexts * sizeof(*chosen));
	while (payload_string(&p, &query, &len)) {
		for (unsigned i = 0; i < e->n_contexts; i++)
			chosen[i] = chosen[i] || meta_matches(&e->contexts[i], query, len, listing);
	}
}

/* NBD_REP_META_CONTEXT: the id (reserved, 0, when only listing) and the name. */
static int meta_tell(struct handshake *h, uint32_t id, const char *name)
{
	uint8_t reply[4 + NBD_STRING_MAX];
	size_t len = strlen(name);

	if (len > NBD_STRING_MAX)
		return 0;
	put_be32(reply, id);
	memcpy(reply + 4, name, len);
	return handshake_reply(h, NBD_REP_META_CONTEXT, reply, 4 + len);
}

static int meta_list(struct handshake *h, uint64_t serial, const bool *chosen, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		/* A reply may have waited for the client. */
		struct export *e = export_find_serial(serial);
		int rc;

		if (!e)
			return handshake_refuse(h, NBD_REP_ERR_UNKNOWN, "export not present");
		rc = chosen[i] ? meta_tell(h, 0, e->contexts[i].name) : 0;
		if (rc)
			return rc;
	}
	return handshake_reply(h, NBD_REP_ACK, NULL, 0);
}

static int meta_set(struct handshake *h, uint64_t serial, const bool *chosen, unsigned n)
{
	unsigned selected = 0;

	for (unsigned i = 0; i < n; i++)
		selected += chosen[i];
	if (selected > CONTEXTS_MAX)
		return handshake_refuse(h, NBD_REP_ERR_TOO_BIG, "more than %u metadata contexts",
					CONTEXTS_MAX);
	for (unsigned i = 0; i < n; i++) {
		struct export *e = export_find_serial(serial);
		int rc;

		if (!e) {
			h->n_contexts = 0;
			return handshake_refuse(h, NBD_REP_ERR_UNKNOWN, "export not present");
		}
		if (!chosen[i])
			continue;
		h->contexts[h->n_contexts++] = (uint16_t)i;
		rc = meta_tell(h, i, e->contexts[i].name);
		if (rc)
			return rc;
	}
	h->contexts_of = serial;
	return handshake_reply(h, NBD_REP_ACK, NULL, 0);
}

/* All refusals; on 0 *E is the export. */
static int meta_check(struct handshake *h, struct meta_request *r, struct export **e)
{
	int rc = 0;

	*e = NULL;
	if (!h->structured)
		return handshake_refuse(h, NBD_REP_ERR_INVALID,
					"metadata contexts need structured replies");
	if (!meta_parse(h, r))
		return handshake_refuse(h, NBD_REP_ERR_INVALID, "malformed payload");
	if (r->n_queries > HANDSHAKE_QUERIES_MAX)
		return handshake_refuse(h, NBD_REP_ERR_TOO_BIG, "more than %u queries",
					HANDSHAKE_QUERIES_MAX);
	*e = handshake_export(h, r->name, r->name_len, &rc);
	return rc;
}

int negotiate_meta(struct handshake *h)
{
	bool listing = h->option == NBD_OPT_LIST_META_CONTEXT, *chosen;
	struct meta_request r;
	struct export *e;
	unsigned n;
	uint64_t serial;
	int rc;

	if (!listing) {
		h->contexts_of = 0;
		h->n_contexts = 0;
	}
	rc = meta_check(h, &r, &e);
	if (rc || !e)
		return rc;
	n = e->n_contexts;
	serial = e->serial;
	chosen = calloc(n, sizeof(*chosen));
	if (!chosen)
		return -ENOMEM;
	meta_choose(e, &r, listing, chosen);
	rc = listing ? meta_list(h, serial, chosen, n) : meta_set(h, serial, chosen, n);
	free(chosen);
	return rc;
}
