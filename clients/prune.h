/* SPDX-License-Identifier: BSD-3-Clause */
/* prune: restore points go; those that rest on them take over what they need.
 *
 * The order is in doc/formats/backup-repository.md, "How prune merges": a death at any
 * instruction leaves every point that stays readable and proven, and those that go, too,
 * until they are removed.
 */
#ifndef MERINO_PRUNE_H
#define MERINO_PRUNE_H

#include <stdbool.h>
#include <stdint.h>

#include "clients/progress.h"
#include "clients/repo.h"
#include "clients/verb.h"

struct prune {
	struct verb_options v;
	struct repo repo;		/* opened with REPO_WRITE | REPO_MERGE */
	bool *keep;			/* of each point of the repository */
	struct verb_limit limit;
	struct progress p;
	uint64_t total, done;		/* bytes to be copied, about */
	uint64_t copied;		/* bytes */
};

/* True where any disk of point I rests on a point that goes. */
bool prune_rests(const struct prune *o, unsigned i);
/* How many layers of C below the first go. */
unsigned prune_run(const struct prune *o, const struct repo_chain *c);

/* What a killed prune has left of its merges is brought to its end, or removed. */
int prune_settle(struct prune *o, struct error *err);
/* Point I takes over what it needs of the points that go, on which it rests. */
int prune_merge(struct prune *o, unsigned i, struct error *err);

int prune_main(int argc, char **argv);

#endif
