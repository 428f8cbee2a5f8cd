// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes the files of live bitmaps: a process died, perhaps its machine did, and what lies
 * beside the image was then changed by somebody (doc/formats/bitmaps-live.md).
 *
 *	0	flags (disk.h); DISK_RAW: they are the sidecar of a raw image; 0x20: changes are to the regions' file, too; 0x40: another boot;
 *		0x80: checksums are made right again
 *	1	steps of the script
 *	2	changes
 *	3	the first table that is right again: 0 to 3
 *	4	the script
 *	...	changes, 8 bytes each: where, what (32 bits at it)
 */
#include "tests/fuzz/disk.h"

#define PREFIX 4u
#define STEP 6u
#define CLUSTER 512u
#define DISK (512u << 10)

static struct {
	uint8_t *image, *file[2];
	size_t image_size, file_size[2];
} template[2], *t;			/* of a qcow2 image, of a raw one; the one in use */
static const char *const suffix[2] = { LIVE_SUFFIX, LIVE_REGIONS_SUFFIX };

/* As the process that died left it: bitmaps that are stored, and some that are not. */
static void make_template(bool raw)
{
	struct qcow2_create o = { .size = DISK, .cluster_size = CLUSTER };
	struct memio_file *m = memio_put(IMAGE, NULL, 0, 0);
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(memio(), IMAGE, IO_RDWR, &err);
	unsigned flags = DISK_WRITABLE | (raw ? DISK_RAW : 0);
	struct node *n;

	t = &template[raw];
	fuzz_assert(f && !(raw ? io_truncate(f, DISK) : qcow2_create(f, &o, &err)));
	io_file_unref(f);
	n = disk_open(flags);
	fuzz_assert(n && !bitmap_add(n, "stored", 512, true, false, NULL, &err));
	fuzz_assert(!node_write(n, disk_buffer, 0, 20000, 0));
	node_unref(n);
	n = disk_open(flags);
	fuzz_assert(n && !bitmap_add(n, "new", 4096, true, false, NULL, &err));
	fuzz_assert(!bitmap_add(n, "off", 65536, true, true, NULL, &err));
	fuzz_assert(!node_write(n, disk_buffer, 100 << 10, 9000, 0) && !bitmaps_commit(n, &err));
	t->image_size = m->size;
	t->image = malloc(t->image_size);
	memcpy(t->image, m->data, t->image_size);
	for (unsigned i = 0; i < 2; i++) {
		fuzz_assert(memio_place[i]);
		t->file_size[i] = memio_place[i]->file.size;
		t->file[i] = malloc(t->file_size[i]);
		memcpy(t->file[i], memio_place[i]->file.data, t->file_size[i]);
	}
	node_unref(n);
	memio_beside_put(suffix[0], NULL);
	memio_beside_put(suffix[1], NULL);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	disk_init();
	make_template(false);
	make_template(true);
	return 0;
}

static void make_right(uint8_t *p, unsigned first)
{
	struct live_head *h = (struct live_head *)(void *)p;

	h->crc = live_crc(h, offsetof(struct live_head, crc));
	for (unsigned i = first % 4; i < 4; i++) {
		uint8_t *table = p + LIVE_HEAD + i * live_table_bytes;
		struct live_table_head *th = (struct live_table_head *)(void *)table;

		th->crc = 0;
		if (th->bytes <= live_table_bytes)
			th->crc = live_crc(table, th->bytes);
	}
}

int fuzz_input(const uint8_t *data, size_t size)
{
	struct fuzz_bytes in = { data, size }, script;
	unsigned flags = fuzz_take(&in, 1), steps = fuzz_take(&in, 1) % STEPS_MAX;
	unsigned n = fuzz_take(&in, 1), first = fuzz_take(&in, 1);
	struct memio_beside *m[2];

	if (size < PREFIX)
		return -1;
	script = (struct fuzz_bytes){ in.at, min_u64(steps * STEP, in.left) };
	in = (struct fuzz_bytes){ in.at + script.left, in.left - script.left };
	t = &template[flags & DISK_RAW ? 1 : 0];
	memio_put(IMAGE, t->image, t->image_size, t->image_size);
	memio_log_drop();
	for (unsigned i = 0; i < 2; i++)
		m[i] = memio_beside_new(t->file[i], t->file_size[i], t->file_size[i]);
	if (flags & 0x40)
		m[0]->file.data[offsetof(struct live_head, boot)] ^= 1;
	for (unsigned i = 0; i < n && in.left >= 8; i++) {
		uint32_t where, what;
		unsigned which = flags & 0x20 && i % 2;

		memcpy(&where, in.at, 4);
		memcpy(&what, in.at + 4, 4);
		in = (struct fuzz_bytes){ in.at + 8, in.left - 8 };
		memcpy(m[which]->file.data + where % (t->file_size[which] - 3), &what, 4);
	}
	if (flags & 0x80)
		make_right(m[0]->file.data, first);
	memio_beside_put(suffix[0], m[0]);
	memio_beside_put(suffix[1], m[1]);
	disk_run(flags & 0x1f, &script);
	return 0;
}
