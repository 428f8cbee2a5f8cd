// SPDX-License-Identifier: BSD-3-Clause
/* disk-conn: one channel's connection.
 *
 *	DOWN --(deadline)--> CONNECTING --(handshake, facts are right)--> READY
 *	  ^                      |  failed, CONNECT_MS                       |
 *	  +----------------------+------------------<------------------------+  lost
 *
 * An attempt that fails moves on to the next address; the pauses between attempts grow until
 * an answer comes.  A connection counts as lost until then, too: a server that dies of one
 * request again and again is not taken for one that works.
 */
#include "vmm/disk-int.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/log.h"

/* A peer that fell off the network is noticed though we only wait for it.  No unix socket
 * takes these, and none needs them. */
static void keep_alive(int fd)
{
	const int one = 1, idle = 10, each = 5, count = 3, unanswered = 25000;

	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &each, sizeof(each));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered, sizeof(unanswered));
}

static void tell_loss(struct disk_channel *c, const char *why)
{
	int64_t now = disk_now();

	if (c->told || c->quiet || (c->told_at && now < c->told_at + TELL_MS))
		return;
	c->told = true;
	c->told_at = now;
	log_warning("disk %s: no connection to %s: %s", c->disk->id, c->disk->uri[c->uri],
		    why ? why : "the server closed it");
}

static void conn_forget(struct disk_channel *c)
{
	dial_give_up(c->dial);
	c->dial = NULL;
	nbd_close(c->h);
	c->h = NULL;
}

void conn_drop(struct disk_channel *c, const char *why)
{
	int64_t now = disk_now();

	tell_loss(c, why);
	snprintf(c->why, sizeof(c->why), "%s", why ? why : "no answer");
	conn_forget(c);
	c->drop_why = NULL;
	if (!c->lost_at)
		c->lost_at = now;
	c->deadline = now + c->retry_ms;
	c->retry_ms = min_u64(c->retry_ms ? c->retry_ms * 2 : RETRY_MS_MIN, RETRY_MS_MAX);
	c->state = CHANNEL_DOWN;
	cmd_unsend(c);
}

/* The address of C is no good: the whole disk moves on, unless another channel did that. */
void conn_next_address(struct disk_channel *c)
{
	unsigned was = c->uri, next = (c->uri + 1) % c->disk->n_uris;

	if (next != was && __atomic_compare_exchange_n(&c->disk->uri_now, &was, next, false,
						       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		disk_wake(c->disk);
}

static void failed(struct disk_channel *c, const char *why)
{
	conn_drop(c, why);
	conn_next_address(c);
}

static void took(struct disk_channel *c, const struct dialled *d)
{
	c->h = d->h;
	c->dial = d->dial;
	c->deadline = disk_now() + (c->dial ? LOOKUP_MS : CONNECT_MS);
	if (c->h || c->dial)
		conn_check(c);
	else
		failed(c, d->why);
}

void conn_start(struct disk_channel *c)
{
	struct dialled d;

	c->state = CHANNEL_CONNECTING;
	c->uri = __atomic_load_n(&c->disk->uri_now, __ATOMIC_SEQ_CST);
	c->abandoned = __atomic_load_n(&c->disk->abandoned, __ATOMIC_SEQ_CST);
	dial_start(c->disk->uri[c->uri], &d);
	took(c, &d);
}

static void ready(struct disk_channel *c)
{
	struct error err = ERROR_INIT;

	if (disk_learn(c->disk, c->h, c->disk->n_channels == 0, &err)) {
		if (!c->told_unfit && !c->quiet)
			log_warning("disk %s: %s is not used: %s", c->disk->id,
				    c->disk->uri[c->uri], err.text);
		c->told_unfit = true;
		failed(c, err.text);
		return;
	}
	keep_alive(nbd_aio_get_fd(c->h));
	c->tls = nbd_get_tls_negotiated(c->h) > 0;
	c->state = CHANNEL_READY;
	if (!c->in_flight)
		c->lost_at = 0;
	if (c->told)
		log_info("disk %s: connected to %s", c->disk->id, c->disk->uri[c->uri]);
	c->told = c->told_failing = c->told_unfit = false;
}

static bool is_over(const struct disk_channel *c)
{
	return c->drop_why || (c->h && (nbd_aio_is_dead(c->h) > 0 || nbd_aio_is_closed(c->h) > 0));
}

void conn_check(struct disk_channel *c)
{
	struct dialled d;

	if (c->state == CHANNEL_DOWN)
		return;
	if (c->dial && dial_take(c->dial, &d)) {
		took(c, &d);
	} else if (is_over(c)) {
		if (c->state == CHANNEL_CONNECTING)
			failed(c, nbd_get_error());
		else
			conn_drop(c, c->drop_why);
	} else if (c->uri != __atomic_load_n(&c->disk->uri_now, __ATOMIC_SEQ_CST)) {
		conn_drop(c, "the disk moves to another address");
	} else if (c->abandoned != __atomic_load_n(&c->disk->abandoned, __ATOMIC_SEQ_CST)) {
		conn_drop(c, "requests of another queue are abandoned");
	} else if (c->state == CHANNEL_CONNECTING && c->h && nbd_aio_is_ready(c->h) > 0) {
		ready(c);
	} else if (c->state == CHANNEL_CONNECTING && disk_now() >= c->deadline) {
		failed(c, c->dial ? "the resolver does not answer" : "no answer within 5 s");
	}
}

static short events_of(struct nbd_handle *h)
{
	unsigned dir = nbd_aio_get_direction(h);

	return (dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
	       (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
}

int conn_fd(const struct disk_channel *c)
{
	return c->dial ? dial_fd(c->dial) : c->h ? nbd_aio_get_fd(c->h) : -1;
}

short conn_events(const struct disk_channel *c)
{
	return c->h ? events_of(c->h) : POLLIN;
}

static int bytes_there(struct disk_channel *c)
{
	int n = 0;

	return ioctl(nbd_aio_get_fd(c->h), FIONREAD, &n) ? 0 : n;
}

bool disk_may_look(struct disk_channel *c)
{
	return c->state == CHANNEL_READY && nbd_aio_get_direction(c->h) == LIBNBD_AIO_DIRECTION_READ;
}

bool disk_has_answers(struct disk_channel *c)
{
	return bytes_there(c) > 0;
}

/* libnbd takes one reply with each call.  It must not be called when nothing is there: it
 * would wait inside of a reply, and send nothing meanwhile. */
static void take_replies(struct disk_channel *c)
{
	enum { REPLY = 16 };
	bool several = c->state == CHANNEL_READY && !c->tls && cmd_several_sent(c);
	int there = several ? bytes_there(c) : 0;

	for (;;) {
		c->taken_bytes = 0;
		if (nbd_aio_notify_read(c->h) < 0 || c->taken_bytes == 0)
			return;
		if (there < REPLY || c->taken_bytes > (size_t)there - REPLY)
			return;
		there -= c->taken_bytes;
	}
}

void conn_notify(struct disk_channel *c, short revents)
{
	unsigned dir = c->h ? nbd_aio_get_direction(c->h) : 0;

	if (revents & (POLLIN | POLLHUP | POLLERR) && dir & LIBNBD_AIO_DIRECTION_READ)
		take_replies(c);
	else if (revents & (POLLOUT | POLLHUP | POLLERR) && dir & LIBNBD_AIO_DIRECTION_WRITE)
		nbd_aio_notify_write(c->h);
}

/* While a machine starts, nobody takes the signals that are to end it. */
static bool is_to_end(void)
{
	sigset_t s;

	return sigpending(&s) == 0 && (sigismember(&s, SIGTERM) || sigismember(&s, SIGINT));
}

static void open_wait(struct disk_channel *c)
{
	struct pollfd p = { .fd = conn_fd(c), .events = conn_events(c) };
	int64_t left = c->deadline - disk_now();

	if (poll(&p, 1, left < 0 ? 0 : min_u64(left, OPEN_NAP_MS)) > 0)
		conn_notify(c, p.revents);
	conn_check(c);
}

/* The first time, on the thread that starts the machine.  Each address gets one chance. */
int conn_open(struct disk_channel *c, struct error *err)
{
	for (unsigned tried = 0; tried < c->disk->n_uris; tried++) {
		unsigned uri = __atomic_load_n(&c->disk->uri_now, __ATOMIC_SEQ_CST);

		c->quiet = true;
		conn_start(c);
		while (c->state == CHANNEL_CONNECTING && !is_to_end())
			open_wait(c);
		if (c->state == CHANNEL_READY) {
			c->quiet = false;
			c->lost_at = c->retry_ms = 0;
			return 0;
		}
		if (is_to_end())
			return error_set(err, -EINTR, "%s: stopped by a signal", c->disk->uri[uri]);
		error_set(err, -ECONNREFUSED, "%s: %s", c->disk->uri[uri], c->why);
	}
	return -ECONNREFUSED;
}

static void look_on(struct nbd_handle *h, int ms)
{
	struct pollfd p = { .fd = nbd_aio_get_fd(h), .events = events_of(h) };

	if (poll(&p, 1, ms) <= 0)
		return;
	if (p.events & POLLIN && p.revents & ~POLLOUT)
		nbd_aio_notify_read(h);
	else if (p.events & POLLOUT)
		nbd_aio_notify_write(h);
}

/* Waits for the resolver. */
static void look_dial(struct dialled *d, int64_t end)
{
	struct pollfd p = { .fd = dial_fd(d->dial), .events = POLLIN };
	int64_t left;

	while ((left = end - disk_now()) > 0 && poll(&p, 1, left) <= 0)
		;
	if (dial_take(d->dial, d))
		return;
	dial_give_up(d->dial);
	*d = (struct dialled){ .why = "the resolver does not answer" };
}

bool disk_look(struct disk *d)
{
	int64_t end = disk_now() + LOOK_MS, left, size = -1;
	struct dialled to;

	dial_start(d->uri[__atomic_load_n(&d->uri_now, __ATOMIC_SEQ_CST)], &to);
	if (to.dial)
		look_dial(&to, end);
	while (to.h && nbd_aio_is_connecting(to.h) > 0 && (left = end - disk_now()) > 0)
		look_on(to.h, left);
	if (to.h && nbd_aio_is_ready(to.h) > 0)
		size = nbd_get_size(to.h);
	if (size >= 0)
		disk_set_size(d, size);
	else
		log_warning("disk %s: its size could not be looked at: %s", d->id,
			    to.why[0] ? to.why : nbd_get_error() ? nbd_get_error() : "no answer");
	if (to.h && nbd_aio_is_ready(to.h) > 0)
		nbd_aio_disconnect(to.h, 0);
	nbd_close(to.h);
	return size >= 0;
}

void conn_close(struct disk_channel *c)
{
	if (c->h && c->state == CHANNEL_READY)
		nbd_aio_disconnect(c->h, 0);
	conn_forget(c);
	c->state = CHANNEL_DOWN;
}
