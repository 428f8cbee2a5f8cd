// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes qcow2: an image from a stranger is opened, and requests are served from it.
 *
 *	0	flags (disk.h)
 *	1	steps of the script
 *	2	how much longer than its bytes the image is, 2 bytes, in units of 512
 *	4	the script
 *	...	the image
 *
 * An image of nothing but random bytes is refused at its first field, so half of the
 * mutations go where they hurt: fields of the header, and entries of the tables that
 * it leads to.
 */
#include "tests/fuzz/disk.h"

#include "common/bytes.h"
#include "format/qcow2-int.h"

#define PREFIX 4u
#define STEP 6u

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	disk_init();
	return 0;
}

static size_t image_at(const uint8_t *data, size_t size)
{
	return size < PREFIX ? size : min_u64(PREFIX + data[1] % STEPS_MAX * STEP, size);
}

int fuzz_input(const uint8_t *data, size_t size)
{
	struct fuzz_bytes script;
	size_t at = image_at(data, size);
	uint8_t base[1024];

	if (size < PREFIX)
		return -1;
	memio_log_drop();
	memset(base, 0xba, sizeof(base));
	memio_put(BASE, base, sizeof(base), 65536);
	memio_put(IMAGE, data + at, size - at, size - at + get_be16(data + 2) % 32768 * 512ull);
	script = (struct fuzz_bytes){ data + PREFIX, at - PREFIX };
	disk_run(data[0] & ~(unsigned)DISK_RAW, &script);
	return 0;
}

/* -- mutations ------------------------------------------------------------------ */

static uint64_t random_state;

static uint64_t random_next(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % below;
}

/* Values at which comparisons go wrong, and places in the image. */
static uint64_t evil(const uint8_t *image, size_t size)
{
	static const uint64_t edges[] = { 0, 1, 2, 7, 8, 9, 21, 22, 63, 64, 104, 112, 511, 512, 513, 1023, 1024,
		65535, 65536, 1 << 20, INT32_MAX, UINT32_MAX, 1ull << 32, (1ull << 56) - 512, 1ull << 56,
		INT64_MAX, 1ull << 63, UINT64_MAX, UINT64_MAX - 511 };
	unsigned bits = size > 24 ? image[H_CLUSTER_BITS + 3] % 32 : 9;
	uint64_t cluster = random_next((size >> bits) + 2) << bits;

	switch (random_next(6)) {
	case 0:
		return edges[random_next(sizeof(edges) / sizeof(edges[0]))];
	case 1:
		return cluster;
	case 2:
		return cluster | QCOW2_COPIED;
	case 3:
		return cluster | QCOW2_COPIED | QCOW2_ZERO;
	case 4:
		return QCOW2_COMPRESSED | (random_next(size + 1)) | random_next(512) << (62 - (bits - 8) % 62);
	default:
		return 1ull << random_next(64);
	}
}

static void put_width(uint8_t *p, unsigned width, uint64_t v)
{
	for (unsigned i = width; i--; v >>= 8)
		p[i] = v;
}

static void mutate_field(uint8_t *image, size_t size)
{
	static const struct { uint8_t at, width; } fields[] = {
		{ H_VERSION, 4 }, { H_BACKING_OFFSET, 8 }, { H_BACKING_SIZE, 4 }, { H_CLUSTER_BITS, 4 },
		{ H_SIZE, 8 }, { H_CRYPT, 4 }, { H_L1_SIZE, 4 }, { H_L1_OFFSET, 8 }, { H_REFTABLE_OFFSET, 8 },
		{ H_REFTABLE_CLUSTERS, 4 }, { H_NB_SNAPSHOTS, 4 }, { H_SNAPSHOTS_OFFSET, 8 },
		{ H_INCOMPATIBLE, 8 }, { H_COMPATIBLE, 8 }, { H_AUTOCLEAR, 8 }, { H_REFCOUNT_ORDER, 4 },
		{ H_LENGTH, 4 }, { H_COMPRESSION, 1 }, { 112, 4 }, { 116, 4 }, { 120, 8 },
	};
	unsigned i = random_next(sizeof(fields) / sizeof(fields[0]));

	if (size >= 128u)
		put_width(image + fields[i].at, fields[i].width, evil(image, size));
}

/* An 8-byte entry of a table that the header leads to, or of one that such an entry leads to. */
static void mutate_entry(uint8_t *image, size_t size)
{
	static const uint8_t roots[] = { H_L1_OFFSET, H_REFTABLE_OFFSET, H_SNAPSHOTS_OFFSET, H_BACKING_OFFSET };
	uint64_t at;

	if (size < 128)
		return;
	at = get_be64(image + roots[random_next(sizeof(roots))]);
	for (unsigned depth = random_next(3); ; depth--) {
		at += random_next(8) * 8;
		if (at > size || size - at < 8)
			return;
		if (!depth)
			break;
		at = get_be64(image + at) & QCOW2_OFFSET;
	}
	if (random_next(4))
		put_be64(image + at, evil(image, size));
	else
		image[at + random_next(8)] ^= 1u << random_next(8);
}

size_t fuzz_change(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	size_t at = image_at(data, size);

	random_state = seed | 1ull << 40;
	switch (random_next(8)) {
	case 0: case 1:
		return fuzz_mutate(data, size, max);
	case 2: case 3:
		if (at > PREFIX)	/* the script alone */
			fuzz_mutate(data + PREFIX, at - PREFIX, at - PREFIX);
		return size;
	case 4: case 5:
		mutate_field(data + at, size - at);
		return size;
	default:
		for (unsigned n = 1 + random_next(3); n; n--)
			mutate_entry(data + at, size - at);
		return size;
	}
}
