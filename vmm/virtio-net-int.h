/* SPDX-License-Identifier: BSD-3-Clause */
/* virtio-net-int: the inside of a card, for its two files and for tests. */
#ifndef MERINO_VMM_VIRTIO_NET_INT_H
#define MERINO_VMM_VIRTIO_NET_INT_H

#include <pthread.h>

#include "vmm/net.h"
#include "vmm/virtio-net.h"
#include "vmm/virtio.h"

enum { NET_RX, NET_TX, NET_QUEUES };

struct virtio_net {
	struct virtio v;
	struct net *net;
	pthread_t thread;
	bool added, started;		/* it is on the bus; there is a thread */
	int wake;			/* eventfd: look at what changed */

	pthread_mutex_t lock;		/* all below, the queues' contents and the carrier */
	bool active, resting, ending;
	bool used[NET_QUEUES];		/* something was pushed since the driver was told */
	bool broke;			/* a queue */
	struct iovec iov[QUEUE_SEGMENTS_MAX];
	uint8_t frame[NET_FRAME_MAX];	/* the guest's, on its way out */
	uint64_t dropped[NET_QUEUES];	/* frames */
};

/* With the lock held: */
bool virtio_net_deliver(void *n, const uint8_t *frame, size_t len);	/* to the guest */
bool virtio_net_room(void *n);		/* the guest has a buffer; else its doorbell rings for one */
bool virtio_net_transmit(struct virtio_net *n);	/* true: there is more */

#endif
