/* SPDX-License-Identifier: BSD-3-Clause */
/* pull-source: the server that is copied from, over one or more connections.
 *
 * The first connection must succeed and decides what the export is.  Further
 * ones are opened in the background and join the work when they are ready; one
 * that is refused or never answers is simply not used.  A connection that
 * fails after it was ready fails the copy.
 */
#ifndef MERINO_PULL_SOURCE_H
#define MERINO_PULL_SOURCE_H

#include <libnbd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

enum { SOURCE_CONNECTIONS = 64 };	/* at most */

enum { COVER_PIECES = 16 };		/* that wait for what lies between them */

enum conn_state {
	CONN_NONE,			/* not opened, or given up */
	CONN_CONNECTING,
	CONN_READY,
};

struct conn {
	struct nbd_handle *h;		/* owned */
	enum conn_state state;
	unsigned in_flight;		/* reads; the copier counts them */
};

struct source {
	const char *uri;
	char context[1100];		/* the bitmap's metadata context, or "" */
	struct conn conn[SOURCE_CONNECTIONS];
	unsigned n;			/* connections opened, ready or not */
	uint64_t size;			/* of the export, bytes */
	uint64_t block;			/* the server's minimum block, a power of two */
	uint64_t max;			/* longest read it takes */
	bool multi_conn;
	bool tells_zeroes;		/* CONTEXT is merino:changes */
	bool has_allocation;		/* base:allocation was agreed to */
	bool has_wake;			/* source_poll() returns when WAKE can be read, too */
	int wake;
};

/* Which bytes of a read came: chunks may come in any order, but none twice, or others would
 * be missing while the sum is right. */
struct cover {
	unsigned n;
	bool bad;			/* something came twice, or in too many pieces */
	struct { uint64_t off, end; } v[COVER_PIECES];
};

void cover_add(struct cover *c, uint64_t off, uint64_t len);
/* [OFF, OFF + LEN) came, each byte once. */
bool cover_is(const struct cover *c, uint64_t off, uint64_t len);

/* Connects to URI.  BITMAP may be NULL; a full "qemu:dirty-bitmap:NAME" is fine
 * too.  "merino:changes:NAME" is preferred where the server has it.  A server without that bitmap is an error that lists what it has. */
int source_open(struct source *s, const char *uri, const char *bitmap, struct error *err);

/* Starts to open connections until there are WANT. */
void source_grow(struct source *s, unsigned want);

/* Waits up to TIMEOUT ms for the server, with SIGMASK in place meanwhile, and
 * lets libnbd work; completions run inside.  0, also after a signal. */
int source_poll(struct source *s, int timeout, const sigset_t *sigmask, struct error *err);

/* How many connections are ready. */
unsigned source_ready(const struct source *s);

/* Tells the server goodbye and closes everything; requests in flight complete
 * with an error inside. */
void source_close(struct source *s);

#endif
