/* SPDX-License-Identifier: BSD-3-Clause */
/* disks: all disks of a machine, from the texts of --disk. */
#ifndef MERINO_VMM_DISKS_H
#define MERINO_VMM_DISKS_H

#include "vmm/cmdline.h"
#include "vmm/control.h"
#include "vmm/virtio-blk.h"

struct disks {
	struct blk_options options[CMDLINE_LIST_MAX];
	struct blk *blk[CMDLINE_LIST_MAX];
	struct control_disk names[CMDLINE_LIST_MAX];	/* for query-block */
	char *node[CMDLINE_LIST_MAX];
	unsigned n;			/* options */
	unsigned n_added;		/* devices */
};

/* Reads the texts; nothing is connected yet. */
int disks_parse(struct disks *d, const struct cmdline_list *l, struct error *err);
/* Connects each, and puts it on the bus, in order. */
int disks_add(struct disks *d, struct machine *m, struct error *err);
/* Coroutine: looks whether they have other sizes now, and tells the guest, unless *STOP. */
void disks_look(struct disks *d, const bool *stop);
/* With the vCPUs stopped.  Waits for no server. */
void disks_end(struct disks *d);

#endif
