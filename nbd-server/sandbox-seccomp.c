/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox-seccomp: the system calls that the daemon makes, beside those that every
 * process of ours does (common/sandbox-filter.c).
 *
 * What nobody here has a use for and an intruder has is in "deadly".  Anything else
 * that is not listed fails with ENOSYS: images stay served.
 */
#include "nbd-server/sandbox.h"

#include <linux/fs.h>
#include <linux/io_uring.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define FAMILY(f) { "socket", 0, SANDBOX_WHOLE, f }
#define IOCTL(n) { "ioctl", 1, SANDBOX_WHOLE, n }

static const char *const allowed[] = {
	"signalfd4",
	/* To give up more: sandbox-late.c */
	"landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
	/* The loops: rings, messages */
	"epoll_create1", "epoll_ctl", "eventfd2", "io_uring_setup", "pipe2",
	/* Files: opening, names and attributes */
	"mkdir", "open", "openat", "rename", "renameat", "renameat2", "rmdir", "unlink", "unlinkat",
	/* Files: data */
	"cachestat", "fallocate", "fdatasync", "fsync", "ftruncate", "msync", "preadv", "preadv2",
	"pwrite64", "pwritev", "pwritev2", "sendfile",
	/* Sockets that listen */
	"accept", "accept4", "bind", "listen", "socketpair",
	NULL
};

/* --user, on the way down. */
static const char *const to_change_user[] = {
	"setgid", "setgroups", "setresgid", "setresuid", "setuid", NULL
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

static const struct sandbox_call calls[] = {
	{ "io_uring_register", 1, SANDBOX_WHOLE, IORING_REGISTER_RESTRICTIONS },
	{ "io_uring_register", 1, SANDBOX_WHOLE, IORING_REGISTER_ENABLE_RINGS },
	IOCTL(BLKDISCARD), IOCTL(BLKGETSIZE64), IOCTL(BLKPBSZGET), IOCTL(BLKROTATIONAL),
	IOCTL(BLKSSZGET), IOCTL(BLKZEROOUT),
	IOCTL(FS_IOC_GETFLAGS), IOCTL(FS_IOC_SETFLAGS),	/* no copy-on-write of a new image */
	IOCTL(FIONREAD), IOCTL(TCGETS),	/* the C library's: getaddrinfo(), isatty() */
	IOCTL(0x7b9),			/* IOCTL_VM_SOCKETS_GET_LOCAL_CID */
	FAMILY(AF_UNIX), FAMILY(AF_INET), FAMILY(AF_INET6), FAMILY(AF_VSOCK), FAMILY(AF_NETLINK),
	{ NULL }
};

int seccomp_start(bool setuid, struct error *err)
{
	const struct sandbox_filter f = {
		.allowed = { allowed, setuid ? to_change_user : NULL }, .calls = { calls }, .deadly = deadly,
	};

	return sandbox_filter(&f, err);
}
