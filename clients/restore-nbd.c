// SPDX-License-Identifier: BSD-3-Clause
/* restore-nbd: a disk is restored into an NBD export.
 *
 * Writes are copied into a fixed pool of buffers and go out asynchronously; the one poll
 * is where signals are seen, so that a server that does not answer can be left.  Every
 * completion's result is looked at: one that fails fails the restore, at the next call.
 */
#include <errno.h>
#include <libnbd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "clients/restore-out.h"
#include "common/checked.h"

enum {
	SLOTS = 16,
	SLOT_BYTES = 1 << 20,
	ZERO_MAX = 1 << 30,
	WAIT_MS = 1000,
	WRITE_MAX_UNSAID = 32 << 20,	/* what the protocol lets a client assume */
};

struct slot {
	struct nbd_out *out;
	struct slot *next;		/* in out->free */
	char *buf;			/* SLOT_BYTES */
	uint64_t off, len;		/* for the error's text */
};

struct nbd_out {
	struct nbd_handle *h;
	const char *uri;
	struct slot slot[SLOTS], *free;
	unsigned n_free;
	uint64_t piece;			/* bytes of a write */
	bool can_zero, can_flush;
	struct error failed;		/* the first completion's that did */
};

static int nbd_error(struct nbd_out *o, struct error *err)
{
	int code = nbd_get_errno();
	const char *text = nbd_get_error();

	return error_set(err, code > 0 ? -code : -EIO, "%s: %s", o->uri, text ? text : "unknown error");
}

static int make_slots(struct nbd_out *o)
{
	for (unsigned i = 0; i < SLOTS; i++) {
		struct slot *s = &o->slot[i];

		s->buf = calloc(1, SLOT_BYTES);
		if (!s->buf)
			return -ENOMEM;
		s->out = o;
		s->next = o->free;
		o->free = s;
		o->n_free++;
	}
	return 0;
}

static int describe(struct nbd_out *o, uint64_t size, struct error *err)
{
	int64_t has = nbd_get_size(o->h), min = nbd_get_block_size(o->h, LIBNBD_SIZE_MINIMUM);
	int64_t max = nbd_get_block_size(o->h, LIBNBD_SIZE_MAXIMUM);

	if (has < 0 || min < 0 || max < 0)
		return nbd_error(o, err);
	if (nbd_is_read_only(o->h) != 0)
		return error_set(err, -EROFS, "%s: the export is read only", o->uri);
	if ((uint64_t)has < size)
		return error_set(err, -ENOSPC, "%s has %lld bytes, the disk %llu", o->uri, (long long)has,
				 (unsigned long long)size);
	o->piece = min_u64(SLOT_BYTES, max ? max : WRITE_MAX_UNSAID);
	if (!o->piece || (uint64_t)min > o->piece || size % (min ? min : 1))
		return error_set(err, -EINVAL, "%s: the server's blocks of %lld bytes do not fit the disk", o->uri,
				 (long long)min);
	if (min)
		o->piece = align_down(o->piece, min);
	o->can_zero = nbd_can_zero(o->h) > 0;
	o->can_flush = nbd_can_flush(o->h) > 0;
	return 0;
}

int nbd_out_open(struct nbd_out **out, const char *uri, uint64_t size, struct error *err)
{
	struct nbd_out *o = calloc(1, sizeof(*o));
	int rc = o ? make_slots(o) : -ENOMEM;

	*out = o;
	if (rc < 0)
		return error_errno(err, rc, "%s", uri);
	o->uri = uri;
	o->h = nbd_create();
	if (!o->h || nbd_set_uri_allow_local_file(o->h, true) < 0 || nbd_connect_uri(o->h, uri) < 0)
		return nbd_error(o, err);
	return describe(o, size, err);
}

static int on_complete(void *user_data, int *error)
{
	struct slot *s = user_data;
	struct nbd_out *o = s->out;

	if (*error && !o->failed.code)
		error_errno(&o->failed, -*error, "%s: writing %llu bytes at offset %llu", o->uri,
			    (unsigned long long)s->len, (unsigned long long)s->off);
	s->next = o->free;
	o->free = s;
	o->n_free++;
	return 1;
}

/* Waits for the server once, and lets libnbd work. */
static int wait_once(struct nbd_out *o, struct error *err)
{
	const struct timespec ts = { .tv_sec = WAIT_MS / 1000 };
	unsigned dir = nbd_aio_get_direction(o->h);
	struct pollfd p = { .fd = nbd_aio_get_fd(o->h) };
	sigset_t none;
	int rc;

	sigemptyset(&none);
	p.events = (dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) | (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
	rc = ppoll(&p, 1, &ts, &none);
	if (pull_signalled())
		return error_set(err, -EINTR, "stopped by a signal");
	if (rc < 0)
		return errno == EINTR ? 0 : error_errno(err, -errno, "poll");
	rc = 0;
	if ((p.revents & (POLLIN | POLLHUP)) && (dir & LIBNBD_AIO_DIRECTION_READ))
		rc = nbd_aio_notify_read(o->h);
	else if ((p.revents & (POLLOUT | POLLHUP)) && (dir & LIBNBD_AIO_DIRECTION_WRITE))
		rc = nbd_aio_notify_write(o->h);
	else if (p.revents)
		return error_set(err, -ECONNRESET, "%s: the connection failed", o->uri);
	return rc < 0 ? nbd_error(o, err) : 0;
}

/* Until N slots are free. */
static int wait_free(struct nbd_out *o, unsigned n, struct error *err)
{
	int rc = 0;

	while (rc == 0 && o->n_free < n && !o->failed.code) {
		if (nbd_aio_is_dead(o->h) || nbd_aio_is_closed(o->h))
			return error_set(err, -ECONNRESET, "%s: the server closed the connection", o->uri);
		rc = wait_once(o, err);
	}
	if (rc == 0 && o->failed.code) {
		*err = o->failed;
		rc = o->failed.code;
	}
	return rc;
}

/* Takes a slot for [OFF, OFF + LEN). */
static int take(struct nbd_out *o, uint64_t off, uint64_t len, struct slot **out, struct error *err)
{
	int rc = wait_free(o, 1, err);

	if (rc < 0)
		return rc;
	*out = o->free;
	o->free = (*out)->next;
	o->n_free--;
	(*out)->off = off;
	(*out)->len = len;
	return 0;
}

/* BUF NULL: zeroes, which are written. */
static int write_one(struct nbd_out *o, const char *buf, uint64_t off, size_t len, struct error *err)
{
	nbd_completion_callback done = { .callback = on_complete };
	struct slot *s;
	int rc = take(o, off, len, &s, err);

	if (rc < 0)
		return rc;
	if (buf)
		memcpy(s->buf, buf, len);
	else
		memset(s->buf, 0, len);
	done.user_data = s;
	return nbd_aio_pwrite(o->h, s->buf, len, off, done, 0) < 0 ? nbd_error(o, err) : 0;
}

int nbd_out_write(struct nbd_out *o, const void *buf, uint64_t off, size_t len, struct error *err)
{
	const char *p = buf;
	int rc = 0;

	for (size_t n; len && rc == 0; off += n, len -= n, p = p ? p + n : NULL) {
		n = min_u64(len, o->piece);
		rc = write_one(o, p, off, n, err);
	}
	return rc;
}

int nbd_out_zero(struct nbd_out *o, uint64_t off, uint64_t len, struct error *err)
{
	nbd_completion_callback done = { .callback = on_complete };
	struct slot *s;
	int rc = 0;

	for (uint64_t n; len && rc == 0; off += n, len -= n) {
		n = min_u64(len, o->can_zero ? ZERO_MAX : SLOT_BYTES);
		if (!o->can_zero) {
			rc = nbd_out_write(o, NULL, off, n, err);
			continue;
		}
		rc = take(o, off, n, &s, err);
		if (rc < 0)
			return rc;
		done.user_data = s;
		if (nbd_aio_zero(o->h, n, off, done, 0) < 0)
			rc = nbd_error(o, err);
	}
	return rc;
}

int nbd_out_flush(struct nbd_out *o, struct error *err)
{
	nbd_completion_callback done = { .callback = on_complete };
	struct slot *s;
	int rc = wait_free(o, SLOTS, err);

	if (rc < 0 || !o->can_flush)
		return rc;
	rc = take(o, 0, 0, &s, err);
	if (rc < 0)
		return rc;
	done.user_data = s;
	if (nbd_aio_flush(o->h, done, 0) < 0)
		return nbd_error(o, err);
	return wait_free(o, SLOTS, err);
}

void nbd_out_close(struct nbd_out *o)
{
	if (!o)
		return;
	if (o->h && nbd_aio_is_ready(o->h))
		nbd_aio_disconnect(o->h, 0);
	nbd_close(o->h);		/* what is in flight completes with an error inside */
	for (unsigned i = 0; i < SLOTS; i++)
		free(o->slot[i].buf);
	free(o);
}
