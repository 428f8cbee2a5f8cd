// SPDX-License-Identifier: BSD-3-Clause
/* A whole machine on real KVM, saved under a guest that verifies its disk, and loaded into
 * another one, which goes on; and states that somebody has damaged.  Without /dev/kvm: skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/co.h"
#include "common/io.h"
#include "common/log.h"
#include "common/loop.h"
#include "tests/unit/vmm-nbd.h"
#include "vmm/state.h"
#include "vmm/virtio-blk.h"
#include "vmm/virtio-net.h"
#include "vmm/virtio-rng.h"

enum { DISK = 16 << 20, MEMORY = 80 << 20, PATIENCE_MS = 100000 };

static char kernel[512], dir[] = "/tmp/test-vmm-save-XXXXXX";
static struct machine_config config = {
	.vcpus = 2, .memory = MEMORY, .kernel = kernel,
	.cmdline = "random disk=0 depth=16 verify=600000",
};
static struct nbd_server server;
static struct loop *loop;
static unsigned seed = 1;

/* One machine, and the file that its serial line goes to. */
struct vm {
	struct machine m;
	struct blk *blk;
	struct rng *rng;
	struct virtio_net *net;
	struct console *console;
	char serial[64], terminal[64], agent[64];
	bool off;			/* the guest powered off */
};

static void must(int rc, const struct error *err)
{
	if (rc)
		fail_msg("%s", err->text);
}

static void event_came(struct machine *m, enum machine_event e)
{
	assert_int_equal(e, MACHINE_SHUTDOWN);
	((struct vm *)m)->off = true;
}

static void nap(void)
{
	io_sleep(loop_io(loop), 5000000);
}

static void add_disk(struct vm *v)
{
	struct error err = ERROR_INIT;
	struct blk_options o;
	char text[256];

	snprintf(text, sizeof(text), "%s,id=d,queues=2", server.uri);
	must(blk_parse(text, &o, &err), &err);
	must(blk_add(&v->m, &o, &v->blk, &err), &err);
	blk_options_clear(&o);
}

static struct vm *make(void)
{
	static unsigned serial;
	struct vm *v = calloc(1, sizeof(*v));
	struct console_config ports = { .terminal = v->terminal, .agent = v->agent };
	struct error err = ERROR_INIT;
	char where[80];

	serial++;
	snprintf(v->serial, sizeof(v->serial), "%s/serial%u", dir, serial);
	snprintf(v->terminal, sizeof(v->terminal), "%s/terminal%u", dir, serial);
	snprintf(v->agent, sizeof(v->agent), "%s/agent%u", dir, serial);
	snprintf(where, sizeof(where), "file:%s", v->serial);
	must(machine_make(&v->m, &config, &err), &err);
	v->m.event = event_came;
	must(serial_start(&v->m, where, &err), &err);
	add_disk(v);
	must(rng_add(&v->m, &v->rng, &err), &err);
	must(console_start(&v->m, &ports, &v->console, &err), &err);
	must(virtio_net_add(&v->m, "user,restrict=on", 0, &v->net, &err), &err);
	must(machine_boot(&v->m, &err), &err);
	return v;
}

static void end(struct vm *v)
{
	machine_pause(&v->m);
	console_end(v->console);
	serial_end(&v->m);
	virtio_net_end(v->net);
	disk_cancel(blk_disk(v->blk));
	blk_remove(v->blk);
	rng_remove(v->rng);
	machine_end(&v->m);
	unlink(v->serial);
	free(v);
}

static const char *said(const struct vm *v)
{
	static char bytes[1 << 20];
	FILE *f = fopen(v->serial, "r");
	size_t n = fread(bytes, 1, sizeof(bytes) - 1, f);

	fclose(f);
	bytes[n] = 0;
	return bytes;
}

static unsigned requests(void)
{
	return __atomic_load_n(&server.requests, __ATOMIC_SEQ_CST);
}

/* Until the server got N more requests. */
static void work(struct vm *v, unsigned n)
{
	unsigned before = requests();

	for (unsigned ms = 0; requests() - before < n; ms += 5) {
		if (v->off || ms > PATIENCE_MS)
			fail_msg("%u requests in %u ms: %s", requests() - before, ms, said(v));
		nap();
	}
}

static void fault(int *flag, int value)
{
	__atomic_store_n(flag, value, __ATOMIC_SEQ_CST);
}

/* The server has got a request, and does not answer. */
static void stall(struct vm *v)
{
	unsigned ms = 0;

	fault(&server.stall, 1);
	for (; !__atomic_load_n(&server.stalled, __ATOMIC_SEQ_CST) && ms < PATIENCE_MS; ms += 5)
		nap();
	assert_false(v->off);
}

static struct machine_state *save(struct vm *v, int want)
{
	struct machine_state *s = malloc(sizeof(*s));
	struct error err = ERROR_INIT;
	int rc = machine_save(&v->m, s, &err);

	if (rc != want)
		fail_msg("%d, not %d: %s", rc, want, err.text);
	return s;
}

/* Of a machine at rest.  Where this host stands still the server's answers do not come in the time
 * that a pause gives them: then once more. */
static struct machine_state *saved(struct vm *v)
{
	struct machine_state *s = malloc(sizeof(*s));
	struct error err = ERROR_INIT;
	int rc;

	for (unsigned i = 0; (rc = machine_save(&v->m, s, &err)) == -EBUSY && i < 100; i++) {
		machine_run(&v->m);
		nap();
		machine_pause(&v->m);
	}
	must(rc, &err);
	return s;
}

static unsigned under_way(const struct machine_state *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < PCI_DEVICES_MAX; i++)
		for (unsigned j = 0; j < VIRTIO_QUEUES_MAX; j++)
			for (unsigned k = 0; k < QUEUE_SIZE_MAX / 64; k++)
				n += (unsigned)__builtin_popcountll(s->device[i].queue[j].taken[k]);
	return n;
}

/* Another machine with V's memory and state; V is no more. */
static struct vm *move(struct vm *v)
{
	struct machine_state *s = saved(v);
	struct error err = ERROR_INIT;
	struct vm *next = make();

	memcpy(next->m.memory.base, v->m.memory.base, v->m.memory.size);
	end(v);
	must(machine_load(&next->m, s, &err), &err);
	assert_int_equal(next->m.state, RUN_PAUSED);
	machine_run(&next->m);
	free(s);
	return next;
}

/* The guest is told that it is enough: it reads all once more, and is content. */
static void pass(struct vm *v)
{
	machine_powerdown(&v->m);
	for (unsigned ms = 0; !(v->off && strstr(said(v), "PASS")) && ms < PATIENCE_MS; ms += 5)
		nap();
	assert_non_null(strstr(said(v), "PASS"));
	assert_true(v->off);
	end(v);
}

/* -- scripts, each a coroutine on the loop ---------------------------------------------------- */

/* From one machine to the next, with requests that the server answers in time. */
static void moves(void *arg)
{
	struct vm *v = make();

	machine_run(&v->m);
	for (unsigned i = 0; i < 4; i++) {
		work(v, 500);
		machine_pause(&v->m);
		v = move(v);
	}
	work(v, 500);
	pass(v);
	loop_stop(loop);
}

/* The server dies under requests: they are done again, by the machine that has loaded them. */
static void moves_without_server(void *arg)
{
	struct vm *v = make();

	machine_run(&v->m);
	for (unsigned i = 0; i < 3; i++) {
		struct machine_state *s;

		work(v, 500);
		stall(v);
		fault(&server.gone, 1);
		for (unsigned ms = 0; __atomic_load_n(&server.stalled, __ATOMIC_SEQ_CST) && ms < PATIENCE_MS; ms += 5)
			nap();
		machine_pause(&v->m);
		s = saved(v);
		assert_in_range(under_way(s), 1, 16);
		free(s);
		fault(&server.stall, 0);
		fault(&server.gone, 0);
		v = move(v);
	}
	work(v, 500);
	pass(v);
	loop_stop(loop);
}

static uint64_t sum(const struct vm *v)
{
	const uint64_t *p = (const uint64_t *)v->m.memory.base;
	uint64_t n = 0;

	for (size_t i = 0; i < v->m.memory.size / 8; i++)
		n = (n ^ p[i]) * 0x9e3779b97f4a7c15ull;
	return n;
}

static int client(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(a.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(send(fd, "hello", 5, 0), 5);
	return fd;
}

/* A paused machine's memory does not change: not when the server answers reads that were under
 * way, not when it dies, not when clients come. */
static void rests(void *arg)
{
	struct vm *v = make();
	uint64_t before;
	int a, b;

	machine_run(&v->m);
	for (unsigned how = 0; how < 3; how++) {
		work(v, 300);
		if (how)
			stall(v);
		machine_pause(&v->m);
		before = sum(v);
		a = client(v->terminal);
		b = client(v->agent);
		fault(how == 1 ? &server.stall : &server.gone, how == 2);
		for (unsigned i = 0; i < 20; i++)
			nap();
		assert_int_equal(sum(v), before);
		fault(&server.stall, 0);
		fault(&server.gone, 0);
		close(a);
		close(b);
		assert_int_equal(sum(v), before);
		machine_run(&v->m);
	}
	work(v, 300);
	pass(v);
	loop_stop(loop);
}

/* A server that is only slow: it may still do what it got. */
static void slow_server(void *arg)
{
	struct vm *v = make();

	machine_run(&v->m);
	work(v, 100);
	stall(v);
	machine_pause(&v->m);
	free(save(v, -EBUSY));
	fault(&server.stall, 0);
	machine_run(&v->m);
	work(v, 100);
	free(save(v, -EINVAL));			/* it runs */
	pass(v);
	loop_stop(loop);
}

static unsigned chance(unsigned below)
{
	seed = seed * 1103515245u + 12345u;
	return (seed >> 8) % below;
}

/* Some bytes of one part of S. */
static void damage(struct machine_state *s, unsigned devices)
{
	struct device_state *d = &s->device[chance(devices)];
	const struct { void *at; size_t len; } part[] = {
		{ s, offsetof(struct machine_state, interrupts) },
		{ &s->interrupts, sizeof(s->interrupts) }, { &s->platform, sizeof(s->platform) },
		{ &s->cmos, sizeof(s->cmos) }, { &s->serial, sizeof(s->serial) },
		{ &d->pci, sizeof(d->pci) }, { &d->virtio, sizeof(d->virtio) },
		{ &d->queue[0], 6 * sizeof(d->queue[0]) }, { &d->console, sizeof(d->console) },
		{ &s->vcpu[0], sizeof(s->vcpu[0]) },
	};
	unsigned p = chance(sizeof(part) / sizeof(part[0]));

	for (unsigned n = 1 + chance(3); n; n--)
		((uint8_t *)part[p].at)[chance((unsigned)part[p].len)] ^= 1u << chance(8);
}

#define REFUSED(field, value)								\
	do {										\
		*bad = *s;								\
		bad->field = value;							\
		assert_int_equal(machine_load(&v->m, bad, &err), -EINVAL);		\
		v->m.state = RUN_PAUSED;						\
	} while (0)

static void refuse(struct vm *v, const struct machine_state *s, struct machine_state *bad)
{
	struct error err = ERROR_INIT;

	REFUSED(version, 2);
	REFUSED(n_vcpus, 1);
	REFUSED(n_vcpus, 1000);
	REFUSED(memory, MEMORY - 4096);
	REFUSED(slots, 1);
	REFUSED(has_fw_cfg, 1);
	REFUSED(clock_valid, 2);
	REFUSED(interrupts.version, 2);
	REFUSED(interrupts.chip[1].chip_id, 7);
	REFUSED(platform.version, 0);
	REFUSED(platform.status, 0xffff);
	REFUSED(cmos.version, 0);
	REFUSED(cmos.index, 128);
	REFUSED(cmos.shown, INT64_MAX);
	REFUSED(serial.version, 9);
	REFUSED(serial.rx_at, 16);
	REFUSED(serial.rx_n, 17);
	REFUSED(vcpu[0].version, 0);
	REFUSED(vcpu[1].n_msrs, VCPU_MSRS_MAX + 1);
	REFUSED(vcpu[1].msr[0].index, 0xdeadbeef);
	REFUSED(device[0].pci.config[0], 0);
	REFUSED(device[1].pci.version, 2);
	REFUSED(device[1].pci.n_vectors, 64);
	REFUSED(device[1].pci.vector[0].masked, 2);
	REFUSED(device[1].pci.vector[0].addr, 0xfee00001);
	REFUSED(device[1].virtio.version, 2);
	REFUSED(device[1].virtio.id, 4);
	REFUSED(device[1].virtio.n_queues, 1);
	REFUSED(device[1].virtio.acked, UINT64_MAX);
	REFUSED(device[1].virtio.status, 4);
	REFUSED(device[1].virtio.active, 2);
	REFUSED(device[1].virtio.active, 0);
	REFUSED(device[1].virtio.isr, 4);
	REFUSED(device[1].virtio.config_vector, 3);
	REFUSED(device[1].virtio.config[20], 3);
	REFUSED(device[1].queue[0].version, 0);
	REFUSED(device[1].queue[0].size, 0);
	REFUSED(device[1].queue[0].size, 100);
	REFUSED(device[1].queue[0].size, 2048);
	REFUSED(device[1].queue[0].enabled, 2);
	REFUSED(device[1].queue[0].broken, 2);
	REFUSED(device[1].queue[0].vector, 200);
	REFUSED(device[1].queue[0].desc, MEMORY - 16);
	REFUSED(device[1].queue[0].used, UINT64_MAX - 3);
	REFUSED(device[1].queue[0].next_used, s->device[1].queue[0].next_avail + 1);
	REFUSED(device[1].queue[0].taken[0], 1);
	REFUSED(device[1].queue[0].taken[QUEUE_SIZE_MAX / 64 - 1], 1ull << 63);
	REFUSED(device[1].queue[1].taken[0], 1);
	REFUSED(device[2].virtio.n_queues, 2);
}

/* Damaged states are refused, or harmless, whatever they say; then the true one goes on. */
static void hostile(void *arg)
{
	const unsigned rounds = getenv("MERINO_SOAK") ? 50000 : 400;
	struct machine_state *s, *bad = malloc(sizeof(*bad));
	struct error err = ERROR_INIT;
	struct vm *v = make(), *other = make();
	unsigned refused = 0;

	machine_run(&v->m);
	work(v, 500);
	machine_pause(&v->m);
	s = saved(v);
	memcpy(other->m.memory.base, v->m.memory.base, v->m.memory.size);
	refuse(other, s, bad);
	for (unsigned i = 0; i < rounds; i++) {
		*bad = *s;
		damage(bad, 5);
		refused += machine_load(&other->m, bad, &err) != 0;
		other->m.state = RUN_PAUSED;
	}
	print_message("%u of %u damaged states are refused\n", refused, rounds);
	assert_in_range(refused, rounds / 20, rounds);
	must(machine_load(&other->m, s, &err), &err);
	end(v);
	machine_run(&other->m);
	work(other, 500);
	pass(other);
	free(s);
	free(bad);
	loop_stop(loop);
}

/* -- how they are run --------------------------------------------------------------------------- */

static void (*script)(void *arg);

static void begin(struct loop_msg *msg)
{
	co_start(script, NULL);
}

static void run(void (*fn)(void *arg))
{
	struct loop_msg msg = { .fn = begin };
	struct error err = ERROR_INIT;

	if (access("/dev/kvm", R_OK | W_OK)) {
		print_message("no /dev/kvm here\n");
		skip();
	}
	script = fn;
	nbd_server_start(&server, DISK);
	loop = loop_new("test", &err);
	assert_non_null(loop);
	loop_post(loop, &msg);
	loop_run(loop);
	loop_free(loop);
	nbd_server_stop(&server);
}

static void test_moves(void **unused)
{
	run(moves);
}

static void test_without_server(void **unused)
{
	run(moves_without_server);
}

static void test_rests(void **unused)
{
	run(rests);
}

static void test_slow_server(void **unused)
{
	run(slow_server);
}

static void test_hostile(void **unused)
{
	run(hostile);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_moves), cmocka_unit_test(test_without_server),
		cmocka_unit_test(test_rests), cmocka_unit_test(test_slow_server), cmocka_unit_test(test_hostile),
	};
	const char *build = getenv("BUILD");
	int rc;

	log_init("test", LOG_LEVEL_ERROR);
	if (!mkdtemp(dir))
		return 1;
	snprintf(kernel, sizeof(kernel), "%s/guest/payload", build ? build : "build");
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	rmdir(dir);
	return rc;
}
