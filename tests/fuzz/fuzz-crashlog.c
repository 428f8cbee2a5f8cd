// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes the crash log: a process died while it wrote, and what lies beside the image
 * was then changed by somebody.
 *
 *	0	flags (disk.h); 0x40: the log's head says that a record was lost
 *	1	steps of the script
 *	2	records
 *	3	number of the first record
 *	4	the script
 *	...	records, 32 bytes each (format/qcow2-crashlog.h)
 *
 * The image is whole, open, and has clusters that only the log knows.  Places in
 * records count clusters, unless one of their upper bits is set: then they are taken as
 * they are.
 */
#include "tests/fuzz/disk.h"

#include "format/qcow2-crashlog.h"

#define PREFIX 4u
#define STEP 6u
#define CLUSTER 512u
#define DISK (512u << 10)

static uint8_t *image, *crash_log;
static size_t image_size;

/* As the process that died left it. */
static void make_template(void)
{
	struct qcow2_create o = { .size = DISK, .cluster_size = CLUSTER };
	struct memio_file *m = memio_put(IMAGE, NULL, 0, 0);
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(memio(), IMAGE, IO_RDWR, &err);
	struct node *n;

	fuzz_assert(f && !qcow2_create(f, &o, &err));
	io_file_unref(f);
	n = disk_open(DISK_WRITABLE);
	fuzz_assert(n && !node_write(n, disk_buffer, 0, 20000, 0) && !node_flush(n));
	fuzz_assert(!node_write(n, disk_buffer, 100 << 10, 9000, 0) && !node_zero(n, 0, 4096, 0));
	image_size = m->size;
	image = malloc(image_size);
	crash_log = malloc(LOG_BYTES);
	memcpy(image, m->data, image_size);
	memcpy(crash_log, memio_log, LOG_BYTES);
	node_unref(n);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	disk_init();
	make_template();
	return 0;
}

static void put_record(struct crashlog_record *r, const uint8_t *p)
{
	memcpy(r, p, sizeof(*r));
	if (!(r->where >> 32))
		r->where = (r->kind & CRASHLOG_L2) ? r->where % (DISK / CLUSTER) * CLUSTER : r->where % 64;
	if (!(r->entry >> 56 & 0x3f))
		r->entry = (r->entry & (QCOW2_COPIED | QCOW2_COMPRESSED | QCOW2_ZERO)) |
			   (r->entry >> 8 & 0xffff) % (image_size / CLUSTER + 2) * CLUSTER;
}

int fuzz_input(const uint8_t *data, size_t size)
{
	struct fuzz_bytes in = { data, size }, script;
	unsigned flags = fuzz_take(&in, 1), steps = fuzz_take(&in, 1) % STEPS_MAX;
	unsigned n = fuzz_take(&in, 1) % 65, first = fuzz_take(&in, 1);
	struct crashlog_record *slot;
	struct crashlog_head *head;

	if (size < PREFIX)
		return -1;
	script = (struct fuzz_bytes){ in.at, min_u64(steps * STEP, in.left) };
	in = (struct fuzz_bytes){ in.at + script.left, in.left - script.left };
	memio_put(IMAGE, image, image_size, image_size);
	memio_log_drop();
	memio_log = malloc(LOG_BYTES);
	memio_log_len = LOG_BYTES;
	memcpy(memio_log, crash_log, LOG_BYTES);
	head = (struct crashlog_head *)memio_log;
	slot = (struct crashlog_record *)(memio_log + CRASHLOG_HEAD);
	head->lost = !!(flags & 0x40);
	if (n) {
		head->begin = first;
		head->end = first + n;
	}
	for (unsigned i = 0; i < n && in.left >= sizeof(*slot); i++) {
		put_record(&slot[(first + i) % head->slots], in.at);
		in = (struct fuzz_bytes){ in.at + sizeof(*slot), in.left - sizeof(*slot) };
	}
	disk_run(flags & ~(unsigned)DISK_RAW, &script);
	return 0;
}
