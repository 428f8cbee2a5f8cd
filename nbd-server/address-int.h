/* SPDX-License-Identifier: BSD-3-Clause */
/* address-int: the kinds of addresses, each in its place.  Each takes its options
 * out of O and fills A; address_listen() clears A when one fails. */
#ifndef MERINO_ADDRESS_INT_H
#define MERINO_ADDRESS_INT_H

#include "nbd-server/address.h"

#define ADDRESS_BACKLOG 1024		/* clients that wait to be accepted */

/* address-fd.c */
int address_fd(struct json_object *o, struct address *a, struct error *err);
/* Adds a listening socket that is waited for through epoll, and owns it: 0 or -errno … */
int address_add_watched(struct address *a, int fd);
/* … and ends the waiting for all of them. */
void address_end_watched(struct address *a);
/* address-vsock.c */
int address_vsock(struct json_object *o, struct address *a, struct error *err);

#endif
