/* SPDX-License-Identifier: BSD-3-Clause */
/* repo-read: one disk of one restore point is read, and proven chunk by chunk.
 *
 * The checksums of the chain say what every chunk is; the images say what it has become.
 * What both agree on is handed out in pieces, in ascending order; the checksums come to
 * the disk's root at the end, which has to be the manifest's.  So nothing is handed out
 * that is not what was backed up: unless the manifest itself was forged.
 */
#ifndef MERINO_REPO_READ_H
#define MERINO_REPO_READ_H

#include <stdbool.h>
#include <stdint.h>

#include "clients/repo.h"
#include "common/error.h"
#include "format/node.h"

enum { READ_CHUNKS = 16 };		/* read at a time, at most */

struct repo_reader {
	const struct repo *r;
	const struct repo_point *point;
	const struct repo_disk *disk;
	struct repo_chain chain;
	struct graph graph;
	struct node *node;
	struct node_use use;
	struct sums *sums;
	struct sums_root *root;
	char *buf;			/* READ_CHUNKS chunks */
	/* What sums_next() said that is not handed out yet. */
	bool have, end;
	enum sums_kind kind;
	uint64_t index, count;
	uint8_t hash[SUMS_HASH];
	int layer;
};

/* Chunks of one kind that lie behind one another and were brought by one point. */
struct repo_piece {
	uint64_t index, count;		/* chunks; a piece of data has at most READ_CHUNKS */
	uint64_t off, len;		/* bytes; the disk's last chunk may be short */
	bool zero;			/* the checksums say so; nothing was read */
	int layer;			/* of the chain: who brought them; -1: nobody */
	uint8_t hash[READ_CHUNKS][SUMS_HASH];	/* data: what each is to be */
};

/* Opens the images and the checksums.  READER is to be closed in any case. */
int repo_reader_open(struct repo_reader *d, const struct repo *r, const struct repo_point *p,
		     const char *disk, struct error *err);
/* The same with the top image open for writing: prune's merge. */
int repo_reader_open_rw(struct repo_reader *d, const struct repo *r, const struct repo_point *p,
			const char *disk, struct error *err);
void repo_reader_close(struct repo_reader *d);
/* Before that, after writes: everything is durable and the image closed.  0 or -errno. */
int repo_reader_settle(struct repo_reader *d, struct error *err);

/* 1 with the next piece, 0 at the end when the root is right; or -errno with the text. */
int repo_reader_next(struct repo_reader *d, struct repo_piece *p, struct error *err);

/* Reads a piece of data into d->buf and compares.  *WRONG: a bit for each chunk that is not
 * what it should be.  0, or what the storage said (-errno). */
int repo_reader_data(struct repo_reader *d, const struct repo_piece *p, uint32_t *wrong);

/* "point 2026..., disk 'vda', offset N: " and WHAT, as an error. */
int repo_reader_fail(const struct repo_reader *d, uint64_t off, int code, const char *what,
		     struct error *err);

#endif
