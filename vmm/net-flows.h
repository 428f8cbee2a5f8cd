/* SPDX-License-Identifier: BSD-3-Clause */
/* net-flows: how many sockets a guest makes libslirp open, and no more of them.
 *
 * A TCP connection, a UDP port and a ping of the guest's are a descriptor of this process each,
 * a TCP connection up to 256 KiB of buffers besides; a UDP port stays for four minutes.
 * libslirp has no bound of its own.  When there are FLOWS_MAX, a frame that would open one more
 * is lost, as on a full network; those that there are go on.
 */
#ifndef MERINO_VMM_NET_FLOWS_H
#define MERINO_VMM_NET_FLOWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FLOWS_MAX 512u			/* of all cards together: a busy guest has dozens */
#define FLOWS_SPARE 64u			/* that a turn of libslirp's accepts may bring beyond them */

struct flow {
	int fd;
	uint32_t from, to;		/* addresses and ports as they come; of UDP, TO is 0 */
	uint16_t from_port, to_port;
	uint8_t protocol;		/* 0: whose it is is not known */
};

struct flows {
	struct flow flow[FLOWS_MAX + FLOWS_SPARE];
	unsigned n;
	struct flow frame;		/* what the frame on its way would be */
	bool told;
};

void flows_init(struct flows *f);	/* on the main thread */
/* Of all cards there are as many as there may be. */
bool flows_are_full(void);
/* A frame of the guest's goes to libslirp, whose address is HOST; false: it is not to. */
bool flows_begin(struct flows *f, const uint8_t *frame, size_t len, uint32_t host);
void flows_end(struct flows *f);	/* libslirp had the frame */
/* libslirp has opened FD, is about to close it. */
void flows_add(struct flows *f, int fd);
void flows_remove(struct flows *f, int fd);
bool flows_have(const struct flows *f, int fd);
void flows_clear(struct flows *f);	/* libslirp has ended */

#endif
