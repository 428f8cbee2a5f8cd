/* SPDX-License-Identifier: BSD-3-Clause */
/* What a process cannot do any more: rings, and (in children) the filters. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/loop-int.h"
#include "nbd-server/sandbox.h"

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

/* -- system calls -------------------------------------------------------------- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1			/* its filter lets more through: see sandbox-seccomp.c */
#else
#define SANITIZED 0
#endif

/* FN in a child behind the filter: its exit status, or minus the signal that ended it. */
static int behind_filter(int (*fn)(void))
{
	struct rlimit none = { 0, 0 };
	struct error err = ERROR_INIT;
	pid_t child = fork();
	int status;

	assert_true(child >= 0);
	if (!child) {
		setrlimit(RLIMIT_CORE, &none);
		_exit(seccomp_start(false, &err) ? 99 : fn());
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int exec_shell(void)
{
	char *const argv[] = { (char *)"true", NULL };

	execv("/bin/true", argv);
	return errno;
}

static int trace_me(void)
{
	return ptrace(PTRACE_TRACEME, 0, NULL, NULL) ? errno : 0;
}

static int mount_something(void)
{
	return syscall(SYS_mount, "a", "/tmp", "tmpfs", 0, NULL) ? errno : 0;
}

static int load_module(void)
{
	return syscall(SYS_finit_module, -1, "", 0) ? errno : 0;
}

static int use_bpf(void)
{
	return syscall(SYS_bpf, 0, NULL, 0) ? errno : 0;
}

static int use_keyctl(void)
{
	return syscall(SYS_keyctl, 0, 0, 0, 0, 0) ? errno : 0;
}

static int write_memory_of_process(void)
{
	return syscall(SYS_process_vm_writev, getpid(), NULL, 0, NULL, 0, 0) ? errno : 0;
}

static int make_process(void)
{
	return syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0) < 0 ? errno : 0;
}

static int make_memory_executable(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return 98;
	return mprotect(p, 4096, PROT_READ | PROT_EXEC) ? errno : 0;
}

static int make_raw_socket(void)
{
	return socket(AF_PACKET, SOCK_RAW, 0) < 0 ? errno : 0;
}

static int send_signal(void)
{
	if (kill(getpid(), 0) < 0)
		return 98;		/* whether it is alive may be asked */
	return kill(getpid(), SIGWINCH) < 0 ? errno : 0;
}

static int become_root(void)
{
	return syscall(SYS_setresuid, 0, 0, 0) < 0 ? errno : 0;
}

static int link_file(void)
{
	return symlink("/etc/passwd", "/tmp/merino-test-sandbox") < 0 ? errno : 0;
}

static int do_daily_work(void)
{
	char bytes[512] = { 0 };
	int fds[2], s;

	if (pipe2(fds, O_CLOEXEC) || write(fds[1], bytes, 512) != 512 || read(fds[0], bytes, 512) != 512)
		return 1;
	s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s < 0)
		return 2;
	s = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (s < 0 || pwrite(s, bytes, 512, 0) != 512)
		return 3;
	return mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
	       MAP_FAILED ? 4 : 0;
}

static void test_filter(void **state)
{
	assert_int_equal(behind_filter(do_daily_work), 0);
	/* What an intruder wants ends the process … */
	assert_int_equal(behind_filter(mount_something), -SIGSYS);
	assert_int_equal(behind_filter(load_module), -SIGSYS);
	assert_int_equal(behind_filter(use_bpf), -SIGSYS);
	assert_int_equal(behind_filter(use_keyctl), -SIGSYS);
	assert_int_equal(behind_filter(write_memory_of_process), -SIGSYS);
	/* … and what nobody here calls is not there. */
	assert_int_equal(behind_filter(make_raw_socket), ENOSYS);
	assert_int_equal(behind_filter(become_root), ENOSYS);
	assert_int_equal(behind_filter(link_file), ENOSYS);
	if (SANITIZED)
		return;
	assert_int_equal(behind_filter(exec_shell), -SIGSYS);
	assert_int_equal(behind_filter(trace_me), -SIGSYS);
	assert_int_equal(behind_filter(make_process), ENOSYS);
	assert_int_equal(behind_filter(make_memory_executable), ENOSYS);
	assert_int_equal(behind_filter(send_signal), ENOSYS);
}

/* -- files --------------------------------------------------------------------- */

/* In a child: only DIR may be written to, /etc/hosts read. */
static int behind_landlock(const char *dir)
{
	struct error err = ERROR_INIT;
	int ruleset = landlock_open(&err);
	char path[256];

	if (ruleset < 0)
		return 77;
	if (syscall(SYS_prctl, 38, 1, 0, 0, 0) || landlock_allow(ruleset, dir, ALLOW_READ | ALLOW_WRITE) ||
	    landlock_allow(ruleset, "/etc/hosts", ALLOW_READ) || landlock_start(ruleset, &err))
		return 1;
	snprintf(path, sizeof(path), "%s/new", dir);
	if (open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) < 0 || truncate(path, 10) || unlink(path))
		return 2;
	if (open("/etc/passwd", O_RDONLY) >= 0 || errno != EACCES)
		return 3;
	if (open("/etc/hosts", O_RDONLY) < 0 || open("/etc/hosts", O_WRONLY) >= 0 || errno != EACCES)
		return 4;
	snprintf(path, sizeof(path), "%s/../merino-test-sandbox", dir);
	if (open(path, O_RDWR | O_CREAT, 0600) >= 0 || errno != EACCES)
		return 5;
	snprintf(path, sizeof(path), "%s/node", dir);
	return mknod(path, S_IFCHR | 0600, 0x103) == 0 || errno == EPERM ? 6 : 0;
}

static void test_landlock(void **state)
{
	char dir[] = "/tmp/mt-XXXXXX";
	int status;
	pid_t child;

	assert_non_null(mkdtemp(dir));
	child = fork();
	if (!child)
		_exit(behind_landlock(dir));
	assert_int_equal(waitpid(child, &status, 0), child);
	rmdir(dir);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();			/* a kernel without Landlock */
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_filter),
		cmocka_unit_test(test_landlock),
		cmocka_unit_test(test_ring_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
