/* SPDX-License-Identifier: BSD-3-Clause */
/* negotiate-options: the options that list, describe and choose exports.
 *
 * A handler reads the payload to its end before it looks at anything else, so
 * that a broken one is refused whatever the rest of it says.  What is told
 * about an export is copied in one go: it may be gone after the next wait.
 */
#include "nbd-server/negotiate-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"

/* The first option there was: no errors can be reported, but by hanging up. */
int negotiate_export_name(struct handshake *h)
{
	uint8_t answer[10 + 124] = { 0 };
	struct export *e;
	uint64_t serial;
	int rc;

	if (h->len > NBD_STRING_MAX)
		return -EMSGSIZE;
	if (h->extended)
		return -EPROTO;		/* specification: a client MUST NOT use both */
	e = export_find_name((const char *)h->data, h->len);
	if (!e)
		return -ENOENT;
	if (export_is_full(e))
		return -EUSERS;
	serial = e->serial;
	put_be64(answer, e->size);
	put_be16(answer + 8, handshake_flags(h, e));
	rc = handshake_put(h, answer, h->no_zeroes ? 10 : sizeof(answer));
	if (!rc)
		rc = handshake_flush(h);
	return rc ? rc : handshake_agree(h, serial);
}

int negotiate_abort(struct handshake *h)
{
	/* The client may be gone already, which is as good. */
	if (!handshake_reply(h, NBD_REP_ACK, NULL, 0))
		handshake_flush(h);
	return -ECONNABORTED;
}

/* NBD_REP_SERVER: the name's length, the name, and what is left is the description. */
static int list_one(struct handshake *h, const struct export *e)
{
	size_t name = strlen(e->name), description = e->description ? strlen(e->description) : 0;
	uint8_t *p = malloc(4 + name + description);
	int rc;

	if (!p)
		return -ENOMEM;
	put_be32(p, (uint32_t)name);
	memcpy(p + 4, e->name, name);
	if (description)
		memcpy(p + 4 + name, e->description, description);
	rc = handshake_reply(h, NBD_REP_SERVER, p, 4 + name + description);
	free(p);
	return rc;
}

int negotiate_list(struct handshake *h)
{
	uint64_t serial = 0;
	struct export *e;

	if (h->len)
		return handshake_refuse(h, NBD_REP_ERR_INVALID, "option LIST has no payload");
	/* A reply may wait for the client, and the list change meanwhile: go by number. */
	while ((e = export_next(serial))) {
		int rc;

		serial = e->serial;
		rc = list_one(h, e);
		if (rc)
			return rc;
	}
	return handshake_reply(h, NBD_REP_ACK, NULL, 0);
}

/* What a client may ask about an export: bits by NBD_INFO_*. */
struct info_request {
	const char *name;
	uint32_t name_len;
	unsigned wanted;
};

static bool info_parse(struct handshake *h, struct info_request *r)
{
	struct payload p = { h->data, h->len };
	uint16_t n, type;

	if (!payload_string(&p, &r->name, &r->name_len) || !payload_u16(&p, &n) ||
	    p.left != (size_t)n * 2)
		return false;
	r->wanted = 0;
	while (payload_u16(&p, &type)) {
		if (type <= NBD_INFO_BLOCK_SIZE)
			r->wanted |= 1u << type;
	}
	return true;
}

/* NBD_REP_INFO of a type, with N bytes. */
static int info_send(struct handshake *h, uint16_t type, const void *p, size_t n)
{
	uint8_t reply[2 + NBD_STRING_MAX];

	if (n > NBD_STRING_MAX)
		return 0;
	put_be16(reply, type);
	memcpy(reply + 2, p, n);
	return handshake_reply(h, NBD_REP_INFO, reply, 2 + n);
}

/* Everything that is told about E.  It fits HANDSHAKE_OUT, which is empty, so
 * that nothing waits before all of it is copied. */
static int info_tell(struct handshake *h, const struct export *e, unsigned wanted)
{
	uint8_t info[12];
	int rc = 0;

	if (wanted & 1u << NBD_INFO_NAME)
		rc = info_send(h, NBD_INFO_NAME, e->name, strlen(e->name));
	if (!rc && wanted & 1u << NBD_INFO_DESCRIPTION && e->description)
		rc = info_send(h, NBD_INFO_DESCRIPTION, e->description, strlen(e->description));
	/* Who does not ask may send any alignment, as far as it knows. */
	put_be32(info, wanted & 1u << NBD_INFO_BLOCK_SIZE ? e->block_min : 1);
	put_be32(info + 4, e->block_preferred);
	put_be32(info + 8, e->block_max);
	if (!rc)
		rc = info_send(h, NBD_INFO_BLOCK_SIZE, info, 12);
	put_be64(info, e->size);
	put_be16(info + 8, handshake_flags(h, e));
	if (!rc)
		rc = info_send(h, NBD_INFO_EXPORT, info, 10);
	return rc;
}

/* The export whose contexts were selected has gone, and perhaps another one has its
 * name now.  A client that went on would not know that nothing is selected. */
static int contexts_are_lost(struct handshake *h)
{
	if (!h->contexts_of || export_find_serial(h->contexts_of))
		return 0;
	h->contexts_of = 0;
	return 1;
}

int negotiate_info(struct handshake *h)
{
	struct info_request r;
	struct export *e;
	uint64_t serial;
	int rc;

	if (!info_parse(h, &r))
		return handshake_refuse(h, NBD_REP_ERR_INVALID, "malformed payload");
	/* A flush may wait, so it comes before the lookup. */
	rc = handshake_flush(h);
	if (rc)
		return rc;
	e = handshake_export(h, r.name, r.name_len, &rc);
	if (!e)
		return rc;
	serial = e->serial;
	/* INFO is for finding out; GO with requests of any alignment is served. */
	if (h->option == NBD_OPT_INFO && e->block_min > 1 &&
	    !(r.wanted & 1u << NBD_INFO_BLOCK_SIZE))
		return handshake_refuse(h, NBD_REP_ERR_BLOCK_SIZE_REQD,
					"request NBD_INFO_BLOCK_SIZE to use this export");
	if (h->option == NBD_OPT_GO && export_is_full(e))
		return handshake_refuse(h, NBD_REP_ERR_POLICY,
					"export has its limit of %u connections",
					e->max_connections);
	if (h->option == NBD_OPT_GO && contexts_are_lost(h))
		return handshake_refuse(h, NBD_REP_ERR_UNKNOWN,
					"the export whose contexts were selected has gone");
	rc = info_tell(h, e, r.wanted);
	if (!rc)
		rc = handshake_reply(h, NBD_REP_ACK, NULL, 0);
	if (rc || h->option == NBD_OPT_INFO)
		return rc;
	rc = handshake_flush(h);
	return rc ? rc : handshake_agree(h, serial);
}

int negotiate_structured(struct handshake *h)
{
	if (h->len)
		return handshake_refuse(h, NBD_REP_ERR_INVALID,
					"option STRUCTURED_REPLY has no payload");
	if (h->extended)
		return handshake_refuse(h, NBD_REP_ERR_EXT_HEADER_REQD,
					"extended headers already negotiated");
	if (h->structured)
		return handshake_refuse(h, NBD_REP_ERR_INVALID,
					"structured reply already negotiated");
	h->structured = true;
	return handshake_reply(h, NBD_REP_ACK, NULL, 0);
}

/* Contexts that were selected before stay: none of them needs 64 bits. */
int negotiate_extended(struct handshake *h)
{
	if (h->len)
		return handshake_refuse(h, NBD_REP_ERR_INVALID,
					"option EXTENDED_HEADERS has no payload");
	if (h->extended)
		return handshake_refuse(h, NBD_REP_ERR_INVALID,
					"extended headers already negotiated");
	h->structured = h->extended = true;
	return handshake_reply(h, NBD_REP_ACK, NULL, 0);
}
