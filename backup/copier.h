/* SPDX-License-Identifier: BSD-3-Clause */
/* copier: the one engine that moves blocks (DESIGN.md, idea 4).
 *
 * It drains a bitmap of what is left, from a source (a node, or a view of one) to a
 * target node, with several requests at a time, a bounded memory, a rate limit and an
 * error policy, and says how far it is.  Backup, and later mirror, stream, commit,
 * convert and restore differ in where the bitmap comes from and what feeds it.
 *
 * It runs on the source's loop; the target may belong to another one.  Under the
 * blocking table there is no job and one request at a time.
 */
#ifndef MERINO_COPIER_H
#define MERINO_COPIER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct bitmap;
struct copier;
struct job;
struct node;
struct view;

/* What is done about a failed request (QEMU's BlockErrorAction, decided by the owner):
 * the run ends with it; it is left out, still counted as left; it is tried again, after a
 * while (and after a pause, if the owner asked for one). */
enum copier_action { COPIER_REPORT, COPIER_IGNORE, COPIER_RETRY };

struct copier_options {
	struct job *job;		/* pause points and progress (bytes); NULL: none */
	struct node *source;		/* the guest's disk; read when VIEW is NULL */
	/* Of SOURCE: read, and released as it is copied.  Has all that is to be copied, in
	 * whole granules of the copier; listens to it, until copier_free(). */
	struct view *view;
	struct node *target;
	uint32_t granularity;		/* bytes that are copied whole; 0: 64 KiB or the target's
					 * cluster size, if that is larger */
	uint64_t speed;			/* bytes a second; 0: no limit */
	unsigned workers;		/* requests at a time; 0: 16 */
	uint64_t max_chunk;		/* bytes of one request at most; 0: as the copier thinks best */
	bool compress;			/* whole clusters, NODE_COMPRESS */
	bool mark_zeroes;		/* where the target has nothing is not zero: see NODE_MARK */
	bool target_is_zero;		/* what is zero need not be written */
	bool discard_source;		/* after it was copied */
	bool one_layer;			/* sync=top: only what the source node itself has */
	/* Requests failed: the first of them.  None is in flight.  May suspend (pauses the
	 * job, for "stop").  NULL: report. */
	enum copier_action (*failed)(void *arg, int rc, bool is_read, uint64_t off, uint64_t len);
	void *arg;
};

int copier_new(const struct copier_options *o, struct copier **out, struct error *err);
void copier_free(struct copier *c);		/* NULL is fine */

/* More to copy; any time on its loop.  Granules that are touched are copied whole.  What a
 * write to the source adds is added after the write. */
void copier_add(struct copier *c, uint64_t off, uint64_t len);
void copier_add_bitmap(struct copier *c, const struct bitmap *b);
/* What is still to be copied: bytes, and whether this is. */
uint64_t copier_left(const struct copier *c);
bool copier_wants(const struct copier *c, uint64_t off);
/* Dirties in B what was not copied (bitmap-mode, a backup that resumes). */
void copier_left_to_bitmap(const struct copier *c, struct bitmap *b);

/* Copies until nothing is left, the job is cancelled (-ECANCELED) or a failure is reported;
 * the target is flushed then. */
int copier_run(struct copier *c, struct error *err);
/* What is left although the job was cancelled, for NS at most (-ETIMEDOUT).  A target that
 * does not answer ends it. */
int copier_finish(struct copier *c, uint64_t ns, struct error *err);

/* A flush of the last run failed: what was copied is not safe, and a later flush says nothing. */
bool copier_lost(const struct copier *c);

void copier_set_speed(struct copier *c, uint64_t bytes_per_second);

#endif
