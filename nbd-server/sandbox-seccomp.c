/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox-seccomp: the system calls that the daemon and its libraries make.
 *
 * Three answers.  What is in "allowed" runs (some of it only with certain
 * arguments).  What nobody here has a use for and an intruder has is in "deadly":
 * the process is killed, and the kernel logs it.  Anything else gets ENOSYS, which
 * libraries take for an older kernel, and the audit log has it.
 *
 * clone3() has its flags in memory, where no filter sees them: a small filter of its
 * own turns it into clone(), without a line in the log for each thread.
 *
 * The lists are grouped by why.  Names that this libseccomp does not know yet are
 * passed over.  io_uring's operations are not system calls: see common/loop-ring.c.
 */
#include "nbd-server/sandbox.h"

#include <errno.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define NR_CACHESTAT 451		/* younger than Debian 12's tables */

static const char *const allowed[] = {
	/* Memory; mmap and mprotect are below. */
	"brk", "madvise", "mremap", "munmap",
	/* Threads and their end */
	"clone3", "exit", "exit_group", "futex", "gettid", "rseq", "sched_getaffinity", "sched_yield",
	"set_robust_list", "tgkill",
	/* Signals */
	"restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
	"signalfd4",
	/* Time and chance */
	"clock_getres", "clock_gettime", "clock_nanosleep", "getrandom", "gettimeofday",
	"nanosleep", "time",
	/* Who we are */
	"getegid", "geteuid", "getgid", "getpid", "getrusage", "getuid", "sysinfo", "uname",
	/* To give up more: sandbox-late.c */
	"landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
	/* The loops: rings, poll(2), messages */
	"epoll_create1", "epoll_ctl", "eventfd2", "io_uring_enter", "io_uring_setup", "pipe2", "poll", "ppoll",
	/* Files: opening, names and attributes */
	"access", "close", "dup", "dup2", "dup3", "faccessat", "faccessat2", "fcntl", "fstat",
	"fstatfs", "getcwd", "getdents64", "lseek", "lstat", "mkdir", "newfstatat", "open",
	"openat", "readlink", "readlinkat", "rename", "renameat", "renameat2", "rmdir", "stat",
	"statfs", "statx", "unlink", "unlinkat",
	/* Files: data */
	"fallocate", "fdatasync", "fsync", "ftruncate", "msync", "pread64", "preadv", "preadv2",
	"pwrite64", "pwritev", "pwritev2", "read", "readv", "sendfile", "write", "writev",
	/* Sockets; socket itself is below. */
	"accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt",
	"listen", "recvfrom", "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt",
	"shutdown", "socketpair",
	NULL
};

/* --user, on the way down. */
static const char *const to_change_user[] = {
	"setgid", "setgroups", "setresgid", "setresuid", "setuid", NULL
};

/* What the sanitizers do at their own account: they stop the world to look for
 * leaks, read /proc, and start a symbolizer. */
static const char *const for_sanitizers[] = {
	"arch_prctl", "clone", "execve", "fork", "getdents", "getpgrp", "getppid", "getrlimit",
	"ioctl", "kill", "membarrier", "mmap", "mprotect", "personality", "pipe", "prctl",
	"prlimit64", "process_vm_readv", "ptrace", "sched_getparam", "sched_getscheduler",
	"set_tid_address", "setrlimit", "tkill", "vfork", "wait4", "waitid",
	NULL
};

static const char *const deadly[] = {
	/* Other programs, other processes */
	"execve", "execveat", "fork", "vfork", "kcmp", "pidfd_getfd", "process_madvise",
	"process_vm_readv", "process_vm_writev", "ptrace",
	/* The file system's shape, and ways around its names */
	"chroot", "fsconfig", "fsmount", "fsopen", "fspick", "mknod", "mknodat", "mount",
	"mount_setattr", "move_mount", "name_to_handle_at", "open_by_handle_at", "open_tree",
	"pivot_root", "quotactl", "quotactl_fd", "swapoff", "swapon", "umount2",
	/* The kernel */
	"bpf", "delete_module", "finit_module", "init_module", "kexec_file_load", "kexec_load",
	"perf_event_open", "reboot", "syslog", "userfaultfd",
	/* Keys, namespaces, privileges, the machine */
	"acct", "add_key", "adjtimex", "clock_adjtime", "clock_settime", "ioperm", "iopl", "keyctl",
	"modify_ldt", "request_key", "setdomainname", "sethostname", "setns", "settimeofday",
	"unshare", "vhangup",
	NULL
};

static const unsigned long ioctls[] = {
	BLKDISCARD, BLKGETSIZE64, BLKPBSZGET, BLKROTATIONAL, BLKSSZGET, BLKZEROOUT,
	FS_IOC_GETFLAGS, FS_IOC_SETFLAGS,	/* no copy-on-write of a new image */
	FIONREAD, TCGETS,			/* the C library's: getaddrinfo(), isatty() */
	0x7b9				/* IOCTL_VM_SOCKETS_GET_LOCAL_CID */
};

static const int families[] = { AF_UNIX, AF_INET, AF_INET6, AF_VSOCK, AF_NETLINK };

static bool is_in(const char *const *list, const char *name)
{
	while (*list && strcmp(*list, name))
		list++;
	return *list;
}

static int add(scmp_filter_ctx ctx, uint32_t action, const char *const *names)
{
	for (; *names; names++) {
		int nr = seccomp_syscall_resolve_name(*names), rc;

		if (nr == __NR_SCMP_ERROR)
			continue;
		if (action != SCMP_ACT_ALLOW && SANITIZED && is_in(for_sanitizers, *names))
			continue;
		rc = seccomp_rule_add(ctx, action, nr, 0);
		if (rc && rc != -EDOM)	/* -EDOM: not on this machine */
			return rc;
	}
	return 0;
}

/* One argument of one call. */
static int add_if(scmp_filter_ctx ctx, const char *name, struct scmp_arg_cmp cmp)
{
	int nr = seccomp_syscall_resolve_name(name);

	if (SANITIZED && is_in(for_sanitizers, name))
		return 0;		/* allowed as a whole */
	return nr == __NR_SCMP_ERROR ? 0 : seccomp_rule_add(ctx, SCMP_ACT_ALLOW, nr, 1, cmp);
}

/* Memory is never writable and executable, nor made executable later. */
static int add_memory(scmp_filter_ctx ctx)
{
	int rc = add_if(ctx, "mmap", SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));

	if (!rc)
		rc = add_if(ctx, "mmap", SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC | PROT_WRITE,
						 PROT_EXEC));
	if (!rc)
		rc = add_if(ctx, "mprotect", SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	return rc;
}

static int add_with_arguments(scmp_filter_ctx ctx)
{
	int rc = add_memory(ctx);

	if (!rc)			/* a thread, never a process */
		rc = add_if(ctx, "clone", SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
	if (!rc)			/* a thread's name */
		rc = add_if(ctx, "prctl", SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
	if (!rc)			/* is it alive? */
		rc = add_if(ctx, "kill", SCMP_A1(SCMP_CMP_EQ, 0));
	if (!rc)			/* read, not set */
		rc = add_if(ctx, "prlimit64", SCMP_A2(SCMP_CMP_EQ, 0));
	if (!rc)
		rc = add_if(ctx, "io_uring_register",
			    SCMP_A1(SCMP_CMP_EQ, IORING_REGISTER_RESTRICTIONS));
	if (!rc)
		rc = add_if(ctx, "io_uring_register",
			    SCMP_A1(SCMP_CMP_EQ, IORING_REGISTER_ENABLE_RINGS));
	for (unsigned i = 0; i < sizeof(ioctls) / sizeof(ioctls[0]) && !rc; i++)
		rc = add_if(ctx, "ioctl", SCMP_A1(SCMP_CMP_EQ, ioctls[i]));
	for (unsigned i = 0; i < sizeof(families) / sizeof(families[0]) && !rc; i++)
		rc = add_if(ctx, "socket", SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)families[i]));
	return rc;
}

static int fill(scmp_filter_ctx ctx, bool setuid)
{
	int rc = add(ctx, SCMP_ACT_ALLOW, allowed);

	if (!rc)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, NR_CACHESTAT, 0);
	if (!rc && setuid)
		rc = add(ctx, SCMP_ACT_ALLOW, to_change_user);
	if (!rc && SANITIZED)
		rc = add(ctx, SCMP_ACT_ALLOW, for_sanitizers);
	if (!rc)
		rc = add_with_arguments(ctx);
	if (!rc)
		rc = add(ctx, SCMP_ACT_KILL_PROCESS, deadly);
	return rc;
}

static int load(scmp_filter_ctx ctx, bool log)
{
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_LOG, log);
	/* No slower speculation for the filter's sake; a tree instead of a list. */
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_SSB, 1);
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	return seccomp_load(ctx);
}

static int hide_clone3(void)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
	int rc = ctx ? 0 : -ENOMEM;

	if (!rc)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	if (!rc)
		rc = load(ctx, false);
	if (ctx)
		seccomp_release(ctx);
	return rc;
}

int seccomp_start(bool setuid, struct error *err)
{
	int rc = hide_clone3();
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));

	if (!rc)
		rc = ctx ? fill(ctx, setuid) : -ENOMEM;
	if (!rc)
		rc = load(ctx, true);
	if (ctx)
		seccomp_release(ctx);
	return rc ? error_errno(err, rc, "cannot filter system calls") : 0;
}
