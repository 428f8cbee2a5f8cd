// SPDX-License-Identifier: BSD-3-Clause
/* killer: preloaded into merinod; kills it at its N-th write or sync.
 *
 * KILLER_COUNT names a file with one 64-bit number, the calls so far.  KILLER_AT=N: the
 * process dies at the N-th; KILLER_HOW=before, after, or half (of what is written).
 * Only calls through the C library are seen: merinod with MERINO_IO=threads.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static uint64_t *count, at;
static const char *how = "before";

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("KILLER_COUNT"), *n = getenv("KILLER_AT");
	int fd = path ? open(path, O_RDWR) : -1;

	if (fd < 0)
		return;
	count = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	at = n ? strtoull(n, NULL, 10) : 0;
	if (getenv("KILLER_HOW"))
		how = getenv("KILLER_HOW");
}

static void die(void)
{
	kill(getpid(), SIGKILL);
	syscall(SYS_exit_group, 137);		/* a seccomp filter may be in the way */
}

/* Whether this call is the last one; BEFORE it is made. */
static int last(void)
{
	if (!count || __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST) != at)
		return 0;
	if (!strcmp(how, "before"))
		die();
	return 1;
}

static int is_image(int fd)
{
	char link[64], path[4096];
	ssize_t n;

	strcpy(link, "/proc/self/fd/");
	for (int d = 10000, on = 0; d; d /= 10)
		if ((on |= fd / d % 10 || d == 1))
			strncat(link, &"0123456789"[fd / d % 10], 1);
	n = readlink(link, path, sizeof(path));
	return n > 6 && !memcmp(path + n - 6, "/image", 6);
}

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

/* The call; the last one of all where it is an image's. */
#define CALL(fd, full, half) do { \
	if (is_image(fd) && last()) { \
		if (!strcmp(how, "half")) \
			(void)!(half); \
		else \
			(void)!(full); \
		die(); \
	} \
	return full; \
} while (0)

ssize_t pwrite64(int fd, const void *p, size_t n, off64_t off)
{
	CALL(fd, REAL(pwrite64)(fd, p, n, off), REAL(pwrite64)(fd, p, n / 8192 * 4096, off));
}

ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t off, int flags)
{
	CALL(fd, REAL(pwritev64v2)(fd, v, n, off, flags), 0);
}

int fdatasync(int fd)
{
	CALL(fd, REAL(fdatasync)(fd), 0);
}

int fsync(int fd)
{
	CALL(fd, REAL(fsync)(fd), 0);
}

int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
	CALL(fd, REAL(fallocate64)(fd, mode, off, len), 0);
}
