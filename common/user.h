/* SPDX-License-Identifier: BSD-3-Clause */
/* user: from root to the user that --user names. */
#ifndef MERINO_USER_H
#define MERINO_USER_H

#include "common/error.h"

/* Looks NAME|UID[:GROUP|GID] up, while /etc may still be read. */
int user_find(const char *text, struct error *err);

/* Gives a file that was just made to that user; 0 without user_find. */
int user_give(int fd, struct error *err);

/* All threads; a no-op without user_find.  No supplementary group and no capability
 * is left.  Sockets, images and the pid file are open already. */
int user_drop(struct error *err);

#endif
