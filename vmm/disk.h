/* SPDX-License-Identifier: BSD-3-Clause */
/* disk: an NBD export as a disk, one connection for each queue.
 *
 * Requests go out by libnbd's asynchronous calls, straight from and into guest memory
 * where it is contiguous, through a bounce buffer where it is not.  A connection that
 * breaks is made anew, to the next of the disk's addresses, and what was not answered is
 * sent again: the guest sees a pause.  How long, and what then, are options.
 *
 * What is sent again was perhaps done before: a request is the same when it is done twice,
 * and the guest, which waits for it, sends nothing that depends on it meanwhile.  It must not be
 * done a second time later, after newer ones: see doc/vmm.md, "Disks that come back".
 *
 * A channel belongs to one thread; done() may submit.
 */
#ifndef MERINO_VMM_DISK_H
#define MERINO_VMM_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"

struct disk;
struct disk_channel;

#define DISK_CHANNELS_MAX 16u
#define DISK_URIS_MAX 8u

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
	uint64_t made;			/* bytes that became commands */
	unsigned commands;		/* not answered yet */
	unsigned seg;			/* where the next command's memory begins */
	size_t seg_off;
	int rc;
};

struct disk_config {
	const char *id;			/* for messages */
	const char *const *uris;	/* one disk, several addresses; NULL-terminated */
	unsigned channels;		/* DISK_CHANNELS_MAX at most */
	unsigned reconnect_delay;	/* seconds that requests wait for a server; then they fail.
					 * 0: for ever */
	bool read_only;
};

struct disk_facts {
	uint64_t size;			/* bytes */
	uint32_t block_min, block_preferred, block_max;
	bool read_only, can_flush, can_fua, can_discard, can_zero, multi_conn;
};

/* Connects, to the first address that answers; every channel that will be used. */
int disk_open(const struct disk_config *c, struct disk **out, struct error *err);
void disk_close(struct disk *d);
void disk_facts(struct disk *d, struct disk_facts *f);
/* How many channels may be used: 1 where the server does not offer multi-conn (a flush on
 * one connection would not cover another's writes), else as many as were asked for. */
unsigned disk_channels(const struct disk *d);
/* Called from any of its threads when a reconnection found another size. */
void disk_on_resize(struct disk *d, void (*fn)(void *arg, uint64_t size), void *arg);
/* Somebody else learned the size (the server's control socket).  Any thread. */
void disk_set_size(struct disk *d, uint64_t size);

/* Looks at the size, by a connection of its own: a second at most.  Blocks.  Whether it was seen. */
bool disk_look(struct disk *d);

struct disk_channel *disk_channel(struct disk *d, unsigned i);
/* Sent by the next disk_work(). */
void disk_submit(struct disk_channel *c, struct disk_request *r);
/* What the thread has to poll for, and what it calls then.  Timeout in ms, -1: none. */
struct pollfd;
int disk_poll(struct disk_channel *c, struct pollfd *v, int *timeout_ms);	/* how many of V (2) */
/* V as poll(2) left it; or N is 0: only to send what was submitted. */
void disk_work(struct disk_channel *c, const struct pollfd *v, int n);
unsigned disk_in_flight(const struct disk_channel *c);
bool disk_is_connected(const struct disk_channel *c);
/* Bytes of the server's wait to be read at what disk_poll() gave last: a look that is quicker than
 * poll(2), for who waits awake; where there is nothing but answers to wait for. */
bool disk_may_look(struct disk_channel *c);
bool disk_has_answers(struct disk_channel *c);
/* Nobody called disk_work() for a while, on purpose: what waited has its whole time again. */
void disk_go_on(struct disk_channel *c);
/* All requests of C fail with -ECANCELED, and its connection is made anew: when it returns,
 * nothing reads or writes guest memory any more.  So are those of the other channels, before
 * they send anything: merinod begins nothing on a new connection before it is done with what
 * came on those that were given up.  On its thread. */
void disk_abandon(struct disk_channel *c);
/* All requests fail with -ECANCELED, those to come as well: quit within seconds whatever the
 * server does.  Any thread; each channel's thread does its part in disk_work(). */
void disk_cancel(struct disk *d);

#endif
