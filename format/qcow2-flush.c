// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-flush: the order on storage.
 *
 * What is promised.  After a power loss at any instant the image is consistent,
 * leaked clusters at worst; what was written before a flush that succeeded is
 * there; and what was never overwritten is there, also where it lies in a backing
 * image: no L2 entry is on storage before the whole cluster that it points to.
 *
 * What storage may do.  A write is on its way as soon as it is handed to the file
 * and may reach storage at any time, in any order, sector by sector, until an
 * fsync that began after it ended.  So an entry must not be handed to the file
 * before what it relies on is known to be durable.
 *
 * In memory, while requests run:
 *
 *	allocate	refcount 0 -> 1 in a refcount slice
 *	new L2 table	refcount; zeroes written to its cluster; L1 entry in memory
 *	first write	refcount; data and the rest of the cluster written; then
 *			qcow2_publish(): the L2 entry in its slice
 *	discard, zero	L2 entry in its slice; the cluster goes to the list FREED
 *
 * A flush; one runs at a time, and all who ask while it runs share the next one:
 *
 *	1  copy the dirty L2 slices and L1 sectors as they are now.  Their data was
 *	   written before they were published, hence before now.  Then write the
 *	   dirty refcount slices: they count everything that the copies refer to.
 *	2  fsync.  Data, edges, refcounts and zeroed tables are durable.
 *	3  write the copies.  What has changed since is dirty again, for the next one.
 *	   The kernel has them now: the crash log (qcow2-crashlog.h) forgets what was
 *	   noted before step 1.
 *	4  fsync, when a guest asked for durability.
 *	5  clusters that nothing on storage refers to any more are given back: their
 *	   storage is discarded, then their refcount is lowered in memory, and from
 *	   then on they may be taken.
 *
 * A new L2 table and its slices go out in the same step 3, in any order: the table
 * is zeroes until a slice is there, which is what the L1 entry 0 meant as well, and
 * both are backed by what step 2 made durable.
 *
 * Freed clusters.  FREED -(a step 3 that wrote the entry without them)-> CLEARED
 * -(an fsync that began after that)-> step 5.  As refcounts are lowered only then,
 * a refcount slice is safe to write at any time, and a cluster is never in the
 * hands of two owners, on storage, at one time.
 *
 * When the L2 cache is smaller than the tables and half dirty, a flush of steps 1
 * to 3 runs in the background: thousands of allocations share two passes over the
 * tables and one fsync.  The other half of the cache goes on being used meanwhile.
 *
 * A failed fsync is final.  The kernel reports it once and forgets what it lost,
 * so every later flush, and every write that needs a new mapping, fails with -EIO
 * until the image is opened anew.  A failed write of a table (a full disk) is not:
 * its slices stay dirty, and the next flush tries again.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

/* Freed clusters that wait for a flush before one is started for them. */
#define FREED_CLUSTERS_MAX 65536u
#define WRITE_MAX (1u << 20)	/* bytes of one write of adjacent slices */
#define GIVE_BACK_MAX 2048u	/* clusters that are given back at a stroke */

unsigned qcow2_test_break_order;

/* Piece of a table as it was in step 1. */
struct copy {
	uint64_t host;
	uint32_t len;
	const uint8_t *from;
	struct slice *slice;		/* NULL: of the L1 table */
	uint32_t l1_sector;
};

struct snapshot {
	struct copy *v;			/* sorted by host offset */
	uint32_t n;
	uint8_t *bytes;			/* the copies, in the same order */
	struct host_runs freed;		/* no longer referred to by these copies */
	uint64_t log_sealed;		/* records of the crash log that they cover */
};

/* Who needs CLUSTERS clusters at HOST no longer. */
static int runs_add(struct host_runs *h, uint64_t host, uint64_t clusters)
{
	struct host_run *v;
	size_t max = h->max ? 2 * h->max : 64;

	if (h->n == h->max) {
		v = realloc(h->v, max * sizeof(*v));
		if (!v)
			return -ENOMEM;
		h->v = v;
		h->max = max;
	}
	h->v[h->n++] = (struct host_run){ .off = host, .count = clusters };
	h->clusters += clusters;
	return 0;
}

/* Moves all of FROM behind what TO has. */
static void runs_move(struct host_runs *to, struct host_runs *from)
{
	struct host_runs empty = { 0 };

	if (!to->n) {
		free(to->v);
		*to = *from;
		*from = empty;
		return;
	}
	for (size_t i = 0; i < from->n; i++)
		if (runs_add(to, from->v[i].off, from->v[i].count))
			log_warning("out of memory, clusters are leaked: count=%" PRIu64, from->v[i].count);
	free(from->v);
	*from = empty;
}

/* Whether HOST is where the last run of H ends, which then is longer. */
static bool runs_extend(struct qcow2 *s, struct host_runs *h, uint64_t host, uint64_t clusters)
{
	struct host_run *last = h->n ? &h->v[h->n - 1] : NULL;

	if (!last || last->off + (last->count << s->cluster_bits) != host)
		return false;
	last->count += clusters;
	h->clusters += clusters;
	return true;
}

void qcow2_unref_later(struct qcow2 *s, uint64_t host, uint64_t count)
{
	if (qcow2_test_break_order == 2) {
		qcow2_unref_now(s, host, count);
		return;
	}
	if (!runs_extend(s, &s->flush.freed, host, count) && runs_add(&s->flush.freed, host, count))
		log_warning("out of memory, clusters are leaked: count=%" PRIu64, count);
	if (s->flush.freed.clusters > FREED_CLUSTERS_MAX)
		qcow2_flush_start(s);
}

bool qcow2_is_clean(const struct qcow2 *s)
{
	return !s->l2.n_dirty && !s->l1_n_dirty && !s->flush.running && !s->flush.unsynced;
}

/* Where L2 slice NO belongs: it is in the cache, so its table exists. */
static uint64_t l2_slice_host(const struct qcow2 *s, uint64_t no)
{
	unsigned per_table = s->l1_shift - s->slice_shift;

	return (l1_entry(s, no >> per_table) & QCOW2_OFFSET) +
	       (no & ((1ull << per_table) - 1)) * s->l2.bytes;
}

static int by_host(const void *a, const void *b)
{
	const struct copy *x = a, *y = b;

	return (x->host > y->host) - (x->host < y->host);
}

static uint32_t l1_sector_len(const struct qcow2 *s, uint32_t sector)
{
	return min_u64(L1_SECTOR, s->h.l1_size * 8ull - (uint64_t)sector * L1_SECTOR);
}

/* Notes the dirty pieces and marks them as being flushed.  Nothing suspends. */
static int snapshot_list(struct qcow2 *s, struct snapshot *snap, uint64_t *bytes)
{
	uint32_t sectors = DIV_ROUND_UP(s->h.l1_size * 8ull, L1_SECTOR), n_slices;
	struct slice **slices;

	snap->v = calloc(s->l2.n_dirty + s->l1_n_dirty + 1, sizeof(*snap->v));
	if (!snap->v)
		return -ENOMEM;
	slices = cache_take_dirty(&s->l2, &n_slices);
	if (!slices && s->l2.n_dirty)
		return -ENOMEM;
	for (uint32_t i = 0; i < n_slices; i++)
		snap->v[snap->n++] = (struct copy){ .slice = slices[i], .len = s->l2.bytes,
						    .from = slices[i]->data,
						    .host = l2_slice_host(s, slices[i]->no) };
	free(slices);
	for (uint32_t i = 0; i < sectors && s->l1_n_dirty; i++) {
		if (!s->l1_dirty[i])
			continue;
		s->l1_dirty[i] = 0;
		s->l1_n_dirty--;
		snap->v[snap->n++] = (struct copy){ .l1_sector = i, .len = l1_sector_len(s, i),
						    .from = s->l1 + (uint64_t)i * L1_SECTOR,
						    .host = s->h.l1_offset + (uint64_t)i * L1_SECTOR };
	}
	for (uint32_t i = 0; i < snap->n; i++)
		*bytes += snap->v[i].len;
	return 0;
}

static void snapshot_free(struct snapshot *snap)
{
	free(snap->v);
	free(snap->bytes);
	free(snap->freed.v);
}

/* What the snapshot was for is on storage, or (FAILED) must be tried again. */
static void snapshot_end(struct qcow2 *s, struct snapshot *snap, bool failed)
{
	for (uint32_t i = 0; i < snap->n; i++) {
		struct copy *c = &snap->v[i];

		if (c->slice) {
			cache_flushed(&s->l2, c->slice, failed);
		} else if (failed && !s->l1_dirty[c->l1_sector]) {
			s->l1_dirty[c->l1_sector] = 1;
			s->l1_n_dirty++;
		}
	}
	if (!failed)
		crashlog_drop(s, snap->log_sealed);
	runs_move(failed ? &s->flush.freed : &s->flush.cleared, &snap->freed);
	snapshot_free(snap);
}

/* Step 1, first half. */
static int snapshot_take(struct qcow2 *s, struct snapshot *snap)
{
	uint64_t bytes = 0, at = 0;
	int rc = snapshot_list(s, snap, &bytes);

	runs_move(&snap->freed, &s->flush.freed);
	snap->log_sealed = crashlog_seal(s);
	if (!rc && bytes) {
		snap->bytes = aligned_alloc(4096, align_up(bytes, 4096));
		rc = snap->bytes ? 0 : -ENOMEM;
	}
	if (rc)
		return rc;
	qsort(snap->v, snap->n, sizeof(*snap->v), by_host);
	for (uint32_t i = 0; i < snap->n; i++) {
		memcpy(snap->bytes + at, snap->v[i].from, snap->v[i].len);
		snap->v[i].from = snap->bytes + at;
		at += snap->v[i].len;
	}
	return 0;
}

/* Step 3: neighbours in the file are neighbours in the copy, and go out together. */
static int snapshot_write(struct qcow2 *s, const struct snapshot *snap)
{
	int rc = 0;

	for (uint32_t i = 0, j; i < snap->n && !rc; i = j) {
		uint64_t len = snap->v[i].len;

		for (j = i + 1; j < snap->n && len < WRITE_MAX &&
		     snap->v[j].host == snap->v[i].host + len; j++)
			len += snap->v[j].len;
		rc = qcow2_file_write(s, snap->v[i].from, snap->v[i].host, len, 0);
	}
	return rc;
}

static int sync_file(struct qcow2 *s, struct host_runs *durable)
{
	struct host_runs cleared = s->flush.cleared;
	bool unsynced = s->flush.unsynced;
	int rc;

	s->flush.cleared = (struct host_runs){ 0 };
	s->flush.unsynced = false;
	rc = qcow2_sync_below(s);
	if (!rc) {
		runs_move(durable, &cleared);
		return 0;
	}
	runs_move(&s->flush.cleared, &cleared);
	s->flush.unsynced = unsynced;
	s->flush.failed = true;
	crashlog_void(s);
	log_error("fsync failed, flushes and new allocations fail until the image is opened anew: image=%s error=%s",
		  qcow2_name(s), strerror(-rc));
	return rc;
}

/* Steps 1 to 4. */
static int flush_tables(struct qcow2 *s, bool sync, struct host_runs *durable)
{
	struct snapshot snap = { 0 };
	bool late_refcounts = qcow2_test_break_order == 3;
	int rc = snapshot_take(s, &snap);
	bool tables = snap.n;

	if (!rc && !late_refcounts)
		rc = refcount_write(s);
	if (!rc && (sync || tables) && !(tables && qcow2_test_break_order == 1))
		rc = sync_file(s, durable);
	if (!rc && tables) {
		s->flush.unsynced = true;
		rc = snapshot_write(s, &snap);
	}
	snapshot_end(s, &snap, rc != 0);
	if (!rc && sync && tables)
		rc = sync_file(s, durable);
	if (!rc && late_refcounts)
		rc = refcount_write(s);
	return rc;
}

static int runs_by_off(const void *a, const void *b)
{
	const struct host_run *x = a, *y = b;

	return (x->off > y->off) - (x->off < y->off);
}

static void runs_merge(struct qcow2 *s, struct host_runs *h)
{
	size_t n = 0;

	if (!h->n)
		return;
	qsort(h->v, h->n, sizeof(*h->v), runs_by_off);
	for (size_t i = 1; i < h->n; i++) {
		if (h->v[i].off == h->v[n].off + (h->v[n].count << s->cluster_bits))
			h->v[n].count += h->v[i].count;
		else
			h->v[++n] = h->v[i];
	}
	h->n = n + 1;
}

/* How many of COUNT clusters from CLUSTER on have refcount 1, before others. */
static uint64_t last_references(struct qcow2 *s, uint64_t cluster, uint64_t count)
{
	uint64_t n = 0;
	struct slice *sl;

	for (; n < count; n++) {
		uint64_t refs;

		if (refcount_slice(s, cluster + n, &sl))
			break;
		refs = refcount_get(s, sl, cluster + n);
		cache_unpin(&s->ref, sl);
		if (refs != 1)
			break;
	}
	return n;
}

/* Step 5 for one run: there may be millions of clusters, and guests wait for the loop. */
static void give_back(struct qcow2 *s, uint64_t host, uint64_t count)
{
	while (count && !s->corrupt) {
		uint64_t n = min_u64(count, GIVE_BACK_MAX);

		if (s->node->discard_unmap) {
			n = last_references(s, host >> s->cluster_bits, n);
			if (n)
				node_discard(s->file, host, n << s->cluster_bits);
			else
				n = 1;		/* others refer to it */
		}
		if (qcow2_unref_now(s, host, n))
			return;
		s->flush.given += n;
		host += n << s->cluster_bits;
		count -= n;
		if (count && co_self())
			co_yield();
	}
}

static void give_back_all(struct qcow2 *s, struct host_runs *durable)
{
	runs_merge(s, durable);
	for (size_t i = 0; i < durable->n; i++)
		give_back(s, durable->v[i].off, durable->v[i].count);
	free(durable->v);
}

static int flush_run(struct qcow2 *s, bool sync)
{
	struct qcow2_flush *f = &s->flush;
	struct host_runs durable = { 0 };
	int rc;

	f->running = true;
	f->begun++;
	rc = f->failed ? -EIO : flush_tables(s, sync, &durable);
	if (sync) {
		f->synced = f->begun;
		f->rc = rc;
		co_queue_wake_all(&f->waiters);
	}
	give_back_all(s, &durable);
	f->running = false;
	co_queue_wake_all(&f->waiters);
	return rc;
}

int qcow2_flush_all(struct qcow2 *s)
{
	struct qcow2_flush *f = &s->flush;
	uint64_t mine = f->begun + 1;	/* the first one that begins after what was written */

	while (f->synced < mine) {
		if (f->running)
			co_queue_wait(&f->waiters);
		else
			flush_run(s, true);
	}
	return f->rc;
}

int qcow2_flush_room(struct qcow2 *s)
{
	if (s->flush.failed)
		return -EIO;
	if (!s->flush.running)
		return flush_run(s, false);
	co_queue_wait(&s->flush.waiters);
	return 0;
}

static void flush_background(void *arg)
{
	struct qcow2 *s = arg;

	flush_run(s, false);
}

void qcow2_flush_start(struct qcow2 *s)
{
	if (s->flush.running || s->flush.failed)
		return;
	if (co_self())
		co_start(flush_background, s);
	else
		flush_run(s, false);
}

void qcow2_flush_idle(struct qcow2 *s)
{
	while (s->flush.running)
		co_queue_wait(&s->flush.waiters);
}

int qcow2_flush_clean(struct qcow2 *s)
{
	struct qcow2_flush *f = &s->flush;
	int rc;

	do
		rc = qcow2_flush_all(s);
	while (!rc && (!qcow2_is_clean(s) || s->ref.n_dirty || f->freed.n || f->cleared.n));
	return rc;
}
