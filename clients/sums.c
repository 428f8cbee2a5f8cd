// SPDX-License-Identifier: BSD-3-Clause
/* sums: writing and reading .sums files (doc/formats/backup-repository.md), and roots.
 *
 * A file is at most as long as its disk has chunks, and is never held as a whole: the
 * writer keeps one run, the reader one run of each layer.  A reader first compares the
 * file's hash with the manifest's; what follows is then only doubted where a
 * wrong number would lead it astray.
 */
#include "clients/sums.h"

#include <assert.h>
#include <errno.h>
#include <gnutls/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checked.h"

enum {
	HEADER = 32, RUN = 16,			/* bytes */
	RUN_DATA = 1, RUN_ZERO = 2,		/* kinds */
	RUN_DATA_MAX = 1024,			/* chunks */
	COMPARE = 1 << 16,			/* bytes read at a time */
};
static const char magic[8] = "MRNSUMS1";

/* --- hashes */

void sums_hash(const void *p, size_t n, uint8_t out[SUMS_HASH])
{
	if (gnutls_hash_fast(GNUTLS_DIG_SHA256, p, n, out) < 0)
		abort();		/* no memory, or a GnuTLS without SHA-256 */
}

static gnutls_hash_hd_t hash_new(void)
{
	gnutls_hash_hd_t h;

	if (gnutls_hash_init(&h, GNUTLS_DIG_SHA256) < 0)
		abort();
	return h;
}

void sums_hex(const uint8_t hash[SUMS_HASH], char out[2 * SUMS_HASH + 1])
{
	for (unsigned i = 0; i < SUMS_HASH; i++)
		sprintf(out + 2 * i, "%02x", hash[i]);
}

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool sums_unhex(const char *text, uint8_t hash[SUMS_HASH])
{
	if (strlen(text) != 2 * SUMS_HASH)
		return false;
	for (unsigned i = 0; i < SUMS_HASH; i++) {
		int hi = digit(text[2 * i]), lo = digit(text[2 * i + 1]);

		if (hi < 0 || lo < 0)
			return false;
		hash[i] = hi << 4 | lo;
	}
	return true;
}

/* --- writing */

struct sums_writer {
	int fd;
	gnutls_hash_hd_t h;			/* over what was written; NULL: finished */
	uint64_t bytes;				/* written */
	uint64_t chunks;			/* of the disk */
	uint64_t next;				/* the lowest index that may come */
	uint64_t first, count;			/* the run at hand */
	unsigned kind;				/* 0: none */
	uint8_t run[RUN + RUN_DATA_MAX * SUMS_HASH];
};

static int put(struct sums_writer *w, const void *p, size_t n)
{
	const char *at = p;

	gnutls_hash(w->h, p, n);
	w->bytes += n;
	while (n) {
		ssize_t got = write(w->fd, at, n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -errno : -EIO;
		at += got;
		n -= got;
	}
	return 0;
}

int sums_create(int fd, uint32_t chunk, uint64_t size, struct sums_writer **out, struct error *err)
{
	struct sums_writer *w = calloc(1, sizeof(*w));
	uint8_t header[HEADER] = { 0 };
	int rc;

	if (!w)
		return error_errno(err, -ENOMEM, "checksums");
	w->fd = fd;
	w->h = hash_new();
	w->chunks = DIV_ROUND_UP(size, (uint64_t)chunk);
	memcpy(header, magic, sizeof(magic));
	put_be32(header + 8, chunk);
	put_be64(header + 16, size);
	rc = put(w, header, sizeof(header));
	if (rc < 0) {
		sums_discard(w);
		return error_errno(err, rc, "writing checksums failed");
	}
	*out = w;
	return 0;
}

static int put_run(struct sums_writer *w)
{
	size_t hashes = w->kind == RUN_DATA ? w->count * SUMS_HASH : 0;

	if (!w->kind)
		return 0;
	put_be64(w->run, w->first);
	put_be32(w->run + 8, w->count);
	put_be32(w->run + 12, w->kind);
	w->kind = 0;
	return put(w, w->run, RUN + hashes);
}

/* Makes the run at hand one of KIND with room, that ends before INDEX. */
static int take_run(struct sums_writer *w, uint64_t index, unsigned kind)
{
	uint64_t most = kind == RUN_DATA ? RUN_DATA_MAX : UINT32_MAX;
	int rc = 0;

	assert(index >= w->next && index < w->chunks);
	if (w->kind != kind || w->first + w->count != index || w->count == most) {
		rc = put_run(w);
		w->kind = kind;
		w->first = index;
		w->count = 0;
	}
	return rc;
}

int sums_put_data(struct sums_writer *w, uint64_t index, const uint8_t hash[SUMS_HASH])
{
	int rc = take_run(w, index, RUN_DATA);

	if (rc < 0)
		return rc;
	memcpy(w->run + RUN + w->count++ * SUMS_HASH, hash, SUMS_HASH);
	w->next = index + 1;
	return 0;
}

int sums_put_zero(struct sums_writer *w, uint64_t index, uint64_t count)
{
	int rc = 0;

	while (count && rc == 0) {
		uint64_t n;

		rc = take_run(w, index, RUN_ZERO);
		n = min_u64(count, UINT32_MAX - w->count);
		w->count += n;
		index += n;
		count -= n;
		w->next = index;
	}
	return rc;
}

int sums_finish(struct sums_writer *w, uint64_t *bytes, uint8_t hash[SUMS_HASH])
{
	int rc = put_run(w);

	*bytes = w->bytes;
	gnutls_hash_deinit(w->h, hash);
	w->h = NULL;
	return rc;
}

void sums_discard(struct sums_writer *w)
{
	if (w && w->h)
		gnutls_hash_deinit(w->h, NULL);
	free(w);
}

/* --- reading */

struct layer {
	struct sums_file f;
	uint64_t at;				/* where in the file the next run begins */
	uint64_t first, end;			/* the run at hand; none: first = end = UINT64_MAX */
	unsigned kind;
	bool loaded;				/* its hashes are in HASH */
	uint8_t *hash;				/* RUN_DATA_MAX of them; owned */
};

struct sums {
	uint32_t chunk;
	uint64_t size, chunks;			/* of the disk: layer 0's */
	uint64_t at;				/* the next chunk to tell of */
	unsigned n;
	struct layer layer[];
};

static int damaged(const struct layer *l, struct error *err, const char *what)
{
	return error_set(err, -EUCLEAN, "%s: damaged: %s", l->f.name, what);
}

static int get(const struct layer *l, void *p, size_t n, uint64_t off, struct error *err)
{
	for (char *to = p; n;) {
		ssize_t got = pread(l->f.fd, to, n, off);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return error_errno(err, -errno, "%s: reading failed", l->f.name);
		if (got == 0)
			return damaged(l, err, "too short");
		to += got;
		off += got;
		n -= got;
	}
	return 0;
}

/* The file's hash is the manifest's. */
static int compare(const struct layer *l, struct error *err)
{
	gnutls_hash_hd_t h = hash_new();
	char *buf = malloc(COMPARE);
	uint8_t hash[SUMS_HASH];
	struct stat st;
	int rc = buf ? 0 : error_errno(err, -ENOMEM, "%s", l->f.name);

	if (rc == 0 && (fstat(l->f.fd, &st) < 0 || (uint64_t)st.st_size != l->f.bytes))
		rc = damaged(l, err, "not as long as the manifest says");
	for (uint64_t off = 0, n; rc == 0 && off < l->f.bytes; off += n) {
		n = min_u64(COMPARE, l->f.bytes - off);
		rc = get(l, buf, n, off, err);
		if (rc == 0)
			gnutls_hash(h, buf, n);
	}
	gnutls_hash_deinit(h, hash);
	free(buf);
	if (rc == 0 && memcmp(hash, l->f.hash, SUMS_HASH))
		rc = damaged(l, err, "not the checksum that the manifest has of it");
	return rc;
}

bool sums_file_is(int fd, uint64_t bytes, const uint8_t hash[SUMS_HASH])
{
	struct layer l = { .f = { .fd = fd, .name = "", .bytes = bytes } };

	memcpy(l.f.hash, hash, SUMS_HASH);
	return compare(&l, NULL) == 0;
}

static int check_header(const struct sums *s, const struct layer *l, struct error *err)
{
	uint8_t h[HEADER];
	int rc = get(l, h, sizeof(h), 0, err);

	if (rc < 0)
		return rc;
	if (memcmp(h, magic, sizeof(magic)))
		return damaged(l, err, "no file of checksums");
	if (get_be32(h + 8) != s->chunk || get_be64(h + 16) != l->f.size)
		return damaged(l, err, "of another size than the manifest says");
	return 0;
}

/* The run behind the one at hand. */
static int next_run(const struct sums *s, struct layer *l, struct error *err)
{
	uint64_t after = l->end, chunks = DIV_ROUND_UP(l->f.size, (uint64_t)s->chunk);
	uint8_t h[RUN];
	uint32_t count;
	int rc;

	if (l->at == l->f.bytes) {
		l->first = l->end = UINT64_MAX;
		return 0;
	}
	rc = get(l, h, sizeof(h), l->at, err);
	if (rc < 0)
		return rc;
	l->first = get_be64(h);
	count = get_be32(h + 8);
	l->kind = get_be32(h + 12);
	if (count == 0 || l->first < after || !checked_range(l->first, count, chunks))
		return damaged(l, err, "a run of chunks is not where it can be");
	if (l->kind != RUN_ZERO && (l->kind != RUN_DATA || count > RUN_DATA_MAX))
		return damaged(l, err, "a run of chunks of an unknown kind");
	l->end = l->first + count;
	l->at += RUN + (l->kind == RUN_DATA ? (uint64_t)count * SUMS_HASH : 0);
	l->loaded = false;
	return l->at > l->f.bytes ? damaged(l, err, "too short") : 0;
}

void sums_rewind(struct sums *s)
{
	s->at = 0;
	for (unsigned i = 0; i < s->n; i++) {
		s->layer[i].at = HEADER;
		s->layer[i].first = s->layer[i].end = 0;
	}
}

int sums_open(struct sums_file *files, unsigned n, uint32_t chunk, struct sums **out,
	      struct error *err)
{
	struct sums *s = calloc(1, sizeof(*s) + n * sizeof(s->layer[0]));
	int rc = s ? 0 : error_errno(err, -ENOMEM, "checksums");

	for (unsigned i = 0; !s && i < n; i++)
		close(files[i].fd);
	if (!s)
		return rc;
	s->chunk = chunk;
	s->n = n;
	s->size = files[0].size;
	s->chunks = DIV_ROUND_UP(s->size, (uint64_t)chunk);
	for (unsigned i = 0; i < n; i++)
		s->layer[i].f = files[i];
	for (unsigned i = 0; i < n && rc == 0; i++) {
		s->layer[i].hash = malloc(RUN_DATA_MAX * SUMS_HASH);
		rc = s->layer[i].hash ? compare(&s->layer[i], err)
				      : error_errno(err, -ENOMEM, "checksums");
		if (rc == 0)
			rc = check_header(s, &s->layer[i], err);
	}
	if (rc < 0) {
		sums_close(s);
		return rc;
	}
	sums_rewind(s);
	*out = s;
	return 0;
}

void sums_close(struct sums *s)
{
	for (unsigned i = 0; s && i < s->n; i++) {
		close(s->layer[i].f.fd);
		free(s->layer[i].hash);
	}
	free(s);
}

static int load_hashes(struct layer *l, struct error *err)
{
	size_t n = (l->end - l->first) * SUMS_HASH;
	int rc = l->loaded ? 0 : get(l, l->hash, n, l->at - n, err);

	l->loaded = rc == 0;
	return rc;
}

/* The uppermost layer that tells of s->at, or -1; *LIMIT: how far its word goes. */
static int who_tells(struct sums *s, int *who, uint64_t *limit, struct error *err)
{
	*limit = s->chunks;
	for (unsigned i = 0; i < s->n; i++) {
		struct layer *l = &s->layer[i];

		while (l->end <= s->at) {
			int rc = next_run(s, l, err);

			if (rc < 0)
				return rc;
		}
		*limit = min_u64(*limit, l->first <= s->at ? l->end : l->first);
		*who = i;
		if (l->first <= s->at)
			return 0;
	}
	*who = -1;
	return 0;
}

int sums_next(struct sums *s, uint64_t *index, uint64_t *count, uint8_t hash[SUMS_HASH],
	      int *layer, struct error *err)
{
	struct layer *l;
	uint64_t limit;
	int who, rc;

	if (s->at >= s->chunks)
		return SUMS_END;
	rc = who_tells(s, &who, &limit, err);
	if (rc < 0)
		return rc;
	l = who < 0 ? NULL : &s->layer[who];
	if (layer)
		*layer = who;
	*index = s->at;
	if (!l || l->kind == RUN_ZERO) {
		*count = limit - s->at;
		s->at = limit;
		return SUMS_ZERO;
	}
	rc = load_hashes(l, err);
	if (rc < 0)
		return rc;
	*count = 1;
	memcpy(hash, l->hash + (s->at++ - l->first) * SUMS_HASH, SUMS_HASH);
	return SUMS_DATA;
}

int sums_root(struct sums *s, uint8_t root[SUMS_HASH], struct error *err)
{
	struct sums_root *r = sums_root_new(s->chunk, s->size);
	uint8_t hash[SUMS_HASH];
	uint64_t index, count;
	int kind;

	sums_rewind(s);
	while ((kind = sums_next(s, &index, &count, hash, NULL, err)) > 0)
		if (kind == SUMS_DATA)
			sums_root_add(r, index, hash);
	sums_root_end(r, root);
	sums_rewind(s);
	return kind;
}

/* --- roots */

struct sums_root {
	gnutls_hash_hd_t h;
};

static void root_number(struct sums_root *r, uint64_t n)
{
	uint8_t b[8];

	put_be64(b, n);
	gnutls_hash(r->h, b, sizeof(b));
}

struct sums_root *sums_root_new(uint32_t chunk, uint64_t size)
{
	struct sums_root *r = malloc(sizeof(*r));

	if (!r)
		abort();
	r->h = hash_new();
	gnutls_hash(r->h, "merino root\n", 12);
	root_number(r, chunk);
	root_number(r, size);
	return r;
}

void sums_root_add(struct sums_root *r, uint64_t index, const uint8_t hash[SUMS_HASH])
{
	root_number(r, index);
	gnutls_hash(r->h, hash, SUMS_HASH);
}

void sums_root_end(struct sums_root *r, uint8_t root[SUMS_HASH])
{
	gnutls_hash_deinit(r->h, root);
	free(r);
}
