/* SPDX-License-Identifier: BSD-3-Clause */
/* sums: the checksums of a disk's chunks, and the root over all of them.
 *
 * A .sums file lists, in ascending order, the chunks that one restore point brought:
 * data with its SHA-256 each, or runs that are zero.  What it does not list is as in
 * the point below.  Laid over one another, the files of a chain tell what every chunk of
 * the disk is; a chunk of which nobody tells is zero.
 *
 * A chunk that is zero all through is always "zero", never data: so the root depends
 * on what the guest sees alone,
 *
 *	root = SHA-256("merino root\n", chunk size, disk size,
 *		       index, SHA-256 of the chunk; index, SHA-256; ... )
 *
 * over the chunks that are not zero, ascending; numbers have 8 bytes, big-endian.  The
 * disk's last chunk may be short.
 */
#ifndef MERINO_SUMS_H
#define MERINO_SUMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

enum { SUMS_HASH = 32 };

struct sums;
struct sums_writer;

/* SHA-256 of memory. */
void sums_hash(const void *p, size_t n, uint8_t out[SUMS_HASH]);
/* "0123…", 64 digits and a terminator. */
void sums_hex(const uint8_t hash[SUMS_HASH], char out[2 * SUMS_HASH + 1]);
bool sums_unhex(const char *text, uint8_t hash[SUMS_HASH]);

/* --- writing one file: FD is empty and stays the caller's.  Ascending order. */
int sums_create(int fd, uint32_t chunk, uint64_t size, struct sums_writer **out, struct error *err);
int sums_put_data(struct sums_writer *w, uint64_t index, const uint8_t hash[SUMS_HASH]);
int sums_put_zero(struct sums_writer *w, uint64_t index, uint64_t count);
/* Writes what is left (no fsync): the file's length and SHA-256. */
int sums_finish(struct sums_writer *w, uint64_t *bytes, uint8_t hash[SUMS_HASH]);
void sums_discard(struct sums_writer *w);	/* after finish too; NULL is fine */

/* Whether FD's file has BYTES bytes and that hash. */
bool sums_file_is(int fd, uint64_t bytes, const uint8_t hash[SUMS_HASH]);

/* --- reading a chain: layer 0 is the newest */
struct sums_file {
	int fd;				/* taken over */
	const char *name;		/* for messages; lives as long as the struct sums */
	uint64_t bytes;			/* what the manifest says of it */
	uint8_t hash[SUMS_HASH];
	uint64_t size;			/* of the disk at that point */
};

/* Reads each file once to compare its hash.  CHUNK and the sizes must be what the
 * headers say.  The descriptors are closed in any case. */
int sums_open(struct sums_file *files, unsigned n, uint32_t chunk, struct sums **out,
	      struct error *err);
void sums_close(struct sums *s);

enum sums_kind { SUMS_END, SUMS_DATA, SUMS_ZERO };

/* What is next, from chunk 0 on; SUMS_ZERO: *COUNT chunks, of which nobody told or which
 * were said to be zero.  LAYER, or -1 where nobody told.  Negative: -errno. */
int sums_next(struct sums *s, uint64_t *index, uint64_t *count, uint8_t hash[SUMS_HASH],
	      int *layer, struct error *err);
void sums_rewind(struct sums *s);
/* The root of the disk as layer 0 has it (rewinds before and after). */
int sums_root(struct sums *s, uint8_t root[SUMS_HASH], struct error *err);

/* The root's parts, for who reads the disk itself. */
struct sums_root;
struct sums_root *sums_root_new(uint32_t chunk, uint64_t size);
void sums_root_add(struct sums_root *r, uint64_t index, const uint8_t hash[SUMS_HASH]);
void sums_root_end(struct sums_root *r, uint8_t root[SUMS_HASH]);	/* frees R */

#endif
