/* SPDX-License-Identifier: BSD-3-Clause */
/* nbd-handshake: fixed newstyle, from the client's side.
 *
 *	greeting ─▶ [STARTTLS] ─▶ STRUCTURED_REPLY ─▶ SET_META_CONTEXT ─▶ GO ─▶ done
 *
 * Where the server does not know an option, the session goes without what it
 * would have given; without GO the export is entered by EXPORT_NAME.
 */
#include "format/nbd-int.h"

#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"

#define REPLIES_MAX 256			/* to one option */
#define BLOCK_MIN_MAX (64u << 10)	/* largest minimum block size that the specification allows */

struct option_reply {
	uint32_t type, len;
	uint8_t data[NBD_STRING_MAX + 64];	/* what is longer is dropped */
};

static int lost(struct error *err, int rc)
{
	return error_errno(err, rc == -ECONNRESET ? -ECONNRESET : rc,
			   "The NBD server ended the connection during the handshake");
}

static int option_send(struct stream *s, uint32_t option, const void *data, uint32_t len,
		       struct error *err)
{
	uint8_t head[16];
	struct iovec v[2] = { { head, sizeof(head) }, { (void *)data, len } };
	int rc;

	put_be64(head, NBD_OPTS_MAGIC);
	put_be32(head + 8, option);
	put_be32(head + 12, len);
	rc = stream_send_all(s, v, 2, false);
	return rc ? lost(err, rc) : 0;
}

static int option_receive(struct stream *s, uint32_t option, struct option_reply *r,
			  struct error *err)
{
	uint8_t head[20], sink[256];
	uint32_t rest;
	int rc = stream_recv_all(s, head, sizeof(head));

	if (rc)
		return lost(err, rc);
	r->type = get_be32(head + 12);
	r->len = get_be32(head + 16);
	if (get_be64(head) != NBD_REP_MAGIC || get_be32(head + 8) != option || r->len > NBD_OPTION_MAX)
		return error_set(err, -EPROTO, "The NBD server's reply to option %u is malformed", option);
	rest = r->len > sizeof(r->data) ? r->len - (uint32_t)sizeof(r->data) : 0;
	r->len -= rest;
	rc = stream_recv_all(s, r->data, r->len);
	while (!rc && rest) {
		uint32_t now = (uint32_t)min_u64(rest, sizeof(sink));

		rc = stream_recv_all(s, sink, now);
		rest -= now;
	}
	return rc ? lost(err, rc) : 0;
}

static bool is_error(const struct option_reply *r)
{
	return r->type & 1u << 31;
}

/* The server's refusal in words; text of a stranger. */
static int refused(struct error *err, const char *what, const struct option_reply *r)
{
	int len = (int)min_u64(r->len, 200);

	if (r->type == NBD_REP_ERR_TLS_REQD)
		return error_set(err, -EACCES, "The NBD server requires TLS: give 'tls-creds'");
	if (r->type == NBD_REP_ERR_UNKNOWN)
		return error_set(err, -ENOENT, "Requested export not available");
	return error_set(err, -EINVAL, "The NBD server refused %s (0x%x)%s%.*s", what, r->type,
			 len ? ": " : "", len && utf8_valid(r->data, (size_t)len) ? len : 0,
			 (const char *)r->data);
}

static int greet(struct stream *s, bool *no_zeroes, struct error *err)
{
	uint8_t b[18], flags[4];
	struct iovec v = { flags, sizeof(flags) };
	int rc = stream_recv_all(s, b, sizeof(b));

	if (rc)
		return lost(err, rc);
	if (get_be64(b) != NBD_MAGIC || get_be64(b + 8) != NBD_OPTS_MAGIC)
		return error_set(err, -EPROTO, "Bad magic received: this is no newstyle NBD server");
	if (!(get_be16(b + 16) & NBD_FLAG_FIXED_NEWSTYLE))
		return error_set(err, -EPROTO, "The NBD server does not speak fixed newstyle");
	*no_zeroes = get_be16(b + 16) & NBD_FLAG_NO_ZEROES;
	put_be32(flags, NBD_FLAG_FIXED_NEWSTYLE | (*no_zeroes ? NBD_FLAG_NO_ZEROES : 0));
	rc = stream_send_all(s, &v, 1, false);
	return rc ? lost(err, rc) : 0;
}

static int start_tls(struct stream *s, const struct nbd_target *t, struct error *err)
{
	struct option_reply r;
	int rc = option_send(s, NBD_OPT_STARTTLS, NULL, 0, err);

	if (!rc)
		rc = option_receive(s, NBD_OPT_STARTTLS, &r, err);
	if (rc)
		return rc;
	if (r.type != NBD_REP_ACK)
		return error_set(err, -EACCES, "The NBD server does not support TLS");
	return tls_connect(s, t->tls_creds, t->tls_hostname, err);
}

static int ask_structured(struct stream *s, struct nbd_info *info, struct error *err)
{
	struct option_reply r;
	int rc = option_send(s, NBD_OPT_STRUCTURED_REPLY, NULL, 0, err);

	if (!rc)
		rc = option_receive(s, NBD_OPT_STRUCTURED_REPLY, &r, err);
	if (!rc && r.type == NBD_REP_ERR_TLS_REQD)
		rc = refused(err, "structured replies", &r);
	if (!rc)
		info->structured = r.type == NBD_REP_ACK;
	return rc;
}

static int ask_context(struct stream *s, const char *export, struct nbd_info *info,
		       struct error *err)
{
	static const char name[] = "base:allocation";
	uint32_t n = (uint32_t)strlen(export), m = sizeof(name) - 1;
	uint8_t data[NBD_STRING_MAX + 64];
	struct option_reply r;
	int rc;

	put_be32(data, n);
	memcpy(data + 4, export, n);
	put_be32(data + 4 + n, 1);
	put_be32(data + 8 + n, m);
	memcpy(data + 12 + n, name, m);
	rc = option_send(s, NBD_OPT_SET_META_CONTEXT, data, 12 + n + m, err);
	for (unsigned i = 0; !rc && i < REPLIES_MAX; i++) {
		rc = option_receive(s, NBD_OPT_SET_META_CONTEXT, &r, err);
		if (rc || is_error(&r) || r.type == NBD_REP_ACK)
			return rc;
		if (r.type != NBD_REP_META_CONTEXT || r.len != 4 + m || memcmp(r.data + 4, name, m))
			break;
		info->has_context = true;
		info->context = get_be32(r.data);
	}
	return rc ? rc : error_set(err, -EPROTO, "The NBD server offers contexts that were not asked for");
}

static int take_info(const struct option_reply *r, struct nbd_info *info, bool *has_export)
{
	uint16_t what;

	if (r->type != NBD_REP_INFO || r->len < 2)
		return -EPROTO;
	what = get_be16(r->data);
	if (what == NBD_INFO_EXPORT) {
		if (r->len != 12)
			return -EPROTO;
		*has_export = true;
		info->size = get_be64(r->data + 2);
		info->flags = get_be16(r->data + 10);
	} else if (what == NBD_INFO_BLOCK_SIZE) {
		if (r->len != 14)
			return -EPROTO;
		info->block_min = get_be32(r->data + 2);
		info->block_max = get_be32(r->data + 10);
	}
	return 0;
}

static int ask_export_name(struct stream *s, const char *export, bool no_zeroes,
			   struct nbd_info *info, struct error *err)
{
	uint8_t b[10 + 124];
	int rc = option_send(s, NBD_OPT_EXPORT_NAME, export, (uint32_t)strlen(export), err);

	if (rc)
		return rc;
	rc = stream_recv_all(s, b, no_zeroes ? 10 : sizeof(b));
	if (rc)
		return error_set(err, -ENOENT, "Requested export not available");
	info->size = get_be64(b);
	info->flags = get_be16(b + 8);
	return 0;
}

static int enter(struct stream *s, const char *export, bool no_zeroes, struct nbd_info *info,
		 struct error *err)
{
	uint32_t n = (uint32_t)strlen(export);
	uint8_t data[NBD_STRING_MAX + 16];
	struct option_reply r;
	bool has_export = false;
	int rc;

	put_be32(data, n);
	memcpy(data + 4, export, n);
	put_be16(data + 4 + n, 1);
	put_be16(data + 6 + n, NBD_INFO_BLOCK_SIZE);
	rc = option_send(s, NBD_OPT_GO, data, 8 + n, err);
	for (unsigned i = 0; !rc && i < REPLIES_MAX; i++) {
		rc = option_receive(s, NBD_OPT_GO, &r, err);
		if (rc)
			return rc;
		if (r.type == NBD_REP_ERR_UNSUP)
			return ask_export_name(s, export, no_zeroes, info, err);
		if (is_error(&r))
			return refused(err, "the export", &r);
		if (r.type == NBD_REP_ACK)
			return has_export ? 0 : error_set(err, -EPROTO, "The NBD server did not say what it exports");
		if (take_info(&r, info, &has_export))
			break;
	}
	return rc ? rc : error_set(err, -EPROTO, "The NBD server's reply to option GO is malformed");
}

/* What was announced, before anything is computed with it. */
static int check_info(const struct nbd_info *info, struct error *err)
{
	if (info->size > INT64_MAX)
		return error_set(err, -EFBIG, "The NBD server announces a size of more than 2^63 bytes");
	if (!(info->flags & NBD_FLAG_HAS_FLAGS))
		return error_set(err, -EPROTO, "The NBD server announces no transmission flags");
	if (!is_pow2(info->block_min) || info->block_min > BLOCK_MIN_MAX ||
	    info->block_max < info->block_min ||
	    (info->block_max != UINT32_MAX && info->block_max % info->block_min))
		return error_set(err, -EPROTO, "The NBD server announces impossible block sizes %u and %u",
				 info->block_min, info->block_max);
	if (info->size % info->block_min)
		return error_set(err, -EPROTO, "The NBD export's size is not a multiple of its block size %u",
				 info->block_min);
	return 0;
}

int nbd_handshake(struct stream *s, const struct nbd_target *t, struct nbd_info *info,
		  struct error *err)
{
	bool no_zeroes = false;
	int rc = greet(s, &no_zeroes, err);

	*info = (struct nbd_info){ .block_min = 1, .block_max = NBD_PAYLOAD_MAX };
	if (!rc && t->tls)
		rc = start_tls(s, t, err);
	if (!rc)
		rc = ask_structured(s, info, err);
	if (!rc && info->structured)
		rc = ask_context(s, t->export, info, err);
	if (!rc)
		rc = enter(s, t->export, no_zeroes, info, err);
	if (!rc)
		rc = check_info(info, err);
	if (!rc && info->block_max > NBD_PAYLOAD_MAX)
		info->block_max = (uint32_t)align_down(NBD_PAYLOAD_MAX, info->block_min);
	return rc;
}
