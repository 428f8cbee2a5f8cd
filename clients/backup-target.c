// SPDX-License-Identifier: BSD-3-Clause
/* backup-target: writing the image of one disk, and the sums of its chunks.
 *
 * A full has nothing below it: zeroes need not be written, nor told.  Above a parent they
 * are, for the parent may have data there.
 *
 * A chunk of which parts came stays open until something behind it comes.  Then it is
 * read back.  What the chunk has from the points below is compared with their sums
 * first: rotten bytes of an old backup must not get a checksum that says they are right.
 */
#include "clients/backup-target.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "format/node.h"
#include "format/qcow2.h"

#define NO_CHUNK UINT64_MAX

enum { SYNC_EVERY = 64 << 20 };		/* bytes */

struct target {
	struct repo *repo;
	struct repo_disk *d;
	char name[REPO_FILE_MAX], temp[REPO_FILE_MAX + 16];		/* the image's */
	char sums_name[REPO_FILE_MAX], sums_temp[REPO_FILE_MAX + 16];
	const struct repo_chain *chain;	/* NULL: a full */
	bool compress;
	struct io_file *file;		/* the image, for the last sync */
	struct graph graph;
	struct node *node;
	struct node_use use;
	uint64_t unsynced;		/* bytes written since storage began with what came before */
	uint64_t synced, begun;		/* the file is on storage up to here; on its way up to here */
	int sums_fd;
	struct sums_writer *sums;
	struct sums *below;		/* the chain's, from chunk 0 on as they are needed; or NULL */
	struct node *below_node;	/* the parent's image; for partial chunks */
	struct node_use below_use;
	uint64_t below_at, below_count;	/* what sums_next() said last */
	int below_kind;
	uint8_t below_hash[SUMS_HASH];
	bool rotten;			/* what is below is not what was stored */
	uint64_t open;			/* chunk of which parts came, or NO_CHUNK */
	uint8_t *chunk;			/* REPO_CHUNK bytes */
};

static uint64_t chunk_length(uint64_t index, uint64_t size)
{
	return min_u64(REPO_CHUNK, size - index * REPO_CHUNK);
}

void target_sum(const void *buf, uint64_t off, size_t len, uint64_t size, struct chunk_sum *sum)
{
	const char *p = buf;

	for (uint64_t end = off + len, n; off < end; off += n, p += n, sum++) {
		uint64_t index = off / REPO_CHUNK;

		n = min_u64((index + 1) * REPO_CHUNK, end) - off;
		sum->kind = CHUNK_PART;
		if (off % REPO_CHUNK || n != chunk_length(index, size))
			continue;
		sum->kind = bytes_are_zero(p, n) ? CHUNK_ZERO : CHUNK_DATA;
		if (sum->kind == CHUNK_DATA)
			sums_hash(p, n, sum->hash);
	}
}

static int failed(const struct target *t, struct error *err, int rc, const char *what, uint64_t off)
{
	return error_errno(err, rc, "%s/%s: %s at offset %llu failed", t->repo->path, t->temp, what,
			   (unsigned long long)off);
}

/* --- opening */

static int make_image(struct target *t, char compress, struct error *err)
{
	struct qcow2_create create = { .size = t->d->size, .zstd = compress == 'z',
				       .cluster_size = REPO_CHUNK };
	char backing[REPO_FILE_MAX], *path;
	int fd = openat(t->repo->dir, t->temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0)
		return error_errno(err, -errno, "%s/%s", t->repo->path, t->temp);
	close(fd);
	if (asprintf(&path, "%s/%s", t->repo->path, t->temp) < 0)
		return error_errno(err, -ENOMEM, "%s", t->temp);
	t->file = io_open(io_blocking(), path, IO_RDWR, err);
	free(path);
	if (!t->file)
		return err->code;
	if (t->chain) {
		repo_file_name(backing, t->d->name, t->d->parent, "qcow2");
		create.backing_file = backing;
		create.backing_format = "qcow2";
	}
	return qcow2_create(t->file, &create, err);
}

static struct json_object *text(const char *s)
{
	return json_object_new_string(s);
}

static int open_node(struct target *t, struct error *err)
{
	struct node_place where = { .graph = &t->graph, .io = io_blocking() };
	struct json_object *o, *file, *cache, *backing = NULL;
	char *path;
	int rc;

	if (t->chain && !(backing = repo_chain_blockdev(t->repo, t->chain, err)))
		return err->code;
	if (asprintf(&path, "%s/%s", t->repo->path, t->temp) < 0)
		return error_errno(err, -ENOMEM, "%s", t->temp);
	o = json_object_new_object();
	file = json_object_new_object();
	cache = json_object_new_object();
	json_object_object_add(o, "driver", text("qcow2"));
	json_object_object_add(o, "discard", text("unmap"));
	json_object_object_add(cache, "no-flush", json_object_new_boolean(true));
	json_object_object_add(o, "cache", cache);
	json_object_object_add(o, "crash-log", text("off"));	/* it is nothing until it is finished */
	json_object_object_add(file, "driver", text("file"));
	json_object_object_add(file, "filename", text(path));
	json_object_object_add(o, "file", file);
	json_object_object_add(o, "backing", backing);
	free(path);
	rc = node_open(&where, o, &t->node, err);
	json_object_put(o);
	return rc ? rc : node_use_add(&t->use, t->node, PERM_CONSISTENT_READ | PERM_WRITE,
				      PERM_CONSISTENT_READ, err, "merino backup");
}

static int open_sums(struct target *t, struct error *err)
{
	t->sums_fd = openat(t->repo->dir, t->sums_temp,
			    O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (t->sums_fd < 0)
		return error_errno(err, -errno, "%s/%s", t->repo->path, t->sums_temp);
	return sums_create(t->sums_fd, REPO_CHUNK, t->d->size, &t->sums, err);
}

int target_open(struct repo *r, const char *point, struct repo_disk *d, const struct repo_chain *chain,
		char compress, struct target **out, struct error *err)
{
	struct target *t = calloc(1, sizeof(*t));
	int rc;

	if (!t)
		return error_errno(err, -ENOMEM, "%s", d->name);
	*t = (struct target){ .repo = r, .d = d, .chain = chain, .compress = compress, .sums_fd = -1,
			      .open = NO_CHUNK };
	graph_init(&t->graph);
	repo_file_name(t->name, d->name, point, "qcow2");
	repo_file_name(t->sums_name, d->name, point, "sums");
	snprintf(t->temp, sizeof(t->temp), ".%s.partial", t->name);
	snprintf(t->sums_temp, sizeof(t->sums_temp), ".%s.partial", t->sums_name);
	t->chunk = malloc(REPO_CHUNK);
	rc = t->chunk ? make_image(t, compress, err) : error_errno(err, -ENOMEM, "%s", d->name);
	if (rc == 0)
		rc = open_node(t, err);
	if (rc == 0)
		rc = open_sums(t, err);
	if (rc < 0) {
		target_close(t);
		return rc;
	}
	*out = t;
	return 0;
}

/* --- chunks of which parts came */

/* The parent's image by itself, and its sums. */
static int open_below(struct target *t, struct error *err)
{
	int rc = repo_chain_sums(t->repo, t->chain, &t->below, err);

	if (rc == 0)
		rc = repo_chain_node(t->repo, t->chain, &t->graph, &t->below_node, err);
	return rc ? rc : node_use_add(&t->below_use, t->below_node, PERM_CONSISTENT_READ, PERM_ALL, err,
				      "merino backup");
}

/* What the points below say of chunk INDEX is what their images have. */
static int check_below(struct target *t, uint64_t index, struct error *err)
{
	uint64_t size = t->chain->layer[0].disk->size, n;
	uint8_t hash[SUMS_HASH];
	bool zero;
	int rc = t->below ? 0 : open_below(t, err);

	if (rc < 0)
		return rc;
	if (index * REPO_CHUNK >= size)
		return 0;
	while (t->below_at + t->below_count <= index) {
		t->below_kind = sums_next(t->below, &t->below_at, &t->below_count, t->below_hash, NULL, err);
		if (t->below_kind < 0)
			return t->below_kind;
		if (t->below_kind == SUMS_END)
			return error_set(err, -EUCLEAN, "%s: the checksums of %s end too early",
					 t->repo->path, t->d->parent);
	}
	n = chunk_length(index, size);
	rc = node_read(t->below_node, t->chunk, index * REPO_CHUNK, n);
	if (rc < 0)
		return failed(t, err, rc, "reading the point below", index * REPO_CHUNK);
	zero = bytes_are_zero(t->chunk, n);
	sums_hash(t->chunk, n, hash);
	t->rotten = t->below_kind == SUMS_ZERO ? !zero : memcmp(hash, t->below_hash, SUMS_HASH) != 0;
	if (t->rotten)
		return error_set(err, -EUCLEAN, "%s: the restore point %s is damaged: its %s at offset %llu is "
				 "not what was stored", t->repo->path, t->d->parent, t->d->name,
				 (unsigned long long)(index * REPO_CHUNK));
	return 0;
}

static int put_sum(struct target *t, uint64_t index, const struct chunk_sum *sum, struct error *err)
{
	int rc = 0;

	if (sum->kind == CHUNK_DATA)
		rc = sums_put_data(t->sums, index, sum->hash);
	else if (t->chain)
		rc = sums_put_zero(t->sums, index, 1);
	return rc < 0 ? error_errno(err, rc, "%s/%s: writing failed", t->repo->path, t->sums_temp) : 0;
}

static int close_chunk(struct target *t, struct error *err)
{
	uint64_t index = t->open, off = index * REPO_CHUNK, n;
	struct chunk_sum sum;
	int rc;

	if (index == NO_CHUNK)
		return 0;
	t->open = NO_CHUNK;
	rc = t->chain ? check_below(t, index, err) : 0;
	if (rc < 0)
		return rc;
	n = chunk_length(index, t->d->size);
	rc = node_read(t->node, t->chunk, off, n);
	if (rc < 0)
		return failed(t, err, rc, "reading back", off);
	target_sum(t->chunk, off, n, t->d->size, &sum);
	return put_sum(t, index, &sum, err);
}

/* Something at chunk INDEX comes. */
static int reach(struct target *t, uint64_t index, struct error *err)
{
	return t->open == index ? 0 : close_chunk(t, err);
}

/* --- what comes */

/* Storage works while more comes, and never falls behind by more than two times SYNC_EVERY:
 * the last sync is short, and no checkpoint's lease runs out in it. */
static int keep_up(struct target *t, uint64_t len)
{
	struct stat st;
	int rc = 0;

	t->unsynced += len;
	if (t->unsynced < SYNC_EVERY)
		return 0;
	t->unsynced = 0;
	if (fstat(t->file->fd, &st) < 0 || (uint64_t)st.st_size <= t->begun)
		return 0;
	sync_file_range(t->file->fd, t->begun, st.st_size - t->begun, SYNC_FILE_RANGE_WRITE);	/* a hint */
	if (t->begun > t->synced)
		rc = sync_file_range(t->file->fd, t->synced, t->begun - t->synced, SYNC_FILE_RANGE_WAIT_BEFORE |
				     SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
	t->synced = t->begun;
	t->begun = st.st_size;
	return rc < 0 && (errno == EIO || errno == ENOSPC) ? -errno : 0;
}

static int write_data(struct target *t, const char *buf, uint64_t off, uint64_t len, struct error *err)
{
	int rc = len ? node_write(t->node, buf, off, len, t->compress ? NODE_COMPRESS : 0) : 0;

	t->d->data += len;
	if (rc >= 0)
		rc = keep_up(t, len);
	return rc < 0 ? failed(t, err, rc, "writing", off) : 0;
}

static int write_zero(struct target *t, uint64_t off, uint64_t len, struct error *err)
{
	int rc;

	t->d->zero += len;
	if (!t->chain)
		return 0;
	if (off + len == t->d->size)	/* the image may be longer by a part of a sector */
		len = t->node->size - off;
	rc = node_zero(t->node, off, len, NODE_MAY_UNMAP);
	return rc < 0 ? failed(t, err, rc, "zeroing", off) : 0;
}

int target_data(struct target *t, const void *buf, uint64_t off, size_t len,
		const struct chunk_sum *sum, struct error *err)
{
	uint64_t end = off + len, start = off, n;	/* [START, OFF): data that waits */
	const char *p = buf;
	int rc = 0;

	for (; off < end && rc == 0; off += n, sum++) {
		uint64_t index = off / REPO_CHUNK;

		n = min_u64((index + 1) * REPO_CHUNK, end) - off;
		/* A chunk that will be read back has to be there, and zeroes end what waits. */
		if (sum->kind == CHUNK_ZERO || (t->open != NO_CHUNK && t->open != index)) {
			rc = write_data(t, p + (start - (end - len)), start, off - start, err);
			start = off;
		}
		if (rc == 0)
			rc = reach(t, index, err);
		if (rc == 0 && sum->kind == CHUNK_ZERO) {
			rc = write_zero(t, off, n, err);
			start = off + n;
		}
		if (rc == 0 && sum->kind == CHUNK_PART)
			t->open = index;
		else if (rc == 0)
			rc = put_sum(t, index, sum, err);
	}
	return rc ? rc : write_data(t, p + (start - (end - len)), start, end - start, err);
}

int target_zero(struct target *t, uint64_t off, uint64_t len, struct error *err)
{
	uint64_t first = off / REPO_CHUNK, end = off + len, whole, last;
	int rc = reach(t, first, err);

	if (rc == 0)
		rc = write_zero(t, off, len, err);
	if (rc < 0 || (!t->chain && t->open == NO_CHUNK && off % REPO_CHUNK == 0 && end % REPO_CHUNK == 0))
		return rc;
	/* The whole chunks are [WHOLE, LAST). */
	whole = off % REPO_CHUNK ? first + 1 : first;
	last = end == t->d->size ? DIV_ROUND_UP(end, (uint64_t)REPO_CHUNK) : end / REPO_CHUNK;
	if (off % REPO_CHUNK)
		t->open = first;
	if (whole < last) {
		rc = close_chunk(t, err);
		if (rc == 0 && t->chain)
			rc = sums_put_zero(t->sums, whole, last - whole);
		if (rc < 0 && !err->code)
			return error_errno(err, rc, "%s/%s: writing failed", t->repo->path, t->sums_temp);
	}
	if (rc == 0 && end > last * REPO_CHUNK && last >= whole) {
		rc = close_chunk(t, err);
		t->open = last;
	}
	return rc;
}

/* --- the end */

static int settle_image(struct target *t, struct error *err)
{
	int rc = node_flush(t->node);

	if (rc < 0)
		return failed(t, err, rc, "flushing", 0);
	node_use_drop(&t->below_use);
	node_unref(t->below_node);
	t->below_node = NULL;
	node_use_drop(&t->use);
	node_unref(t->node);
	t->node = NULL;
	if (t->graph.close_rc)
		return failed(t, err, t->graph.close_rc, "closing", 0);
	rc = io_fsync(t->file);
	return rc < 0 ? failed(t, err, rc, "making durable", 0) : 0;
}

static int settle_sums(struct target *t, struct error *err)
{
	int rc = sums_finish(t->sums, &t->d->sums_bytes, t->d->sums_hash);

	if (rc == 0 && fsync(t->sums_fd) < 0)
		rc = -errno;
	if (rc < 0)
		return error_errno(err, rc, "%s/%s: writing failed", t->repo->path, t->sums_temp);
	return 0;
}

/* The root: what came, over the points below. */
static int find_root(struct target *t, struct error *err)
{
	struct sums_file f[REPO_CHAIN_MAX + 1] = { 0 };
	struct sums *s;
	unsigned n = 0;
	int rc = 0;

	f[n++] = (struct sums_file){
		.fd = openat(t->repo->dir, t->sums_temp, O_RDONLY | O_CLOEXEC | O_NOFOLLOW),
		.name = t->sums_temp, .bytes = t->d->sums_bytes, .size = t->d->size };
	memcpy(f[0].hash, t->d->sums_hash, SUMS_HASH);
	if (f[0].fd < 0)
		return error_errno(err, -errno, "%s/%s", t->repo->path, t->sums_temp);
	if (t->chain)
		rc = repo_chain_sums_files(t->repo, t->chain, f + n, err);
	if (rc < 0) {
		close(f[0].fd);
		return rc;
	}
	n += t->chain ? t->chain->n : 0;
	rc = sums_open(f, n, REPO_CHUNK, &s, err);
	if (rc < 0)
		return rc;
	rc = sums_root(s, t->d->root, err);
	sums_close(s);
	return rc;
}

static int name_file(struct target *t, const char *temp, const char *name, struct error *err)
{
	if (renameat2(t->repo->dir, temp, t->repo->dir, name, RENAME_NOREPLACE) == 0)
		return 0;
	if ((errno != EINVAL && errno != ENOSYS) || faccessat(t->repo->dir, name, F_OK, 0) == 0)
		return error_errno(err, -errno, "%s/%s", t->repo->path, name);
	if (renameat(t->repo->dir, temp, t->repo->dir, name) < 0)
		return error_errno(err, -errno, "%s/%s", t->repo->path, name);
	return 0;
}

int target_finish(struct target *t, struct error *err)
{
	int rc = close_chunk(t, err);

	if (rc == 0)
		rc = settle_image(t, err);
	if (rc == 0)
		rc = settle_sums(t, err);
	if (rc == 0)
		rc = find_root(t, err);
	if (rc == 0)
		rc = name_file(t, t->temp, t->name, err);
	return rc ? rc : name_file(t, t->sums_temp, t->sums_name, err);
}

bool target_below_is_rotten(const struct target *t)
{
	return t->rotten;
}

void target_close(struct target *t)
{
	if (!t)
		return;
	node_use_drop(&t->below_use);
	node_unref(t->below_node);
	node_use_drop(&t->use);
	node_unref(t->node);
	io_file_unref(t->file);
	sums_close(t->below);
	sums_discard(t->sums);
	if (t->sums_fd >= 0)
		close(t->sums_fd);
	pthread_mutex_destroy(&t->graph.lock);
	free(t->chunk);
	free(t);
}
