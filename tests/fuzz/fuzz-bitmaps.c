// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes the bitmap directory of a qcow2 image, and the bitmap tables below it.
 *
 *	0	flags (disk.h); 0x80: the directory has just the bytes that its entries have
 *	1	steps of the script
 *	2	number of bitmaps that the header says
 *	3	bytes of the directory, 2 bytes
 *	5	the script
 *	...	the directory
 *	...	tables and bits: CLUSTERS clusters
 *
 * The image around them is whole, and the clusters have refcount 1.  Pointers in the
 * input count clusters from where these begin, unless their first byte is set: then
 * they go into the image as they are.
 */
#include "tests/fuzz/disk.h"

#include "common/bytes.h"
#include "format/qcow2.h"

#define PREFIX 5u
#define STEP 6u
#define CLUSTER 512u
#define DIR_CLUSTERS 16u
#define CLUSTERS 24u
#define TABLES 4u			/* clusters whose words are taken for table entries */
#define DISK (256u << 10)		/* a bitmap of granules of 512 bytes fills one cluster of bits in an eighth */

static uint8_t *template;
static size_t template_size;
static uint64_t directory, clusters;	/* where they are in the image */
static size_t extension;		/* of the header: where its data is */

static void make_template(void)
{
	struct qcow2_create o = { .size = DISK, .cluster_size = CLUSTER };
	struct qcow2_bitmap_ext ext = { .nb_bitmaps = 1, .directory_size = 32 };
	struct memio_file *m = memio_put(IMAGE, NULL, 0, 0);
	static const uint8_t type[] = { 0x23, 0x85, 0x28, 0x75 };
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(memio(), IMAGE, IO_RDWR, &err);
	struct node *n;

	fuzz_assert(f && !qcow2_create(f, &o, &err));
	io_file_unref(f);
	n = disk_open(DISK_WRITABLE);
	fuzz_assert(n);
	directory = qcow2_alloc_clusters(n, DIR_CLUSTERS);
	clusters = qcow2_alloc_clusters(n, CLUSTERS);
	fuzz_assert(!qcow2_meta_write(n, "", clusters + CLUSTERS * CLUSTER - 1, 1));
	ext.directory_offset = directory;
	fuzz_assert(!qcow2_bitmap_ext_set(n, &ext, &err));
	node_unref(n);
	fuzz_assert(m->data[95] & QCOW2_BITMAPS);
	extension = (uint8_t *)memmem(m->data + 104, CLUSTER, type, sizeof(type)) + 8 - m->data;
	template_size = m->size;
	template = malloc(template_size);
	memcpy(template, m->data, template_size);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	disk_init();
	make_template();
	return 0;
}

static void put_pointer(uint8_t *p)
{
	uint64_t v = get_be64(p);

	if (!p[0] && v > 1)
		put_be64(p, clusters + v % CLUSTERS * CLUSTER);
}

/* Turns pointers into offsets; returns the bytes of N entries. */
static size_t walk(uint8_t *dir, size_t len, unsigned n)
{
	size_t at = 0;

	for (; n && len - at >= 24; n--) {
		uint64_t bytes = align_up(24 + (uint64_t)get_be32(dir + at + 20) + get_be16(dir + at + 18), 8);

		put_pointer(dir + at);
		if (bytes > len - at)
			return len;
		at += bytes;
	}
	return n ? len : at;
}

int fuzz_input(const uint8_t *data, size_t size)
{
	struct fuzz_bytes in = { data, size }, script;
	unsigned flags = fuzz_take(&in, 1), steps = fuzz_take(&in, 1) % STEPS_MAX, n = fuzz_take(&in, 1);
	uint64_t len = fuzz_take(&in, 2), bytes;
	struct memio_file *m;

	if (size < PREFIX)
		return -1;
	script = (struct fuzz_bytes){ in.at, min_u64(steps * STEP, in.left) };
	in = (struct fuzz_bytes){ in.at + script.left, in.left - script.left };
	memio_log_drop();
	m = memio_put(IMAGE, template, template_size, template_size);
	bytes = min_u64(min_u64(len, in.left), DIR_CLUSTERS * CLUSTER);
	memcpy(m->data + directory, in.at, bytes);
	len = walk(m->data + directory, bytes, n);
	put_be32(m->data + extension, n);
	put_be64(m->data + extension + 8, flags & 0x80 ? len : bytes);
	memcpy(m->data + clusters, in.at + bytes, min_u64(in.left - bytes, CLUSTERS * CLUSTER));
	for (unsigned i = 0; i < TABLES * CLUSTER; i += 8)
		put_pointer(m->data + clusters + i);
	disk_run(flags & ~(unsigned)DISK_RAW, &script);
	return 0;
}
