/* SPDX-License-Identifier: BSD-3-Clause */
/* disk-int: what the disk's files share.
 *
 *	disk.c		the disk: opening, facts, size, cancelling
 *	disk-dial.c	a connection is begun, its server's name looked up
 *	disk-conn.c	one connection: making it, losing it, making it anew
 *	disk-cmd.c	requests become commands, and commands answers
 */
#ifndef MERINO_VMM_DISK_INT_H
#define MERINO_VMM_DISK_INT_H

#include <libnbd.h>
#include <pthread.h>

#include "vmm/disk-dial.h"
#include "vmm/disk.h"

enum {
	COMMANDS_MAX = 256,		/* of one channel, sent or waiting for the server */
	BOUNCES_MAX = 8,		/* of one channel */
	BOUNCE_BYTES = 256 << 10,
	PIECE_MAX = 4 << 20,		/* data of one command */
	RANGE_MAX = 1 << 30,		/* of one discard or zero */
	IN_PLACE_MIN = 64 << 10,	/* a shorter run goes through a bounce buffer with others */
	LOOK_MS = 1000,			/* the same, only to see the size */
	CONNECT_MS = 5000,		/* for a connection and its handshake */
	LOOKUP_MS = 15000,		/* for the resolver: it asks a second name server after 5 s */
	OPEN_NAP_MS = 100,		/* between looks for signals */
	TELL_MS = 5000,			/* between two messages of a connection that breaks again */
	RETRY_MS_MIN = 5, RETRY_MS_MAX = 200,
};

struct command {
	struct command *prev, *next;	/* in the order in which they were made */
	struct disk_channel *channel;
	struct disk_request *request;
	uint64_t off;
	uint32_t len;
	void *data;			/* guest memory, or BOUNCE */
	void *bounce;			/* NULL: in place */
	unsigned seg;			/* where its part of the request's memory begins */
	size_t seg_off;
	bool sent;			/* on the present connection */
	bool flush_after;		/* the flush that stands for FUA */
	int error;			/* errno that it was answered with */
	struct command *next_answered;
};

enum channel_state { CHANNEL_DOWN, CHANNEL_CONNECTING, CHANNEL_READY };

struct disk_channel {
	struct disk *disk;
	unsigned index;
	int wake;			/* eventfd: look at the disk's flags */
	struct nbd_handle *h;		/* NULL: down, or its name is being looked up */
	struct dial *dial;		/* NULL, or CONNECTING without a handle */
	char why[DIAL_WHY];		/* the last connection ended */
	enum channel_state state;
	bool tls;
	bool quiet;			/* opening: the caller says what went wrong */
	bool told, told_failing, told_unfit;	/* once each, until it is connected again */
	int64_t told_at;		/* ms */
	const char *drop_why;		/* set: the connection is of no use any more */
	unsigned uri;			/* which one is tried, or used */
	int64_t deadline;		/* ms: connecting ends, or the next attempt begins */
	int64_t lost_at;		/* ms, 0: answers come */
	unsigned abandoned;		/* disk->abandoned when it began */
	unsigned retry_ms;
	size_t taken_bytes;		/* of what came from the socket, by replies that ended */
	/* Commands in order; UNSENT is the first that the present connection has not got. */
	struct command *first, *last, *unsent;
	struct command *answered, **answered_end;
	struct disk_request *waiting, **waiting_end;	/* not all made into commands */
	unsigned in_flight;		/* requests */
	struct command *free;
	void *bounce[BOUNCES_MAX];	/* free ones */
	unsigned n_bounce, n_bounce_made;
	struct command command[COMMANDS_MAX];
};

struct disk {
	char id[64];
	char *uri[DISK_URIS_MAX];
	unsigned n_uris, n_channels;
	unsigned reconnect_delay;
	bool read_only;
	bool cancelled;			/* atomic */
	/* Atomic.  The address in use: all channels follow, because a flush covers the writes of
	 * other connections to the same server only. */
	unsigned uri_now;
	/* Atomic.  How often requests were given up that the server may still do: a connection that
	 * is older than that may not be used, see disk_abandon(). */
	unsigned abandoned;
	pthread_mutex_t lock;		/* facts.size, resized */
	struct disk_facts facts;
	void (*resized)(void *arg, uint64_t size);
	void *resized_arg;
	struct disk_channel *channel[DISK_CHANNELS_MAX];
};

int64_t disk_now(void);			/* ms, monotonic */
void disk_wake(struct disk *d);
int disk_learn(struct disk *d, struct nbd_handle *h, bool first, struct error *err);

/* disk-conn.c */
void conn_start(struct disk_channel *c);	/* state CONNECTING, or DOWN until DEADLINE */
void conn_drop(struct disk_channel *c, const char *why);	/* DOWN; commands are unsent */
void conn_check(struct disk_channel *c);	/* libnbd may have changed its mind */
void conn_next_address(struct disk_channel *c);
int conn_open(struct disk_channel *c, struct error *err);	/* waits: ready, or no address left */
void conn_close(struct disk_channel *c);
void conn_notify(struct disk_channel *c, short revents);
int conn_fd(const struct disk_channel *c);	/* to poll for; -1: none */
short conn_events(const struct disk_channel *c);

/* disk-cmd.c */
void cmd_init(struct disk_channel *c);
void cmd_free(struct disk_channel *c);
void cmd_send(struct disk_channel *c);	/* makes commands, sends what is unsent */
void cmd_answers(struct disk_channel *c);	/* after libnbd worked */
bool cmd_several_sent(const struct disk_channel *c);	/* more than one answer may come */
void cmd_unsend(struct disk_channel *c);	/* the connection is gone */
void cmd_fail(struct disk_channel *c, int rc);	/* all; nothing is on a connection */

#endif
