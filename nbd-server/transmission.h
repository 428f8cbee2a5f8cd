/* SPDX-License-Identifier: BSD-3-Clause */
/* transmission: the phase of an NBD connection in which requests are served.
 *
 * The handshake (negotiate.c, on the main loop) ends with an agreement; the
 * socket then moves to the loop of the export's disk and stays there.
 */
#ifndef MERINO_TRANSMISSION_H
#define MERINO_TRANSMISSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/stream.h"

struct export;
struct listener;
struct tls_policy;

#define CONTEXTS_MAX 64		/* metadata contexts that one connection may select */

/* What the handshake agreed on. */
struct agreement {
	struct stream stream;		/* owned */
	const struct tls_policy *tls;	/* the listener's */
	struct export *export;		/* one reference, given back when the connection ends */
	struct listener *listener;	/* told when it ends (listener_connection_ended) */
	bool structured;		/* NBD_OPT_STRUCTURED_REPLY, or … */
	bool extended;			/* … NBD_OPT_EXTENDED_HEADERS */
	uint32_t contexts[CONTEXTS_MAX];	/* selected: indices into export->contexts */
	unsigned n_contexts;
	/* Bytes that were received behind the last option: the first requests. */
	uint64_t send_timeout_ns;	/* a client that takes nothing for so long is dropped; 0: no limit */
	uint8_t *early;			/* malloc'd, owned; NULL when none */
	size_t early_len;
};

/* Main loop: hands the connection over.  *A is copied, stream and all. */
void transmission_start(struct agreement *a);

/* The export's loop, in a coroutine: shuts down all its connections (they end soon after). */
void transmission_shutdown(struct export *e);

#endif
