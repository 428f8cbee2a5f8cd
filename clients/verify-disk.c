// SPDX-License-Identifier: BSD-3-Clause
/* verify-disk: one disk of one point.
 *
 *	files	chain, images' headers and checksums fit the manifests (repo-chain.c)
 *	tables	the image's references fit its refcounts, none leads out of the file
 *	data	what the point brought, or its image has, is what the checksums say
 *	rest	is as wrong as it is in the point below
 *	root	the checksums come to the manifest's root
 */
#include "clients/verify.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "clients/pull.h"
#include "clients/repo-read.h"
#include "common/bytes.h"
#include "common/checked.h"
#include "format/qcow2.h"

enum { EXTENTS = 512, ZERO_READ = READ_CHUNKS * REPO_CHUNK };

/* The work on one disk. */
struct work {
	struct verify *o;
	struct verify_disk *d;
	const struct verify_disk *below;	/* the same disk at the parent; NULL: none, or alone */
	size_t next_below;		/* in below->wrong: those before are dealt with */
	struct repo_reader reader;
	struct extent extent[EXTENTS];
};

bool verify_good(const struct verify_disk *d)
{
	return !d->broken && !d->text[0] && !d->n;
}

/* What says nothing about the repository. */
static bool is_trouble(int rc)
{
	return rc == -ENOMEM || rc == -EACCES || rc == -EPERM || rc == -EMFILE || rc == -ENFILE || rc == -EINTR;
}

static void broken(struct verify_disk *d, const char *text)
{
	d->broken = true;
	snprintf(d->text, sizeof(d->text), "%.1000s", text);
}

static int wrong(struct verify_disk *d, uint64_t index, const struct verify_disk *from)
{
	struct verify_wrong *v;

	if (d->n && d->wrong[d->n - 1].index == index)
		return 0;
	if (d->n == VERIFY_WRONG_MAX) {
		broken(d, "more chunks are damaged than can be listed");
		return 0;
	}
	if (d->n == d->max) {
		size_t max = d->max ? 2 * d->max : 64;

		v = realloc(d->wrong, max * sizeof(*v));
		if (!v)
			return -ENOMEM;
		d->wrong = v;
		d->max = max;
	}
	d->wrong[d->n++] = (struct verify_wrong){ .index = index, .from = from };
	return 0;
}

/* Chunk INDEX is as in the point below, which may be wrong there. */
static int as_below(struct work *w, uint64_t index, uint64_t count)
{
	int rc = 0;

	while (w->below && w->next_below < w->below->n && rc == 0) {
		const struct verify_wrong *b = &w->below->wrong[w->next_below];

		if (b->index >= index + count)
			break;
		if (b->index >= index)
			rc = wrong(w->d, b->index, b->from);
		w->next_below++;
	}
	return rc;
}

/* Chunk INDEX was read here and is wrong: the point below is to blame if it is wrong there. */
static int wrong_here(struct work *w, uint64_t index)
{
	int rc = as_below(w, index, 1);

	return rc ? rc : wrong(w->d, index, w->d);
}

static int go_on(struct work *w, uint64_t bytes, struct error *err)
{
	struct verify *o = w->o;

	o->read += bytes;
	verb_limit_wait(&o->limit, bytes);
	progress_update(&o->p, min_u64(o->done + o->read, o->total), o->total, o->read);
	return pull_signalled() ? error_set(err, -EINTR, "stopped by a signal") : 0;
}

static int data_here(struct work *w, const struct repo_piece *p, struct error *err)
{
	uint32_t bits;
	int rc = repo_reader_data(&w->reader, p, &bits);

	if (is_trouble(rc))
		return repo_reader_fail(&w->reader, p->off, rc, strerror(-rc), err);
	if (rc < 0)
		bits = UINT32_MAX;
	rc = 0;
	for (uint64_t i = 0; i < p->count && rc == 0; i++) {
		if (bits & 1u << i)
			rc = wrong_here(w, p->index + i);
	}
	return rc < 0 ? error_errno(err, rc, "verify") : go_on(w, p->len, err);
}

/* What the layer, or the whole chain, has of [OFF, OFF + LEN), as far as one call tells. */
static int map(struct work *w, bool chain, uint64_t off, uint64_t len, struct extents *x)
{
	*x = (struct extents){ .v = w->extent, .max = EXTENTS };
	int rc = chain ? node_map_chain(w->reader.node, off, len, x) : node_map(w->reader.node, off, len, x);

	return rc == 0 && !x->total ? -EIO : rc;
}

/* The image itself has something of the range, or cannot say. */
static bool has_any(struct work *w, uint64_t off, uint64_t len)
{
	struct extents x;

	while (len) {
		if (map(w, false, off, len, &x) < 0)
			return true;
		for (uint32_t i = 0; i < x.n; i++)
			if (!(x.v[i].flags & EXTENT_UNALLOCATED))
				return true;
		off += min_u64(x.total, len);
		len -= min_u64(x.total, len);
	}
	return false;
}

/* [OFF, OFF + LEN) has to read as zeroes; the chunks that do not are wrong. */
static int zeroes_here(struct work *w, uint64_t off, uint64_t len, struct error *err)
{
	int rc = 0;

	for (uint64_t n; len && rc == 0; off += n, len -= n) {
		n = min_u64(REPO_CHUNK - off % REPO_CHUNK, len);
		rc = node_read(w->reader.node, w->reader.buf, off, n);
		if (is_trouble(rc))
			return repo_reader_fail(&w->reader, off, rc, strerror(-rc), err);
		if (rc == 0 && bytes_are_zero(w->reader.buf, n))
			continue;
		rc = wrong_here(w, off / REPO_CHUNK);
	}
	return rc < 0 ? error_errno(err, rc, "verify") : go_on(w, 0, err);
}

/* A run that is zero by the checksums.  EXTENT by extent: what the image has is read unless
 * it is zero by its table; the rest is as below, unless ALL is this image's to prove. */
static int zero_piece(struct work *w, const struct repo_piece *p, bool all, struct error *err)
{
	uint64_t off = p->off, end = p->off + p->len;
	struct extents x;
	int rc = 0;

	while (off < end && rc == 0) {
		rc = map(w, all, off, end - off, &x);
		if (is_trouble(rc))
			return repo_reader_fail(&w->reader, off, rc, strerror(-rc), err);
		if (rc < 0) {
			x = (struct extents){ .v = w->extent, .n = 1, .total = min_u64(REPO_CHUNK, end - off) };
			w->extent[0] = (struct extent){ .len = x.total };
		}
		rc = 0;
		for (uint32_t i = 0; i < x.n && off < end && rc == 0; i++) {
			uint64_t n = min_u64(x.v[i].len, end - off);

			if (!(x.v[i].flags & EXTENT_ZERO) && (all || !(x.v[i].flags & EXTENT_UNALLOCATED)))
				rc = zeroes_here(w, off, n, err);
			else if (!all && x.v[i].flags & EXTENT_UNALLOCATED)
				rc = as_below(w, off / REPO_CHUNK, DIV_ROUND_UP(n, REPO_CHUNK));
			off += n;
		}
		rc = rc ? rc : go_on(w, 0, err);
	}
	return rc;
}

static int data_piece(struct work *w, const struct repo_piece *p, struct error *err)
{
	int rc;

	if (w->o->alone || p->layer == 0 || has_any(w, p->off, p->len))
		return data_here(w, p, err);
	rc = as_below(w, p->index, p->count);
	return rc < 0 ? error_errno(err, rc, "verify") : 0;
}

/* All pieces; their root at the end. */
static int walk(struct work *w, struct error *err)
{
	struct repo_piece p;
	int rc;

	while ((rc = repo_reader_next(&w->reader, &p, err)) > 0 && !w->d->broken) {
		if (w->o->quick)
			rc = as_below(w, p.index, p.count);
		else if (p.zero)
			rc = zero_piece(w, &p, w->o->alone || p.layer == 0, err);
		else
			rc = data_piece(w, &p, err);
		if (rc < 0)
			return rc;
	}
	if (rc < 0 && !is_trouble(rc)) {
		broken(w->d, err->text);
		rc = 0;
	}
	return rc < 0 ? rc : 0;
}

/* The name in the header is for those who have qemu-img alone: it must lead somewhere. */
static void check_link(struct work *w)
{
	char backing[REPO_FILE_MAX];
	struct error err = ERROR_INIT;
	struct stat st;

	if (repo_image_backing(&w->o->repo, &w->reader.chain.layer[0], backing, &err) < 0)
		broken(w->d, err.text);
	else if (backing[0] && fstatat(w->o->repo.dir, backing, &st, AT_SYMLINK_NOFOLLOW) < 0)
		snprintf(w->d->text, sizeof(w->d->text), "the backing file that its image names, %s, is missing", backing);
}

static int check_tables(struct work *w, struct error *err)
{
	struct qcow2_check c;
	int rc = qcow2_check(w->reader.node, &c, err);

	if (is_trouble(rc) || rc == -E2BIG)
		return rc == -E2BIG ? 0 : rc;	/* too large for that: its data is read anyhow */
	if (rc < 0)
		broken(w->d, err->text);
	else if (c.damaged)
		snprintf(w->d->text, sizeof(w->d->text), "%" PRIu64 " errors in the image's tables (see qemu-img check)",
			 c.damaged);
	w->d->leaked = rc < 0 ? 0 : c.leaked;
	return 0;
}

static const struct verify_disk *find_below(const struct verify *o, const struct verify_disk *d)
{
	if (o->alone || d->disk->level != REPO_INCREMENTAL)
		return NULL;
	for (size_t i = 0; i < o->n; i++)
		if (!strcmp(o->disk[i].point->id, d->disk->parent) && !strcmp(o->disk[i].disk->name, d->disk->name))
			return &o->disk[i];
	return NULL;
}

int verify_disk(struct verify *o, struct verify_disk *d, struct error *err)
{
	struct work *w = calloc(1, sizeof(*w));
	int rc;

	if (!w)
		return error_errno(err, -ENOMEM, "verify");
	w->o = o;
	w->d = d;
	w->below = find_below(o, d);
	rc = repo_reader_open(&w->reader, &o->repo, d->point, d->disk->name, err);
	if (rc < 0 && !is_trouble(rc)) {
		broken(d, err->text);
		rc = 0;
	} else if (rc == 0) {
		check_link(w);
		rc = check_tables(w, err);
		if (rc == 0 && !d->broken)
			rc = walk(w, err);
	}
	repo_reader_close(&w->reader);
	free(w);
	return rc;
}
