/* SPDX-License-Identifier: BSD-3-Clause */
/* io-sim-store: one file of the simulation: current and durable contents, and
 * the operations in between.  Internal to io-sim*.c.
 */
#ifndef MERINO_IO_SIM_STORE_H
#define MERINO_IO_SIM_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	SIM_SECTOR = 512,
	SIM_PAGE = 4096,
	SIM_PAGE_SECTORS = SIM_PAGE / SIM_SECTOR,
};

/* A page's bytes; shared by clones until one of them writes. */
struct sim_bytes {
	unsigned refs;
	uint8_t b[SIM_PAGE];
};

struct sim_page {
	struct sim_page *next;		/* in its hash bucket */
	uint64_t index;			/* offset / SIM_PAGE */
	struct sim_bytes *cur, *dur;	/* now, and on storage for certain; NULL: zeroes */
	uint64_t dur_seq[SIM_PAGE_SECTORS];	/* the operation that DUR is as of */
	uint64_t keep_seq[SIM_PAGE_SECTORS];	/* scratch of sim_settle(), else 0 */
};

/* Something done to a file that is not (all) durable. */
struct sim_op {
	uint64_t seq;			/* order of execution, over all files; from 1 */
	uint64_t off, len;
	uint8_t *data;			/* NULL: zeroes */
	bool resizes;			/* the file's size was SIZE after it */
	bool orphan;			/* its fsync failed: none covers it any more */
	uint64_t size;
};

struct sim_file {
	struct sim_file *next;
	char *path;
	uint64_t cur_size, dur_size;
	struct sim_page **bucket;	/* 1 << bucket_bits of them */
	unsigned bucket_bits;
	uint64_t n_pages;
	struct sim_op *op;		/* in the order of SEQ */
	size_t n_ops, max_ops;
};

/* Which effects of an operation reach storage.  SECTOR is the offset / 512, or
 * SIM_SECTOR_SIZE for the file's size. */
#define SIM_SECTOR_SIZE UINT64_MAX
typedef bool sim_keep_fn(const struct sim_op *op, uint64_t sector, const void *arg);

struct sim_file *sim_file_new(const char *path);
struct sim_file *sim_file_clone(const struct sim_file *f);
void sim_file_free(struct sim_file *f);

/* Bytes read: short only at the end of the file. */
size_t sim_file_read(const struct sim_file *f, void *buf, size_t len, uint64_t off);
/* The end of the run of pages like that at OFF; *HOLE: it has no bytes. */
uint64_t sim_file_run(const struct sim_file *f, uint64_t off, bool *hole);

/* Changes the current contents and notes the operation.  DATA NULL: zeroes. */
void sim_file_write(struct sim_file *f, uint64_t seq, const void *data, uint64_t off, uint64_t len);
void sim_file_zero(struct sim_file *f, uint64_t seq, uint64_t off, uint64_t len, bool extend);
void sim_file_truncate(struct sim_file *f, uint64_t seq, uint64_t size);

/* Makes durable, for each sector, its contents as of the last operation kept. */
void sim_settle(struct sim_file *f, sim_keep_fn *keep, const void *arg);

/* The three uses of it. */
void sim_settle_fsync(struct sim_file *f, uint64_t seq);	/* up to SEQ, forgets them */
void sim_settle_dsync(struct sim_file *f, uint64_t seq);	/* only SEQ, the last one */
void sim_settle_loss(struct sim_file *f, sim_keep_fn *keep, const void *arg);	/* forgets all */

/* A failed fsync: what is older than SEQ is never covered by another. */
void sim_orphan(struct sim_file *f, uint64_t seq);

#endif
