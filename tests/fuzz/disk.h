/* SPDX-License-Identifier: BSD-3-Clause */
/* disk: what the targets do with a qcow2 image in memory: open it, run a script of
 * requests, close it, open it again.
 *
 * A script is a row of steps of six bytes: what, where (three), how much (two).
 */
#ifndef TESTS_FUZZ_DISK_H
#define TESTS_FUZZ_DISK_H

#include <json-c/json.h>

#include "bitmaps/bitmap.h"
#include "bitmaps/live-int.h"
#include "common/json.h"
#include "common/log.h"
#include "format/node.h"
#include "format/qcow2-int.h"
#include "tests/fuzz/memio.h"

#define IMAGE "/fuzz/image"
#define BASE "/fuzz/base"
#define LOG_BYTES (4096u + 64 * 32)	/* of the crash log */
#define STEPS_MAX 48
#define STEP_BYTES_MAX (4u << 20)
#define NODES_EXTENTS 512

enum disk_flags { DISK_WRITABLE = 1, DISK_NO_BACKING = 2, DISK_UNMAP = 4, DISK_SMALL_CACHE = 8,
		  DISK_RAW = 16 };

static struct graph graph;
static uint8_t disk_buffer[STEP_BYTES_MAX];

static inline void disk_init(void)
{
	log_init("fuzz", LOG_LEVEL_NONE);
	graph_init(&graph);
	qcow2_crashlog_bytes = LOG_BYTES;
	live_table_bytes = 4096;
	bitmaps_init();
}

/* NULL: refused.  Then the image must be as it was, and no node may be left. */
static inline struct node *disk_open(unsigned flags)
{
	struct node_place where = { .graph = &graph, .io = memio() };
	struct memio_file *m = memio_find(IMAGE);
	struct error err = ERROR_INIT;
	struct json_object *o;
	struct node *n = NULL;
	uint64_t size = m->size;
	uint8_t *before = malloc(size + 1);
	bool raw = flags & DISK_RAW;
	char text[512];

	if (raw)
		flags &= DISK_WRITABLE | DISK_UNMAP;
	fuzz_assert(before);
	memcpy(before, m->data, size);
	snprintf(text, sizeof(text), "{'driver':'%s','file':{'driver':'file','filename':'" IMAGE "'},"
		 "'read-only':%s,'discard':'%s'%s%s}", raw ? "raw" : "qcow2", flags & DISK_WRITABLE ? "false" : "true",
		 flags & DISK_UNMAP ? "unmap" : "ignore", flags & DISK_NO_BACKING ? ",'backing':null" : "",
		 flags & DISK_SMALL_CACHE ? ",'l2-cache-size':4096,'refcount-cache-size':4096,"
					    "'l2-cache-entry-size':512" : "");
	o = json_parse_text(text, &err);
	fuzz_assert(o);
	if (node_open(&where, o, &n, &err)) {
		fuzz_assert(!n && err.text[0]);
		fuzz_assert(m->size == size && !memcmp(m->data, before, size));
	}
	if (!n || !(flags & DISK_WRITABLE))
		fuzz_assert(!m->writes || (n && (flags & DISK_WRITABLE)) || !memcmp(m->data, before, size));
	json_object_put(o);
	free(before);
	fuzz_assert(n || !graph.nodes);
	return n;
}

static inline void disk_map(struct node *n, uint64_t off, uint64_t len)
{
	struct extent v[NODES_EXTENTS];
	struct extents x = { .v = v, .max = NODES_EXTENTS };
	int rc = node_map_chain(n, off, len, &x);
	uint64_t sum = 0;

	for (unsigned i = 0; i < x.n; i++) {
		fuzz_assert(v[i].len && v[i].len <= len - sum);
		sum += v[i].len;
	}
	fuzz_assert(sum == x.total && (rc || sum || !len));
}

static inline void disk_describe(struct node *n)
{
	struct json_object *image = json_object_new_object();

	if (n->driver->info)
		n->driver->info(n, image);
	json_write(image);
	json_object_put(image);
	json_object_put(bitmaps_query(n));
	json_object_put(bitmaps_query_stored(n));
}

static inline void disk_bitmap_step(struct node *n, unsigned how, uint64_t off, uint64_t len)
{
	struct bitmap *b = n->bitmaps, *added;
	struct error err = ERROR_INIT;

	if (how % 4 == 0)
		bitmap_add(n, "added", 512u << how / 4 % 16, how & 64, false, &added, &err);
	else if (b && how % 4 == 1)
		bitmap_remove(b, &err);
	else if (b && how % 4 == 2)
		bitmap_clear(b, &err);
	else if (b && b->bits && off < b->size) {
		bitmap_next_dirty(b, off, min_u64(off + len, b->size));
		bitmap_set(b, off, min_u64(len, b->size - off));
	}
}

/* One request, inside the node, as those of the NBD server are. */
static inline void disk_step(struct node *n, struct fuzz_bytes *in)
{
	unsigned what = fuzz_take(in, 1);
	uint64_t where = fuzz_take(in, 3), len = fuzz_take(in, 2), off;
	struct error err = ERROR_INIT;

	off = what & 0x10 ? where : where * 512;
	if (what & 0x20)
		len = min_u64(len * 64, STEP_BYTES_MAX);
	if (what & 0x80)
		off = n->size - min_u64(where, n->size);
	off = n->size ? off % n->size : 0;
	if ((what & 15) != 6)
		len = min_u64(len, n->size - off);
	switch (what & 15) {
	case 0: case 8:
		node_read(n, disk_buffer, off, len);
		break;
	case 1: case 9: case 10:
		memset(disk_buffer, what | 1, len);
		node_write(n, disk_buffer, off, len, what & 0x40 ? NODE_FUA : 0);
		break;
	case 2: case 11:
		node_zero(n, off, what & 0x40 ? n->size - off : len, what & 8 ? NODE_MAY_UNMAP : 0);
		break;
	case 3: case 12:
		node_discard(n, off, what & 0x40 ? n->size - off : len);
		break;
	case 4:
		node_flush(n);
		break;
	case 5: case 13:
		disk_map(n, off, n->size - off);
		break;
	case 6:
		if (!n->read_only)
			node_truncate(n, n->size + min_u64(where, 1 << 24) * 512, &err);
		break;
	case 7:
		memio_fail(1 + len % 64, what & 0x40 ? EIO : ENOSPC);
		break;
	case 14:
		disk_describe(n);
		break;
	case 15:
		disk_bitmap_step(n, where, off, len);
	}
}

static inline void disk_use(unsigned flags, struct fuzz_bytes *script)
{
	struct node *n = disk_open(flags);
	struct node_use use = { 0 };
	struct error err = ERROR_INIT;

	if (!n)
		return;
	fuzz_assert(n->size <= INT64_MAX);
	if (flags & DISK_WRITABLE)
		node_use_add(&use, n, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE, PERM_ALL, &err, "fuzz");
	disk_describe(n);
	for (unsigned i = 0; i < STEPS_MAX && script->left; i++)
		disk_step(n, script);
	memio_fail(0, 0);
	node_use_drop(&use);
	node_unref(n);
	fuzz_assert(!graph.nodes);
}

/* The image as it is now is used twice: by the script, and read by who comes after. */
static inline void disk_run(unsigned flags, struct fuzz_bytes *script)
{
	static const uint8_t again[] = { 0, 0, 0, 0, 255, 255, 5, 0, 0, 0, 0, 0, 0xa0, 0, 255, 255, 255, 255 };
	struct fuzz_bytes rest = { again, sizeof(again) };

	memio_fail(0, 0);
	graph.next_auto = 0;
	disk_use(flags, script);
	disk_use(flags & ~DISK_WRITABLE, &rest);
	memio_beside_put(LIVE_SUFFIX, NULL);
	memio_beside_put(LIVE_REGIONS_SUFFIX, NULL);
}

#endif
