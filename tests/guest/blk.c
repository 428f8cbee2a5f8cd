/* SPDX-License-Identifier: BSD-3-Clause */
/* blk: drives a virtio-blk device by polling: is it right, and how fast is it?
 *
 *	disk=N		takes disk N (from 0); says what it is
 *	disk-test	every kind of request, right and wrong ones
 *	sectors=N	waits until the disk has so many
 *	depth=N size=N	for the words that follow: requests under way, bytes of each
 *	pieces=N	in measures: a request's memory is N pieces, which are no neighbours
 *	verify=MS	writes and reads at random, each block with its number and version; ends
 *			sooner when the power button is pressed
 *	ring=N		until the power button: verifies and writes N blocks in turn, so that at any
 *			instant they hold N numbers in succession
 *	randread=MS randwrite=MS seqread=MS seqwrite=MS		measure
 */
#include "blk.h"

#include "virtio.h"

enum {
	T_IN, T_OUT, T_FLUSH = 4, T_ID = 8, T_DISCARD = 11, T_ZEROES = 13,
	S_OK = 0, S_IOERR, S_UNSUPP,
	F_FLUSH = 9, F_DISCARD = 13, F_ZEROES = 14, F_INDIRECT = 28, F_VERSION_1 = 32,
	DEPTH_MAX = QUEUE_SIZE / 4, SIZE_MAX_BYTES = 1 << 20, BLOCK = 4096,
	PIECES_MAX = 128,
	WAIT_S = 60,			/* for an answer: a server may be gone for a while */
};

struct request {
	struct {
		uint32_t type, prio;
		uint64_t sector;
	} header;
	volatile uint8_t status;
	bool busy;
	uint8_t *data;
	struct desc *table;		/* for pieces */
	uint64_t block, version, since;
	bool is_write;
};

static struct vdev dev;
static struct vq vq;
static struct request *requests;	/* request I uses descriptors 4 I to 4 I + 3 */
static uint64_t capacity;		/* sectors */
static uint64_t depth = 1, size = BLOCK, n_pieces = 1;
static bool is_cut;

static uint64_t seed = 88172645463325252ull;

static uint64_t chance(uint64_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % below;
}

static uint64_t now_us(void)
{
	static uint64_t khz;

	if (!khz)
		khz = tsc_khz();
	return rdtsc() / (khz / 1000);
}

/* -- one request ---------------------------------------------------------------------------- */

static void put(uint16_t i, const volatile void *at, uint32_t len, uint16_t flags)
{
	vq.desc[i].addr = (uint64_t)at;
	vq.desc[i].len = len;
	vq.desc[i].flags = flags;
	vq.desc[i].next = i + 1;
}

/* One descriptor for a table of all: header, pieces with as much room between them, status. */
static void put_cut(struct request *r, uint16_t head, uint32_t len, uint16_t write)
{
	uint32_t each = len / (uint32_t)n_pieces;
	struct desc *t = r->table;
	uint16_t n = 0;

	t[n++] = (struct desc){ (uint64_t)&r->header, 16, DESC_NEXT, 1 };
	for (uint32_t at = 0; at < len; at += each, n++)
		t[n] = (struct desc){ (uint64_t)r->data + 2 * at, each, DESC_NEXT | write, n + 1 };
	t[n++] = (struct desc){ (uint64_t)&r->status, 1, DESC_WRITE, 0 };
	put(head, t, n * (uint32_t)sizeof(*t), DESC_INDIRECT);
}

/* Data of LEN bytes at R->data, in one piece unless IS_CUT. */
static void start(struct request *r, uint32_t type, uint64_t sector, uint32_t len, bool to_guest)
{
	uint16_t head = (uint16_t)(4 * (r - requests)), i = head;

	r->header.type = type;
	r->header.sector = sector;
	r->status = 0xff;
	r->since = now_us();
	r->busy = true;
	if (is_cut) {
		put_cut(r, head, len, to_guest ? DESC_WRITE : 0);
		vq_offer(&vq, head);
		return;
	}
	put(i++, &r->header, 16, DESC_NEXT);
	if (len)
		put(i++, r->data, len, DESC_NEXT | (to_guest ? DESC_WRITE : 0));
	put(i, &r->status, 1, DESC_WRITE);
	vq_offer(&vq, head);
}

static struct request *next_done(void)
{
	uint64_t end = now_us() + WAIT_S * 1000000ull;
	int head;

	while ((head = vq_done(&vq)) < 0) {
		__asm__ volatile("pause");
		if (now_us() > end)
			fail("no answer");
	}
	if (head % 4 || head / 4 >= DEPTH_MAX || !requests[head / 4].busy)
		fail("head %d is done, and was not offered", (uint64_t)head);
	requests[head / 4].busy = false;
	return &requests[head / 4];
}

static uint8_t sync(uint32_t type, uint64_t sector, uint32_t len, bool to_guest)
{
	start(&requests[0], type, sector, len, to_guest);
	next_done();
	return requests[0].status;
}

static void expect(const char *what, uint8_t got, uint8_t want)
{
	if (got != want)
		fail("%s: status %u, not %u", what, (uint64_t)got, (uint64_t)want);
}

/* -- words ---------------------------------------------------------------------------------- */

void run_disk(uint64_t n)
{
	if (!vdev_find(&dev, 2, (unsigned)n))
		fail("there is no disk %u", n);
	vdev_begin(&dev, 1ull << F_VERSION_1 | 1 << F_FLUSH | 1 << F_DISCARD | 1 << F_ZEROES |
			 1 << F_INDIRECT);
	vdev_queue(&dev, &vq, 0);
	vdev_ok(&dev);
	if (vq.size < QUEUE_SIZE)
		fail("the queue has %u places", (uint64_t)vq.size);
	capacity = *(volatile uint64_t *)dev.config;
	if (!requests) {
		requests = take(DEPTH_MAX * sizeof(*requests));
		for (unsigned i = 0; i < DEPTH_MAX; i++)
			requests[i].data = take(SIZE_MAX_BYTES);
	}
	expect("serial", sync(T_ID, 0, 20, true), S_OK);
	requests[0].data[20] = 0;
	say("disk %u: %u sectors, serial %s\n", n, capacity, (const char *)requests[0].data);
}

void run_sectors(uint64_t n)
{
	uint64_t end = now_us() + WAIT_S * 1000000ull;

	while (*(volatile uint64_t *)dev.config != n)
		if (now_us() > end)
			fail("the disk has %u sectors", *(volatile uint64_t *)dev.config);
	capacity = n;
	say("sectors %u\n", n);
}

void run_depth(uint64_t n)
{
	if (n < 1 || n > DEPTH_MAX)
		fail("depth is 1 to %u", (uint64_t)DEPTH_MAX);
	depth = n;
}

void run_size(uint64_t n)
{
	if (n < 512 || n > SIZE_MAX_BYTES || n % 512)
		fail("size %u", n);
	size = n;
}

void run_pieces(uint64_t n)
{
	if (n < 1 || n > PIECES_MAX || size % (n * 512) || 2 * size > SIZE_MAX_BYTES)
		fail("size %u in %u pieces", size, n);
	for (unsigned i = 0; i < DEPTH_MAX; i++)
		requests[i].table = requests[i].table ? requests[i].table : take(4096);
	n_pieces = n;
}

static void check_data(const char *what, uint32_t len, uint8_t want)
{
	for (uint32_t i = 0; i < len; i++)
		if (requests[0].data[i] != want)
			fail("%s: byte %u is %x", what, (uint64_t)i, (uint64_t)requests[0].data[i]);
}

/* Buffers cut at odd places, by an indirect table: header 7 + 9, data 1 + 510 + 1, status. */
static void odd_pieces(void)
{
	struct request *r = &requests[0];
	struct desc *t = take(6 * sizeof(*t));
	uint8_t *pieces = take(3 * 4096);

	for (unsigned i = 0; i < 512; i++)
		pieces[i == 0 ? 0 : i < 511 ? 4096 + i - 1 : 8192] = (uint8_t)i;
	r->header.type = T_OUT;
	r->header.sector = 40;
	r->status = 0xff;
	r->busy = true;
	t[0] = (struct desc){ (uint64_t)&r->header, 7, DESC_NEXT, 1 };
	t[1] = (struct desc){ (uint64_t)&r->header + 7, 9, DESC_NEXT, 2 };
	t[2] = (struct desc){ (uint64_t)pieces, 1, DESC_NEXT, 3 };
	t[3] = (struct desc){ (uint64_t)pieces + 4096, 510, DESC_NEXT, 4 };
	t[4] = (struct desc){ (uint64_t)pieces + 8192, 1, DESC_NEXT, 5 };
	t[5] = (struct desc){ (uint64_t)&r->status, 1, DESC_WRITE, 0 };
	put(0, t, 6 * sizeof(*t), DESC_INDIRECT);
	vq_offer(&vq, 0);
	next_done();
	expect("odd pieces", r->status, S_OK);
	expect("read of odd pieces", sync(T_IN, 40, 512, true), S_OK);
	for (unsigned i = 0; i < 512; i++)
		if (r->data[i] != (uint8_t)i)
			fail("odd pieces: byte %u", (uint64_t)i);
}

static void ranges(uint32_t type, uint64_t sector, uint32_t n, uint32_t flags, uint8_t want)
{
	struct {
		uint64_t sector;
		uint32_t n, flags;
	} *range = (void *)requests[0].data;

	range->sector = sector;
	range->n = n;
	range->flags = flags;
	expect(type == T_DISCARD ? "discard" : "zeroes", sync(type, 0, 16, false), want);
}

static void wrong_requests(void)
{
	static const uint64_t ends[] = { 0, 1, 1ull << 54, 1ull << 55, 1ull << 62, ~0ull, ~0ull - 7 };

	for (unsigned i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		uint64_t sector = i < 2 ? capacity - 7 + i : ends[i];

		expect("read beyond the end", sync(T_IN, sector, 4096, true), S_IOERR);
		expect("write beyond the end", sync(T_OUT, sector, 4096, false), S_IOERR);
		ranges(T_ZEROES, sector, 8, 0, S_IOERR);
		ranges(T_DISCARD, sector, 8, 0, S_IOERR);
	}
	ranges(T_ZEROES, 0, ~0u, 0, S_IOERR);
	ranges(T_ZEROES, 0, 8, 2, S_UNSUPP);
	ranges(T_DISCARD, 0, 8, 1, S_UNSUPP);
	expect("read of half a sector", sync(T_IN, 0, 100, true), S_IOERR);
	expect("zeroes of half a range", sync(T_ZEROES, 0, 15, false), S_IOERR);
	expect("unknown type", sync(2, 0, 512, true), S_UNSUPP);
	expect("unknown type", sync(0xffffffff, 0, 512, false), S_UNSUPP);
	expect("last sector", sync(T_IN, capacity - 1, 512, true), S_OK);
}

void run_disk_test(uint64_t n)
{
	memset(requests[0].data, 0xa5, 65536);
	expect("write", sync(T_OUT, 8, 65536, false), S_OK);
	expect("flush", sync(T_FLUSH, 0, 0, false), S_OK);
	memset(requests[0].data, 0, 65536);
	expect("read", sync(T_IN, 8, 65536, true), S_OK);
	check_data("read", 65536, 0xa5);
	if (dev.features >> F_ZEROES & 1) {
		ranges(T_ZEROES, 16, 8, 0, S_OK);
		ranges(T_ZEROES, 24, 8, 1, S_OK);
		expect("read", sync(T_IN, 16, 8192, true), S_OK);
		check_data("zeroes", 8192, 0);
		expect("read", sync(T_IN, 32, 4096, true), S_OK);
		check_data("beside zeroes", 4096, 0xa5);
	}
	if (dev.features >> F_DISCARD & 1)
		ranges(T_DISCARD, 8, 128, 0, S_OK);
	odd_pieces();
	wrong_requests();
	if (vdev_status(&dev) & 0x40)
		fail("the device needs a reset");
	say("disk-test done\n");
}

/* -- verify --------------------------------------------------------------------------------- */

/* Of each block of the first 64 MiB: the version that was written last; and who works on it. */
enum { BLOCKS = 16384 };
static uint64_t *version;
static uint8_t *locked;

static uint64_t word_of(uint64_t block, uint64_t v, unsigned i)
{
	return v ? (block * 0x9e3779b97f4a7c15ull) ^ (v << 20) ^ i : 0;
}

static void fill(struct request *r)
{
	uint64_t *p = (uint64_t *)r->data;

	for (unsigned i = 0; i < BLOCK / 8; i++)
		p[i] = word_of(r->block, r->version, i);
}

static void compare(struct request *r)
{
	const uint64_t *p = (const uint64_t *)r->data;

	for (unsigned i = 0; i < BLOCK / 8; i++)
		if (p[i] != word_of(r->block, r->version, i))
			fail("block %u version %u, word %u: %x", r->block, r->version, (uint64_t)i, p[i]);
}

static void verify_start(struct request *r)
{
	uint64_t most = capacity / 8 < BLOCKS ? capacity / 8 : BLOCKS;

	do
		r->block = chance(most);
	while (locked[r->block]);
	locked[r->block] = 1;
	r->is_write = !version[r->block] || chance(2);
	r->version = version[r->block] + r->is_write;
	if (r->is_write)
		fill(r);
	start(r, r->is_write ? T_OUT : T_IN, r->block * 8, BLOCK, !r->is_write);
}

static void verify_end(struct request *r)
{
	if (r->status != S_OK)
		fail("block %u: status %u", r->block, (uint64_t)r->status);
	if (r->is_write)
		version[r->block] = r->version;
	else
		compare(r);
	locked[r->block] = 0;
}

/* Everything once more, at the end. */
static void verify_all(void)
{
	for (uint64_t b = 0; b < BLOCKS; b++) {
		struct request *r = &requests[0];

		if (!version[b])
			continue;
		r->block = b;
		r->version = version[b];
		expect("read", sync(T_IN, b * 8, BLOCK, true), S_OK);
		compare(r);
	}
}

void run_verify(uint64_t ms)
{
	uint64_t end = now_us() + ms * 1000, n = 0, under_way = 0, longest = 0, took;

	if (!version) {
		version = take(BLOCKS * sizeof(*version));
		locked = take(BLOCKS);
	}
	for (; under_way < depth; under_way++)
		verify_start(&requests[under_way]);
	while (under_way) {
		struct request *r = next_done();

		took = now_us() - r->since;
		longest = took > longest ? took : longest;
		verify_end(r);
		n++;
		if (n % 256 == 0) {
			say("verified %u\n", n);
			end = inw(0x600) & 0x100 ? 0 : end;
		}
		if (now_us() < end)
			verify_start(r);
		else
			under_way--;
	}
	verify_all();
	say("verify %u requests, longest %u us\n", n, longest);
}

/* -- ring ----------------------------------------------------------------------------------- */

static void ring_check(struct request *r, uint64_t blocks, uint64_t k)
{
	r->block = k % blocks;
	r->version = k > blocks ? k - blocks : 0;
	expect("read", sync(T_IN, r->block * 8, BLOCK, true), S_OK);
	compare(r);
}

/* The numbers begin at 1; a disk that was never written holds zeroes. */
void run_ring(uint64_t blocks)
{
	struct request *r = &requests[0];
	uint64_t k = 1, longest = 0, from;

	if (!blocks || blocks > capacity / 8)
		fail("ring of %u blocks", blocks);
	for (; k % 16 || !(inw(0x600) & 0x100); k++) {
		from = now_us();
		ring_check(r, blocks, k);
		r->version = k;
		fill(r);
		expect("write", sync(T_OUT, r->block * 8, BLOCK, false), S_OK);
		longest = now_us() - from > longest ? now_us() - from : longest;
		if (k % 512 == 0)
			say("ring %u\n", k);
	}
	outw(0x600, 0x100);
	for (uint64_t end = k + blocks; k < end; k++)
		ring_check(r, blocks, k);
	expect("flush", sync(T_FLUSH, 0, 0, false), S_OK);
	say("ring done, %u writes, longest %u us\n", k - 1 - blocks, longest);
}

/* -- benches -------------------------------------------------------------------------------- */

static void bench_start(struct request *r, bool is_write, bool is_random, uint64_t *next)
{
	uint64_t places = capacity * 512 / size, at = is_random ? chance(places) : (*next)++ % places;

	start(r, is_write ? T_OUT : T_IN, at * (size / 512), (uint32_t)size, !is_write);
}

static void bench(const char *name, uint64_t ms, bool is_write, bool is_random)
{
	uint64_t from = now_us(), end = from + ms * 1000, n = 0, under_way = 0, next = 0, us;
	uint64_t kicks = vq.kicks;

	is_cut = n_pieces > 1;
	for (; under_way < depth; under_way++)
		bench_start(&requests[under_way], is_write, is_random, &next);
	while (under_way) {
		struct request *r = next_done();

		expect(name, r->status, S_OK);
		n++;
		if (now_us() < end)
			bench_start(r, is_write, is_random, &next);
		else
			under_way--;
	}
	is_cut = false;
	us = now_us() - from;
	say("%s depth %u size %u: %u requests in %u us, %u IOPS, %u MiB/s, %u kicks\n", name, depth,
	    size, n, us, n * 1000000 / us, n * size / us * 1000000 >> 20, vq.kicks - kicks);
}

void run_randread(uint64_t ms) { bench("randread", ms, false, true); }
void run_randwrite(uint64_t ms) { bench("randwrite", ms, true, true); }
void run_seqread(uint64_t ms) { bench("seqread", ms, false, false); }
void run_seqwrite(uint64_t ms) { bench("seqwrite", ms, true, false); }
