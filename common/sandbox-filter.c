/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox-filter: system calls, by libseccomp.
 *
 * Three answers.  What is allowed runs, some of it only with certain arguments.  What is
 * deadly kills the process, and the kernel logs it.  Anything else gets ENOSYS, which
 * libraries take for an older kernel, and the audit log has it.
 *
 * clone3() has its flags in memory, where no filter sees them: a small filter of its
 * own turns it into clone(), without a line in the log for each thread.
 *
 * The lists are grouped by why.  Names that this libseccomp does not know yet are
 * passed over.  io_uring's operations are not system calls: see loop-ring.c.
 */
#include "common/sandbox.h"

#include <errno.h>
#include <linux/sched.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define NUMBERS_END 1024		/* of system calls, with room for those to come */
#define NR_CACHESTAT 451		/* younger than Debian 12's tables */

static const char *const for_all[] = {
	/* Memory; mmap and mprotect are below. */
	"brk", "madvise", "mremap", "munmap",
	/* Threads and their end */
	"clone3", "exit", "exit_group", "futex", "gettid", "rseq", "sched_getaffinity", "sched_yield",
	"set_robust_list", "tgkill",
	/* Signals */
	"restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
	/* Time and chance */
	"clock_getres", "clock_gettime", "clock_nanosleep", "getrandom", "gettimeofday",
	"nanosleep", "time",
	/* Who we are */
	"getegid", "geteuid", "getgid", "getpid", "getrusage", "getuid", "sysinfo", "uname",
	/* Descriptors, whatever they are */
	"close", "dup", "dup2", "dup3", "fcntl", "fstat", "io_uring_enter", "lseek", "poll", "ppoll", "read",
	"readv", "write", "writev",
	/* Names and files that are read: the resolver, certificates */
	"access", "faccessat", "faccessat2", "fstatfs", "getcwd", "getdents64", "lstat", "newfstatat",
	"pread64", "readlink", "readlinkat", "stat", "statfs", "statx",
	/* Sockets that are connected; socket itself is for each program. */
	"connect", "getpeername", "getsockname", "getsockopt", "recvfrom", "recvmmsg", "recvmsg",
	"sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
	NULL
};

/* Memory is never writable and executable, nor made executable later. */
static const struct sandbox_call calls_for_all[] = {
	{ "mmap", 2, PROT_EXEC, 0 },
	{ "mmap", 2, PROT_EXEC | PROT_WRITE, PROT_EXEC },
	{ "mprotect", 2, PROT_EXEC, 0 },
	{ "clone", 0, CLONE_THREAD, CLONE_THREAD },	/* a thread, never a process */
	{ "prctl", 0, SANDBOX_WHOLE, PR_SET_NAME },	/* a thread's name */
	{ "kill", 1, SANDBOX_WHOLE, 0 },		/* is it alive? */
	{ "prlimit64", 2, SANDBOX_WHOLE, 0 },		/* read, not set */
	{ NULL }
};

/* What the sanitizers do at their own account: they stop the world to look for
 * leaks, read /proc, and start a symbolizer. */
static const char *const for_sanitizers[] = {
	"arch_prctl", "clone", "execve", "fork", "getdents", "getpgrp", "getppid", "getrlimit",
	"ioctl", "kill", "membarrier", "mmap", "mprotect", "open", "openat", "personality", "pipe", "pipe2",
	"prctl", "prlimit64", "process_vm_readv", "ptrace", "sched_getparam", "sched_getscheduler",
	"set_tid_address", "setrlimit", "tkill", "vfork", "wait4", "waitid",
	NULL
};

struct filling {
	scmp_filter_ctx ctx;
	const struct sandbox_filter *f;
	bool known[NUMBERS_END];	/* has a rule */
	int rc;
};

static bool is_in(const char *const *list, const char *name)
{
	while (*list && strcmp(*list, name))
		list++;
	return *list;
}

static int number(const char *name)
{
	return !strcmp(name, "cachestat") ? NR_CACHESTAT : seccomp_syscall_resolve_name(name);
}

static void add(struct filling *s, const char *name, uint32_t action, unsigned n_args,
		const struct scmp_arg_cmp *arg)
{
	int nr = number(name);

	if (s->rc || nr == __NR_SCMP_ERROR)
		return;
	s->rc = seccomp_rule_add_array(s->ctx, action, nr, n_args, arg);
	if (s->rc == -EDOM)		/* not on this machine */
		s->rc = 0;
	if (nr >= 0 && nr < NUMBERS_END)
		s->known[nr] = true;
}

static void allow(struct filling *s, const char *const *names)
{
	for (; *names; names++)
		add(s, *names, SCMP_ACT_ALLOW, 0, NULL);
}

static void allow_calls(struct filling *s, const struct sandbox_call *c)
{
	for (; c->name; c++) {
		struct scmp_arg_cmp args[] = {
			{ c->arg, SCMP_CMP_MASKED_EQ, c->mask, c->value },
			{ c->arg2, SCMP_CMP_MASKED_EQ, c->mask2, c->value2 },
		};

		if (SANITIZED && is_in(for_sanitizers, c->name))
			continue;	/* allowed as a whole */
		add(s, c->name, SCMP_ACT_ALLOW, c->mask2 ? 2 : 1, args);
	}
}

static uint32_t death(const struct filling *s)
{
	return s->f->trap ? SCMP_ACT_TRAP : SCMP_ACT_KILL_PROCESS;
}

static void forbid(struct filling *s, const char *const *names)
{
	for (; *names; names++)
		if (!SANITIZED || !is_in(for_sanitizers, *names))
			add(s, *names, death(s), 0, NULL);
}

static void forbid_the_rest(struct filling *s)
{
	for (int nr = 0; nr < NUMBERS_END && !s->rc; nr++) {
		char *name = s->known[nr] ? NULL :
			     seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, nr);

		if (name)
			s->rc = seccomp_rule_add(s->ctx, death(s), nr, 0);
		free(name);
	}
}

static int fill(struct filling *s)
{
	allow(s, for_all);
	for (unsigned i = 0; i < SANDBOX_LISTS && s->f->allowed[i]; i++)
		allow(s, s->f->allowed[i]);
	if (SANITIZED)
		allow(s, for_sanitizers);
	allow_calls(s, calls_for_all);
	for (unsigned i = 0; i < SANDBOX_LISTS && s->f->calls[i]; i++)
		allow_calls(s, s->f->calls[i]);
	if (s->f->deadly)
		forbid(s, s->f->deadly);
	else
		forbid_the_rest(s);
	return s->rc;
}

static int load(scmp_filter_ctx ctx, bool log, bool all_threads)
{
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_LOG, log);
	/* No slower speculation for the filter's sake; a tree instead of a list. */
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_SSB, 1);
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, all_threads);
	return seccomp_load(ctx);
}

static int hide_clone3(bool all_threads)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
	int rc = ctx ? 0 : -ENOMEM;

	if (!rc)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	if (!rc)
		rc = load(ctx, false, all_threads);
	if (ctx)
		seccomp_release(ctx);
	return rc;
}

int sandbox_filter(const struct sandbox_filter *f, struct error *err)
{
	struct filling s = { .f = f, .ctx = seccomp_init(SCMP_ACT_ERRNO(ENOSYS)) };
	int rc = hide_clone3(f->all_threads);

	if (!rc)
		rc = s.ctx ? fill(&s) : -ENOMEM;
	if (!rc)
		rc = load(s.ctx, true, f->all_threads);
	if (s.ctx)
		seccomp_release(s.ctx);
	return rc ? error_errno(err, rc, "cannot filter system calls") : 0;
}
