/* SPDX-License-Identifier: BSD-3-Clause */
/* virtio-net: a network card (virtio 1.2, section 5.1) before a carrier of frames (net.h).
 *
 * One queue each way; MAC, STATUS and MTU are offered, no offloads: each frame is whole.
 * A thread of its own serves both queues and the carrier, under the card's lock.  Who holds
 * machine->lock may take that lock; the thread never takes machine->lock.
 */
#ifndef MERINO_VMM_VIRTIO_NET_H
#define MERINO_VMM_VIRTIO_NET_H

#include "common/error.h"

struct machine;
struct virtio_net;

/* TEXT is --net's (net_open()); INDEX counts the cards. */
int virtio_net_add(struct machine *m, const char *text, unsigned index, struct virtio_net **out,
		   struct error *err);
void virtio_net_end(struct virtio_net *n);	/* NULL is fine */

#endif
