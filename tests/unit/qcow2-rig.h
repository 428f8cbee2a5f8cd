/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-rig: what test-qcow2.c and test-qcow2-race.c share.
 *
 * Images live in a directory of their own and are judged by qemu-img and qemu-io.
 */
#ifndef TESTS_QCOW2_RIG_H
#define TESTS_QCOW2_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/json.h"
#include "format/node.h"
#include "format/qcow2-int.h"

static struct graph graph;
static char dir[64];

static inline int dir_setup(void **state)
{
	/* Every flush is real on a disk: memory is quicker, where there is some. */
	strcpy(dir, access("/dev/shm", W_OK) ? "/tmp/merino-qcow2-XXXXXX" : "/dev/shm/merino-qcow2-XXXXXX");
	graph_init(&graph);
	return mkdtemp(dir) ? 0 : -1;
}

static inline int __attribute__((format(printf, 1, 2))) sh(const char *fmt, ...)
{
	char cmd[2048];
	size_t n = snprintf(cmd, sizeof(cmd), "cd %s && { ", dir);
	va_list ap;

	va_start(ap, fmt);
	n += vsnprintf(cmd + n, sizeof(cmd) - n, fmt, ap);
	va_end(ap);
	snprintf(cmd + n, sizeof(cmd) - n, "; } >out.txt 2>&1");
	return system(cmd);
}

static inline void sh_ok_at(const char *file, int line, int rc)
{
	char cmd[128];

	if (!rc)
		return;
	snprintf(cmd, sizeof(cmd), "cat %s/out.txt >&2", dir);
	if (system(cmd))
		fprintf(stderr, "no output\n");
	fail_msg("%s:%d: command failed: %d", file, line, rc);
}
#define sh_ok(...) sh_ok_at(__FILE__, __LINE__, sh(__VA_ARGS__))

static inline int dir_teardown(void **state)
{
	return sh("rm -rf %s", dir) ? -1 : 0;
}

static inline char *path_of(const char *name)
{
	static char p[4][128];
	static unsigned i;

	i = (i + 1) % 4;
	snprintf(p[i], sizeof(p[i]), "%s/%s", dir, name);
	return p[i];
}

/* Opens JSON5-ish text: ' for ", and DIR for the directory. */
static inline int open_at(struct io *io, struct node **out, struct error *err, const char *text)
{
	struct node_place where = { .graph = &graph, .io = io };
	char full[2048];
	size_t n = 0;
	struct json_object *o;
	int rc;

	for (; *text; text++) {
		if (!strncmp(text, "DIR", 3)) {
			n += snprintf(full + n, sizeof(full) - n, "%s", dir);
			text += 2;
		} else {
			full[n++] = *text;
		}
	}
	full[n] = 0;
	*err = ERROR_INIT;
	o = json_parse_text(full, err);
	if (!o)
		fail_msg("%s: %s", full, err->text);
	rc = node_open(&where, o, out, err);
	json_object_put(o);
	return rc;
}

/* Opens the qcow2 image NAME with more options ("" for none). */
static inline struct node *open_in(struct io *io, const char *name, const char *more)
{
	struct error err;
	struct node *n = NULL;
	char text[1024];

	snprintf(text, sizeof(text), "{'driver':'qcow2','discard':'unmap','file':{'driver':'file',"
		 "'filename':'DIR/%s'}%s%s}", name, *more ? "," : "", more);
	if (open_at(io, &n, &err, text))
		fail_msg("open %s: %s", name, err.text);
	return n;
}

static inline struct node *open_image(const char *name, const char *more)
{
	return open_in(io_blocking(), name, more);
}

/* Why NAME cannot be opened. */
static inline char *open_refused(const char *name, const char *more)
{
	static struct error err;
	struct node *n = NULL;
	char text[1024];

	snprintf(text, sizeof(text), "{'driver':'qcow2','file':{'driver':'file','filename':'DIR/%s'}%s%s}",
		 name, *more ? "," : "", more);
	if (!open_at(io_blocking(), &n, &err, text))
		fail_msg("%s was opened", name);
	return err.text;
}

static inline void create_in(struct io *io, const char *name, struct qcow2_create o)
{
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io, path_of(name), IO_RDWR | IO_CREATE | IO_TRUNC, &err);

	if (!f || qcow2_create(f, &o, &err))
		fail_msg("create %s: %s", name, err.text);
	io_file_unref(f);
}

static inline void create(const char *name, struct qcow2_create o)
{
	create_in(io_blocking(), name, o);
}

static inline void poke(const char *name, uint64_t off, const void *data, size_t len)
{
	FILE *f = fopen(path_of(name), "r+b");

	assert_non_null(f);
	assert_int_equal(fseek(f, off, SEEK_SET), 0);
	assert_int_equal(fwrite(data, 1, len, f), len);
	fclose(f);
}

static inline void peek(const char *name, uint64_t off, void *data, size_t len)
{
	FILE *f = fopen(path_of(name), "rb");

	assert_non_null(f);
	assert_int_equal(fseek(f, off, SEEK_SET), 0);
	assert_int_equal(fread(data, 1, len, f), len);
	fclose(f);
}

static inline uint64_t peek64(const char *name, uint64_t off)
{
	uint8_t b[8];

	peek(name, off, b, 8);
	return get_be64(b);
}

static inline void poke64(const char *name, uint64_t off, uint64_t v)
{
	uint8_t b[8];

	put_be64(b, v);
	poke(name, off, b, 8);
}

/* A disk in memory, to compare with. */
struct model {
	uint8_t *data;
	uint64_t size;
};

static inline struct model model_new(uint64_t size)
{
	return (struct model){ .data = calloc(1, size ? size : 1), .size = size };
}

static inline void model_store(const struct model *m, const char *name)
{
	FILE *f = fopen(path_of(name), "wb");

	assert_non_null(f);
	assert_int_equal(fwrite(m->data, 1, m->size, f), m->size);
	fclose(f);
}

static inline void model_check(const struct model *m, struct node *n)
{
	uint8_t *buf = malloc(1 << 20);

	assert_int_equal(n->size, m->size);
	for (uint64_t at = 0; at < m->size; at += 1 << 20) {
		size_t len = min_u64(1 << 20, m->size - at);

		assert_int_equal(node_read(n, buf, at, len), 0);
		for (size_t i = 0; i < len; i++)
			if (buf[i] != m->data[at + i])
				fail_msg("differs at %#llx: %02x, expected %02x",
					 (unsigned long long)(at + i), buf[i], m->data[at + i]);
	}
	free(buf);
}

/* The image is what M says, and qemu-img finds nothing wrong. */
static inline void image_check(const struct model *m, const char *name)
{
	model_store(m, "model.raw");
	sh_ok("qemu-img check -q %s && qemu-img compare -q %s model.raw", name, name);
}

static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

#endif
