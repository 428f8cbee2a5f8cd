// SPDX-License-Identifier: BSD-3-Clause
/* live-regions: which regions of a disk were written since the bits were last made durable.
 *
 * A region is marked durably before its first write; writes that come meanwhile share the
 * next write of the marks.  A region that had no write for live_keep sweeps is un-marked: its bits
 * are made durable first (live_sync()), then the marks are written without it.
 *
 *	want       what the next write of the marks has
 *	durable    what storage has for sure, also while a write is under way
 *	dropping   taken out of want after the sync under way, unless written to meanwhile
 *	hot        in want and durable, not dropping, and written to since the last sweep
 *
 * A writer sets its bits and only then looks at the marks, without a suspend between:  so when
 * it finds its region marked, a sync that lets the region go begins later and has the bits.
 *
 * Each write of the marks costs a guest's write its time.  So regions come and go in groups of
 * 2^level neighbours: marked together, and un-marked when none of them had a write.  Many
 * writes of the marks between two sweeps make the groups larger, few make them smaller.  Who
 * writes all over a disk pays some thirty of them at first and then a few in a minute, however
 * seldom he comes by the same place.  A level that turned out too low is tried again later and
 * later.
 *
 * The marks are one sector: a write of them is there as a whole or not at all.
 */
#include "bitmaps/live-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps/bits.h"
#include "common/bus-guard.h"
#include "common/log.h"

#define WORDS (REGIONS_MAX / 64)
#define MANY 8u				/* writes of the marks that make groups larger … */
#define STEP 3u				/* … by this much */
#define LEVEL_MAX 9u			/* eight groups */
#define PATIENCE_MIN 2u			/* sweeps */
#define PATIENCE_MAX 128u

unsigned live_keep = 6;

static unsigned region_bits_for(uint64_t size)
{
	unsigned bits = REGION_BITS_MIN;

	while (bits < 52 && size > (uint64_t)REGIONS_MAX << bits)
		bits++;
	return bits;
}

static void put_head(struct live_regions *r, const uint8_t *session)
{
	struct regions_head h = { .version = LIVE_VERSION, .order = LIVE_ORDER, .region_bits = r->bits };

	memcpy(h.magic, REGIONS_MAGIC, sizeof(h.magic));
	memcpy(h.session, session, LIVE_SESSION);
	h.crc = live_crc(&h, offsetof(struct regions_head, crc));
	memcpy(r->block, &h, sizeof(h));
}

static int make_file(struct live *l, struct live_regions *r, struct io_beside *file)
{
	int rc = io_beside_make(l->image, l->dir, LIVE_REGIONS_SUFFIX, IO_DIRECT, REGIONS_BYTES, file);

	if (!rc)
		rc = io_fsync(file->f);		/* its blocks are known to be written */
	memcpy(r->block + REGIONS_MARKS, r->want, sizeof(r->want));
	if (!rc)
		rc = io_pwrite(file->f, r->block, REGIONS_BYTES, 0, IO_DSYNC);
	if (!rc)
		rc = io_beside_keep(file);
	if (rc)
		io_beside_end(file, false);
	return rc;
}

int regions_start(struct live *l, bool all, struct live_regions **out)
{
	struct live_regions *r = calloc(1, sizeof(*r));
	int rc = -ENOMEM;

	if (r)
		r->block = aligned_alloc(REGIONS_BYTES, REGIONS_BYTES);
	if (r && r->block) {
		memset(r->block, 0, REGIONS_BYTES);
		r->bits = region_bits_for(l->node->size);
		r->patience = PATIENCE_MIN;
		memset(r->want, all ? 0xff : 0, sizeof(r->want));
		put_head(r, l->session);
		rc = make_file(l, r, &r->file);
		memcpy(r->durable, r->want, sizeof(r->durable));
	}
	if (rc) {
		free(r ? r->block : NULL);
		free(r);
		return rc;
	}
	*out = r;
	return 0;
}

void regions_end(struct live_regions *r, bool remove)
{
	io_beside_end(&r->file, remove);
	free(r->block);
	free(r);
}

int regions_read(struct io_file *image, const char *dir, const uint8_t *session,
		 struct live_marks *m, const char **why)
{
	uint8_t *p = aligned_alloc(REGIONS_BYTES, REGIONS_BYTES);
	struct io_beside file;
	struct regions_head h;
	ssize_t n;
	int rc;

	if (!p)
		return -ENOMEM;
	*why = "its log of regions cannot be read";
	rc = io_beside_open(image, dir, LIVE_REGIONS_SUFFIX, &file);
	n = rc ? rc : io_pread(file.f, p, REGIONS_BYTES, 0);
	io_beside_end(&file, false);
	rc = n < 0 ? (int)n : n == REGIONS_BYTES ? 0 : -EINVAL;
	if (!rc) {
		memcpy(&h, p, sizeof(h));
		if (memcmp(h.magic, REGIONS_MAGIC, sizeof(h.magic)) || h.version != LIVE_VERSION ||
		    h.order != LIVE_ORDER || h.crc != live_crc(&h, offsetof(struct regions_head, crc)) ||
		    memcmp(h.session, session, LIVE_SESSION) || h.region_bits < REGION_BITS_MIN ||
		    h.region_bits > 52)
			rc = -EINVAL;
		m->region_bits = h.region_bits;
		memcpy(m->v, p + REGIONS_MARKS, sizeof(m->v));
	}
	free(p);
	return rc == -ENOENT ? -EINVAL : rc;
}

/* One write of what is wanted now; the caller saw that none is under way. */
static int write_marks(struct live_regions *r)
{
	uint64_t now[WORDS];
	int rc;

	r->writing = true;
	memcpy(now, r->want, sizeof(now));
	for (unsigned i = 0; i < WORDS; i++)
		r->durable[i] &= now[i];
	memcpy(r->block + REGIONS_MARKS, now, sizeof(now));
	rc = io_pwrite(r->file.f, r->block, REGIONS_BYTES, 0, IO_DSYNC);
	if (!rc)
		memcpy(r->durable, now, sizeof(now));
	r->writing = false;
	while (r->waiters.head)
		co_queue_wake_one(&r->waiters);
	return rc;
}

/* How many neighbours there are to a group. */
static uint64_t group(const struct live_regions *r)
{
	return 1ull << r->level;
}

/* A guest's write is about to wait for the marks. */
static void count_write(struct live_regions *r)
{
	r->writes++;
	if (r->writes % MANY || r->level == LEVEL_MAX)
		return;
	r->level += STEP;
	if (r->level > LEVEL_MAX)
		r->level = LEVEL_MAX;
	if (r->lowered && r->patience < PATIENCE_MAX)
		r->patience *= 2;
	r->lowered = false;
	r->calm = 0;
}

/* At a sweep.  One write of the marks now and then is what a guest does not notice. */
static void adapt(struct live_regions *r)
{
	r->calm = r->writes > 1 ? 0 : r->calm + 1;
	r->writes = 0;
	if (r->calm < r->patience)
		return;
	r->calm = 0;
	if (r->level) {
		r->level--;
		r->lowered = true;
	} else {
		r->patience = PATIENCE_MIN;
	}
}

static bool all_durable(const struct live_regions *r, uint64_t first, uint64_t last)
{
	return bits_next_clear(r->durable, first, last + 1) > last;
}

/* A disk that grew needs larger regions: all that is marked is so in the new file, too. */
static int regrow(struct live *l)
{
	struct live_regions *r = l->regions;
	unsigned bits = region_bits_for(l->node->size), shift;
	struct io_beside file;
	uint64_t old[WORDS];
	int rc;

	while (r->writing)
		co_queue_wait(&r->waiters);
	if (bits <= r->bits)
		return 0;		/* another write was faster */
	r->writing = true;
	shift = bits - r->bits;
	memcpy(old, r->want, sizeof(old));
	memset(r->want, 0, sizeof(r->want));
	memset(r->durable, 0, sizeof(r->durable));
	memset(r->hot, 0, sizeof(r->hot));
	memset(r->idle, 0, sizeof(r->idle));
	memset(r->dropping, 0, sizeof(r->dropping));
	for (uint64_t i = 0; i < REGIONS_MAX; i++)
		if (bits_test(old, i))
			bits_set(r->want, i >> shift, i >> shift);
	r->bits = bits;
	put_head(r, l->session);
	rc = make_file(l, r, &file);
	if (!rc) {
		memcpy(r->durable, r->block + REGIONS_MARKS, sizeof(r->durable));
		io_beside_end(&r->file, false);
		r->file = file;
	}
	r->writing = false;
	while (r->waiters.head)
		co_queue_wake_one(&r->waiters);
	return rc;
}

static void mark_slowly(struct live *l, uint64_t off, uint64_t len)
{
	struct live_regions *r = l->regions;
	uint64_t first, last;
	int rc = 0;

	for (;;) {
		first = off >> r->bits;
		last = (off + len - 1) >> r->bits;
		if (last >= REGIONS_MAX && !rc) {
			rc = regrow(l);
			if (!rc)
				continue;
		}
		if (rc || l->failed)
			break;
		bits_set(r->want, first, last);
		bits_clear(r->dropping, first, last);
		if (all_durable(r, first, last))
			break;
		bits_set(r->want, align_down(first, group(r)), align_up(last + 1, group(r)) - 1);
		if (r->writing) {
			co_queue_wait(&r->waiters);
		} else {
			count_write(r);
			rc = write_marks(r);
		}
	}
	if (rc && !l->failed)
		live_fail(l, rc);
	if (l->failed)
		return;
	bits_set(r->hot, first, last);
	live_arm(l);
}

/* Nobody ends L meanwhile. */
static void mark_slow(struct live *l, uint64_t off, uint64_t len)
{
	l->marking++;
	mark_slowly(l, off, len);
	if (--l->marking)
		return;
	while (l->swept.head)
		co_queue_wake_one(&l->swept);
}

void live_mark(struct node *n, uint64_t off, uint64_t len)
{
	struct live *l = n->live;
	uint64_t first, last;

	if (__builtin_expect(!l->regions, 0))
		return;			/* it is being made */
	if (__builtin_expect(l->lost != bus_guard_lost(), 0) && live_lost(l) && !l->failed)
		live_fail(l, -EIO);
	first = off >> l->regions->bits;
	last = (off + len - 1) >> l->regions->bits;
	if (__builtin_expect(first == last && first < REGIONS_MAX && bits_test(l->regions->hot, first), 1))
		return;
	if (len && !l->failed && live_test_break_order != 2)
		mark_slow(l, off, len);
}

bool regions_any(const struct live_regions *r)
{
	for (unsigned i = 0; i < WORDS; i++)
		if (r->want[i])
			return true;
	return false;
}

static void grow_older(struct live_regions *r)
{
	for (unsigned i = 0; i < REGIONS_MAX; i++) {
		if (bits_test(r->hot, i) || !bits_test(r->want, i))
			r->idle[i] = 0;
		else if (r->idle[i] < live_keep)
			r->idle[i]++;
	}
	memset(r->hot, 0, sizeof(r->hot));
}

/* The group of regions from FIRST on: all that are marked had no write for long. */
static bool is_cold(const struct live_regions *r, uint64_t first)
{
	for (uint64_t i = first; i < first + group(r); i++)
		if (bits_test(r->want, i) && r->idle[i] < live_keep)
			return false;
	return true;
}

bool regions_begin_drop(struct live_regions *r)
{
	bool any = false;

	grow_older(r);
	adapt(r);
	for (uint64_t i = 0; i < REGIONS_MAX; i += group(r))
		if (is_cold(r, i))
			bits_set(r->dropping, i, i + group(r) - 1);
	for (unsigned i = 0; i < WORDS; i++) {
		r->dropping[i] &= r->want[i];
		any = any || r->dropping[i];
	}
	return any;
}

int regions_finish_drop(struct live_regions *r)
{
	for (unsigned i = 0; i < WORDS; i++)
		r->want[i] &= ~r->dropping[i];
	memset(r->dropping, 0, sizeof(r->dropping));
	while (r->writing)
		co_queue_wait(&r->waiters);
	return write_marks(r);
}

void regions_mark_all(struct live_regions *r)
{
	if (!r)
		return;
	memset(r->want, 0xff, sizeof(r->want));
	while (r->writing)
		co_queue_wait(&r->waiters);
	write_marks(r);
}
