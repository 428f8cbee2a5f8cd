// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-alloc: free clusters are found, taken and given back.
 *
 * Taking is a matter of memory: a refcount of 0 in a cached slice becomes 1, with
 * no suspension in between, so that concurrent allocations need no lock.  Only a
 * slice that is not cached, or a block that does not exist yet, makes the caller
 * wait; then it looks again.
 *
 * free_hint: no cluster below it is free.  It moves up as clusters are taken and
 * down when one is given back.
 *
 * host_end: nothing at or behind it was ever used.  In a regular file clusters
 * there are known to read as zeroes, so that a small write into a fresh cluster
 * need not fill the rest of it.  What lies below is never trusted.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/log.h"

/* The first free cluster at or after CLUSTER in its slice, or the slice's end. */
static uint64_t find_free(const struct qcow2 *s, const struct slice *sl, uint64_t cluster)
{
	uint64_t end = (cluster | ((1ull << s->ref_shift) - 1)) + 1;
	const uint64_t lows = 0x0001000100010001ull;

	for (; cluster < end; cluster++) {
		if (s->h.refcount_order == 4 && !(cluster & 3)) {
			uint64_t w;

			/* Four at once: no 16-bit lane of W is zero. */
			memcpy(&w, sl->data + 2 * (cluster & ((1ull << s->ref_shift) - 1)), 8);
			if (!((w - lows) & ~w & (lows << 15))) {
				cluster += 3;
				continue;
			}
		}
		if (!refcount_get(s, sl, cluster))
			break;
	}
	return cluster;
}

static uint64_t run_of_free(const struct qcow2 *s, const struct slice *sl, uint64_t cluster,
			    uint64_t want)
{
	uint64_t end = (cluster | ((1ull << s->ref_shift) - 1)) + 1, n = 0;

	while (n < want && cluster + n < end && !refcount_get(s, sl, cluster + n))
		n++;
	return n;
}

/* Takes N free clusters whose slice is at hand.  May suspend only to fail. */
static int take(struct qcow2 *s, struct slice *sl, uint64_t cluster, uint64_t n, bool *fresh)
{
	uint64_t host = cluster << s->cluster_bits, len = n << s->cluster_bits;
	int rc = qcow2_check_target(s, host, len);

	if (rc)
		return rc;
	for (uint64_t i = 0; i < n; i++)
		refcount_set(s, sl, cluster + i, 1);
	if (fresh)
		*fresh = s->regular_file && host >= s->host_end;
	s->host_end = max_u64(s->host_end, host + len);
	return 0;
}

/* The pinned slice of CLUSTER, made if it does not exist. */
static int slice_of(struct qcow2 *s, uint64_t cluster, struct slice **out)
{
	int rc;

	if (cluster >= QCOW2_HOST_MAX >> s->cluster_bits)
		return -ENOSPC;
	do
		rc = refcount_slice(s, cluster, out);
	while (rc == -ENOENT && !(rc = refcount_make_block(s, cluster)));
	return rc;
}

int qcow2_alloc(struct qcow2 *s, uint64_t want, uint64_t *host, uint64_t *got, bool *fresh)
{
	for (;;) {
		uint64_t cluster = s->free_hint;
		struct slice *sl;
		int rc = slice_of(s, cluster, &sl);

		if (rc)
			return rc;
		/* The hint may have moved while the slice was loaded. */
		if (cluster >> s->ref_shift != s->free_hint >> s->ref_shift) {
			cache_unpin(&s->ref, sl);
			continue;
		}
		cluster = find_free(s, sl, s->free_hint);
		*got = 0;
		if (cluster >> s->ref_shift == sl->no) {
			*got = run_of_free(s, sl, cluster, want);
			rc = take(s, sl, cluster, *got, fresh);
		}
		cache_unpin(&s->ref, sl);
		if (rc)
			return rc;
		s->free_hint = cluster + *got;
		*host = cluster << s->cluster_bits;
		if (*got)
			return 0;
	}
}

/* Takes CLUSTER if it is free: 1 taken, 0 in use. */
static int take_one(struct qcow2 *s, uint64_t cluster)
{
	struct slice *sl;
	int rc = slice_of(s, cluster, &sl);

	if (rc)
		return rc;
	if (refcount_get(s, sl, cluster) == 0)
		rc = take(s, sl, cluster, 1, NULL) ?: 1;
	cache_unpin(&s->ref, sl);
	return rc;
}

int qcow2_alloc_exact(struct qcow2 *s, uint64_t count, uint64_t *host)
{
	uint64_t start = s->free_hint, n = 0;
	int rc = 0;

	if (count >= 1ull << s->ref_block_shift)
		return refcount_make_run(s, count, host);
	while (n < count && rc >= 0) {
		rc = take_one(s, start + n);
		if (rc > 0) {
			n++;
		} else if (rc == 0) {	/* too short: give it back, go on behind it */
			qcow2_unref_now(s, start << s->cluster_bits, n);
			start += n + 1;
			n = 0;
		}
	}
	if (rc < 0) {
		qcow2_unref_now(s, start << s->cluster_bits, n);
		return rc;
	}
	*host = start << s->cluster_bits;
	return 0;
}

static int unref_one(struct qcow2 *s, uint64_t cluster)
{
	struct slice *sl;
	uint64_t count;
	int rc = refcount_slice(s, cluster, &sl);

	if (rc && rc != -ENOENT)
		return rc;
	count = rc ? 0 : refcount_get(s, sl, cluster);
	if (count) {
		refcount_set(s, sl, cluster, count - 1);
		if (count == 1)
			s->free_hint = min_u64(s->free_hint, cluster);
	}
	if (!rc)
		cache_unpin(&s->ref, sl);
	return count ? 0 : qcow2_mark_corrupt(s, "cluster at offset 0x%" PRIx64
					      " is freed, but its refcount is 0",
					      cluster << s->cluster_bits);
}

int qcow2_unref_now(struct qcow2 *s, uint64_t host, uint64_t count)
{
	int rc = 0;

	for (uint64_t i = 0; i < count && !rc; i++)
		rc = unref_one(s, (host >> s->cluster_bits) + i);
	if (rc)
		log_warning("clusters are leaked: image=%s offset=%" PRIu64 " clusters=%" PRIu64,
			    qcow2_name(s), host, count);
	return rc;
}

int64_t qcow2_alloc_clusters(struct node *n, uint64_t count)
{
	struct qcow2 *s = qcow2_of(n);
	uint64_t host;
	int rc;

	if (s->corrupt || s->flush.failed)
		return -EIO;
	rc = count ? qcow2_alloc_exact(s, count, &host) : -EINVAL;
	return rc ? rc : (int64_t)host;
}

void qcow2_free_clusters(struct node *n, uint64_t offset, uint64_t count)
{
	qcow2_unref_later(qcow2_of(n), offset, count);
}
