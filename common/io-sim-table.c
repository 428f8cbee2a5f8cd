// SPDX-License-Identifier: BSD-3-Clause
/* io-sim-table: struct io's operations on the simulated machine, and copying
 * files in and out of it.
 *
 * Handles are counted by the machine, so that a test which leaks one is told.
 * What asks only for the state of a file (size, map) is immediate; everything
 * else becomes a request that io-sim.c executes.
 */
#include "common/io-sim-int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/extents.h"

static struct io_sim *sim_of(const struct io *io)
{
	return (struct io_sim *)io;
}

static struct sim_handle *handle(struct io_file *f)
{
	return f->sim;
}

static ssize_t call(struct io_file *f, struct sim_req *r)
{
	struct io_sim *sim = sim_of(f->io);
	uint64_t mask = f->align - 1;

	if (handle(f)->life != sim->life)
		return -EIO;
	if (!f->writable && (r->kind & SIM_MUTATES))
		return -EBADF;
	if (f->direct && (r->kind & (IO_SIM_READ | IO_SIM_WRITE)) &&
	    ((r->off | r->len | (uintptr_t)r->buf) & mask))
		return -EINVAL;
	r->file = handle(f)->file;
	return sim_submit(sim, r);
}

static ssize_t sim_pread(struct io_file *f, void *buf, size_t len, uint64_t off)
{
	return call(f, &(struct sim_req){ .kind = IO_SIM_READ, .buf = buf, .len = len, .off = off });
}

static int sim_pwrite(struct io_file *f, const void *buf, size_t len, uint64_t off, unsigned flags)
{
	if (!len)
		return 0;
	return call(f, &(struct sim_req){ .kind = IO_SIM_WRITE, .buf = (void *)buf, .len = len, .off = off,
					  .flags = flags });
}

static int sim_fsync(struct io_file *f)
{
	return call(f, &(struct sim_req){ .kind = IO_SIM_FSYNC });
}

static int sim_zero(struct io_file *f, uint64_t off, uint64_t len, unsigned flags)
{
	if (!len)
		return 0;
	return call(f, &(struct sim_req){ .kind = IO_SIM_ZERO, .off = off, .len = len });
}

static int sim_discard(struct io_file *f, uint64_t off, uint64_t len)
{
	if (!len)
		return 0;
	return call(f, &(struct sim_req){ .kind = IO_SIM_DISCARD, .off = off, .len = len });
}

static int sim_truncate(struct io_file *f, uint64_t size)
{
	return call(f, &(struct sim_req){ .kind = IO_SIM_TRUNCATE, .off = size });
}

static bool gone(struct io_file *f)
{
	return sim_of(f->io)->dead || handle(f)->life != sim_of(f->io)->life;
}

static int64_t sim_size(struct io_file *f)
{
	return gone(f) ? -EIO : (int64_t)handle(f)->file->cur_size;
}

static int sim_map(struct io_file *f, uint64_t off, uint64_t len, struct extents *x)
{
	uint64_t end = off + len;

	if (gone(f))
		return -EIO;
	while (off < end) {
		bool hole;
		uint64_t next = sim_file_run(handle(f)->file, off, &hole);

		if (next > end)
			next = end;
		if (!extents_add(x, next - off, hole ? EXTENT_ZERO | EXTENT_HOLE : 0, 0))
			break;
		off = next;
	}
	return 0;
}

static void sim_sleep(struct io *io, uint64_t ns)
{
	sim_submit(sim_of(io), &(struct sim_req){ .kind = SIM_SLEEP, .deadline = sim_of(io)->now + ns });
}

struct sim_file *sim_file_find(const struct io_sim *sim, const char *path)
{
	struct sim_file *f = sim->files;

	while (f && strcmp(f->path, path))
		f = f->next;
	return f;
}

struct sim_file *sim_file_create(struct io_sim *sim, const char *path)
{
	struct sim_file *f = sim_file_new(path);

	f->next = sim->files;
	sim->files = f;
	return f;
}

struct io_file *sim_handle_new(struct io_sim *sim, struct sim_file *file, unsigned flags)
{
	struct sim_handle *h = calloc(1, sizeof(*h));

	if (!h)
		abort();
	h->file = file;
	h->life = sim->life;
	h->f = (struct io_file){ .io = &sim->io, .fd = -1, .refs = 1,
				 .align = flags & IO_DIRECT ? SIM_SECTOR : 1,
				 .writable = flags & IO_RDWR, .direct = flags & IO_DIRECT, .sim = h };
	sim->open_files++;
	return &h->f;
}

static struct io_file *sim_open(struct io *io, const char *path, unsigned flags, struct error *err)
{
	struct io_sim *sim = sim_of(io);
	static unsigned unnamed;
	char name[64];
	struct sim_file *file;
	struct io_file *f;
	int rc = 0;

	if (flags & IO_UNNAMED) {
		snprintf(name, sizeof(name), "#unnamed%u", unnamed++);
		path = name;
	}
	file = sim_file_find(sim, path);

	if (sim->dead)
		rc = -EIO;
	else if (!file && !(flags & IO_CREATE))
		rc = -ENOENT;
	else if (file && (flags & IO_CREATE) && !(flags & IO_TRUNC))
		rc = -EEXIST;
	if (rc < 0) {
		error_errno(err, rc, "Could not open '%s'", path);
		return NULL;
	}
	f = sim_handle_new(sim, file ? file : sim_file_create(sim, path), flags);
	if (file && (flags & IO_CREATE))
		sim_truncate(f, 0);
	return f;
}

static void sim_close(struct io_file *f)
{
	sim_of(f->io)->open_files--;
	free(handle(f));
}

static ssize_t no_recv(struct io *io, int fd, void *buf, size_t len)
{
	return -ENOSYS;
}

static ssize_t no_send(struct io *io, int fd, const struct iovec *iov, int n, bool more)
{
	return -ENOSYS;
}

static int no_poll(struct io *io, int fd, short events)
{
	return -ENOSYS;
}

static int no_accept(struct io *io, int fd)
{
	return -ENOSYS;
}

const struct io_ops sim_ops = {
	.name = "simulation",
	.open = sim_open,
	.close = sim_close,
	.pread = sim_pread,
	.pwrite = sim_pwrite,
	.fsync = sim_fsync,
	.zero = sim_zero,
	.discard = sim_discard,
	.map = sim_map,
	.size = sim_size,
	.truncate = sim_truncate,
	.sleep = sim_sleep,
	.recv = no_recv,
	.send = no_send,
	.poll = no_poll,
	.accept = no_accept,
	.identity = sim_identity,
	.mapped_make = sim_mapped_make,
	.mapped_read = sim_mapped_read,
	.mapped_end = sim_mapped_end,
	.beside = sim_beside,
};

/* --- real files --- */

/* Copies the data of SRC, and its size, to DST. */
static int copy_file(struct io_file *dst, struct io_file *src)
{
	struct extent run[16];
	int64_t size = io_size(src);
	char buf[65536];
	int rc = size < 0 ? (int)size : io_truncate(dst, size);
	uint64_t off = 0;

	while (rc == 0 && off < (uint64_t)size) {
		struct extents x = { .v = run, .max = 16 };

		rc = io_map(src, off, size - off, &x);
		for (uint32_t i = 0; rc == 0 && i < x.n; off += run[i++].len) {
			if (run[i].flags & EXTENT_ZERO)
				continue;
			for (uint64_t at = 0; rc == 0 && at < run[i].len; at += sizeof(buf)) {
				uint64_t n = run[i].len - at < sizeof(buf) ? run[i].len - at : sizeof(buf);
				ssize_t got = io_pread(src, buf, n, off + at);

				rc = got < 0 ? (int)got : io_pwrite(dst, buf, got, off + at, 0);
			}
		}
	}
	return rc;
}

static int copy_path(struct io *to, const char *dst, struct io *from, const char *src)
{
	struct error err = ERROR_INIT;
	struct io_file *in = io_open(from, src, 0, &err), *out;
	int rc;

	if (!in)
		return err.code;
	out = io_open(to, dst, IO_RDWR | IO_CREATE | IO_TRUNC, &err);
	rc = out ? copy_file(out, in) : err.code;
	if (rc == 0 && to->ops == &sim_ops)
		rc = io_fsync(out);
	io_file_unref(out);
	io_file_unref(in);
	return rc;
}

int io_sim_dump(struct io_sim *sim, const char *path, const char *realfile)
{
	return copy_path(io_blocking(), realfile, io_sim_io(sim), path);
}

/* The copying does not count as something that the workload did. */
int io_sim_load(struct io_sim *sim, const char *path, const char *realfile)
{
	uint64_t syncs = sim->syncs, writes = sim->writes;
	int rc = copy_path(io_sim_io(sim), path, io_blocking(), realfile);

	sim->syncs = syncs;
	sim->writes = writes;
	return rc;
}
