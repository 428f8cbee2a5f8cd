/* SPDX-License-Identifier: BSD-3-Clause */
/* io: the one small table of operations through which all I/O goes.
 *
 * Three tables: io-uring.c (the daemon; suspends the coroutine), io-block.c
 * (tools and fuzzers; blocks), io-sim.c (tests; files in memory whose
 * unsynced writes a power loss may lose, reorder and tear).  format/,
 * bitmaps/ and backup/ are compiled once and run under all three.
 *
 * Offsets and lengths are bytes.  Offsets never exceed INT64_MAX: callers
 * check foreign numbers first (common/checked.h).
 */
#ifndef MERINO_IO_H
#define MERINO_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "common/error.h"

struct io;
struct extents;
struct io_identity;
struct io_mapped;
struct io_beside_job;

enum io_open_flags {
	IO_RDWR = 1,		/* else read only */
	IO_DIRECT = 2,		/* O_DIRECT: offset, length and memory multiples of io_file.align */
	IO_CREATE = 4,		/* create, fail when it exists */
	IO_TRUNC = 8,		/* with IO_CREATE: reuse an existing file, emptied */
	IO_UNNAMED = 16,	/* with IO_CREATE: a file without a name; the path is its directory */
};

enum io_write_flags {
	IO_DSYNC = 1,		/* this range is durable when the call returns (RWF_DSYNC) */
};

enum io_zero_flags {
	IO_ZERO_UNMAP = 1,	/* may leave a hole */
	IO_ZERO_FAST = 2,	/* -ENOTSUP rather than write zeroes from memory */
};

/* An open file or block device.  Counted, so that a reply which is still being
 * sent from it outlives its node. */
struct io_file {
	struct io *io;
	int fd;			/* -1 in the simulation */
	unsigned refs;		/* the loop's thread only */
	uint32_t align;		/* 1 when buffered; the logical block size when direct */
	bool writable, direct, is_block_device;
	bool no_nowait_read;	/* the file system refused RWF_NOWAIT reads (tmpfs), */
	bool no_nowait_write;	/* or writes */
	bool in_memory;		/* it is tmpfs: what is cached is read without waiting all the same */
	bool no_inline_write;	/* its writes are large and nobody waits for them */
	bool no_punch, no_zero_range;	/* the file system refused these once */
	uint8_t map_strikes;		/* io-uring.c: inline maps that were slow, lately */
	uint32_t write_ns;	/* moving average of inline writes: io-uring.c's judgement */
	void *sim;		/* io-sim.c's own */
};

struct io_ops {
	const char *name;
	struct io_file *(*open)(struct io *io, const char *path, unsigned flags, struct error *err);
	void (*close)(struct io_file *f);
	ssize_t (*pread)(struct io_file *f, void *buf, size_t len, uint64_t off);
	int (*pwrite)(struct io_file *f, const void *buf, size_t len, uint64_t off, unsigned flags);
	int (*fsync)(struct io_file *f);
	int (*zero)(struct io_file *f, uint64_t off, uint64_t len, unsigned flags);
	int (*discard)(struct io_file *f, uint64_t off, uint64_t len);
	int (*map)(struct io_file *f, uint64_t off, uint64_t len, struct extents *x);
	int64_t (*size)(struct io_file *f);
	int (*truncate)(struct io_file *f, uint64_t size);
	void (*sleep)(struct io *io, uint64_t ns);
	ssize_t (*recv)(struct io *io, int fd, void *buf, size_t len);
	ssize_t (*send)(struct io *io, int fd, const struct iovec *iov, int n, bool more);
	int (*poll)(struct io *io, int fd, short events);
	int (*accept)(struct io *io, int fd);
	/* See io-mapped.h. */
	int (*identity)(struct io_file *f, struct io_identity *id);
	int (*mapped_make)(struct io_file *f, const char *dir, size_t len, struct io_mapped **out,
			   struct error *err);
	int (*mapped_read)(struct io_file *f, const char *dir, size_t len, uint8_t **data);
	void (*mapped_end)(struct io_mapped *m, bool remove);
	void (*beside)(struct io_beside_job *j);	/* See io-beside.h. */
	void (*cancel)(struct io *io, int fd);
};

struct io {
	const struct io_ops *ops;
};

/* The blocking table (always there). */
struct io *io_blocking(void);

/* Opens PATH; NULL with *ERR set on failure.  The caller holds one reference. */
static inline struct io_file *io_open(struct io *io, const char *path, unsigned flags,
				      struct error *err)
{
	return io->ops->open(io, path, flags, err);
}

static inline struct io_file *io_file_ref(struct io_file *f)
{
	f->refs++;
	return f;
}

/* Drops a reference; the last one closes.  NULL is fine. */
static inline void io_file_unref(struct io_file *f)
{
	if (f && --f->refs == 0)
		f->io->ops->close(f);
}

/* Reads LEN bytes at OFF.  Returns how many were read (short only at the end
 * of the file) or -errno.  Short reads and EINTR are handled inside. */
static inline ssize_t io_pread(struct io_file *f, void *buf, size_t len, uint64_t off)
{
	return f->io->ops->pread(f, buf, len, off);
}

/* Writes all of it, or returns -errno (part may be written then). */
static inline int io_pwrite(struct io_file *f, const void *buf, size_t len, uint64_t off,
			    unsigned flags)
{
	return f->io->ops->pwrite(f, buf, len, off, flags);
}

/* Everything written before the call is durable when it returns 0 (fdatasync). */
static inline int io_fsync(struct io_file *f)
{
	return f->io->ops->fsync(f);
}

/* The range reads as zeroes afterwards.  -ENOTSUP with IO_ZERO_FAST when that
 * would mean to write them. A file is extended when the range ends behind it. */
static inline int io_zero(struct io_file *f, uint64_t off, uint64_t len, unsigned flags)
{
	return f->io->ops->zero(f, off, len, flags);
}

/* The range's contents are no longer needed; a hint: -ENOTSUP is not a failure.
 * On files the range then reads as zeroes; on devices anything. */
static inline int io_discard(struct io_file *f, uint64_t off, uint64_t len)
{
	return f->io->ops->discard(f, off, len);
}

/* Appends extents (EXTENT_ZERO holes, or data) that cover [OFF, OFF+LEN), or
 * as many as fit X.  Behind the end of the file: a hole. */
static inline int io_map(struct io_file *f, uint64_t off, uint64_t len, struct extents *x)
{
	return f->io->ops->map(f, off, len, x);
}

static inline int64_t io_size(struct io_file *f)
{
	return f->io->ops->size(f);
}

static inline int io_truncate(struct io_file *f, uint64_t size)
{
	return f->io->ops->truncate(f, size);
}

static inline void io_sleep(struct io *io, uint64_t ns)
{
	io->ops->sleep(io, ns);
}

/* Sockets (not in the simulation).  recv: bytes, 0 at end of stream, -errno.
 * send: bytes taken (may be fewer), -errno; MORE: another send follows.
 * poll: revents or -errno.  accept: a close-on-exec descriptor or -errno.
 * To cancel any of them, shutdown(2) the socket. */
static inline ssize_t io_recv(struct io *io, int fd, void *buf, size_t len)
{
	return io->ops->recv(io, fd, buf, len);
}

static inline ssize_t io_send(struct io *io, int fd, const struct iovec *iov, int n, bool more)
{
	return io->ops->send(io, fd, iov, n, more);
}

static inline int io_poll(struct io *io, int fd, short events)
{
	return io->ops->poll(io, fd, events);
}

static inline int io_accept(struct io *io, int fd)
{
	return io->ops->accept(io, fd);
}

/* The daemon's table only.  Ends what waits for the socket now, with -ECANCELED,
 * and leaves the socket as it is. */
static inline void io_cancel(struct io *io, int fd)
{
	io->ops->cancel(io, fd);
}

/* Whether [OFF, OFF+LEN) is in the page cache, so that sendfile(2) from it will
 * not wait.  False where the kernel cannot say (cachestat(2) is Linux 6.5). */
bool io_is_cached(const struct io_file *f, uint64_t off, uint64_t len);

/* Receives exactly LEN bytes: 0, or -errno; -ECONNRESET at the end of the stream. */
int io_recv_all(struct io *io, int fd, void *buf, size_t len);
/* Sends all of IOV (which is modified): 0 or -errno. */
int io_send_all(struct io *io, int fd, struct iovec *iov, int n);

#endif
