// SPDX-License-Identifier: BSD-3-Clause
/* codec: deflate by zlib (which can keep to the small window), inflate by libdeflate
 * (which is twice as fast), zstd by libzstd.  All are kept for the next cluster: what
 * unpacks by the thread (10 and 100 KB), what packs (up to megabytes) by the image.
 */
#include "format/codec.h"

#include <errno.h>
#include <libdeflate.h>
#include <pthread.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#define WINDOW_BITS (-12)	/* raw, 4 KiB: all that a reader has to have */

struct codec {
	bool zstd;
	z_stream deflate;
	bool can_deflate;		/* DEFLATE is set up */
	ZSTD_CCtx *zstd_out;
};

struct codec *codec_new(bool zstd)
{
	struct codec *c = calloc(1, sizeof(*c));

	if (c)
		c->zstd = zstd;
	return c;
}

void codec_free(struct codec *c)
{
	if (!c)
		return;
	if (c->can_deflate)
		deflateEnd(&c->deflate);
	ZSTD_freeCCtx(c->zstd_out);
	free(c);
}

struct unpacker {
	struct libdeflate_decompressor *inflate;
	ZSTD_DCtx *zstd;
};

static pthread_key_t unpacker_key;
static pthread_once_t unpacker_once = PTHREAD_ONCE_INIT;
static bool unpacker_kept;

static void unpacker_free(void *arg)
{
	struct unpacker *u = arg;

	libdeflate_free_decompressor(u->inflate);
	ZSTD_freeDCtx(u->zstd);
	free(u);
}

static void unpacker_init(void)
{
	unpacker_kept = !pthread_key_create(&unpacker_key, unpacker_free);
}

/* The calling thread's; NULL: out of memory. */
static struct unpacker *unpacker(void)
{
	struct unpacker *u;

	pthread_once(&unpacker_once, unpacker_init);
	if (!unpacker_kept)
		return NULL;
	u = pthread_getspecific(unpacker_key);
	if (!u) {
		u = calloc(1, sizeof(*u));
		if (u && pthread_setspecific(unpacker_key, u)) {
			free(u);
			u = NULL;
		}
	}
	return u;
}

/* A stream that goes on behind the cluster's end: its beginning is what counts. */
static int unpack_long(const void *in, size_t in_len, void *out, size_t out_len)
{
	z_stream z = { .next_in = (Bytef *)in, .avail_in = (uInt)in_len,
		       .next_out = out, .avail_out = (uInt)out_len };
	int rc = inflateInit2(&z, WINDOW_BITS);

	if (rc != Z_OK)
		return -EIO;
	rc = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return (rc == Z_STREAM_END || rc == Z_BUF_ERROR) && !z.avail_out ? 0 : -EIO;
}

static int unpack_zlib(struct unpacker *u, const void *in, size_t in_len, void *out, size_t out_len)
{
	if (!u->inflate)
		u->inflate = libdeflate_alloc_decompressor();
	if (!u->inflate)
		return -EIO;
	switch (libdeflate_deflate_decompress(u->inflate, in, in_len, out, out_len, NULL)) {
	case LIBDEFLATE_SUCCESS:
		return 0;
	case LIBDEFLATE_INSUFFICIENT_SPACE:
		return unpack_long(in, in_len, out, out_len);
	default:
		return -EIO;
	}
}

static int unpack_zstd(struct unpacker *u, const void *in, size_t in_len, void *out, size_t out_len)
{
	size_t frame = ZSTD_findFrameCompressedSize(in, in_len);

	if (!u->zstd)
		u->zstd = ZSTD_createDCtx();
	if (!u->zstd || ZSTD_isError(frame))
		return -EIO;
	return ZSTD_decompressDCtx(u->zstd, out, out_len, in, frame) == out_len ? 0 : -EIO;
}

int codec_unpack(bool zstd, const void *in, size_t in_len, void *out, size_t out_len)
{
	struct unpacker *u = unpacker();

	if (!u)
		return -ENOMEM;
	return zstd ? unpack_zstd(u, in, in_len, out, out_len) : unpack_zlib(u, in, in_len, out, out_len);
}

static size_t pack_zlib(struct codec *c, const void *in, size_t in_len, void *out, size_t out_max)
{
	z_stream *z = &c->deflate;

	if (!c->can_deflate)
		c->can_deflate = deflateInit2(z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WINDOW_BITS, 9,
					      Z_DEFAULT_STRATEGY) == Z_OK;
	if (!c->can_deflate || deflateReset(z) != Z_OK)
		return 0;
	z->next_in = (Bytef *)in;
	z->avail_in = (uInt)in_len;
	z->next_out = out;
	z->avail_out = (uInt)out_max;
	return deflate(z, Z_FINISH) == Z_STREAM_END ? out_max - z->avail_out : 0;
}

static size_t pack_zstd(struct codec *c, const void *in, size_t in_len, void *out, size_t out_max)
{
	size_t n;

	if (!c->zstd_out)
		c->zstd_out = ZSTD_createCCtx();
	if (!c->zstd_out)
		return 0;
	n = ZSTD_compressCCtx(c->zstd_out, out, out_max, in, in_len, ZSTD_CLEVEL_DEFAULT);
	return ZSTD_isError(n) ? 0 : n;
}

size_t codec_pack(struct codec *c, const void *in, size_t in_len, void *out, size_t out_max)
{
	return c->zstd ? pack_zstd(c, in, in_len, out, out_max) : pack_zlib(c, in, in_len, out, out_max);
}
