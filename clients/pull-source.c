// SPDX-License-Identifier: BSD-3-Clause
/* pull-source: libnbd handles, from the URI to the ready connection.
 *
 * libnbd's own check that requests are aligned is off: an export whose size is
 * no multiple of its minimum block has a tail that can only be asked for
 * unaligned, and whether that works is for the server to say.  All other
 * requests are aligned by the copier.
 */
#include "clients/pull-source.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/uri.h"

#define BITMAP_PREFIX "qemu:dirty-bitmap:"
#define CHANGES_PREFIX "merino:changes:"	/* says the same, and what reads as zeroes */

enum {
	BITMAP_NAME_MAX = 1023,		/* bytes, QEMU's limit */
	READ_MAX_UNSAID = 32 << 20,	/* what the protocol lets a client assume */
};

/* The last libnbd error of this thread, as one of ours. */
static int nbd_error(struct error *err, const char *uri)
{
	int code = nbd_get_errno();
	const char *text = nbd_get_error();

	return error_set(err, code > 0 ? -code : -EIO, "%s: %s", uri, text ? text : "unknown error");
}

static int context_name(struct source *s, const char *bitmap, struct error *err)
{
	static const char *const prefixes[] = { BITMAP_PREFIX, CHANGES_PREFIX };
	const char *prefix = BITMAP_PREFIX;

	if (!bitmap)
		return 0;
	for (int i = 0; i < 2; i++)
		if (strncmp(bitmap, prefixes[i], strlen(prefixes[i])) == 0) {
			bitmap += strlen(prefixes[i]);
			break;
		}
	if (!*bitmap || strlen(bitmap) > BITMAP_NAME_MAX)
		return error_set(err, -EINVAL, "a bitmap's name has 1 to %d bytes", BITMAP_NAME_MAX);
	strcpy(s->context, prefix);
	strcat(s->context, bitmap);
	return 0;
}

static int want_contexts(const struct source *s, struct nbd_handle *h)
{
	if (nbd_clear_meta_contexts(h) < 0 ||
	    nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0)
		return -1;
	return s->context[0] ? nbd_add_meta_context(h, s->context) : 0;
}

/* A new handle that asks for our contexts, or NULL with libnbd's error set. */
static struct nbd_handle *make_handle(const struct source *s)
{
	struct nbd_handle *h = nbd_create();

	if (h && nbd_set_strict_mode(h, nbd_get_strict_mode(h) & ~LIBNBD_STRICT_ALIGN) == 0 &&
	    nbd_set_uri_allow_local_file(h, true) == 0 &&
	    nbd_set_pread_initialize(h, false) == 0 && want_contexts(s, h) == 0)
		return h;
	nbd_close(h);
	return NULL;
}

/* Names of contexts, for an error text. */
struct name_list {
	char text[512];
	size_t n;			/* bytes of text */
	const char *bitmap;		/* that is looked for */
	bool changes;			/* the server has CHANGES_PREFIX with it */
};

static int name_list_add(void *user_data, const char *name)
{
	struct name_list *l = user_data;
	size_t prefix = strlen(CHANGES_PREFIX);

	if (!strncmp(name, CHANGES_PREFIX, prefix) && !strcmp(name + prefix, l->bitmap))
		l->changes = true;
	if (l->n + strlen(name) + 3 < sizeof(l->text))
		l->n += sprintf(l->text + l->n, "%s%s", l->n ? ", " : "", name);
	return 0;
}

/* The first connection, up to the ready state.  When a bitmap is wanted, OFFERED
 * gets all that the server has: asked here, because a server that serves one
 * client only could not be asked later. */
static int first_connect(struct source *s, struct nbd_handle *h, struct name_list *offered)
{
	if (nbd_set_opt_mode(h, s->context[0] != 0) < 0 || nbd_connect_uri(h, s->uri) < 0)
		return -1;
	if (nbd_aio_is_negotiating(h) <= 0)
		return 0;
	if (nbd_clear_meta_contexts(h) < 0)
		return -1;
	offered->bitmap = s->context + strlen(BITMAP_PREFIX);
	nbd_opt_list_meta_context(h, (nbd_context_callback){ .callback = name_list_add,
							     .user_data = offered });
	if (offered->changes) {
		memmove(s->context + strlen(CHANGES_PREFIX), offered->bitmap,
			strlen(offered->bitmap) + 1);
		memcpy(s->context, CHANGES_PREFIX, strlen(CHANGES_PREFIX));
		s->tells_zeroes = true;
	}
	return want_contexts(s, h) < 0 ? -1 : nbd_opt_go(h);
}

/* Reads what the export is off the first connection. */
static int describe(struct source *s, struct error *err)
{
	struct nbd_handle *h = s->conn[0].h;
	int64_t size = nbd_get_size(h);
	int64_t block = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
	int64_t max = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);

	if (size < 0 || block < 0 || max < 0)
		return nbd_error(err, s->uri);
	s->size = size;
	s->block = block ? block : 1;
	s->max = max ? max : READ_MAX_UNSAID;
	if (!is_pow2(s->block) || s->block > s->max)
		return error_set(err, -EPROTO, "%s: the server's block sizes make no sense", s->uri);
	if (block == 0 && s->size % 512 == 0)
		s->block = 512;
	s->multi_conn = nbd_can_multi_conn(h) > 0;
	s->has_allocation = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
	return 0;
}

int source_open(struct source *s, const char *uri, const char *bitmap, struct error *err)
{
	struct name_list offered = { .n = 0 };
	struct nbd_handle *h;
	int rc;

	*s = (struct source){ .uri = uri };
	if (!uri_is_nbd(uri))
		return error_set(err, -EINVAL, "%s: not an NBD URI (nbd://HOST/EXPORT, "
				 "nbd+unix:///EXPORT?socket=PATH, ...)", uri);
	rc = context_name(s, bitmap, err);
	if (rc < 0)
		return rc;
	h = make_handle(s);
	if (!h)
		return nbd_error(err, uri);
	s->conn[0] = (struct conn){ .h = h, .state = CONN_READY };
	s->n = 1;
	if (first_connect(s, h, &offered) < 0)
		return nbd_error(err, uri);
	rc = describe(s, err);
	if (rc == 0 && s->context[0] && nbd_can_meta_context(h, s->context) <= 0)
		rc = error_set(err, -ENOENT, "%s: the server does not offer the context %s; it offers %s",
			       uri, s->context, offered.n ? offered.text : "none");
	return rc;
}

/* Those that touch are joined; in the usual order there is one. */
void cover_add(struct cover *c, uint64_t off, uint64_t len)
{
	uint64_t end = off + len;
	unsigned kept = 0;

	for (unsigned i = 0; i < c->n; i++) {
		if (off < c->v[i].end && c->v[i].off < end && len)
			c->bad = true;
		if (c->v[i].end == off)
			off = c->v[i].off;
		else if (c->v[i].off == end)
			end = c->v[i].end;
		else
			c->v[kept++] = c->v[i];
	}
	c->n = kept;
	if (end == off)
		return;
	if (c->n == COVER_PIECES) {
		c->bad = true;
		return;
	}
	c->v[c->n].off = off;
	c->v[c->n++].end = end;
}

bool cover_is(const struct cover *c, uint64_t off, uint64_t len)
{
	return !c->bad && c->n == 1 && c->v[0].off == off && c->v[0].end == off + len;
}

static void conn_drop(struct conn *c)
{
	nbd_close(c->h);
	*c = (struct conn){ .state = CONN_NONE };
}

void source_grow(struct source *s, unsigned want)
{
	for (; s->n < want && s->n < SOURCE_CONNECTIONS; s->n++) {
		struct conn *c = &s->conn[s->n];

		c->h = make_handle(s);
		c->state = CONN_CONNECTING;
		if (!c->h || nbd_aio_connect_uri(c->h, s->uri) < 0)
			conn_drop(c);
	}
}

/* After libnbd has worked on C: has it become ready, or failed? */
static int conn_check(struct source *s, struct conn *c, bool failed, struct error *err)
{
	if (c->state == CONN_CONNECTING) {
		if (failed || nbd_aio_is_dead(c->h) || nbd_aio_is_closed(c->h))
			conn_drop(c);
		else if (nbd_aio_is_ready(c->h) && nbd_get_size(c->h) == (int64_t)s->size)
			c->state = CONN_READY;
		else if (nbd_aio_is_ready(c->h))
			return error_set(err, -EPROTO, "%s: the export's size has changed", s->uri);
		return 0;
	}
	if (failed)
		return nbd_error(err, s->uri);
	if (nbd_aio_is_dead(c->h) || nbd_aio_is_closed(c->h))
		return error_set(err, -ECONNRESET, "%s: the server closed the connection", s->uri);
	return 0;
}

/* What libnbd's own poll does after poll(2). */
static int conn_notify(struct source *s, struct conn *c, short revents, struct error *err)
{
	unsigned dir = nbd_aio_get_direction(c->h);
	int rc = 0;

	if ((revents & (POLLIN | POLLHUP)) && (dir & LIBNBD_AIO_DIRECTION_READ))
		rc = nbd_aio_notify_read(c->h);
	else if ((revents & (POLLOUT | POLLHUP)) && (dir & LIBNBD_AIO_DIRECTION_WRITE))
		rc = nbd_aio_notify_write(c->h);
	else if ((revents & (POLLERR | POLLNVAL)) && c->state == CONN_CONNECTING)
		rc = -1;
	else if (revents & (POLLERR | POLLNVAL))
		return error_set(err, -ECONNRESET, "%s: the connection failed", s->uri);
	return conn_check(s, c, rc < 0, err);
}

int source_poll(struct source *s, int timeout, const sigset_t *sigmask, struct error *err)
{
	struct timespec ts = { .tv_sec = timeout / 1000, .tv_nsec = timeout % 1000 * 1000000L };
	struct pollfd fds[SOURCE_CONNECTIONS + 1];
	int rc;

	for (unsigned i = 0; i < s->n; i++) {
		struct conn *c = &s->conn[i];
		unsigned dir = c->h ? nbd_aio_get_direction(c->h) : 0;

		fds[i] = (struct pollfd){ .fd = c->h ? nbd_aio_get_fd(c->h) : -1 };
		if (dir & LIBNBD_AIO_DIRECTION_READ)
			fds[i].events |= POLLIN;
		if (dir & LIBNBD_AIO_DIRECTION_WRITE)
			fds[i].events |= POLLOUT;
	}
	fds[s->n] = (struct pollfd){ .fd = s->wake, .events = POLLIN };
	rc = ppoll(fds, s->n + s->has_wake, &ts, sigmask);
	if (rc < 0 && errno != EINTR)
		return error_errno(err, -errno, "poll");
	for (unsigned i = 0; rc > 0 && i < s->n; i++) {
		int bad = fds[i].revents ? conn_notify(s, &s->conn[i], fds[i].revents, err) : 0;

		if (bad < 0)
			return bad;
	}
	return 0;
}

unsigned source_ready(const struct source *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < s->n; i++)
		n += s->conn[i].state == CONN_READY;
	return n;
}

void source_close(struct source *s)
{
	for (unsigned i = 0; i < s->n; i++) {
		if (s->conn[i].state == CONN_READY && nbd_aio_is_ready(s->conn[i].h))
			nbd_aio_disconnect(s->conn[i].h, 0);
		conn_drop(&s->conn[i]);
	}
	s->n = 0;
}
