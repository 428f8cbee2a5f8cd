/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-checker: a second opinion on a qcow2 image, written from the
 * specification and sharing no code with format/.
 *
 * Counts how often each cluster is referred to and compares with the refcounts:
 * fewer references than counted are leaks, more are corruption; so are two
 * references to one cluster (unless the image has snapshots), tables that are
 * unaligned, overlap anything or lie behind the end of the file, and a COPIED flag
 * that is not true.  Small images only: the file is read whole.
 */
#ifndef MERINO_QCOW2_CHECKER_H
#define MERINO_QCOW2_CHECKER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"

struct checker {
	uint8_t *img;
	uint64_t bytes;			/* of the file */
	unsigned bits;			/* cluster size */
	unsigned order;			/* refcount width: 1 << order bits */
	uint64_t reftable, reftable_entries;
	uint64_t clusters;		/* that REFS has room for; some behind the end */
	uint16_t *refs;
	uint8_t *packed;		/* holds compressed clusters, which may share it */
	unsigned entry;			/* bytes of an L2 entry */
	unsigned leaks, errors;
	bool dirty;			/* refcounts are not to be trusted */
	bool snapshots;			/* there are some: what they share is counted twice */
	char first[160];		/* what the first error was */
};

static inline void checker_error(struct checker *c, const char *what, uint64_t a, uint64_t b)
{
	if (!c->errors++)
		snprintf(c->first, sizeof(c->first), "%s (%#llx, %#llx)", what, (unsigned long long)a,
			 (unsigned long long)b);
}

/* Big-endian BYTES at OFF; zero behind the end of the file. */
static inline uint64_t checker_get(const struct checker *c, uint64_t off, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++)
		v = v << 8 | (off + i < c->bytes ? c->img[off + i] : 0);
	return v;
}

/* Notes a reference to N clusters at OFF; IN_FILE: it is a table, not behind the end. */
static inline bool checker_ref(struct checker *c, uint64_t off, uint64_t n, bool in_file, const char *what)
{
	uint64_t first = off >> c->bits;

	if (off & ((1ull << c->bits) - 1) || first + n > c->clusters ||
	    (in_file && off >= c->bytes)) {
		checker_error(c, what, off, n);
		return false;
	}
	for (uint64_t i = first; i < first + n; i++)
		if (c->refs[i]++ && !c->snapshots)
			checker_error(c, "cluster is used twice", i << c->bits, off);
	return true;
}

static inline uint64_t checker_refcount(const struct checker *c, uint64_t cluster)
{
	uint64_t per_block = (8ull << c->bits) >> c->order, block, bit = (cluster % per_block) << c->order;

	if (cluster / per_block >= c->reftable_entries)
		return 0;
	block = checker_get(c, c->reftable + cluster / per_block * 8, 8) & ~511ull;
	if (!block)
		return 0;
	if (c->order >= 3)
		return checker_get(c, block + bit / 8, (1u << c->order) / 8);
	return checker_get(c, block + bit / 8, 1) >> bit % 8 & ((1u << (1u << c->order)) - 1);
}

static inline void checker_copied(struct checker *c, uint64_t entry, uint64_t where)
{
	bool one = checker_refcount(c, (entry & 0x00fffffffffffe00) >> c->bits) == 1;

	if (!c->dirty && one != entry >> 63)
		checker_error(c, "COPIED flag is wrong", entry, where);
}

/* A compressed cluster: counted by each host cluster that it touches. */
static inline void checker_packed(struct checker *c, uint64_t e, uint64_t where)
{
	unsigned shift = 62 - (c->bits - 8);
	uint64_t host = e & ((1ull << shift) - 1), sectors = (e & ((1ull << 62) - 1)) >> shift;
	uint64_t end = (host & ~511ull) + (sectors + 1) * 512;

	if (e >> 63 || host >= c->bytes)
		checker_error(c, "compressed cluster is out of place", e, where);
	for (uint64_t i = host >> c->bits; !c->errors && i <= (end - 1) >> c->bits; i++) {
		if (c->refs[i]++ && !c->packed[i])
			checker_error(c, "cluster is used twice", i << c->bits, where);
		c->packed[i] = 1;
	}
}

static inline void checker_subclusters(struct checker *c, uint64_t e, uint64_t at)
{
	uint64_t bits = checker_get(c, at + 8, 8), allocated = bits & 0xffffffff;

	if ((e & 1 && !(e >> 62 & 1)) || allocated & bits >> 32 || (allocated && !(e & 0x00fffffffffffe00)) || (e >> 62 & 1 && bits))
		checker_error(c, "subclusters make no sense", bits, at);
}

static inline void checker_l2(struct checker *c, uint64_t table, bool active)
{
	for (uint64_t at = table; at < table + (1ull << c->bits); at += c->entry) {
		uint64_t e = checker_get(c, at, 8), host = e & 0x00fffffffffffe00;

		if (c->entry == 16)
			checker_subclusters(c, e, at);
		if (e >> 62 & 1)
			checker_packed(c, e, at);
		else if (e & 0x7f000000000001fe)
			checker_error(c, "L2 entry has reserved bits", e, at);
		else if (host && checker_ref(c, host, 1, false, "L2 entry is out of place"))
			active ? checker_copied(c, e, at) : (void)0;
		else if (!host && e >> 63)
			checker_error(c, "L2 entry is COPIED without a cluster", e, at);
	}
}

static inline void checker_l1(struct checker *c, uint64_t table, uint64_t entries, bool active)
{
	uint64_t size = 1ull << c->bits;

	checker_ref(c, table, (entries * 8 + size - 1) / size, true, "L1 table is out of place");
	for (uint64_t i = 0; i < entries; i++) {
		uint64_t e = checker_get(c, table + i * 8, 8), l2 = e & 0x00fffffffffffe00;

		if (e & 0x7f000000000001ff)
			checker_error(c, "L1 entry has reserved bits", e, i);
		else if (l2 && checker_ref(c, l2, 1, true, "L2 table is out of place")) {
			if (active)
				checker_copied(c, e, i);
			checker_l2(c, l2, active);
		}
	}
}

static inline void checker_snapshots(struct checker *c, uint64_t n, uint64_t table)
{
	uint64_t at = table, size = 1ull << c->bits;

	for (uint64_t i = 0; i < n && !c->errors; i++) {
		checker_l1(c, checker_get(c, at, 8), checker_get(c, at + 8, 4), false);
		at += 40 + checker_get(c, at + 12, 2) + checker_get(c, at + 14, 2) + checker_get(c, at + 36, 4);
		at = (at + 7) & ~7ull;
	}
	if (n)
		checker_ref(c, table, (at - table + size - 1) / size, true, "snapshot table is out of place");
}

static inline void checker_reftable(struct checker *c, uint64_t table_clusters)
{
	checker_ref(c, c->reftable, table_clusters, true, "refcount table is out of place");
	for (uint64_t i = 0; i < c->reftable_entries; i++) {
		uint64_t block = checker_get(c, c->reftable + i * 8, 8);

		if (block & 511)
			checker_error(c, "refcount table entry has reserved bits", block, i);
		else if (block)
			checker_ref(c, block, 1, true, "refcount block is out of place");
	}
}

static inline void checker_compare(struct checker *c)
{
	for (uint64_t i = 0; i < c->clusters && !c->dirty; i++) {
		uint64_t count = checker_refcount(c, i);

		if (count < c->refs[i])
			checker_error(c, "refcount is too small", i << c->bits, count);
		c->leaks += count > c->refs[i];
	}
}

static inline void checker_header(struct checker *c)
{
	bool old = checker_get(c, 4, 4) == 2;
	uint64_t incompatible = old ? 0 : checker_get(c, 72, 8);

	c->bits = checker_get(c, 20, 4);
	c->order = old ? 4 : checker_get(c, 96, 4);
	c->entry = incompatible & 16 ? 16 : 8;
	c->reftable = checker_get(c, 48, 8);
	c->reftable_entries = checker_get(c, 56, 4) << c->bits >> 3;
	c->dirty = incompatible & 1;
	c->snapshots = checker_get(c, 60, 4);
	if (checker_get(c, 0, 4) != 0x514649fb || (!old && checker_get(c, 4, 4) != 3) || c->bits < 9 || c->bits > 21)
		checker_error(c, "no header of version 2 or 3", checker_get(c, 0, 8), c->bits);
	else if (incompatible & ~17ull || c->order > 6)
		checker_error(c, "features that the checker does not know", incompatible, c->order);
}

/* Checks the image in F (outside coroutines).  The results are C's LEAKS,
 * ERRORS and FIRST; nothing else of it is valid afterwards. */
static inline void checker_run(struct checker *c, struct io_file *f)
{
	*c = (struct checker){ .bytes = io_size(f) };
	c->img = malloc(c->bytes + 1);
	if (!c->img || io_pread(f, c->img, c->bytes, 0) != (ssize_t)c->bytes)
		checker_error(c, "cannot read the image", c->bytes, 0);
	else
		checker_header(c);
	if (!c->errors) {
		c->clusters = (c->bytes >> c->bits) + 65536;
		c->refs = calloc(c->clusters, sizeof(*c->refs));
		c->packed = calloc(c->clusters, 1);
		checker_ref(c, 0, 1, true, "header");
		checker_reftable(c, checker_get(c, 56, 4));
		checker_l1(c, checker_get(c, 40, 8), checker_get(c, 36, 4), true);
		checker_snapshots(c, checker_get(c, 60, 4), checker_get(c, 64, 8));
		checker_compare(c);
	}
	free(c->refs);
	free(c->packed);
	free(c->img);
	c->refs = NULL;
	c->packed = NULL;
	c->img = NULL;
}

#endif
