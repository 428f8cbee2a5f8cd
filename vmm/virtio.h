/* SPDX-License-Identifier: BSD-3-Clause */
/* virtio: what a virtio 1.x device is, and its modern PCI transport (section 4.1).
 *
 * Registers are read and written under machine->lock.  activate() and reset() are the
 * device's: after reset() returns no thread of the device touches guest memory or a queue.
 * No thread that reset() waits for may take machine->lock: what any thread may call takes none.
 */
#ifndef MERINO_VMM_VIRTIO_H
#define MERINO_VMM_VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "vmm/pci.h"
#include "vmm/queue.h"

struct device_state;
struct machine;
struct virtio;

#define VIRTIO_QUEUES_MAX 63u		/* and one vector more than queues: 64 */
#define VIRTIO_CONFIG_MAX 256u

struct virtio_class {
	const char *name;		/* "virtio-blk-pci": QEMU's */
	uint16_t id;			/* 1 net, 2 block, 3 console, 4 entropy */
	uint8_t class_code[3];
	/* DRIVER_OK: the queues that are enabled may be used. */
	int (*activate)(struct virtio *v);
	void (*reset)(struct virtio *v);	/* ends a rest, too */
	/* While active, without a vCPU in the guest: see enum pci_rest. */
	void (*rest)(struct virtio *v, enum pci_rest step);
	/* The guest is about to read its configuration: brings that up to date, and counts the
	 * generation when it was not.  NULL: nothing changes by itself. */
	void (*refresh)(struct virtio *v);
	/* At rest; may be NULL.  What of the class's own is in S. */
	int (*save)(struct virtio *v, struct device_state *s, struct error *err);
	/* Instead of activate(), with the queues loaded: at rest until REST_END.  S is hostile. */
	int (*load)(struct virtio *v, const struct device_state *s, struct error *err);
	/* The guest wrote to the device's configuration. */
	void (*config_written)(struct virtio *v, unsigned off, unsigned len);
};

/* What of a device is saved with the machine, besides its queues and its class's own. */
struct virtio_state {
	uint32_t version;		/* 1 */
	uint8_t status, isr, generation;
	uint8_t active, needs_reset;	/* 0 or 1; here and below: in a saved one only */
	uint64_t acked;			/* features that the driver took */
	uint16_t config_vector, queue_select;
	uint32_t feature_select, driver_select;
	uint16_t id;			/* the class's */
	uint16_t n_queues, config_len;
	uint8_t config[VIRTIO_CONFIG_MAX];
};

struct virtio {
	struct pci_device pci;
	struct pci_class pci_class;
	const struct virtio_class *class;
	struct machine *machine;
	struct virtio_state s;
	uint64_t features;		/* offered; VERSION_1, INDIRECT, EVENT_IDX are added */
	struct queue queue[VIRTIO_QUEUES_MAX];
	int doorbell[VIRTIO_QUEUES_MAX];	/* eventfds */
	unsigned n_queues;
	uint16_t queue_size;		/* the largest offered */
	/* The driver's and the device's: what other threads change is one atomic store. */
	uint8_t config[VIRTIO_CONFIG_MAX] __attribute__((aligned(8)));
	unsigned config_len;
	bool active;			/* between activate() and reset() */
	bool config_news;		/* it differs from what was loaded: to be told */
	bool needs_reset;		/* atomic: set by any thread, DEVICE_NEEDS_RESET */
	uint8_t cfg_cap;		/* where its VIRTIO_PCI_CAP_PCI_CFG lies */
	char id[64];			/* the device's id, QEMU's "id" */
};

/* N_QUEUES, QUEUE_SIZE, FEATURES, CONFIG and ID are set.  V is the caller's;
 * virtio_remove(), before pci_end(), takes it off the bus and frees what virtio_add() made. */
int virtio_add(struct machine *m, struct virtio *v, const struct virtio_class *c, struct error *err);
void virtio_remove(struct virtio *v);
/* Any thread: queue I has something for the driver / the configuration has changed. */
void virtio_interrupt(struct virtio *v, unsigned i);
void virtio_config_changed(struct virtio *v);
/* A queue is broken: DEVICE_NEEDS_RESET.  Any thread. */
void virtio_needs_reset(struct virtio *v);
/* At rest, with machine->lock held.  virtio_load(): after a reset; -EINVAL: reset it. */
int virtio_save(struct virtio *v, struct device_state *s, struct error *err);
int virtio_load(struct virtio *v, const struct device_state *s, struct error *err);
/* For classes whose requests are done at once: none can be under way. */
int virtio_refuse_taken(const struct virtio *v, struct error *err);
/* The driver took feature BIT. */
static inline bool virtio_has(const struct virtio *v, unsigned bit)
{
	return v->s.acked >> bit & 1;
}

#endif
