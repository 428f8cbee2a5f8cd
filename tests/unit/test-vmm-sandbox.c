/* SPDX-License-Identifier: BSD-3-Clause */
/* What a machine under way can do, and what it cannot: in children behind its filter. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <linux/kvm.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/bytes.h"
#include "vmm/net.h"
#include "vmm/sandbox.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

static const struct sandbox_needs least = { 0 }, remote = { .inet = true },
	most = { .inet = true, .listens = true }, trap = { .trap = true };

/* FN in a child behind the filter: its exit status, or minus the signal that ended it.
 * BEFORE, if any, runs without it. */
static int behind(const struct sandbox_needs *n, int (*fn)(void), void (*before)(void))
{
	struct rlimit none = { 0, 0 };
	struct error err = ERROR_INIT;
	pid_t child = fork();
	int status;

	assert_true(child >= 0);
	if (!child) {
		setrlimit(RLIMIT_CORE, &none);
		if (before)
			before();
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		_exit(sandbox_calls(n, &err) ? 99 : fn());
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/* -- what nobody makes ------------------------------------------------------------------ */

static int make_memory_file(void)
{
	return syscall(SYS_memfd_create, "x", 0) < 0 ? errno : 0;
}

static int make_ring(void)
{
	return syscall(SYS_io_uring_setup, 1, NULL) < 0 ? errno : 0;
}

static int mount_something(void)
{
	return syscall(SYS_mount, "a", "/tmp", "tmpfs", 0, NULL) ? errno : 0;
}

static int rename_something(void)
{
	return syscall(SYS_rename, "/nonexistent", "/nonexistent2") ? errno : 0;
}

static int become_root(void)
{
	return syscall(SYS_setresuid, 0, 0, 0) ? errno : 0;
}

static int bind_socket(void)
{
	return bind(-1, NULL, 0) ? errno : 0;
}

static int start_program(void)
{
	char *const argv[] = { (char *)"true", NULL };

	execv("/bin/true", argv);
	return errno;
}

static int call_of_the_future(void)
{
	return syscall(1000) < 0 ? errno : 0;
}

static void *rename_there(void *go)
{
	uint64_t n;

	if (read(*(int *)go, &n, sizeof(n)) != sizeof(n))
		return NULL;
	rename_something();
	return NULL;
}

static int go;
static pthread_t older;

static void start_thread(void)
{
	go = eventfd(0, 0);
	pthread_create(&older, NULL, rename_there, &go);
}

/* A thread that was there before the filter. */
static int let_thread_go(void)
{
	uint64_t one = 1;

	if (write(go, &one, sizeof(one)) != sizeof(one))
		return 1;
	pthread_join(older, NULL);
	return 0;
}

static void test_deadly(void **state)
{
	assert_int_equal(behind(&most, mount_something, NULL), -SIGSYS);
	assert_int_equal(behind(&most, rename_something, NULL), -SIGSYS);
	assert_int_equal(behind(&most, make_memory_file, NULL), -SIGSYS);
	assert_int_equal(behind(&most, make_ring, NULL), -SIGSYS);
	assert_int_equal(behind(&most, become_root, NULL), -SIGSYS);
	assert_int_equal(behind(&trap, mount_something, NULL), -SIGSYS);
	assert_int_equal(behind(&least, bind_socket, NULL), -SIGSYS);
	assert_int_equal(behind(&most, bind_socket, NULL), EBADF);
	assert_int_equal(behind(&most, let_thread_go, start_thread), -SIGSYS);
	assert_int_equal(behind(&most, call_of_the_future, NULL), ENOSYS);
	if (!SANITIZED)
		assert_int_equal(behind(&most, start_program, NULL), -SIGSYS);
}

/* -- what is made with certain arguments ------------------------------------------------- */

static int opens(void)
{
	if (open("/etc/passwd", O_RDONLY | O_CLOEXEC) < 0)
		return 1;
	if (open("/dev/null", O_WRONLY | O_CLOEXEC) >= 0 || errno != ENOSYS)
		return 2;
	if (open("/tmp/merino-test-vmm-sandbox", O_RDONLY | O_CREAT, 0600) >= 0 || errno != ENOSYS)
		return 3;
	return open("/dev/null", O_RDWR | O_CLOEXEC) >= 0 ? 4 : 0;
}

static bool refused(int family, int type)
{
	return socket(family, type | SOCK_CLOEXEC, 0) < 0 && errno == ENOSYS;
}

static int unix_sockets_only(void)
{
	if (socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) < 0)
		return 1;
	return refused(AF_INET, SOCK_STREAM) && refused(AF_INET6, SOCK_DGRAM) && refused(AF_NETLINK, SOCK_RAW) ? 0 : 2;
}

static int no_raw_sockets(void)
{
	if (socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) < 0 || socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0) < 0)
		return 1;
	return refused(AF_INET, SOCK_RAW) && refused(AF_PACKET, SOCK_RAW) && refused(AF_VSOCK, SOCK_STREAM) ? 0 : 2;
}

/* EBADF comes from the kernel: they passed. */
static int ioctls(void)
{
	if (ioctl(-1, KVM_RUN, 0) == 0 || errno != EBADF)
		return 1;
	if (ioctl(-1, KVM_CREATE_VM, 0) == 0 || errno != ENOSYS)
		return 2;
	return ioctl(-1, TIOCSTI, "x") == 0 || errno != ENOSYS ? 3 : 0;
}

static int look_up(void)
{
	struct addrinfo *a = NULL;

	return getaddrinfo("localhost", "10809", NULL, &a) && !a ? 1 : 0;
}

static void *nothing(void *arg)
{
	return arg;
}

static int threads(void)
{
	pthread_t t;

	return pthread_create(&t, NULL, nothing, NULL) || pthread_join(t, NULL) ? 1 : 0;
}

static void test_arguments(void **state)
{
	assert_int_equal(behind(&remote, look_up, NULL), 0);
	assert_int_equal(behind(&remote, no_raw_sockets, NULL), 0);
	assert_int_equal(behind(&least, unix_sockets_only, NULL), 0);
	assert_int_equal(behind(&least, threads, NULL), 0);
	if (SANITIZED)
		return;
	assert_int_equal(behind(&least, opens, NULL), 0);
	assert_int_equal(behind(&least, ioctls, NULL), 0);
}

/* -- libslirp ------------------------------------------------------------------------------ */

static struct net *net;
static unsigned frames;

static bool deliver(void *arg, const uint8_t *frame, size_t len)
{
	frames++;
	return true;
}

static bool room(void *arg)
{
	return true;
}

static void open_net(void)
{
	struct net_options o;
	struct error err = ERROR_INIT;

	if (net_open("user", 0, &o, &net, &err))
		_exit(98);
	net->deliver = deliver;
	net->room = room;
}

/* With its checksum, or an end-to-end one over a pseudo header. */
static uint16_t checksum(const uint8_t *p, size_t len, uint32_t sum)
{
	for (size_t i = 0; i < len; i++)
		sum += i % 2 ? p[i] : (uint32_t)p[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

/* An IPv4 packet of the guest's. */
static void send_ip(uint8_t protocol, const char *to, const uint8_t *payload, size_t len)
{
	uint8_t f[200] = {
		0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 0,
		0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 15,
	};

	memcpy(f + 30, to, 4);
	memcpy(f + 34, payload, len);
	put_be16(f + 16, (uint16_t)(20 + len));
	put_be16(f + 24, checksum(f + 14, 20, 0));
	if (protocol == 6)
		put_be16(f + 34 + 16, checksum(f + 34, len, checksum(f + 26, 8, 6 + (uint32_t)len) ^ 0xffff));
	net->class->send(net, f, 34 + len);
}

static void turn(void)
{
	struct pollfd v[NET_POLL_MAX];
	int timeout = 50;
	unsigned n = net->class->poll(net, true, v, &timeout);

	poll(v, n, timeout < 0 || timeout > 50 ? 50 : timeout);
	net->class->work(net, v, n);
}

/* A name asked for, a ping, a connection to a port of the host where nobody listens. */
static int guest_talks(void)
{
	static const uint8_t arp[60] = {
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 6,
		0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 10, 0, 2, 15,
		0, 0, 0, 0, 0, 0, 10, 0, 2, 2,
	};
	static const uint8_t dns[] = { 0x80, 0, 0, 53, 0, 20, 0, 0, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0 };
	static const uint8_t ping[] = { 8, 0, 0xf7, 0xfd, 0, 1, 0, 1 };
	static const uint8_t syn[] = { 0x80, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0 };
	unsigned before;

	net->class->send(net, arp, sizeof(arp));
	turn();
	if (!frames)
		return 1;
	send_ip(17, "\x0a\0\2\3", dns, sizeof(dns));
	send_ip(1, "\x7f\0\0\1", ping, sizeof(ping));
	turn();
	before = frames;
	send_ip(6, "\x0a\0\2\2", syn, sizeof(syn));
	for (unsigned i = 0; i < 200 && frames == before; i++)
		turn();
	if (frames == before)
		return 2;			/* it is refused, and told so */
	net_close(net);
	return 0;
}

static void test_user_net(void **state)
{
	assert_int_equal(behind(&most, guest_talks, open_net), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_deadly),
		cmocka_unit_test(test_arguments),
		cmocka_unit_test(test_user_net),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
