/* SPDX-License-Identifier: BSD-3-Clause */
/* codec: one cluster's bytes, compressed and back.
 *
 * zlib: raw deflate without a header, window of 2^12 bytes.  zstd: one frame.  What
 * is behind the end of the compressed stream is ignored: its length is known in
 * whole sectors only.  Pure computation: may be called on a worker thread.
 */
#ifndef MERINO_CODEC_H
#define MERINO_CODEC_H

#include <stdbool.h>
#include <stddef.h>

/* Exactly OUT_LEN bytes must come out of IN: 0 or -EIO.  What it takes is the thread's,
 * and kept until the thread ends: it stays in its processor's cache. */
int codec_unpack(bool zstd, const void *in, size_t in_len, void *out, size_t out_len);

/* Packs; one call at a time. */
struct codec;

struct codec *codec_new(bool zstd);		/* NULL: out of memory */
void codec_free(struct codec *c);		/* NULL is fine */
/* The length of what IN became, 0 when it does not fit into OUT_MAX bytes. */
size_t codec_pack(struct codec *c, const void *in, size_t in_len, void *out, size_t out_max);

#endif
