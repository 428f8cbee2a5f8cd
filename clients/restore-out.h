/* SPDX-License-Identifier: BSD-3-Clause */
/* restore-out: where a disk is restored to: a new image, a block device, an NBD export.
 *
 * A new image has another name until it is complete and durable (pull-sink.h).  A device
 * or an export cannot have that: there the first bytes, by which a disk is known for what
 * it is, are zeroed first and written last, when everything else is durable.
 */
#ifndef MERINO_RESTORE_OUT_H
#define MERINO_RESTORE_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clients/pull.h"
#include "common/error.h"

enum { RESTORE_HEAD = 64 << 10 };	/* bytes that are written last, where there is no name */

struct restore_out;
struct nbd_out;

/* TARGET: a path or an NBD URI.  Refuses what can be refused before anything is made. */
int restore_out_check(const char *target, enum pull_format format, bool force, struct error *err);

/* Opens TARGET, which has to outlive the result, for a disk of SIZE bytes. */
int restore_out_open(struct restore_out **out, const char *target, enum pull_format format, bool force,
		     uint64_t size, struct error *err);

/* Each range is written or zeroed once, in order. */
int restore_out_write(struct restore_out *o, const void *buf, uint64_t off, size_t len, struct error *err);
int restore_out_zero(struct restore_out *o, uint64_t off, uint64_t len, struct error *err);

/* Everything is durable, and called what it should be called. */
int restore_out_finish(struct restore_out *o, struct error *err);

/* Frees O.  What was not finished is removed; true: it could not be, and holds a part. */
bool restore_out_close(struct restore_out *o);

/* restore-nbd.c: an export as a target.  -EINTR after a signal. */
int nbd_out_open(struct nbd_out **out, const char *uri, uint64_t size, struct error *err);
int nbd_out_write(struct nbd_out *o, const void *buf, uint64_t off, size_t len, struct error *err);
int nbd_out_zero(struct nbd_out *o, uint64_t off, uint64_t len, struct error *err);
int nbd_out_flush(struct nbd_out *o, struct error *err);
void nbd_out_close(struct nbd_out *o);

#endif
