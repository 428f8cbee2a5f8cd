// SPDX-License-Identifier: BSD-3-Clause
/* repo-read: pieces out of checksums, and their bytes out of the images. */
#include "clients/repo-read.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"

static int open_sums(struct repo_reader *d, const char *disk, struct error *err)
{
	int rc;

	graph_init(&d->graph);
	if (!d->disk)
		return error_set(err, -ENOENT, "point %s has no disk '%s'", d->point->id, disk);
	d->buf = malloc((size_t)READ_CHUNKS * REPO_CHUNK);
	d->root = sums_root_new(REPO_CHUNK, d->disk->size);
	if (!d->buf || !d->root)
		return error_errno(err, -ENOMEM, "%s", disk);
	rc = repo_chain(d->r, d->point, disk, &d->chain, err);
	return rc ? rc : repo_chain_sums(d->r, &d->chain, &d->sums, err);
}

int repo_reader_open(struct repo_reader *d, const struct repo *r, const struct repo_point *p,
		     const char *disk, struct error *err)
{
	int rc;

	*d = (struct repo_reader){ .r = r, .point = p, .disk = repo_disk(p, disk) };
	rc = open_sums(d, disk, err);
	if (rc == 0)
		rc = repo_chain_node(r, &d->chain, &d->graph, &d->node, err);
	if (rc == 0)
		rc = node_use_add(&d->use, d->node, PERM_CONSISTENT_READ, PERM_CONSISTENT_READ, err, "merino");
	return rc;
}

static void set_writable(struct json_object *o)
{
	struct json_object *file;

	json_object_object_add(o, "read-only", json_object_new_boolean(false));
	json_object_object_add(o, "crash-log", json_object_new_string("off"));
	json_object_object_add(o, "discard", json_object_new_string("unmap"));
	json_object_object_get_ex(o, "file", &file);
	json_object_object_add(file, "read-only", json_object_new_boolean(false));
}

int repo_reader_open_rw(struct repo_reader *d, const struct repo *r, const struct repo_point *p,
			const char *disk, struct error *err)
{
	struct node_place where = { .graph = &d->graph, .io = io_blocking() };
	struct json_object *o;
	int rc;

	*d = (struct repo_reader){ .r = r, .point = p, .disk = repo_disk(p, disk) };
	rc = open_sums(d, disk, err);
	if (rc < 0)
		return rc;
	o = repo_chain_blockdev(r, &d->chain, err);
	if (!o)
		return err->code;
	set_writable(o);
	rc = node_open(&where, o, &d->node, err);
	json_object_put(o);
	return rc ? rc : node_use_add(&d->use, d->node, PERM_CONSISTENT_READ | PERM_WRITE, PERM_CONSISTENT_READ, err,
				      "merino prune");
}

int repo_reader_settle(struct repo_reader *d, struct error *err)
{
	int rc = node_flush(d->node);

	node_use_drop(&d->use);
	node_unref(d->node);
	d->node = NULL;
	rc = rc ? rc : d->graph.close_rc;
	return rc ? error_errno(err, rc, "point %s, disk '%s': its image could not be flushed", d->point->id, d->disk->name) : 0;
}

void repo_reader_close(struct repo_reader *d)
{
	uint8_t unused[SUMS_HASH];

	node_use_drop(&d->use);
	node_unref(d->node);
	sums_close(d->sums);
	if (d->root)
		sums_root_end(d->root, unused);
	pthread_mutex_destroy(&d->graph.lock);
	free(d->buf);
	*d = (struct repo_reader){ 0 };
}

int repo_reader_fail(const struct repo_reader *d, uint64_t off, int code, const char *what,
		     struct error *err)
{
	return error_set(err, code, "point %s, disk '%s', offset %llu: %s", d->point->id, d->disk->name,
			 (unsigned long long)off, what);
}

/* What the checksums say next, into d->kind and so on. */
static int look(struct repo_reader *d, struct error *err)
{
	int rc;

	if (d->have || d->end)
		return 0;
	rc = sums_next(d->sums, &d->index, &d->count, d->hash, &d->layer, err);
	if (rc < 0)
		return rc;
	d->kind = rc;
	d->end = rc == SUMS_END;
	d->have = !d->end;
	return 0;
}

static int end(struct repo_reader *d, struct error *err)
{
	uint8_t root[SUMS_HASH];

	if (!d->root)
		return 0;
	sums_root_end(d->root, root);
	d->root = NULL;
	if (memcmp(root, d->disk->root, sizeof(root)) == 0)
		return 0;
	return error_set(err, -EIO, "point %s, disk '%s': the checksums do not come to the root that the manifest has",
			 d->point->id, d->disk->name);
}

static void set_bytes(const struct repo_reader *d, struct repo_piece *p)
{
	p->off = p->index * REPO_CHUNK;
	p->len = min_u64(p->count * REPO_CHUNK, d->disk->size - p->off);
}

/* Takes over what was looked at, if it goes on with P. */
static bool join(struct repo_reader *d, struct repo_piece *p)
{
	if (!d->have || d->kind != SUMS_DATA || p->count == READ_CHUNKS || d->layer != p->layer ||
	    d->index != p->index + p->count)
		return false;
	memcpy(p->hash[p->count++], d->hash, SUMS_HASH);
	sums_root_add(d->root, d->index, d->hash);
	d->have = false;
	return true;
}

int repo_reader_next(struct repo_reader *d, struct repo_piece *p, struct error *err)
{
	int rc = look(d, err);

	if (rc < 0)
		return rc;
	if (d->end)
		return end(d, err);
	*p = (struct repo_piece){ .index = d->index, .layer = d->layer, .zero = d->kind == SUMS_ZERO };
	if (p->zero) {
		p->count = d->count;
		d->have = false;
	}
	while (!p->zero && rc == 0 && join(d, p))
		rc = look(d, err);
	set_bytes(d, p);
	return rc < 0 ? rc : 1;
}

int repo_reader_data(struct repo_reader *d, const struct repo_piece *p, uint32_t *wrong)
{
	int rc = node_read(d->node, d->buf, p->off, p->len);

	*wrong = 0;
	for (uint64_t i = 0; rc == 0 && i < p->count; i++) {
		uint64_t at = i * REPO_CHUNK;
		uint8_t hash[SUMS_HASH];

		sums_hash(d->buf + at, min_u64(REPO_CHUNK, p->len - at), hash);
		if (memcmp(hash, p->hash[i], sizeof(hash)))
			*wrong |= 1u << i;
	}
	return rc;
}
