/* SPDX-License-Identifier: BSD-3-Clause */
/* virtio-blk: a block device whose data is an NBD export (virtio 1.2, section 5.2). */
#ifndef MERINO_VMM_VIRTIO_BLK_H
#define MERINO_VMM_VIRTIO_BLK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "vmm/disk.h"

struct machine;
struct blk;

#define BLK_SERIAL_MAX 20u		/* bytes, virtio's */
#define BLK_QUEUES_MAX DISK_CHANNELS_MAX

struct blk_options {
	char id[64];
	char serial[BLK_SERIAL_MAX + 1];
	char *uri[DISK_URIS_MAX + 1];	/* NULL-terminated, owned */
	unsigned queues;		/* 0: as many as vCPUs, up to 4 */
	unsigned queue_size;
	unsigned reconnect_delay;	/* seconds; 0: for ever */
	bool read_only;
};

/* The value of --disk: "URI[,key=value...]". */
int blk_parse(const char *text, struct blk_options *o, struct error *err);
void blk_options_clear(struct blk_options *o);

/* Connects, and puts the device on the bus.  Threads are made here, once. */
int blk_add(struct machine *m, const struct blk_options *o, struct blk **out, struct error *err);
/* Before pci_end(), with the vCPUs stopped.  Waits for no server. */
void blk_remove(struct blk *b);

const char *blk_id(const struct blk *b);
struct disk *blk_disk(struct blk *b);	/* for its facts, and disk_set_size() */

#endif
