/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox-calls: the system calls of a machine under way, beside those of every process of
 * ours (common/sandbox-filter.c).
 *
 * All others that libseccomp knows end the process.  What is younger than it gets ENOSYS:
 * an upgrade of the C library is no reason to lose a guest.
 */
#include "vmm/sandbox.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <netinet/in.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "common/sandbox.h"
#include "vmm/terminal.h"

#define IOCTL(n) { "ioctl", 1, SANDBOX_WHOLE, n }
#define WRITES (O_ACCMODE | O_CREAT | O_TRUNC)	/* bits of open()'s flags: none may be set */
#define SOCKET(family, type) { "socket", 0, SANDBOX_WHOLE, family, 1, 0xf, type }

static const char *const allowed[] = {
	"accept", "accept4",		/* clients of the control socket, consoles */
	"eventfd2",			/* an interrupt that a driver has just set up */
	"unlink", "unlinkat",		/* our sockets, at the end */
	NULL
};

/* libslirp's ports for the guest. */
static const char *const to_listen[] = { "bind", "listen", NULL };

/* The resolver's: it asks which addresses this host has. */
static const char *const to_resolve[] = { "bind", NULL };

static const struct sandbox_call calls[] = {
	/* Files are read: certificates, /etc/resolv.conf. */
	{ "open", 1, WRITES, 0 }, { "openat", 2, WRITES, 0 },
	SOCKET(AF_UNIX, SOCK_STREAM),
	/* The machine: runs, stands still, is reset and saved; interrupts. */
	IOCTL(KVM_RUN), IOCTL(KVM_GET_CLOCK), IOCTL(KVM_SET_CLOCK), IOCTL(KVM_KVMCLOCK_CTRL),
	IOCTL(KVM_GET_REGS), IOCTL(KVM_SET_REGS), IOCTL(KVM_GET_SREGS), IOCTL(KVM_SET_SREGS),
	IOCTL(KVM_GET_MSRS), IOCTL(KVM_SET_MSRS), IOCTL(KVM_GET_XSAVE), IOCTL(KVM_SET_XSAVE),
	IOCTL(KVM_GET_XCRS), IOCTL(KVM_SET_XCRS), IOCTL(KVM_GET_LAPIC), IOCTL(KVM_SET_LAPIC),
	IOCTL(KVM_GET_DEBUGREGS), IOCTL(KVM_SET_DEBUGREGS), IOCTL(KVM_GET_MP_STATE),
	IOCTL(KVM_SET_MP_STATE), IOCTL(KVM_GET_VCPU_EVENTS), IOCTL(KVM_SET_VCPU_EVENTS),
	IOCTL(KVM_GET_TSC_KHZ), IOCTL(KVM_SET_TSC_KHZ), IOCTL(KVM_GET_IRQCHIP),
	IOCTL(KVM_SET_IRQCHIP), IOCTL(KVM_GET_PIT2), IOCTL(KVM_SET_PIT2), IOCTL(KVM_IRQ_LINE),
	IOCTL(KVM_SIGNAL_MSI), IOCTL(KVM_SET_GSI_ROUTING), IOCTL(KVM_IRQFD), IOCTL(KVM_IOEVENTFD),
	IOCTL(KVM_SET_USER_MEMORY_REGION),
	/* Terminals; how much there is to read */
	IOCTL(TCGETS), IOCTL(TCSETS), IOCTL(TCSETSW), IOCTL(TCSETSF), IOCTL(TIOCGWINSZ), IOCTL(FIONREAD),
	{ NULL }
};

static const struct sandbox_call inet_calls[] = {
	SOCKET(AF_UNIX, SOCK_DGRAM), SOCKET(AF_INET, SOCK_STREAM), SOCKET(AF_INET, SOCK_DGRAM),
	SOCKET(AF_INET6, SOCK_STREAM), SOCKET(AF_INET6, SOCK_DGRAM),
	{ "socket", 0, SANDBOX_WHOLE, AF_NETLINK, 2, SANDBOX_WHOLE, 0 },	/* NETLINK_ROUTE */
	IOCTL(FIONBIO),
	{ NULL }
};

/* -- trap: which call it was ---------------------------------------------------------------- */

#define NAMES 512

static char *names[NAMES];

static void trapped(int signo, siginfo_t *info, void *context)
{
	unsigned nr = (unsigned)info->si_syscall;
	char text[128];
	int n = snprintf(text, sizeof(text), "merino-vmm: a system call that no machine makes: %s (%u)\n",
			 nr < NAMES && names[nr] ? names[nr] : "?", nr);

	if (write(STDERR_FILENO, text, (size_t)n) < 0)
		n = 0;
	terminal_restore();
	raise(SIGSYS);			/* SA_RESETHAND: it ends us now */
}

/* What a handler may not do is done before. */
static void set_trap(void)
{
	struct sigaction sa = {
		.sa_sigaction = trapped, .sa_flags = (int)(SA_SIGINFO | SA_RESETHAND | SA_NODEFER),
	};

	for (int nr = 0; nr < NAMES; nr++)
		if (!names[nr])
			names[nr] = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, nr);
	sigaction(SIGSYS, &sa, NULL);
}

int sandbox_calls(const struct sandbox_needs *n, struct error *err)
{
	struct sandbox_filter f = {
		.allowed = { allowed, n->listens ? to_listen : n->inet ? to_resolve : NULL },
		.calls = { calls, n->inet ? inet_calls : NULL },
		.all_threads = true, .trap = n->trap,
	};

	if (n->trap)
		set_trap();
	return sandbox_filter(&f, err);
}
