// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes NBD, from the first byte of the handshake to the last request: the input is
 * what a client sends, all at once.
 *
 * What comes back must be a stream that the specification knows, as far as it can be
 * followed without the requests: greeting, option replies, structured chunks.
 * Mutations know what options and requests look like, and keep lengths right most of
 * the time.
 */
#include "tests/fuzz/inproc.h"

#include "common/bytes.h"
#include "common/checked.h"

#define DISK (256u << 10)
#define OPTION_HEAD 16u
#define REQUEST_HEAD 28u
#define OPT_MAGIC 0x49484156454f5054ull
#define REP_MAGIC 0x3e889045565a9ull
#define REQ_MAGIC 0x25609513u
#define EXTENDED_MAGIC 0x21e41c71u

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static char *args[] = { "merinod", "--sandbox", "off",
		"--nbd-server", "addr.type=unix,addr.path=nbd,max-connections=0",
		"--blockdev", "driver=raw,node-name=r,discard=unmap,file.driver=file,file.filename=raw,file.discard=unmap",
		"--blockdev", "driver=qcow2,node-name=q,discard=unmap,file.driver=file,file.filename=qcow2",
		"--export", "nbd,id=r,node-name=r,name=,writable=on",
		"--export", "nbd,id=q,node-name=q,name=q,writable=on,allocation-depth=on",
		"--export", "nbd,id=o,node-name=q,name=o,description=read only",
		"--pidfile", "pid", NULL };

	inproc_enter_dir();
	inproc_make_raw("raw", DISK);
	inproc_make_qcow2("qcow2", DISK);
	inproc_start(args);
	return 0;
}

/* -- what comes back -------------------------------------------------------------- */

static bool chunk_is_known(uint16_t type, uint32_t len)
{
	switch (type) {
	case 0:				/* NONE */
		return !len;
	case 1:				/* OFFSET_DATA */
		return len > 8;
	case 2:				/* OFFSET_HOLE */
		return len == 12;
	case 5:				/* BLOCK_STATUS */
		return len >= 12 && (len - 4) % 8 == 0;
	case 0x8001:			/* ERROR */
		return len >= 6;
	case 0x8002:			/* ERROR_OFFSET */
		return len >= 14;
	default:
		return false;
	}
}

/* The last reply may be cut: the server hung up on us. */
static void check_answer(const uint8_t *p, size_t left)
{
	fuzz_assert(left >= 18 && !memcmp(p, "NBDMAGICIHAVEOPT", 16));
	p += 18;
	left -= 18;
	while (left >= 20 && get_be64(p) == REP_MAGIC) {
		size_t n = 20 + (size_t)get_be32(p + 16);

		fuzz_assert(get_be32(p + 16) <= 32 << 20);
		if (n > left)
			return;
		p += n;
		left -= n;
	}
	while (left >= 20 && get_be32(p) == 0x668e33ef) {
		uint32_t len = get_be32(p + 16);

		fuzz_assert(chunk_is_known(get_be16(p + 6), len) && get_be16(p + 4) <= 1);
		if (20 + (size_t)len > left)
			return;
		p += 20 + len;
		left -= 20 + len;
	}
}

int fuzz_input(const uint8_t *data, size_t size)
{
	static uint8_t answer[1 << 20];
	int fd = inproc_connect("nbd");
	size_t n = inproc_exchange(fd, data, size, answer, sizeof(answer));

	close(fd);
	check_answer(answer, min_u64(n, sizeof(answer)));
	return 0;
}

/* -- mutations -------------------------------------------------------------------- */

static uint64_t random_state;

static uint64_t random_next(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % below;
}

static uint64_t evil(void)
{
	static const uint64_t edges[] = { 0, 1, 511, 512, 4096, DISK - 512, DISK - 1, DISK, DISK + 1, 32 << 20,
		(32 << 20) + 1, INT32_MAX, UINT32_MAX, 1ull << 32, INT64_MAX, 1ull << 63, UINT64_MAX - 511, UINT64_MAX };

	return random_next(3) ? edges[random_next(sizeof(edges) / sizeof(edges[0]))] : 1ull << random_next(64);
}

/* Where the messages begin; returns how many. */
static unsigned split(const uint8_t *data, size_t size, size_t *at, unsigned max)
{
	unsigned n = 0;

	for (size_t i = 4; i + 8 <= size && n < max; i++) {
		if ((get_be64(data + i) == OPT_MAGIC && size - i >= OPTION_HEAD) ||
		    ((get_be32(data + i) == REQ_MAGIC || get_be32(data + i) == EXTENDED_MAGIC) &&
		     size - i >= REQUEST_HEAD)) {
			at[n++] = i;
			i += OPTION_HEAD - 1;
		}
	}
	return n;
}

static void put_number(uint8_t *p, unsigned width, uint64_t v)
{
	while (width--) {
		p[width] = v;
		v >>= 8;
	}
}

static void mutate_head(uint8_t *p)
{
	if (get_be64(p) == OPT_MAGIC) {
		if (random_next(2))
			put_be32(p + 8, 1 + random_next(13));
		else
			put_be32(p + 12, evil());
		return;
	}
	switch (random_next(4)) {
	case 0:
		p[5] ^= 1u << random_next(8);		/* flags */
		break;
	case 1:
		put_number(p + 6, 2, random_next(10));	/* type */
		break;
	case 2:
		put_be64(p + 16, evil());
		break;
	default:
		put_be32(p + 24, evil());
	}
}

/* One message more: a copy of one that is there, or a new request. */
static size_t insert(uint8_t *data, size_t size, size_t max, const size_t *at, unsigned n)
{
	unsigned i = random_next(n), j = random_next(n);
	size_t from = at[i], len = (i + 1 < n ? at[i + 1] : size) - from, to = random_next(4) ? at[j] : size;
	uint8_t message[512];

	len = min_u64(len, sizeof(message));
	memcpy(message, data + from, len);
	if (random_next(2) && len >= REQUEST_HEAD && get_be32(message) == REQ_MAGIC)
		mutate_head(message);
	if (len > max - size)
		return size;
	memmove(data + to + len, data + to, size - to);
	memcpy(data + to, message, len);
	return size + len;
}

/* New bytes in an option, and its length follows. */
static size_t mutate_option(uint8_t *data, size_t size, size_t max, size_t at, size_t next)
{
	uint8_t payload[4096];
	size_t len = min_u64(next - at - OPTION_HEAD, sizeof(payload)), n;

	memcpy(payload, data + at + OPTION_HEAD, len);
	n = fuzz_mutate(payload, len, sizeof(payload));
	if (n > max - (size - len))
		return size;
	memmove(data + at + OPTION_HEAD + n, data + at + OPTION_HEAD + len, size - at - OPTION_HEAD - len);
	memcpy(data + at + OPTION_HEAD, payload, n);
	put_be32(data + at + 12, n);
	return size - len + n;
}

size_t fuzz_change(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	size_t at[64];
	unsigned n = split(data, size, at, 64), i;

	random_state = seed | 1ull << 40;
	if (!n || !random_next(4))
		return fuzz_mutate(data, size, max);
	i = random_next(n);
	switch (random_next(4)) {
	case 0:
		return insert(data, size, max, at, n);
	case 1:
		if (get_be64(data + at[i]) == OPT_MAGIC)
			return mutate_option(data, size, max, at[i], i + 1 < n ? at[i + 1] : size);
		/* fall through */
	default:
		mutate_head(data + at[i]);
		return size;
	}
}
