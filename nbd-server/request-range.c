// SPDX-License-Identifier: BSD-3-Clause
/* Commands that name a range, as long as the disk, and carry no data: CACHE, TRIM
 * and WRITE_ZEROES.
 *
 * A long one is served in pieces, and leaves the gate between two of them, so that
 * whoever has to change the graph does not wait for it.  How long a piece may be
 * depends on what the storage makes of it (a hole is made at once, zeroes may have
 * to be written), so it is found out.
 */
#include <errno.h>

#include "common/checked.h"
#include "nbd-server/conn.h"

#define CACHE_PIECE (1u << 20)		/* bytes read at a time to fill the page cache */
#define CACHE_MAP (16ull << 30)		/* bytes that are searched for data at a time */
#define EFFECT_FIRST (8ull << 20)	/* bytes of the first piece … */
#define EFFECT_LONGEST (1ull << 40)	/* … of the longest one … */
#define EFFECT_ALIGN (2ull << 20)	/* … and where pieces meet: the largest cluster */
#define EFFECT_NS 20000000u		/* how long a piece shall take at most */

static int cache_data(struct request *rq, struct reply *block, uint32_t piece, uint64_t off,
		      uint64_t len)
{
	int rc = 0;

	while (len && !rc && !rq->conn->dead) {
		size_t now = (size_t)min_u64(len, piece);

		rc = node_read(rq->conn->node, reply_payload(block), off, now);
		off += now;
		len -= now;
		if (len)
			request_breathe(rq);
	}
	return rc;
}

/* Reads what is there; what was never written is not worth the time. */
static int cache_range(struct request *rq, struct reply *block, uint32_t piece)
{
	uint64_t off = rq->off, end = rq->off + rq->len;
	struct extent v[16];
	int rc = 0;

	while (off < end && !rc && !rq->conn->dead) {
		struct extents x = { .v = v, .max = 16 };

		rc = node_map_chain(rq->conn->node, off, min_u64(end - off, CACHE_MAP), &x);
		if (!rc && !x.n)
			rc = -EIO;
		for (uint32_t i = 0; i < x.n && !rc; i++) {
			if (!(v[i].flags & EXTENT_ZERO))
				rc = cache_data(rq, block, piece, off, v[i].len);
			off += v[i].len;
		}
		if (off < end)
			request_breathe(rq);
	}
	return rc;
}

int request_cache(struct request *rq)
{
	uint32_t piece = request_wait_room(rq, NULL, CACHE_PIECE);
	struct reply *block = reply_new(rq->conn, piece);
	int rc;

	if (!block)
		return -ENOMEM;
	rc = cache_range(rq, block, piece);
	reply_free(rq->conn, block);
	return rc;
}

/* What is done to a piece; FIRST: nothing was changed before. */
typedef int effect(struct request *rq, uint64_t off, uint64_t len, bool first);

static int in_pieces(struct request *rq, effect *fn)
{
	uint64_t off = rq->off, end = rq->off + rq->len, piece = EFFECT_FIRST;
	int rc = 0;

	while (off < end && !rc && !rq->conn->dead) {
		uint64_t now = min_u64(end, align_down(off + piece, EFFECT_ALIGN)) - off;
		uint64_t took = loop_now();

		rc = fn(rq, off, now, off == rq->off);
		took = loop_now() - took;
		if (took > EFFECT_NS && piece > EFFECT_ALIGN)
			piece /= 2;
		else if (took < EFFECT_NS / 4 && piece < EFFECT_LONGEST)
			piece *= 2;
		off += now;
		if (off < end)
			request_breathe(rq);
	}
	return !rc && (rq->flags & NBD_CMD_FLAG_FUA) ? node_flush(rq->conn->node) : rc;
}

static int trim_piece(struct request *rq, uint64_t off, uint64_t len, bool first)
{
	return node_discard(rq->conn->node, off, len);
}

int request_trim(struct request *rq)
{
	return in_pieces(rq, trim_piece);
}

/* The image may be put on a backing image later (an incremental backup that was pushed to
 * us): what a client wrote must not show that one's data, so zeroes are marked. */
static unsigned zero_flags(const struct request *rq)
{
	return NODE_MARK | (rq->flags & NBD_CMD_FLAG_NO_HOLE ? 0 : NODE_MAY_UNMAP);
}

/* Only the first piece may say that it would be slow: a request that was refused
 * must have changed nothing.  The others are as quick, but for the last few bytes. */
static int zero_piece(struct request *rq, uint64_t off, uint64_t len, bool first)
{
	bool fast = first && (rq->flags & NBD_CMD_FLAG_FAST_ZERO);

	return node_zero(rq->conn->node, off, len,
			 zero_flags(rq) | (fast ? NODE_NO_FALLBACK : 0));
}

int request_zeroes(struct request *rq)
{
	if (rq->len > EFFECT_FIRST)
		return in_pieces(rq, zero_piece);
	return node_zero(rq->conn->node, rq->off, rq->len,
			 zero_flags(rq) | (rq->flags & NBD_CMD_FLAG_FUA ? NODE_FUA : 0) |
			 (rq->flags & NBD_CMD_FLAG_FAST_ZERO ? NODE_NO_FALLBACK : 0));
}
