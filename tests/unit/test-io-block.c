// SPDX-License-Identifier: BSD-3-Clause
/* The blocking table on real files, a loop device (when we may have one) and
 * socket pairs.  What a file system may or may not support is not asserted;
 * what is read back always is.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/extents.h"
#include "common/io-beside.h"
#include "common/io-sys.h"

static char dir[] = "/tmp/merino-test-io-block.XXXXXX";
static char path[64];		/* in DIR; removed after each test */

static struct io_file *must_open(const char *name, unsigned flags)
{
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io_blocking(), name, flags, &err);

	if (!f)
		fail_msg("%s", err.text);
	return f;
}

static int remove_file(void **state)
{
	unlink(path);
	return 0;
}

static void fill(struct io_file *f, int byte, size_t len, uint64_t off)
{
	char *buf = malloc(len);

	memset(buf, byte, len);
	assert_int_equal(io_pwrite(f, buf, len, off, 0), 0);
	free(buf);
}

static void assert_filled(struct io_file *f, int byte, size_t len, uint64_t off)
{
	unsigned char *buf = aligned_alloc(4096, (len + 4095) & ~4095ul);

	assert_int_equal(io_pread(f, buf, len, off), len);
	for (size_t i = 0; i < len; i++)
		if (buf[i] != byte)
			fail_msg("byte %zu is %#x, not %#x", (size_t)off + i, buf[i], byte);
	free(buf);
}

static void reads_and_writes(void **state)
{
	struct io_file *f = must_open(path, IO_RDWR | IO_CREATE);
	char buf[100];

	assert_int_equal(f->refs, 1);
	assert_int_equal(f->align, 1);
	assert_true(f->writable);
	fill(f, 'x', 100000, 5000);
	assert_int_equal(io_pwrite(f, "dsync", 5, 0, IO_DSYNC), 0);
	assert_int_equal(io_fsync(f), 0);
	assert_int_equal(io_size(f), 105000);
	assert_filled(f, 0, 4995, 5);
	assert_filled(f, 'x', 100000, 5000);
	assert_int_equal(io_pread(f, buf, 100, 104990), 10);
	assert_int_equal(io_pread(f, buf, 100, 105000), 0);
	assert_int_equal(io_truncate(f, 10), 0);
	assert_int_equal(io_size(f), 10);
	io_file_unref(f);
}

static void open_flags(void **state)
{
	struct error err = ERROR_INIT;
	struct io_file *f;

	assert_null(io_open(io_blocking(), path, IO_RDWR, &err));
	assert_int_equal(err.code, -ENOENT);
	assert_non_null(strstr(err.text, "Could not open '"));
	assert_non_null(strstr(err.text, "': No such file or directory"));

	f = must_open(path, IO_RDWR | IO_CREATE);
	assert_true(fcntl(f->fd, F_GETFD) & FD_CLOEXEC);
	assert_false(fcntl(f->fd, F_GETFL) & O_NONBLOCK);
	fill(f, 'x', 10, 0);
	io_file_unref(f);
	assert_null(io_open(io_blocking(), path, IO_RDWR | IO_CREATE, &err));
	assert_int_equal(err.code, -EEXIST);
	f = must_open(path, 0);
	assert_int_equal(io_pwrite(f, "x", 1, 0, 0), -EBADF);
	io_file_unref(f);
	f = must_open(path, IO_RDWR | IO_CREATE | IO_TRUNC);
	assert_int_equal(io_size(f), 0);
	io_file_unref(f);
}

static void refuses_what_is_not_a_disk(void **state)
{
	struct error err = ERROR_INIT;

	assert_int_equal(mkfifo(path, 0600), 0);	/* would hang without O_NONBLOCK */
	assert_null(io_open(io_blocking(), path, 0, &err));
	assert_int_equal(err.code, -EINVAL);
	assert_non_null(strstr(err.text, "not a regular file or block device"));
	assert_null(io_open(io_blocking(), path, IO_RDWR | IO_CREATE | IO_TRUNC, &err));
	assert_null(io_open(io_blocking(), "/dev/null", IO_RDWR, &err));
	assert_int_equal(err.code, -EINVAL);
	assert_null(io_open(io_blocking(), dir, 0, &err));
	assert_int_equal(err.code, -EISDIR);
}

static void adopts_a_descriptor(void **state)
{
	struct error err = ERROR_INIT;
	int fd = open(path, O_RDONLY | O_CREAT, 0600);
	struct io_file *f;

	assert_null(io_sys_adopt(io_blocking(), fd, "fdset", IO_RDWR, &err));
	assert_int_equal(err.code, -EACCES);
	assert_null(io_sys_adopt(io_blocking(), fd, "fdset", IO_DIRECT, &err));
	assert_int_equal(err.code, -EINVAL);
	assert_null(io_sys_adopt(io_blocking(), -1, "fdset", 0, &err));
	assert_int_equal(err.code, -EBADF);
	f = io_sys_adopt(io_blocking(), fd, "fdset", 0, &err);
	assert_non_null(f);
	io_file_unref(f);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void zero_each(struct io_file *f, unsigned flags, bool may_refuse)
{
	int rc;

	fill(f, 'x', 1 << 20, 0);
	rc = io_zero(f, 4096 * 3, 4096 * 5, flags);
	if (may_refuse && rc == -ENOTSUP) {
		assert_filled(f, 'x', 1 << 20, 0);
		return;
	}
	assert_int_equal(rc, 0);
	assert_filled(f, 'x', 4096 * 3, 0);
	assert_filled(f, 0, 4096 * 5, 4096 * 3);
	assert_filled(f, 'x', (1 << 20) - 4096 * 8, 4096 * 8);
	/* not aligned to anything: devices can only write that */
	rc = io_zero(f, 100001, 77777, flags);
	if (may_refuse && rc == -ENOTSUP)
		return;
	assert_int_equal(rc, 0);
	assert_filled(f, 'x', 100001 - 4096 * 8, 4096 * 8);
	assert_filled(f, 0, 77777, 100001);
	assert_filled(f, 'x', 1000, 177778);
}

static void zeroes(void **state)
{
	struct io_file *f = must_open(path, IO_RDWR | IO_CREATE);

	for (unsigned flags = 0; flags < 4; flags++)
		zero_each(f, flags, flags & IO_ZERO_FAST);
	assert_int_equal(io_size(f), 1 << 20);
	io_file_unref(f);
}

static void zeroes_where_nothing_is_supported(void **state)
{
	struct io_file *f = must_open(path, IO_RDWR | IO_CREATE);

	f->no_punch = f->no_zero_range = true;
	zero_each(f, 0, false);
	zero_each(f, IO_ZERO_UNMAP, false);
	assert_int_equal(io_zero(f, 0, 4096, IO_ZERO_FAST), -ENOTSUP);
	assert_int_equal(io_zero(f, 0, 4096, IO_ZERO_FAST | IO_ZERO_UNMAP), -ENOTSUP);
	assert_int_equal(io_discard(f, 0, 4096), -ENOTSUP);
	assert_int_equal(io_zero(f, 1 << 20, 100, 0), 0);
	assert_int_equal(io_size(f), (1 << 20) + 100);
	io_file_unref(f);
}

/* Zeroing behind the end extends the file, with and without a hole. */
static void zeroes_extend(void **state)
{
	struct io_file *f = must_open(path, IO_RDWR | IO_CREATE);
	struct stat st;

	fill(f, 'x', 1000, 0);
	assert_int_equal(io_zero(f, 500, 9500, 0), 0);
	assert_int_equal(io_size(f), 10000);
	assert_filled(f, 'x', 500, 0);
	assert_filled(f, 0, 9500, 500);
	assert_int_equal(io_zero(f, 1 << 20, 1 << 20, IO_ZERO_UNMAP), 0);
	assert_int_equal(io_size(f), 2 << 20);
	assert_filled(f, 0, (2 << 20) - 10000, 10000);
	assert_int_equal(fstat(f->fd, &st), 0);
	if (!f->no_punch)
		assert_true(st.st_blocks * 512 < 1 << 20);
	io_file_unref(f);
}

static void discards(void **state)
{
	struct io_file *f = must_open(path, IO_RDWR | IO_CREATE);
	int rc;

	fill(f, 'x', 65536, 0);
	rc = io_discard(f, 4096, 8192);
	if (rc == 0)
		assert_filled(f, 0, 8192, 4096);
	else
		assert_int_equal(rc, -ENOTSUP);
	assert_filled(f, 'x', 4096, 0);
	assert_int_equal(io_discard(f, 65536, 4096), rc);
	assert_int_equal(io_size(f), 65536);
	io_file_unref(f);
}

static uint64_t holes_in(const struct extents *x)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < x->n; i++) {
		assert_true(x->v[i].flags == 0 || x->v[i].flags == (EXTENT_ZERO | EXTENT_HOLE));
		if (x->v[i].flags)
			n += x->v[i].len;
	}
	return n;
}

static void maps(void **state)
{
	struct io_file *f = must_open(path, IO_RDWR | IO_CREATE);
	struct extent run[4];
	struct extents x = { .v = run, .max = 4 };

	fill(f, 'x', 65536, 1 << 20);
	assert_int_equal(io_truncate(f, 4 << 20), 0);
	assert_int_equal(io_fsync(f), 0);
	assert_int_equal(io_map(f, 0, 8 << 20, &x), 0);
	assert_int_equal(x.total, 8 << 20);
	assert_true(holes_in(&x) >= 4 << 20);	/* what is behind the end, at least */
	assert_int_equal(x.v[x.n - 1].flags, EXTENT_ZERO | EXTENT_HOLE);
	if (x.n == 3) {				/* the file system tells */
		assert_int_equal(run[0].len, 1 << 20);
		assert_int_equal(run[1].len, 65536);
		x.n = x.total = 0;
		x.max = 1;
		assert_int_equal(io_map(f, (1 << 20) + 5, 1 << 20, &x), 0);
		assert_int_equal(x.total, 65536 - 5);
	}
	x = (struct extents){ .v = run, .max = 4 };
	assert_int_equal(io_map(f, 10 << 20, 100, &x), 0);
	assert_int_equal(holes_in(&x), 100);
	io_file_unref(f);
}

static void direct(void **state)
{
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io_blocking(), path, IO_RDWR | IO_CREATE | IO_DIRECT, &err);
	char *buf = aligned_alloc(4096, 65536);

	if (!f) {
		free(buf);
		assert_non_null(strstr(err.text, "does not support O_DIRECT"));
		skip();
	}
	assert_true(f->align >= 512 && f->align <= 65536);
	memset(buf, 'd', 65536);
	assert_int_equal(io_pwrite(f, buf, 65536, 65536, 0), 0);
	assert_int_equal(io_truncate(f, 131072 - 100), 0);
	assert_int_equal(io_pread(f, buf, 65536, 65536), 65536 - 100);	/* short at the end */
	assert_filled(f, 'd', 4096, 65536);
	assert_false(io_is_cached(f, 0, 4096));
	io_file_unref(f);
	free(buf);
}

static void is_cached(void **state)
{
	struct io_file *f = must_open(path, IO_RDWR | IO_CREATE);

	fill(f, 'x', 65536, 0);
	if (!io_is_cached(f, 0, 65536)) {
		io_file_unref(f);
		skip();		/* a kernel before 6.5, or a sandbox */
	}
	assert_true(io_is_cached(f, 100, 1));
	assert_true(io_is_cached(f, 0, 0));
	assert_false(io_is_cached(f, 0, 65537));
	assert_false(io_is_cached(f, 1 << 30, 4096));
	assert_int_equal(io_fsync(f), 0);
	assert_int_equal(posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	io_file_unref(f);
}

/* A loop device over PATH in NAME; false: not here. */
static bool loop_attach(char *name, size_t size, int *loop)
{
	struct loop_info64 info = { .lo_flags = LO_FLAGS_AUTOCLEAR };	/* gone with our descriptors */
	int ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC), backing, n;

	if (ctl < 0)
		return false;
	n = ioctl(ctl, LOOP_CTL_GET_FREE);
	close(ctl);
	snprintf(name, size, "/dev/loop%d", n);
	*loop = n < 0 ? -1 : open(name, O_RDWR | O_CLOEXEC);
	if (*loop < 0)
		return false;
	backing = open(path, O_RDWR | O_CLOEXEC);
	if (backing >= 0 && ioctl(*loop, LOOP_SET_FD, backing) == 0 &&
	    ioctl(*loop, LOOP_SET_STATUS64, &info) == 0) {
		close(backing);
		return true;
	}
	close(backing);
	close(*loop);
	return false;
}

static void check_device(struct io_file *f)
{
	struct extent run[4];
	struct extents x = { .v = run, .max = 4 };

	assert_true(f->is_block_device);
	assert_int_equal(io_size(f), 4 << 20);
	assert_int_equal(io_truncate(f, 4 << 20), 0);
	assert_int_equal(io_truncate(f, 8 << 20), -ENOTSUP);
	for (unsigned flags = 0; flags < 4; flags++)
		zero_each(f, flags, flags & IO_ZERO_FAST);
	assert_int_equal(io_map(f, 0, 8 << 20, &x), 0);
	assert_int_equal(x.n, 2);
	assert_int_equal(run[0].len, 4 << 20);
	assert_int_equal(run[0].flags, 0);
	fill(f, 'x', 65536, 0);
	assert_true(io_discard(f, 4096, 4096) == 0 || f->no_punch);
	assert_filled(f, 'x', 4096, 0);
	assert_int_equal(io_fsync(f), 0);
}

static void block_devices(void **state)
{
	struct io_file *f = must_open(path, IO_RDWR | IO_CREATE);
	struct error err = ERROR_INIT;
	char name[32];
	int loop = -1;

	assert_int_equal(io_truncate(f, 4 << 20), 0);
	io_file_unref(f);
	if (!loop_attach(name, sizeof(name), &loop))
		skip();
	f = io_open(io_blocking(), name, IO_RDWR, &err);
	if (f)
		check_device(f);
	io_file_unref(f);
	f = io_open(io_blocking(), name, IO_RDWR | IO_DIRECT, &err);
	if (f)
		assert_int_equal(f->align, 512);
	io_file_unref(f);
	close(loop);
}

static void *send_slowly(void *arg)
{
	int fd = *(int *)arg;

	for (int i = 0; i < 3; i++) {
		struct timespec t = { .tv_nsec = 5000000 };

		nanosleep(&t, NULL);
		if (write(fd, "abc", 3) != 3)
			break;
	}
	shutdown(fd, SHUT_WR);
	return NULL;
}

static void sockets(void **state)
{
	struct io *io = io_blocking();
	char buf[10] = { 0 };
	pthread_t t;
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv), 0);
	assert_int_equal(pthread_create(&t, NULL, send_slowly, &sv[1]), 0);
	assert_int_equal(io_recv_all(io, sv[0], buf, 8), 0);
	assert_string_equal(buf, "abcabcab");
	assert_true(io_poll(io, sv[0], POLLIN) & POLLIN);
	assert_int_equal(io_recv_all(io, sv[0], buf, 8), -ECONNRESET);
	assert_int_equal(io_recv(io, sv[0], buf, 8), 0);
	pthread_join(t, NULL);
	close(sv[1]);
	assert_int_equal(io_send(io, sv[0], &(struct iovec){ buf, 1 }, 1, false), -EPIPE);
	close(sv[0]);
}

static void *receive_all(void *arg)
{
	static char got[1 << 20];
	int fd = *(int *)arg;

	return (void *)(intptr_t)(io_recv_all(io_blocking(), fd, got, sizeof(got)) ?: got[0] + got[(1 << 20) - 1]);
}

/* More pieces than one sendmsg takes, more bytes than the socket's buffer. */
static void sends_all(void **state)
{
	enum { N = 2048, PIECE = 512 };
	static char data[N * PIECE];
	static struct iovec iov[2 * N];
	pthread_t t;
	void *sum;
	int sv[2];

	memset(data, 1, sizeof(data));
	data[sizeof(data) - 1] = 2;
	for (int i = 0; i < N; i++)
		iov[2 * i] = (struct iovec){ data + i * PIECE, PIECE };
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv), 0);
	assert_int_equal(pthread_create(&t, NULL, receive_all, &sv[1]), 0);
	assert_int_equal(io_send_all(io_blocking(), sv[0], iov, 2 * N), 0);
	pthread_join(t, &sum);
	assert_int_equal((intptr_t)sum, 3);
	close(sv[0]);
	close(sv[1]);
}

static void accepts(void **state)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), conn, fd;

	strcpy(sa.sun_path, path);
	assert_int_equal(bind(listener, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(listener, 1), 0);
	conn = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(connect(conn, (struct sockaddr *)&sa, sizeof(sa)), 0);
	fd = io_accept(io_blocking(), listener);
	assert_true(fd >= 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	close(fd);
	close(conn);
	close(listener);
	assert_int_equal(io_accept(io_blocking(), -1), -EBADF);
}

static void sleeps(void **state)
{
	struct timespec a, b;
	int64_t ns;

	clock_gettime(CLOCK_MONOTONIC, &a);
	io_sleep(io_blocking(), 3000000);
	clock_gettime(CLOCK_MONOTONIC, &b);
	ns = (b.tv_sec - a.tv_sec) * 1000000000ll + b.tv_nsec - a.tv_nsec;
	assert_true(ns >= 3000000);
}

static void refuse(struct io_beside_job *j)
{
	j->rc = -EIO;
}

/* What failed can be ended, whoever failed and however early (fuzz-live found one that could not). */
static void beside_what_failed_is_zeroes(void **state)
{
	static const struct io_beside none;
	const struct io_ops ops = { .beside = refuse };
	struct io io = { .ops = &ops };
	struct io_file image = { .io = &io };
	struct io_beside b;

	(void)state;
	memset(&b, 0xaa, sizeof(b));
	assert_int_equal(io_beside_open(&image, NULL, "x", &b), -EIO);
	assert_memory_equal(&b, &none, sizeof(b));
	memset(&b, 0xaa, sizeof(b));
	assert_int_equal(io_beside_make(&image, NULL, "x", 0, 4096, &b), -EIO);
	assert_memory_equal(&b, &none, sizeof(b));
	io_beside_end(&b, true);
}

#define FILE_TEST(f) cmocka_unit_test_teardown(f, remove_file)

int main(void)
{
	const struct CMUnitTest tests[] = {
		FILE_TEST(reads_and_writes), FILE_TEST(open_flags), FILE_TEST(refuses_what_is_not_a_disk),
		FILE_TEST(adopts_a_descriptor), FILE_TEST(zeroes),
		FILE_TEST(zeroes_where_nothing_is_supported), FILE_TEST(zeroes_extend),
		FILE_TEST(discards), FILE_TEST(maps), FILE_TEST(direct), FILE_TEST(is_cached),
		FILE_TEST(block_devices), FILE_TEST(accepts),
		cmocka_unit_test(sockets), cmocka_unit_test(sends_all), cmocka_unit_test(sleeps),
		cmocka_unit_test(beside_what_failed_is_zeroes),
	};
	int rc;

	if (!mkdtemp(dir))
		return 1;
	snprintf(path, sizeof(path), "%s/f", dir);
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	rmdir(dir);
	return rc;
}
