// SPDX-License-Identifier: BSD-3-Clause
/* net-tap: frames go through a tap device of the host's.
 *
 *	--net tap,ifname=tap0		one that this user may open
 *	--net tap,fd=7			one that is open already
 *
 * Who sets the device up (address, bridge) is somebody else.  The card has no offloads, so
 * each frame is one that a wire could carry.  Frames that the guest has no room for stay in
 * the kernel's queue, which drops what is too much.
 */
#include "vmm/net.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/options.h"

#define BURST 64u			/* frames taken before others have their turn */

struct tap {
	struct net net;
	int fd;
	uint8_t frame[NET_FRAME_MAX];
};

static int open_named(const char *name, struct error *err)
{
	struct ifreq r = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	int fd, rc;

	if (strlen(name) >= sizeof(r.ifr_name) || !*name)
		return error_set(err, -EINVAL, "'%s' is no name of a network device", name);
	strcpy(r.ifr_name, name);
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return error_errno(err, -errno, "could not open /dev/net/tun");
	if (ioctl(fd, TUNSETIFF, &r) < 0) {
		rc = error_errno(err, -errno, "could not configure /dev/net/tun (%s)", name);
		if (rc == -EPERM)
			error_hint(err, "As root: ip tuntap add dev %s mode tap user NAME", name);
		close(fd);
		return rc;
	}
	return fd;
}

/* One that we were started with.  It is ours from now on. */
static int take_fd(uint64_t number, struct error *err)
{
	struct ifreq r = { 0 };
	int fd = number <= INT32_MAX ? (int)number : -1;

	if (fd < 3 || ioctl(fd, TUNGETIFF, &r) < 0)
		return error_set(err, -EBADF, "fd %llu is no tap device", (unsigned long long)number);
	if (!(r.ifr_flags & IFF_TAP) || !(r.ifr_flags & IFF_NO_PI) || r.ifr_flags & IFF_VNET_HDR)
		return error_set(err, -EINVAL, "fd %d: a tap device with IFF_TAP and IFF_NO_PI, without "
				 "IFF_VNET_HDR, is needed", fd);
	if (fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return error_errno(err, -errno, "fd %d", fd);
	return fd;
}

static int tap_fd(struct json_object *opts, struct error *err)
{
	char *name = NULL;
	uint64_t number = UINT64_MAX;
	int rc = opts_str(opts, "ifname", &name, err);

	if (!rc)
		rc = opts_u64(opts, "fd", &number, err);
	if (!rc)
		rc = opts_end(opts, err);
	if (!rc && !name == (number == UINT64_MAX))
		rc = error_set(err, -EINVAL, "tap needs either 'ifname' or 'fd'");
	if (!rc)
		rc = name ? open_named(name, err) : take_fd(number, err);
	free(name);
	return rc;
}

static int tap_open(struct json_object *opts, struct net **out, struct error *err)
{
	int fd = tap_fd(opts, err);
	struct tap *t;

	if (fd < 0)
		return fd;
	t = calloc(1, sizeof(*t));
	if (!t) {
		close(fd);
		return error_errno(err, -ENOMEM, "tap");
	}
	t->net.class = &net_tap;
	t->fd = fd;
	*out = &t->net;
	return 0;
}

static void tap_close(struct net *n)
{
	struct tap *t = (struct tap *)n;

	if (t->fd >= 0)
		close(t->fd);
	free(t);
}

static unsigned tap_poll(struct net *n, bool room, struct pollfd *v, int *timeout_ms)
{
	struct tap *t = (struct tap *)n;

	/* Left out without room: poll() tells of errors even where nothing is asked. */
	v[0] = (struct pollfd){ .fd = room ? t->fd : -1, .events = POLLIN };
	return 1;
}

static void tap_work(struct net *n, const struct pollfd *v, unsigned n_v)
{
	struct tap *t = (struct tap *)n;

	if (v[0].revents & (POLLERR | POLLNVAL)) {	/* the device was removed */
		close(t->fd);
		t->fd = -1;
		return;
	}
	for (unsigned i = 0; v[0].revents && i < BURST && n->room(n->arg); i++) {
		ssize_t len = read(t->fd, t->frame, sizeof(t->frame));

		if (len <= 0)
			return;
		n->deliver(n->arg, t->frame, (size_t)len);
	}
}

static void tap_send(struct net *n, const uint8_t *frame, size_t len)
{
	struct tap *t = (struct tap *)n;
	ssize_t sent;

	do {
		sent = write(t->fd, frame, len);
	} while (sent < 0 && errno == EINTR);
}

const struct net_class net_tap = {
	.name = "tap", .mtu_max = NET_MTU_MAX, .open = tap_open, .close = tap_close, .poll = tap_poll,
	.work = tap_work, .send = tap_send,
};
