/* SPDX-License-Identifier: BSD-3-Clause */
/* A machine is made and ended: see machine.h. */
#include "vmm/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm/boot.h"
#include "vmm/cmos.h"
#include "vmm/fw-cfg.h"
#include "vmm/interrupts.h"
#include "vmm/pci.h"
#include "vmm/platform.h"
#include "vmm/vcpu.h"

/* KVM's own pages on Intel CPUs, below the firmware. */
#define KVM_IDENTITY_MAP 0xfffbc000ull
#define KVM_TSS 0xfffbd000u

/* -- KVM ------------------------------------------------------------------------- */

static const struct {
	unsigned cap;
	const char *name;
} needed[] = {
	{ KVM_CAP_IRQCHIP, "an interrupt controller" },
	{ KVM_CAP_PIT2, "a timer" },
	{ KVM_CAP_IRQ_ROUTING, "interrupt routing" },
	{ KVM_CAP_IRQFD, "irqfd" },
	{ KVM_CAP_IOEVENTFD, "ioeventfd" },
	{ KVM_CAP_SIGNAL_MSI, "message-signalled interrupts" },
	{ KVM_CAP_IMMEDIATE_EXIT, "immediate_exit" },
	{ KVM_CAP_XSAVE, "xsave" },
	{ KVM_CAP_XCRS, "xcrs" },
};

static int kvm_open(struct machine *m, struct error *err)
{
	int rc, n;

	m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (m->kvm < 0) {
		rc = error_errno(err, -errno, "Could not access KVM kernel module: /dev/kvm");
		if (rc == -EACCES)
			error_hint(err, "Who runs virtual machines must be in the group kvm.");
		else
			error_hint(err, "The modules kvm_intel or kvm_amd are not loaded, or the "
				   "firmware forbids virtualization.");
		return rc;
	}
	if (ioctl(m->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return error_set(err, -ENOTSUP, "/dev/kvm speaks another version");
	for (unsigned i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		if (ioctl(m->kvm, KVM_CHECK_EXTENSION, needed[i].cap) <= 0)
			return error_set(err, -ENOTSUP, "this host's KVM lacks %s", needed[i].name);
	n = ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
	if (n > 0 && m->config->vcpus > (unsigned)n)
		return error_set(err, -EINVAL, "this host's KVM takes at most %d CPUs", n);
	return 0;
}

static int vm_make(struct machine *m, struct error *err)
{
	uint64_t identity = KVM_IDENTITY_MAP;

	do {
		m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	} while (m->vm < 0 && errno == EINTR);
	if (m->vm < 0)
		return error_errno(err, -errno, "KVM_CREATE_VM");
	if (ioctl(m->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 ||
	    ioctl(m->vm, KVM_SET_TSS_ADDR, KVM_TSS) < 0)
		return error_errno(err, -errno, "KVM's own pages");
	return 0;
}

int machine_map(struct machine *m, unsigned slot, uint64_t gpa, void *at, uint64_t len,
		bool read_only, struct error *err)
{
	struct kvm_userspace_memory_region r = {
		.slot = slot, .flags = read_only ? KVM_MEM_READONLY : 0,
		.guest_phys_addr = gpa, .memory_size = len, .userspace_addr = (uintptr_t)at,
	};

	if (ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &r) < 0)
		return error_errno(err, -errno, "cannot give memory to the guest");
	return 0;
}

static int memory_give(struct machine *m, struct error *err)
{
	int rc = memory_make(&m->memory, m->config->memory, err);

	if (!rc)
		rc = machine_map(m, 0, 0, m->memory.base, m->memory.low, false, err);
	if (!rc && m->memory.high)
		rc = machine_map(m, 1, MEMORY_HIGH, m->memory.base + m->memory.low, m->memory.high,
				 false, err);
	return rc;
}

/* -- all of it --------------------------------------------------------------------- */

static int check(const struct machine_config *c, struct error *err)
{
	if (c->vcpus < 1 || c->vcpus > MACHINE_VCPUS_MAX)
		return error_set(err, -EINVAL, "number of CPUs must be from 1 to %u", MACHINE_VCPUS_MAX);
	if (!c->kernel && c->initrd)
		return error_set(err, -EINVAL, "--initrd only allowed with --kernel option");
	if (c->kernel && c->firmware)
		return error_set(err, -EINVAL, "--bios not allowed with --kernel option");
	if (!c->kernel && c->cmdline)
		return error_set(err, -EINVAL, "--append only allowed with --kernel option");
	return 0;
}

int machine_make(struct machine *m, const struct machine_config *c, struct error *err)
{
	int rc = check(c, err);

	*m = (struct machine){
		.config = c, .kvm = -1, .vm = -1, .kernel = -1, .initrd = -1,
		.memory.fd = -1, .main = loop_self(), .state = RUN_PRELAUNCH,
	};
	pthread_mutex_init(&m->lock, NULL);
	pthread_mutex_init(&m->run_lock, NULL);
	pthread_cond_init(&m->go, NULL);
	pthread_cond_init(&m->parked_more, NULL);
	if (!rc)
		rc = boot_open(m, err);
	if (!rc)
		rc = kvm_open(m, err);
	if (!rc)
		rc = vm_make(m, err);
	if (!rc)
		rc = memory_give(m, err);
	if (!rc)
		rc = firmware_map(m, err);
	if (!rc)
		rc = interrupts_start(m, err);
	if (!rc)
		rc = platform_start(m, err);
	if (!rc)
		rc = cmos_start(m, err);
	if (!rc && m->firmware.len)
		rc = fw_cfg_start(m, err);
	if (!rc)
		rc = pci_start(m, err);
	if (!rc)
		rc = vcpus_make(m, err);
	return rc;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* A reset boots the same files anew. */
void machine_close_unneeded(struct machine *m)
{
	close_fd(&m->kvm);
	if (m->config->no_reboot) {
		close_fd(&m->kernel);
		close_fd(&m->initrd);
	}
}

void machine_end(struct machine *m)
{
	vcpus_end(m);
	pci_end(m);
	fw_cfg_end(m);
	cmos_end(m);
	platform_end(m);
	interrupts_end(m);
	close_fd(&m->vm);
	close_fd(&m->kvm);
	close_fd(&m->kernel);
	close_fd(&m->initrd);
	firmware_end(m);
	memory_end(&m->memory);
}
