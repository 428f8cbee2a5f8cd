/* SPDX-License-Identifier: BSD-3-Clause */
/* vmm-nbd: an NBD server inside a test: a disk in memory, and faults on demand. */
#ifndef TESTS_VMM_NBD_H
#define TESTS_VMM_NBD_H

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct nbd_server {
	char path[108], uri[160];
	uint8_t *disk;
	uint64_t size;
	uint16_t flags;			/* of the export, protocol's */
	int listener;
	pthread_t thread;
	pthread_mutex_t lock;
	/* Faults, atomic. */
	int stall;			/* requests are read, and not answered */
	int cut_after;			/* > 0: a connection ends after so many requests, the last
					 * of them done and not answered */
	int error;			/* NBD error of every write */
	int gone;			/* connections end, what was done is not answered */
	unsigned requests, connections, clients;
	unsigned stalled;		/* requests that wait for the end of it */
};

struct nbd_client {
	struct nbd_server *s;
	int fd;
};

static inline bool nbd_get(int fd, void *p, size_t n)
{
	for (char *at = p; n; ) {
		ssize_t r = recv(fd, at, n, 0);

		if (r <= 0)
			return false;
		at += r;
		n -= (size_t)r;
	}
	return true;
}

static bool nbd_put(int fd, const void *p, size_t n)
{
	return send(fd, p, n, MSG_NOSIGNAL) == (ssize_t)n;
}

struct nbd_option_reply {
	uint64_t magic;
	uint32_t option, type, len;
} __attribute__((packed));

static bool nbd_option_reply(int fd, uint32_t option, uint32_t type, const void *data, uint32_t len)
{
	struct nbd_option_reply r = { htobe64(0x3e889045565a9), htobe32(option), htobe32(type),
				      htobe32(len) };

	return nbd_put(fd, &r, sizeof(r)) && (!len || nbd_put(fd, data, len));
}

static bool nbd_handshake(struct nbd_client *c)
{
	struct { uint64_t magic, opts; uint16_t flags; } __attribute__((packed)) hello = {
		htobe64(0x4e42444d41474943), htobe64(0x49484156454f5054), htobe16(3) };
	struct { uint64_t magic; uint32_t option, len; } __attribute__((packed)) o;
	struct { uint16_t type; uint64_t size; uint16_t flags; } __attribute__((packed)) info = {
		0, htobe64(c->s->size), htobe16(c->s->flags) };
	char text[4096];
	uint32_t client;

	if (!nbd_put(c->fd, &hello, sizeof(hello)) || !nbd_get(c->fd, &client, 4))
		return false;
	for (;;) {
		if (!nbd_get(c->fd, &o, sizeof(o)) || be32toh(o.len) > sizeof(text) ||
		    !nbd_get(c->fd, text, be32toh(o.len)))
			return false;
		if (be32toh(o.option) == 7)
			return nbd_option_reply(c->fd, 7, 3, &info, sizeof(info)) &&
			       nbd_option_reply(c->fd, 7, 1, NULL, 0);
		if (!nbd_option_reply(c->fd, be32toh(o.option), 0x80000001, NULL, 0))
			return false;
	}
}

struct nbd_request_wire {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, off;
	uint32_t len;
} __attribute__((packed));

/* One request.  False: the connection ends. */
static bool nbd_serve(struct nbd_client *c, char *buf, unsigned n)
{
	struct nbd_server *s = c->s;
	struct nbd_request_wire r;
	struct { uint32_t magic, error; uint64_t cookie; } reply = { htobe32(0x67446698), 0, 0 };
	uint64_t off;
	uint32_t len, error = 0;
	uint16_t type;
	int cut;

	if (!nbd_get(c->fd, &r, sizeof(r)) || be32toh(r.magic) != 0x25609513)
		return false;
	type = be16toh(r.type);
	off = be64toh(r.off);
	len = be32toh(r.len);
	if (type == 2 || (type < 2 && len > 32 << 20) || (type == 1 && !nbd_get(c->fd, buf, len)))
		return false;
	__atomic_add_fetch(&s->requests, 1, __ATOMIC_SEQ_CST);
	if (off > s->size || len > s->size - off)
		error = 22;
	else if (type == 1)
		error = (uint32_t)__atomic_load_n(&s->error, __ATOMIC_SEQ_CST);
	pthread_mutex_lock(&s->lock);
	if (!error && type == 1)
		memcpy(s->disk + off, buf, len);
	else if (!error && type == 0)
		memcpy(buf, s->disk + off, len);
	else if (!error && (type == 4 || type == 6))
		memset(s->disk + off, 0, len);
	pthread_mutex_unlock(&s->lock);
	if (__atomic_load_n(&s->stall, __ATOMIC_SEQ_CST)) {
		__atomic_add_fetch(&s->stalled, 1, __ATOMIC_SEQ_CST);
		while (__atomic_load_n(&s->stall, __ATOMIC_SEQ_CST) &&
		       !__atomic_load_n(&s->gone, __ATOMIC_SEQ_CST))
			usleep(1000);
		__atomic_sub_fetch(&s->stalled, 1, __ATOMIC_SEQ_CST);
	}
	if (__atomic_load_n(&s->gone, __ATOMIC_SEQ_CST))
		return false;
	cut = __atomic_load_n(&s->cut_after, __ATOMIC_SEQ_CST);
	if (cut && n >= (unsigned)cut)
		return false;
	reply.error = htobe32(error);
	reply.cookie = r.cookie;
	return nbd_put(c->fd, &reply, sizeof(reply)) && (type || error || nbd_put(c->fd, buf, len));
}

static void *nbd_client_run(void *arg)
{
	struct nbd_client *c = arg;
	char *buf = malloc(32 << 20);
	unsigned n = 0;

	if (!__atomic_load_n(&c->s->gone, __ATOMIC_SEQ_CST) && nbd_handshake(c))
		while (nbd_serve(c, buf, ++n))
			;
	close(c->fd);
	free(buf);
	__atomic_sub_fetch(&c->s->clients, 1, __ATOMIC_SEQ_CST);
	free(c);
	return NULL;
}

static void *nbd_accept(void *arg)
{
	struct nbd_server *s = arg;

	for (;;) {
		int fd = accept(s->listener, NULL, NULL);
		struct nbd_client *c;
		pthread_t t;

		if (fd < 0)
			return NULL;
		c = malloc(sizeof(*c));
		*c = (struct nbd_client){ s, fd };
		__atomic_add_fetch(&s->connections, 1, __ATOMIC_SEQ_CST);
		__atomic_add_fetch(&s->clients, 1, __ATOMIC_SEQ_CST);
		pthread_create(&t, NULL, nbd_client_run, c);
		pthread_detach(t);
	}
}

static inline void nbd_server_start(struct nbd_server *s, uint64_t size)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	static unsigned serial;

	memset(s, 0, sizeof(*s));
	s->size = size;
	s->disk = calloc(1, size);
	s->flags = 1 | 4 | 8 | 32 | 64 | 256;	/* flags, flush, FUA, trim, zeroes, multi-conn */
	pthread_mutex_init(&s->lock, NULL);
	snprintf(s->path, sizeof(s->path), "/tmp/merino-test-%d-%u.sock", (int)getpid(), serial++);
	snprintf(s->uri, sizeof(s->uri), "nbd+unix:///?socket=%s", s->path);
	unlink(s->path);
	strcpy(a.sun_path, s->path);
	s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(s->listener, (struct sockaddr *)&a, sizeof(a)) || listen(s->listener, 16))
		abort();
	pthread_create(&s->thread, NULL, nbd_accept, s);
}

/* After its clients have gone. */
static inline void nbd_server_stop(struct nbd_server *s)
{
	unlink(s->path);
	__atomic_store_n(&s->stall, 0, __ATOMIC_SEQ_CST);
	shutdown(s->listener, SHUT_RDWR);
	pthread_join(s->thread, NULL);
	close(s->listener);
	while (__atomic_load_n(&s->clients, __ATOMIC_SEQ_CST))
		usleep(1000);
	free(s->disk);
}

#endif
