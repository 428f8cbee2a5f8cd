// SPDX-License-Identifier: BSD-3-Clause
/* net-flows: see net-flows.h.
 *
 * A socket is the flow of the frame that libslirp had when it opened it.  What is read of a
 * frame is what libslirp will read: it looks for its socket by the same addresses and ports.
 */
#include "vmm/net-flows.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/resource.h>

#include "common/log.h"

enum {
	ETHERNET = 14, IP_MIN = 20, IP_TYPE = 0x0800, MORE_AND_OFFSET = 0x3fff,
	UDP_BOOTP = 67,
	TCP_FLAGS = 13, TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16, TCP_URG = 32,
};

static unsigned n_flows;		/* of all cards; atomic */

static unsigned be16(const uint8_t *p)
{
	return (unsigned)p[0] << 8 | p[1];
}

static unsigned most = FLOWS_MAX;	/* atomic */

/* Half of what this process may open is for disks and the rest of the machine. */
void flows_init(struct flows *f)
{
	struct rlimit r;

	*f = (struct flows){ 0 };
	if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur / 2 < FLOWS_MAX)
		__atomic_store_n(&most, (unsigned)r.rlim_cur / 2, __ATOMIC_RELAXED);
}

bool flows_are_full(void)
{
	return __atomic_load_n(&n_flows, __ATOMIC_RELAXED) >= __atomic_load_n(&most, __ATOMIC_RELAXED);
}

/* -- a frame -------------------------------------------------------------------------- */

enum verdict { OPENS_NONE, OPENS_ONE, UNCLEAR };

/* A segment that could begin a connection: libslirp drops all others that it knows nothing of. */
static bool is_first(unsigned flags)
{
	return (flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_URG | TCP_ACK)) == TCP_SYN;
}

static enum verdict look_at_ports(struct flow *f, const uint8_t *p, size_t len, uint32_t host)
{
	if (len < (f->protocol == IPPROTO_TCP ? TCP_FLAGS + 1 : 4))
		return UNCLEAR;
	memcpy(&f->from_port, p, 2);
	if (f->protocol == IPPROTO_TCP) {
		memcpy(&f->to_port, p + 2, 2);
		return is_first(p[TCP_FLAGS]) ? OPENS_ONE : OPENS_NONE;
	}
	/* libslirp answers it itself. */
	if (be16(p + 2) == UDP_BOOTP && (f->to == host || f->to == INADDR_NONE))
		return OPENS_NONE;
	f->to = 0;			/* one socket for all that a port of the guest's sends */
	return OPENS_ONE;
}

static enum verdict look(struct flow *f, const uint8_t *frame, size_t len, uint32_t host)
{
	const uint8_t *ip = frame + ETHERNET;
	size_t head;

	*f = (struct flow){ 0 };
	if (len < ETHERNET || be16(frame + 12) != IP_TYPE)
		return OPENS_NONE;
	len -= ETHERNET;
	head = len ? (ip[0] & 15u) * 4 : 0;
	if (len < IP_MIN || head < IP_MIN || head > len)
		return UNCLEAR;
	if (be16(ip + 6) & MORE_AND_OFFSET)
		return UNCLEAR;		/* a fragment: the last one opens, the first has the ports */
	memcpy(&f->from, ip + 12, 4);
	memcpy(&f->to, ip + 16, 4);
	f->protocol = ip[9];
	if (f->protocol == IPPROTO_TCP || f->protocol == IPPROTO_UDP)
		return look_at_ports(f, ip + head, len - head, host);
	return f->protocol == IPPROTO_ICMP ? UNCLEAR : OPENS_NONE;
}

static bool is_known(const struct flows *f)
{
	const struct flow *x = &f->frame;

	for (unsigned i = 0; i < f->n; i++) {
		const struct flow *o = &f->flow[i];

		if (o->protocol == x->protocol && o->from == x->from && o->to == x->to &&
		    o->from_port == x->from_port && o->to_port == x->to_port)
			return true;
	}
	return false;
}

bool flows_begin(struct flows *f, const uint8_t *frame, size_t len, uint32_t host)
{
	enum verdict v = look(&f->frame, frame, len, host);

	if (v == UNCLEAR)
		f->frame.protocol = 0;
	if (v == OPENS_NONE || !flows_are_full() || (v == OPENS_ONE && is_known(f)))
		return true;
	if (!f->told)
		log_warning("the guest has as many connections as it may have: no more for now");
	f->told = true;
	return false;
}

void flows_end(struct flows *f)
{
	f->frame.protocol = 0;
}

/* -- sockets -------------------------------------------------------------------------- */

void flows_add(struct flows *f, int fd)
{
	if (fd < 0 || f->n == FLOWS_MAX + FLOWS_SPARE)
		return;
	f->flow[f->n] = f->frame;
	f->flow[f->n++].fd = fd;
	__atomic_fetch_add(&n_flows, 1, __ATOMIC_RELAXED);
}

void flows_remove(struct flows *f, int fd)
{
	for (unsigned i = 0; i < f->n; i++) {
		if (f->flow[i].fd != fd)
			continue;
		f->flow[i] = f->flow[--f->n];
		__atomic_fetch_sub(&n_flows, 1, __ATOMIC_RELAXED);
		if (f->n < FLOWS_MAX / 4)
			f->told = false;
		return;
	}
}

bool flows_have(const struct flows *f, int fd)
{
	for (unsigned i = 0; i < f->n; i++)
		if (f->flow[i].fd == fd)
			return true;
	return false;
}

void flows_clear(struct flows *f)
{
	__atomic_fetch_sub(&n_flows, f->n, __ATOMIC_RELAXED);
	f->n = 0;
}
