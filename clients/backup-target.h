/* SPDX-License-Identifier: BSD-3-Clause */
/* backup-target: one disk of a restore point while it is being written: its image and
 * its sums, under temporary names until target_finish().
 *
 * What comes, comes in ascending order and whole chunks mostly.  A chunk of which only
 * parts came is read back through the new image, with what is below it, to be summed.
 */
#ifndef MERINO_BACKUP_TARGET_H
#define MERINO_BACKUP_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clients/repo.h"
#include "common/error.h"

struct target;

/* What is known of a chunk that came as a whole. */
enum chunk_kind { CHUNK_PART, CHUNK_DATA, CHUNK_ZERO };

struct chunk_sum {
	enum chunk_kind kind;
	uint8_t hash[SUMS_HASH];	/* CHUNK_DATA */
};

/* Looks at the chunks of LEN bytes at OFF of a disk of SIZE bytes; SUM has room for all
 * that are touched.  Any thread. */
void target_sum(const void *buf, uint64_t off, size_t len, uint64_t size, struct chunk_sum *sum);

/* Makes the image of D (name, size, level, parent set) in point POINT of R.  CHAIN: what
 * is below; NULL for a full.  COMPRESS: 0 or 'd' (zlib) or 'z' (zstd). */
int target_open(struct repo *r, const char *point, struct repo_disk *d, const struct repo_chain *chain,
		char compress, struct target **out, struct error *err);

/* LEN bytes at OFF, whose chunks target_sum() has looked at. */
int target_data(struct target *t, const void *buf, uint64_t off, size_t len,
		const struct chunk_sum *sum, struct error *err);
/* [OFF, OFF + LEN) reads as zeroes. */
int target_zero(struct target *t, uint64_t off, uint64_t len, struct error *err);

/* Makes it durable under its names, and fills D's sums, root, data and zero bytes. */
int target_finish(struct target *t, struct error *err);
/* Whether it failed because what the parent has is not what was stored in it. */
bool target_below_is_rotten(const struct target *t);
void target_close(struct target *t);	/* NULL is fine; files without their names stay for repo_abandon() */

#endif
