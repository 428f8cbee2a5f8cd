// SPDX-License-Identifier: BSD-3-Clause
/* pci-msix: message-signalled interrupts of a device.
 *
 * Each vector has an eventfd for as long as the device lives; whoever has news writes to it
 * and need not know what the guest did to the vector.  While it is unmasked KVM listens at
 * the eventfd; while it is masked nobody does, and what was written is its pending bit: KVM
 * looks at once when it listens again.
 */
#include "vmm/pci.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <linux/pci_regs.h>

#include "common/checked.h"
#include "vmm/machine.h"

enum { ENTRY = 16, ENTRY_ADDR = 0, ENTRY_ADDR_HIGH = 4, ENTRY_DATA = 8, ENTRY_CONTROL = 12 };

static uint16_t flags(const struct pci_device *d)
{
	uint16_t v;

	memcpy(&v, d->config + d->msix_cap + PCI_MSIX_FLAGS, sizeof(v));
	return v;
}

static bool is_enabled(const struct pci_device *d)
{
	return d->n_vectors && flags(d) & PCI_MSIX_FLAGS_ENABLE;
}

static void vector_sync(struct pci_device *d, struct pci_vector *v)
{
	bool masked = !is_enabled(d) || flags(d) & PCI_MSIX_FLAGS_MASKALL ||
		      v->control & PCI_MSIX_ENTRY_CTRL_MASKBIT;

	if (v->route < 0 && !masked) {
		v->route = machine_msi_add(d->machine, v->fd, v->addr, v->data);
		return;
	}
	if (v->route >= 0)
		machine_msi_set(d->machine, v->route, v->addr, v->data, masked);
}

void pci_msix_sync(struct pci_device *d)
{
	for (unsigned i = 0; i < d->n_vectors; i++)
		vector_sync(d, &d->vector[i]);
}

static bool is_pending(const struct pci_vector *v)
{
	struct pollfd p = { .fd = v->fd, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

static void drain(const struct pci_vector *v)
{
	uint64_t n;

	while (read(v->fd, &n, sizeof(n)) < 0 && errno == EINTR)
		;
}

void pci_msix_reset(struct pci_device *d)
{
	for (unsigned i = 0; i < d->n_vectors; i++) {
		struct pci_vector *v = &d->vector[i];

		v->addr = v->data = 0;
		v->control = PCI_MSIX_ENTRY_CTRL_MASKBIT;
		vector_sync(d, v);
		drain(v);
	}
}

void pci_msix_free(struct pci_device *d)
{
	for (unsigned i = 0; i < d->n_vectors; i++) {
		if (d->vector[i].route >= 0)
			machine_msi_remove(d->machine, d->vector[i].route);
		close(d->vector[i].fd);
	}
	free(d->vector);
	d->vector = NULL;
	d->n_vectors = 0;
}

/* The pending bits follow the table. */
static uint32_t pba_at(const struct pci_device *d)
{
	return d->msix_at + d->n_vectors * ENTRY;
}

static void put32(struct pci_device *d, unsigned off, uint32_t v)
{
	memcpy(d->config + off, &v, sizeof(v));
}

int pci_add_msix(struct pci_device *d, unsigned n, uint32_t at, struct error *err)
{
	uint8_t cap;

	assert(n > 0 && n <= PCI_VECTORS_MAX && is_aligned(at, 16));
	d->vector = calloc(n, sizeof(*d->vector));
	if (!d->vector)
		return error_set(err, -ENOMEM, "pci: out of memory");
	d->msix_at = at;
	for (; d->n_vectors < n; d->n_vectors++) {
		struct pci_vector *v = &d->vector[d->n_vectors];

		v->route = -1;
		v->control = PCI_MSIX_ENTRY_CTRL_MASKBIT;
		v->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		if (v->fd < 0) {
			int rc = error_errno(err, -errno, "pci: eventfd");

			pci_msix_free(d);
			return rc;
		}
	}
	cap = d->msix_cap = pci_add_capability(d, PCI_CAP_ID_MSIX, PCI_CAP_MSIX_SIZEOF);
	d->config[cap + PCI_MSIX_FLAGS] = n - 1;
	d->writable[cap + PCI_MSIX_FLAGS + 1] =
		(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL) >> 8;
	put32(d, cap + PCI_MSIX_TABLE, at);
	put32(d, cap + PCI_MSIX_PBA, pba_at(d));
	return 0;
}

static uint32_t table_read(const struct pci_vector *v, unsigned field)
{
	switch (field) {
	case ENTRY_ADDR: return v->addr;
	case ENTRY_ADDR_HIGH: return v->addr >> 32;
	case ENTRY_DATA: return v->data;
	default: return v->control;
	}
}

static void table_write(struct pci_vector *v, unsigned field, uint32_t value)
{
	switch (field) {
	case ENTRY_ADDR: v->addr = (v->addr & ~0xffffffffull) | (value & ~3u); break;
	case ENTRY_ADDR_HIGH: v->addr = (v->addr & 0xffffffff) | (uint64_t)value << 32; break;
	case ENTRY_DATA: v->data = value; break;
	default: v->control = value & PCI_MSIX_ENTRY_CTRL_MASKBIT; break;
	}
}

static uint32_t pending_read(const struct pci_device *d, unsigned first)
{
	uint32_t bits = 0;

	for (unsigned i = 0; i < 32 && first + i < d->n_vectors; i++)
		if (is_pending(&d->vector[first + i]))
			bits |= 1u << i;
	return bits;
}

/* One aligned dword. */
static uint32_t access32(struct pci_device *d, uint64_t off, uint32_t value, bool write)
{
	struct pci_vector *v;

	if (off >= pba_at(d))
		return write ? 0 : pending_read(d, (off - pba_at(d)) * 8);
	v = &d->vector[(off - d->msix_at) / ENTRY];
	if (!write)
		return table_read(v, off % ENTRY);
	table_write(v, off % ENTRY, value);
	vector_sync(d, v);
	return 0;
}

bool pci_msix_access(struct pci_device *d, uint64_t off, unsigned size, uint64_t *value, bool write)
{
	uint64_t low, end = pba_at(d) + DIV_ROUND_UP(d->n_vectors, 64) * 8;

	if (!d->n_vectors || off < d->msix_at || off >= end)
		return false;
	if (size < 4 || !is_aligned(off, size)) {	/* the specification forbids it */
		*value = 0;
		return true;
	}
	low = access32(d, off, *value, write);
	if (size == 8)
		low |= (uint64_t)access32(d, off + 4, *value >> 32, write) << 32;
	if (!write)
		*value = low;
	return true;
}

bool pci_raise(struct pci_device *d, unsigned i)
{
	uint64_t one = 1;

	if (i >= d->n_vectors || !is_enabled(d))
		return false;
	/* Full after 2^64 - 2 writes: then it is pending anyway. */
	while (write(d->vector[i].fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	return true;
}

/* --- saved and loaded */

void pci_msix_save(const struct pci_device *d, struct pci_state *s)
{
	s->n_vectors = d->n_vectors;
	for (unsigned i = 0; i < d->n_vectors; i++) {
		const struct pci_vector *v = &d->vector[i];

		s->vector[i].addr = v->addr;
		s->vector[i].data = v->data;
		s->vector[i].masked = v->control & PCI_MSIX_ENTRY_CTRL_MASKBIT;
		s->vector[i].pending = is_pending(v);
	}
}

bool pci_msix_load(struct pci_device *d, const struct pci_state *s)
{
	uint64_t one = 1;

	for (unsigned i = 0; i < d->n_vectors; i++)
		if (s->vector[i].masked > 1 || s->vector[i].pending > 1 || s->vector[i].addr & 3)
			return false;
	for (unsigned i = 0; i < d->n_vectors; i++) {
		struct pci_vector *v = &d->vector[i];

		v->addr = s->vector[i].addr;
		v->data = s->vector[i].data;
		v->control = s->vector[i].masked;
		/* It was drained by the reset, and KVM looks when it listens again. */
		while (s->vector[i].pending && write(v->fd, &one, sizeof(one)) < 0 && errno == EINTR)
			;
	}
	pci_msix_sync(d);
	return true;
}
