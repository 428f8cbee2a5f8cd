// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes virtio-blk with its transport and its thread: the input is what a driver does.
 *
 * Steps: writes to memory, registers and configuration space, reads of them, chains put
 * together from the input, doorbells, resets, restarts.  The server is a thread.  Whatever
 * came, in the end a reset and an honest read must work, and nothing may be under way.
 */
#include "tests/fuzz/fuzz.h"
#include "tests/unit/vmm-rig.h"

#include "common/log.h"
#include "vmm/virtio-blk.h"

enum { DISK = 1 << 20, QUEUE = 16 };
#define FEATURES (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC)

static struct machine machine;
static struct ring ring;
static struct nbd_server server;

static void remove_socket(void)
{
	unlink(server.path);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct error err = ERROR_INIT;
	struct blk_options o;
	struct blk *blk;

	log_init("fuzz", LOG_LEVEL_ERROR);
	nbd_server_start(&server, DISK);
	rig_machine(&machine, &ring, QUEUE);
	fuzz_assert(!blk_parse(server.uri, &o, &err));
	o.queues = 1;
	o.queue_size = QUEUE;
	fuzz_assert(!blk_add(&machine, &o, &blk, &err));
	blk_options_clear(&o);
	atexit(remove_socket);
	return 0;
}

static void start(bool event_idx)
{
	memset(ring.memory.base, 0, 0x14000);
	pci_place_bars(&machine);
	rig_driver(&machine, &ring, FEATURES | (event_idx ? 1ull << VIRTIO_RING_F_EVENT_IDX : 0));
}

/* A request whose parts are the input's, in a chain or an indirect table of up to 8 pieces. */
static void offer(struct fuzz_bytes *b)
{
	uint8_t how = fuzz_take(b, 1), n = 1 + (how & 7), head = fuzz_take(b, 1) % QUEUE;
	struct vring_desc *d = how & 8 ? ring.table : ring.desc;
	unsigned first = how & 8 ? 0 : head;

	for (unsigned i = 0; i < n; i++) {
		uint8_t kind = fuzz_take(b, 1);
		uint64_t at = RING_BUFFERS + 16 * fuzz_take(b, 2);
		uint32_t len = kind & 1 ? 16 : kind & 2 ? 1 : kind & 4 ? 512 : fuzz_take(b, 3);

		ring_desc(&d[first + i], kind & 128 ? fuzz_take(b, 8) : at, len,
			  (i + 1 < n ? VRING_DESC_F_NEXT : 0) | (kind & 64 ? VRING_DESC_F_WRITE : 0),
			  first + i + 1);
	}
	if (how & 8)
		ring_desc(&ring.desc[head], RING_TABLE, 16 * n, VRING_DESC_F_INDIRECT, 0);
	ring_offer(&ring, head);
}

/* A block request's header, mostly right. */
static void header(struct fuzz_bytes *b)
{
	uint32_t h[4] = { fuzz_take(b, 1), 0, 0, 0 };
	uint64_t sector = fuzz_take(b, 2);

	if (h[0] & 0x80)
		sector = fuzz_take(b, 8);
	h[0] &= 0x7f;
	memcpy(h + 2, &sector, 8);
	memcpy(ring.memory.base + RING_BUFFERS + 16 * (fuzz_take(b, 2) & 0x7fff), h, sizeof(h));
}

static void step(struct fuzz_bytes *b)
{
	uint8_t what = fuzz_take(b, 1);
	unsigned size = 1u << (what >> 4 & 3);
	uint64_t at;

	switch (what & 15) {
	case 0: case 1: case 2:
		header(b);
		break;
	case 3: case 4: case 5: case 6:
		offer(b);
		break;
	case 7: case 8:
		rig_ring(&machine);
		break;
	case 9:
		rig_put(&machine, RIG_BAR + fuzz_take(b, 2) % 0x8000, size, fuzz_take(b, size));
		break;
	case 10:
		rig_get(&machine, RIG_BAR + fuzz_take(b, 2) % 0x8000, size);
		break;
	case 11:
		at = fuzz_take(b, 1) & ~(size - 1u);
		if (size <= 4)
			pci_config_write(machine.pci->device[1], at, size, fuzz_take(b, size));
		break;
	case 12:
		at = fuzz_take(b, 1) & ~(size - 1u);
		if (size <= 4)
			pci_config_read(machine.pci->device[1], at, size);
		break;
	case 13:
		at = fuzz_take(b, 3) % 0x40000;
		ring.memory.base[at] = fuzz_take(b, 1);
		break;
	case 14:
		rig_reset(&machine);
		break;
	default:
		start(what & 16);
	}
}

/* An honest driver finds the device as it should be. */
static void honest(void)
{
	uint32_t h[4] = { 0, 0, 3, 0 };
	uint8_t *status = ring.memory.base + RING_BUFFERS + 64;

	pci_reset(&machine);
	start(false);
	memcpy(ring.memory.base + RING_BUFFERS, h, sizeof(h));
	*status = 0xff;
	ring_desc(&ring.desc[0], RING_BUFFERS, 16, VRING_DESC_F_NEXT, 1);
	ring_desc(&ring.desc[1], RING_BUFFERS + 4096, 512, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 2);
	ring_desc(&ring.desc[2], RING_BUFFERS + 64, 1, VRING_DESC_F_WRITE, 0);
	ring_offer(&ring, 0);
	rig_ring(&machine);
	fuzz_assert(rig_wait(&ring, 1, FUZZ_PATIENCE) == 1 && *status == 0);
	rig_reset(&machine);
}

int fuzz_input(const uint8_t *data, size_t size)
{
	struct fuzz_bytes b = { data, size };

	start(false);
	for (unsigned n = 0; b.left && n < 200; n++)
		step(&b);
	rig_ring(&machine);
	honest();
	return 0;
}
