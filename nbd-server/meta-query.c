/* SPDX-License-Identifier: BSD-3-Clause */
/* meta-query: which metadata contexts a client's queries name (proto.md,
 * "Metadata querying"; QEMU's docs/interop/nbd.txt for the qemu: namespace).
 *
 *	base:allocation				the export's contexts[0]
 *	qemu:allocation-depth
 *	qemu:dirty-bitmap:NAME
 *	merino:changes:NAME			the same, with what was zeroed told apart
 *
 * LIST also takes "base:", "qemu:", "qemu:dirty-bitmap:" and so on for all below them,
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

static const char *const above[] = { "base:", "qemu:", "qemu:dirty-bitmap:", "merino:",
				     "merino:changes:" };

#define N_ABOVE (sizeof(above) / sizeof(above[0]))

/* Which of ABOVE the query is, or N_ABOVE. */
static unsigned meta_above(const char *query, uint32_t len)
{
	unsigned i = 0;

	while (i < N_ABOVE && (len != strlen(above[i]) || memcmp(query, above[i], len)))
		i++;
	return i;
}

static int compare(const char *query, uint32_t len, const char *name)
{
	size_t n = strlen(name);
	int c = memcmp(query, name, len < n ? len : n);

	return c ? c : (len > n) - (len < n);
}

/* The context that is called like the query, or NULL. */
static const struct export_context *meta_find(const struct export *e, const char *query,
					      uint32_t len)
{
	unsigned low = 0, high = e->n_contexts;

	while (low < high) {
		unsigned middle = low + (high - low) / 2;
		int c = compare(query, len, e->by_name[middle]->name);

		if (!c)
			return e->by_name[middle];
		if (c < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return NULL;
}

/* Sets CHOSEN[i] for every context i that a query names.  Many queries and many
 * contexts must not cost their product. */
static void meta_choose(const struct export *e, const struct meta_request *r, bool listing,
			bool *chosen)
{
	struct payload p = r->queries;
	bool wanted[N_ABOVE + 1] = { 0 };
	const char *query;
	uint32_t len;

	while (payload_string(&p, &query, &len)) {
		const struct export_context *c = meta_find(e, query, len);

		wanted[meta_above(query, len)] = true;
		if (c)
			chosen[c - e->contexts] = true;
	}
	for (unsigned i = 0; listing && i < e->n_contexts; i++) {
		for (unsigned a = 0; a < N_ABOVE; a++) {
			if (wanted[a] && !strncmp(e->contexts[i].name, above[a], strlen(above[a])))
				chosen[i] = true;
		}
		chosen[i] = chosen[i] || !r->n_queries;
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
		struct export *e;
		int rc;

		if (!chosen[i])
			continue;
		/* A reply may have waited for the client. */
		e = export_find_serial(serial);
		if (!e)
			return handshake_refuse(h, NBD_REP_ERR_UNKNOWN, "export not present");
		rc = meta_tell(h, 0, e->contexts[i].name);
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
		struct export *e = chosen[i] ? export_find_serial(serial) : NULL;
		int rc;

		if (!chosen[i])
			continue;
		if (!e) {
			h->n_contexts = 0;
			return handshake_refuse(h, NBD_REP_ERR_UNKNOWN, "export not present");
		}
		h->contexts[h->n_contexts++] = i;
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
