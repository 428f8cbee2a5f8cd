/* SPDX-License-Identifier: BSD-3-Clause */
/* copier-int: what the copier's files tell each other.
 *
 *	copier.c	made, fed, asked, run: the coordinator and its workers
 *	copier-pick.c	what is copied next; the source's map, so that holes are never read
 *	copier-move.c	one range: read, look for zeroes, write
 *	copier-pace.c	how fast: the limit
 *	copier-manners.c  how much at a time: what the guest leaves
 */
#ifndef MERINO_COPIER_INT_H
#define MERINO_COPIER_INT_H

#include "backup/copier.h"
#include "backup/job.h"
#include "backup/manners.h"
#include "backup/view.h"
#include "bitmaps/bitmap-int.h"
#include "common/co.h"
#include "common/loop.h"
#include "format/node.h"

#define COPIER_MEMORY (16u << 20)	/* bytes of all buffers of a copier */
#define COPIER_CHUNK_MAX (1u << 20)	/* of one request, when nobody says, */
#define COPIER_CHUNK_CACHED (256u << 10)	/* and into the page cache */
#define COPIER_BLOCK (64u << 10)	/* zeroes are looked for in blocks of this size */
#define COPIER_WORKERS 16u
#define COPIER_WORKERS_MAX 64u
#define COPIER_BITS_MAX (64ull << 20)	/* bytes of the bitmap of what is left */
#define COPIER_CLUSTER_MAX (2u << 20)	/* the largest unit that can be compressed */
#define COPIER_UNMAPPED (128u << 10)	/* a run of so many bytes is not looked up in the map */
#define COPIER_SHORT_WRITE (128u << 10)	/* bytes that a processor copies in some 30 us */
#define COPIER_UNFLUSHED (64u << 20)	/* bytes in the page cache after which it is flushed */
#define COPIER_HOT 64u			/* kept blocks that are remembered */
#define COPIER_EXTENTS 1024u		/* of the source's map that are kept */
#define COPIER_ZERO_MAX (64ull << 30)	/* longest request for zeroes */

enum copier_kind {
	COPIER_DATA,
	COPIER_ZERO,			/* reads as zeroes */
	COPIER_NOTHING,			/* not in the layer that is copied */
};

/* What a worker is at.  Its bits are not set in ->left any more; when they are, the
 * range is to be copied once more, after this. */
struct copier_task {
	struct copier_task *next;
	uint64_t off, len;		/* whole granules */
	uint64_t flight;		/* bytes that it counts in ->in_flight */
	uint64_t begun;			/* when, ns */
};

/* Runs of a node from OFF on, as they were looked up. */
struct copier_map {
	uint64_t off, end;		/* what the runs cover; equal: nothing */
	struct extents x;
	uint32_t at;			/* where the last look-up ended: x.v[at] … */
	uint64_t at_off;		/* … begins here */
	uint64_t ask;			/* how much the next look-up asks for */
	uint64_t changes;		/* how often it was dropped */
};

struct copier {
	struct copier_options o;
	uint64_t size;			/* bytes of the source */
	uint64_t block;			/* bytes: what is zero as a whole is not written as data */
	uint64_t chunk;			/* bytes of one buffer */
	unsigned workers;		/* at most at a time */
	bool target_direct;		/* no page cache holds anything back */
	bool target_tells;		/* its map tells zeroes from nothing; a server's does not */
	struct bitmap left;		/* to be copied */
	struct bitmap skipped;		/* failed, and its owner ignores that; not in ->left */
	struct copier_task *busy;
	uint64_t cursor;		/* where the search in ->left goes on */
	uint64_t hot[COPIER_HOT];	/* offsets that the view has kept: they cost memory … */
	unsigned hot_first, n_hot;	/* … a ring, oldest first */
	bool hot_next;			/* it is their turn */
	uint64_t done;			/* bytes copied, all in all */
	struct copier_map source, target;
	struct co_mutex picking, mapping;
	uint64_t zero_len;		/* how long requests for zeroes are at present */

	struct co_queue own_wake, *wake;	/* the coordinator, sleepers: the job's, if any */
	struct co_queue idle;		/* workers that find nothing at present */
	unsigned running;		/* workers */
	bool stop;			/* they are to end */
	bool over;			/* so is copier_finish() */
	struct copier_failure {
		int rc;			/* 0: none.  The first since it was looked at */
		bool is_read;
		uint64_t off, len;
	} failure;
	uint64_t unflushed;		/* bytes of data since the last flush was begun */
	bool flushing;
	int flush_rc;			/* of one that failed: the run ends with it */
	uint64_t retry_ns;		/* how long the next retry waits */

	void **buffers;			/* free ones, the last used on top */
	unsigned n_buffers, made_buffers;

	uint64_t in_flight;		/* bytes of data that workers are at */
	struct manners manners;		/* towards guests, */
	uint64_t piece;			/* whose requests of ours have so many bytes */

	uint64_t next_ns;		/* when the limit lets the next request go */
	uint64_t limits;		/* how often the limit was changed */
};

/* -- copier-pick.c */

/* Takes what is to be copied next into T.  -EAGAIN: there is nothing but what is being
 * worked on.  Other errors: the source's map could not be read (T says where).  May
 * suspend. */
int copier_pick(struct copier *c, struct copier_task *t);
/* The view's listener: [off, off+len) was kept. */
void copier_kept(void *arg, uint64_t off, uint64_t len);
/* What [off, …) is, and for how many bytes (at most MAX) that holds. */
int copier_source_kind(struct copier *c, uint64_t off, uint64_t max, enum copier_kind *kind,
		       uint64_t *len);
void copier_target_kind(struct copier *c, uint64_t off, uint64_t max, enum copier_kind *kind,
			uint64_t *len);
bool copier_map_tells(const struct node *target);
/* Forgets what was looked up: something in [off, off+len) has changed. */
void copier_map_drop(struct copier_map *m, uint64_t off, uint64_t len);

/* -- copier.c */

/* The file at the bottom that holds N's data; NULL: it is somewhere else. */
struct io_file *copier_storage(const struct node *n);

/* -- copier-move.c */

/* Copies T, or its beginning when the copier is to stop: T->len says how much.  0 or
 * -errno; F says which side failed and where. */
int copier_move(struct copier *c, struct copier_task *t, struct copier_failure *f);
int copier_flush(struct copier *c);
/* On the target's loop, once the workers have ended: its file is anybody's again. */
void copier_write_inline(void *c);
void copier_buffers_free(struct copier *c);

/* -- copier-pace.c */

/* Before each pick, with ->picking held: waits as long as the limit says.  Returns early
 * when the copier is to stop. */
void copier_pace(struct copier *c);
/* LEN bytes were taken. */
void copier_paced(struct copier *c, uint64_t len);
/* The longest task at present, bytes. */
uint64_t copier_reach(const struct copier *c, enum copier_kind kind);
/* Sleeps; a wake-up ends it when the copier is to stop or its limit was changed. */
void copier_nap(struct copier *c, uint64_t ns);

/* -- copier-manners.c */

/* Before each pick, with ->picking held: waits as long as the guest needs the room. */
void copier_make_room(struct copier *c);
/* The longest request for data at present, bytes. */
uint64_t copier_piece(const struct copier *c);
/* Around each request for data: how long it takes says how long the next ones may be. */
struct copier_watch {
	uint64_t begun;
	unsigned turn;
};
static inline struct copier_watch copier_watch(void)
{
	return (struct copier_watch){ .begun = loop_now(), .turn = loop_self() ? loop_turn() : 0 };
}
void copier_took(struct copier *c, struct copier_watch *w, uint64_t len, bool is_read);

/* Whether the workers should end: the job is cancelled or to be paused, something failed. */
bool copier_should_stop(const struct copier *c);

#endif
