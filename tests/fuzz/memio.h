/* SPDX-License-Identifier: BSD-3-Clause */
/* memio: struct io on a few files in memory, for the fuzz targets.
 *
 * Every operation is done when it returns.  A file holds MEMIO_FILE_MAX bytes: past
 * that the disk is full.  Nothing but what memio_put() made can be opened: a path that
 * an image made up is refused, and counted.  memio_fail() makes one operation fail.
 */
#ifndef TESTS_FUZZ_MEMIO_H
#define TESTS_FUZZ_MEMIO_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/extents.h"
#include "common/io-beside.h"
#include "common/io.h"
#include "tests/fuzz/fuzz.h"

#define MEMIO_FILES 8
#define MEMIO_FILE_MAX (24u << 20)
#define MEMIO_PAGE 4096u

struct memio_file {
	char path[128];
	uint8_t *data;			/* CAPACITY bytes, zeroes behind SIZE */
	uint64_t size, capacity;
	unsigned writes;		/* that changed the file */
};

static struct memio_file memio_files[MEMIO_FILES];
static unsigned memio_foreign;		/* opens of what is not there */
static unsigned memio_ops_done, memio_fail_at;
static int memio_fail_with;

static inline struct memio_file *memio_find(const char *path)
{
	for (unsigned i = 0; i < MEMIO_FILES; i++)
		if (memio_files[i].path[0] && !strcmp(memio_files[i].path, path))
			return &memio_files[i];
	return NULL;
}

static inline bool memio_reserve(struct memio_file *m, uint64_t size)
{
	uint64_t capacity = m->capacity ? m->capacity : 65536;
	uint8_t *data;

	if (size > MEMIO_FILE_MAX)
		return false;
	while (capacity < size)
		capacity *= 2;
	if (capacity == m->capacity)
		return true;
	data = realloc(m->data, capacity);
	fuzz_assert(data);
	memset(data + m->capacity, 0, capacity - m->capacity);
	m->data = data;
	m->capacity = capacity;
	return true;
}

static inline bool memio_resize(struct memio_file *m, uint64_t size)
{
	if (!memio_reserve(m, size))
		return false;
	if (size < m->size)
		memset(m->data + size, 0, m->size - size);
	m->size = size;
	return true;
}

/* A file with these contents, and zeroes behind them up to SIZE. */
static inline struct memio_file *memio_put(const char *path, const void *data, size_t len, uint64_t size)
{
	struct memio_file *m = memio_find(path);

	for (unsigned i = 0; !m && i < MEMIO_FILES; i++)
		if (!memio_files[i].path[0])
			m = &memio_files[i];
	fuzz_assert(m && strlen(path) < sizeof(m->path));
	strcpy(m->path, path);
	memio_resize(m, 0);
	fuzz_assert(memio_resize(m, size > len ? size : len));
	if (len)
		memcpy(m->data, data, len);
	m->writes = 0;
	return m;
}

/* The N-th operation from now fails (0: none). */
static inline void memio_fail(unsigned n, int err)
{
	memio_fail_at = n ? memio_ops_done + n : 0;
	memio_fail_with = err;
}

static inline int memio_fault(void)
{
	return ++memio_ops_done == memio_fail_at ? -memio_fail_with : 0;
}

static inline struct io_file *memio_open(struct io *io, const char *path, unsigned flags, struct error *err)
{
	struct memio_file *m = memio_find(path);
	struct io_file *f;

	if (!m && (flags & IO_CREATE))
		m = memio_put(path, NULL, 0, 0);
	if (!m) {
		memio_foreign++;
		error_errno(err, -ENOENT, "Could not open '%s'", path);
		return NULL;
	}
	f = calloc(1, sizeof(*f));
	fuzz_assert(f);
	*f = (struct io_file){ .io = io, .fd = -1, .refs = 1, .align = 1,
			       .writable = flags & IO_RDWR, .sim = m };
	return f;
}

static inline void memio_close(struct io_file *f)
{
	free(f);
}

static inline ssize_t memio_pread(struct io_file *f, void *buf, size_t len, uint64_t off)
{
	struct memio_file *m = f->sim;
	int rc = memio_fault();

	fuzz_assert(off <= INT64_MAX && len <= INT64_MAX - off);
	if (rc)
		return rc;
	if (off >= m->size)
		return 0;
	len = min_u64(len, m->size - off);
	memcpy(buf, m->data + off, len);
	return (ssize_t)len;
}

static inline int memio_pwrite(struct io_file *f, const void *buf, size_t len, uint64_t off, unsigned flags)
{
	struct memio_file *m = f->sim;
	int rc = memio_fault();

	fuzz_assert(f->writable && off <= INT64_MAX && len <= INT64_MAX - off);
	if (rc)
		return rc;
	m->writes++;
	if (off + len > m->size && !memio_resize(m, off + len))
		return -ENOSPC;
	memcpy(m->data + off, buf, len);
	return 0;
}

static inline int memio_fsync(struct io_file *f)
{
	return memio_fault();
}

static inline int memio_zero(struct io_file *f, uint64_t off, uint64_t len, unsigned flags)
{
	struct memio_file *m = f->sim;
	int rc = memio_fault();

	fuzz_assert(f->writable && off <= INT64_MAX && len <= INT64_MAX - off);
	if (rc)
		return rc;
	m->writes++;
	if (off + len > m->size && !memio_resize(m, off + len))
		return -ENOSPC;
	memset(m->data + off, 0, len);
	return 0;
}

static inline int memio_discard(struct io_file *f, uint64_t off, uint64_t len)
{
	struct memio_file *m = f->sim;
	int rc = memio_fault();

	fuzz_assert(f->writable && off <= INT64_MAX && len <= INT64_MAX - off);
	m->writes++;
	if (!rc && off < m->size)
		memset(m->data + off, 0, min_u64(len, m->size - off));
	return rc;
}

/* A page of zeroes is a hole. */
static inline int memio_map(struct io_file *f, uint64_t off, uint64_t len, struct extents *x)
{
	static const uint8_t zeroes[MEMIO_PAGE];
	struct memio_file *m = f->sim;
	uint64_t end = off + len;
	int rc = memio_fault();

	while (!rc && off < end) {
		uint64_t n = min_u64(MEMIO_PAGE - off % MEMIO_PAGE, end - off);
		bool hole = off >= m->size;

		if (hole)
			n = end - off;
		else
			hole = !memcmp(m->data + off, zeroes, min_u64(n, m->size - off));
		if (!extents_add(x, n, hole ? EXTENT_ZERO | EXTENT_HOLE : 0, 0))
			break;
		off += n;
	}
	return rc;
}

static inline int64_t memio_size(struct io_file *f)
{
	return (int64_t)((struct memio_file *)f->sim)->size;
}

static inline int memio_truncate(struct io_file *f, uint64_t size)
{
	int rc = memio_fault();

	fuzz_assert(f->writable);
	((struct memio_file *)f->sim)->writes++;
	return rc ? rc : memio_resize(f->sim, size) ? 0 : -ENOSPC;
}

static inline void memio_sleep(struct io *io, uint64_t ns)
{
}

/* The crash log: one, of the image that is open. */
static uint8_t *memio_log;
static size_t memio_log_len;

static inline int memio_identity(struct io_file *f, struct io_identity *id)
{
	*id = (struct io_identity){ .dev = 1, .ino = 2 };
	return 0;
}

static inline void memio_log_drop(void)
{
	free(memio_log);
	memio_log = NULL;
}

static inline int memio_mapped_make(struct io_file *f, const char *dir, size_t len, struct io_mapped **out,
				    struct error *err)
{
	struct io_mapped *m = calloc(1, sizeof(*m));

	memio_log_drop();
	memio_log = calloc(1, len);
	memio_log_len = len;
	fuzz_assert(m && memio_log);
	*m = (struct io_mapped){ .io = f->io, .mem = memio_log, .len = len };
	*out = m;
	return 0;
}

static inline int memio_mapped_read(struct io_file *f, const char *dir, size_t len, uint8_t **data)
{
	if (!memio_log || memio_log_len != len)
		return memio_log ? -EINVAL : -ENOENT;
	*data = malloc(len);
	fuzz_assert(*data);
	memcpy(*data, memio_log, len);
	return 0;
}

static inline void memio_mapped_end(struct io_mapped *m, bool remove)
{
	if (remove)
		memio_log_drop();
	free(m);
}

/* Files beside the image: two, of the image that is open.  Their memory does not move, so
 * a mapping is a pointer into it. */
#define MEMIO_BESIDE_MAX (1u << 20)

struct memio_beside {
	struct memio_file file;		/* first: the operations take it */
	unsigned refs;			/* its place, who has it open, mappings */
	struct memio_beside *next;
};

static struct memio_beside *memio_beside_all, *memio_place[2];

static inline unsigned memio_place_of(const char *suffix)
{
	return strcmp(suffix, "bitmaps") ? 1 : 0;
}

static inline void memio_beside_unref(struct memio_beside *m)
{
	struct memio_beside **p = &memio_beside_all;

	if (!m || --m->refs)
		return;
	while (*p != m)
		p = &(*p)->next;
	*p = m->next;
	free(m->file.data);
	free(m);
}

static inline struct memio_beside *memio_beside_new(const void *data, size_t len, uint64_t size)
{
	struct memio_beside *m = calloc(1, sizeof(*m));

	fuzz_assert(m && size <= MEMIO_BESIDE_MAX && len <= size);
	m->file.data = calloc(1, MEMIO_BESIDE_MAX);
	fuzz_assert(m->file.data);
	m->file.capacity = MEMIO_BESIDE_MAX;
	m->file.size = size;
	m->refs = 1;
	if (len)
		memcpy(m->file.data, data, len);
	m->next = memio_beside_all;
	memio_beside_all = m;
	return m;
}

/* NULL: there is none. */
static inline void memio_beside_put(const char *suffix, struct memio_beside *m)
{
	struct memio_beside **place = &memio_place[memio_place_of(suffix)];

	memio_beside_unref(*place);
	*place = m;
}

static inline void memio_beside_handle(struct io_beside_job *j, struct memio_beside *m, unsigned flags)
{
	struct io_file *f = calloc(1, sizeof(*f));

	fuzz_assert(f);
	*f = (struct io_file){ .io = j->io, .fd = -1, .refs = 1, .align = 1, .writable = flags & IO_RDWR,
			       .sim = m };
	*j->b = (struct io_beside){ .f = f, .path = strdup(j->suffix) };
	m->refs++;
}

static inline void memio_beside_map(struct io_beside_job *j)
{
	struct memio_beside *m = j->f->sim;

	fuzz_assert(j->off + j->len <= m->file.size);
	j->mem = m->file.data + j->off;
	m->refs++;
}

static inline void memio_beside_unmap(const struct io_beside_job *j)
{
	struct memio_beside *m = memio_beside_all;

	while ((uint8_t *)j->mem < m->file.data || (uint8_t *)j->mem >= m->file.data + MEMIO_BESIDE_MAX)
		m = m->next;
	memio_beside_unref(m);
}

static inline void memio_beside_end(struct io_beside_job *j)
{
	struct memio_beside *m = j->b->f->sim;

	if (j->remove && !j->b->made && memio_place[memio_place_of(j->b->path)] == m)
		memio_beside_put(j->b->path, NULL);
	io_file_unref(j->b->f);
	free(j->b->path);
	free(j->b->made);
	memio_beside_unref(m);
}

static inline void memio_beside(struct io_beside_job *j)
{
	struct memio_beside *m;

	j->rc = j->call == BESIDE_END || j->call == BESIDE_UNMAP ? 0 : memio_fault();
	if (j->rc)
		return;
	switch (j->call) {
	case BESIDE_OPEN:
		m = memio_place[memio_place_of(j->suffix)];
		j->rc = m ? 0 : -ENOENT;
		if (m)
			memio_beside_handle(j, m, 0);
		break;
	case BESIDE_MAKE:
		j->rc = j->len > MEMIO_BESIDE_MAX ? -ENOSPC : 0;
		if (j->rc)
			break;
		m = memio_beside_new(NULL, 0, j->len);
		memio_beside_handle(j, m, IO_RDWR);
		memio_beside_unref(m);
		j->b->made = strdup("new");
		break;
	case BESIDE_KEEP:
		m = j->b->f->sim;
		m->refs++;
		memio_beside_put(j->b->path, m);
		free(j->b->made);
		j->b->made = NULL;
		break;
	case BESIDE_END:
		memio_beside_end(j);
		break;
	case BESIDE_GROW:
		m = j->f->sim;
		j->rc = j->off + j->len > MEMIO_BESIDE_MAX ? -ENOSPC : 0;
		if (!j->rc)
			m->file.size = max_u64(m->file.size, j->off + j->len);
		break;
	case BESIDE_MAP:
		memio_beside_map(j);
		break;
	case BESIDE_UNMAP:
		memio_beside_unmap(j);
		break;
	}
}

static inline struct io *memio(void)
{
	static const struct io_ops ops = {
		.name = "memory",
		.open = memio_open, .close = memio_close, .pread = memio_pread, .pwrite = memio_pwrite,
		.fsync = memio_fsync, .zero = memio_zero, .discard = memio_discard, .map = memio_map,
		.size = memio_size, .truncate = memio_truncate, .sleep = memio_sleep,
		.identity = memio_identity, .mapped_make = memio_mapped_make,
		.mapped_read = memio_mapped_read, .mapped_end = memio_mapped_end,
		.beside = memio_beside,
	};
	static struct io io = { .ops = &ops };

	return &io;
}

#endif
