/* SPDX-License-Identifier: BSD-3-Clause */
/* live: the bits of persistent bitmaps in a mapped file beside the image, so that they
 * outlive the process, and a log of regions, so that they outlive the machine.
 *
 * The bytes are in doc/formats/bitmaps-live.md.  The file has a head, four tables (which
 * bitmaps there are, their flags, where their bits are) and areas of bits.  `bitmap->bits`
 * is a mapping of its area.
 *
 * Death of the process.  Two tables are mapped: a change writes the older one, whole, and
 * its checksum makes it count.  So at any instruction the file says exactly which bits are
 * set in which bitmaps.  It is believed by a process of the same boot.
 *
 * Death of the machine.  Two more tables are written durably, one after the other, after
 * what they refer to is durable (live_sync()).  One rule makes this right: *an area that a
 * durable table refers to only ever gets bits set*, so that any mixture of its old and new
 * sectors covers what was written before the sync.  Who clears a bitmap gives it another
 * area.  What was written after the sync is in a region that is marked (live-regions.c).
 * Recovered = bits of the durable table's areas, united with the marked regions for each
 * bitmap that records.
 *
 * A change (added, renamed, cleared, enabled, …) is in the mapped table at once, and
 * durable after the next live_sync(), which who answers a client calls before he answers
 * (bitmaps_commit()).  Several changes between live_hold() and live_release() are one.
 *
 * When storage fails, or is full, bitmaps lose this protection, never the guest a write.
 */
#ifndef MERINO_LIVE_H
#define MERINO_LIVE_H

#include "bitmaps/bitmap-int.h"
#include "common/io-beside.h"

#define LIVE_MAGIC "MERINOLB"
#define LIVE_VERSION 1u
#define LIVE_ORDER 0x01020304u		/* reads otherwise on a machine of the other byte order */
#define LIVE_HEAD 4096u
#define LIVE_SESSION 16u
#define LIVE_SUFFIX "bitmaps"
#define LIVE_REGIONS_SUFFIX "bitmaps-regions"

#define LIVE_STAMP 2048u		/* where in the head the time of our last write is: live_stamp() */

enum live_kind {
	LIVE_QCOW2 = 1,
	LIVE_RAW = 2,			/* the sidecar (store-raw.c) of a raw node */
	LIVE_FILE = 3,			/* … of a file node alone */
};

/* What a foreign writer changes in an image (store-raw.c). */
struct live_image {
	uint64_t size;			/* bytes */
	int64_t mark;			/* time of last write, ns; of a block device, made of its bytes */
};

struct live_head {
	char magic[8];
	uint32_t version, order, head_bytes, table_bytes;
	uint8_t boot[16];
	uint64_t dev, ino;		/* of the image's file */
	uint8_t session[LIVE_SESSION];
	uint32_t kind;			/* enum live_kind */
	uint32_t crc;			/* of what is before it */
};

enum live_table_flags {
	LIVE_CLOSED = 1,		/* raw: closed cleanly, nothing is marked */
	LIVE_INCOMPLETE = 2,		/* there are bitmaps that found no room in the table */
};

/* At LIVE_HEAD + i * table_bytes: 0 and 1 are mapped, 2 and 3 durable. */
struct live_table_head {
	uint64_t seq;			/* the valid table with the highest one counts */
	uint32_t bytes;			/* of all of it */
	uint32_t crc;			/* of all of it, with 0 here */
	uint32_t entries, flags;
	uint64_t disk_size;
	struct live_image image;	/* when it was closed (LIVE_CLOSED) */
	uint64_t reserved[2];
};

enum live_entry_flags { LIVE_RECORDING = 1, LIVE_INCONSISTENT = 2, LIVE_SHRUNK = 4 };
enum live_area_kind { LIVE_DIRTY = 1 };

struct live_entry_head {
	uint64_t off, room;		/* of its area, multiples of 4096; 0, 0 when inconsistent */
	uint64_t size;			/* bytes of the disk that it covers */
	uint32_t flags;
	uint8_t granularity_bits, kind;	/* one of an unknown kind is left alone */
	uint16_t name_len;
	uint64_t reserved;
	/* The name, zeroes up to a multiple of 8. */
};

_Static_assert(sizeof(struct live_head) == 80, "as documented");
_Static_assert(sizeof(struct live_table_head) == 64, "as documented");
_Static_assert(sizeof(struct live_entry_head) == 40, "as documented");

/* --- what an earlier process left --------------------------------------------------- */

struct live_entry {
	struct live_entry_head h;
	char name[BITMAP_NAME_MAX + 1];
};

/* A file that was read and checked: every number in it is in its bounds. */
struct live_found {
	struct io_beside file;
	struct live_head head;
	struct live_table_head table;
	int64_t stamp;			/* of a raw image: see live_stamp() */
	bool same_boot;			/* the bits are exact; else marks are to be added */
	struct live_entry *v;		/* table.entries of them, names are distinct */
	struct live_marks *marks;	/* NULL: none */
};

/* Looks for the file of IMAGE.  0; -ENOENT; -EINVAL and others with the reason in WHY, which is
 * a text for a log line: there is one that cannot be used.  SESSION: what it must
 * belong to (NULL: any).  -EMEDIUMTYPE: it is of another KIND. */
int live_find(struct io_file *image, const char *dir, enum live_kind kind, const uint8_t *session,
	      struct live_found *f, const char **why);
/* B (of the same granularity, clean) gets the bits of entry I.  *BUDGET: see store-int.h. */
int live_found_bits(struct live_found *f, uint32_t i, struct bitmap *b, uint64_t *budget);
/* The entry called NAME, or -1. */
int64_t live_found_name(const struct live_found *f, const char *name);
/* It goes, and is not found again.  It is closed later. */
void live_found_remove(struct live_found *f);
void live_found_end(struct live_found *f);	/* closes it; one of zeroes is fine */

/* --- the file of the open image: node->live -------------------------------------------- */

/* Makes the file, with all persistent bitmaps of N, durably, in the place of an older one.
 * SESSION (LIVE_SESSION bytes) binds it to what the caller writes into the image.  IN_USE:
 * guests may be writing, so all regions are marked at first and none of them waits.  On
 * failure N has none, and the bits are in memory. */
int live_start(struct node *n, struct io_file *image, const char *dir, enum live_kind kind,
	       const uint8_t *session, bool in_use, struct error *err);
/* Ends it.  REMOVE: the bits are elsewhere; else the next process finds them.  Bitmaps keep
 * their bits.  None is fine. */
void live_end(struct node *n, bool remove);
/* Raw, before live_end(n, false): all is durable, and nothing will be written. */
int live_close_clean(struct node *n, const struct live_image *image);
/* The image is written to now, or was just now: kept where a process that comes after a
 * crash finds it, to compare with the image's time of last write.  Does not suspend. */
void live_stamp(struct node *n);
int64_t live_now(void);			/* ns since 1970, as file systems count */
int live_new_session(uint8_t *id);
/* Room in the tables for one more bitmap, whose name has NAME_LEN bytes. */
bool live_fits(const struct node *n, size_t name_len);
/* All bits go to memory, then it ends. */
void live_give_up(struct node *n);
bool live_is_on(const struct node *n);
/* B's bits survive a crash. */
bool live_has(const struct bitmap *b);
const uint8_t *live_session(const struct node *n);

/* With the gates open: an empty area of LEN bytes is made, so that live_add() or live_clear()
 * of a bitmap with as many finds it and does not suspend.  What is left goes with
 * live_unreserve().  Without a file: nothing. */
void live_reserve(struct node *n, uint64_t len);
void live_unreserve(struct node *n);
/* B's bits go into the file (0), or stay in memory (-errno, with a warning).  May suspend. */
int live_add(struct bitmap *b);
/* B's bits go out of it, into nothing: the bitmap is about to be freed, or inconsistent. */
void live_drop(struct bitmap *b);
/* B is not persistent any more: its bits go to memory. */
void live_let_go(struct bitmap *b);
/* B gets another, empty area; where there is no room for one, its bits leave the file.  May
 * suspend. */
void live_clear(struct bitmap *b);
/* Room for SIZE bytes of disk (b->size is the caller's to set).  May suspend. */
int live_resize(struct bitmap *b, uint64_t size);
/* A flag, a name or a size differs: writes the mapped table, unless it is held.  Does not
 * suspend.  Without a file: nothing. */
void live_changed(struct node *n);
void live_hold(struct node *n);
void live_release(struct node *n);
/* All that was changed before the call is durable when it returns.  May suspend.  Without a
 * file: 0. */
int live_sync(struct node *n);
/* What the daemon does every few seconds: sync, and un-mark regions without a write
 * since the last time.  May suspend. */
void live_sweep(struct node *n);
/* The node leaves its loop, and is on another one. */
void live_leave(struct node *n);
void live_moved(struct node *n);

/* Before a write of [off, off+len), whose bits are set already: its regions are marked
 * durably when it returns.  May suspend. */
void live_mark(struct node *n, uint64_t off, uint64_t len);

extern uint32_t live_table_bytes;	/* tests have small ones */
extern unsigned live_keep;		/* sweeps, of 5 s, that a region without a write stays marked */
/* For tests that prove that a wrong order is noticed; 0 otherwise.  1: regions are un-marked
 * before the bits are durable.  2: regions are not marked.  3: a bitmap is cleared where
 * it is, and areas are used again at once.  4: a durable table is written before the bits. */
extern unsigned live_test_break_order;

#endif
