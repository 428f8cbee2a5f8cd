/* SPDX-License-Identifier: BSD-3-Clause */
/* machine: an x86-64 virtual machine on KVM.
 *
 *	00000000	RAM, to at most c0000000
 *	c0000000	PCI: BARs (32 bit), to fec00000
 *	e0000000	... but here its configuration space (ECAM), bus 0 only, 1 MiB
 *	fec00000	IOAPIC (in the kernel)
 *	fee00000	local APIC (in the kernel)
 *	fffbc000	pages that KVM wants for itself
 *	fffc0000	firmware, when there is one
 *	1_00000000	the rest of RAM
 *
 *	ports: 20, a0 PIC and 40 PIT (in the kernel); 3f8 serial (IRQ 4); cf8, cfc PCI;
 *	70, 71 CMOS (IRQ 8); 510 fw_cfg; 600 ACPI registers (IRQ 9); 604 power off
 *
 * States: a machine is made paused; machine_run() lets the vCPUs go.  What people ask
 * (the control socket) comes on the main loop.
 */
#ifndef MERINO_VMM_MACHINE_H
#define MERINO_VMM_MACHINE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/loop.h"
#include "vmm/bus.h"
#include "vmm/firmware.h"
#include "vmm/memory.h"

struct cmos;
struct fw_cfg;
struct interrupts;
struct kvm_msr_list;
struct pci_bus;
struct platform;
struct serial;
struct vcpu;

#define MACHINE_VCPUS_MAX 64u
#define PCI_BAR_BASE 0xc0000000u
#define PCI_BAR_END 0xfec00000u
#define PCI_ECAM_BASE 0xe0000000u
#define PCI_ECAM_SIZE 0x100000u

/* QEMU's RunState, those that there are. */
enum run_state { RUN_PRELAUNCH, RUN_RUNNING, RUN_PAUSED, RUN_SHUTDOWN, RUN_INTERNAL_ERROR };

struct machine_config {
	const char *name;
	unsigned vcpus;
	uint64_t memory;		/* bytes */
	const char *kernel, *initrd, *cmdline;	/* kernel NULL: firmware */
	const char *firmware;		/* file; NULL: the one that Debian ships */
	bool no_reboot;			/* a reset ends the process */
};

/* What a guest did (the last: a person at its console): any thread may tell it, the main loop
 * hears it.  A vCPU that tells goes no further before a reset. */
enum machine_event { MACHINE_SHUTDOWN, MACHINE_RESET, MACHINE_CRASHED, MACHINE_QUIT };

struct machine {
	const struct machine_config *config;
	int kvm, vm;			/* descriptors */
	int kernel, initrd;		/* files; -1: none */
	struct memory memory;
	struct firmware firmware;	/* none when a kernel is booted directly */
	pthread_mutex_t lock;		/* registers of all devices, the buses, interrupt routes */
	struct bus pio, mmio;
	struct interrupts *interrupts;
	struct platform *platform;	/* ACPI registers, reset */
	struct cmos *cmos;
	struct fw_cfg *fw_cfg;		/* with firmware */
	struct pci_bus *pci;
	struct serial *serial;
	struct vcpu *vcpu;
	unsigned n_vcpus;
	struct kvm_msr_list *msrs;	/* that KVM knows */
	uint32_t tsc_khz;
	struct loop *main;
	enum run_state state;		/* main loop */
	/* Main loop: what to do with an event. */
	void (*event)(struct machine *m, enum machine_event e);

	/* Whether the vCPUs may be in the guest: vcpu.c's. */
	pthread_mutex_t run_lock;
	pthread_cond_t go, parked_more;
	bool running, ending;
	unsigned parked;
	uint64_t clock;			/* kvmclock at the last pause, ns */
	bool clock_valid;
	unsigned told;			/* bits of enum machine_event, atomic */
	struct loop_msg tell;
	struct loop_msg periodic;	/* cmos.c's */
	int64_t silent_until;		/* us, atomic: virtio-blk-work.c's */
};

/* -EACCES, -ENOENT … when this host cannot: the text says what is missing. */
int machine_make(struct machine *m, const struct machine_config *c, struct error *err);
/* Loads kernel or firmware and the tables, and sets the vCPUs to where they begin. */
int machine_boot(struct machine *m, struct error *err);
/* When it is built: what only that needed. */
void machine_close_unneeded(struct machine *m);
void machine_end(struct machine *m);		/* stops the vCPUs; frees */

/* Main loop.  Lets vCPUs and devices run; stops them all: when it returns none is in the guest
 * and nothing changes its memory.  Disks get a second to answer what is under way; what they do
 * not answer is held until the machine goes on. */
void machine_run(struct machine *m);
void machine_pause(struct machine *m);
void machine_reset(struct machine *m);		/* devices, vCPUs, boots anew */
void machine_powerdown(struct machine *m);	/* presses the ACPI power button */

/* Any thread. */
void machine_tell(struct machine *m, enum machine_event e);
const char *run_state_name(enum run_state s);	/* QEMU's */

/* Memory of the host's (a ROM) at GPA; SLOT is 2 to 7.  LEN 0 removes it. */
int machine_map(struct machine *m, unsigned slot, uint64_t gpa, void *at, uint64_t len,
		bool read_only, struct error *err);

/* Interrupts.  LINE is an ISA/GSI number (0 to 23), edge or level as the tables say. */
void machine_irq(struct machine *m, unsigned line, bool level);
/* A message-signalled interrupt: FD (an eventfd) raises it from now on; ROUTE is its handle
 * (-errno: none).  The address and data may change later.  With machine->lock held. */
int machine_msi_add(struct machine *m, int fd, uint64_t addr, uint32_t data);
int machine_msi_set(struct machine *m, int route, uint64_t addr, uint32_t data, bool masked);
void machine_msi_remove(struct machine *m, int route);
/* Raises one without an eventfd. */
int machine_msi_raise(struct machine *m, uint64_t addr, uint32_t data);
/* A write of SIZE bytes (0: any) at ADDR rings FD instead of coming to the bus. */
int machine_doorbell(struct machine *m, uint64_t addr, unsigned size, int fd, bool on);

#endif
