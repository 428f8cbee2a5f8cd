/* SPDX-License-Identifier: BSD-3-Clause */
/* export: a node offered over NBD, with its metadata contexts.
 *
 * The list of exports, their reference counts and everything of the handshake
 * belong to the main loop.  Nodes, bitmaps and connections in transmission
 * belong to the export's loop (that of its disk).  What both read is set before
 * the export is listed and does not change while it is (size, flags, contexts).
 */
#ifndef MERINO_EXPORT_H
#define MERINO_EXPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "backup/manners.h"
#include "common/co.h"
#include "common/error.h"
#include "common/loop.h"
#include "format/node.h"

struct bitmap;
struct conn;

enum context_kind { CONTEXT_ALLOCATION, CONTEXT_DEPTH, CONTEXT_BITMAP, CONTEXT_CHANGES };

/* A metadata context that the export offers.  Its index in export->contexts is
 * its id on the wire: 0 is always base:allocation. */
struct export_context {
	enum context_kind kind;
	struct bitmap *bitmap;		/* of the last two; touched on the export's loop only */
	char *name;			/* "qemu:dirty-bitmap:x"; owned */
};

/* BLOCK_IO_ERROR, once in a while.  Export's loop. */
struct export_errors {
	struct loop_timer timer;	/* armed while the next event has to wait */
	struct export *export;
	bool held_back, is_write;
	int rc;
};

struct export {
	struct export *next;		/* in the order of their serial numbers */
	uint64_t serial;		/* never used twice, never 0 */
	char *id;			/* QMP's */
	char *name;			/* the clients' */
	char *description;		/* NULL: none */
	char node_name[NODE_NAME_MAX + 1];	/* for the main loop, which may not follow NODE */
	struct node *node;		/* changes by export_set_node() only */
	struct node_use *use, uses[2];	/* the one in use, and its successor's place */
	struct loop *loop;
	bool writable;
	uint64_t size;			/* bytes */
	uint16_t flags;			/* enum nbd_transmission_flags */
	uint32_t block_min, block_preferred, block_max;	/* bytes, NBD_INFO_BLOCK_SIZE */
	struct export_context *contexts;
	const struct export_context **by_name;	/* all of them */
	unsigned n_contexts;
	unsigned max_connections;	/* 0: any number */
	/* Main loop: */
	unsigned refs;			/* connections, and the list itself */
	bool opening;			/* its name is taken, clients do not see it yet */
	bool removed;			/* block-export-del was called */
	bool machine_stopped;		/* by QMP's stop, until cont */
	_Atomic uint64_t requests;	/* that came; written on the export's loop */
	/* Export's loop: */
	bool hurried;			/* node_hurry() is in force: its end waits for requests */
	struct conn *conns;		/* in transmission */
	uint64_t n_conns;		/* there have ever been */
	struct co_queue left;		/* waits for one of them to end */
	unsigned stopped;		/* who wants clients' requests to wait, and … */
	struct co_queue resume;		/* … where they do */
	struct io_stats stats;		/* of clients' requests */
	struct export_errors errors;
	struct manners manners;		/* of long reads, if it is read-only, … */
	struct co_mutex turn;		/* … which wait here … */
	uint64_t reading;		/* … unless they are these bytes; … */
	struct co_queue read;		/* … some of which were read */
};

/* The device that an export is in query-block: "/machine/peripheral/ID/virtio-backend". */
#define EXPORT_QDEV_SIZE 320
const char *export_qdev(const struct export *e, char *buf, size_t size);

/* A request of a client has ended with RC; it began at BEGUN (loop_now()). Export's loop. */
void export_account(struct export *e, enum io_kind kind, uint64_t bytes, uint64_t begun, int rc);

/* Main loop.  By the name that clients give; NULL when there is none. */
struct export *export_find_name(const char *name, size_t len);
struct export *export_find_id(const char *id);
/* The same export, found again after a wait; NULL when it has gone. */
struct export *export_find_serial(uint64_t serial);
/* The first that clients may see with a greater serial number; NULL at the end. */
struct export *export_next(uint64_t serial);
void export_ref(struct export *e);
void export_unref(struct export *e);

/* What block-export-add says.  Strings and BITMAPS are borrowed. */
struct export_options {
	const char *id, *name;		/* name NULL: the node's */
	const char *description;	/* NULL: none */
	struct node *node;
	bool writable;
	bool allocation_depth;
	bool allow_inactive;		/* stays while its node is inactive: reads go on */
	unsigned max_connections;	/* 0: any number */
	bool lossy;			/* go without those of BITMAPS that cannot be used */
	struct json_object *bitmaps;	/* array of names and {"node":…,"name":…}; NULL: none */
};

/* Coroutine.  Offers the node; errors in QEMU's words. */
int export_add(const struct export_options *o, struct error *err);

/* As many clients are connected as may be. */
static inline bool export_is_full(const struct export *e)
{
	return e->max_connections && e->refs > e->max_connections;
}

/* Clients are connected, or on their way out. */
bool export_is_used(const struct export *e);

/* Coroutine.  Takes E off the list, ends its connections and waits until it is
 * gone; E is no longer valid then.  Tells BLOCK_EXPORT_DELETED. */
void export_remove(struct export *e);

/* Coroutine.  The same for all of them. */
void export_close_all(void);

/* All of them, those on their way out too, for query-block-exports: the first,
 * and by ->next. */
struct export *export_list(void);

/* Main loop: the node has another size now; clients that ask from here on see it. */
void export_set_size(struct export *e, uint64_t size);

/* export-parent.c.  Coroutines, on the export's loop.  STOP: clients' requests wait
 * from now on, and those begun have ended; -ETIMEDOUT when they did not within
 * LIMIT_NS (0: any time): then nothing has changed. */
int export_stop(struct export *e, uint64_t limit_ns);
void export_resume(struct export *e);
/* Gives the stopped E the node N, of the same size and on the same loop: takes the
 * caller's reference, which becomes that of the former node. */
int export_set_node(struct export *e, struct node **n, struct error *err);

/* export-node.c.  Coroutine, on the export's loop: uses the node, finds the
 * bitmaps, fills size, flags and contexts.  On failure nothing is held. */
int export_open_node(struct export *e, const struct export_options *o, struct error *err);
/* The other way; drops the node's reference. */
void export_close_node(struct export *e);

#endif
