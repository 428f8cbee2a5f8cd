/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-refs: how often each cluster of an image is referred to, counted anew.
 *
 * What qcow2-repair.c compares the refcounts with.  A window of clusters is counted at a
 * time, so that memory is bounded (128 MiB); an image of 4 TiB, at 64 KiB clusters, is one.
 */
#ifndef MERINO_QCOW2_REFS_H
#define MERINO_QCOW2_REFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qcow2;

#define REFS_WINDOW (1ull << 26)	/* clusters; a multiple of what a refcount block has */
#define REFS_MANY UINT16_MAX		/* this often, or more often */
#define REFS_NOT_ACTIVE UINT32_MAX

/* An L2 table that some L1 table points to. */
struct refs_table {
	uint64_t host;
	uint32_t times;			/* by how many L1 entries */
	uint32_t index;			/* in the active L1 table, or REFS_NOT_ACTIVE */
};

struct refs {
	struct qcow2 *s;
	struct refs_table *table;	/* sorted by host, each once */
	size_t n_tables, max_tables;
	uint64_t clusters;		/* of the file */
	uint64_t first, n;		/* the window */
	uint16_t *count;		/* of its clusters */
	uint64_t bytes_read;
	bool doubtful;			/* a pointer makes no sense: what looks free may not be */
	bool unsure_copied;		/* a COPIED flag of the active tables may be wrong */
};

/* Collects the tables.  -E2BIG when counting would take too long. */
int refs_init(struct refs *r, struct qcow2 *s);
/* Counts the clusters from FIRST on, REFS_WINDOW of them; suspends. */
int refs_count(struct refs *r, uint64_t first);
void refs_free(struct refs *r);

/* In the window, or behind the end of the file: nobody refers to what is there. */
static inline uint16_t refs_of(const struct refs *r, uint64_t cluster)
{
	return cluster - r->first < r->n ? r->count[cluster - r->first] : 0;
}

static inline bool refs_in_window(const struct refs *r, uint64_t cluster)
{
	return cluster - r->first < r->n;
}

/* Nobody refers to any of N clusters from FIRST on, where the window has them. */
bool refs_none(const struct refs *r, uint64_t first, uint64_t n);

/* Reads N clusters, the I-th at where(ARG, I), several at a time, and calls FN for each:
 * in no order, but one at a time unless FN suspends. */
int refs_each_table(struct qcow2 *s, size_t n, uint64_t (*where)(const void *arg, size_t i),
		    int (*fn)(void *arg, size_t i, const uint8_t *table), void *arg);

#endif
