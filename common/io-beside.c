// SPDX-License-Identifier: BSD-3-Clause
/* io-beside: files beside an image, as system calls (io-beside.h says what they are for).
 *
 * A new file is written once before it is used: so its blocks are allocated and known to be
 * written, and a durable write into it later changes nothing but data.  Large areas are
 * only allocated.
 */
#include "common/io-beside.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bus-guard.h"
#include "common/io-sys.h"

#define WRITTEN_MAX (64u << 10)		/* bytes; a larger file is allocated, not written */

static int write_zeroes(int fd, uint64_t off, uint64_t len)
{
	static const char zero[65536];

	while (len) {
		ssize_t n = pwrite(fd, zero, len < sizeof(zero) ? len : sizeof(zero), (off_t)off);

		if (n < 0 && errno != EINTR)
			return -errno;
		off += n > 0 ? (uint64_t)n : 0;
		len -= n > 0 ? (uint64_t)n : 0;
	}
	return 0;
}

static int allocate(int fd, uint64_t off, uint64_t len)
{
	int rc;

	if (len <= WRITTEN_MAX)
		return write_zeroes(fd, off, len);
	do
		rc = fallocate(fd, 0, (off_t)off, (off_t)len) < 0 ? -errno : 0;
	while (rc == -EINTR);
	return rc == -EOPNOTSUPP ? write_zeroes(fd, off, len) : rc;
}

/* O_DIRECT, where the file system has it. */
static void go_direct(int fd)
{
	int mode = fcntl(fd, F_GETFL);

	if (mode >= 0)
		fcntl(fd, F_SETFL, mode | O_DIRECT);
}

static int adopt(struct io_beside_job *j, int fd, unsigned flags)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (flags & IO_DIRECT) {
		go_direct(fd);
		if (!(fcntl(fd, F_GETFL) & O_DIRECT))
			flags &= ~(unsigned)IO_DIRECT;
	}
	j->b->f = io_sys_adopt(j->io, fd, j->suffix, flags, NULL);
	j->b->dev = st.st_dev;
	j->b->ino = st.st_ino;
	return j->b->f ? 0 : -EINVAL;
}

/* Whether FD may be a file that we made for the image. */
static int check_ours(int fd, const struct io_file *image)
{
	struct stat file, of;

	if (fstat(fd, &file) < 0 || fstat(image->fd, &of) < 0)
		return -errno;
	if (!S_ISREG(file.st_mode))
		return -EINVAL;
	return file.st_uid == geteuid() || file.st_uid == 0 || file.st_uid == of.st_uid ? 0 : -EPERM;
}

static int open_old(struct io_beside_job *j)
{
	char path[PATH_MAX];
	int rc = io_sys_path_beside(j->f, j->dir, j->suffix, path, sizeof(path)), fd;

	if (rc)
		return rc;
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	rc = check_ours(fd, j->f);
	j->b->path = rc ? NULL : strdup(path);
	if (!rc)
		rc = j->b->path ? adopt(j, fd, 0) : -ENOMEM;
	if (rc) {
		close(fd);
		free(j->b->path);
		*j->b = (struct io_beside){ 0 };
	}
	return rc;
}

static int make_file(struct io_beside_job *j)
{
	int fd, rc;

	if (unlink(j->b->made) < 0 && errno != ENOENT)
		return -errno;
	fd = open(j->b->made, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOATIME, 0600);
	if (fd < 0)
		return -errno;
	rc = allocate(fd, 0, j->len);
	if (!rc)
		rc = adopt(j, fd, IO_RDWR | (j->flags & IO_DIRECT));
	if (rc) {
		close(fd);
		unlink(j->b->made);
	}
	return rc;
}

static int make(struct io_beside_job *j)
{
	char path[PATH_MAX];
	int rc = io_sys_path_beside(j->f, j->dir, j->suffix, path, sizeof(path) - sizeof(".new"));

	if (rc)
		return rc;
	j->b->path = strdup(path);
	j->b->made = strdup(strcat(path, ".new"));
	rc = j->b->path && j->b->made ? make_file(j) : -ENOMEM;
	if (rc) {
		free(j->b->path);
		free(j->b->made);
		*j->b = (struct io_beside){ 0 };
	}
	return rc;
}

/* The directory of PATH is durable. */
static int sync_directory(const char *path)
{
	char *dir = strdup(path), *slash = dir ? strrchr(dir, '/') : NULL;
	int fd, rc;

	if (!slash) {
		free(dir);
		return -ENOMEM;
	}
	slash[slash == dir] = 0;
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	rc = fd < 0 ? -errno : fsync(fd) < 0 ? -errno : 0;
	if (fd >= 0)
		close(fd);
	free(dir);
	return rc;
}

static int keep(struct io_beside *b)
{
	int rc = rename(b->made, b->path) < 0 ? -errno : 0;

	if (rc)
		return rc;
	free(b->made);
	b->made = NULL;
	return sync_directory(b->path);
}

static void end(struct io_beside_job *j)
{
	struct io_beside *b = j->b;
	const char *path = b->made ? b->made : b->path;
	struct stat st;

	io_file_unref(b->f);
	/* When the image was moved away and another one opened in its place, the file there is
	 * that one's. */
	if ((j->remove || b->made) && !lstat(path, &st) && st.st_dev == b->dev && st.st_ino == b->ino) {
		unlink(path);
		if (!b->made)
			sync_directory(path);
	}
	free(b->made);
	free(b->path);
}

static int map(struct io_beside_job *j)
{
	j->mem = mmap(NULL, j->len, PROT_READ | PROT_WRITE, MAP_SHARED, j->f->fd, (off_t)j->off);
	if (j->mem == MAP_FAILED)
		return -errno;
	bus_guard_add(j->mem, j->len);
	return 0;
}

void io_sys_beside(struct io_beside_job *j)
{
	j->rc = 0;
	switch (j->call) {
	case BESIDE_OPEN:
		j->rc = open_old(j);
		break;
	case BESIDE_MAKE:
		j->rc = make(j);
		break;
	case BESIDE_KEEP:
		j->rc = keep(j->b);
		break;
	case BESIDE_END:
		end(j);
		break;
	case BESIDE_GROW:
		j->rc = allocate(j->f->fd, j->off, j->len);
		break;
	case BESIDE_MAP:
		j->rc = map(j);
		break;
	case BESIDE_UNMAP:
		bus_guard_remove(j->mem);
		munmap(j->mem, j->len);
		break;
	}
}
