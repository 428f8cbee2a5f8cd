/* SPDX-License-Identifier: BSD-3-Clause */
/* What a process cannot do any more: rings, and (in children) the filters. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/loop-int.h"

/* -- rings ------------------------------------------------------------------- */

static int ring_result(struct io_uring *ring)
{
	struct io_uring_cqe *cqe;
	int res;

	assert_int_equal(io_uring_submit(ring), 1);
	assert_int_equal(io_uring_wait_cqe(ring, &cqe), 0);
	res = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return res;
}

static void test_ring_refuses(void **state)
{
	struct io_uring ring;
	struct io_uring_sqe *sqe;
	char byte = 'x';
	int fds[2], rc = loop_ring_open(&ring);

	if (rc == -ENOSYS || rc == -EPERM)
		skip();			/* no ring here: nothing to refuse */
	assert_int_equal(rc, 0);
	assert_int_equal(pipe(fds), 0);

	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_write(sqe, fds[1], &byte, 1, 0);
	assert_int_equal(ring_result(&ring), 1);

	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_openat(sqe, AT_FDCWD, "/dev/null", O_RDONLY, 0);
	assert_int_equal(ring_result(&ring), -EACCES);

	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_connect(sqe, fds[0], NULL, 0);
	assert_int_equal(ring_result(&ring), -EACCES);

	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_write(sqe, fds[1], &byte, 1, 0);
	sqe->flags |= IOSQE_ASYNC;
	assert_int_equal(ring_result(&ring), -EACCES);

	assert_int_equal(io_uring_register_files(&ring, fds, 2), -EACCES);
	close(fds[0]);
	close(fds[1]);
	io_uring_queue_exit(&ring);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ring_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
