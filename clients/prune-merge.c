// SPDX-License-Identifier: BSD-3-Clause
/* prune-merge: one point takes over what it has from below, in an order that a death at any
 * instruction does not spoil.
 *
 *	copy	clusters into the point's image; each shows what it showed before
 *	sums	DISK@POINT.merged, durably
 *	commit	the manifest, durably: from here on the point rests on another one
 *	settle	DISK@POINT.merged becomes DISK@POINT.sums; the image's header names the
 *		new backing file
 *
 * Before the commit nothing has changed but where bytes lie.  After it, the old backing
 * file is there until the header has been changed, so that qemu-img reads the same all the
 * time.  Every chunk is compared with its checksum when it is copied: damage is not
 * carried on under another name.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/prune.h"
#include "clients/pull.h"
#include "clients/repo-int.h"
#include "clients/repo-read.h"
#include "common/bytes.h"
#include "common/checked.h"
#include "format/qcow2.h"

enum { EXTENTS = 64 };

static bool stays(const struct prune *o, const char *id)
{
	const struct repo_point *p = repo_point(&o->repo, id);

	return !p || o->keep[p - o->repo.point];
}

bool prune_rests(const struct prune *o, unsigned i)
{
	const struct repo_point *p = &o->repo.point[i];

	for (unsigned k = 0; k < p->n; k++)
		if (p->disk[k].level == REPO_INCREMENTAL && !stays(o, p->disk[k].parent))
			return true;
	return false;
}

unsigned prune_run(const struct prune *o, const struct repo_chain *c)
{
	unsigned n = 0;

	while (n + 1 < c->n && !stays(o, c->layer[n + 1].point->id))
		n++;
	return n;
}

/* --- copy */

struct merge {
	struct prune *o;
	struct repo_reader reader;
	unsigned run;			/* layers 1 to RUN go */
	bool base;			/* something is left below them */
};

static int failed(struct merge *m, uint64_t off, int rc, struct error *err)
{
	return rc ? repo_reader_fail(&m->reader, off, rc, strerror(-rc), err) : 0;
}

/* Calls FN for the parts of the piece that the point's own image has not. */
static int each_missing(struct merge *m, const struct repo_piece *p,
			int (*fn)(struct merge *m, const struct repo_piece *p, uint64_t off, uint64_t len),
			struct error *err)
{
	struct extent v[EXTENTS];
	uint64_t off = p->off, end = p->off + p->len;
	int rc = 0;

	while (off < end && rc == 0) {
		struct extents x = { .v = v, .max = EXTENTS };

		rc = node_map(m->reader.node, off, end - off, &x);
		if (rc == 0 && !x.total)
			rc = -EIO;
		for (uint32_t i = 0; i < x.n && rc == 0 && off < end; i++) {
			uint64_t n = min_u64(v[i].len, end - off);

			if (v[i].flags & EXTENT_UNALLOCATED)
				rc = fn(m, p, off, n);
			off += n;
		}
	}
	return rc < 0 ? failed(m, off, rc, err) : rc;
}

/* Ends the search: there is something to do. */
static int note_missing(struct merge *m, const struct repo_piece *p, uint64_t off, uint64_t len)
{
	return 1;
}

/* The piece's bytes are in the reader's buffer, and right. */
static int take_over(struct merge *m, const struct repo_piece *p, uint64_t off, uint64_t len)
{
	m->o->copied += len;
	return node_write(m->reader.node, m->reader.buf + (off - p->off), off, len, 0);
}

static int data_piece(struct merge *m, const struct repo_piece *p, struct error *err)
{
	uint32_t wrong;
	int rc = each_missing(m, p, note_missing, err);

	if (rc <= 0)
		return rc;
	rc = repo_reader_data(&m->reader, p, &wrong);
	if (rc == 0 && wrong)
		return repo_reader_fail(&m->reader, p->off + (uint64_t)__builtin_ctz(wrong) * REPO_CHUNK, -EIO,
					"the data is not what its checksum says: nothing is merged; see merino verify", err);
	verb_limit_wait(&m->o->limit, p->len);
	return rc ? failed(m, p->off, rc, err) : each_missing(m, p, take_over, err);
}

/* What is zero, and would show the points further below. */
static int take_zeroes(struct merge *m, const struct repo_piece *p, uint64_t off, uint64_t len)
{
	int rc = 0;

	for (uint64_t at = off, n; at < off + len && rc == 0; at += n) {
		n = min_u64((uint64_t)READ_CHUNKS * REPO_CHUNK, off + len - at);
		rc = node_read(m->reader.node, m->reader.buf, at, n);
		if (rc == 0 && !bytes_are_zero(m->reader.buf, n))
			rc = -EUCLEAN;
	}
	return rc ? rc : node_zero(m->reader.node, off, len, NODE_MAY_UNMAP);
}

static int copy(struct merge *m, struct error *err)
{
	struct prune *o = m->o;
	struct repo_piece p;
	int rc;

	while ((rc = repo_reader_next(&m->reader, &p, err)) > 0) {
		bool ours = p.layer >= 0 && (unsigned)p.layer <= m->run;

		if (ours && !p.zero)
			rc = data_piece(m, &p, err);
		else if (ours && m->base)
			rc = each_missing(m, &p, take_zeroes, err);
		if (rc < 0)
			return rc;
		o->done += ours && !p.zero ? p.len : 0;
		progress_update(&o->p, min_u64(o->done, o->total), o->total, o->copied);
		if (pull_signalled())
			return error_set(err, -EINTR, "stopped by a signal");
	}
	return rc;
}

/* --- sums */

static int put_layers(struct sums *in, struct sums_writer *w, const struct merge *m, struct error *err)
{
	uint8_t hash[SUMS_HASH];
	uint64_t index, count;
	int layer, rc;

	while ((rc = sums_next(in, &index, &count, hash, &layer, err)) > 0) {
		if (layer < 0 || (unsigned)layer > m->run)
			continue;
		rc = rc == SUMS_DATA ? sums_put_data(w, index, hash) : sums_put_zero(w, index, count);
		if (rc < 0)
			return error_errno(err, rc, "checksums");
	}
	return rc;
}

/* DISK@POINT.merged; the disk's manifest gets its length and hash. */
static int write_sums(struct merge *m, struct repo_disk *d, struct error *err)
{
	const char *id = m->reader.point->id;
	char name[REPO_FILE_MAX], temp[REPO_FILE_MAX + 16];
	struct repo *r = &m->o->repo;
	struct sums_writer *w = NULL;
	int fd, rc;

	repo_file_name(name, d->name, id, "merged");
	snprintf(temp, sizeof(temp), ".%s.partial", name);
	if (unlinkat(r->dir, temp, 0) < 0 && errno != ENOENT)
		return error_errno(err, -errno, "%s/%s", r->path, temp);
	fd = openat(r->dir, temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_errno(err, -errno, "%s/%s", r->path, temp);
	sums_rewind(m->reader.sums);
	rc = sums_create(fd, REPO_CHUNK, d->size, &w, err);
	if (rc == 0)
		rc = put_layers(m->reader.sums, w, m, err);
	if (rc == 0) {
		rc = sums_finish(w, &d->sums_bytes, d->sums_hash);
		if (rc == 0 && (fsync(fd) < 0 || renameat(r->dir, temp, r->dir, name) < 0))
			rc = -errno;
		if (rc < 0)
			error_errno(err, rc, "%s/%s", r->path, name);
	}
	sums_discard(w);
	close(fd);
	return rc;
}

/* --- settle */

/* The header's name becomes the manifest's. */
static int relink(struct prune *o, const struct repo_point *p, const struct repo_disk *d, struct error *err)
{
	char name[REPO_FILE_MAX], want[REPO_FILE_MAX] = "", has[REPO_FILE_MAX];
	struct repo_layer l = { .point = p, .disk = d };
	int rc = repo_image_backing(&o->repo, &l, has, err);

	if (d->level == REPO_INCREMENTAL)
		repo_file_name(want, d->name, d->parent, "qcow2");
	if (rc < 0 || !strcmp(want, has))
		return rc;
	repo_file_name(name, d->name, p->id, "qcow2");
	return repo_image_relink(&o->repo, name, want[0] ? want : NULL, err);
}

static int settle_sums(struct prune *o, const struct repo_point *p, const struct repo_disk *d, struct error *err)
{
	char merged[REPO_FILE_MAX], sums[REPO_FILE_MAX];
	int fd, rc = 0;
	bool meant;

	repo_file_name(merged, d->name, p->id, "merged");
	repo_file_name(sums, d->name, p->id, "sums");
	fd = openat(o->repo.dir, merged, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return errno == ENOENT ? 0 : error_errno(err, -errno, "%s/%s", o->repo.path, merged);
	meant = sums_file_is(fd, d->sums_bytes, d->sums_hash);
	close(fd);
	if (meant)
		rc = renameat(o->repo.dir, merged, o->repo.dir, sums);
	else
		rc = unlinkat(o->repo.dir, merged, 0);
	return rc < 0 ? error_errno(err, -errno, "%s/%s", o->repo.path, merged) : 0;
}

static int settle_point(struct prune *o, const struct repo_point *p, struct error *err)
{
	char name[REPO_FILE_MAX + 32], file[REPO_FILE_MAX];
	int rc = 0;

	snprintf(name, sizeof(name), ".%s.json.partial", p->id);
	unlinkat(o->repo.dir, name, 0);
	for (unsigned k = 0; k < p->n && rc == 0; k++) {
		const struct repo_disk *d = &p->disk[k];

		repo_file_name(file, d->name, p->id, "merged");
		snprintf(name, sizeof(name), ".%s.partial", file);
		unlinkat(o->repo.dir, name, 0);
		rc = settle_sums(o, p, d, err);
		if (rc == 0 && d->merged[0])
			rc = relink(o, p, d, err);
	}
	return rc;
}

int prune_settle(struct prune *o, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < o->repo.n && rc == 0; i++)
		if (o->repo.point[i].readable)
			rc = settle_point(o, &o->repo.point[i], err);
	return rc ? rc : repo_sync(&o->repo, err);
}

/* --- one point */

/* What the manifest will say. */
static int set_parent(struct merge *m, struct repo_disk *d, struct error *err)
{
	const struct repo_chain *c = &m->reader.chain;

	snprintf(d->merged, sizeof(d->merged), "%s", c->layer[1].point->id);
	if (m->base) {
		snprintf(d->parent, sizeof(d->parent), "%s", c->layer[m->run + 1].point->id);
		return 0;
	}
	d->level = REPO_FULL;
	d->parent[0] = 0;
	free(d->reason);
	d->reason = strdup("the points below were pruned, and are merged into it");
	return d->reason ? 0 : error_errno(err, -ENOMEM, "%s", d->name);
}

static int merge_disk(struct prune *o, const struct repo_point *p, struct repo_disk *d, struct error *err)
{
	struct merge *m = calloc(1, sizeof(*m));
	int rc;

	if (!m)
		return error_errno(err, -ENOMEM, "%s", d->name);
	m->o = o;
	rc = repo_reader_open_rw(&m->reader, &o->repo, p, d->name, err);
	if (rc == 0) {
		m->run = prune_run(o, &m->reader.chain);
		m->base = m->run + 1 < m->reader.chain.n;
		rc = copy(m, err);
	}
	if (rc == 0)
		rc = repo_reader_settle(&m->reader, err);
	if (rc == 0)
		rc = write_sums(m, d, err);
	if (rc == 0)
		rc = set_parent(m, d, err);
	repo_reader_close(&m->reader);
	free(m);
	return rc;
}

int prune_merge(struct prune *o, unsigned i, struct error *err)
{
	struct repo_point *p = &o->repo.point[i];
	int rc = 0;

	for (unsigned k = 0; k < p->n && rc == 0; k++)
		if (p->disk[k].level == REPO_INCREMENTAL && !stays(o, p->disk[k].parent))
			rc = merge_disk(o, p, &p->disk[k], err);
	if (rc == 0)
		rc = repo_commit(&o->repo, p, err);
	if (rc == 0)
		rc = settle_point(o, p, err);
	return rc ? rc : repo_sync(&o->repo, err);
}
