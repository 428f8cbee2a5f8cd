/* SPDX-License-Identifier: BSD-3-Clause */
/* io-sys when the kernel does less than it was asked: a part, nothing yet (EINTR), or a
 * part and then an error.  A short transfer is never taken for a whole one.
 *
 * io-sys.c itself is compiled in here, with calls of ours under it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static ssize_t short_pread(int fd, void *buf, size_t len, off_t off);
static ssize_t short_pwrite(int fd, const void *buf, size_t len, off_t off);
static ssize_t short_pwritev2(int fd, const struct iovec *v, int n, off_t off, int flags);

#define pread short_pread
#define pwrite short_pwrite
#define pwritev2 short_pwritev2
#include "common/io-sys.c"
#undef pread
#undef pwrite
#undef pwritev2

enum { LEN = 100000 };

static uint64_t seed;
static unsigned calls, fail_at;
static int fail_with;

/* How much of LEN is done this time; -1 with errno set. */
static ssize_t some(size_t len)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	if (++calls == fail_at) {
		errno = fail_with;
		return -1;
	}
	switch (seed >> 33 & 3) {
	case 0:
		errno = EINTR;
		return -1;
	case 1:
		return (ssize_t)len;
	default:
		return (ssize_t)(1 + (seed >> 35) % (len < 4000 ? len : 4000));
	}
}

static ssize_t short_pread(int fd, void *buf, size_t len, off_t off)
{
	ssize_t n = some(len);

	return n < 0 ? n : pread(fd, buf, (size_t)n, off);
}

static ssize_t short_pwrite(int fd, const void *buf, size_t len, off_t off)
{
	ssize_t n = some(len);

	return n < 0 ? n : pwrite(fd, buf, (size_t)n, off);
}

static ssize_t short_pwritev2(int fd, const struct iovec *v, int n, off_t off, int flags)
{
	return short_pwrite(fd, v->iov_base, v->iov_len, off);
}

static struct io_file *new_file(void)
{
	char path[] = "/tmp/merino-short-XXXXXX";
	struct error err = ERROR_INIT;
	int fd = mkstemp(path);
	struct io_file *f;

	assert_true(fd >= 0);
	unlink(path);
	f = io_sys_adopt(NULL, fd, path, IO_RDWR, &err);
	assert_non_null(f);
	calls = fail_at = 0;
	return f;
}

static uint8_t out[LEN], in[LEN + 100];

static void test_parts(void **state)
{
	struct io_file *f = new_file();

	for (seed = 1; seed < 200; seed++) {
		uint64_t first = seed;

		for (unsigned i = 0; i < LEN; i++)
			out[i] = (uint8_t)(i * 7 + first);
		assert_int_equal(io_sys_pwrite(f, out, LEN, first, first % 2 ? IO_DSYNC : 0), 0);
		memset(in, 0, sizeof(in));
		assert_int_equal(io_sys_pread(f, in, LEN, first), LEN);
		assert_memory_equal(in, out, LEN);
		seed = first;
	}
	io_sys_close(f);
}

/* Short at the end of the file, and only there. */
static void test_end_of_file(void **state)
{
	struct io_file *f = new_file();

	assert_int_equal(io_sys_pwrite(f, out, LEN, 0, 0), 0);
	for (unsigned i = 0; i < 50; i++)
		assert_int_equal(io_sys_pread(f, in, LEN, i * 1000), LEN - i * 1000);
	assert_int_equal(io_sys_pread(f, in, LEN, LEN), 0);
	assert_int_equal(io_sys_pread(f, in, LEN, 1u << 30), 0);
	io_sys_close(f);
}

/* A part went well, the rest did not: that is an error, of the whole. */
static void test_error_behind_a_part(void **state)
{
	for (unsigned n = 1; n < 20; n++) {
		struct io_file *f = new_file();
		int rc;

		seed = n;
		fail_at = n;
		fail_with = ENOSPC;
		rc = io_sys_pwrite(f, out, LEN, 0, 0);
		assert_int_equal(rc, calls >= n ? -ENOSPC : 0);
		calls = fail_at = 0;
		assert_int_equal(io_sys_pwrite(f, out, LEN, 0, 0), 0);
		seed = n;
		calls = 0;
		fail_at = n;
		fail_with = EIO;
		rc = (int)io_sys_pread(f, in, LEN, 0);
		assert_int_equal(rc, calls >= n ? -EIO : LEN);
		io_sys_close(f);
	}
}

/* Nothing is asked for: the kernel is not, either. */
static void test_no_bytes(void **state)
{
	struct io_file *f = new_file();

	assert_int_equal(io_sys_pwrite(f, out, 0, 0, 0), 0);
	assert_int_equal(io_sys_pread(f, in, 0, 0), 0);
	assert_int_equal(calls, 0);
	io_sys_close(f);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parts), cmocka_unit_test(test_end_of_file),
		cmocka_unit_test(test_error_behind_a_part), cmocka_unit_test(test_no_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
