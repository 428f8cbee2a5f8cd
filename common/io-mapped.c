// SPDX-License-Identifier: BSD-3-Clause
/* io-mapped: memory that outlives the process, as a file (io-mapped.h says why).
 *
 * The directory may be a stranger's: the last component is never followed when it
 * is a link, and a file that somebody else made is neither mapped nor believed.
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
#include <time.h>
#include <unistd.h>

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int boot_id(uint8_t id[16])
{
	char text[64] = "";
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC), digits = 0;
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	int rc = n < 0 ? -errno : 0;

	if (fd >= 0)
		close(fd);
	memset(id, 0, 16);
	for (ssize_t i = 0; i < n && digits < 32; i++)
		if (hex_digit(text[i]) >= 0) {
			id[digits / 2] = (uint8_t)(id[digits / 2] << 4 | hex_digit(text[i]));
			digits++;
		}
	return rc ? rc : digits == 32 ? 0 : -EINVAL;
}

static int64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	return clock_gettime(clock, &t) < 0 ? 0 : (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int io_sys_identity(struct io_file *f, struct io_identity *id)
{
	struct stat st;

	if (fstat(f->fd, &st) < 0)
		return -errno;
	id->size = f->is_block_device ? 0 : (uint64_t)st.st_size;
	id->mtime = f->is_block_device ? 0
		    : (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
	id->ctime = f->is_block_device ? 0
		    : (int64_t)st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec;
	id->booted = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_BOOTTIME);
	id->dev = f->is_block_device ? st.st_rdev : st.st_dev;
	id->ino = f->is_block_device ? 0 : st.st_ino;
	return boot_id(id->boot);
}

/* "/a/b/image" -> "/a/b/.image.SUFFIX" */
static int path_beside(struct io_file *f, const struct io_identity *id, const char *suffix,
		       char *path, size_t max)
{
	char link[64], image[PATH_MAX];
	char *name;
	ssize_t n;
	int len;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", f->fd);
	n = readlink(link, image, sizeof(image) - 1);
	if (n < 0)
		return -errno;
	image[n] = 0;
	name = strrchr(image, '/');
	if (image[0] != '/' || f->is_block_device)
		return -ENOTSUP;	/* a file without a name; a directory that is the kernel's */
	*name++ = 0;
	if (strlen(name) + strlen(suffix) + sizeof("...new") - 1 <= NAME_MAX)
		len = snprintf(path, max, "%s/.%s.%s", image, name, suffix);
	else
		len = snprintf(path, max, "%s/.%s-%llx-%llx", image, suffix,
			       (unsigned long long)id->dev, (unsigned long long)id->ino);
	return len < 0 || (size_t)len >= max ? -ENAMETOOLONG : 0;
}

int io_sys_path_beside(struct io_file *f, const char *dir, const char *suffix, char *path, size_t max)
{
	struct io_identity id;
	int rc = io_sys_identity(f, &id), len;

	if (rc || !dir)
		return rc ? rc : path_beside(f, &id, suffix, path, max);
	len = snprintf(path, max, "%s/%s-%llx-%llx", dir, suffix, (unsigned long long)id.dev,
		       (unsigned long long)id.ino);
	return len < 0 || (size_t)len >= max ? -ENAMETOOLONG : 0;
}

static int path_of(struct io_file *f, const char *dir, char *path, size_t max)
{
	return io_sys_path_beside(f, dir, "crash-log", path, max);
}

/* All blocks of [0, len), as zeroes, whatever the file system can do. */
static int allocate(int fd, size_t len)
{
	static const char zero[65536];
	int rc;

	do
		rc = fallocate(fd, 0, 0, len) < 0 ? -errno : 0;
	while (rc == -EINTR);
	if (rc != -EOPNOTSUPP)
		return rc;
	for (size_t at = 0; at < len;) {
		ssize_t n = pwrite(fd, zero, len - at < sizeof(zero) ? len - at : sizeof(zero), at);

		if (n < 0 && errno != EINTR)
			return -errno;
		at += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static int map_new(struct io_mapped *m, const char *path, size_t len)
{
	struct stat st;
	int fd, rc;

	if (unlink(path) < 0 && errno != ENOENT)
		return -errno;
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOATIME, 0600);
	if (fd < 0)
		return -errno;
	rc = fstat(fd, &st) < 0 ? -errno : allocate(fd, len);
	if (!rc) {
		m->mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		rc = m->mem == MAP_FAILED ? -errno : 0;
		m->dev = st.st_dev;
		m->ino = st.st_ino;
	}
	close(fd);
	if (rc)
		unlink(path);
	return rc;
}

int io_sys_mapped_make(struct io_file *f, const char *dir, size_t len, struct io_mapped **out,
		       struct error *err)
{
	struct io_mapped *m = calloc(1, sizeof(*m));
	char path[PATH_MAX] = "";
	int rc = m ? path_of(f, dir, path, sizeof(path)) : -ENOMEM;

	if (!rc) {
		m->path = strdup(path);
		rc = m->path ? map_new(m, path, len) : -ENOMEM;
	}
	if (rc) {
		if (m)
			free(m->path);
		free(m);
		return error_errno(err, rc, "Could not create the crash log '%s'", path);
	}
	m->io = f->io;
	m->len = len;
	*out = m;
	return 0;
}

/* Whether the file FD is one that we may have made for the image F. */
static int check_ours(int fd, struct io_file *f, size_t len)
{
	struct stat log, image;

	if (fstat(fd, &log) < 0 || fstat(f->fd, &image) < 0)
		return -errno;
	if (!S_ISREG(log.st_mode) || (size_t)log.st_size != len)
		return -EINVAL;
	if (log.st_uid != geteuid() && log.st_uid != 0 && log.st_uid != image.st_uid)
		return -EPERM;
	return 0;
}

int io_sys_mapped_read(struct io_file *f, const char *dir, size_t len, uint8_t **data)
{
	char path[PATH_MAX];
	size_t done = 0;
	uint8_t *p;
	int fd, rc = path_of(f, dir, path, sizeof(path));

	if (rc)
		return rc;
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	rc = check_ours(fd, f, len);
	p = rc ? NULL : malloc(len);
	if (!rc && !p)
		rc = -ENOMEM;
	while (!rc && done < len) {
		ssize_t n = pread(fd, p + done, len - done, done);

		if (n < 0 && errno != EINTR)
			rc = -errno;
		else if (n == 0)
			rc = -EINVAL;
		done += n > 0 ? (size_t)n : 0;
	}
	close(fd);
	if (rc)
		free(p);
	else
		*data = p;
	return rc;
}

/* When the image was moved away and another one opened in its place, the file there is
 * that one's. */
static bool is_still_there(const struct io_mapped *m)
{
	struct stat st;

	return !lstat(m->path, &st) && st.st_dev == m->dev && st.st_ino == m->ino;
}

void io_sys_mapped_end(struct io_mapped *m, bool remove)
{
	munmap(m->mem, m->len);
	if (remove && is_still_there(m))
		unlink(m->path);
	free(m->path);
	free(m);
}
