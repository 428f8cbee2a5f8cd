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

#include <stdbool.h>
#include <stdint.h>

#include "common/co.h"
#include "common/error.h"
#include "format/node.h"

struct bitmap;
struct conn;
struct loop;

enum context_kind { CONTEXT_ALLOCATION, CONTEXT_DEPTH, CONTEXT_BITMAP };

/* A metadata context that the export offers.  Its index in export->contexts is
 * its id on the wire: 0 is always base:allocation. */
struct export_context {
	enum context_kind kind;
	struct bitmap *bitmap;		/* CONTEXT_BITMAP: touched on the export's loop only */
	char *name;			/* "qemu:dirty-bitmap:x"; owned */
};

struct export {
	struct export *next;
	char *id;			/* QMP's */
	char *name;			/* the clients' */
	char *description;		/* NULL: none */
	struct node *node;
	struct node_use use;
	struct loop *loop;
	bool writable;
	uint64_t size;			/* bytes */
	uint16_t flags;			/* enum nbd_transmission_flags */
	uint32_t block_min, block_preferred, block_max;	/* bytes, NBD_INFO_BLOCK_SIZE */
	struct export_context *contexts;
	unsigned n_contexts;
	/* Main loop: */
	unsigned refs;			/* connections, and the list itself */
	bool removed;			/* block-export-del was called */
	struct co_queue gone;		/* waits for refs to fall */
	/* Export's loop: */
	struct conn *conns;		/* in transmission */
};

/* Main loop.  By the name that clients give; NULL when there is none. */
struct export *export_find_name(const char *name, size_t len);
struct export *export_find_id(const char *id);
struct export *export_first(void);
void export_ref(struct export *e);
void export_unref(struct export *e);

#endif
