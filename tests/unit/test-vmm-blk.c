// SPDX-License-Identifier: BSD-3-Clause
/* virtio-blk and its transport against hostile drivers, with an NBD server that fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <linux/virtio_blk.h>

#include "tests/unit/vmm-rig.h"
#include "vmm/virtio-blk.h"

enum { NEXT = VRING_DESC_F_NEXT, WRITE = VRING_DESC_F_WRITE, DISK = 1 << 20, PATIENCE = 100 };
#define BASE (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_BLK_F_FLUSH | \
	      1ull << VIRTIO_RING_F_INDIRECT_DESC)

struct rig {
	struct machine m;
	struct ring r;
	struct nbd_server s;
	struct blk *blk;
	uint16_t done;			/* requests so far */
};

static void start(struct rig *g, const char *more)
{
	struct error err = ERROR_INIT;
	struct blk_options o;
	char text[256];

	memset(g, 0, sizeof(*g));
	nbd_server_start(&g->s, DISK);
	rig_machine(&g->m, &g->r, 64);
	snprintf(text, sizeof(text), "%s,id=d,queues=1,queue-size=64%s", g->s.uri, more);
	if (blk_parse(text, &o, &err) || blk_add(&g->m, &o, &g->blk, &err))
		fail_msg("%s", err.text);
	blk_options_clear(&o);
	pci_place_bars(&g->m);
	assert_int_equal(rig_driver(&g->m, &g->r, BASE), 15);
}

static void end(struct rig *g)
{
	disk_cancel(blk_disk(g->blk));
	blk_remove(g->blk);
	pci_end(&g->m);
	ring_free(&g->r);
	nbd_server_stop(&g->s);
}

static uint8_t *at(struct rig *g, uint64_t gpa)
{
	return g->r.memory.base + gpa;
}

/* Request I, at descriptors 3 I: header, data, status. */
static void offer(struct rig *g, unsigned i, uint32_t type, uint64_t sector, uint32_t len)
{
	uint64_t base = RING_BUFFERS + 0x2000 * i;
	struct virtio_blk_outhdr h = { .type = type, .sector = sector };
	bool in = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;

	memcpy(at(g, base), &h, sizeof(h));
	*at(g, base + 64) = 0xff;
	ring_desc(&g->r.desc[3 * i], base, 16, NEXT, len ? 3 * i + 1 : 3 * i + 2);
	ring_desc(&g->r.desc[3 * i + 1], base + 0x1000, len, NEXT | (in ? WRITE : 0), 3 * i + 2);
	ring_desc(&g->r.desc[3 * i + 2], base + 64, 1, WRITE, 0);
	ring_offer(&g->r, 3 * i);
}

static uint8_t status(struct rig *g, unsigned i)
{
	return *at(g, RING_BUFFERS + 0x2000 * i + 64);
}

static uint8_t *data(struct rig *g, unsigned i)
{
	return at(g, RING_BUFFERS + 0x2000 * i + 0x1000);
}

static void run(struct rig *g, unsigned n)
{
	rig_ring(&g->m);
	g->done += n;
	assert_int_equal(rig_wait(&g->r, g->done, PATIENCE), g->done);
}

static uint8_t one(struct rig *g, uint32_t type, uint64_t sector, uint32_t len)
{
	offer(g, 0, type, sector, len);
	run(g, 1);
	return status(g, 0);
}

static void test_plain(void **state)
{
	struct rig g;

	start(&g, ",serial=12345678901234567890");
	memset(data(&g, 0), 0x5a, 4096);
	assert_int_equal(one(&g, VIRTIO_BLK_T_OUT, 8, 4096), VIRTIO_BLK_S_OK);
	assert_int_equal(g.s.disk[4096], 0x5a);
	assert_int_equal(g.s.disk[8191], 0x5a);
	assert_int_equal(g.s.disk[8192], 0);
	memset(data(&g, 0), 0, 4096);
	assert_int_equal(one(&g, VIRTIO_BLK_T_IN, 9, 4096), VIRTIO_BLK_S_OK);
	assert_int_equal(data(&g, 0)[3583], 0x5a);
	assert_int_equal(data(&g, 0)[3584], 0);
	assert_int_equal(g.r.used->ring[1].len, 4097);
	assert_int_equal(one(&g, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(one(&g, VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
	assert_memory_equal(data(&g, 0), "12345678901234567890", 20);
	assert_int_equal(one(&g, VIRTIO_BLK_T_GET_ID, 0, 5), VIRTIO_BLK_S_OK);
	assert_int_equal(rig_get(&g.m, RIG_DEVICE, 8), DISK / 512);
	end(&g);
}

/* Numbers near the edges of the disk and of 64 bits: an error, and no request to the server. */
static void test_edges(void **state)
{
	static const uint64_t sectors[] = { DISK / 512 - 7, DISK / 512, 1ull << 54, 1ull << 55,
					    1ull << 63, UINT64_MAX, UINT64_MAX - 7 };
	struct virtio_blk_discard_write_zeroes z;
	struct rig g;

	start(&g, "");
	for (unsigned i = 0; i < sizeof(sectors) / sizeof(sectors[0]); i++) {
		z = (struct virtio_blk_discard_write_zeroes){ sectors[i], 8, 0 };
		assert_int_equal(one(&g, VIRTIO_BLK_T_IN, sectors[i], 4096), VIRTIO_BLK_S_IOERR);
		assert_int_equal(one(&g, VIRTIO_BLK_T_OUT, sectors[i], 4096), VIRTIO_BLK_S_IOERR);
		memcpy(data(&g, 0), &z, sizeof(z));
		assert_int_equal(one(&g, VIRTIO_BLK_T_DISCARD, 0, 16), VIRTIO_BLK_S_IOERR);
		assert_int_equal(one(&g, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16), VIRTIO_BLK_S_IOERR);
	}
	assert_int_equal(one(&g, VIRTIO_BLK_T_WRITE_ZEROES, 0, 17), VIRTIO_BLK_S_IOERR);
	assert_int_equal(one(&g, VIRTIO_BLK_T_WRITE_ZEROES, 0, 17 * 16), VIRTIO_BLK_S_IOERR);
	assert_int_equal(one(&g, VIRTIO_BLK_T_WRITE_ZEROES, 0, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(one(&g, VIRTIO_BLK_T_IN, 0, 511), VIRTIO_BLK_S_IOERR);
	assert_int_equal(one(&g, 99, 0, 512), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(__atomic_load_n(&g.s.requests, __ATOMIC_SEQ_CST), 0);
	/* The second of two ranges is wrong: neither is done. */
	z = (struct virtio_blk_discard_write_zeroes){ 0, 8, 0 };
	memcpy(data(&g, 0), &z, sizeof(z));
	z.sector = DISK / 512;
	memcpy(data(&g, 0) + 16, &z, sizeof(z));
	g.s.disk[0] = 1;
	assert_int_equal(one(&g, VIRTIO_BLK_T_WRITE_ZEROES, 0, 32), VIRTIO_BLK_S_IOERR);
	assert_int_equal(g.s.disk[0], 1);
	end(&g);
}

static void test_ranges(void **state)
{
	struct virtio_blk_discard_write_zeroes z[3] = { { 0, 1, 0 }, { 4, 2, 1 }, { 8, 0, 0 } };
	struct rig g;

	start(&g, "");
	memset(g.s.disk, 7, 4096);
	memcpy(data(&g, 0), z, sizeof(z));
	assert_int_equal(one(&g, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof(z)), VIRTIO_BLK_S_OK);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(g.s.disk[i * 512], i == 0 || i == 4 || i == 5 ? 0 : 7);
	assert_int_equal(__atomic_load_n(&g.s.requests, __ATOMIC_SEQ_CST), 2);
	end(&g);
}

/* Header, data and status cut at odd places, some in one buffer. */
static void test_pieces(void **state)
{
	struct virtio_blk_outhdr h = { .type = VIRTIO_BLK_T_OUT, .sector = 2 };
	struct rig g;

	start(&g, "");
	memcpy(at(&g, RING_BUFFERS), &h, 16);
	memset(at(&g, RING_BUFFERS + 16), 3, 100);
	memset(at(&g, RING_BUFFERS + 0x1000), 4, 412);
	ring_desc(&g.r.desc[0], RING_BUFFERS, 5, NEXT, 1);
	ring_desc(&g.r.desc[1], RING_BUFFERS + 5, 111, NEXT, 2);
	ring_desc(&g.r.desc[2], RING_BUFFERS + 0x1000, 412, NEXT, 3);
	ring_desc(&g.r.desc[3], RING_BUFFERS + 0x2000, 9, WRITE, 0);
	ring_offer(&g.r, 0);
	run(&g, 1);
	assert_int_equal(*at(&g, RING_BUFFERS + 0x2008), VIRTIO_BLK_S_OK);
	assert_int_equal(g.s.disk[1024 + 99], 3);
	assert_int_equal(g.s.disk[1024 + 100], 4);
	assert_int_equal(g.s.disk[1024 + 511], 4);
	/* A read into one buffer whose last byte is the status. */
	h.type = VIRTIO_BLK_T_IN;
	memcpy(at(&g, RING_BUFFERS), &h, 16);
	ring_desc(&g.r.desc[0], RING_BUFFERS, 16, NEXT, 1);
	ring_desc(&g.r.desc[1], RING_BUFFERS + 0x1000, 513, WRITE, 0);
	ring_offer(&g.r, 0);
	run(&g, 1);
	assert_memory_equal(at(&g, RING_BUFFERS + 0x1000), g.s.disk + 1024, 512);
	assert_int_equal(*at(&g, RING_BUFFERS + 0x1000 + 512), VIRTIO_BLK_S_OK);
	end(&g);
}

static void no_status(struct rig *g)
{
	ring_desc(&g->r.desc[30], RING_BUFFERS, 16, 0, 0);
	ring_offer(&g->r, 30);
}
static void no_header(struct rig *g)
{
	ring_desc(&g->r.desc[30], RING_BUFFERS, 16, WRITE, 0);
	ring_offer(&g->r, 30);
}
static void short_header(struct rig *g)
{
	ring_desc(&g->r.desc[30], RING_BUFFERS, 15, NEXT, 31);
	ring_desc(&g->r.desc[31], RING_BUFFERS + 64, 1, WRITE, 0);
	ring_offer(&g->r, 30);
}
static void status_outside(struct rig *g)
{
	ring_desc(&g->r.desc[30], RING_BUFFERS, 16, NEXT, 31);
	ring_desc(&g->r.desc[31], RING_MEMORY, 1, WRITE, 0);
	ring_offer(&g->r, 30);
}
static void loop(struct rig *g)
{
	ring_desc(&g->r.desc[30], RING_BUFFERS, 16, NEXT, 30);
	ring_offer(&g->r, 30);
}
static void ahead(struct rig *g)
{
	__atomic_add_fetch(&g->r.avail->idx, 65, __ATOMIC_RELEASE);
}

/* The device asks for a reset, what it had is completed once, and a reset heals it. */
static void test_broken(void **state)
{
	static void (*const cases[])(struct rig *g) = { no_status, no_header, short_header,
							status_outside, loop, ahead };

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct rig g;
		double until = rig_now() + PATIENCE;

		start(&g, "");
		assert_int_equal(one(&g, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
		cases[i](&g);
		offer(&g, 1, VIRTIO_BLK_T_IN, 0, 512);
		rig_ring(&g.m);
		while (!(rig_status(&g.m) & VIRTIO_CONFIG_S_NEEDS_RESET) && rig_now() < until)
			usleep(500);
		assert_true(rig_status(&g.m) & VIRTIO_CONFIG_S_NEEDS_RESET);
		usleep(20000);
		assert_int_equal(rig_done(&g.r), 1);
		assert_int_equal(status(&g, 1), 0xff);
		rig_reset(&g.m);
		assert_int_equal(rig_status(&g.m), 0);
		memset(g.r.avail, 0, 256);
		memset(g.r.used, 0, 1024);
		assert_int_equal(rig_driver(&g.m, &g.r, BASE), 15);
		g.done = 0;
		assert_int_equal(one(&g, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
		end(&g);
	}
}

/* The same head twice while the first is under way. */
static void test_twice(void **state)
{
	struct rig g;

	start(&g, "");
	__atomic_store_n(&g.s.stall, 1, __ATOMIC_SEQ_CST);
	offer(&g, 0, VIRTIO_BLK_T_IN, 0, 512);
	ring_offer(&g.r, 0);
	rig_ring(&g.m);
	while (!(rig_status(&g.m) & VIRTIO_CONFIG_S_NEEDS_RESET))
		usleep(500);
	__atomic_store_n(&g.s.stall, 0, __ATOMIC_SEQ_CST);
	rig_reset(&g.m);
	assert_int_equal(rig_done(&g.r), 0);
	end(&g);
}

static void test_registers(void **state)
{
	struct rig g;
	uint64_t q = RIG_COMMON + VIRTIO_PCI_COMMON_Q_SIZE;

	start(&g, "");
	/* After DRIVER_OK the queue is the device's. */
	rig_put(&g.m, q, 2, 16);
	rig_put(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_DESCLO, 4, 0x5000);
	rig_put(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_ENABLE, 2, 0);
	assert_int_equal(rig_get(&g.m, q, 2), 64);
	assert_int_equal(rig_get(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_DESCLO, 4), RING_DESC);
	assert_int_equal(rig_get(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_ENABLE, 2), 1);
	/* A queue that there is not. */
	for (unsigned i = 1; i < 65536; i += 8191) {
		rig_put(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_SELECT, 2, i);
		rig_put(&g.m, q, 2, 16);
		rig_put(&g.m, RIG_NOTIFY + 4 * i, 2, i);
		assert_int_equal(rig_get(&g.m, q, 2), 0);
	}
	/* Features that are not offered, or without VERSION_1, are not OK; then nothing starts. */
	assert_int_equal(rig_driver(&g.m, &g.r, BASE | 1ull << 60), 3);
	assert_int_equal(rig_driver(&g.m, &g.r, BASE & ~(1ull << VIRTIO_F_VERSION_1)), 3);
	/* Sizes: not a power of two, too large. */
	rig_reset(&g.m);
	rig_put(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
	rig_put(&g.m, q, 2, 63);
	rig_put(&g.m, q, 2, 128);
	rig_put(&g.m, q, 2, 0);
	assert_int_equal(rig_get(&g.m, q, 2), 64);
	/* Rings outside of memory. */
	g.r.q.s.used = RING_MEMORY - 4;
	assert_true(rig_driver(&g.m, &g.r, BASE) & VIRTIO_CONFIG_S_NEEDS_RESET);
	end(&g);
}

/* Masked, a vector is pending; enabled, it has a route. */
static void test_msix(void **state)
{
	struct rig g;
	struct pci_device *d;
	unsigned routes;

	start(&g, "");
	d = g.m.pci->device[1];
	routes = rig_routes;
	assert_int_equal(d->n_vectors, 2);
	pci_config_write(d, d->msix_cap + 2, 2, 0x8000);
	assert_int_equal(rig_routes, routes);		/* all are masked at first */
	rig_put(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
	rig_put(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_MSIX, 2, 2);
	assert_int_equal(rig_get(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_MSIX, 2), 0xffff);
	rig_put(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_Q_MSIX, 2, 1);
	assert_int_equal(one(&g, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	for (double until = rig_now() + PATIENCE; rig_get(&g.m, RIG_MSIX + 32, 8) != 2 && rig_now() < until;)
		usleep(500);
	assert_int_equal(rig_get(&g.m, RIG_MSIX + 32, 8), 2);
	rig_put(&g.m, RIG_MSIX + 16, 8, 0xfee00000);
	rig_put(&g.m, RIG_MSIX + 28, 4, 0);
	assert_int_equal(rig_routes, routes + 1);
	assert_int_equal(rig_get(&g.m, RIG_MSIX + 16, 4), 0xfee00000);
	end(&g);
}

/* A server that says nothing: a reset waits for a moment, and then the memory is the guest's. */
static void test_reset_in_flight(void **state)
{
	struct rig g;
	double began;

	start(&g, "");
	memset(g.s.disk, 0x77, DISK);
	__atomic_store_n(&g.s.stall, 1, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < 8; i++)
		offer(&g, i, VIRTIO_BLK_T_IN, i, 4096);
	rig_ring(&g.m);
	while (!__atomic_load_n(&g.s.requests, __ATOMIC_SEQ_CST))
		usleep(500);
	began = rig_now();
	rig_reset(&g.m);
	assert_true(rig_now() - began < PATIENCE);
	memset(g.r.memory.base, 0, RING_MEMORY);
	__atomic_store_n(&g.s.stall, 0, __ATOMIC_SEQ_CST);
	usleep(100000);
	for (unsigned i = 0; i < RING_MEMORY; i++)
		assert_int_equal(g.r.memory.base[i], 0);
	assert_int_equal(rig_driver(&g.m, &g.r, BASE), 15);
	assert_int_equal(one(&g, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(data(&g, 0)[0], 0x77);
	end(&g);
}

/* Connections that end after every fifth request, which was done and not answered: all come
 * to an end, once, in the right place. */
static void test_replay(void **state)
{
	struct rig g;
	uint8_t seen[21];

	start(&g, "");
	__atomic_store_n(&g.s.cut_after, 5, __ATOMIC_SEQ_CST);
	for (unsigned round = 1; round <= 20; round++) {
		for (unsigned i = 0; i < 21; i++) {
			memset(data(&g, i), (int)(round + i), 4096);
			offer(&g, i, VIRTIO_BLK_T_OUT, 8 * i, 4096);
		}
		run(&g, 21);
		memset(seen, 0, sizeof(seen));
		for (unsigned i = 0; i < 21; i++) {
			unsigned head = g.r.used->ring[(uint16_t)(g.done - 21 + i) % 64].id;

			assert_int_equal(seen[head / 3]++, 0);
			assert_int_equal(status(&g, i), VIRTIO_BLK_S_OK);
			assert_int_equal(g.s.disk[4096 * i + 4095], (uint8_t)(round + i));
		}
	}
	assert_true(__atomic_load_n(&g.s.connections, __ATOMIC_SEQ_CST) > 20);
	end(&g);
}

static void test_errors(void **state)
{
	struct rig g;
	unsigned connections;

	start(&g, "");
	connections = __atomic_load_n(&g.s.connections, __ATOMIC_SEQ_CST);
	__atomic_store_n(&g.s.error, 5, __ATOMIC_SEQ_CST);
	assert_int_equal(one(&g, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
	__atomic_store_n(&g.s.error, 28, __ATOMIC_SEQ_CST);
	assert_int_equal(one(&g, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
	__atomic_store_n(&g.s.error, 0, __ATOMIC_SEQ_CST);
	assert_int_equal(one(&g, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(__atomic_load_n(&g.s.connections, __ATOMIC_SEQ_CST), connections);
	/* "Shutting down" is no error of the request's: it waits. */
	__atomic_store_n(&g.s.error, 108, __ATOMIC_SEQ_CST);
	offer(&g, 0, VIRTIO_BLK_T_OUT, 0, 512);
	rig_ring(&g.m);
	usleep(200000);
	assert_int_equal(rig_done(&g.r), g.done);
	__atomic_store_n(&g.s.error, 0, __ATOMIC_SEQ_CST);
	run(&g, 1);
	assert_int_equal(status(&g, 0), VIRTIO_BLK_S_OK);
	end(&g);
}

static void test_resize(void **state)
{
	struct rig g;
	uint8_t generation;

	start(&g, "");
	generation = rig_get(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_CFGGENERATION, 1);
	disk_set_size(blk_disk(g.blk), DISK / 2);
	assert_int_equal(rig_get(&g.m, RIG_DEVICE, 4), DISK / 1024);
	assert_true(rig_get(&g.m, RIG_COMMON + VIRTIO_PCI_COMMON_CFGGENERATION, 1) != generation);
	assert_int_equal(one(&g, VIRTIO_BLK_T_IN, DISK / 1024, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(one(&g, VIRTIO_BLK_T_IN, DISK / 1024 - 1, 512), VIRTIO_BLK_S_OK);
	end(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_plain), cmocka_unit_test(test_edges), cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_pieces), cmocka_unit_test(test_broken), cmocka_unit_test(test_twice),
		cmocka_unit_test(test_registers), cmocka_unit_test(test_msix),
		cmocka_unit_test(test_reset_in_flight), cmocka_unit_test(test_replay),
		cmocka_unit_test(test_errors), cmocka_unit_test(test_resize),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
