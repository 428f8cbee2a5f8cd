// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-pack: whole clusters are stored compressed, one behind the other.
 *
 * Packing is work for worker threads, several clusters of a request at a time.  The
 * packed bytes go where the last ones ended, so that several share a host cluster;
 * each of them counts in the refcount of every host cluster that it touches.  What
 * does not get smaller is written as it is.
 *
 *	pack.next	where the next bytes go; 0: a new cluster is needed
 *
 * A host cluster is appended to only while nobody gave up anything in it: from
 * qcow2_unref_later() on its last reference may go, and its storage be discarded,
 * any time.  So qcow2_pack_avoid() is called first, and the packing goes on in
 * another cluster.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "format/codec.h"
#include "format/fan.h"

#define WIDTH		8u	/* clusters of one request at a time */
#define INLINE_MAX	2048u	/* packing that much takes less than a change of thread */

void qcow2_pack_avoid(struct qcow2 *s, uint64_t host, uint64_t end)
{
	s->pack.avoided++;
	if (s->pack.next >= host && s->pack.next < end)
		s->pack.next = 0;
}

/* One more reference to the cluster at HOST; -ERANGE when it cannot have one more,
 * or something was given up since AVOIDED. */
static int count_once_more(struct qcow2 *s, uint64_t host, uint64_t avoided)
{
	uint64_t cluster = host >> s->cluster_bits, refs;
	struct slice *sl;
	int rc = refcount_slice(s, cluster, &sl);

	if (rc)
		return rc;
	refs = refcount_get(s, sl, cluster);
	if (!refs || refs == refcount_max(s) || s->pack.avoided != avoided)
		rc = -ERANGE;
	else
		refcount_set(s, sl, cluster, refs + 1);
	cache_unpin(&s->ref, sl);
	return rc;
}

/* A cluster of its own for N bytes. */
static int place_fresh(struct qcow2 *s, size_t n, uint64_t *host)
{
	uint64_t got;
	int rc = qcow2_alloc(s, 1, host, &got, NULL);

	s->pack.next = rc ? 0 : *host + n;
	return rc;
}

/* Where N bytes go, fewer than a cluster's; all host clusters are counted.  With
 * pack.lock held: loading refcounts suspends. */
static int place(struct qcow2 *s, size_t n, uint64_t *host)
{
	uint64_t next = s->pack.next, end = align_up(next, s->cluster_size), more;
	uint64_t avoided = s->pack.avoided;
	bool into_next = n > end - next;
	int rc;

	if (!next || next == end)
		return place_fresh(s, n, host);
	if (into_next) {		/* if that is free */
		rc = place_fresh(s, n, &more);
		if (rc || more != end) {
			*host = more;
			return rc;
		}
	}
	rc = count_once_more(s, next, avoided);
	if (rc && into_next) {		/* the next one alone: it was taken for us */
		*host = end;
		return 0;
	}
	if (rc)
		return rc == -ERANGE ? place_fresh(s, n, host) : rc;
	*host = next;
	s->pack.next = next + n;
	return 0;
}

static void clusters_of(const struct qcow2 *s, uint64_t host, size_t n, uint64_t *first, uint64_t *count)
{
	*first = align_down(host, s->cluster_size);
	*count = (align_up(host + n, s->cluster_size) - *first) >> s->cluster_bits;
}

static void take_back(struct qcow2 *s, uint64_t host, size_t n)
{
	uint64_t first, count;

	clusters_of(s, host, n, &first, &count);
	s->pack.next = 0;
	s->pack.avoided++;		/* who is about to append there looks again */
	qcow2_unref_now(s, first, count);
}

/* Writes N packed bytes of the guest cluster at OFF; SL is pinned, its range entered. */
static int store(struct qcow2 *s, struct slice *sl, const uint8_t *bytes, size_t n, uint64_t off)
{
	unsigned bits = 62 - (s->cluster_bits - 8);
	uint64_t host, sectors;
	struct run old;
	int rc;

	co_mutex_lock(&s->pack.lock);
	rc = place(s, n, &host);
	co_mutex_unlock(&s->pack.lock);
	if (rc)
		return rc;
	if (host + n > 1ull << bits) {	/* no entry can say that */
		take_back(s, host, n);
		return -ERANGE;
	}
	rc = qcow2_file_write(s, bytes, host, n, 0);
	if (rc) {
		take_back(s, host, n);
		return rc;
	}
	qcow2_lookup_slice(s, sl, off, s->cluster_size, &old);
	sectors = (host + n - 1) / 512 - host / 512;
	qcow2_publish(s, sl, off, 1, host | sectors << bits | QCOW2_COMPRESSED, 0, 0);
	qcow2_drop_old(s, &old, off, 1);
	return 0;
}

/* The pointer that is about to go must not be to metadata. */
static int check_old(struct qcow2 *s, struct slice *sl, uint64_t off)
{
	struct run r;

	qcow2_lookup_slice(s, sl, off, s->cluster_size, &r);
	if (r.kind == RUN_BAD)
		return qcow2_bad_entry(s, off, &r);
	if (r.kind == RUN_COMPRESSED || r.kind == RUN_UNALLOCATED || r.kind == RUN_ZERO)
		return 0;
	return qcow2_check_target(s, r.host, s->cluster_size);
}

static int publish_packed(struct qcow2 *s, const uint8_t *bytes, size_t n, uint64_t off)
{
	struct range in_use;
	struct slice *sl;
	int rc = qcow2_slice_for_write(s, off, &sl);

	if (rc)
		return rc;
	range_enter(&s->ranges, &in_use, off, s->cluster_size, RANGE_EXCL);
	rc = check_old(s, sl, off);
	if (!rc)
		rc = store(s, sl, bytes, n, off);
	range_leave(&s->ranges, &in_use);
	cache_unpin(&s->l2, sl);
	return rc;
}

struct pack_job {
	struct codec *codec;
	const uint8_t *in;
	uint8_t *out;
	size_t cluster, n;
};

static void pack_run(void *arg)
{
	struct pack_job *j = arg;

	j->n = codec_pack(j->codec, j->in, j->cluster, j->out, j->cluster - 1);
}

struct request {
	struct qcow2 *s;
	const uint8_t *buf;
	uint64_t off, len;
};

/* Cluster I of the request; at the end of the disk it may be a part of one. */
static int pack_one(void *arg, unsigned i)
{
	const struct request *rq = arg;
	struct qcow2 *s = rq->s;
	uint64_t at = (uint64_t)i << s->cluster_bits, len = min_u64(s->cluster_size, rq->len - at);
	uint8_t *mem = malloc(2 * s->cluster_size);
	struct pack_job j = { .cluster = s->cluster_size, .in = rq->buf + at, .out = mem };
	int rc = -ERANGE;

	j.codec = mem ? qcow2_codec_take(s) : NULL;
	if (!j.codec) {
		free(mem);
		return -ENOMEM;
	}
	if (len < s->cluster_size) {
		j.in = mem + s->cluster_size;
		memcpy(mem + s->cluster_size, rq->buf + at, len);
		memset(mem + s->cluster_size + len, 0, s->cluster_size - len);
	}
	if (s->cluster_size <= INLINE_MAX)
		pack_run(&j);
	else
		loop_work(pack_run, &j);
	qcow2_codec_give(s, j.codec);
	if (j.n)
		rc = publish_packed(s, mem, j.n, rq->off + at);
	free(mem);
	return rc == -ERANGE ? qcow2_write(s->node, rq->buf + at, rq->off + at, len, 0) : rc;
}

bool qcow2_can_pack(const struct qcow2 *s, uint64_t off, uint64_t len)
{
	return !s->has_data_file && !s->flush.failed && !qcow2_in_cluster(s, off) &&
	       (!qcow2_in_cluster(s, len) || off + len == s->node->size);
}

int qcow2_write_packed(struct qcow2 *s, const void *buf, uint64_t off, uint64_t len)
{
	struct request rq = { .s = s, .buf = buf, .off = off, .len = len };

	return fan_out(DIV_ROUND_UP(len, s->cluster_size), WIDTH, pack_one, &rq);
}
