/* SPDX-License-Identifier: BSD-3-Clause */
/* net: what carries a network card's frames to and from the world.
 *
 * A carrier belongs to the thread of its card (virtio-net.h), which polls for it.  Frames
 * are whole Ethernet frames without a checksum sequence; those of the guest are hostile,
 * those of the world too.
 */
#ifndef MERINO_VMM_NET_H
#define MERINO_VMM_NET_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define NET_MTU_MIN 68u			/* RFC 791 */
#define NET_MTU_MAX 65521u		/* what Linux lets a tap have */
#define NET_HEADER 18u			/* Ethernet's, with a VLAN tag */
#define NET_FRAME_MIN 14u
#define NET_FRAME_MAX (NET_MTU_MAX + NET_HEADER)
#define NET_POLL_MAX 640u		/* descriptors of one carrier */

struct json_object;
struct net;

struct net_class {
	const char *name;		/* "user", "tap": QEMU's types */
	unsigned mtu_max;
	/* Takes what it knows of OPTS and refuses the rest. */
	int (*open)(struct json_object *opts, struct net **out, struct error *err);
	void (*close)(struct net *n);
	/* What to poll for, NET_POLL_MAX at most; may shorten TIMEOUT_MS (-1: none).  ROOM: the
	 * guest takes frames; without it a carrier that can wait leaves them where they are. */
	unsigned (*poll)(struct net *n, bool room, struct pollfd *v, int *timeout_ms);
	/* Afterwards: calls n->deliver() for each frame that came. */
	void (*work)(struct net *n, const struct pollfd *v, unsigned n_v);
	/* A frame of the guest's.  One that cannot be sent now is lost. */
	void (*send)(struct net *n, const uint8_t *frame, size_t len);
};

struct net {
	const struct net_class *class;
	/* False: there is no room; the frame is lost unless the carrier keeps it. */
	bool (*deliver)(void *arg, const uint8_t *frame, size_t len);
	bool (*room)(void *arg);	/* whether deliver() would take one */
	void *arg;
};

/* Of --net, what is not the carrier's: */
struct net_options {
	char id[64];
	uint8_t mac[6];
	uint16_t mtu;			/* 0: nothing is told to the guest */
};

/* TEXT is QEMU's -netdev and -device in one: "user,id=net0,mac=52:54:00:…".  INDEX counts
 * the cards, for names and addresses that are not given. */
int net_open(const char *text, unsigned index, struct net_options *o, struct net **out,
	     struct error *err);
void net_close(struct net *n);		/* NULL is fine */

/* What TEXT will need, before anything is opened; wrong texts are net_open()'s to refuse. */
struct net_look {
	bool user, tap;
	int fd;				/* the descriptor that it was given, or -1 */
};
struct net_look net_look(const char *text);

extern const struct net_class net_user, net_tap;

#endif
