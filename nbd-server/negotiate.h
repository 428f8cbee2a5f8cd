/* SPDX-License-Identifier: BSD-3-Clause */
/* negotiate: the fixed newstyle handshake, up to an agreement.  Main loop only.
 * Everything that arrives here comes from somebody who has shown nothing yet.
 */
#ifndef MERINO_NEGOTIATE_H
#define MERINO_NEGOTIATE_H

#include "nbd-server/transmission.h"

/* Speaks with the client on A->stream (coroutine; A->listener, stream and tls are set).
 * 0: *A is complete and the connection goes on to transmission.
 * -errno: the connection is over (client left, misbehaved, or only asked);
 * nothing in *A but the stream needs releasing.  A time limit is the caller's: it shuts
 * the socket down. */
int negotiate(struct agreement *a);

#endif
