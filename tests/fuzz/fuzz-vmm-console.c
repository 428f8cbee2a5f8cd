// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes virtio-console with its transport: the input is what a driver does, what clients of its
 * ports send meanwhile, and when the machine rests, is saved and loaded with a state that somebody
 * has changed.  In the end an honest driver is answered. */
#include "tests/fuzz/fuzz.h"
#include "tests/unit/vmm-rig.h"

#include <semaphore.h>
#include <linux/virtio_console.h>

#include "common/co.h"
#include "common/log.h"
#include "common/loop.h"
#include "vmm/console-int.h"
#include "vmm/state.h"

enum { SIZE = 16, QUEUES_AT = 0x1000, QUEUE_BYTES = 0x1000, AVAIL = 0x400, USED = 0x800, TABLE = 0x10000,
       BUFFERS = 0x20000 };
#define FEATURES (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC)

static struct machine machine;
static struct ring ring;
static struct console *console;
static char dir[] = "/tmp/fuzz-vmm-console-XXXXXX", path[CONSOLE_PORTS][64];
static int client[CONSOLE_PORTS] = { -1, -1 };
static sem_t done;

/* -- the machine, with a loop for its console ------------------------------------------------- */

static void start_console(void *arg)
{
	const struct console_config config = { .terminal = path[0], .agent = path[1] };
	struct error err = ERROR_INIT;

	fuzz_assert(!console_start(&machine, &config, &console, &err));
	sem_post(&done);
}

static void on_loop(struct loop_msg *m)
{
	co_start(start_console, NULL);
}

static void remove_dir(void)
{
	unlink(path[0]);
	unlink(path[1]);
	rmdir(dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static struct loop_msg m = { .fn = on_loop };
	struct error err = ERROR_INIT;

	log_init("fuzz", LOG_LEVEL_ERROR);
	fuzz_assert(mkdtemp(dir));
	for (unsigned i = 0; i < CONSOLE_PORTS; i++)
		snprintf(path[i], sizeof(path[i]), "%s/port%u", dir, i);
	atexit(remove_dir);
	sem_init(&done, 0, 0);
	rig_machine(&machine, &ring, SIZE);
	machine.main = loop_spawn("console", &err);
	fuzz_assert(machine.main);
	loop_post(machine.main, &m);
	sem_wait(&done);
	return 0;
}

/* -- a driver ---------------------------------------------------------------------------------- */

static uint8_t *queue_at(unsigned q)
{
	return ring.memory.base + QUEUES_AT + q * QUEUE_BYTES;
}

static struct vring_avail *avail(unsigned q)
{
	return (void *)(queue_at(q) + AVAIL);
}

static void put(unsigned reg, unsigned size, uint64_t value)
{
	rig_put(&machine, RIG_COMMON + reg, size, value);
}

static void start(uint64_t features)
{
	memset(ring.memory.base, 0, TABLE);
	pci_place_bars(&machine);
	put(VIRTIO_PCI_COMMON_STATUS, 1, 0);
	put(VIRTIO_PCI_COMMON_STATUS, 1, 3);
	for (unsigned i = 0; i < 2; i++) {
		put(VIRTIO_PCI_COMMON_GFSELECT, 4, i);
		put(VIRTIO_PCI_COMMON_GF, 4, features >> 32 * i & 0xffffffff);
	}
	put(VIRTIO_PCI_COMMON_STATUS, 1, 11);
	for (unsigned i = 0; i < CONSOLE_QUEUES; i++) {
		uint64_t at = QUEUES_AT + i * QUEUE_BYTES;

		put(VIRTIO_PCI_COMMON_Q_SELECT, 2, i);
		put(VIRTIO_PCI_COMMON_Q_SIZE, 2, SIZE);
		put(VIRTIO_PCI_COMMON_Q_DESCLO, 4, at);
		put(VIRTIO_PCI_COMMON_Q_AVAILLO, 4, at + AVAIL);
		put(VIRTIO_PCI_COMMON_Q_USEDLO, 4, at + USED);
		put(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
	}
	put(VIRTIO_PCI_COMMON_STATUS, 1, 15);
}

static void kick(unsigned q)
{
	rig_put(&machine, RIG_NOTIFY + 4 * q, 2, q);
}

static void offer_head(unsigned q, uint16_t head)
{
	avail(q)->ring[avail(q)->idx % SIZE] = head;
	__atomic_add_fetch(&avail(q)->idx, 1, __ATOMIC_SEQ_CST);
}

static void offer(struct fuzz_bytes *b)
{
	unsigned q = fuzz_take(b, 1) % CONSOLE_QUEUES, how = fuzz_take(b, 1), n = 1 + (how & 3), head = how >> 4;
	struct vring_desc *ours = (void *)queue_at(q), *d = how & 8 ? (void *)(ring.memory.base + TABLE) : ours;
	unsigned first = how & 8 ? 0 : head;

	for (unsigned i = 0; i < n; i++) {
		uint8_t kind = fuzz_take(b, 1);
		uint64_t at = kind & 128 ? fuzz_take(b, 8) : BUFFERS + 16 * fuzz_take(b, 1);

		ring_desc(&d[first + i], at, kind & 1 ? 8 : fuzz_take(b, 2),
			  (i + 1 < n ? VRING_DESC_F_NEXT : 0) | (kind & 64 ? VRING_DESC_F_WRITE : 0),
			  first + i + 1);
	}
	if (how & 8)
		ring_desc(&ours[head], TABLE, 16 * n, VRING_DESC_F_INDIRECT, 0);
	offer_head(q, head);
	kick(q);
}

/* A control message of the driver's, mostly right. */
static void control(struct fuzz_bytes *b)
{
	struct virtio_console_control m = { fuzz_take(b, 1) % 3, fuzz_take(b, 1) & 15, fuzz_take(b, 1) };

	memcpy(ring.memory.base + BUFFERS, &m, sizeof(m));
	ring_desc((void *)queue_at(CONSOLE_CONTROL_OUT), BUFFERS, sizeof(m), 0, 0);
	offer_head(CONSOLE_CONTROL_OUT, 0);
	kick(CONSOLE_CONTROL_OUT);
}

/* -- clients ----------------------------------------------------------------------------------- */

static void client_step(struct fuzz_bytes *b)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	uint8_t what = fuzz_take(b, 1);
	unsigned i = what & 1;
	char bytes[4096] = { 0 };

	if (what & 2 && client[i] >= 0) {
		close(client[i]);
		client[i] = -1;
	} else if (client[i] < 0) {
		client[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		strcpy(a.sun_path, path[i]);
		/* Full when clients come too fast for the loop. */
		if (connect(client[i], (struct sockaddr *)&a, sizeof(a))) {
			close(client[i]);
			client[i] = -1;
		}
	} else if (what & 4) {
		while (recv(client[i], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
			;
	} else {
		send(client[i], bytes, 16 * (what >> 3), MSG_DONTWAIT | MSG_NOSIGNAL);
	}
}

/* -- rest, save and load ------------------------------------------------------------------------ */

static void rest(struct fuzz_bytes *b)
{
	static struct device_state s;
	struct error err = ERROR_INIT;
	uint8_t changes = fuzz_take(b, 1) & 7;

	pthread_mutex_lock(&machine.lock);
	pci_rest(&machine, true);
	memset(&s, 0, sizeof(s));
	fuzz_assert(!pci_save(machine.pci->device[1], &s, &err));
	for (; changes; changes--) {
		uint16_t at = fuzz_take(b, 2);
		/* Most of it is queues that there are not. */
		size_t off = at & 1 ? at % offsetof(struct device_state, queue[CONSOLE_QUEUES])
				    : offsetof(struct device_state, console) + at % sizeof(s.console);

		((uint8_t *)&s)[off] = fuzz_take(b, 1);
	}
	pci_reset(&machine);
	if (pci_load(machine.pci->device[1], &s, &err)) {
		fuzz_assert(err.text[0]);
		pci_reset(&machine);
	}
	pci_rest(&machine, false);
	pthread_mutex_unlock(&machine.lock);
}

static void step(struct fuzz_bytes *b)
{
	uint8_t what = fuzz_take(b, 1);
	unsigned size = 1u << (what >> 4 & 3);
	uint64_t at;

	switch (what & 15) {
	case 0: case 1: case 2:
		offer(b);
		break;
	case 3: case 4:
		control(b);
		break;
	case 5: case 6: case 7:
		client_step(b);
		break;
	case 8:
		kick(fuzz_take(b, 1) % CONSOLE_QUEUES);
		break;
	case 9:
		rig_put(&machine, RIG_BAR + fuzz_take(b, 2) % 0x8000, size, fuzz_take(b, size));
		break;
	case 10:
		at = fuzz_take(b, 3) % 0x40000;
		ring.memory.base[at] = fuzz_take(b, 1);
		break;
	case 11: case 12:
		rest(b);
		break;
	case 13:
		rig_reset(&machine);
		break;
	default:
		start(FEATURES | (what & 16 ? 1ull << VIRTIO_CONSOLE_F_MULTIPORT : 0) |
		      (what & 32 ? 1ull << VIRTIO_RING_F_EVENT_IDX : 0));
	}
}

/* An honest driver's message is taken. */
static void honest(void)
{
	const struct virtio_console_control m = { 0xffffffff, VIRTIO_CONSOLE_DEVICE_READY, 1 };
	struct vring_used *used = (void *)(queue_at(CONSOLE_CONTROL_OUT) + USED);
	double end = rig_now() + FUZZ_PATIENCE;

	pci_reset(&machine);
	start(FEATURES | 1ull << VIRTIO_CONSOLE_F_MULTIPORT);
	memcpy(ring.memory.base + BUFFERS, &m, sizeof(m));
	ring_desc((void *)queue_at(CONSOLE_CONTROL_OUT), BUFFERS, sizeof(m), 0, 0);
	offer_head(CONSOLE_CONTROL_OUT, 0);
	kick(CONSOLE_CONTROL_OUT);
	while (__atomic_load_n(&used->idx, __ATOMIC_SEQ_CST) != 1 && rig_now() < end)
		usleep(50);
	fuzz_assert(used->idx == 1);
	rig_reset(&machine);
}

int fuzz_input(const uint8_t *data, size_t size)
{
	struct fuzz_bytes b = { data, size };

	start(FEATURES | 1ull << VIRTIO_CONSOLE_F_MULTIPORT);
	for (unsigned n = 0; b.left && n < 200; n++)
		step(&b);
	honest();
	return 0;
}
