/* SPDX-License-Identifier: BSD-3-Clause */
/* nbd: a remote export as a node (the parts are listed in nbd-int.h).
 *
 * What the server lacks is made up for: without WRITE_ZEROES zeroes are written,
 * without FUA a flush follows, without BLOCK_STATUS everything is data, requests
 * are cut to its largest block, and rounded to its smallest one.
 */
#include "format/nbd-int.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/options.h"

#define RANGE_PIECE (256u << 20)	/* bytes of one trim or zero request */
#define STATUS_PIECE (1u << 31)		/* bytes of one BLOCK_STATUS */
#define DELAY_MAX 86400ull		/* seconds */

static struct nbd *nbd_of(struct node *n)
{
	return n->state;
}

/* -- requests ------------------------------------------------------------------- */

/* Runs RQ on this link or, when it is lost, on a later one, as long as that may
 * take.  Every command of NBD may be repeated. */
static int nbd_run(struct nbd *s, struct nbd_request *rq)
{
	uint64_t first_loss = 0;

	for (;;) {
		struct nbd_link *l = nbd_link_get(s);
		int rc;

		if (!l)
			return -EIO;
		rc = nbd_link_run(l, rq);
		if (rc)
			nbd_link_lost(s, l);
		nbd_link_unref(l);
		if (!rc)
			return rq->rc;
		if (!first_loss)
			first_loss = loop_now();
		/* Also under a server that comes and goes. */
		if (s->closing || s->hopeless || loop_now() - first_loss >= s->reconnect_delay)
			return -EIO;
	}
}

static bool has(struct nbd *s, unsigned flag)
{
	return s->info.flags & flag;
}

static int nbd_flush(struct node *n)
{
	struct nbd *s = nbd_of(n);
	struct nbd_request rq = { .cmd = NBD_CMD_FLUSH };

	return has(s, NBD_FLAG_SEND_FLUSH) && !n->read_only ? nbd_run(s, &rq) : 0;
}

static int read_aligned(struct nbd *s, void *buf, uint64_t off, size_t len)
{
	int rc = 0;

	while (len && !rc) {
		struct nbd_request rq = {
			.cmd = NBD_CMD_READ, .off = off, .buf = buf,
			.len = (uint32_t)min_u64(len, s->info.block_max),
		};

		rc = nbd_run(s, &rq);
		buf = (uint8_t *)buf + rq.len;
		off += rq.len;
		len -= rq.len;
	}
	return rc;
}

static int write_aligned(struct nbd *s, const void *buf, uint64_t off, size_t len, uint16_t flags)
{
	int rc = 0;

	while (len && !rc) {
		struct nbd_request rq = {
			.cmd = NBD_CMD_WRITE, .flags = flags, .off = off, .payload = buf,
			.len = (uint32_t)min_u64(len, s->info.block_max),
		};

		rc = nbd_run(s, &rq);
		buf = (const uint8_t *)buf + rq.len;
		off += rq.len;
		len -= rq.len;
	}
	return rc;
}

static bool fits_blocks(const struct nbd *s, uint64_t off, uint64_t len)
{
	return is_aligned(off | len, s->info.block_min);
}

/* Whole blocks around [off, off+len), through memory: read, and with DATA changed
 * and written back. */
static int through_blocks(struct nbd *s, void *buf, const void *data, uint64_t off, size_t len,
			  uint16_t flags)
{
	uint64_t start = align_down(off, s->info.block_min);
	size_t span = (size_t)(align_up(off + len, s->info.block_min) - start);
	uint8_t *blocks = malloc(span);
	int rc = blocks ? read_aligned(s, blocks, start, span) : -ENOMEM;

	if (!rc && data) {
		memcpy(blocks + (off - start), data, len);
		rc = write_aligned(s, blocks, start, span, flags);
	} else if (!rc) {
		memcpy(buf, blocks + (off - start), len);
	}
	free(blocks);
	return rc;
}

/* Behind the export's end there are zeroes, as a format expects of its file. */
static int nbd_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	struct nbd *s = nbd_of(n);
	size_t there = off < n->size ? (size_t)min_u64(len, n->size - off) : 0;

	memset((uint8_t *)buf + there, 0, len - there);
	if (!there)
		return 0;
	return fits_blocks(s, off, there) ? read_aligned(s, buf, off, there)
					  : through_blocks(s, buf, NULL, off, there, 0);
}

static int nbd_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	struct nbd *s = nbd_of(n);
	bool fua = flags & NODE_FUA, whole = fits_blocks(s, off, len);
	uint16_t how = fua && has(s, NBD_FLAG_SEND_FUA) ? NBD_CMD_FLAG_FUA : 0;
	struct range r;
	int rc;

	if (!checked_range(off, len, n->size))
		return -ENOSPC;		/* a remote export does not grow */
	range_enter(&s->writes, &r, align_down(off, s->info.block_min),
		    align_up(len, s->info.block_min) + s->info.block_min, whole ? RANGE_WRITE : RANGE_EXCL);
	rc = whole ? write_aligned(s, buf, off, len, how)
		   : through_blocks(s, NULL, buf, off, len, how);
	range_leave(&s->writes, &r);
	if (!rc && fua && !how)
		rc = nbd_flush(n);
	return rc;
}

/* Trim and zero: no payload. */
static int range_request(struct node *n, uint16_t cmd, uint64_t off, uint64_t len, uint16_t flags)
{
	struct nbd *s = nbd_of(n);
	struct range r;
	int rc = 0;

	range_enter(&s->writes, &r, off, len, RANGE_WRITE);
	while (len && !rc) {
		struct nbd_request rq = {
			.cmd = cmd, .flags = flags, .off = off,
			.len = (uint32_t)min_u64(len, RANGE_PIECE),
		};

		rc = nbd_run(s, &rq);
		off += rq.len;
		len -= rq.len;
	}
	range_leave(&s->writes, &r);
	return rc;
}

static int nbd_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	struct nbd *s = nbd_of(n);
	bool fua = flags & NODE_FUA, fast = flags & NODE_NO_FALLBACK;
	uint16_t how = flags & NODE_MAY_UNMAP ? 0 : NBD_CMD_FLAG_NO_HOLE;
	int rc;

	if (!checked_range(off, len, n->size))
		return -ENOSPC;
	if (!has(s, NBD_FLAG_SEND_WRITE_ZEROES) || !fits_blocks(s, off, len) ||
	    (fast && !has(s, NBD_FLAG_SEND_FAST_ZERO)))
		return -ENOTSUP;
	if (fast)
		how |= NBD_CMD_FLAG_FAST_ZERO;
	if (fua && has(s, NBD_FLAG_SEND_FUA))
		how |= NBD_CMD_FLAG_FUA;
	rc = range_request(n, NBD_CMD_WRITE_ZEROES, off, len, how);
	if (!rc && fua && !(how & NBD_CMD_FLAG_FUA))
		rc = nbd_flush(n);
	return rc;
}

/* A hint: blocks that are covered in part stay. */
static int nbd_discard(struct node *n, uint64_t off, uint64_t len)
{
	struct nbd *s = nbd_of(n);
	uint64_t start = align_up(off, s->info.block_min);
	uint64_t end = align_down(off + len, s->info.block_min);

	if (!has(s, NBD_FLAG_SEND_TRIM))
		return -ENOTSUP;
	return start < end ? range_request(n, NBD_CMD_TRIM, start, end - start, 0) : 0;
}

static int map_some(struct nbd *s, uint64_t off, uint64_t len, struct extents *x)
{
	uint64_t start = align_down(off, s->info.block_min);
	struct extents t = { .max = NBD_EXTENTS_MAX };
	struct nbd_request rq = {
		.cmd = NBD_CMD_BLOCK_STATUS, .off = start, .x = &t,
		.len = (uint32_t)min_u64(align_up(off + len, s->info.block_min) - start, STATUS_PIECE),
	};
	uint64_t skip = off - start;
	int rc;

	t.v = malloc(NBD_EXTENTS_MAX * sizeof(*t.v));
	rc = t.v ? nbd_run(s, &rq) : -ENOMEM;
	for (uint32_t i = 0; i < t.n && !rc && len; i++) {
		uint64_t now = t.v[i].len, gone = min_u64(now, skip);

		skip -= gone;
		now = min_u64(now - gone, len);
		if (now && !extents_add(x, now, t.v[i].flags, 1))
			break;
		len -= now;
	}
	free(t.v);
	return rc;
}

/* Behind the end: zeroes. */
static int nbd_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	struct nbd *s = nbd_of(n);
	uint64_t there = off < n->size ? min_u64(len, n->size - off) : 0;

	if (!there)
		extents_add(x, len, EXTENT_ZERO | EXTENT_HOLE, 1);
	else if (!s->link || !s->link->info.has_context)
		extents_add(x, there, 0, 1);
	else
		return map_some(s, off, there, x);
	return 0;
}

/* -- options, open and close ------------------------------------------------------ */

static int take_seconds(struct json_object *opts, const char *key, uint64_t *ns, struct error *err)
{
	uint64_t seconds = 0;
	int rc = opts_u64(opts, key, &seconds, err);

	if (!rc && seconds > DELAY_MAX)
		rc = error_set(err, -ERANGE, "Parameter '%s' is out of range: at most %llu seconds", key,
			       DELAY_MAX);
	*ns = seconds * 1000000000u;
	return rc;
}

/* A certificate is for a name: that of the host, unless another one is given. */
static int take_tls(struct nbd_target *t, struct json_object *opts, struct error *err)
{
	char *id = NULL;
	int rc = opts_str(opts, "tls-creds", &id, err);

	if (!rc)
		rc = opts_str(opts, "tls-hostname", &t->tls_hostname, err);
	if (!rc && json_object_object_get_ex(opts, "x-dirty-bitmap", NULL))
		rc = error_set(err, -ENOTSUP, "nbd: the option 'x-dirty-bitmap' is not supported");
	if (!rc && t->tls_hostname && !id)
		rc = error_set(err, -EINVAL, "tls-hostname requires tls-creds");
	if (!rc && id) {
		t->tls_creds = tls_creds_get(id, TLS_CLIENT, &t->tls, err);
		rc = t->tls_creds ? 0 : -ENOENT;
	}
	free(id);
	if (rc || !t->tls)
		return rc;
	if (!t->tls_hostname && t->type == NBD_SERVER_INET)
		t->tls_hostname = strdup(t->path);
	if (!t->tls_hostname && t->tls_creds->kind == TLS_X509 && t->tls_creds->verify_peer)
		rc = error_set(err, -EINVAL, "tls-hostname is required: there is no name to check the server's certificate against");
	return rc;
}

static int take_options(struct nbd *s, struct json_object *opts, struct error *err)
{
	struct nbd_target *t = s->target;
	struct json_object *server = NULL;
	int rc = opts_require(opts, "server", err);

	if (!rc)
		rc = opts_object(opts, "server", &server, err);
	if (!rc)
		rc = opts_set_path(server, opts, "server") ? -ENOMEM : nbd_target_parse(t, server, err);
	json_object_put(server);
	if (!rc)
		rc = opts_str(opts, "export", &t->export, err);
	if (!rc && !t->export)
		t->export = strdup("");
	if (!rc && (!t->export || strlen(t->export) > NBD_STRING_MAX))
		rc = error_set(err, -EINVAL, "export name too long to send to server");
	if (!rc)
		rc = take_tls(t, opts, err);
	if (!rc)
		rc = take_seconds(opts, "reconnect-delay", &s->reconnect_delay, err);
	return rc ? rc : take_seconds(opts, "open-timeout", &s->open_timeout, err);
}

/* The first link; tried again for open-timeout. */
static int connect_first(struct nbd *s, struct error *err)
{
	uint64_t until = loop_now() + s->open_timeout;
	struct nbd_attempt *a = nbd_attempt_new(s);
	int rc = 0;

	if (!a)
		return error_set(err, -ENOMEM, "Out of memory");
	while (!(s->link = nbd_establish(a)) && loop_now() < until)
		io_sleep(s->node->io, 100000000);
	if (!s->link) {
		rc = a->err.code ? a->err.code : -EIO;
		if (err)
			*err = a->err;
	}
	nbd_attempt_free(a);
	return rc;
}

static int settle_read_only(struct nbd *s, struct error *err)
{
	struct node *n = s->node;

	if (n->read_only || !has(s, NBD_FLAG_READ_ONLY))
		return 0;
	if (!n->auto_read_only)
		return error_set(err, -EACCES, "NBD export is read-only");
	n->read_only = true;
	return 0;
}

static int nbd_open(struct node *n, struct json_object *opts, struct error *err)
{
	struct nbd *s = calloc(1, sizeof(*s));
	int rc;

	if (s)
		s->target = calloc(1, sizeof(*s->target));
	if (!s || !s->target) {
		free(s);
		return error_set(err, -ENOMEM, "Out of memory");
	}
	s->node = n;
	s->target->refs = 1;
	s->target->fd = -1;
	n->state = s;
	n->protocol = true;
	rc = take_options(s, opts, err);
	if (!rc)
		rc = connect_first(s, err);
	if (rc)
		return rc;
	s->info = s->link->info;
	n->size = s->info.size;
	n->filename = nbd_target_uri(s->target);
	return settle_read_only(s, err);
}

static void nbd_close(struct node *n)
{
	struct nbd *s = nbd_of(n);

	s->closing = true;
	nbd_attempt_cancel(s);
	if (s->give_up.armed)
		loop_timer_cancel(&s->give_up);
	if (s->patience.armed)
		loop_timer_cancel(&s->patience);
	if (s->link)
		nbd_link_goodbye(s->link);
	nbd_link_unref(s->link);
	nbd_target_unref(s->target);
	free(s);
	n->state = NULL;
}

/* Nothing has come for a while: who waits gets an error. */
static void patience_over(struct loop_timer *t)
{
	struct nbd *s = (struct nbd *)((char *)t - offsetof(struct nbd, patience));

	if (s->link && s->link->replies != s->replies) {
		s->replies = s->link->replies;
		loop_timer_set(&s->patience, loop_now() + NBD_PATIENCE_NS, patience_over);
		return;
	}
	s->hopeless = true;
	if (s->link)
		nbd_link_lose(s->link);
	co_queue_wake_all(&s->waiting);
}

static void nbd_hurry(struct node *n, bool on)
{
	struct nbd *s = nbd_of(n);

	if (!loop_self())
		return;
	if (on && s->hurried++ == 0) {
		s->replies = s->link ? s->link->replies : 0;
		loop_timer_set(&s->patience, loop_now() + NBD_PATIENCE_NS, patience_over);
	} else if (!on && --s->hurried == 0) {
		loop_timer_cancel(&s->patience);
		s->hopeless = false;
	}
}

/* A search for the server ends; the next request begins another one. */
static void nbd_leave(struct node *n)
{
	struct nbd *s = nbd_of(n);

	nbd_attempt_cancel(s);
	loop_timer_cancel(&s->give_up);
	loop_timer_cancel(&s->patience);
}

static void nbd_moved(struct node *n)
{
	struct nbd *s = nbd_of(n);

	if (s->link)
		stream_move(&s->link->stream, n->io);
}

static const char *const nbd_options[] = {
	"server", "export", "tls-creds", "tls-hostname", "reconnect-delay", "open-timeout", NULL,
};

const struct node_driver nbd_driver = {
	.name = "nbd",
	.options = nbd_options,
	.open = nbd_open,
	.close = nbd_close,
	.read = nbd_read,
	.write = nbd_write,
	.zero = nbd_zero,
	.discard = nbd_discard,
	.flush = nbd_flush,
	.map = nbd_map,
	.hurry = nbd_hurry,
	.leave = nbd_leave,
	.moved = nbd_moved,
};
