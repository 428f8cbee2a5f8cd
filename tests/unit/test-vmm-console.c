// SPDX-License-Identifier: BSD-3-Clause
/* virtio-console with a driver that is honest, slow or hostile, and clients on sockets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/virtio_console.h>

#include "common/loop.h"
#include "tests/unit/vmm-ring.h"
#include "vmm/console-int.h"

enum { SIZE = 16, QUEUE_BYTES = 0x1000, BUFFERS = 0x20000, WAIT_S = 100 };

/* -- the transport: a dummy ---------------------------------------------------- */

static struct memory memory;
static struct virtio *device;
static unsigned asked_reset;		/* atomic */

int virtio_add(struct machine *m, struct virtio *v, const struct virtio_class *c, struct error *err)
{
	v->class = c;
	for (unsigned i = 0; i < v->n_queues; i++) {
		v->doorbell[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		v->queue[i].memory = &memory;
	}
	device = v;
	return 0;
}

void virtio_remove(struct virtio *v)
{
	for (unsigned i = 0; i < v->n_queues; i++)
		close(v->doorbell[i]);
	device = NULL;
}

void virtio_interrupt(struct virtio *v, unsigned i)
{
}

void virtio_needs_reset(struct virtio *v)
{
	__atomic_fetch_add(&asked_reset, 1, __ATOMIC_SEQ_CST);
}

/* -- the driver ------------------------------------------------------------------ */

static struct vring_desc *desc(unsigned q)
{
	return (void *)(memory.base + 0x1000 + q * QUEUE_BYTES);
}

static struct vring_avail *avail(unsigned q)
{
	return (void *)(memory.base + 0x1000 + q * QUEUE_BYTES + 0x400);
}

static volatile struct vring_used *used(unsigned q)
{
	return (void *)(memory.base + 0x1000 + q * QUEUE_BYTES + 0x800);
}

static void kick(unsigned q)
{
	const uint64_t one = 1;

	assert_int_equal(write(device->doorbell[q], &one, 8), 8);
}

static void offer(unsigned q, unsigned slot, uint64_t addr, uint32_t len, bool in)
{
	desc(q)[slot] = (struct vring_desc){ addr, len, in ? VRING_DESC_F_WRITE : 0, 0 };
	avail(q)->ring[avail(q)->idx % SIZE] = (uint16_t)slot;
	__atomic_store_n(&avail(q)->idx, avail(q)->idx + 1, __ATOMIC_SEQ_CST);
}

static uint16_t used_idx(unsigned q)
{
	return __atomic_load_n(&used(q)->idx, __ATOMIC_ACQUIRE);
}

static bool became(unsigned q, uint16_t idx, unsigned ms)
{
	const struct timespec nap = { .tv_nsec = 1000000 };

	for (unsigned i = 0; i < ms && used_idx(q) != idx; i++)
		nanosleep(&nap, NULL);
	return used_idx(q) == idx;
}

static void wait_used(unsigned q, uint16_t idx)
{
	assert_true(became(q, idx, WAIT_S * 1000));
}

static void driver_ok(bool multiport)
{
	memset(memory.base + 0x1000, 0, CONSOLE_QUEUES * QUEUE_BYTES);
	device->s.acked = multiport ? 1ull << VIRTIO_CONSOLE_F_MULTIPORT : 0;
	for (unsigned i = 0; i < CONSOLE_QUEUES; i++) {
		uint64_t at = 0x1000 + i * QUEUE_BYTES;

		device->queue[i].s = (struct queue_state){ .version = 1, .size = SIZE, .enabled = true,
							   .desc = at, .avail = at + 0x400, .used = at + 0x800 };
		assert_int_equal(queue_start(&device->queue[i]), 0);
	}
	assert_int_equal(device->class->activate(device), 0);
}

static void control(unsigned id, unsigned event, unsigned value)
{
	struct virtio_console_control m = { id, (uint16_t)event, (uint16_t)value };
	uint16_t before = used_idx(3);

	memcpy(memory.base + BUFFERS + 0x3000, &m, sizeof(m));
	offer(3, 0, BUFFERS + 0x3000, sizeof(m), false);
	kick(3);
	wait_used(3, before + 1);
}

/* The next control message to the guest. */
static struct virtio_console_control told(char name[64])
{
	struct virtio_console_control m;
	uint16_t before = used_idx(2);

	offer(2, before % SIZE, BUFFERS + 0x2000, 128, true);
	kick(2);
	wait_used(2, before + 1);
	memcpy(&m, memory.base + BUFFERS + 0x2000, sizeof(m));
	memset(name, 0, 64);
	if (used(2)->ring[before % SIZE].len > sizeof(m))
		memcpy(name, memory.base + BUFFERS + 0x2000 + sizeof(m), used(2)->ring[before % SIZE].len - sizeof(m));
	return m;
}

static void expect_told(unsigned id, unsigned event, unsigned value, const char *want)
{
	char name[64];
	struct virtio_console_control m = told(name);

	assert_int_equal(m.id, id);
	assert_int_equal(m.event, event);
	assert_int_equal(m.value, value);
	assert_string_equal(name, want);
}

/* -- the loop ---------------------------------------------------------------------- */

static struct {
	char dir[32], terminal[64], agent[64];
	struct loop *loop;
	struct console *console;
	sem_t done;
	int rc;
} rig;

static void start_console(void *arg)
{
	struct console_config config = { .terminal = rig.terminal, .agent = rig.agent };
	struct error err = ERROR_INIT;

	rig.rc = console_start(NULL, &config, &rig.console, &err);
	sem_post(&rig.done);
}

static void end_console(void *arg)
{
	console_end(rig.console);
	sem_post(&rig.done);
}

struct call {
	struct loop_msg m;
	void (*fn)(void *arg);
};

static void call_on_loop(struct loop_msg *m)
{
	co_start(((struct call *)m)->fn, NULL);
}

static void on_loop(void (*fn)(void *arg))
{
	struct call c = { { .fn = call_on_loop }, fn };

	loop_post(rig.loop, &c.m);
	sem_wait(&rig.done);
}

static int setup(void **state)
{
	struct error err = ERROR_INIT;

	ring_memory(&memory, RING_MEMORY, 4096);
	asked_reset = 0;
	strcpy(rig.dir, "/tmp/vmm-console-XXXXXX");
	assert_non_null(mkdtemp(rig.dir));
	snprintf(rig.terminal, sizeof(rig.terminal), "%s/console", rig.dir);
	snprintf(rig.agent, sizeof(rig.agent), "%s/agent", rig.dir);
	sem_init(&rig.done, 0, 0);
	rig.loop = loop_spawn("test", &err);
	assert_non_null(rig.loop);
	on_loop(start_console);
	return rig.rc;
}

static int teardown(void **state)
{
	uint64_t begun = loop_now();

	on_loop(end_console);
	assert_true(loop_now() - begun < 60000000000ull);
	loop_free(rig.loop);
	assert_int_equal(rmdir(rig.dir), 0);
	munmap(memory.base, memory.size + 4096);
	sem_destroy(&rig.done);
	return 0;
}

static int client(const char *path)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = WAIT_S };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(un.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return fd;
}

/* The client is there when the guest has a byte of it. */
static void meet(int fd)
{
	uint16_t before = used_idx(0);

	offer(0, 0, BUFFERS + 0x4000, 1, true);
	kick(0);
	assert_int_equal(send(fd, "!", 1, 0), 1);
	wait_used(0, before + 1);
}

/* What Linux says to a device with two ports, up to an agent that has opened its port. */
static void greet(void)
{
	driver_ok(true);
	control(0xffffffff, VIRTIO_CONSOLE_DEVICE_READY, 1);
	expect_told(0, VIRTIO_CONSOLE_PORT_ADD, 1, "");
	expect_told(1, VIRTIO_CONSOLE_PORT_ADD, 1, "");
	control(0, VIRTIO_CONSOLE_PORT_READY, 1);
	expect_told(0, VIRTIO_CONSOLE_CONSOLE_PORT, 1, "");
	expect_told(0, VIRTIO_CONSOLE_PORT_OPEN, 1, "");
	control(1, VIRTIO_CONSOLE_PORT_READY, 1);
	expect_told(1, VIRTIO_CONSOLE_PORT_NAME, 1, "org.qemu.guest_agent.0");
}

/* -- tests --------------------------------------------------------------------------- */

static void test_agent(void **state)
{
	char text[64] = "";
	int fd;

	greet();
	fd = client(rig.agent);
	expect_told(1, VIRTIO_CONSOLE_PORT_OPEN, 1, "");
	control(1, VIRTIO_CONSOLE_PORT_OPEN, 1);
	offer(4, 0, BUFFERS, 64, true);
	kick(4);
	assert_int_equal(send(fd, "ping\n", 5, 0), 5);
	wait_used(4, 1);
	assert_int_equal(used(4)->ring[0].len, 5);
	assert_memory_equal(memory.base + BUFFERS, "ping\n", 5);
	memcpy(memory.base + BUFFERS + 0x100, "pong\n", 5);
	offer(5, 0, BUFFERS + 0x100, 5, false);
	kick(5);
	assert_int_equal(recv(fd, text, 5, MSG_WAITALL), 5);
	assert_string_equal(text, "pong\n");
	wait_used(5, 1);
	close(fd);
	expect_told(1, VIRTIO_CONSOLE_PORT_OPEN, 0, "");
	fd = client(rig.agent);
	expect_told(1, VIRTIO_CONSOLE_PORT_OPEN, 1, "");
	close(fd);
}

/* What a client wrote before it left does not come to a guest that opens the port later. */
static void test_orders_die_with_their_giver(void **state)
{
	int fd;

	greet();
	fd = client(rig.agent);
	expect_told(1, VIRTIO_CONSOLE_PORT_OPEN, 1, "");
	assert_int_equal(send(fd, "freeze\n", 7, 0), 7);
	close(fd);
	expect_told(1, VIRTIO_CONSOLE_PORT_OPEN, 0, "");
	offer(4, 0, BUFFERS, 64, true);
	control(1, VIRTIO_CONSOLE_PORT_OPEN, 1);
	fd = client(rig.agent);
	expect_told(1, VIRTIO_CONSOLE_PORT_OPEN, 1, "");
	assert_int_equal(send(fd, "sync\n", 5, 0), 5);
	wait_used(4, 1);
	assert_int_equal(used(4)->ring[0].len, 5);
	assert_memory_equal(memory.base + BUFFERS, "sync\n", 5);
	close(fd);
}

/* A client that does not read stops the guest's writes, and loses none of them. */
static void test_slow_client(void **state)
{
	enum { PIECE = 4096, TOTAL = 1 << 20 };
	static unsigned char got[PIECE];
	int fd = client(rig.terminal);
	unsigned sent = 0, received = 0;

	driver_ok(false);
	meet(fd);
	while (received < TOTAL) {
		while (sent < TOTAL && (uint16_t)(avail(1)->idx - used_idx(1)) < SIZE / 2) {
			unsigned slot = avail(1)->idx % SIZE;

			memset(memory.base + BUFFERS + slot * PIECE, sent / PIECE % 251, PIECE);
			offer(1, slot, BUFFERS + slot * PIECE, PIECE, false);
			sent += PIECE;
			kick(1);
		}
		if (received == sent)
			wait_used(1, avail(1)->idx);	/* it had only been slow to say so */
		if (sent < TOTAL && became(1, avail(1)->idx, 20))
			continue;	/* not stopped yet */
		assert_int_equal(recv(fd, got, PIECE, MSG_WAITALL), PIECE);
		for (unsigned i = 0; i < PIECE; i++)
			assert_int_equal(got[i], received / PIECE % 251);
		received += PIECE;
	}
	assert_int_equal(sent, TOTAL);
	close(fd);
}

/* Nobody listens: the guest's words are dropped, the guest goes on. */
static void test_no_client(void **state)
{
	driver_ok(false);
	for (unsigned i = 0; i < 40; i++) {
		offer(1, i % SIZE, BUFFERS, 4096, false);
		kick(1);
		wait_used(1, (uint16_t)(i + 1));
	}
}

/* Reset while a buffer is half sent: it is not touched any more, and the device works again. */
static void test_reset_in_the_middle(void **state)
{
	static char room[1 << 20];
	int fd = client(rig.terminal);

	driver_ok(false);
	meet(fd);
	for (unsigned i = 0; i < 10; i++)
		offer(1, i, BUFFERS, 64 << 10, false);
	kick(1);
	assert_false(became(1, 10, 200));
	device->class->reset(device);
	while (recv(fd, room, sizeof(room), MSG_DONTWAIT) > 0)
		continue;
	driver_ok(false);
	meet(fd);
	assert_int_equal(used_idx(1), 0);
	memcpy(memory.base + BUFFERS, "again", 5);
	offer(1, 0, BUFFERS, 5, false);
	kick(1);
	wait_used(1, 1);
	assert_int_equal(recv(fd, room, 5, MSG_WAITALL), 5);
	assert_memory_equal(room, "again", 5);
	close(fd);
}

static void test_hostile_messages(void **state)
{
	uint16_t n;

	greet();
	control(7, VIRTIO_CONSOLE_PORT_READY, 1);
	control(0xffffffff, VIRTIO_CONSOLE_PORT_OPEN, 1);
	control(1, 999, 65535);
	/* The same question a thousand times: one set of answers. */
	for (unsigned i = 0; i < 1000; i++)
		control(1, VIRTIO_CONSOLE_PORT_READY, 1);
	expect_told(1, VIRTIO_CONSOLE_PORT_NAME, 1, "org.qemu.guest_agent.0");
	offer(2, used_idx(2) % SIZE, BUFFERS, 128, true);
	kick(2);
	n = used_idx(2);
	assert_false(became(2, n + 1, 50));
	/* A message without room, and half a message. */
	n = used_idx(3);
	offer(3, 0, BUFFERS, 0x10, true);
	offer(3, 1, BUFFERS, 4, false);
	kick(3);
	wait_used(3, n + 2);
	assert_int_equal(asked_reset, 0);
}

static void test_broken_ring(void **state)
{
	greet();
	desc(5)[0] = (struct vring_desc){ 0xfffffffffffff000ull, 0xffffffff, 0, 0 };
	avail(5)->ring[0] = 0;
	avail(5)->idx = 1;
	kick(5);
	for (unsigned i = 0; i < WAIT_S * 1000 && !__atomic_load_n(&asked_reset, __ATOMIC_SEQ_CST); i++)
		usleep(1000);
	assert_int_equal(asked_reset, 1);
	/* The others still work, and so does this one after a reset. */
	control(0, VIRTIO_CONSOLE_PORT_READY, 1);
	device->class->reset(device);
	device->queue[5].s.broken = false;
	greet();
}

/* A guest writes when it likes, and as it likes: not for ThreadSanitizer to judge. */
__attribute__((no_sanitize("thread"))) static void noise(unsigned *seed, unsigned mask)
{
	for (unsigned i = 0; i < CONSOLE_QUEUES * QUEUE_BYTES / 4; i++)
		((volatile uint32_t *)(memory.base + 0x1000))[i] = rand_r(seed) & mask;
	for (unsigned i = 0; i < CONSOLE_QUEUES; i++) {
		*(volatile uint16_t *)&avail(i)->idx = (uint16_t)(rand_r(seed) % SIZE);
		kick(i);
	}
}

/* Noise in all rings, with clients that come and go. */
static void test_noise(void **state)
{
	unsigned seed = 1;

	for (unsigned round = 0; round < 200; round++) {
		int fd = round % 3 ? client(round % 2 ? rig.agent : rig.terminal) : -1;

		for (unsigned i = 0; i < CONSOLE_QUEUES; i++)
			device->queue[i].s.broken = false;
		driver_ok(round % 4);
		noise(&seed, round % 2 ? 0x3003f : ~0u);
		if (fd >= 0) {
			send(fd, "noise", 5, MSG_NOSIGNAL | MSG_DONTWAIT);
			close(fd);
		}
		if (round % 5 == 0)
			usleep(1000);
		device->class->reset(device);
	}
	for (unsigned i = 0; i < CONSOLE_QUEUES; i++)
		device->queue[i].s.broken = false;
	greet();
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_agent),
		TEST(test_orders_die_with_their_giver),
		TEST(test_slow_client),
		TEST(test_no_client),
		TEST(test_reset_in_the_middle),
		TEST(test_hostile_messages),
		TEST(test_broken_ring),
		TEST(test_noise),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
