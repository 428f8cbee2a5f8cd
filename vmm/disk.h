/* SPDX-License-Identifier: BSD-3-Clause */
/* disk: an NBD export as a disk, one connection for each queue.
 *
 * Requests go out by libnbd's asynchronous calls, straight from and into guest memory
 * where it is contiguous, through a bounce buffer where it is not.  A connection that
 * breaks is made anew, to the next of the disk's addresses, and what was not answered is
 * sent again: the guest sees a pause.  How long, and what then, are options.
 *
 * A channel belongs to one thread.
 */
#ifndef MERINO_VMM_DISK_H
#define MERINO_VMM_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"

struct disk;
struct disk_channel;

enum disk_op { DISK_READ, DISK_WRITE, DISK_FLUSH, DISK_DISCARD, DISK_ZERO };

struct disk_request {
	struct disk_request *next;	/* the channel's */
	enum disk_op op;
	bool fua, may_unmap;
	uint64_t off, len;		/* bytes */
	struct iovec *iov;		/* guest memory; stays until done() */
	unsigned n_iov;
	/* On the channel's thread; RC is 0 or -errno of the server. */
	void (*done)(struct disk_request *r, int rc);
	/* The channel's own: */
	void *bounce;
	uint64_t cookie;
};

struct disk_config {
	const char *const *uris;	/* one disk, several addresses; NULL-terminated */
	unsigned channels;
	unsigned reconnect_delay;	/* seconds that requests wait for a server; then they fail.
					 * 0: for ever */
	bool read_only;
};

struct disk_facts {
	uint64_t size;			/* bytes */
	uint32_t block_min, block_preferred, block_max;
	bool read_only, can_flush, can_fua, can_discard, can_zero, multi_conn;
};

int disk_open(const struct disk_config *c, struct disk **out, struct error *err);
void disk_close(struct disk *d);
void disk_facts(struct disk *d, struct disk_facts *f);
/* Called from any of its threads when a reconnection found another size. */
void disk_on_resize(struct disk *d, void (*fn)(void *arg, uint64_t size), void *arg);

struct disk_channel *disk_channel(struct disk *d, unsigned i);
void disk_submit(struct disk_channel *c, struct disk_request *r);
/* What the thread has to poll for, and what it calls then.  Timeout in ms, -1: none. */
struct pollfd;
int disk_poll(struct disk_channel *c, struct pollfd *v, int *timeout_ms);	/* how many of V (2) */
void disk_work(struct disk_channel *c, const struct pollfd *v, int n);
unsigned disk_in_flight(const struct disk_channel *c);
/* All requests fail with -ECANCELED now: quit within seconds whatever the server does. */
void disk_cancel(struct disk *d);

#endif
