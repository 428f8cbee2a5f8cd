// SPDX-License-Identifier: BSD-3-Clause
/* pci: the bus and its devices' configuration space.
 *
 * A device is a table of bytes and a table of the bits in them that the guest may change;
 * whatever it writes is masked by that, and what the write means (the BAR, MSI-X) is worked
 * out afterwards from the bytes.  A BAR that the guest puts outside of the window for BARs,
 * or over another device, is nowhere.
 */
#include "vmm/pci.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <linux/pci_regs.h>

#include "common/checked.h"
#include "vmm/machine.h"

enum {
	PORT_ADDRESS = 0xcf8, PORT_RESET = 0xcf9 - PORT_ADDRESS, PORT_DATA = 0xcfc - PORT_ADDRESS,
	RESET_NOW = 4,
	FIRST_CAPABILITY = 0x40,
	ECAM_DEVICE_SHIFT = 15, ECAM_FUNCTION_SHIFT = 12,
};

static void put16(struct pci_device *d, unsigned off, uint16_t v)
{
	memcpy(d->config + off, &v, sizeof(v));
}

static uint32_t get32(const struct pci_device *d, unsigned off)
{
	uint32_t v;

	memcpy(&v, d->config + off, sizeof(v));
	return v;
}

static void put32(struct pci_device *d, unsigned off, uint32_t v)
{
	memcpy(d->config + off, &v, sizeof(v));
}

/* Where the guest wants the BAR; 0: nowhere. */
static uint64_t bar_wanted(const struct pci_device *d)
{
	uint32_t base = get32(d, PCI_BASE_ADDRESS_0) & ~0xfu;

	if (!(d->config[PCI_COMMAND] & PCI_COMMAND_MEMORY) || base < PCI_BAR_BASE)
		return 0;
	return checked_range(base, d->class->bar_len, PCI_BAR_END) ? base : 0;
}

static void bar_unmap(struct pci_device *d)
{
	if (!d->mapped)
		return;
	if (d->class->moved)
		d->class->moved(d, 0);
	bus_remove(&d->machine->mmio, &d->bar);
	d->mapped = false;
}

void pci_bar_sync(struct pci_device *d)
{
	uint64_t base = d->class->bar_len ? bar_wanted(d) : 0;

	if (d->mapped ? d->bar.base == base : base == 0)
		return;
	bar_unmap(d);
	d->bar.base = base;
	if (base == 0 || bus_add(&d->machine->mmio, &d->bar))
		return;
	d->mapped = true;
	if (d->class->moved)
		d->class->moved(d, base);
}

uint32_t pci_config_read(struct pci_device *d, unsigned off, unsigned size)
{
	uint32_t v = 0;

	if (!checked_range(off, size, PCI_CONFIG_BYTES))
		return 0;		/* of the extended space there is none */
	if (d->class->config_access)
		d->class->config_access(d, off, size, false);
	memcpy(&v, d->config + off, size);
	return v;
}

void pci_config_write(struct pci_device *d, unsigned off, unsigned size, uint32_t value)
{
	if (!checked_range(off, size, PCI_CONFIG_BYTES))
		return;
	for (unsigned i = off; i < off + size; i++, value >>= 8)
		d->config[i] = (d->config[i] & ~d->writable[i]) | (value & d->writable[i]);
	pci_bar_sync(d);
	if (d->n_vectors && off < d->msix_cap + 4u && off + size > d->msix_cap)
		pci_msix_sync(d);
	if (d->class->config_access)
		d->class->config_access(d, off, size, true);
}

static uint64_t bar_read(void *arg, uint64_t off, unsigned size)
{
	struct pci_device *d = arg;

	return d->class->read(d, off, size);
}

static void bar_write(void *arg, uint64_t off, unsigned size, uint64_t value)
{
	struct pci_device *d = arg;

	d->class->write(d, off, size, value);
}

/* The device that an address of port cf8 or ECAM names. */
static struct pci_device *find(struct pci_bus *b, unsigned bus, unsigned slot, unsigned function)
{
	return bus == 0 && function == 0 && slot < PCI_DEVICES_MAX ? b->device[slot] : NULL;
}

static struct pci_device *selected(struct pci_bus *b)
{
	uint32_t a = b->address;

	return a >> 31 ? find(b, a >> 16 & 0xff, a >> 11 & 0x1f, a >> 8 & 7) : NULL;
}

static uint64_t ones(unsigned size)
{
	return size < 8 ? (1ull << 8 * size) - 1 : UINT64_MAX;
}

static uint64_t port_read(void *arg, uint64_t off, unsigned size)
{
	struct pci_bus *b = arg;
	struct pci_device *d;

	if (off == 0 && size == 4)
		return b->address;
	if (off < PORT_DATA || size > 4 || !is_aligned(off, size) || !(d = selected(b)))
		return ones(size);
	return pci_config_read(d, (b->address & 0xfc) + (off - PORT_DATA), size);
}

static void port_write(void *arg, uint64_t off, unsigned size, uint64_t value)
{
	struct pci_bus *b = arg;
	struct pci_device *d;

	if (off == 0 && size == 4)
		b->address = value;
	else if (off == PORT_RESET && size == 1 && value & RESET_NOW)
		machine_tell(b->machine, MACHINE_RESET);
	else if (off >= PORT_DATA && size <= 4 && is_aligned(off, size) && (d = selected(b)))
		pci_config_write(d, (b->address & 0xfc) + (off - PORT_DATA), size, value);
}

static struct pci_device *ecam_device(struct pci_bus *b, uint64_t off, unsigned size)
{
	if (size > 4 || !is_aligned(off, size))
		return NULL;
	return find(b, 0, off >> ECAM_DEVICE_SHIFT, off >> ECAM_FUNCTION_SHIFT & 7);
}

static uint64_t ecam_read(void *arg, uint64_t off, unsigned size)
{
	struct pci_device *d = ecam_device(arg, off, size);

	return d ? pci_config_read(d, off & 0xfff, size) : ones(size);
}

static void ecam_write(void *arg, uint64_t off, unsigned size, uint64_t value)
{
	struct pci_device *d = ecam_device(arg, off, size);

	if (d)
		pci_config_write(d, off & 0xfff, size, value);
}

static const struct pci_class host_bridge_class = {
	.vendor = 0x1b36, .device = 0x0008,	/* QEMU's generic one */
	.sub_vendor = 0x1af4, .sub_device = 0x1100,
	.class_code = { 0, 0, 6 },
};

int pci_start(struct machine *m, struct error *err)
{
	struct pci_bus *b = calloc(1, sizeof(*b));
	struct pci_device *bridge = calloc(1, sizeof(*bridge));
	int rc;

	if (!b || !bridge) {
		free(b);
		free(bridge);
		return error_set(err, -ENOMEM, "pci: out of memory");
	}
	b->machine = m;
	b->ports = (struct bus_region){ .base = PORT_ADDRESS, .len = 8, .read = port_read,
					.write = port_write, .arg = b };
	b->ecam = (struct bus_region){ .base = PCI_ECAM_BASE, .len = PCI_ECAM_SIZE,
				       .read = ecam_read, .write = ecam_write, .arg = b };
	m->pci = b;
	rc = pci_add(m, bridge, &host_bridge_class, err);
	if (!rc && (rc = bus_add(&m->pio, &b->ports)))
		error_errno(err, rc, "pci: ports");
	if (!rc && (rc = bus_add(&m->mmio, &b->ecam)))
		error_errno(err, rc, "pci: configuration space");
	return rc;
}

void pci_end(struct machine *m)
{
	if (!m->pci)
		return;
	bus_remove(&m->pio, &m->pci->ports);
	bus_remove(&m->mmio, &m->pci->ecam);
	for (unsigned i = 1; i < PCI_DEVICES_MAX; i++)
		if (m->pci->device[i])
			pci_remove(m->pci->device[i]);
	free(m->pci->device[0]);
	free(m->pci);
	m->pci = NULL;
}

/* The header that all devices have; everything else is 0. */
static void fill_header(struct pci_device *d)
{
	const struct pci_class *c = d->class;

	put16(d, PCI_VENDOR_ID, c->vendor);
	put16(d, PCI_DEVICE_ID, c->device);
	put16(d, PCI_SUBSYSTEM_VENDOR_ID, c->sub_vendor);
	put16(d, PCI_SUBSYSTEM_ID, c->sub_device);
	d->config[PCI_REVISION_ID] = c->revision;
	memcpy(d->config + PCI_CLASS_PROG, c->class_code, sizeof(c->class_code));
	d->writable[PCI_COMMAND] = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	d->writable[PCI_COMMAND + 1] = PCI_COMMAND_INTX_DISABLE >> 8;
	d->writable[PCI_INTERRUPT_LINE] = 0xff;
	if (c->bar_len) {
		uint32_t mask = ~(c->bar_len - 1);

		assert(is_pow2(c->bar_len) && c->bar_len >= 4096);
		memcpy(d->writable + PCI_BASE_ADDRESS_0, &mask, sizeof(mask));
	}
}

int pci_add(struct machine *m, struct pci_device *d, const struct pci_class *c, struct error *err)
{
	struct pci_bus *b = m->pci;
	unsigned slot = 0;

	while (slot < PCI_DEVICES_MAX && b->device[slot])
		slot++;
	if (slot == PCI_DEVICES_MAX)
		return error_set(err, -ENOSPC, "no slot is free on the PCI bus: it has %u",
				 PCI_DEVICES_MAX);
	d->class = c;
	d->machine = m;
	d->slot = slot;
	d->cap_end = FIRST_CAPABILITY;
	d->bar = (struct bus_region){ .len = c->bar_len, .read = bar_read, .write = bar_write,
				      .arg = d };
	fill_header(d);
	b->device[slot] = d;
	return 0;
}

void pci_remove(struct pci_device *d)
{
	bar_unmap(d);
	pci_msix_free(d);
	d->machine->pci->device[d->slot] = NULL;
}

uint8_t pci_add_capability(struct pci_device *d, uint8_t id, uint8_t len)
{
	uint8_t at = d->cap_end, *link = &d->config[PCI_CAPABILITY_LIST];

	assert(at + len <= PCI_CONFIG_BYTES - 4);
	while (*link)
		link = &d->config[*link + PCI_CAP_LIST_NEXT];
	*link = at;
	d->config[at + PCI_CAP_LIST_ID] = id;
	d->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
	d->cap_end = align_up(at + len, 4);
	return at;
}

/* What firmware would do: BARs from the bottom of the window, each aligned to its length. */
void pci_place_bars(struct machine *m)
{
	uint64_t at = PCI_BAR_BASE;

	for (unsigned i = 0; i < PCI_DEVICES_MAX; i++) {
		struct pci_device *d = m->pci->device[i];

		if (!d || !d->class->bar_len)
			continue;
		at = align_up(at, d->class->bar_len);
		put32(d, PCI_BASE_ADDRESS_0, at);
		d->config[PCI_COMMAND] |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
		pci_bar_sync(d);
		at += d->class->bar_len;
	}
}

static void rest_all(struct machine *m, enum pci_rest step)
{
	for (unsigned i = 0; i < PCI_DEVICES_MAX; i++) {
		struct pci_device *d = m->pci->device[i];

		if (d && d->class->rest)
			d->class->rest(d, step);
	}
}

void pci_rest(struct machine *m, bool on)
{
	if (on) {
		rest_all(m, REST_BEGIN);
		rest_all(m, REST_WAIT);
	} else {
		rest_all(m, REST_END);
	}
}

/* All that the guest could change is 0 again. */
void pci_reset(struct machine *m)
{
	for (unsigned i = 0; i < PCI_DEVICES_MAX; i++) {
		struct pci_device *d = m->pci->device[i];

		if (!d)
			continue;
		if (d->class->reset)
			d->class->reset(d);
		for (unsigned j = 0; j < PCI_CONFIG_BYTES; j++)
			d->config[j] &= ~d->writable[j];
		bar_unmap(d);
		pci_msix_reset(d);
	}
	m->pci->address = 0;
}
