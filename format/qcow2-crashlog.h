/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-crashlog: which mappings changed since the tables were last written.
 *
 * Between two flushes the L2 entries of new clusters are in memory only (qcow2-flush.c
 * says why they may not be written earlier).  A process that is killed would lose them,
 * and with them data that was acknowledged.  So each change of a mapping is also noted
 * in memory that outlives the process (common/io-mapped.h): after its data was written,
 * before the guest is told.  The next open for writing replays it (qcow2-replay.c).
 *
 * The file, in the byte order of the machine, which is the only one to read it:
 *
 *	   0	char[8]	"MERINOCL"
 *	   8	u32	version: 1
 *	  12	u32	bytes of this head: 4096
 *	  16	u32	bytes of a record: 32
 *	  20	u32	slots: how many records there is room for
 *	  24	u8[16]	boot id of the kernel (/proc/sys/kernel/random/boot_id)
 *	  40	u64	device of the image's file
 *	  48	u64	its inode
 *	  56	u8[16]	nonce: the image has the same one, see below
 *	  72	u64	begin: number of the first record that is not yet in the tables
 *	  80	u64	end: number of the next record
 *	  88	u32	lost: 1 when a record found no room
 *	4096		record number N is in slot N mod slots
 *
 * A record is complete before END counts it, and is in the tables, as far as the kernel
 * knows them, before BEGIN leaves it out: so at any instruction at which the process
 * dies, tables and records [begin, end) make up the mapping that the guest was told of.
 *
 * In the image, while it is open for writing: autoclear feature bit 61 ("open"), which
 * QEMU clears when it writes, and a header extension with the nonce.  A log is replayed
 * only when the bit is set and boot id, device, inode and nonce are the same: not after
 * a power loss, when nobody knows which data is there; not when another program wrote;
 * not on another image, or an older copy of this one.  The bit without a log (or with
 * one that does not match) still says that the image was not closed: it is checked for
 * leaks (qcow2-repair.c).  After a failed fsync the magic is taken away: what the kernel
 * could not write it may have forgotten, and nothing must point to it.
 */
#ifndef MERINO_QCOW2_CRASHLOG_H
#define MERINO_QCOW2_CRASHLOG_H

#include <stddef.h>
#include <stdint.h>

#include "common/io-mapped.h"

#define CRASHLOG_MAGIC "MERINOCL"
#define CRASHLOG_VERSION 1u
#define CRASHLOG_NONCE 16u

struct crashlog_head {
	char magic[8];
	uint32_t version, head_bytes, record_bytes, slots;
	uint8_t boot[16];
	uint64_t dev, ino;
	uint8_t nonce[CRASHLOG_NONCE];
	uint64_t begin, end;
	uint32_t lost;
};

#define CRASHLOG_HEAD 4096u

enum crashlog_kind { CRASHLOG_L2 = 1, CRASHLOG_L1 = 2 };

/* L2: COUNT guest clusters from WHERE (bytes) on have ENTRY, ENTRY + STEP, ..., and each
 * BITS (the second half of an extended entry).  L1: entry number WHERE is ENTRY. */
struct crashlog_record {
	uint64_t where, entry, bits;
	uint32_t count;
	uint16_t kind;
	uint16_t step_bits;		/* STEP is 1 << this; 0: there is none */
};

_Static_assert(sizeof(struct crashlog_record) == 32, "a record has 32 bytes");
_Static_assert(offsetof(struct crashlog_head, begin) == 72, "as documented");

struct crashlog {
	struct io_mapped *map;
	struct crashlog_head *head;	/* in MAP */
	struct crashlog_record *slot;	/* in MAP */
	uint64_t sealed;		/* records before this one do not change any more */
	bool said;			/* that one was lost */
};

enum crashlog_mode { CRASHLOG_AUTO, CRASHLOG_ON, CRASHLOG_OFF };

static inline struct crashlog_record *crashlog_at(const struct crashlog *l, uint64_t n)
{
	return &l->slot[n % l->head->slots];
}

#endif
