/* SPDX-License-Identifier: BSD-3-Clause */
/* pull-sink: where a copy goes: a new image, or one that is brought up to date.
 *
 * A new image has a temporary name until sink_finish() has made it durable and
 * renamed it; whatever happens before, nothing that looks like a backup is left.
 * Everything goes through format/ under the blocking table.
 */
#ifndef MERINO_PULL_SINK_H
#define MERINO_PULL_SINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clients/pull.h"
#include "common/error.h"

struct sink;

/* Refuses what can be refused before the server is asked: OUT exists, or has to
 * exist, or is of the wrong kind. */
int sink_check(const struct pull_options *o, struct error *err);

/* Opens OUT for an export of SIZE bytes; NULL with ERR set. */
struct sink *sink_open(const struct pull_options *o, uint64_t size, struct error *err);

/* Where the previous backup ends: from here on everything has to be copied. */
uint64_t sink_previous_size(const struct sink *k);

/* Stores LEN bytes at OFF; zeroes among them are stored as zeroes.  Returns how
 * many bytes were stored as data, or -errno with the text. */
int64_t sink_write(struct sink *k, const void *buf, uint64_t off, size_t len, struct error *err);

/* [OFF, OFF + LEN) reads as zeroes afterwards, whatever the previous backup has there. */
int sink_zero(struct sink *k, uint64_t off, uint64_t len, struct error *err);

/* What was written so far is durable when it returns 0; only onto what was there before. */
int sink_flush(struct sink *k, struct error *err);

/* Makes everything durable and gives a new image its name. */
int sink_finish(struct sink *k, struct error *err);

/* Frees K; an image that was not finished is removed.  NULL is fine. */
void sink_close(struct sink *k);

#endif
