/* SPDX-License-Identifier: BSD-3-Clause */
/* store-int: what the files of the store in qcow2 tell each other.
 *
 *	store-dir.c	the directory as bytes
 *	store-data.c	one bitmap's table and clusters: load, write, free
 *	store-load.c	open: directory to memory, marked as in use
 *	store.c		clean close and removal: memory to a new directory
 *
 * The directory is read from storage each time it is needed, so nothing but the
 * image says what is stored.
 */
#ifndef MERINO_STORE_INT_H
#define MERINO_STORE_INT_H

#include "bitmaps/bitmap-int.h"
#include "bitmaps/store-dir.h"
#include "format/qcow2.h"

/* Entries of a bitmap table that are ever read: BITMAP_BYTES_MAX in the smallest clusters. */
#define TABLE_ENTRIES_MAX (BITMAP_BYTES_MAX / 512)

/* Clusters that were allocated, to be given back when what needs them fails. */
struct store_runs {
	struct { uint64_t off, count; } *v;	/* bytes; clusters */
	size_t n, max;
};

void store_runs_undo(struct node *n, struct store_runs *r);	/* frees the clusters, and the list */
void store_runs_drop(struct store_runs *r);			/* they are in use: only the list */
/* LEN bytes of zeroed clusters' worth: writes DATA (LEN, a multiple of the cluster
 * size) into new clusters; their offset or -errno. */
int64_t store_write_new(struct node *n, const void *data, size_t len, struct store_runs *r);

/* Fills B's bits from E's table.  *BUDGET (bytes) bounds what a stranger's image can
 * make us read and keep.  -EINVAL, -EIO, -E2BIG with *WHY set; -ENOMEM.  B is clean then. */
int store_load_bits(struct bitmap *b, const struct dir_entry *e, uint64_t *budget,
		    const char **why);
/* Writes B's bits and their table into new clusters: E's table_offset and table_size. */
int store_write_bits(struct bitmap *b, struct dir_entry *e, struct store_runs *r);
/* Frees the clusters of an entry that is in no directory any more.  If its table makes
 * no sense it is left as it is: a leak costs less than a freed cluster that is not its. */
void store_free_entry(struct node *n, const struct dir_entry *e);

/* The directory from storage.  -ENOENT: there is none.  -EINVAL, -EIO: damaged, the
 * reason in ERR.  EXT is set where the header has one. */
int store_read_dir(struct node *n, struct qcow2_bitmap_ext *ext, struct directory *d,
		   struct error *err);
/* The same bytes but for flags, to the same place, durably. */
int store_write_flags(struct node *n, const struct qcow2_bitmap_ext *ext,
		      const struct directory *d);

/* The entry called NAME goes from the image, durably.  May suspend. */
int store_remove_entry(struct node *n, const char *name, struct error *err);

struct live_found;
/* store-live.c.  What a process that died left beside the image; false: nothing that counts. */
bool store_find_live(struct node *n, struct live_found *f);
/* Whether E, which is in use, was removed or renamed in the session that F is of. */
bool store_is_gone(const struct live_found *f, const struct dir_entry *e);
/* Bitmaps that only F knows are added; entries of D that it does not know are taken out. */
void store_add_found(struct node *n, struct live_found *f, uint64_t *budget);
void store_drop_unknown(struct node *n, struct live_found *f, const struct directory *d);
/* From here on the bits of N's persistent bitmaps survive a crash, if they can.  An error
 * only when the image could name bits that are not true. */
int store_begin_live(struct node *n, struct live_found *f, struct error *err);

/* node_bitmap_hooks.load */
int store_load(struct node *n, struct error *err);

#endif
