/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: what others may ask of a qcow2 node (the driver's insides are in
 * qcow2-int.h).  Specification: QEMU's docs/interop/qcow2.txt.
 */
#ifndef MERINO_QCOW2_H
#define MERINO_QCOW2_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/io.h"

struct node;

enum qcow2_preallocation {
	QCOW2_PREALLOC_OFF,
	QCOW2_PREALLOC_METADATA,	/* all tables, the file as long as it may become */
	QCOW2_PREALLOC_FALLOC,		/* ... with its space reserved */
	QCOW2_PREALLOC_FULL,		/* ... and written */
};

/* What qemu-img create -f qcow2 -o ... takes, and BlockdevCreateOptionsQcow2. */
struct qcow2_create {
	uint64_t size;			/* bytes, a multiple of 512 (rounded up) */
	uint32_t version;		/* 2 or 3; 0: 3 */
	uint32_t cluster_size;		/* 512 … 2 MiB, a power of two; 0: 65536 */
	uint32_t refcount_bits;		/* 1 … 64, a power of two; 0: 16 */
	bool lazy_refcounts;		/* the compatible feature bit */
	bool zstd;			/* compressed clusters are zstd, not zlib */
	bool extended_l2;		/* subclusters; clusters of 16 KiB and more */
	bool data_file_raw;		/* with data_file: it is kept readable as a raw image */
	enum qcow2_preallocation preallocation;
	const char *data_file;		/* name stored in the header; NULL: data is in the image */
	const char *backing_file;	/* as stored in the header; NULL: none */
	const char *backing_format;	/* needed with backing_file */
	/* Called with ARG once in a while; what it returns, if not 0, ends the work.  NULL:
	 * nobody asks. */
	int (*go_on)(void *arg);
	void *arg;
};

/* Makes a new, empty image in F (an empty file) and syncs it.  Not with a data file. */
int qcow2_create(struct io_file *f, const struct qcow2_create *o, struct error *err);

/* The same in FILE, a protocol node that the caller uses for writing and resizing
 * (its old contents go).  DATA: the external data file's node, needed if and only
 * if O names one. */
int qcow2_create_node(struct node *file, struct node *data, const struct qcow2_create *o,
		      struct error *err);

bool node_is_qcow2(const struct node *n);

/* The "bitmaps" header extension (specification: "Bitmaps extension"). */
struct qcow2_bitmap_ext {
	uint32_t nb_bitmaps;
	uint64_t directory_size;	/* bytes */
	uint64_t directory_offset;	/* bytes into the file, cluster aligned */
};

/* -ENOENT: no extension, or the autoclear bit is not set (then it must be ignored). */
int qcow2_bitmap_ext_get(struct node *n, struct qcow2_bitmap_ext *ext);
/* Writes the header with the extension and the autoclear bit (NULL: without
 * both), durably, ordered after everything written before. */
int qcow2_bitmap_ext_set(struct node *n, const struct qcow2_bitmap_ext *ext, struct error *err);

/* What is wrong with an image's tables: qcow2-check.c. */
struct qcow2_check {
	uint64_t damaged;		/* refcounts that are too low, pointers that make no sense */
	uint64_t leaked;		/* clusters that are counted and not used: harmless */
};

/* The image may be open read only.  0 whatever was found; -E2BIG: too many tables. */
int qcow2_check(struct node *n, struct qcow2_check *out, struct error *err);

/* NAME (NULL: none) is the backing file's name in the header from now on, durably; FORMAT its
 * format.  What is open below the node stays as it is. */
int qcow2_relink(struct node *n, const char *name, const char *format, struct error *err);

/* Somebody who wants the old data of what is overwritten, and for whom a write of whole
 * clusters goes to new ones while the old ones stay (a view: backup/view-aside.c).  One at a
 * time; not with subclusters or an external data file, nor in an image that is not searched for
 * leaks after a crash.  What is asked of him is asked by each write, piece by piece, before it
 * is done. */
struct qcow2_aside {
	/* Whether the cluster at OFF, of [off, off+len) which are whole ones, shall stay; and for
	 * how many bytes that is the answer (*N).  Does not suspend. */
	bool (*moves)(struct qcow2_aside *a, uint64_t off, uint64_t len, uint64_t *n);
	/* The cluster at HOST, which had OFF's data, is no more the disk's.  False: it is not
	 * wanted.  Does not suspend. */
	bool (*moved)(struct qcow2_aside *a, uint64_t off, uint64_t host);
	/* Whether [off, off+len) has to be kept before it is overwritten in another way; then do. */
	bool (*wants)(struct qcow2_aside *a, uint64_t off, uint64_t len);
	void (*keep)(struct qcow2_aside *a, uint64_t off, uint64_t len);
	/* There is no room for new clusters.  FOR_GUEST: nor for what a guest writes, which needs
	 * those that are held. */
	void (*no_room)(struct qcow2_aside *a, bool for_guest);
	/* The image is about to be closed: what is held has to be freed now. */
	void (*ends)(struct qcow2_aside *a);
};

bool qcow2_aside_set(struct node *n, struct qcow2_aside *a);	/* false: it cannot be */
bool qcow2_aside_is(const struct node *n, const struct qcow2_aside *a);
void qcow2_aside_drop(struct node *n, struct qcow2_aside *a);
int qcow2_aside_read(struct node *n, void *buf, uint64_t host, size_t len);
/* How often the disk was flushed: a number that changes when it was. */
uint64_t qcow2_aside_flushes(const struct node *n);
/* COUNT clusters from HOST on are not wanted any more.  Does not suspend. */
void qcow2_aside_free(struct node *n, uint64_t host, uint64_t count);

/* The session of live bitmaps (bitmaps/live.h) that the header names, and that nobody wrote
 * without; false: none. */
bool qcow2_live_get(struct node *n, uint8_t id[16]);
/* Has the header name it, or none (NULL), durably.  -ENOSPC: there is no room. */
int qcow2_live_set(struct node *n, const uint8_t *id, struct error *err);
/* The image's file, and the directory that was given (or NULL), when something may be kept
 * beside it; NULL: version 2, crash-log=off, a device without crash-log-dir, not a file. */
struct io_file *qcow2_live_place(struct node *n, const char **dir);

uint32_t qcow2_cluster_size(const struct node *n);
/* COUNT adjacent clusters with refcount 1: offset in the file, or -errno. */
int64_t qcow2_alloc_clusters(struct node *n, uint64_t count);
/* Drops one reference of each; they may be used again after the next flush. */
void qcow2_free_clusters(struct node *n, uint64_t offset, uint64_t count);
/* Reads and writes of such clusters (metadata of others), offsets in the file. */
int qcow2_meta_read(struct node *n, void *buf, uint64_t off, size_t len);
int qcow2_meta_write(struct node *n, const void *buf, uint64_t off, size_t len);
/* For foreign pointers: whether [off, off+len) lies in the file, cluster aligned, and,
 * where the image may be written to, has refcount 1 and is none of qcow2's own tables. */
bool qcow2_meta_range_ok(struct node *n, uint64_t off, uint64_t len);
/* All data and metadata on storage, refcounts and freed clusters included. */
int qcow2_meta_flush(struct node *n);

#endif
