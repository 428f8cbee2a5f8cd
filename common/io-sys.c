// SPDX-License-Identifier: BSD-3-Clause
/* io-sys: opening files, reading and writing them, and their size.
 *
 * Zeroing, discarding and mapping are in io-sys-range.c.  Whoever names a path
 * may name a FIFO or a terminal: the file is opened with O_NONBLOCK and
 * O_NOCTTY and only then asked what it is.
 *
 * Direct alignment comes from the kernel where it says (STATX_DIOALIGN, the
 * device's logical block), else from one probing read; 4096 when in doubt.
 */
#include "common/io-sys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/fdset.h"

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000U
#endif

enum { DIRECT_ALIGN_SAFE = 4096, DIRECT_ALIGN_MIN = 512 };

/* Direct reads of 512 bytes at 512 into memory aligned to 512: do they work? */
static uint32_t direct_align_probe(int fd)
{
	char mem[3 * DIRECT_ALIGN_SAFE];
	uintptr_t start = ((uintptr_t)mem + DIRECT_ALIGN_SAFE - 1) & ~(uintptr_t)(DIRECT_ALIGN_SAFE - 1);
	char *buf = (char *)start + DIRECT_ALIGN_MIN;

	if (pread(fd, buf, DIRECT_ALIGN_MIN, DIRECT_ALIGN_MIN) == DIRECT_ALIGN_MIN)
		return DIRECT_ALIGN_MIN;
	return DIRECT_ALIGN_SAFE;	/* refused, or the file is too short to tell */
}

static uint32_t direct_align(int fd, bool is_block_device)
{
	struct statx sx;
	int ssz = 0;
	uint32_t align;

	if (is_block_device && ioctl(fd, BLKSSZGET, &ssz) == 0 && ssz >= DIRECT_ALIGN_MIN)
		return ssz;
#ifdef AT_EMPTY_PATH
	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && (sx.stx_mask & STATX_DIOALIGN)) {
		align = sx.stx_dio_offset_align > sx.stx_dio_mem_align ? sx.stx_dio_offset_align
								       : sx.stx_dio_mem_align;
		if (align && !(align & (align - 1)))
			return align < DIRECT_ALIGN_MIN ? DIRECT_ALIGN_MIN : align;
	}
#endif
	return direct_align_probe(fd);
}

struct io_file *io_sys_adopt(struct io *io, int fd, const char *name, unsigned flags,
			     struct error *err)
{
	struct io_file *f;
	struct stat st;
	int mode = fcntl(fd, F_GETFL);

	if (mode < 0 || fstat(fd, &st) < 0) {
		error_errno(err, -errno, "Could not open '%s'", name);
		return NULL;
	}
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
		if (S_ISDIR(st.st_mode))
			error_errno(err, -EISDIR, "Could not open '%s'", name);
		else
			error_set(err, -EINVAL, "Could not open '%s': not a regular file or block device",
				  name);
		return NULL;
	}
	if ((flags & IO_RDWR) ? (mode & O_ACCMODE) != O_RDWR : (mode & O_ACCMODE) == O_WRONLY) {
		error_set(err, -EACCES, "Could not open '%s': the descriptor is not open for %s", name,
			  flags & IO_RDWR ? "reading and writing" : "reading");
		return NULL;
	}
	if (!!(flags & IO_DIRECT) != !!(mode & O_DIRECT)) {
		error_set(err, -EINVAL, "Could not open '%s': the descriptor is %sopen with O_DIRECT", name,
			  mode & O_DIRECT ? "" : "not ");
		return NULL;
	}
	f = calloc(1, sizeof(*f));
	if (!f) {
		error_errno(err, -ENOMEM, "Could not open '%s'", name);
		return NULL;
	}
	f->io = io;
	f->fd = fd;
	f->refs = 1;
	f->is_block_device = S_ISBLK(st.st_mode);
	f->writable = flags & IO_RDWR;
	f->direct = flags & IO_DIRECT;
	f->align = f->direct ? direct_align(fd, f->is_block_device) : 1;
	return f;
}

static int open_restart(const char *path, int oflags)
{
	int fd;

	do
		fd = open(path, oflags, 0644);
	while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

/* The descriptor is a file or device by now: reads and writes shall wait. */
static int finish_open(struct io_file *f, unsigned flags)
{
	int mode = fcntl(f->fd, F_GETFL);

	if (mode < 0 || fcntl(f->fd, F_SETFL, mode & ~O_NONBLOCK) < 0)
		return -errno;
	fcntl(f->fd, F_SETFL, (mode & ~O_NONBLOCK) | O_NOATIME);	/* ours alone; else not */
	if ((flags & IO_CREATE) && (flags & IO_TRUNC) && !f->is_block_device)
		return io_sys_truncate(f, 0);
	return 0;
}

/* Where the file system has no O_TMPFILE, a name that goes at once. */
static int open_unnamed(const char *dir, int oflags)
{
	char path[PATH_MAX];
	int fd = open_restart(dir, (oflags & ~O_CREAT) | O_TMPFILE);

	if (fd != -EOPNOTSUPP && fd != -EISDIR && fd != -EINVAL)
		return fd;
	if (snprintf(path, sizeof(path), "%s/.merino-XXXXXX", dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	unlink(path);
	return fd;
}

struct io_file *io_sys_open(struct io *io, const char *path, unsigned flags, struct error *err)
{
	int oflags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	struct io_file *f;
	int fd, rc;

	oflags |= flags & IO_RDWR ? O_RDWR : O_RDONLY;
	if (flags & IO_DIRECT)
		oflags |= O_DIRECT;
	if (flags & IO_CREATE)
		oflags |= flags & IO_TRUNC ? O_CREAT : O_CREAT | O_EXCL;
	if (flags & IO_UNNAMED)
		oflags &= ~O_EXCL;	/* with O_TMPFILE it means another thing */

	if (flags & IO_UNNAMED)
		fd = open_unnamed(path, oflags);
	else
		fd = fdset_is_name(path) ? fdset_open(path, oflags) : open_restart(path, oflags);
	if (fd == -EINVAL && (flags & IO_DIRECT)) {
		error_set(err, fd, "Could not open '%s': the file system does not support O_DIRECT", path);
		return NULL;
	}
	if (fd < 0) {
		error_errno(err, fd, "Could not open '%s'", path);
		return NULL;
	}
	f = io_sys_adopt(io, fd, path, flags, err);
	if (!f) {
		close(fd);
		return NULL;
	}
	rc = finish_open(f, flags);
	if (rc < 0) {
		error_errno(err, rc, "Could not open '%s'", path);
		io_sys_close(f);
		return NULL;
	}
	return f;
}

void io_sys_close(struct io_file *f)
{
	close(f->fd);
	free(f);
}

ssize_t io_sys_pread(struct io_file *f, void *buf, size_t len, uint64_t off)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pread(f->fd, (char *)buf + done, len - done, off + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += n;
		/* A direct read that stops inside a block stopped at the end of
		 * the file; going on from there would be misaligned. */
		if (n == 0 || (f->direct && n % f->align))
			break;
	}
	return done;
}

/* One pwrite, durable with IO_DSYNC; *NEED_SYNC is set where the kernel or the
 * file system cannot do that by itself. */
static ssize_t write_some(struct io_file *f, const void *buf, size_t len, uint64_t off,
			  unsigned flags, bool *need_sync)
{
	struct iovec iov = { .iov_base = (void *)buf, .iov_len = len };
	ssize_t n;

	if ((flags & IO_DSYNC) && !*need_sync) {
		n = pwritev2(f->fd, &iov, 1, off, RWF_DSYNC);
		if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS))
			return n;
		*need_sync = true;
	}
	return pwrite(f->fd, buf, len, off);
}

int io_sys_pwrite(struct io_file *f, const void *buf, size_t len, uint64_t off, unsigned flags)
{
	bool need_sync = false;
	size_t done = 0;

	while (done < len) {
		ssize_t n = write_some(f, (const char *)buf + done, len - done, off + done, flags,
				       &need_sync);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENOSPC;
		done += n;
	}
	return need_sync ? io_sys_fsync(f) : 0;
}

int io_sys_fsync(struct io_file *f)
{
	while (fdatasync(f->fd) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

int64_t io_sys_size(struct io_file *f)
{
	struct stat st;
	uint64_t size;

	if (f->is_block_device)
		return ioctl(f->fd, BLKGETSIZE64, &size) < 0 ? -errno : (int64_t)size;
	return fstat(f->fd, &st) < 0 ? -errno : st.st_size;
}

int io_sys_truncate(struct io_file *f, uint64_t size)
{
	if (f->is_block_device)
		return io_sys_size(f) == (int64_t)size ? 0 : -ENOTSUP;
	while (ftruncate(f->fd, size) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* cachestat(2); the C library has neither the number nor the structures. */
struct cachestat_range_abi {
	uint64_t off, len;
};

struct cachestat_abi {
	uint64_t cache, dirty, writeback, evicted, recently_evicted;
};

bool io_sys_is_tmpfs(const struct io_file *f)
{
	struct statfs s;

	return fstatfs(f->fd, &s) == 0 && s.f_type == TMPFS_MAGIC;
}

bool io_is_cached(const struct io_file *f, uint64_t off, uint64_t len)
{
	enum { SYS_CACHESTAT = 451 };
	static bool missing;
	struct cachestat_range_abi range = { off, len };
	struct cachestat_abi cs;
	uint64_t page;

	if (!len)
		return true;
	if (f->fd < 0 || f->direct || __atomic_load_n(&missing, __ATOMIC_RELAXED))
		return false;
	if (syscall(SYS_CACHESTAT, f->fd, &range, &cs, 0) < 0) {
		if (errno == ENOSYS)
			__atomic_store_n(&missing, true, __ATOMIC_RELAXED);
		return false;
	}
	page = sysconf(_SC_PAGESIZE);
	return cs.cache >= (off + len - 1) / page - off / page + 1;
}
