/* SPDX-License-Identifier: BSD-3-Clause */
/* verify: a repository is read and proven.
 *
 * A point of a disk is right when the point below is, and every chunk is what its checksum
 * says that the point itself has brought, or of which its image has anything: so each
 * image is read once, and what is wrong in one is known for all points that show it.
 */
#ifndef MERINO_VERIFY_H
#define MERINO_VERIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clients/progress.h"
#include "clients/repo.h"
#include "clients/verb.h"

enum { VERIFY_WRONG_MAX = 1 << 20 };	/* wrong chunks kept of one disk; then the whole disk counts as wrong */

struct verify_wrong {
	uint64_t index;			/* of the chunk */
	const struct verify_disk *from;	/* whose image is to blame */
};

/* What was found of one disk at one point. */
struct verify_disk {
	const struct repo_point *point;
	const struct repo_disk *disk;
	bool broken;			/* it cannot be read as a whole; TEXT says why */
	char text[1024];			/* what is wrong beside WRONG; "" */
	struct verify_wrong *wrong;	/* ascending; owned */
	size_t n, max;
	uint64_t leaked;		/* clusters: no harm */
};

struct verify {
	struct verb_options v;
	const char *where;
	bool quick;
	bool alone;			/* one point: it is read whole, others are not looked at */
	struct repo repo;
	const struct repo_point *only;	/* alone: the point */
	struct verify_disk *disk;	/* of all points, in the points' order; owned */
	size_t n;
	struct verb_limit limit;
	struct progress p;
	uint64_t total, done, read;	/* bytes of images; dealt with; read as data */
};

/* Proves D, whose point's parents were looked at before (unless alone).  0 whatever was found;
 * -errno with the text when it could not be found out, -EINTR after a signal. */
int verify_disk(struct verify *o, struct verify_disk *d, struct error *err);

bool verify_good(const struct verify_disk *d);

int verify_main(int argc, char **argv);

#endif
