/* SPDX-License-Identifier: BSD-3-Clause */
/* negotiate: the option haggling of the fixed newstyle handshake (proto.md,
 * "Fixed newstyle negotiation").
 *
 * It owns the bytes of one connection until transmission takes over.  Whoever
 * is at the other end has shown nothing: how much it may send, how often it
 * may ask and how much it is told are bounded, and its bytes never reach an
 * assertion.  The time limit is the caller's, who shuts the socket down.
 *
 * Between two options the client may take as long as the limit allows, and
 * exports come and go meanwhile (see negotiate-int.h).
 */
#include "nbd-server/negotiate-int.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"

/* -- bytes ------------------------------------------------------------------ */

int handshake_flush(struct handshake *h)
{
	struct iovec iov = { h->out, h->out_len };

	if (!h->out_len)
		return 0;
	h->sent += h->out_len;
	if (h->sent > HANDSHAKE_SENT_MAX)
		return -E2BIG;
	h->out_len = 0;
	return stream_send_all(h->s, &iov, 1, false);
}

int handshake_put(struct handshake *h, const void *p, size_t n)
{
	if (n > HANDSHAKE_OUT - h->out_len) {
		int rc = handshake_flush(h);

		if (rc)
			return rc;
	}
	if (n > HANDSHAKE_OUT)
		return -EMSGSIZE;
	if (n)
		memcpy(h->out + h->out_len, p, n);
	h->out_len += n;
	return 0;
}

/* At least one more byte into IN, which is empty. */
static int handshake_fill(struct handshake *h)
{
	ssize_t n = stream_recv(h->s, h->in, sizeof(h->in));

	if (n <= 0)
		return n < 0 ? (int)n : -ECONNRESET;
	h->in_at = 0;
	h->in_len = (unsigned)n;
	return 0;
}

/* Exactly LEN bytes; OUT is NULL to drop them. */
static int handshake_get(struct handshake *h, uint8_t *out, size_t len)
{
	while (len) {
		unsigned n = h->in_len - h->in_at;

		if (!n) {
			int rc = handshake_fill(h);

			if (rc)
				return rc;
			continue;
		}
		if (n > len)
			n = (unsigned)len;
		if (out) {
			memcpy(out, h->in + h->in_at, n);
			out += n;
		}
		h->in_at += n;
		len -= n;
	}
	return 0;
}

bool payload_u16(struct payload *p, uint16_t *out)
{
	if (p->left < sizeof(*out))
		return false;
	*out = get_be16(p->at);
	p->at += sizeof(*out);
	p->left -= sizeof(*out);
	return true;
}

bool payload_u32(struct payload *p, uint32_t *out)
{
	if (p->left < sizeof(*out))
		return false;
	*out = get_be32(p->at);
	p->at += sizeof(*out);
	p->left -= sizeof(*out);
	return true;
}

bool payload_string(struct payload *p, const char **s, uint32_t *len)
{
	if (!payload_u32(p, len) || *len > p->left)
		return false;
	*s = (const char *)p->at;
	p->at += *len;
	p->left -= *len;
	return true;
}

/* -- replies ---------------------------------------------------------------- */

int handshake_reply(struct handshake *h, uint32_t type, const void *payload, size_t n)
{
	uint8_t head[20];
	int rc = 0;

	put_be64(head, NBD_REP_MAGIC);
	put_be32(head + 8, h->option);
	put_be32(head + 12, type);
	put_be32(head + 16, (uint32_t)n);
	/* A reply lies in the buffer as a whole, so that a wait never splits what its
	 * caller took from an export. */
	if (sizeof(head) + n > HANDSHAKE_OUT - h->out_len)
		rc = handshake_flush(h);
	if (!rc)
		rc = handshake_put(h, head, sizeof(head));
	return rc ? rc : handshake_put(h, payload, n);
}

int handshake_refuse(struct handshake *h, uint32_t type, const char *fmt, ...)
{
	char text[256];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0)
		n = 0;
	if ((size_t)n >= sizeof(text))
		n = sizeof(text) - 1;
	return handshake_reply(h, type, text, (size_t)n);
}

struct export *handshake_export(struct handshake *h, const char *name, uint32_t len, int *rc)
{
	struct export *e;

	if (len > NBD_STRING_MAX) {
		*rc = handshake_refuse(h, NBD_REP_ERR_INVALID, "export name is longer than %u bytes",
				       NBD_STRING_MAX);
		return NULL;
	}
	e = export_find_name(name, len);
	if (e)
		return e;
	if (len <= 128 && utf8_valid(name, len) && !memchr(name, 0, len))
		*rc = handshake_refuse(h, NBD_REP_ERR_UNKNOWN, "export '%.*s' not present",
				       (int)len, name);
	else
		*rc = handshake_refuse(h, NBD_REP_ERR_UNKNOWN, "export not present");
	return NULL;
}

/* -- the way to an agreement ------------------------------------------------- */

uint16_t handshake_flags(const struct handshake *h, const struct export *e)
{
	uint16_t flags = h->structured ? e->flags : e->flags & ~NBD_FLAG_SEND_DF;

	/* A filter of contexts is of use to who selected some, or may still do it. */
	if (h->extended && (h->option == NBD_OPT_INFO ||
			    (h->contexts_of == e->serial && h->n_contexts)))
		flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
	return flags;
}

void handshake_forget(struct handshake *h)
{
	h->structured = h->extended = false;
	h->contexts_of = 0;
	h->n_contexts = 0;
}

int handshake_agree(struct handshake *h, uint64_t serial)
{
	struct export *e = export_find_serial(serial);
	struct agreement *a = h->a;
	unsigned early = h->in_len - h->in_at;

	if (!e)
		return -ENOENT;
	if (export_is_full(e))
		return -EUSERS;
	a->early = NULL;
	if (early) {
		a->early = malloc(early);
		if (!a->early)
			return -ENOMEM;
		memcpy(a->early, h->in + h->in_at, early);
	}
	a->early_len = early;
	a->structured = h->structured;
	a->extended = h->extended;
	/* Contexts that were selected on another export are not in force. */
	a->n_contexts = h->contexts_of == serial ? h->n_contexts : 0;
	memcpy(a->contexts, h->contexts, a->n_contexts * sizeof(a->contexts[0]));
	export_ref(e);
	a->export = e;
	return NEGOTIATE_DONE;
}

static int negotiate_greet(struct handshake *h)
{
	uint8_t hello[18], flags[4];
	uint32_t client;
	int rc;

	put_be64(hello, NBD_MAGIC);
	put_be64(hello + 8, NBD_OPTS_MAGIC);
	put_be16(hello + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	rc = handshake_put(h, hello, sizeof(hello));
	if (!rc)
		rc = handshake_flush(h);
	if (!rc)
		rc = handshake_get(h, flags, sizeof(flags));
	if (rc)
		return rc;
	client = get_be32(flags);
	if (client & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
		return -EPROTO;
	h->fixed = client & NBD_FLAG_FIXED_NEWSTYLE;
	h->no_zeroes = client & NBD_FLAG_NO_ZEROES;
	return 0;
}

/* The payload is longer than we take: it is skipped, within bounds, and refused. */
static int negotiate_too_big(struct handshake *h)
{
	int rc;

	if (h->option == NBD_OPT_EXPORT_NAME || h->len > HANDSHAKE_DRAIN_MAX - h->drained)
		return -EMSGSIZE;
	h->drained += h->len;
	rc = handshake_get(h, NULL, h->len);
	if (!rc && handshake_needs_tls(h))
		return negotiate_refuse_plain(h);
	return rc ? rc : handshake_refuse(h, NBD_REP_ERR_TOO_BIG,
					  "option is longer than %u bytes", NBD_OPTION_MAX);
}

static int negotiate_payload(struct handshake *h)
{
	if (!h->len)
		return 0;
	if (!h->data) {
		h->data = malloc(NBD_OPTION_MAX);
		if (!h->data)
			return -ENOMEM;
	}
	return handshake_get(h, h->data, h->len);
}

static int negotiate_serve(struct handshake *h)
{
	if (handshake_needs_tls(h) && h->option != NBD_OPT_STARTTLS && h->option != NBD_OPT_ABORT)
		return negotiate_refuse_plain(h);
	switch (h->option) {
	case NBD_OPT_EXPORT_NAME:
		return negotiate_export_name(h);
	case NBD_OPT_ABORT:
		return negotiate_abort(h);
	case NBD_OPT_LIST:
		return negotiate_list(h);
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		return negotiate_info(h);
	case NBD_OPT_STRUCTURED_REPLY:
		return negotiate_structured(h);
	case NBD_OPT_EXTENDED_HEADERS:
		return negotiate_extended(h);
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		return negotiate_meta(h);
	case NBD_OPT_STARTTLS:
		return negotiate_starttls(h);
	default:
		return handshake_refuse(h, NBD_REP_ERR_UNSUP, "option %u is not supported",
					h->option);
	}
}

/* One option: its header, its payload, its answer. */
static int negotiate_option(struct handshake *h)
{
	uint8_t head[16];
	int rc = handshake_get(h, head, sizeof(head));

	if (rc)
		return rc;
	if (get_be64(head) != NBD_OPTS_MAGIC)
		return -EPROTO;
	h->option = get_be32(head + 8);
	h->len = get_be32(head + 12);
	if (++h->options > HANDSHAKE_OPTIONS_MAX)
		return -E2BIG;
	if (!h->fixed && h->option != NBD_OPT_EXPORT_NAME)
		return -EPROTO;
	if (h->len > NBD_OPTION_MAX)
		rc = negotiate_too_big(h);
	else if (!(rc = negotiate_payload(h)))
		rc = negotiate_serve(h);
	if (rc < 0)
		return rc;
	/* Replies to options that arrived together go out together. */
	if (rc != NEGOTIATE_DONE && h->in_at == h->in_len) {
		int flushed = handshake_flush(h);

		return flushed ? flushed : rc;
	}
	return rc;
}

int negotiate(struct agreement *a)
{
	struct handshake *h = calloc(1, sizeof(*h));
	int rc;

	if (!h)
		return -ENOMEM;
	h->a = a;
	h->s = &a->stream;
	handshake_forget(h);
	rc = negotiate_greet(h);
	while (!rc)
		rc = negotiate_option(h);
	free(h->data);
	free(h);
	return rc == NEGOTIATE_DONE ? 0 : rc;
}
