/* SPDX-License-Identifier: BSD-3-Clause */
/* vmm-rig: a machine without KVM: buses and memory, for a device and a driver that a test is. */
#ifndef TESTS_VMM_RIG_H
#define TESTS_VMM_RIG_H

#include <time.h>

#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#include "tests/unit/vmm-nbd.h"
#include "tests/unit/vmm-ring.h"
#include "vmm/machine.h"
#include "vmm/pci.h"
#include "vmm/virtio.h"

/* What devices ask of a machine.  KVM's part is not there: doorbells come over the bus. */
static unsigned rig_routes;

void machine_tell(struct machine *m, enum machine_event e) { }
int machine_msi_add(struct machine *m, int fd, uint64_t addr, uint32_t data) { return (int)rig_routes++; }
int machine_msi_set(struct machine *m, int route, uint64_t addr, uint32_t data, bool masked) { return 0; }
void machine_msi_remove(struct machine *m, int route) { }
int machine_doorbell(struct machine *m, uint64_t addr, unsigned size, int fd, bool on) { return 0; }

enum { RIG_BAR = PCI_BAR_BASE, RIG_COMMON = RIG_BAR, RIG_DEVICE = RIG_BAR + 0x2000,
       RIG_NOTIFY = RIG_BAR + 0x3000, RIG_MSIX = RIG_BAR + 0x4000 };

static inline uint64_t rig_get(struct machine *m, uint64_t at, unsigned size)
{
	return bus_read(&m->mmio, at, size);
}

static inline void rig_put(struct machine *m, uint64_t at, unsigned size, uint64_t v)
{
	bus_write(&m->mmio, at, size, v);
}

/* M's memory is R's; R's rings lie where its queue's state says. */
static inline void rig_machine(struct machine *m, struct ring *r, uint16_t size)
{
	struct error err = ERROR_INIT;

	memset(m, 0, sizeof(*m));
	ring_make(r, size);
	m->memory = r->memory;
	pthread_mutex_init(&m->lock, NULL);
	if (pci_start(m, &err))
		abort();
}

/* As a driver starts a device: features, queue 0, DRIVER_OK.  Its status then. */
static inline uint8_t rig_driver(struct machine *m, struct ring *r, uint64_t features)
{
	const struct queue_state *s = &r->q.s;

	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_STATUS, 1, 0);
	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_STATUS, 1, 3);
	for (unsigned i = 0; i < 2; i++) {
		rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_GFSELECT, 4, i);
		rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_GF, 4, features >> 32 * i & 0xffffffff);
	}
	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_STATUS, 1, 11);
	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_SIZE, 2, s->size);
	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_DESCLO, 4, s->desc);
	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_AVAILLO, 4, s->avail);
	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_USEDLO, 4, s->used);
	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_STATUS, 1, 15);
	return rig_get(m, RIG_COMMON + VIRTIO_PCI_COMMON_STATUS, 1);
}

static inline uint8_t rig_status(struct machine *m)
{
	return rig_get(m, RIG_COMMON + VIRTIO_PCI_COMMON_STATUS, 1);
}

static inline void rig_reset(struct machine *m)
{
	rig_put(m, RIG_COMMON + VIRTIO_PCI_COMMON_STATUS, 1, 0);
}

static inline void rig_ring(struct machine *m)
{
	rig_put(m, RIG_NOTIFY, 2, 0);
}

static inline double rig_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static inline uint16_t rig_done(struct ring *r)
{
	return __atomic_load_n(&r->used->idx, __ATOMIC_ACQUIRE);
}

/* Until N requests in all are done, or SECONDS have gone: how many are. */
static inline uint16_t rig_wait(struct ring *r, uint16_t n, double seconds)
{
	double end = rig_now() + seconds;

	while (rig_done(r) != n && rig_now() < end)
		usleep(200);
	return rig_done(r);
}

#endif
