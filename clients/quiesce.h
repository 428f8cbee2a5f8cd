/* SPDX-License-Identifier: BSD-3-Clause */
/* quiesce: a guest's file systems are at rest while an instant is taken.
 *
 * Nothing here fails a backup: what goes wrong costs the rest, and is a warning.
 */
#ifndef MERINO_QUIESCE_H
#define MERINO_QUIESCE_H

#include <stdbool.h>
#include <stdint.h>

struct quiesce;

enum { QUIESCE_LIMIT_MAX = 180 };	/* with what else has to be waited for, within a lease */

struct quiesce_config {
	const char *agent;		/* the guest agent's socket; NULL: hooks alone */
	const char *before, *after;	/* hooks; NULL: none */
	unsigned limit;			/* seconds: for each hook, and that the guest may be frozen */
	const char *repository, *point, *socket;	/* what hooks are told */
};

/* The hook before, then the freeze.  NULL: nothing was begun. */
struct quiesce *quiesce_begin(const struct quiesce_config *c);
/* The instant was over at WHEN (progress_now()): the thaw, then the hook after.  Whether the
 * guest was frozen all that time.  Q may be NULL. */
bool quiesce_end(struct quiesce *q, uint64_t when);

#endif
