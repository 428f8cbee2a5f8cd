/* SPDX-License-Identifier: BSD-3-Clause */
/* disk-dial: a connection is begun; a server's name is looked up beside.
 *
 * libnbd asks the resolver inside of nbd_aio_connect_uri(), and a name server that does not
 * answer holds it for half a minute.  So a URI with a name is a thread's work, which may
 * be left alone: it ends when the resolver lets it.
 */
#ifndef MERINO_VMM_DISK_DIAL_H
#define MERINO_VMM_DISK_DIAL_H

#include <stdbool.h>

struct dial;
struct nbd_handle;
struct uri;

#define DIAL_WHY 256

/* What came of it: a connection under way (H), a name that is being looked up (DIAL), or
 * neither, and WHY. */
struct dialled {
	struct nbd_handle *h;
	struct dial *dial;
	char why[DIAL_WHY];
};

/* Whether U has a name that somebody has to look up. */
bool dial_has_name(const struct uri *u);
void dial_start(const char *uri, struct dialled *out);
/* Readable when dial_take() has something to take. */
int dial_fd(const struct dial *d);
/* False: it is not done yet.  True: D is gone, and OUT has a connection or WHY. */
bool dial_take(struct dial *d, struct dialled *out);
/* D is gone for the caller.  NULL is fine. */
void dial_give_up(struct dial *d);
/* Whether a thread that was left alone still waits for the resolver: who ends the process
 * then leaves without exit(), which would take libraries away under it. */
bool dial_left_any(void);

#endif
