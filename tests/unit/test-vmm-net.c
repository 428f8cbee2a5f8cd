// SPDX-License-Identifier: BSD-3-Clause
/* A network card's queues against honest and hostile drivers, and its carriers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/vmm-ring.h"
#include "vmm/net-flows.h"
#include "vmm/virtio-net-int.h"

enum { HEADER = sizeof(struct virtio_net_hdr_v1), NEXT = VRING_DESC_F_NEXT, WRITE = VRING_DESC_F_WRITE };

/* -- a card whose carrier notes what comes ------------------------------------------------ */

static uint8_t sent[NET_FRAME_MAX];
static size_t sent_len;
static unsigned n_sent;
static struct ring *endless;		/* offers its buffer again and again */

static void note(struct net *n, const uint8_t *frame, size_t len)
{
	if (endless)
		ring_offer(endless, 0);
	memcpy(sent, frame, len);
	sent_len = len;
	n_sent++;
}

static const struct net_class noting = { .name = "noting", .send = note };

struct card {
	struct virtio_net n;
	struct ring ring[NET_QUEUES];	/* they see their queue of the card's */
	struct net net;
};

static struct card *card_make(void)
{
	struct card *c = calloc(1, sizeof(*c));

	for (unsigned i = 0; i < NET_QUEUES; i++) {
		ring_make(&c->ring[i], 8);
		c->ring[i].q.indirect = true;
		assert_int_equal(queue_start(&c->ring[i].q), 0);
		c->n.v.queue[i] = c->ring[i].q;
	}
	c->net.class = &noting;
	c->n.net = &c->net;
	c->n.active = true;
	n_sent = 0;
	return c;
}

static void card_free(struct card *c)
{
	for (unsigned i = 0; i < NET_QUEUES; i++)
		ring_free(&c->ring[i]);
	free(c);
}

static uint8_t *at(struct card *c, unsigned queue, uint64_t gpa)
{
	return c->ring[queue].memory.base + gpa;
}

/* -- from the guest ----------------------------------------------------------------------- */

/* A frame of LEN bytes, header included, in one buffer. */
static void offer(struct card *c, uint32_t len)
{
	ring_desc(&c->ring[NET_TX].desc[0], RING_BUFFERS, len, 0, 0);
	ring_offer(&c->ring[NET_TX], 0);
}

static void test_transmit(void **state)
{
	struct card *c = card_make();
	struct ring *r = &c->ring[NET_TX];

	/* The header in two pieces, the frame in two others. */
	ring_desc(&r->desc[0], RING_BUFFERS, 5, NEXT, 3);
	ring_desc(&r->desc[3], RING_BUFFERS + 100, HEADER - 5 + 10, NEXT, 1);
	ring_desc(&r->desc[1], RING_BUFFERS + 300, 50, 0, 0);
	for (unsigned i = 0; i < 10; i++)
		at(c, NET_TX, RING_BUFFERS + 100)[HEADER - 5 + i] = (uint8_t)i;
	memset(at(c, NET_TX, RING_BUFFERS + 300), 0x55, 50);
	ring_offer(r, 0);
	assert_false(virtio_net_transmit(&c->n));
	assert_int_equal(n_sent, 1);
	assert_int_equal(sent_len, 60);
	assert_int_equal(sent[9], 9);
	assert_int_equal(sent[10], 0x55);
	assert_int_equal(sent[59], 0x55);
	assert_int_equal(r->used->idx, 1);
	assert_true(c->n.used[NET_TX]);
	card_free(c);
}

/* Frames that no wire carries, or that want what was not offered, are lost: no more. */
static void test_transmit_bad(void **state)
{
	static const uint32_t bad_len[] = { 1, HEADER, HEADER + NET_FRAME_MIN - 1,
					    HEADER + NET_FRAME_MAX + 1 };
	struct card *c = card_make();
	struct virtio_net_hdr_v1 *h = (void *)at(c, NET_TX, RING_BUFFERS);
	unsigned n = 0;

	for (; n < sizeof(bad_len) / sizeof(bad_len[0]); n++) {
		offer(c, bad_len[n]);
		virtio_net_transmit(&c->n);
	}
	h->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
	offer(c, HEADER + 60);
	virtio_net_transmit(&c->n);
	*h = (struct virtio_net_hdr_v1){ .gso_type = VIRTIO_NET_HDR_GSO_TCPV4 };
	offer(c, HEADER + 60);
	virtio_net_transmit(&c->n);
	n += 2;
	assert_int_equal(n_sent, 0);
	assert_int_equal(c->n.dropped[NET_TX], n);
	assert_int_equal(c->ring[NET_TX].used->idx, n);
	*h = (struct virtio_net_hdr_v1){ 0 };
	offer(c, HEADER + NET_FRAME_MAX);
	virtio_net_transmit(&c->n);
	assert_int_equal(n_sent, 1);
	assert_int_equal(sent_len, NET_FRAME_MAX);
	card_free(c);
}

/* A ring that makes no sense: the card is silent until it is reset. */
static void test_transmit_broken(void **state)
{
	struct card *c = card_make();

	offer(c, HEADER + 60);
	ring_offer(&c->ring[NET_TX], 99);
	assert_false(virtio_net_transmit(&c->n));
	assert_true(c->n.broke);
	assert_int_equal(n_sent, 1);
	offer(c, HEADER + 60);
	assert_false(virtio_net_transmit(&c->n));
	assert_int_equal(n_sent, 1);
	assert_false(virtio_net_room(&c->n));
	assert_false(virtio_net_deliver(&c->n, sent, 60));
	card_free(c);
}

/* A driver may enable one queue only: the other is not looked at. */
static void test_not_enabled(void **state)
{
	struct card *c = card_make();

	c->n.v.queue[NET_RX] = (struct queue){ .memory = &c->ring[NET_RX].memory };
	assert_false(virtio_net_room(&c->n));
	assert_false(virtio_net_deliver(&c->n, sent, 60));
	offer(c, HEADER + 60);
	virtio_net_transmit(&c->n);
	assert_int_equal(n_sent, 1);
	c->n.v.queue[NET_TX] = (struct queue){ .memory = &c->ring[NET_TX].memory };
	assert_false(virtio_net_transmit(&c->n));
	card_free(c);
}

/* A guest that never stops sending lets the world have its turn, too. */
static void test_transmit_for_ever(void **state)
{
	struct card *c = card_make();

	endless = &c->ring[NET_TX];
	offer(c, HEADER + 60);
	assert_true(virtio_net_transmit(&c->n));
	assert_in_range(n_sent, 8, 1000);
	assert_int_equal(c->ring[NET_TX].used->idx, (uint16_t)n_sent);
	endless = NULL;
	assert_false(virtio_net_transmit(&c->n));
	card_free(c);
}

/* -- to the guest ------------------------------------------------------------------------- */

static void test_deliver(void **state)
{
	struct card *c = card_make();
	struct ring *r = &c->ring[NET_RX];
	uint8_t frame[60];

	memset(frame, 0xaa, sizeof(frame));
	assert_false(virtio_net_room(&c->n));
	assert_false(virtio_net_deliver(&c->n, frame, sizeof(frame)));
	assert_int_equal(c->n.dropped[NET_RX], 1);
	ring_desc(&r->desc[0], RING_BUFFERS, HEADER - 2, NEXT | WRITE, 1);
	ring_desc(&r->desc[1], RING_BUFFERS + 64, 30, NEXT | WRITE, 2);
	ring_desc(&r->desc[2], RING_BUFFERS + 256, 2000, WRITE, 0);
	memset(at(c, NET_RX, RING_BUFFERS), 0xee, 4096);
	ring_offer(r, 0);
	assert_true(virtio_net_room(&c->n));
	assert_true(virtio_net_deliver(&c->n, frame, sizeof(frame)));
	assert_int_equal(r->used->ring[0].len, HEADER + 60);
	assert_int_equal(at(c, NET_RX, RING_BUFFERS)[0], 0);
	/* num_buffers is 1: its two bytes are the first of the second buffer. */
	assert_int_equal(at(c, NET_RX, RING_BUFFERS + 64)[0], 1);
	assert_int_equal(at(c, NET_RX, RING_BUFFERS + 64)[2], 0xaa);
	assert_int_equal(at(c, NET_RX, RING_BUFFERS + 64)[29], 0xaa);
	assert_int_equal(at(c, NET_RX, RING_BUFFERS + 64)[30], 0xee);
	assert_int_equal(at(c, NET_RX, RING_BUFFERS + 256)[31], 0xaa);
	assert_int_equal(at(c, NET_RX, RING_BUFFERS + 256)[32], 0xee);
	card_free(c);
}

/* Buffers that are too small, or not for us to write, come back empty. */
static void test_deliver_small(void **state)
{
	struct card *c = card_make();
	struct ring *r = &c->ring[NET_RX];
	static const uint8_t frame[NET_FRAME_MAX + 1];

	ring_desc(&r->desc[0], RING_BUFFERS, HEADER + 59, WRITE, 0);
	ring_offer(r, 0);
	assert_true(virtio_net_deliver(&c->n, frame, 60));
	assert_int_equal(r->used->ring[0].len, 0);
	ring_desc(&r->desc[0], RING_BUFFERS, 2000, 0, 0);
	ring_offer(r, 0);
	assert_true(virtio_net_deliver(&c->n, frame, 60));
	assert_int_equal(r->used->ring[1].len, 0);
	ring_offer(r, 0);
	assert_false(virtio_net_deliver(&c->n, frame, NET_FRAME_MAX + 1));
	assert_int_equal(c->n.dropped[NET_RX], 3);
	card_free(c);
}

/* -- options ------------------------------------------------------------------------------ */

static void test_options(void **state)
{
	static const char *const bad[] = {
		"", "user,mac=", "user,mac=52:54:00:12:34:5", "user,mac=52:54:00:12:34:56:",
		"user,mac=01:54:00:12:34:56", "user,mac=5 :54:00:12:34:56", "user,mtu=67", "user,mtu=1501",
		"user,id=9", "user,net=10.0.0.0/8", "user,hostfwd=tcp:127.0.0.1:0-:22",
		"user,hostfwd=sctp::1-:22", "user,hostfwd=tcp:1.2.3:40001-:22", "user,hostfwd.a=tcp::1-:22",
		"user,hostfwd=tcp::40001-:22,hostfwd=tcp::40002-:22", "tap", "tap,fd=1", "tap,fd=9999999999",
		"tap,ifname=", "bridge",
	};
	struct net_options o;
	struct net *n;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct error err = ERROR_INIT;

		assert_true(net_open(bad[i], 0, &o, &n, &err) < 0);
		assert_null(n);
		assert_true(err.text[0]);
	}
	assert_int_equal(net_open("user,id=lan,mac=52:54:00:aB:cd:ef,mtu=1400", 3, &o, &n, NULL), 0);
	assert_string_equal(o.id, "lan");
	assert_memory_equal(o.mac, "\x52\x54\0\xab\xcd\xef", 6);
	assert_int_equal(o.mtu, 1400);
	net_close(n);
	assert_int_equal(net_open("type=user", 3, &o, &n, NULL), 0);
	assert_string_equal(o.id, "net3");
	assert_int_equal(o.mac[5], 0x59);
	assert_int_equal(o.mtu, 0);
	net_close(n);
}

/* -- carriers ----------------------------------------------------------------------------- */

static uint8_t got[NET_FRAME_MAX];
static size_t got_len;
static bool has_room = true;

static bool take(void *arg, const uint8_t *frame, size_t len)
{
	memcpy(got, frame, len);
	got_len = len;
	return true;
}

static bool room(void *arg)
{
	return has_room;
}

static struct net *carrier(const char *text)
{
	struct net_options o;
	struct error err = ERROR_INIT;
	struct net *n;

	if (net_open(text, 0, &o, &n, &err))
		fail_msg("%s", err.text);
	n->deliver = take;
	n->room = room;
	got_len = 0;
	return n;
}

/* Who has 10.0.2.2?  Here is 10.0.2.15. */
static const uint8_t ask[60] = {
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 6,
	0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 10, 0, 2, 15,
	0, 0, 0, 0, 0, 0, 10, 0, 2, 2,
};

static void test_user_arp(void **state)
{
	struct net *n = carrier("user");
	static uint8_t noise[NET_FRAME_MAX];
	struct pollfd v[NET_POLL_MAX];
	int timeout = -1;
	unsigned n_v;

	n->class->send(n, ask, sizeof(ask));
	n_v = n->class->poll(n, true, v, &timeout);
	n->class->work(n, v, n_v);
	assert_true(got_len >= 42);
	assert_memory_equal(got, "\x52\x54\0\x12\x34\x56", 6);
	assert_memory_equal(got + 12, "\x08\x06", 2);
	assert_memory_equal(got + 20, "\0\x02", 2);
	assert_memory_equal(got + 28, "\x0a\0\x02\x02", 4);
	/* What is longer than its network carries is lost. */
	memcpy(noise, ask, sizeof(ask));
	got_len = 0;
	n->class->send(n, noise, sizeof(noise));
	assert_int_equal(got_len, 0);
	net_close(n);
}

/* -- the sockets behind a guest's connections ---------------------------------------------- */

struct packet {
	uint8_t ethernet[14];
	struct iphdr ip;
	union {
		struct tcphdr tcp;
		struct udphdr udp;
	};
	char text[20];
} __attribute__((packed));

static uint32_t sum(const void *p, size_t len, uint32_t s)
{
	const uint8_t *b = p;

	for (size_t i = 0; i < len; i++)
		s += i % 2 ? b[i] : (uint32_t)b[i] << 8;
	return s;
}

static uint16_t folded(uint32_t s)
{
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return htons((uint16_t)~s);
}

/* From 10.0.2.15, port FROM, to the host; its transport header has LEN bytes with what follows. */
static struct packet packet_to_host(uint8_t protocol, uint16_t from, uint16_t to, uint16_t len)
{
	static const uint8_t ethernet[14] = { 0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 0 };
	struct packet p = { .ip = { .version = 4, .ihl = 5, .ttl = 64, .protocol = protocol } };

	memcpy(p.ethernet, ethernet, 14);
	p.ip.tot_len = htons((uint16_t)(sizeof(p.ip) + len));
	p.ip.saddr = inet_addr("10.0.2.15");
	p.ip.daddr = inet_addr("10.0.2.2");
	p.ip.check = folded(sum(&p.ip, sizeof(p.ip), 0));
	p.udp.source = htons(from);
	p.udp.dest = htons(to);
	return p;
}

static void send_udp(struct net *n, uint16_t from, uint16_t to, const char *text)
{
	struct packet p = packet_to_host(IPPROTO_UDP, from, to, sizeof(p.udp) + sizeof(p.text));
	uint8_t bytes[14 + 20 + 8 + sizeof(p.text)];

	p.udp.len = htons(sizeof(p.udp) + sizeof(p.text));
	memcpy(bytes, &p, 14 + 20 + 8);
	memset(bytes + 42, 0, sizeof(p.text));
	strcpy((char *)bytes + 42, text);
	n->class->send(n, bytes, sizeof(bytes));
}

static void send_tcp(struct net *n, uint16_t from, uint16_t to, uint32_t seq, uint32_t ack, bool syn)
{
	struct packet p = packet_to_host(IPPROTO_TCP, from, to, sizeof(p.tcp));

	p.tcp.seq = htonl(seq);
	p.tcp.ack_seq = htonl(ack);
	p.tcp.doff = 5;
	p.tcp.syn = syn;
	p.tcp.rst = p.tcp.ack = !syn;
	p.tcp.window = htons(1000);
	p.tcp.check = folded(sum(&p.tcp, sizeof(p.tcp), sum(&p.ip.saddr, 8, IPPROTO_TCP + sizeof(p.tcp))));
	n->class->send(n, (uint8_t *)&p, offsetof(struct packet, tcp) + sizeof(p.tcp));
}

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void turn(struct net *n)
{
	struct pollfd v[NET_POLL_MAX];
	int timeout = 0;
	unsigned n_v = n->class->poll(n, true, v, &timeout);

	assert_true(n_v < NET_POLL_MAX);
	poll(v, n_v, 0);
	n->class->work(n, v, n_v);
}

static unsigned descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* A socket of TYPE on 127.0.0.1; its port. */
static int listen_here(int type, uint16_t *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, type | SOCK_NONBLOCK, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&a, len), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
	if (type == SOCK_STREAM)
		assert_int_equal(listen(fd, 4096), 0);
	*port = ntohs(a.sin_port);
	return fd;
}

static void room_for_flows(void)
{
	struct rlimit r;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &r), 0);
	if (r.rlim_cur >= 4 * FLOWS_MAX)
		return;
	if (r.rlim_max < 4 * FLOWS_MAX)
		skip();
	r.rlim_cur = 4 * FLOWS_MAX;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &r), 0);
}

enum { PORT0 = 2000, TOO_MANY = FLOWS_MAX + 300 };

/* A guest with a socket for each of its ports: no more than there may be; those that it has go on. */
static void test_user_flows_udp(void **state)
{
	char text[20];
	uint16_t port;
	unsigned before;
	struct net *n, *other;
	int fd;

	room_for_flows();
	n = carrier("user");
	other = carrier("user");
	fd = listen_here(SOCK_DGRAM, &port);
	before = descriptors();
	for (unsigned i = 0; i < TOO_MANY; i++)
		send_udp(n, (uint16_t)(PORT0 + i), port, "first");
	assert_int_equal(descriptors(), before + FLOWS_MAX);
	/* All cards share them. */
	send_udp(other, PORT0, port, "other");
	assert_int_equal(descriptors(), before + FLOWS_MAX);
	while (recv(fd, text, sizeof(text), 0) > 0)
		assert_string_equal(text, "first");
	send_udp(n, PORT0 + TOO_MANY - 1, port, "too many");
	send_udp(n, PORT0 + FLOWS_MAX - 1, port, "again");
	for (double until = now_s() + 100; recv(fd, text, sizeof(text), 0) < 0 && now_s() < until;)
		usleep(1000);
	assert_string_equal(text, "again");
	turn(n);			/* all are polled */
	net_close(n);
	assert_int_equal(descriptors(), before);
	/* With that card its connections have gone. */
	send_udp(other, PORT0, port, "other");
	assert_int_equal(descriptors(), before + 1);
	net_close(other);
	close(fd);
}

/* Connections that end make room. */
static void test_user_flows_tcp(void **state)
{
	unsigned before, full;
	uint16_t port;
	struct net *n;
	int fd;

	room_for_flows();
	n = carrier("user");
	fd = listen_here(SOCK_STREAM, &port);
	n->class->send(n, ask, sizeof(ask));
	before = descriptors();
	for (unsigned i = 0; i < TOO_MANY; i++)
		send_tcp(n, (uint16_t)(PORT0 + i), port, 1000, 0, true);
	full = descriptors();
	assert_int_equal(full, before + FLOWS_MAX);
	/* The answer to the last of them, as the guest has it, says which reset is the right one. */
	for (double until = now_s() + 100; (got_len < sizeof(struct packet) - 20 || got[23] != IPPROTO_TCP) && now_s() < until;)
		turn(n);
	assert_int_equal(got[23], IPPROTO_TCP);
	send_tcp(n, ntohs(((struct packet *)got)->tcp.dest), port, 1001,
		 ntohl(((struct packet *)got)->tcp.seq) + 1, false);
	assert_int_equal(descriptors(), full - 1);
	send_tcp(n, 1000, port, 1000, 0, true);
	assert_int_equal(descriptors(), full);
	send_tcp(n, 1001, port, 1000, 0, true);
	assert_int_equal(descriptors(), full);
	net_close(n);
	close(fd);
}

/* A frame that libslirp would put together, or read otherwise than we, opens nothing when there are enough. */
static void test_user_flows_odd(void **state)
{
	struct flows f;
	struct packet p = packet_to_host(IPPROTO_UDP, 1, 2, 8);
	const size_t len = 14 + 20 + 8;
	const uint32_t host = inet_addr("10.0.2.2");
	uint8_t *b = (uint8_t *)&p;

	flows_init(&f);
	for (int i = 0; i < (int)FLOWS_MAX; i++) {
		assert_true(flows_begin(&f, b, len, host));
		flows_add(&f, i);
		p.udp.source++;
		flows_end(&f);
	}
	assert_true(flows_are_full());
	assert_false(flows_begin(&f, b, len, host));
	p.udp.source--;
	assert_true(flows_begin(&f, b, len, host));
	assert_false(flows_begin(&f, b, len - 8, host));	/* no ports */
	p.ip.frag_off = htons(0x2000);
	assert_false(flows_begin(&f, b, len, host));
	p.ip.frag_off = htons(100);
	assert_false(flows_begin(&f, b, len, host));
	p.ip.frag_off = htons(0x4000);				/* do not fragment */
	assert_true(flows_begin(&f, b, len, host));
	p.udp.source++;
	p.ip.ihl = 4;
	assert_false(flows_begin(&f, b, len, host));
	p.ip.ihl = 15;
	assert_false(flows_begin(&f, b, len, host));
	p.ip.ihl = 5;
	p.udp.dest = htons(67);					/* DHCP, to whom it may concern */
	assert_true(flows_begin(&f, b, len, host));
	p.ip.daddr = INADDR_NONE;
	assert_true(flows_begin(&f, b, len, host));
	p.ip.daddr = inet_addr("10.0.2.3");
	assert_false(flows_begin(&f, b, len, host));
	p.ip.protocol = IPPROTO_ICMP;
	assert_false(flows_begin(&f, b, len, host));
	p.ip.protocol = IPPROTO_TCP;
	assert_false(flows_begin(&f, b, len, host));		/* half a header */
	memset(&p.tcp, 0, sizeof(p.tcp));
	p.tcp.syn = 1;
	assert_false(flows_begin(&f, b, len + 12, host));
	p.tcp.psh = 1;
	assert_false(flows_begin(&f, b, len + 12, host));
	p.tcp.ack = 1;
	assert_true(flows_begin(&f, b, len + 12, host));	/* of one that the world began, perhaps */
	p.ethernet[12] = 0x86;
	assert_true(flows_begin(&f, b, 14, host));
	assert_true(flows_begin(&f, b, 13, host));
	flows_remove(&f, 7);
	flows_remove(&f, 7);
	assert_int_equal(f.n, FLOWS_MAX - 1);
	assert_false(flows_are_full());
	flows_clear(&f);
}

/* Frames that the kernel had from the device. */
static unsigned long received(const char *name)
{
	struct ifaddrs *all, *a;
	unsigned long n = 0;

	assert_int_equal(getifaddrs(&all), 0);
	for (a = all; a; a = a->ifa_next)
		if (!strcmp(a->ifa_name, name) && a->ifa_addr && a->ifa_addr->sa_family == AF_PACKET)
			n = ((struct rtnl_link_stats *)a->ifa_data)->rx_packets;
	freeifaddrs(all);
	return n;
}

static void set_up(const char *name)
{
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	struct ifreq r = { 0 };

	strcpy(r.ifr_name, name);
	assert_int_equal(ioctl(s, SIOCGIFFLAGS, &r), 0);
	r.ifr_flags |= IFF_UP;
	assert_int_equal(ioctl(s, SIOCSIFFLAGS, &r), 0);
	close(s);
}

static bool in_a_network_of_its_own(void)
{
	static enum { NOT_YET, IS, CANNOT } is;

	if (is == NOT_YET)
		is = unshare(CLONE_NEWUSER | CLONE_NEWNET) ? CANNOT : IS;
	return is == IS;
}

/* Who in the world connects to a forwarded port is counted, too; in a network where all ports are free. */
static void test_user_flows_accepted(void **state)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(2222) };
	static int fd[TOO_MANY];
	unsigned before;
	struct net *n;

	room_for_flows();
	if (!in_a_network_of_its_own())
		skip();
	set_up("lo");
	n = carrier("user,hostfwd=tcp:127.0.0.1:2222-:22");
	for (unsigned i = 0; i < TOO_MANY; i++) {
		fd[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		assert_true(fd[i] >= 0);
	}
	before = descriptors();
	for (unsigned i = 0; i < TOO_MANY; i++) {
		connect(fd[i], (struct sockaddr *)&a, sizeof(a));
		turn(n);
	}
	for (unsigned i = 0; i < 100; i++)
		turn(n);
	assert_in_range(descriptors(), before + FLOWS_MAX, before + FLOWS_MAX + FLOWS_SPARE);
	net_close(n);
	for (unsigned i = 0; i < TOO_MANY; i++)
		close(fd[i]);
}

/* In a network of the test's own: the kernel's frames come out, ours go in. */
static void test_tap(void **state)
{
	struct pollfd v[NET_POLL_MAX];
	int timeout = -1;
	struct net *n;
	uint8_t frame[60] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 1, 2, 3, 0x88, 0xb5 };

	if (!in_a_network_of_its_own() || access("/dev/net/tun", R_OK | W_OK))
		skip();
	n = carrier("tap,ifname=mtap0");
	set_up("mtap0");		/* IPv6 says hello by itself */
	has_room = false;
	assert_int_equal(n->class->poll(n, false, v, &timeout), 1);
	assert_int_equal(v[0].fd, -1);
	has_room = true;
	n->class->poll(n, true, v, &timeout);
	assert_int_equal(poll(v, 1, 100000), 1);
	n->class->work(n, v, 1);
	assert_true(got_len >= NET_FRAME_MIN);
	n->class->send(n, frame, sizeof(frame));
	assert_int_equal(received("mtap0"), 1);
	net_close(n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_transmit),
		cmocka_unit_test(test_transmit_bad),
		cmocka_unit_test(test_transmit_broken),
		cmocka_unit_test(test_not_enabled),
		cmocka_unit_test(test_transmit_for_ever),
		cmocka_unit_test(test_deliver),
		cmocka_unit_test(test_deliver_small),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_user_arp),
		cmocka_unit_test(test_user_flows_udp),
		cmocka_unit_test(test_user_flows_tcp),
		cmocka_unit_test(test_user_flows_odd),
		cmocka_unit_test(test_user_flows_accepted),
		cmocka_unit_test(test_tap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
