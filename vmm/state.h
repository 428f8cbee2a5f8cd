/* SPDX-License-Identifier: BSD-3-Clause */
/* state: all of a paused machine but its memory, in one plain struct: no pointers, to be
 * written as it is.  Each part has a version of its own, in the header of what it is of.
 *
 * A state that is loaded may come from anybody: every field is checked before it is used.
 * What is the host's own stays: sockets and their clients, bytes on their way to a console,
 * connections to disks.
 *
 * Requests that a disk's server has answered are done when the machine is paused.  Those that
 * no server has got (there is none) are in the state as heads that the queue has lent out; the
 * machine that loads it does them again.
 */
#ifndef MERINO_VMM_STATE_H
#define MERINO_VMM_STATE_H

#include <stdint.h>

#include "common/error.h"
#include "vmm/cmos.h"
#include "vmm/console.h"
#include "vmm/fw-cfg.h"
#include "vmm/interrupts.h"
#include "vmm/machine.h"
#include "vmm/pci.h"
#include "vmm/platform.h"
#include "vmm/serial.h"
#include "vmm/vcpu.h"
#include "vmm/virtio.h"

/* A device on the bus, with what is behind its registers. */
struct device_state {
	struct pci_state pci;
	/* The rest: zeroes for a host bridge. */
	struct virtio_state virtio;
	struct queue_state queue[VIRTIO_QUEUES_MAX];
	struct console_state console;	/* of a virtio-console */
};

struct machine_state {
	uint32_t version;		/* 1 */
	uint32_t n_vcpus;
	uint64_t memory;		/* bytes */
	uint64_t clock;			/* kvmclock, ns */
	uint8_t clock_valid;
	uint8_t has_fw_cfg;
	uint32_t pci_address;		/* port cf8 */
	uint32_t slots;			/* which devices there are, a bit each */
	struct interrupts_state interrupts;
	struct platform_state platform;
	struct cmos_state cmos;
	struct fw_cfg_state fw_cfg;
	struct serial_state serial;
	struct device_state device[PCI_DEVICES_MAX];
	struct vcpu_state vcpu[MACHINE_VCPUS_MAX];
};

/* Main loop.  M is paused, or has not run.  -EBUSY: a server has not answered yet, or the guest
 * has just asked for something; -EINVAL: it is in no state that can go on. */
int machine_save(struct machine *m, struct machine_state *s, struct error *err);
/* M is like the one that was saved (CPUs, memory, devices and their slots), was booted, does not
 * run, and its memory is the saved one already.  An error: M can be reset or ended, nothing else. */
int machine_load(struct machine *m, const struct machine_state *s, struct error *err);

#endif
