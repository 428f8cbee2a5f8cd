// SPDX-License-Identifier: BSD-3-Clause
/* io-sys-range: zeroing, discarding and mapping ranges of files and devices.
 *
 * Zeroing goes down a ladder, from what costs nothing to what costs a write:
 *
 *   file, may leave a hole   PUNCH_HOLE
 *   file                     ZERO_RANGE; else PUNCH_HOLE, then allocate again
 *   device, may unmap        PUNCH_HOLE (the kernel refuses it unless zeroes
 *                            are guaranteed)
 *   device                   BLKZEROOUT (may write them: not with IO_ZERO_FAST)
 *   last                     zeroes from memory, never with IO_ZERO_FAST
 *
 * A step that the file system does not know is not tried on this file again.
 */
#include "common/io-sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdalign.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/extents.h"

static int fallocate_restart(int fd, int mode, uint64_t off, uint64_t len)
{
	while (fallocate(fd, mode, off, len) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* "This file system cannot", as opposed to "it failed".  EINVAL is among them:
 * devices say it for ranges that are not whole blocks. */
static bool refused(int rc)
{
	return rc == -EOPNOTSUPP || rc == -ENOSYS || rc == -ENODEV || rc == -EINVAL || rc == -ENOTTY;
}

/* EINVAL may be about this range only: it does not count for the next one. */
static int remember(bool *flag, int rc)
{
	if (refused(rc) && rc != -EINVAL)
		__atomic_store_n(flag, true, __ATOMIC_RELAXED);
	return refused(rc) ? -ENOTSUP : rc;
}

static int punch(struct io_file *f, uint64_t off, uint64_t len)
{
	if (__atomic_load_n(&f->no_punch, __ATOMIC_RELAXED))
		return -ENOTSUP;
	return remember(&f->no_punch, fallocate_restart(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
							off, len));
}

static int zero_range(struct io_file *f, uint64_t off, uint64_t len)
{
	if (__atomic_load_n(&f->no_zero_range, __ATOMIC_RELAXED))
		return -ENOTSUP;
	return remember(&f->no_zero_range, fallocate_restart(f->fd, FALLOC_FL_ZERO_RANGE, off, len));
}

/* The file ends at END or later; what is added reads as zeroes.  The last byte
 * is the caller's range, so a concurrent extension by others loses nothing. */
static int extend(struct io_file *f, uint64_t end)
{
	int64_t size = io_sys_size(f);
	int rc;

	if (size < 0)
		return size;
	if ((uint64_t)size >= end)
		return 0;
	rc = fallocate_restart(f->fd, 0, end - 1, 1);
	return refused(rc) ? -ENOTSUP : rc;
}

static int zero_with_hole(struct io_file *f, uint64_t off, uint64_t len)
{
	int rc;

	/* Not to extend a file whose holes cannot be punched afterwards. */
	if (__atomic_load_n(&f->no_punch, __ATOMIC_RELAXED))
		return -ENOTSUP;
	rc = extend(f, off + len);
	return rc < 0 ? rc : punch(f, off, len);
}

static int zero_allocated(struct io_file *f, uint64_t off, uint64_t len)
{
	int rc = zero_range(f, off, len);

	if (rc != -ENOTSUP)
		return rc;
	rc = punch(f, off, len);
	if (rc == 0)
		rc = fallocate_restart(f->fd, 0, off, len);
	return refused(rc) ? -ENOTSUP : rc;
}

static int zero_device(struct io_file *f, uint64_t off, uint64_t len, unsigned flags)
{
	uint64_t range[2] = { off, len };
	int rc = -ENOTSUP;

	if (flags & IO_ZERO_UNMAP)
		rc = punch(f, off, len);
	if (rc != -ENOTSUP || (flags & IO_ZERO_FAST))
		return rc;
	rc = ioctl(f->fd, BLKZEROOUT, range) < 0 ? -errno : 0;
	return refused(rc) ? -ENOTSUP : rc;
}

static int zero_by_writing(struct io_file *f, uint64_t off, uint64_t len)
{
	static alignas(4096) const char zeroes[65536];

	while (len) {
		size_t n = len < sizeof(zeroes) ? len : sizeof(zeroes);
		int rc = io_sys_pwrite(f, zeroes, n, off, 0);

		if (rc < 0)
			return rc;
		off += n;
		len -= n;
	}
	return 0;
}

int io_sys_zero(struct io_file *f, uint64_t off, uint64_t len, unsigned flags)
{
	int rc = -ENOTSUP;

	if (!len)
		return 0;
	if (f->is_block_device) {
		rc = zero_device(f, off, len, flags);
	} else {
		if (flags & IO_ZERO_UNMAP)
			rc = zero_with_hole(f, off, len);
		if (rc == -ENOTSUP)
			rc = zero_allocated(f, off, len);
	}
	if (rc == -ENOTSUP && !(flags & IO_ZERO_FAST))
		rc = zero_by_writing(f, off, len);
	return rc;
}

int io_sys_discard(struct io_file *f, uint64_t off, uint64_t len)
{
	uint64_t range[2] = { off, len };
	int rc;

	if (!len)
		return 0;
	if (!f->is_block_device)
		return punch(f, off, len);
	rc = ioctl(f->fd, BLKDISCARD, range) < 0 ? -errno : 0;
	return refused(rc) ? -ENOTSUP : rc;
}

/* Finds the run that starts at OFF and says whether it is a HOLE: returns its
 * end (at least OFF + 1), or -errno. */
static int64_t run_end(struct io_file *f, uint64_t off, bool *hole)
{
	off_t data, end;

	data = lseek(f->fd, off, SEEK_DATA);
	if (data < 0 && errno == ENXIO) {	/* no data from here on, or behind the end */
		*hole = true;
		return INT64_MAX;
	}
	*hole = data > (off_t)off;
	if (*hole)
		return data;
	if (data >= 0) {
		end = lseek(f->fd, off, SEEK_HOLE);
		if (end > (off_t)off)
			return end;
		if (end < 0 && errno == ENXIO) {	/* truncated in between */
			*hole = true;
			return INT64_MAX;
		}
	}
	/* Cannot say: data until the end of the file. */
	end = io_sys_size(f);
	*hole = end >= 0 && end <= (off_t)off;
	return *hole ? INT64_MAX : end;
}

int io_sys_map(struct io_file *f, uint64_t off, uint64_t len, struct extents *x)
{
	uint64_t end = off + len;

	while (off < end) {
		bool hole = false;
		int64_t next = run_end(f, off, &hole);

		if (next < 0)
			return next;
		if ((uint64_t)next > end)
			next = end;
		if (!extents_add(x, next - off, hole ? EXTENT_ZERO | EXTENT_HOLE : 0, 0))
			break;
		off = next;
	}
	return 0;
}
