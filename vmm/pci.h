/* SPDX-License-Identifier: BSD-3-Clause */
/* pci: one bus, its devices' configuration space, BARs and MSI-X.
 *
 * Configuration space is reached by ports cf8/cfc and by ECAM.  BARs are placed by
 * pci_place_bars() before a kernel is booted directly; firmware and kernels may move them.
 * All with machine->lock held.
 */
#ifndef MERINO_VMM_PCI_H
#define MERINO_VMM_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "vmm/bus.h"

struct device_state;
struct machine;
struct pci_device;

#define PCI_DEVICES_MAX 32u
#define PCI_CONFIG_BYTES 256u
#define PCI_VECTORS_MAX 64u		/* of one device */

/* The machine pauses: all devices are asked, then waited for.  From then to REST_END, or to a
 * reset, none touches guest memory or raises an interrupt for what it did there. */
enum pci_rest { REST_BEGIN, REST_WAIT, REST_END };

struct pci_class {
	uint16_t vendor, device, sub_vendor, sub_device;
	uint8_t revision, class_code[3];	/* programming interface, subclass, class */
	/* The one BAR of a device (0, 32-bit memory): OFF is relative to it. */
	uint32_t bar_len;
	uint64_t (*read)(struct pci_device *d, uint64_t off, unsigned size);
	void (*write)(struct pci_device *d, uint64_t off, unsigned size, uint64_t value);
	/* The BAR is at BASE now (0: nowhere): doorbells follow. */
	void (*moved)(struct pci_device *d, uint64_t base);
	void (*reset)(struct pci_device *d);
	/* May be NULL, all of them: */
	void (*rest)(struct pci_device *d, enum pci_rest step);
	int (*save)(struct pci_device *d, struct device_state *s, struct error *err);
	int (*load)(struct pci_device *d, const struct device_state *s, struct error *err);
	/* May be NULL: configuration space at OFF is about to be read, or was written. */
	void (*config_access)(struct pci_device *d, unsigned off, unsigned size, bool write);
};

/* What of a device is saved with the machine: configuration space and MSI-X. */
struct pci_state {
	uint32_t version;		/* 1 */
	uint32_t n_vectors;
	uint8_t config[PCI_CONFIG_BYTES];
	struct {
		uint64_t addr;
		uint32_t data;
		uint8_t masked, pending;	/* 0 or 1 */
	} vector[PCI_VECTORS_MAX];
};

struct pci_vector {
	uint64_t addr;
	uint32_t data, control;
	int route;			/* machine.h; -1: none yet */
	/* eventfd that raises it; any thread may write to it.  What was written while the
	 * vector is masked stays in it: that is its pending bit. */
	int fd;
};

struct pci_device {
	const struct pci_class *class;
	struct machine *machine;
	uint8_t slot;
	uint8_t config[PCI_CONFIG_BYTES];
	uint8_t writable[PCI_CONFIG_BYTES];	/* which bits the guest may change */
	struct bus_region bar;
	bool mapped;			/* the BAR is on the bus */
	uint8_t cap_end;		/* where the next capability goes */
	struct pci_vector *vector;
	unsigned n_vectors;
	uint32_t msix_at;		/* offset of the table in the BAR */
	uint8_t msix_cap;
};

struct pci_bus {
	struct machine *machine;
	struct pci_device *device[PCI_DEVICES_MAX];
	uint32_t address;		/* of port cf8 */
	struct bus_region ports, ecam;
};

int pci_start(struct machine *m, struct error *err);	/* makes m->pci with a host bridge */
void pci_end(struct machine *m);
/* In the next free slot. */
int pci_add(struct machine *m, struct pci_device *d, const struct pci_class *c, struct error *err);
/* LEN bytes for a capability (its id first); its offset. */
uint8_t pci_add_capability(struct pci_device *d, uint8_t id, uint8_t len);
/* N vectors, their table and pending bits at AT in the BAR. */
int pci_add_msix(struct pci_device *d, unsigned n, uint32_t at, struct error *err);
/* For those who read and write the BAR: does it belong to MSI-X? */
bool pci_msix_access(struct pci_device *d, uint64_t off, unsigned size, uint64_t *value, bool write);
/* Raises vector I; any thread.  False: the guest does not take MSI-X, or I is none. */
bool pci_raise(struct pci_device *d, unsigned i);
void pci_place_bars(struct machine *m);
void pci_reset(struct machine *m);
void pci_rest(struct machine *m, bool on);
/* All of a device, at rest.  pci_load(): after a reset; S is hostile. */
int pci_save(struct pci_device *d, struct device_state *s, struct error *err);
int pci_load(struct pci_device *d, const struct device_state *s, struct error *err);
/* One access to configuration space: SIZE is 1, 2 or 4 and OFF a multiple of it. */
uint32_t pci_config_read(struct pci_device *d, unsigned off, unsigned size);
void pci_config_write(struct pci_device *d, unsigned off, unsigned size, uint32_t value);
/* Undoes pci_add(), for a device that cannot be completed. */
void pci_remove(struct pci_device *d);

/* pci.c and pci-msix.c between them */
void pci_msix_sync(struct pci_device *d);
void pci_msix_reset(struct pci_device *d);
void pci_msix_free(struct pci_device *d);
void pci_msix_save(const struct pci_device *d, struct pci_state *s);
bool pci_msix_load(struct pci_device *d, const struct pci_state *s);	/* false: no such state */
void pci_bar_sync(struct pci_device *d);

#endif
