/* SPDX-License-Identifier: BSD-3-Clause */
/* store-dir: the bitmap directory of a qcow2 image, as bytes in memory.
 *
 * qcow2 specification, "Bitmaps", all big-endian.  The directory is nothing but
 * its entries, one behind the other, each padded with zeroes to 8 bytes:
 *
 *	 0	u64	offset of the bitmap table, cluster aligned
 *	 8	u32	entries in the bitmap table
 *	12	u32	flags: 1 in use, 2 auto (enabled), 4 extra data compatible
 *	16	u8	type: 1 dirty tracking bitmap
 *	17	u8	granularity bits
 *	18	u16	bytes of the name, not 0
 *	20	u32	bytes of extra data
 *	24		extra data, then the name
 *
 * and each entry of a bitmap table stands for one cluster of bits: 0 all clear,
 * 1 all set, else the cluster's offset (bits 9 to 55; the rest is 0).
 *
 * The parser believes nothing: it looks only at whether the entries fill the
 * directory exactly and have distinct names.  What does not is damaged as a whole.
 * An entry of a kind that we do not know is kept, byte for byte, and is not used.
 */
#ifndef MERINO_STORE_DIR_H
#define MERINO_STORE_DIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define DIR_ENTRY_HEAD 24u
#define DIR_BYTES_MAX (1024ull * 65535)		/* QEMU's limit too */
#define DIR_NAME_MAX 1023u
#define DIR_TYPE_DIRTY 1u

enum dir_flags { DIR_IN_USE = 1, DIR_AUTO = 2, DIR_EXTRA_COMPATIBLE = 4, DIR_FLAGS_KNOWN = 7 };

/* Bits of a bitmap table entry. */
#define TABLE_OFFSET 0x00fffffffffffe00ull
#define TABLE_ONES 1ull

struct dir_entry {
	size_t pos;			/* of its first byte in the directory */
	uint32_t len;			/* bytes, padding included */
	uint64_t table_offset;
	uint32_t table_size;		/* entries */
	uint32_t flags;
	uint8_t type, granularity_bits;
	uint16_t name_len;
	uint32_t extra_len;
	char name[DIR_NAME_MAX + 1];	/* "" when it is none that a bitmap can have */
};

struct directory {
	uint8_t *bytes;			/* owned */
	size_t len;
	uint32_t n;
	size_t *pos;			/* of each entry; owned */
};

/* Checks BYTES (N entries in LEN bytes).  0; -EINVAL with the reason in ERR, or
 * -ENOMEM.  Takes the bytes over (malloc'd) in any case. */
int dir_parse(struct directory *d, uint8_t *bytes, size_t len, uint32_t n, struct error *err);
void dir_free(struct directory *d);		/* one of zeroes is fine */

/* The entry number I. */
void dir_get(const struct directory *d, uint32_t i, struct dir_entry *e);
/* The one called NAME, looked for from HINT on and then from the start: its number, or
 * -1.  Who looks for many in the directory's order is fast. */
int64_t dir_find(const struct directory *d, const char *name, uint32_t hint);
/* Changes the flags of an entry; returns whether they were others before. */
bool dir_set_flags(struct directory *d, uint32_t i, uint32_t flags);
/* Takes an entry out. */
void dir_delete(struct directory *d, uint32_t i);
/* Appends an entry of E's table, flags, granularity and name, without extra data
 * (E's pos and len are set).  -ENOSPC past the limits, -ENOMEM. */
int dir_append(struct directory *d, struct dir_entry *e);
/* Changes where an entry's table is. */
void dir_set_table(struct directory *d, uint32_t i, uint64_t offset, uint32_t size);

/* NULL when a bitmap can be made of the entry, else why not. */
const char *dir_entry_problem(const struct dir_entry *e);

#endif
