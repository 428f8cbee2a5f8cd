/* SPDX-License-Identifier: BSD-3-Clause */
/* The loop and its io table, with a ring and without (MERINO_IO=threads). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/loop.h"

struct run {
	struct loop_msg msg;
	struct loop *main, *other;
	void (*body)(struct run *r);
};

static void run_co(void *arg)
{
	struct run *r = arg;

	r->body(r);
	loop_stop(r->main);
}

static void run_start(struct loop_msg *m)
{
	co_start(run_co, m);
}

/* Runs BODY in a coroutine on a loop of its own, beside a spawned one. */
static void in_loops(void (*body)(struct run *r))
{
	struct error err = ERROR_INIT;
	struct run r = { .msg.fn = run_start, .body = body };

	r.main = loop_new("main", &err);
	assert_non_null(r.main);
	r.other = loop_spawn("other", &err);
	assert_non_null(r.other);
	loop_post(r.main, &r.msg);
	loop_run(r.main);
	loop_free(r.other);
	loop_free(r.main);
}

static void sees_loop(void *arg)
{
	*(struct loop **)arg = loop_self();
	io_sleep(loop_io(loop_self()), 1000000);
}

static void calls(struct run *r)
{
	struct loop *seen = NULL;

	for (int i = 0; i < 50; i++) {
		loop_call(r->other, sees_loop, &seen);
		assert_ptr_equal(seen, r->other);
	}
	loop_call(r->main, sees_loop, &seen);
	assert_ptr_equal(seen, r->main);
}

static void works(void *arg)
{
	usleep(1000);
	++*(int *)arg;
}

static int worked;

static void one_worker(void *arg)
{
	int n = 0;

	loop_work(works, &n);
	assert_int_equal(n, 1);
	worked++;
}

static void workers(struct run *r)
{
	for (int i = 0; i < 20; i++)
		co_start(one_worker, NULL);
	while (worked < 20)
		io_sleep(loop_io(r->main), 1000000);
	worked = 0;
}

static sem_t second_runs;
static int long_ended = 1;		/* 0: the long job ended well */

static void long_work(void *arg)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 100;
	long_ended = sem_timedwait(&second_runs, &until);
}

static void one_long_worker(void *arg)
{
	loop_work(long_work, NULL);
	worked++;
}

static void short_work(void *arg)
{
	sem_post(&second_runs);
}

/* A job does not queue behind a long one while more threads may be started. */
static void workers_beside_a_long_job(struct run *r)
{
	int n = 0;

	sem_init(&second_runs, 0, 0);
	loop_work(works, &n);
	io_sleep(loop_io(r->main), 20000000);	/* its thread is idle again */
	co_start(one_long_worker, NULL);
	loop_work(short_work, NULL);
	while (!worked)
		io_sleep(loop_io(r->main), 1000000);
	assert_int_equal(long_ended, 0);
	worked = 0;
	sem_destroy(&second_runs);
}

static void timers(struct run *r)
{
	uint64_t t = loop_now();

	io_sleep(loop_io(r->main), 30000000);
	t = loop_now() - t;
	assert_true(t >= 30000000 && t < 60000000000u);
}

static void files(struct run *r)
{
	char path[] = "/tmp/merino-test-loop.XXXXXX", buf[8192], back[8192];
	struct error err = ERROR_INIT;
	int fd = mkstemp(path);
	struct io_file *f;

	assert_true(fd >= 0);
	close(fd);
	f = io_open(loop_io(r->main), path, IO_RDWR, &err);
	assert_non_null(f);
	memset(buf, 'm', sizeof(buf));
	assert_int_equal(io_pwrite(f, buf, sizeof(buf), 100, 0), 0);
	assert_int_equal(io_pwrite(f, buf, 10, 9000, IO_DSYNC), 0);
	assert_int_equal(io_fsync(f), 0);
	assert_int_equal(io_size(f), 9010);
	assert_int_equal(io_pread(f, back, 8192, 100), 8192);
	assert_memory_equal(buf, back, 8192);
	assert_int_equal(io_pread(f, back, 8192, 9000), 10);	/* the end of the file */
	assert_int_equal(io_pread(f, back, 100, 20000), 0);
	assert_int_equal(io_zero(f, 200, 5000, IO_ZERO_UNMAP), 0);
	assert_int_equal(io_pread(f, back, 5000, 200), 5000);
	for (int i = 0; i < 5000; i++)
		assert_int_equal(back[i], 0);
	assert_int_equal(io_truncate(f, 50), 0);
	assert_int_equal(io_size(f), 50);
	io_file_unref(f);
	assert_null(io_open(loop_io(r->main), "/nonexistent/file", 0, &err));
	assert_int_equal(err.code, -ENOENT);
	unlink(path);
}

static int pair[2];

static void echo(void *arg)
{
	struct io *io = loop_io(loop_self());
	char c;

	while (io_recv(io, pair[1], &c, 1) == 1) {
		struct iovec v = { .iov_base = &c, .iov_len = 1 };

		assert_int_equal(io_send(io, pair[1], &v, 1, false), 1);
	}
	worked = 1;
}

static void sockets(struct run *r)
{
	struct io *io = loop_io(r->main);
	char c;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
	worked = 0;
	co_start(echo, NULL);
	for (int i = 0; i < 100; i++) {
		struct iovec v = { .iov_base = &(char){ (char)i }, .iov_len = 1 };

		assert_int_equal(io_send(io, pair[0], &v, 1, false), 1);
		assert_int_equal(io_recv_all(io, pair[0], &c, 1), 0);
		assert_int_equal(c, i);
	}
	/* A waiting receive is cancelled by shutting the socket down. */
	shutdown(pair[1], SHUT_RDWR);
	while (!worked)
		io_sleep(io, 1000000);
	assert_true(io_poll(io, pair[0], POLLIN) & POLLIN);
	close(pair[0]);
	close(pair[1]);
	worked = 0;
}

static void everything(struct run *r)
{
	calls(r);
	workers_beside_a_long_job(r);
	workers(r);
	timers(r);
	files(r);
	sockets(r);
}

static void test_ring(void **state)
{
	unsetenv("MERINO_IO");
	in_loops(everything);
}

static void test_threads(void **state)
{
	setenv("MERINO_IO", "threads", 1);
	in_loops(everything);
	unsetenv("MERINO_IO");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ring),
		cmocka_unit_test(test_threads),
	};

	/* Valgrind takes what a ring reads for uninitialised: threads alone there. */
	if (getenv("MERINO_VALGRIND"))
		return cmocka_run_group_tests_name("threads", ((const struct CMUnitTest[]){
			cmocka_unit_test(test_threads) }), NULL, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
