// SPDX-License-Identifier: BSD-3-Clause
/* pull-sink: writing into the image, and finishing it.
 *
 * Opening is in pull-sink-open.c.  The order at the end of a new image: the
 * node's metadata is written and the node closed; a descriptor that was open
 * all the time is synced, so that it also reports what the kernel failed to
 * write back earlier; then the image is renamed; then the directory is synced.
 * Until the rename nothing is called what the user asked for, so the image
 * itself needs no ordering on the way (cache.no-flush).
 *
 * An image that is brought up to date in place has to be right at every moment
 * and is flushed like a guest's disk.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/pull-sink-int.h"
#include "common/bytes.h"
#include "common/checked.h"

#define SYNC_EVERY (32ull << 20)

uint64_t sink_previous_size(const struct sink *k)
{
	return k->previous_size;
}

static int sink_failed(const struct sink *k, struct error *err, int rc, const char *what,
		       uint64_t off, uint64_t len)
{
	return error_errno(err, rc, "%s: %s of %llu bytes at offset %llu failed", k->o->out, what,
			   (unsigned long long)len, (unsigned long long)off);
}

int sink_zero(struct sink *k, uint64_t off, uint64_t len, struct error *err)
{
	int rc;

	if (k->fresh)
		return 0;
	/* The image may be longer than the export by a part of a sector. */
	if (off + len == k->size && !k->o->onto)
		len = k->node->size - off;
	rc = node_zero(k->node, off, len, NODE_MAY_UNMAP);
	return rc < 0 ? sink_failed(k, err, rc, "zeroing", off, len) : 0;
}

static int sink_data(struct sink *k, const char *buf, uint64_t off, uint64_t len, struct error *err)
{
	int rc = len ? node_write(k->node, buf, off, len, 0) : 0;

	return rc < 0 ? sink_failed(k, err, rc, "writing", off, len) : 0;
}

/* Storage begins with what was written while more comes: the last sync has less to do. */
static void sink_written(struct sink *k, uint64_t len)
{
	k->unsynced += len;
	if (k->unsynced < SYNC_EVERY || !k->file || k->o->no_flush)
		return;
	sync_file_range(k->file->fd, 0, 0, SYNC_FILE_RANGE_WRITE);	/* a hint */
	k->unsynced = 0;
}

/* The length of the granule at OFF: up to the next boundary, within LEFT. */
static uint64_t granule(const struct sink *k, uint64_t off, uint64_t left)
{
	return min_u64(k->granule - (off & (k->granule - 1)), left);
}

int64_t sink_write(struct sink *k, const void *buf, uint64_t off, size_t len, struct error *err)
{
	const char *p = buf;
	uint64_t data = 0;		/* granules before P that wait to be written */
	int64_t stored = 0;
	int rc = 0;

	for (uint64_t left = len, n; left && rc == 0; left -= n, p += n) {
		n = granule(k, off + (len - left), left);
		if (!bytes_are_zero(p, n)) {
			data += n;
			continue;
		}
		rc = sink_data(k, p - data, off + (p - (const char *)buf) - data, data, err);
		if (rc == 0)
			rc = sink_zero(k, off + (p - (const char *)buf), n, err);
		stored += data;
		data = 0;
	}
	if (rc == 0)
		rc = sink_data(k, p - data, off + len - data, data, err);
	if (rc < 0)
		return rc;
	stored += (int64_t)data;
	sink_written(k, (uint64_t)stored);
	return stored;
}

/* The name must be on storage too, or a power loss takes the backup away. */
static int sync_directory(const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc = fd < 0 || fsync(fd) < 0 ? -errno : 0;

	if (fd >= 0)
		close(fd);
	return rc == -EINVAL ? 0 : rc;	/* a file system that cannot has nothing to sync */
}

/* Gives the image its name; never takes it from a file that is there unless told to. */
static int sink_rename(struct sink *k)
{
	if (k->o->force)
		return rename(k->temp, k->o->out) < 0 ? -errno : 0;
	if (renameat2(AT_FDCWD, k->temp, AT_FDCWD, k->o->out, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -errno;
	if (link(k->temp, k->o->out) < 0)
		return -errno;
	return unlink(k->temp) < 0 ? -errno : 0;
}

/* The rest of the last sector belongs to no byte of the export. */
static int sink_tail(struct sink *k, struct error *err)
{
	uint64_t rest = k->node->size - k->size;

	if (k->fresh || k->o->onto || !rest)
		return 0;
	return sink_zero(k, k->size, rest, err);
}

int sink_flush(struct sink *k, struct error *err)
{
	int rc = node_flush(k->node);

	return rc < 0 ? error_errno(err, rc, "%s: flushing failed", k->o->out) : 0;
}

/* Everything written, durably unless told otherwise; the node is closed after. */
static int sink_settle(struct sink *k, struct error *err)
{
	int rc = sink_tail(k, err);

	if (rc < 0)
		return rc;
	rc = sink_flush(k, err);
	if (rc < 0)
		return rc;
	node_use_drop(&k->use);
	node_unref(k->node);
	k->node = NULL;
	if (k->graph.close_rc)
		return error_errno(err, k->graph.close_rc, "%s: could not be closed", k->o->out);
	rc = k->file && !k->o->no_flush ? io_fsync(k->file) : 0;
	return rc < 0 ? error_errno(err, rc, "%s: flushing failed", k->o->out) : 0;
}

int sink_finish(struct sink *k, struct error *err)
{
	int rc = sink_settle(k, err);

	if (rc < 0 || k->o->onto)
		return rc;
	if (pull_signalled())
		return error_set(err, -EINTR, "stopped by a signal");
	rc = sink_rename(k);
	if (rc < 0)
		return error_errno(err, rc, "%s: could not be renamed to %s", k->temp, k->o->out);
	free(k->temp);
	k->temp = NULL;
	rc = k->o->no_flush ? 0 : sync_directory(k->dir);
	return rc < 0 ? error_errno(err, rc, "%s is complete, but its directory could not be synced",
				    k->o->out) : 0;
}

void sink_close(struct sink *k)
{
	if (!k)
		return;
	node_use_drop(&k->use);
	node_unref(k->node);
	node_use_drop(&k->replaced_use);
	node_unref(k->replaced);
	io_file_unref(k->file);
	if (k->temp)
		unlink(k->temp);
	pthread_mutex_destroy(&k->graph.lock);
	free(k->temp);
	free(k->dir);
	free(k);
}
