/* SPDX-License-Identifier: BSD-3-Clause */
/* activation: listening sockets that were made by who started us: systemd,
 * systemd-socket-activate, libnbd's `nbdinfo [ merinod … ]` (sd_listen_fds(3)).
 *
 * They are shared with whoever made them, and stay open until the process ends:
 * a listener takes a duplicate.
 */
#ifndef MERINO_ACTIVATION_H
#define MERINO_ACTIVATION_H

#include <stdbool.h>

#include "common/error.h"

/* Reads LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES and takes them out of the
 * environment.  Call first: before a fork, before anything is opened. */
int activation_take(struct error *err);

/* How many sockets were passed; they are descriptors 3, 4, … */
unsigned activation_count(void);
bool activation_has(int fd);

/* The descriptors that LISTEN_FDNAMES calls NAME (several may have one name), at
 * most MAX of them; how many there are. */
unsigned activation_find(const char *name, int *fds, unsigned max);

#endif
