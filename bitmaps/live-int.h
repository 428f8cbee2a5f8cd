/* SPDX-License-Identifier: BSD-3-Clause */
/* live-int: what the files of live bitmaps tell each other.
 *
 *	live.c		the file: areas, changes, sync
 *	live-table.c	tables as bytes: written and checked
 *	live-find.c	what an earlier process left
 *	live-regions.c	which regions were written lately
 */
#ifndef MERINO_LIVE_INT_H
#define MERINO_LIVE_INT_H

#include "bitmaps/live.h"
#include "common/loop.h"

#define LIVE_TABLE_MAX (1u << 20)	/* bytes of a table that is believed */
#define LIVE_ENTRIES_MAX 4096u
#define LIVE_PAGE 4096u

#define REGIONS_MAGIC "MERINOLR"
#define REGIONS_MAX 4096u
#define REGION_BITS_MIN 16u
#define REGIONS_BYTES 4096u
#define REGIONS_MARKS 512u		/* where they are in the file */

struct regions_head {
	char magic[8];
	uint32_t version, order;
	uint8_t session[LIVE_SESSION];
	uint32_t region_bits, crc;
};

_Static_assert(sizeof(struct regions_head) == 40, "as documented");

/* As found in a file. */
struct live_marks {
	unsigned region_bits;
	uint64_t v[REGIONS_MAX / 64];
};

struct live_regions {
	struct io_beside file;
	unsigned bits;			/* log2 of a region's bytes */
	uint64_t hot[REGIONS_MAX / 64];	/* safe, and written to since the last sweep */
	uint8_t idle[REGIONS_MAX];	/* sweeps since the last write */
	uint64_t want[REGIONS_MAX / 64];	/* what the next write of the marks has */
	uint64_t dropping[REGIONS_MAX / 64];	/* will not be wanted after the sync under way */
	uint64_t durable[REGIONS_MAX / 64];	/* what storage has for sure */
	uint8_t *block;			/* REGIONS_BYTES, aligned: the file's contents */
	unsigned level;			/* log2 of the regions that come and go together */
	unsigned writes;		/* of the marks, for guests, since the last sweep */
	unsigned calm, patience;	/* sweeps without many; how many of these lower the level */
	bool lowered;			/* since it was raised */
	bool writing;
	struct co_queue waiters;	/* for the write under way */
};

/* An area that no bitmap has; to be used again when table SEQ is durable. */
struct live_free {
	struct live_free *next;
	uint64_t off, len, seq;
};

/* An empty area that is there for who needs one with the gates closed. */
struct live_spare {
	struct live_spare *next;
	uint64_t off, len, *bits;
};

struct live {
	struct node *node;
	struct io_file *image;		/* a reference */
	char *dir;			/* NULL: beside it */
	enum live_kind kind;
	uint8_t session[LIVE_SESSION];
	struct io_beside file;
	uint8_t *mem;			/* head and mapped tables */
	uint64_t end;			/* of the file, bytes */
	uint32_t table_bytes;
	uint64_t seq;			/* of the last mapped table */
	uint64_t durable;		/* of the last durable one */
	unsigned slot;			/* where the next durable one goes: 0 or 1 */
	struct live_table_head closing;	/* what a table says beside its entries */
	struct live_free *free;
	struct live_spare *spares;
	unsigned held;
	bool stamped;			/* since the last sync */
	bool changed;			/* while it is held */
	uint64_t lost;			/* bus_guard_lost() when it was last looked at */
	bool failed;			/* storage did: nothing is protected any more */
	struct co_mutex syncing;
	struct live_regions *regions;
	struct loop_timer timer;
	unsigned marking;		/* guests' writes that look at the regions, or wait for them */
	bool sweeping, leaving;
	struct co_queue swept;		/* waits for the end of both */
};

/* live-table.c */
uint64_t live_table_len(const struct node *n, bool *fits, uint32_t max);
/* The table of N's bitmaps at P, which has room for table_bytes. */
void live_table_write(struct live *l, uint8_t *p, uint64_t seq);
/* Whether P (MAX bytes) is a valid table; its head. */
bool live_table_valid(const uint8_t *p, uint32_t max, struct live_table_head *h);
/* The entries of a valid one, checked against a file of FILE_SIZE bytes whose areas begin at
 * FIRST; -EINVAL with WHY, -ENOMEM. */
int live_table_parse(const uint8_t *p, const struct live_table_head *h, uint64_t first,
		     uint64_t file_size, struct live_entry **v, uint32_t *n, const char **why);
uint32_t live_crc(const void *p, size_t len);

/* live-regions.c */
/* ALL: everything is marked at first. */
int regions_start(struct live *l, bool all, struct live_regions **out);
void regions_end(struct live_regions *r, bool remove);
int regions_read(struct io_file *image, const char *dir, const uint8_t *session,
		 struct live_marks *m, const char **why);
/* The regions that get no write are taken out of what is wanted … */
bool regions_begin_drop(struct live_regions *r);
/* … and, when the bits are durable, off storage. */
int regions_finish_drop(struct live_regions *r);
bool regions_any(const struct live_regions *r);
/* Everything is marked: what can be done when nothing else can. */
void regions_mark_all(struct live_regions *r);

/* live.c: storage failed. */
void live_fail(struct live *l, int rc);
/* Whether pages of the mapped file are gone. */
bool live_lost(struct live *l);
/* Something is to be done soon. */
void live_arm(struct live *l);

#endif
