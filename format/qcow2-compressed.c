// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-compressed: compressed clusters are read, and given up.
 *
 * Specification: "Compressed Clusters Descriptor".  An entry has the host offset of
 * the first byte, and how many sectors of 512 bytes follow the one that holds it.
 * Several share a host cluster, one may cross into the next: each host cluster is
 * counted once for every compressed one that touches it.
 *
 * Unpacking is work for a worker thread, several at a time.  A request for a whole
 * cluster is unpacked in place.  Others go through a small cache of the clusters
 * that were unpacked last, found by their entry; who needs one that is on its way
 * waits for it.  When an entry goes, its place in the cache does: its host clusters
 * may come to hold something else under the same entry.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/loop.h"
#include "format/codec.h"

#define CACHE_BYTES	(1u << 20)	/* so that it stays in the processor's own */
#define SLOTS_MIN	4u
#define SLOTS_MAX	256u
#define CODECS_KEPT	8u
#define INLINE_MAX	8192u	/* unpacking that much takes less than a change of thread */

void qcow2_compressed_place(const struct qcow2 *s, uint64_t entry, uint64_t *host, uint64_t *len)
{
	unsigned bits = 62 - (s->cluster_bits - 8);
	uint64_t sectors = (entry & (QCOW2_COMPRESSED - 1)) >> bits;

	*host = entry & ((1ull << bits) - 1);
	*len = (sectors + 1) * 512 - (*host & 511);
}

struct codec *qcow2_codec_take(struct qcow2 *s)
{
	struct unpacked *u = &s->unpacked;

	return u->n_codecs ? u->codecs[--u->n_codecs] : codec_new(s->h.compression == 1);
}

void qcow2_codec_give(struct qcow2 *s, struct codec *c)
{
	struct unpacked *u = &s->unpacked;

	if (u->n_codecs < CODECS_KEPT)
		u->codecs[u->n_codecs++] = c;
	else
		codec_free(c);
}

struct job {
	bool zstd;
	const uint8_t *in;
	uint8_t *out;
	size_t in_len, out_len;
	int rc;
};

static void job_run(void *arg)
{
	struct job *j = arg;

	j->rc = codec_unpack(j->zstd, j->in, j->in_len, j->out, j->out_len);
}

/* The whole cluster of ENTRY into OUT. */
static int unpack(struct qcow2 *s, uint64_t entry, uint8_t *out)
{
	struct job j = { .zstd = s->h.compression == 1, .out = out, .out_len = s->cluster_size };
	uint64_t host, len;
	uint8_t *in;
	int rc;

	qcow2_compressed_place(s, entry, &host, &len);
	if (host >= s->file->size)
		return -EIO;
	len = min_u64(len, s->file->size - host);
	in = malloc(len);
	j.in = in;
	j.in_len = len;
	rc = in ? qcow2_file_read(s, in, host, len) : -ENOMEM;
	if (!rc) {
		if (s->cluster_size <= INLINE_MAX)
			job_run(&j);
		else
			loop_work(job_run, &j);
		rc = j.rc;
	}
	free(in);
	return rc;
}

static struct unpacked_slot *find(struct unpacked *u, uint64_t entry)
{
	for (unsigned i = 0; i < u->n; i++)
		if (u->v[i].entry == entry)
			return &u->v[i];
	return NULL;
}

/* A slot that nobody uses, the one that was used the longest ago; NULL: none. */
static struct unpacked_slot *oldest(struct qcow2 *s)
{
	struct unpacked *u = &s->unpacked;
	struct unpacked_slot *best = NULL;

	if (!u->v) {
		unsigned n = max_u64(SLOTS_MIN, min_u64(SLOTS_MAX, CACHE_BYTES / s->cluster_size));

		u->v = calloc(n, sizeof(*u->v));
		u->n = u->v ? n : 0;
	}
	for (unsigned i = 0; i < u->n; i++)
		if (!u->v[i].users && (!best || u->v[i].used < best->used))
			best = &u->v[i];
	if (best && !best->data)
		best->data = malloc(s->cluster_size);
	return best && best->data ? best : NULL;
}

/* ENTRY's cluster in memory, with one more user; NULL: there is no room, or an error. */
static struct unpacked_slot *get(struct qcow2 *s, uint64_t entry, int *rc)
{
	struct unpacked *u = &s->unpacked;
	struct unpacked_slot *slot;

	while ((slot = find(u, entry)) && slot->loading)
		co_queue_wait(&u->loaded);
	if (!slot) {
		slot = oldest(s);
		if (!slot)
			return NULL;
		slot->entry = entry;
		slot->loading = true;
		slot->users++;
		*rc = unpack(s, entry, slot->data);
		slot->loading = false;
		slot->users--;
		if (*rc)
			slot->entry = 0;
		co_queue_wake_all(&u->loaded);
		if (*rc)
			return NULL;
	}
	slot->used = ++u->tick;
	return slot;
}

int qcow2_read_compressed(struct qcow2 *s, void *buf, uint64_t off, uint64_t len, uint64_t entry)
{
	struct unpacked_slot *slot = find(&s->unpacked, entry);
	uint8_t *p;
	int rc = 0;

	if (!slot && len == s->cluster_size) {
		rc = unpack(s, entry, buf);
	} else if ((slot = get(s, entry, &rc))) {
		memcpy(buf, slot->data + qcow2_in_cluster(s, off), len);
	} else if (!rc) {		/* all slots are in use */
		p = malloc(s->cluster_size);
		rc = p ? unpack(s, entry, p) : -ENOMEM;
		if (!rc)
			memcpy(buf, p + qcow2_in_cluster(s, off), len);
		free(p);
	}
	if (rc == -EIO && !s->said_damaged) {
		s->said_damaged = true;
		log_error("a compressed cluster cannot be read: image=%s guest-offset=%" PRIu64,
			  qcow2_name(s), off - qcow2_in_cluster(s, off));
	}
	return rc;
}

void qcow2_drop_compressed(struct qcow2 *s, uint64_t entry)
{
	struct unpacked_slot *slot = find(&s->unpacked, entry);
	uint64_t host, len, first, end;

	if (slot && !slot->users)
		slot->entry = 0;
	qcow2_compressed_place(s, entry, &host, &len);
	first = align_down(host, s->cluster_size);
	end = align_up(host + len, s->cluster_size);
	if (end > s->host_limit || qcow2_check_target(s, first, end - first)) {
		qcow2_mark_corrupt(s, "a compressed cluster at offset 0x%" PRIx64 " is out of place", host);
		return;
	}
	qcow2_pack_avoid(s, first, end);
	qcow2_unref_later(s, first, (end - first) >> s->cluster_bits);
}

void qcow2_compressed_free(struct qcow2 *s)
{
	struct unpacked *u = &s->unpacked;

	for (unsigned i = 0; i < u->n; i++)
		free(u->v[i].data);
	free(u->v);
	while (u->n_codecs)
		codec_free(u->codecs[--u->n_codecs]);
}
