/* SPDX-License-Identifier: BSD-3-Clause */
/* The far end of the serial port: a reader that does not read costs the guest a second and
 * itself the oldest bytes; what is typed waits for room.  The machine is a dummy. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/co.h"
#include "common/io.h"
#include "common/loop.h"
#include "vmm/line.h"
#include "vmm/machine.h"

#define RING 65536u

static struct machine m;
static struct line *line;
static uint8_t got[100000];
static unsigned n_got, space_left, n_space;

void machine_tell(struct machine *machine, enum machine_event e)
{
	fail_msg("nobody types here");
}

static unsigned room(void *arg)
{
	return space_left;
}

static void give(void *arg, const uint8_t *bytes, unsigned n)
{
	assert_true(n <= space_left);
	memcpy(got + n_got, bytes, n);
	n_got += n;
	space_left -= n;
}

static void space(void *arg)
{
	n_space++;
}

static const struct line_user user = { room, give, space, NULL };

static void put(unsigned from, unsigned to)
{
	pthread_mutex_lock(&m.lock);
	while (from < to)
		line_put(line, (uint8_t)(from++ * 7 >> 3));
	pthread_mutex_unlock(&m.lock);
}

static bool is_full(void)
{
	bool full;

	pthread_mutex_lock(&m.lock);
	full = line_full(line);
	pthread_mutex_unlock(&m.lock);
	return full;
}

static void wait_ms(unsigned ms)
{
	io_sleep(loop_io(m.main), ms * 1000000ull);
}

static int connect_to(const char *path)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(un.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static unsigned right(const uint8_t *bytes, unsigned n, unsigned from)
{
	unsigned i = 0;

	while (i < n && bytes[i] == (uint8_t)((from + i) * 7 >> 3))
		i++;
	return i;
}

static void check(const uint8_t *bytes, unsigned n, unsigned from)
{
	if (right(bytes, n, from) < n)
		fail_msg("byte %u", right(bytes, n, from));
}

/* All that comes until nothing does, behind the LEAST bytes before END. */
static unsigned drain(int fd, uint8_t *to, unsigned size, unsigned least, unsigned end)
{
	unsigned n = 0, idle = 0;

	for (unsigned naps = 0; naps < 10000; naps++) {
		ssize_t some = read(fd, to + n, size - n);

		n += some > 0 ? (unsigned)some : 0;
		idle = some > 0 ? 0 : idle + 1;
		if (idle > 20 && n >= least && right(to + n - least, least, end - least) == least)
			break;
		if (idle)
			wait_ms(10);
	}
	return n;
}

static char dir[] = "/tmp/test-vmm-line-XXXXXX", path[64], where[80];

static void open_line(void)
{
	struct error err = ERROR_INIT;

	n_got = n_space = 0;
	space_left = 16;
	if (line_open(&m, where, &user, &line, &err))
		fail_msg("%s", err.text);
}

/* Nobody is there: the line is never full, and the next one gets the last 64 KiB. */
static void late(void)
{
	static uint8_t bytes[2 * RING];
	int fd;

	open_line();
	put(0, 200000);
	assert_false(is_full());
	fd = connect_to(path);
	assert_int_equal(drain(fd, bytes, sizeof(bytes), RING, 200000), RING);
	check(bytes, RING, 200000 - RING);
	close(fd);
	line_close(line);
	assert_int_equal(access(path, F_OK), -1);
}

/* What was put until the line was full; 0: this machine stood still, and the second was over. */
static unsigned fill_line(int *fd)
{
	unsigned put_all = 1000;

	open_line();
	*fd = connect_to(path);
	put(0, put_all);
	wait_ms(50);
	for (unsigned i = 0; i < 1000 && !is_full(); i++, put_all += 1000) {
		put(put_all, put_all + 1000);
		if (i % 10 == 9)
			wait_ms(2);
	}
	return is_full() && !n_space ? put_all : 0;
}

/* Somebody is there and does not read: full, but for a second only. */
static void slow(void)
{
	static uint8_t bytes[1 << 20];
	unsigned put_all, n;
	int fd;

	for (unsigned i = 0; !(put_all = fill_line(&fd)); i++) {
		assert_true(i < 20);
		close(fd);
		line_close(line);
	}
	for (unsigned ms = 0; ms < 100000 && is_full(); ms += 50)
		wait_ms(50);
	assert_false(is_full());
	assert_true(n_space > 0);
	put(put_all, put_all + 100000);		/* the guest goes on */
	put_all += 100000;
	n = drain(fd, bytes, sizeof(bytes), RING / 2, put_all);
	check(bytes + n - RING / 2, RING / 2, put_all - RING / 2);
	assert_false(is_full());
	close(fd);
	line_close(line);
}

/* What is sent comes as the port has room, all of it, in order. */
static void input(void)
{
	uint8_t bytes[1000];
	int fd;

	open_line();
	fd = connect_to(path);
	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 7 >> 3);
	assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
	for (unsigned turns = 0; turns < 100000 && n_got < sizeof(bytes); turns++) {
		wait_ms(1);
		pthread_mutex_lock(&m.lock);
		if (!space_left) {
			space_left = 16;
			line_taken(line);
		}
		pthread_mutex_unlock(&m.lock);
	}
	assert_int_equal(n_got, sizeof(bytes));
	check(got, n_got, 0);
	line_close(line);			/* with the client still there */
	close(fd);
}

static rlim_t limit_descriptors(rlim_t n)
{
	struct rlimit r;
	rlim_t was;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &r), 0);
	was = r.rlim_cur;
	r.rlim_cur = n;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &r), 0);
	return was;
}

/* Descriptors ran out when somebody came: when there are some again, he is served. */
static void exhausted(void)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint8_t bytes[1000];
	ssize_t some;
	unsigned n = 0;
	rlim_t was;

	open_line();
	put(0, sizeof(bytes));
	strcpy(un.sun_path, path);
	was = limit_descriptors(3);
	assert_int_equal(connect(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	wait_ms(250);
	assert_int_equal(read(fd, bytes, sizeof(bytes)), -1);
	limit_descriptors(was);
	for (unsigned ms = 0; ms < 100000 && n < sizeof(bytes); ms += 5) {
		some = read(fd, bytes + n, sizeof(bytes) - n);
		n += some > 0 ? (unsigned)some : 0;
		wait_ms(5);
	}
	assert_int_equal(n, sizeof(bytes));
	check(bytes, n, 0);
	close(fd);
	line_close(line);
}

static void (*const scripts[])(void) = { late, slow, input, exhausted };
static unsigned script;

static void run(void *arg)
{
	scripts[script]();
	loop_stop(m.main);
}

static void begin(struct loop_msg *msg)
{
	co_start(run, NULL);
}

static void on_loop(unsigned which)
{
	struct loop_msg msg = { .fn = begin };
	struct error err = ERROR_INIT;

	script = which;
	m.main = loop_new("test", &err);
	assert_non_null(m.main);
	loop_post(m.main, &msg);
	loop_run(m.main);
	loop_free(m.main);
}

static void test_late(void **state)
{
	on_loop(0);
}

static void test_slow(void **state)
{
	on_loop(1);
}

static void test_input(void **state)
{
	on_loop(2);
}

static void test_exhausted(void **state)
{
	on_loop(3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_late),
		cmocka_unit_test(test_slow),
		cmocka_unit_test(test_input),
		cmocka_unit_test(test_exhausted),
	};
	int rc;

	pthread_mutex_init(&m.lock, NULL);
	if (!mkdtemp(dir))
		return 1;
	snprintf(path, sizeof(path), "%s/s", dir);
	snprintf(where, sizeof(where), "unix:%s", path);
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	rmdir(dir);
	return rc;
}
