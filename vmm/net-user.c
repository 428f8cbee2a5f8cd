// SPDX-License-Identifier: BSD-3-Clause
/* net-user: a network of the guest's own behind this process, by libslirp.
 *
 *	--net user[,restrict=on][,hostfwd=tcp:[ADDRESS]:PORT-[ADDRESS]:PORT]
 *
 * The guest gets 10.0.2.15 by DHCP; the host is 10.0.2.2 and answers names at 10.0.2.3, as
 * under QEMU.  IPv4 only.  What the guest says to the world comes from sockets of this
 * process.  libslirp reads the guest's frames in this process: it is trusted not to be
 * overrun by them, and has nothing open but the sockets that the guest asked for, which are
 * counted (net-flows.h).
 */
#include "vmm/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <slirp/libslirp.h>

#include "common/log.h"
#include "common/loop.h"
#include "common/options.h"
#include "vmm/net-flows.h"

#define TIMERS_MAX 4u			/* libslirp has one */
#define FORWARDS_MAX 64u
#define MTU 1500u

_Static_assert(FORWARDS_MAX <= FLOWS_SPARE, "each accepts one in a turn");
_Static_assert(FLOWS_MAX + FLOWS_SPARE + FORWARDS_MAX <= NET_POLL_MAX, "all are polled");

struct timer {
	SlirpTimerCb fn;		/* NULL: free */
	void *arg;
	int64_t at;			/* ms; INT64_MAX: not set */
};

struct user {
	struct net net;
	Slirp *slirp;
	struct timer timer[TIMERS_MAX];
	struct pollfd *v;		/* while libslirp fills or reads it */
	unsigned n_v;
	struct in_addr host;		/* libslirp's own address */
	struct flows flows;
};

/* -- what libslirp asks of us ---------------------------------------------------------- */

static ssize_t send_packet(const void *buf, size_t len, void *opaque)
{
	struct user *u = opaque;

	/* One that is lost is sent again by the protocols above. */
	u->net.deliver(u->net.arg, buf, len);
	return (ssize_t)len;
}

static void guest_error(const char *msg, void *opaque)
{
	log_debug("net: %s", msg);
}

static int64_t clock_get_ns(void *opaque)
{
	return (int64_t)loop_now();
}

static int64_t now_ms(void)
{
	return (int64_t)(loop_now() / 1000000);
}

static void *timer_new(SlirpTimerCb fn, void *arg, void *opaque)
{
	struct user *u = opaque;

	for (unsigned i = 0; i < TIMERS_MAX; i++)
		if (!u->timer[i].fn) {
			u->timer[i] = (struct timer){ fn, arg, INT64_MAX };
			return &u->timer[i];
		}
	return NULL;
}

static void timer_free(void *timer, void *opaque)
{
	if (timer)
		((struct timer *)timer)->fn = NULL;
}

static void timer_mod(void *timer, int64_t at, void *opaque)
{
	if (timer)
		((struct timer *)timer)->at = at;
}

static void opened(int fd, void *opaque)
{
	flows_add(&((struct user *)opaque)->flows, fd);
}

static void closes(int fd, void *opaque)
{
	flows_remove(&((struct user *)opaque)->flows, fd);
}

/* Only called from our own calls, before the next poll(). */
static void nothing(void *opaque)
{
}

static const SlirpCb callbacks = {
	.send_packet = send_packet, .guest_error = guest_error, .clock_get_ns = clock_get_ns,
	.timer_new = timer_new, .timer_free = timer_free, .timer_mod = timer_mod,
	.register_poll_fd = opened, .unregister_poll_fd = closes, .notify = nothing,
};

/* -- options ---------------------------------------------------------------------------- */

struct forward {
	bool udp;
	struct in_addr host, guest;
	int host_port, guest_port;
};

/* "[ADDRESS]:PORT", all of TEXT. */
static bool parse_end(char *text, struct in_addr *addr, int *port)
{
	char *colon = strrchr(text, ':'), *end;
	unsigned long n;

	if (!colon || colon[1] < '0' || colon[1] > '9')
		return false;
	*colon = 0;
	n = strtoul(colon + 1, &end, 10);
	if (*end || n < 1 || n > 65535 || (*text && inet_pton(AF_INET, text, addr) != 1))
		return false;
	*port = (int)n;
	return true;
}

static bool parse_forward(char *text, struct forward *f)
{
	char *dash = strchr(text, '-');

	*f = (struct forward){ .udp = !strncmp(text, "udp:", 4) };
	inet_pton(AF_INET, "10.0.2.15", &f->guest);
	if ((!f->udp && strncmp(text, "tcp:", 4)) || !dash)
		return false;
	*dash = 0;
	return parse_end(text + 4, &f->host, &f->host_port) &&
	       parse_end(dash + 1, &f->guest, &f->guest_port);
}

static int add_forward(struct user *u, const char *text, struct error *err)
{
	struct forward f;
	char copy[128];

	snprintf(copy, sizeof(copy), "%s", text);
	if (strlen(text) >= sizeof(copy) || !parse_forward(copy, &f))
		return error_set(err, -EINVAL, "Invalid host forwarding rule '%s'; like "
				 "tcp:127.0.0.1:2222-:22", text);
	if (slirp_add_hostfwd(u->slirp, f.udp, f.host, f.host_port, f.guest, f.guest_port) < 0)
		return error_set(err, -EADDRINUSE, "Could not set up host forwarding rule '%s'", text);
	return 0;
}

/* hostfwd=RULE, or hostfwd.0=RULE,hostfwd.1=RULE … */
static int add_forwards(struct user *u, struct json_object *rules, struct error *err)
{
	size_t n;
	int rc = 0;

	if (json_object_is_type(rules, json_type_string))
		return add_forward(u, json_object_get_string(rules), err);
	if (!json_object_is_type(rules, json_type_array))
		return error_set(err, -EINVAL, "Parameter 'hostfwd' expects rules");
	n = json_object_array_length(rules);
	if (n > FORWARDS_MAX)
		return error_set(err, -E2BIG, "at most %u host forwarding rules", FORWARDS_MAX);
	for (size_t i = 0; i < n && !rc; i++) {
		struct json_object *r = json_object_array_get_idx(rules, i);

		rc = json_object_is_type(r, json_type_string) ?
			add_forward(u, json_object_get_string(r), err) :
			error_set(err, -EINVAL, "Parameter 'hostfwd' expects rules");
	}
	return rc;
}

static int make_slirp(struct user *u, bool restricted, struct error *err)
{
	SlirpConfig c = { .version = 1, .restricted = restricted, .in_enabled = true };

	inet_pton(AF_INET, "10.0.2.0", &c.vnetwork);
	inet_pton(AF_INET, "255.255.255.0", &c.vnetmask);
	inet_pton(AF_INET, "10.0.2.2", &c.vhost);
	u->host = c.vhost;
	inet_pton(AF_INET, "10.0.2.3", &c.vnameserver);
	inet_pton(AF_INET, "10.0.2.15", &c.vdhcp_start);
	u->slirp = slirp_new(&c, &callbacks, u);
	return u->slirp ? 0 : error_set(err, -ENOMEM, "libslirp does not start");
}

static int user_start(struct user *u, struct json_object *opts, struct error *err)
{
	struct json_object *rules = NULL;
	bool restricted = false;
	int rc = opts_bool(opts, "restrict", &restricted, err);

	if (!rc)
		rc = opts_value(opts, "hostfwd", &rules, err);
	if (!rc)
		rc = opts_end(opts, err);
	if (!rc)
		rc = make_slirp(u, restricted, err);
	if (!rc && rules)
		rc = add_forwards(u, rules, err);
	json_object_put(rules);
	return rc;
}

static void user_close(struct net *n)
{
	struct user *u = (struct user *)n;

	if (u->slirp)
		slirp_cleanup(u->slirp);
	flows_clear(&u->flows);
	free(u);
}

static int user_open(struct json_object *opts, struct net **out, struct error *err)
{
	struct user *u = calloc(1, sizeof(*u));
	int rc;

	if (!u)
		return error_errno(err, -ENOMEM, "user");
	u->net.class = &net_user;
	flows_init(&u->flows);
	rc = user_start(u, opts, err);
	if (rc)
		user_close(&u->net);
	else
		*out = &u->net;
	return rc;
}

/* -- work -------------------------------------------------------------------------------- */

/* The world's connections to the guest count too: when there are enough, no more are accepted. */
static bool may_poll(struct user *u, int fd)
{
	int accepts = 0;
	socklen_t len = sizeof(accepts);

	if (u->n_v == NET_POLL_MAX)
		return false;
	return !flows_are_full() || flows_have(&u->flows, fd) ||
	       getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &len) < 0 || !accepts;
}

static int add_poll(int fd, int events, void *opaque)
{
	struct user *u = opaque;
	short e = 0;

	if (!may_poll(u, fd))		/* its turn comes when others have ended */
		return -1;
	if (events & SLIRP_POLL_IN)
		e |= POLLIN;
	if (events & SLIRP_POLL_OUT)
		e |= POLLOUT;
	if (events & SLIRP_POLL_PRI)
		e |= POLLPRI;
	u->v[u->n_v] = (struct pollfd){ .fd = fd, .events = e };
	return (int)u->n_v++;
}

static int get_revents(int i, void *opaque)
{
	static const struct { short ours; int theirs; } bits[] = {
		{ POLLIN, SLIRP_POLL_IN }, { POLLOUT, SLIRP_POLL_OUT }, { POLLPRI, SLIRP_POLL_PRI },
		{ POLLERR, SLIRP_POLL_ERR }, { POLLHUP, SLIRP_POLL_HUP },
	};
	struct user *u = opaque;
	int events = 0;

	if (i < 0 || (unsigned)i >= u->n_v)
		return 0;
	for (unsigned b = 0; b < sizeof(bits) / sizeof(bits[0]); b++)
		if (u->v[i].revents & bits[b].ours)
			events |= bits[b].theirs;
	return events;
}

static unsigned user_poll(struct net *n, bool room, struct pollfd *v, int *timeout_ms)
{
	struct user *u = (struct user *)n;
	uint32_t ms = *timeout_ms < 0 ? UINT32_MAX : (uint32_t)*timeout_ms;
	int64_t now = now_ms();

	u->v = v;
	u->n_v = 0;
	slirp_pollfds_fill(u->slirp, &ms, add_poll, u);
	for (unsigned i = 0; i < TIMERS_MAX; i++) {
		const struct timer *t = &u->timer[i];

		if (t->fn && t->at != INT64_MAX && t->at - now < ms)
			ms = t->at <= now ? 0 : (uint32_t)(t->at - now);
	}
	*timeout_ms = ms > INT32_MAX ? -1 : (int)ms;
	return u->n_v;
}

static void user_work(struct net *n, const struct pollfd *v, unsigned n_v)
{
	struct user *u = (struct user *)n;
	int64_t now = now_ms();

	u->v = (struct pollfd *)v;
	u->n_v = n_v;
	slirp_pollfds_poll(u->slirp, 0, get_revents, u);
	for (unsigned i = 0; i < TIMERS_MAX; i++) {
		struct timer *t = &u->timer[i];

		if (t->fn && t->at <= now) {
			t->at = INT64_MAX;
			t->fn(t->arg);
		}
	}
}

static void user_send(struct net *n, const uint8_t *frame, size_t len)
{
	struct user *u = (struct user *)n;

	if (len > MTU + NET_HEADER || !flows_begin(&u->flows, frame, len, u->host.s_addr))
		return;
	slirp_input(u->slirp, frame, (int)len);
	flows_end(&u->flows);
}

const struct net_class net_user = {
	.name = "user", .mtu_max = MTU, .open = user_open, .close = user_close, .poll = user_poll,
	.work = user_work, .send = user_send,
};
