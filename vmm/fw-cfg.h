/* SPDX-License-Identifier: BSD-3-Clause */
/* fw_cfg: what firmware asks the machine for, as QEMU has it (docs/specs/fw_cfg).
 *
 *	510	which item (16 bits), from its first byte on
 *	511	the item's next byte; 0 behind its end
 *	514	a request in guest memory, big-endian: the address' high half
 *	518	... its low half: this begins the request
 *
 * An item is a key and some bytes.  Named ones, files, have keys from FW_CFG_FILES on and
 * are listed in the item FW_CFG_DIRECTORY.  The guest can read them, nothing else.
 * With machine->lock held, but for start and end.
 */
#ifndef MERINO_VMM_FW_CFG_H
#define MERINO_VMM_FW_CFG_H

#include <stdint.h>

#include "common/error.h"

struct machine;

#define FW_CFG_PORT 0x510u
#define FW_CFG_PORTS 12u
#define FW_CFG_ITEMS_MAX 24u
#define FW_CFG_NAME_MAX 55u

enum {
	FW_CFG_SIGNATURE = 0x00, FW_CFG_ID = 0x01, FW_CFG_NO_GRAPHICS = 0x04, FW_CFG_CPUS = 0x05,
	FW_CFG_CPUS_MAX = 0x0f, FW_CFG_DIRECTORY = 0x19, FW_CFG_FILES = 0x20,
};

/* Of one request in memory: who asks for more makes the machine's other CPUs wait. */
#define FW_CFG_DMA_MAX (1u << 20)

/* What is saved with the machine. */
struct fw_cfg_state {
	uint32_t version;		/* 1 */
	uint16_t key;
	uint32_t at;			/* of its next byte, at most its length */
	uint64_t dma;			/* the address, as far as it was written */
};

int fw_cfg_start(struct machine *m, struct error *err);		/* signature and ID are there */
void fw_cfg_end(struct machine *m);
void fw_cfg_reset(struct machine *m);	/* and no items but those */

void fw_cfg_save(struct machine *m, struct fw_cfg_state *s);
int fw_cfg_load(struct machine *m, const struct fw_cfg_state *s, struct error *err);	/* items stay */

/* Takes a copy of BYTES.  -ENOMEM, -ENOSPC. */
int fw_cfg_add(struct machine *m, uint16_t key, const void *bytes, uint32_t len);
int fw_cfg_add_file(struct machine *m, const char *name, const void *bytes, uint32_t len);

#endif
