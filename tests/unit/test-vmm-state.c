/* SPDX-License-Identifier: BSD-3-Clause */
/* A vCPU's state on real KVM: saved in the middle of a guest's work, put back over a CPU that
 * was reset meanwhile, and the guest goes on as if nothing had been.  Without /dev/kvm: skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/co.h"
#include "common/io.h"
#include "common/loop.h"
#include "vmm/machine.h"
#include "vmm/serial.h"
#include "vmm/vcpu.h"

static char kernel[512], log_path[] = "/tmp/test-vmm-state-XXXXXX", where[64];
static struct machine_config config = {
	.vcpus = 2, .memory = 64 << 20, .kernel = kernel, .cmdline = "cpus=2 count=1500 button",
};
static struct machine m;
static enum machine_event last_event;
static unsigned n_events;
static struct vcpu_state state[2];

static void event_came(struct machine *machine, enum machine_event e)
{
	last_event = e;
	n_events++;
}

static void must(int rc, const struct error *err)
{
	if (rc)
		fail_msg("%s", err->text);
}

static bool log_has(const char *text)
{
	static char bytes[65536];
	FILE *f = fopen(log_path, "r");
	size_t n = fread(bytes, 1, sizeof(bytes) - 1, f);

	fclose(f);
	bytes[n] = 0;
	return strstr(bytes, text);
}

static void wait_ms(unsigned ms)
{
	io_sleep(loop_io(m.main), ms * 1000000ull);
}

static void swap_states(void)
{
	struct error err = ERROR_INIT;

	for (unsigned i = 0; i < 2; i++)
		must(vcpu_save(&m.vcpu[i], &state[i], &err), &err);
	assert_int_equal(state[0].version, 1);
	assert_true(state[0].n_msrs > 10);
	assert_in_range(state[0].regs.rip, 0x100000, 0x200000);
	vcpus_reset(&m);
	for (unsigned i = 0; i < 2; i++)
		must(vcpu_load(&m.vcpu[i], &state[i], &err), &err);
	state[0].version = 2;
	assert_true(vcpu_load(&m.vcpu[0], &state[0], &err) < 0);
}

static void script(void *arg)
{
	struct error err = ERROR_INIT;

	must(machine_make(&m, &config, &err), &err);
	m.event = event_came;
	must(serial_start(&m, where, &err), &err);
	must(machine_boot(&m, &err), &err);
	machine_run(&m);
	for (unsigned ms = 0; ms < 100000 && !log_has("cpus 2"); ms += 20)
		wait_ms(20);
	for (unsigned i = 0; i < 5; i++) {
		machine_pause(&m);
		assert_int_equal(m.state, RUN_PAUSED);
		swap_states();
		machine_run(&m);
		wait_ms(20);
	}
	machine_powerdown(&m);
	for (unsigned ms = 0; ms < 100000 && !n_events; ms += 20)
		wait_ms(20);
	assert_int_equal(n_events, 1);
	assert_int_equal(last_event, MACHINE_SHUTDOWN);
	assert_int_equal(m.state, RUN_SHUTDOWN);
	serial_end(&m);
	loop_stop(m.main);
}

static void begin(struct loop_msg *msg)
{
	co_start(script, NULL);
}

static void test_state(void **unused)
{
	struct loop_msg msg = { .fn = begin };
	struct error err = ERROR_INIT;
	struct loop *loop;

	if (access("/dev/kvm", R_OK | W_OK)) {
		print_message("no /dev/kvm here\n");
		skip();
	}
	loop = loop_new("test", &err);
	assert_non_null(loop);
	loop_post(loop, &msg);
	loop_run(loop);
	assert_true(log_has("count 1500 million"));
	assert_true(log_has("PASS"));
	machine_end(&m);
	loop_free(loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_state) };
	const char *build = getenv("BUILD");
	int fd = mkstemp(log_path), rc;

	if (fd < 0)
		return 1;
	snprintf(kernel, sizeof(kernel), "%s/guest/payload", build ? build : "build");
	snprintf(where, sizeof(where), "file:%s", log_path);
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	close(fd);
	unlink(log_path);
	return rc;
}
