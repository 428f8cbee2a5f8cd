/* SPDX-License-Identifier: BSD-3-Clause */
/* console-port: a port's unix socket, and the bytes between its client and the guest.
 *
 * Bytes go straight from and into the guest's buffers.  Each side waits for the other: a
 * client that does not read stops the guest's writes to this port, a guest that does not
 * read leaves the client's bytes in its socket.  With no client, what the guest writes is
 * dropped.  What a client wrote before it left is not brought to a guest that opens the
 * port later: an order to freeze must not outlive who gave it.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/loop.h"
#include "vmm/console-int.h"
#include "vmm/unix.h"

#define ACCEPT_PAUSE 100000000ull	/* ns, after an error such as EMFILE */
#define ROUNDS 64			/* buffers, before others have their turn */

/* -- from the guest ------------------------------------------------------------ */

bool console_advance(struct console_buffer *b, size_t n)
{
	while (b->at < b->chain.n_out) {
		size_t left = b->chain.iov[b->at].iov_len - b->skip;

		if (n < left) {
			b->skip += n;
			return false;
		}
		n -= left;
		b->at++;
		b->skip = 0;
	}
	return true;
}

/* Under the lock.  Sends what it can of the buffer: 0 when all has gone, or -errno. */
static int send_buffer(struct console_port *p)
{
	struct console_buffer *b = &p->out;

	while (!console_advance(b, 0) && p->client >= 0) {
		const struct iovec *v = &b->chain.iov[b->at];
		ssize_t n = send(p->client, (char *)v->iov_base + b->skip, v->iov_len - b->skip,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		console_advance(b, (size_t)n);
	}
	return 0;
}

/* One buffer: 1 when it has gone, 0 when there is none, or -errno. */
static int send_one(struct console_port *p)
{
	struct console *c = p->console;
	struct console_buffer *b = &p->out;
	unsigned queue = console_out_queue(p->id);
	int rc = 0;

	pthread_mutex_lock(&c->lock);
	if (!b->taken && console_pop(c, queue, &b->chain)) {
		b->taken = true;
		b->at = 0;
		b->skip = 0;
	}
	if (b->taken && console_may(c))
		rc = send_buffer(p);
	if (b->taken && console_may(c) && rc != -EAGAIN) {	/* a client that broke: the rest is dropped */
		b->taken = false;
		console_push(c, queue, b->chain.head, 0);
		rc = 1;
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

void console_port_send(struct console_port *p)
{
	struct io *io = loop_io(loop_self());
	unsigned rounds = 0;

	while (!p->console->ending) {
		int rc = send_one(p);

		if (!rc)
			return;
		if (rc == -EAGAIN) {
			p->sending = true;
			io_poll(io, p->client, POLLOUT);
			p->sending = false;
			co_queue_wake_all(&p->change);
		}
		if (++rounds % ROUNDS == 0)
			co_yield();
	}
}

/* -- to the guest -------------------------------------------------------------- */

/* Whether there is a buffer for the client's bytes. */
static bool has_buffer(struct console_port *p)
{
	struct console *c = p->console;
	struct console_buffer *b = &p->in;
	bool has;

	pthread_mutex_lock(&c->lock);
	if (!b->taken && p->guest_open)
		b->taken = console_pop(c, console_in_queue(p->id), &b->chain);
	has = b->taken && console_may(c);
	pthread_mutex_unlock(&c->lock);
	return has;
}

/* Bytes, 0 at the end of the stream, -EAGAIN, or -errno. */
static ssize_t receive(struct console_port *p)
{
	struct console *c = p->console;
	struct console_buffer *b = &p->in;
	ssize_t n = -EAGAIN;

	pthread_mutex_lock(&c->lock);
	if (b->taken && console_may(c)) {
		struct msghdr msg = {
			.msg_iov = b->chain.iov + b->chain.n_out, .msg_iovlen = b->chain.n_in,
		};

		/* Without room there is nothing to receive, which is not the end. */
		n = b->chain.in_bytes ? recvmsg(p->client, &msg, MSG_DONTWAIT) : -1;
		if (n < 0)
			n = !b->chain.in_bytes ? -EAGAIN : errno == EINTR ? -EAGAIN : -errno;
		if (n > 0 || !b->chain.in_bytes) {
			b->taken = false;
			console_push(c, console_in_queue(p->id), b->chain.head, n > 0 ? (uint32_t)n : 0);
		}
	}
	pthread_mutex_unlock(&c->lock);
	return n;
}

/* Waits for the client's bytes, when there is a buffer for them, or for its end. */
static bool wait_client(struct console_port *p, bool ready)
{
	int rc;

	p->receiving = true;
	rc = io_poll(loop_io(loop_self()), p->client, ready ? POLLIN : POLLRDHUP);
	p->receiving = false;
	if (rc == -ECANCELED)		/* the guest has changed its mind */
		return true;
	return rc > 0 && (ready || !(rc & (POLLRDHUP | POLLHUP | POLLERR)));
}

static void serve_client(struct console_port *p)
{
	while (!p->console->ending) {
		bool ready = has_buffer(p);
		ssize_t n;

		if (!wait_client(p, ready))
			return;
		n = ready ? receive(p) : -EAGAIN;
		if (n == 0 || (n < 0 && n != -EAGAIN))
			return;
	}
}

void console_port_changed(struct console_port *p)
{
	if (p->receiving && p->client >= 0)
		io_cancel(loop_io(loop_self()), p->client);
}

/* -- clients ------------------------------------------------------------------- */

static void tell_open(struct console_port *p)
{
	struct console *c = p->console;

	pthread_mutex_lock(&c->lock);
	if (c->active && !p->is_terminal)
		p->due |= DUE_OPEN;
	pthread_mutex_unlock(&c->lock);
	console_control(c);
}

static void client_left(struct console_port *p)
{
	int fd = p->client;

	shutdown(fd, SHUT_RDWR);
	while (p->sending)
		co_queue_wait(&p->change);
	p->client = -1;
	close(fd);
	tell_open(p);
}

void console_port_run(void *arg)
{
	struct console_port *p = arg;
	struct io *io = loop_io(loop_self());

	while (!p->console->ending) {
		int fd = io_accept(io, p->listener);

		if (fd >= 0) {
			p->client = fd;
			tell_open(p);
			serve_client(p);
			client_left(p);
		} else if (fd != -ECONNABORTED && fd != -EINTR && !p->console->ending) {
			io_sleep(io, ACCEPT_PAUSE);
		}
	}
	console_leave(p->console);
}

int console_port_listen(struct console_port *p, struct error *err)
{
	p->listener = unix_listen(p->path, err);
	return p->listener < 0 ? p->listener : 0;
}

void console_port_stop(struct console_port *p)
{
	if (p->listener >= 0)
		shutdown(p->listener, SHUT_RDWR);
	if (p->client >= 0)
		shutdown(p->client, SHUT_RDWR);
	console_port_changed(p);
}

void console_port_close(struct console_port *p)
{
	if (p->listener < 0)
		return;
	close(p->listener);
	unlink(p->path);
	p->listener = -1;
}
