/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoints: those that were begun and have not ended, with their exports and leases.
 *
 *	checkpoint_begin ─▶ pending ──▶ checkpoint_end(success)   it counts
 *	                       │ ▲ └──▶ checkpoint_end(failure), the lease runs out, quit:
 *	                       └─┘      as if it had never begun
 *	                 clients' requests, checkpoint_renew
 *
 * Main loop, in coroutines, under the QMP lock.
 */
#ifndef MERINO_CHECKPOINTS_H
#define MERINO_CHECKPOINTS_H

#include <stdbool.h>
#include <stdint.h>

#include "backup/checkpoint.h"
#include "common/loop.h"

struct export;
struct json_object;

#define CHECKPOINTS_PENDING_MAX 64
#define LEASE_DEFAULT 300		/* seconds */
#define LEASE_MAX 604800

/* A disk of a pending checkpoint. */
struct checkpoint_part {
	struct checkpoint_disk disk;
	char *of;			/* what the client called the disk */
	char *export_name;
	uint64_t export;		/* its serial number; 0: none */
	uint64_t requests;		/* of the export, when they were last looked at */
};

struct checkpoint {
	struct loop_timer timer;	/* first: checkpoint-lease.c finds the checkpoint by it */
	struct checkpoint *next;
	uint64_t serial;
	char name[CHECKPOINT_NAME_MAX + 1], since[CHECKPOINT_NAME_MAX + 1];
	uint64_t time, group;		/* see struct label */
	uint64_t lease, expires;	/* ns; loop_now() */
	struct checkpoint_part *parts;
	unsigned n;
	void *instants;			/* while it begins */
	bool broken;			/* that was told */
};

struct checkpoint_disk_options {
	const char *node, *export;	/* one of them */
	const char *since;		/* this disk's; NULL: the checkpoint's */
	const char *name;		/* of the NBD export; NULL: ours to choose */
};

struct checkpoint_options {
	const char *name, *since;	/* name NULL: the time; since NULL: full */
	uint64_t lease;			/* seconds */
	struct view_options *view;
	struct checkpoint_disk_options *disks;
	unsigned n;
};

int checkpoint_begin(const struct checkpoint_options *o, struct checkpoint **out,
		     struct error *err);
/* C is gone when this returns 0, and when SUCCESS is false.  WHY is for the event. */
int checkpoint_end(struct checkpoint *c, bool success, const char *why, struct error *err);
/* SECONDS 0: as long as before. */
void checkpoint_renew(struct checkpoint *c, uint64_t seconds);
struct checkpoint *checkpoint_find(const char *name);
struct checkpoint *checkpoint_list(void);
/* Seconds until the lease runs out. */
uint64_t checkpoint_lease_left(const struct checkpoint *c);
/* Whether C is broken: its text is in ERR then. */
int checkpoint_check(struct checkpoint *c, struct error *err);

/* checkpoint-query.c: what checkpoint-begin returns, and query-checkpoints. */
struct json_object *checkpoint_describe(struct checkpoint *c);
int checkpoint_query(struct json_object **ret, struct error *err);
/* Whether any node has one of this name that counts. */
bool checkpoint_is_active(const char *name);

/* Deletes a checkpoint that counts, of all nodes that have it. */
int checkpoint_delete(const char *name, struct error *err);
/* A node was opened, whose reference somebody else has: ends what an earlier process left
 * pending in it. */
void checkpoint_node_opened(struct node *n);
/* The end of the process. */
void checkpoint_end_all(void);

#endif
