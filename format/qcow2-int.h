/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-int: what the files of the qcow2 driver share.
 *
 *	qcow2.c		the driver's table, options, open and close
 *	qcow2-header.c	the header and its extensions are read and checked
 *	qcow2-header-write.c  and rewritten; the extension for bitmaps
 *	qcow2-backing.c	the backing image: the user's, or the one the header names
 *	qcow2-data.c	the image file, or an external data file: where guest data is
 *	qcow2-snapshot.c  internal snapshots: their table, one of them as the disk
 *	qcow2-cache.c	slices of L2 tables and of refcount blocks in memory
 *	qcow2-map.c	guest offset -> where the data is; publish; block status
 *	qcow2-table.c	new L2 tables, a larger L1 table, a larger image
 *	qcow2-resize.c	a larger L1 table, a larger image, a smaller one
 *	qcow2-io.c	read, write, copy on write; the file below
 *	qcow2-aside.c	whole clusters that are overwritten stay, for a view
 *	qcow2-compressed.c  compressed clusters: read, given up (codec.c packs and unpacks)
 *	qcow2-pack.c	and written
 *	qcow2-zero.c	write zeroes and discard
 *	qcow2-refcount.c  the value of a cluster's refcount, and new refcount blocks
 *	qcow2-alloc.c	free clusters are found, taken, given back
 *	qcow2-overlap.c	what must not be overwritten; the corrupt mark
 *	qcow2-flush.c	the order on storage
 *	qcow2-crashlog.c  mappings that changed since, in memory that outlives the process
 *	qcow2-replay.c	and what the next open makes of them
 *	qcow2-refs.c	references are counted anew
 *	qcow2-check.c	they are compared with the refcounts, nothing is changed
 *	qcow2-relink.c	another backing file's name
 *	qcow2-repair.c	leaks and wrong refcounts go when an image was not closed
 *	qcow2-create.c	a new image
 *
 * Tables are kept in memory as they are on storage, big-endian.  "Host" offsets
 * are bytes into the image file, "guest" offsets bytes into the virtual disk.
 * Everything happens on the node's loop; a comment says where a call suspends.
 */
#ifndef MERINO_QCOW2_INT_H
#define MERINO_QCOW2_INT_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/co.h"
#include "format/node.h"
#include "format/qcow2.h"
#include "format/ranges.h"

struct json_object;

#define QCOW2_MAGIC		0x514649fbu	/* "QFI\xfb" */
#define QCOW2_L1_BYTES_MAX	(32u << 20)
#define QCOW2_REFTABLE_BYTES_MAX (8u << 20)
#define QCOW2_SNAPSHOTS_MAX	65536u
#define QCOW2_SNAPSHOT_TABLE_MAX (64u << 20)
#define QCOW2_SNAPSHOT_EXTRA_MAX 1024u
#define QCOW2_BACKING_NAME_MAX	1023u
#define QCOW2_EXTENSIONS_MAX	1024u
#define QCOW2_HOST_MAX		(1ull << 56)	/* host offsets are below this */

#define QCOW2_OFFSET		0x00fffffffffffe00ull	/* of L1 and L2 entries */
#define QCOW2_COPIED		(1ull << 63)	/* its refcount is exactly 1 */
#define QCOW2_COMPRESSED	(1ull << 62)
#define QCOW2_ZERO		1ull		/* L2 only, not extended: reads as zeroes */

/* The bitmap of an extended L2 entry: what its 32 subclusters are.  With neither
 * bit one reads from the backing image; both make no sense. */
#define QCOW2_SUBS		32u
#define QCOW2_SUBS_ALLOCATED	0x00000000ffffffffull	/* data */
#define QCOW2_SUBS_ZERO		0xffffffff00000000ull	/* reads as zeroes */

enum qcow2_incompatible { QCOW2_DIRTY = 1, QCOW2_CORRUPT = 2, QCOW2_DATA_FILE = 4,
			  QCOW2_COMPRESSION = 8, QCOW2_EXTENDED_L2 = 16 };
enum qcow2_compatible { QCOW2_LAZY_REFCOUNTS = 1 };
enum qcow2_autoclear { QCOW2_BITMAPS = 1, QCOW2_RAW_DATA_FILE = 2 };
#define QCOW2_OPEN		(1ull << 61)	/* autoclear: Merino has it open; qcow2-crashlog.h */
#define QCOW2_LIVE		(1ull << 60)	/* autoclear: the bits of its bitmaps are beside it */

enum qcow2_ext_type {
	QCOW2_EXT_END = 0,
	QCOW2_EXT_BACKING_FORMAT = 0xe2792aca,
	QCOW2_EXT_FEATURE_NAMES = 0x6803f857,
	QCOW2_EXT_BITMAPS = 0x23852875,
	QCOW2_EXT_CRYPTO = 0x0537be77,
	QCOW2_EXT_DATA_FILE = 0x44415441,
	QCOW2_EXT_OPEN = 0x4d524e4f,	/* "MRNO" */
	QCOW2_EXT_LIVE = 0x4d524e42,	/* "MRNB": 16 bytes, the session of bitmaps/live.h */
};

/* Byte offsets of the header's fields. */
enum qcow2_header_field {
	H_MAGIC = 0, H_VERSION = 4, H_BACKING_OFFSET = 8, H_BACKING_SIZE = 16, H_CLUSTER_BITS = 20,
	H_SIZE = 24, H_CRYPT = 32, H_L1_SIZE = 36, H_L1_OFFSET = 40, H_REFTABLE_OFFSET = 48,
	H_REFTABLE_CLUSTERS = 56, H_NB_SNAPSHOTS = 60, H_SNAPSHOTS_OFFSET = 64,
	H_INCOMPATIBLE = 72, H_COMPATIBLE = 80, H_AUTOCLEAR = 88, H_REFCOUNT_ORDER = 96,
	H_LENGTH = 100, H_COMPRESSION = 104,
	H_LENGTH_V2 = 72, H_LENGTH_MIN = 104, H_LENGTH_OURS = 112,
};

struct qcow2_ext {
	uint32_t type, len;
	uint8_t *data;			/* owned */
};

/* The header, as the file has it or is about to have it. */
struct qcow2_header {
	uint32_t version;		/* 2 or 3 */
	uint64_t incompatible, compatible, autoclear;
	uint64_t size;			/* of the virtual disk */
	uint64_t l1_offset, reftable_offset, snapshots_offset, backing_offset;
	uint32_t l1_size;		/* entries */
	uint32_t reftable_clusters, nb_snapshots, cluster_bits, refcount_order, length;
	uint8_t compression;
	char *backing_name;		/* NULL: none */
	char *backing_format;		/* NULL: not recorded */
	struct qcow2_ext *ext;		/* all of them, in the file's order */
	unsigned n_ext;
	uint8_t *bytes;			/* what the file has: header, extensions, backing name */
	size_t n_bytes;
	struct co_mutex lock;		/* held while it is rewritten */
};

/* A piece of a table in memory. */
struct slice {
	struct slice *chain;		/* in its hash bucket */
	struct slice *next_dirty;	/* in cache->dirty, while dirty */
	uint64_t no;			/* guest slice or refcount slice; SLICE_NONE: unused */
	uint8_t *data;
	uint32_t pins;			/* who holds it across a suspend */
	bool loading;			/* its contents are on their way */
	bool dirty;			/* differs from storage */
	bool flushing;			/* a flush holds a copy that is not written yet */
	bool recent;			/* CLOCK's mark */
};

#define SLICE_NONE UINT64_MAX

struct slice_cache {
	uint32_t bytes;			/* of a slice */
	uint32_t max;			/* slices; exceeded only while all are pinned */
	uint32_t n;			/* slices that exist */
	uint32_t n_dirty;		/* in the dirty list */
	uint32_t hand;			/* CLOCK's */
	unsigned hash_shift;
	struct slice **bucket;
	struct slice **slot;		/* grows up to max, or a little more */
	uint32_t slots_allocated;
	struct slice *dirty;
	struct co_queue loaded;		/* wait for some load to end */
	struct slice *last;		/* found last; always valid or NULL */
};

struct host_run {
	uint64_t off, count;		/* bytes; clusters */
};

struct host_runs {
	struct host_run *v;
	size_t n, max;
	uint64_t clusters;		/* sum of the counts */
};

/* See qcow2-flush.c. */
struct qcow2_flush {
	bool running;
	uint64_t begun;			/* flushes that have begun */
	uint64_t synced;		/* number of the last one that ended with everything durable */
	int rc;				/* what that one returned */
	bool failed;			/* an fsync failed: sticky until the next open */
	bool unsynced;			/* tables were written since the last fsync */
	struct co_queue waiters;
	struct host_runs freed;		/* no table in memory refers to them any more */
	struct host_runs cleared;	/* ... and no table handed to the file, which is not durable yet */
	uint64_t given;			/* clusters that were given back since the image was opened */
	struct co_mutex refcount_io;	/* held while refcount slices are written */
};

/* The clusters that hold metadata: an open-addressing set of cluster numbers. */
struct cluster_set {
	uint64_t *v;			/* 0: empty (cluster 0 is known to all) */
	size_t n, size;			/* SIZE is a power of two */
};

/* Compressed clusters that were unpacked last; see qcow2-compressed.c. */
struct unpacked_slot {
	uint64_t entry;			/* 0: none */
	uint64_t used;			/* when, in ticks */
	uint8_t *data;			/* a cluster */
	unsigned users;			/* it must stay */
	bool loading;
};

struct unpacked {
	struct unpacked_slot *v;
	unsigned n, n_codecs;
	uint64_t tick;
	struct co_queue loaded;		/* wait for some slot's loading to end */
	struct codec *codecs[8];	/* idle ones */
};

/* An internal snapshot, as its table has it. */
struct qcow2_snapshot {
	char *id, *name;
	uint64_t l1_offset, disk_size, vm_clock_ns, vm_state_size, icount;
	uint32_t l1_size;		/* entries */
	uint32_t date_sec, date_nsec;
	bool has_icount;
};

struct qcow2 {
	struct node *node, *file;
	struct node *data;		/* where guest data is: FILE, or the external data file */
	bool has_data_file;		/* DATA is not FILE: no refcounts, guest offset = host offset */
	bool ext_l2;			/* L2 entries have 16 bytes, clusters 32 subclusters */
	struct qcow2_header h;
	unsigned cluster_bits;
	unsigned entry_shift;		/* log2 of an L2 entry's bytes: 3, or 4 */
	unsigned sub_bits;		/* log2 of a subcluster's bytes; cluster_bits without them */
	unsigned slice_shift;		/* guest offset >> this = guest slice number */
	unsigned l1_shift;		/* guest offset >> this = L1 index */
	uint32_t slice_mask;		/* entries of a slice - 1 */
	unsigned ref_shift;		/* cluster number >> this = refcount slice number */
	unsigned ref_block_shift;	/* cluster number >> this = refcount table index */
	uint64_t cluster_size;
	bool has_backing;		/* unallocated clusters may hold data of a backing image */
	bool regular_file;		/* what was never written to the file reads as zeroes */
	bool corrupt;			/* no write any more */
	bool said_damaged;		/* logged once */

	uint8_t *l1;			/* h.l1_size entries, rounded up to sectors */
	uint8_t *l1_dirty;		/* one flag per L1_SECTOR bytes */
	uint32_t l1_n_dirty;
	uint8_t *reftable;		/* h.reftable_clusters clusters */
	uint64_t reftable_entries;
	struct qcow2_snapshot *snapshots;	/* h.nb_snapshots of them */
	char *snapshot;			/* the one that is read, an ID or a name; NULL: the disk */
	uint64_t snapshots_bytes;	/* of their table on storage */

	struct slice_cache l2, ref;
	uint32_t l2_dirty_max;		/* dirty L2 slices before a flush is started for room */
	struct ranges ranges;		/* guest ranges, whole clusters */
	struct qcow2_flush flush;
	struct cluster_set meta;
	struct unpacked unpacked;
	struct {			/* see qcow2-pack.c */
		uint64_t next;
		uint64_t avoided;	/* how often qcow2_pack_avoid() ended a cluster */
		struct co_mutex lock;
	} pack;
	struct co_mutex l1_lock;	/* new L2 tables and a new L1 table; taken before alloc_lock */
	struct co_mutex alloc_lock;	/* new refcount blocks and a new refcount table */
	bool begun;			/* the header says that the image is open */
	struct crashlog *log;		/* NULL: none is written */
	bool live_ends;			/* the header shall not name a session any more */
	int log_mode;			/* enum crashlog_mode */
	char *log_dir;			/* NULL: beside the image */
	struct qcow2_aside *aside;	/* who wants old clusters, or NULL: see qcow2.h */
	uint64_t free_hint;		/* no cluster below is free (cluster number) */
	uint64_t host_end;		/* bytes: nothing at or behind it was ever used */
	uint64_t host_limit;		/* bytes: the refcount table describes no more */
};

#define L1_SECTOR 4096u

struct crashlog;
struct json_object;

enum run_kind {
	RUN_UNALLOCATED,		/* the backing image's data, or zeroes */
	RUN_ZERO,			/* zeroes, no cluster */
	RUN_ZERO_ALLOCATED,		/* zeroes, with a cluster of its own */
	RUN_RESERVED,			/* as UNALLOCATED, with a cluster (extended L2 only) */
	RUN_DATA,			/* a cluster of its own (COPIED) */
	RUN_SHARED,			/* a cluster that others may refer to */
	RUN_COMPRESSED,			/* one cluster at a time */
	RUN_BAD,			/* the entry makes no sense */
};

/* A guest range that is stored in one piece. */
struct run {
	enum run_kind kind;
	uint64_t host;			/* where its first byte is; meaningful with a cluster */
	uint64_t len;			/* bytes */
	uint64_t entry;			/* the L2 entry of its first cluster */
	bool copied;			/* its clusters, if any, are its own */
};

static inline struct qcow2 *qcow2_of(const struct node *n)
{
	return n->state;
}

static inline uint64_t l1_entry(const struct qcow2 *s, uint64_t index)
{
	return get_be64(s->l1 + index * 8);
}

static inline uint64_t qcow2_in_cluster(const struct qcow2 *s, uint64_t off)
{
	return off & (s->cluster_size - 1);
}

static inline const char *qcow2_name(const struct qcow2 *s)
{
	return s->node->filename ? s->node->filename : s->node->name;
}

/* Where the L2 entry of a guest offset is in its slice. */
static inline uint8_t *qcow2_entry_slot(const struct qcow2 *s, struct slice *sl, uint64_t guest)
{
	return sl->data + ((guest >> s->cluster_bits & s->slice_mask) << s->entry_shift);
}

/* qcow2-header.c, qcow2-header-write.c */
int qcow2_header_read(struct qcow2 *s, struct error *err);
void qcow2_header_free(struct qcow2_header *h);
/* Writes what S->h says, durably, so that a power loss leaves the old or the new
 * header.  The caller has made durable what the new one points to. */
int qcow2_header_write(struct qcow2 *s);
/* NAME (NULL: none) is written at OFF, where nothing is, and then the header points to it.
 * S->h does not follow. */
int qcow2_header_point(struct qcow2 *s, uint64_t off, const char *name);
/* Whether extensions and backing name fit; else that fails with -ENOSPC, changing nothing. */
bool qcow2_header_has_room(const struct qcow2 *s);
bool qcow2_header_may_have_room(struct qcow2 *s);
struct qcow2_ext *qcow2_ext_find(struct qcow2_header *h, uint32_t type);
int qcow2_ext_put(struct qcow2_header *h, uint32_t type, const void *data, uint32_t len);
void qcow2_ext_drop(struct qcow2_header *h, uint32_t type);

/* In memory: the header names no session of live bitmaps. */
static inline void qcow2_live_drop(struct qcow2 *s)
{
	s->h.autoclear &= ~(uint64_t)QCOW2_LIVE;
	qcow2_ext_drop(&s->h, QCOW2_EXT_LIVE);
}

/* qcow2-backing.c */
int qcow2_open_backing(struct qcow2 *s, struct json_object *opts, struct error *err);

bool qcow2_names_protocol(const char *name);
/* NAME as seen from the directory of IMAGE; malloc'd. */
char *qcow2_beside(const char *image, const char *name);

/* qcow2-data.c */
int qcow2_open_data_file(struct qcow2 *s, struct json_object *opts, struct error *err);
/* The data file is to be kept readable as a raw image. */
bool qcow2_data_is_raw(const struct qcow2 *s);
int qcow2_sync_below(struct qcow2 *s);
/* As qcow2_alloc() and its siblings, for the guest's data: nothing is counted in an
 * external data file. */
int qcow2_data_alloc(struct qcow2 *s, uint64_t guest, uint64_t want, uint64_t *host, uint64_t *got,
		     bool *fresh);
void qcow2_data_unref_now(struct qcow2 *s, uint64_t host, uint64_t count);
void qcow2_data_unref_later(struct qcow2 *s, uint64_t host, uint64_t count);

/* The files below.  Reads behind their end give zeroes, writes there make them longer. */
int qcow2_read_end(struct node *n, void *buf, uint64_t off, size_t len);

static inline int qcow2_below_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	if (__builtin_expect(off + len > n->size && !n->protocol, 0))
		return qcow2_read_end(n, buf, off, len);
	return node_read(n, buf, off, len);
}

static inline int qcow2_file_read(struct qcow2 *s, void *buf, uint64_t off, size_t len)
{
	return qcow2_below_read(s->file, buf, off, len);
}

static inline int qcow2_data_read(struct qcow2 *s, void *buf, uint64_t off, size_t len)
{
	return qcow2_below_read(s->data, buf, off, len);
}

static inline int qcow2_file_write(struct qcow2 *s, const void *buf, uint64_t off, size_t len,
				   unsigned flags)
{
	return node_write(s->file, buf, off, len, flags);
}

static inline int qcow2_data_write(struct qcow2 *s, const void *buf, uint64_t off, size_t len,
				   unsigned flags)
{
	return node_write(s->data, buf, off, len, flags);
}

int qcow2_file_zero(struct qcow2 *s, uint64_t off, uint64_t len);	/* by writing zeroes */

/* qcow2-snapshot.c */
/* Reads the table into S->snapshots. */
int qcow2_snapshots_load(struct qcow2 *s, struct error *err);
void qcow2_snapshots_free(struct qcow2 *s);
/* Whether its L1 table lies in the file: before anybody follows it. */
int qcow2_snapshot_check_l1(const struct qcow2 *s, const struct qcow2_snapshot *sn, struct error *err);
int qcow2_snapshots_check(const struct qcow2 *s, struct error *err);	/* ... all of them */
/* The read-only disk is that snapshot (an ID or a name). */
int qcow2_snapshot_use(struct qcow2 *s, const char *which, struct error *err);
struct json_object *qcow2_snapshots_info(const struct qcow2 *s);	/* QEMU's SnapshotInfo, an array */

/* qcow2-cache.c */
int cache_init(struct slice_cache *c, uint32_t slice_bytes, uint64_t max);
void cache_free(struct slice_cache *c);
struct slice *cache_find_slow(struct slice_cache *c, uint64_t no);
/* The slice NO, loaded from HOST if need be, with one more pin; suspends then.
 * ROOM is called when nothing can be evicted: it makes dirty slices clean. */
int cache_get(struct qcow2 *s, struct slice_cache *c, uint64_t no, uint64_t host,
	      int (*room)(struct qcow2 *s), struct slice **out);
void cache_unpin(struct slice_cache *c, struct slice *sl);
void cache_dirty(struct slice_cache *c, struct slice *sl);
/* All dirty slices in an array (the caller frees it), now marked as flushing and
 * no longer dirty.  NULL when out of memory, or when there are none. */
struct slice **cache_take_dirty(struct slice_cache *c, uint32_t *n);
/* The flush of SL ended; when it failed the slice is dirty again. */
void cache_flushed(struct slice_cache *c, struct slice *sl, bool failed);

/* A slice whose contents are in memory, or NULL.  Valid until the next suspend. */
static inline struct slice *cache_find(struct slice_cache *c, uint64_t no)
{
	if (__builtin_expect(c->last && c->last->no == no, 1)) {
		c->last->recent = true;
		return c->last;
	}
	return cache_find_slow(c, no);
}

/* qcow2-map.c */
/* The run at OFF, at most LEN bytes; loads the slice if need be (suspends), but
 * never suspends between reading the entry and returning. */
int qcow2_lookup(struct qcow2 *s, uint64_t off, uint64_t len, struct run *r);
void qcow2_lookup_slice(struct qcow2 *s, struct slice *sl, uint64_t off, uint64_t len,
			struct run *r);
int qcow2_bad_entry(struct qcow2 *s, uint64_t off, const struct run *r);
/* BITS: the bitmap of each of them; without extended L2 entries it is not stored. */
void qcow2_publish(struct qcow2 *s, struct slice *sl, uint64_t guest, uint64_t count,
		   uint64_t entry, uint64_t step, uint64_t bits);
/* The entry of OFF's cluster as it is in SL, and its bitmap (0 without). */
uint64_t qcow2_entry(const struct qcow2 *s, const struct slice *sl, uint64_t off, uint64_t *bits);
/* Puts the entries into the slice, and does no more. */
void qcow2_put_entries(struct qcow2 *s, struct slice *sl, uint64_t guest, uint64_t count,
		       uint64_t entry, uint64_t step, uint64_t bits);
int qcow2_map(struct node *n, uint64_t off, uint64_t len, struct extents *x);

/* qcow2-table.c */
/* The slice for OFF, pinned, with a new L2 table if there was none. */
int qcow2_slice_for_write(struct qcow2 *s, uint64_t off, struct slice **out);
int qcow2_slice_load(struct qcow2 *s, uint64_t no, struct slice **out);
/* An entry of the L1 table changes; it is in memory until the next flush. */
void qcow2_l1_set(struct qcow2 *s, uint64_t index, uint64_t entry);

/* qcow2-resize.c */
int qcow2_truncate(struct node *n, uint64_t size, struct error *err);

/* qcow2-io.c */
int qcow2_read(struct node *n, void *buf, uint64_t off, size_t len);
int qcow2_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags);
int qcow2_read_backing(struct qcow2 *s, void *buf, uint64_t off, size_t len);
/* No entry refers any more to the COUNT clusters of R, which was found at OFF. */
void qcow2_drop_old(struct qcow2 *s, const struct run *r, uint64_t off, uint64_t count);
extern const uint8_t qcow2_zeroes[65536];

/* On a full disk, what was discarded is given back before a guest that wants to use the
 * space is refused, and so is what a view holds: the tables without it become durable, then
 * the clusters go.  GIVEN: what flush.given was before the first try.  True: it is worth
 * another one. */
bool qcow2_gives_back(struct qcow2 *s, uint64_t given);

/* qcow2-aside.c; only while S->aside is set */
/* Before R, which was found at OFF, is written to: shortens it to what is alike.  1: its
 * clusters move, 0: they do not, -EAGAIN: time went by, look again. */
int qcow2_aside_ask(struct qcow2 *s, uint64_t off, struct run *r, unsigned flags);
/* COUNT clusters of R, found at OFF, have moved: hands the old ones over, or drops them. */
void qcow2_aside_give(struct qcow2 *s, const struct run *r, uint64_t off, uint64_t count);

/* qcow2-compressed.c */
/* Of the compressed cluster ENTRY, which holds guest offset OFF. */
int qcow2_read_compressed(struct qcow2 *s, void *buf, uint64_t off, uint64_t len, uint64_t entry);
/* Its L2 entry is gone: drops its references later. */
void qcow2_drop_compressed(struct qcow2 *s, uint64_t entry);
/* Where its bytes are, at most. */
void qcow2_compressed_place(const struct qcow2 *s, uint64_t entry, uint64_t *host, uint64_t *len);
/* A codec for one call; NULL: out of memory. */
struct codec *qcow2_codec_take(struct qcow2 *s);
void qcow2_codec_give(struct qcow2 *s, struct codec *c);
void qcow2_compressed_free(struct qcow2 *s);	/* the cache */

/* qcow2-pack.c */
/* Whether a write is of whole clusters that may be stored compressed; then do it. */
bool qcow2_can_pack(const struct qcow2 *s, uint64_t off, uint64_t len);
int qcow2_write_packed(struct qcow2 *s, const void *buf, uint64_t off, uint64_t len);
/* Nothing is appended any more to the host clusters in [host, end). */
void qcow2_pack_avoid(struct qcow2 *s, uint64_t host, uint64_t end);

/* qcow2-zero.c */
int qcow2_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags);
int qcow2_discard(struct node *n, uint64_t off, uint64_t len);
/* Whole clusters that will be behind the end: nothing is stored for them any more. */
int qcow2_forget(struct qcow2 *s, uint64_t off, uint64_t len);

/* qcow2-refcount.c; all may suspend unless said otherwise */
/* The refcount slice of a cluster, pinned; -ENOENT when no block covers it. */
int refcount_slice(struct qcow2 *s, uint64_t cluster, struct slice **out);
uint64_t refcount_get(const struct qcow2 *s, const struct slice *sl, uint64_t cluster);
void refcount_set(struct qcow2 *s, struct slice *sl, uint64_t cluster, uint64_t value);
uint64_t refcount_max(const struct qcow2 *s);
/* Entry I of a refcount block, or of a piece of one. */
uint64_t refcount_entry(const struct qcow2 *s, const uint8_t *block, uint64_t i);
void refcount_table_set(struct qcow2 *s, uint8_t *table, uint64_t clusters);
int refcount_make_block(struct qcow2 *s, uint64_t cluster);
/* COUNT adjacent clusters with refcount 1 behind all others, with blocks for them. */
int refcount_make_run(struct qcow2 *s, uint64_t count, uint64_t *host);
/* Writes all dirty refcount slices to the file (not durable yet). */
int refcount_write(struct qcow2 *s);

/* qcow2-alloc.c */
/* 1 .. WANT adjacent free clusters, now with refcount 1.  *FRESH: nothing was
 * ever written there and they read as zeroes. */
int qcow2_alloc(struct qcow2 *s, uint64_t want, uint64_t *host, uint64_t *got, bool *fresh);
int qcow2_alloc_exact(struct qcow2 *s, uint64_t count, uint64_t *host);
/* Drops one reference now: only for clusters that no table on storage refers to. */
int qcow2_unref_now(struct qcow2 *s, uint64_t host, uint64_t count);
/* Drops one reference when the tables as they are now are durable. */
void qcow2_unref_later(struct qcow2 *s, uint64_t host, uint64_t count);

/* qcow2-overlap.c */
int qcow2_meta_init(struct qcow2 *s);
int qcow2_meta_add(struct qcow2 *s, uint64_t host, uint64_t count);
void qcow2_meta_remove(struct qcow2 *s, uint64_t host, uint64_t count);
/* Whether data may be written to [host, host+len); if not, the image is marked. */
int qcow2_check_target(struct qcow2 *s, uint64_t host, uint64_t len);
static inline int qcow2_check_data(struct qcow2 *s, uint64_t host, uint64_t len)
{
	return s->has_data_file ? 0 : qcow2_check_target(s, host, len);
}

/* Whether COUNT clusters are one user's: counted once, and no metadata that we know of. */
bool qcow2_is_owned(struct qcow2 *s, uint64_t host, uint64_t count);
/* Marks the image corrupt and stops all writes; returns -EIO. */
int qcow2_mark_corrupt(struct qcow2 *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* qcow2-flush.c */
void qcow2_flush_start(struct qcow2 *s);		/* in the background, if worth it */
int qcow2_flush_room(struct qcow2 *s);			/* until some L2 slices are clean */
int qcow2_flush_all(struct qcow2 *s);			/* data and tables durable */
int qcow2_flush_clean(struct qcow2 *s);			/* ... and freed clusters given back, nothing dirty */
void qcow2_flush_idle(struct qcow2 *s);			/* waits for the background's flush */
bool qcow2_is_clean(const struct qcow2 *s);		/* tables on storage are those in memory */

/* qcow2-crashlog.c */
int crashlog_options(struct qcow2 *s, struct json_object *opts, struct error *err);
/* The image is open for writing from now on: the open bit, and a log if there may be one. */
int crashlog_begin(struct qcow2 *s, struct error *err);
/* It is not, any more.  CLEAN: tables and refcounts are durable.  0, or why the header still says so. */
int crashlog_end(struct qcow2 *s, bool clean);
int crashlog_room_wait(struct qcow2 *s);
bool crashlog_is_full(const struct qcow2 *s);
void crashlog_note_l2(struct qcow2 *s, uint64_t guest, uint64_t count, uint64_t entry, uint64_t step,
		      uint64_t bits);
void crashlog_note_l1(struct qcow2 *s, uint64_t index, uint64_t entry);
/* Everything noted so far is in the tables in memory; and, later, with the kernel. */
uint64_t crashlog_seal(struct qcow2 *s);
void crashlog_drop(struct qcow2 *s, uint64_t sealed);
/* An fsync failed: the data that the records point to may never be on storage. */
void crashlog_void(struct qcow2 *s);

/* Before a write that will change a mapping begins: waits while the log is nearly full. */
static inline int crashlog_room(struct qcow2 *s)
{
	return __builtin_expect(s->log && crashlog_is_full(s), 0) ? crashlog_room_wait(s) : 0;
}

/* qcow2-replay.c, qcow2-repair.c: at open, before anything else is written. */
int qcow2_replay(struct qcow2 *s, struct error *err);
int qcow2_repair(struct qcow2 *s, struct error *err);

extern size_t qcow2_crashlog_bytes;	/* tests have a small log, which is full at times */

/* For tests that prove that a wrong order is noticed; 0 otherwise.
 * 1: no fsync before the L2 tables are written.  2: freed clusters may be used
 * again at once.  3: L2 tables are made durable before refcounts are written.
 * 4: new L2 tables are not noted in the crash log.  5: the log forgets records before
 * they are in the tables.  6: it is replayed after a power loss, too. */
extern unsigned qcow2_test_break_order;

#endif
