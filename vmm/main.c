/* SPDX-License-Identifier: BSD-3-Clause */
/* main: the life of merino-vmm.
 *
 *	options ─▶ loop ─▶ machine ─▶ devices ─▶ kernel ─▶ vCPUs run ─▶ … ─▶ end
 *	        (sandbox begins)                       (sandbox is closed)
 *
 * The end is the same after a power-off, SIGTERM and a failed start.
 */
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/co.h"
#include "common/log.h"
#include "common/loop.h"
#include "vmm/cmdline.h"
#include "vmm/console.h"
#include "vmm/control.h"
#include "vmm/disk-dial.h"
#include "vmm/disks.h"
#include "vmm/serial.h"
#include "vmm/vcpu.h"
#include "vmm/virtio-net.h"
#include "vmm/virtio-rng.h"

static struct cmdline cmdline;
static struct machine machine;
static struct virtio_net *net[CMDLINE_NETS_MAX];
static struct disks disks;
static struct rng *rng;
static struct loop *loop;
static struct control *control;
static struct console *console;
static bool starting = true, quit_wanted, ending;
static int exit_status;

static void fail(const struct error *err)
{
	fprintf(stderr, "merino-vmm: %s\n", err->text);
	if (err->hint[0])
		fprintf(stderr, "merino-vmm: %s\n", err->hint);
	exit_status = 1;
}

/* -- the end: first what needs the loop, then the rest ------------------------------ */

static void end_run(void *arg)
{
	machine_pause(&machine);
	control_end(control);		/* first: nobody lets the CPUs go again */
	control = NULL;
	console_end(console);
	serial_end(&machine);
	loop_stop(loop);
}

static void end(void)
{
	for (unsigned i = 0; i < CMDLINE_NETS_MAX; i++)
		virtio_net_end(net[i]);
	disks_end(&disks);
	rng_remove(rng);
	machine_end(&machine);
}

static void quit(void)
{
	quit_wanted = true;
	if (starting || ending)
		return;
	ending = true;
	co_start(end_run, NULL);
}

/* Asked once more while it ends, it only goes on: the control socket may be gone already. */
static void shut_down(bool guest, const char *reason)
{
	if (ending)
		return;
	control_event_cause(control, "SHUTDOWN", guest, reason);
	quit();
}

static void signal_came(int signo)
{
	shut_down(false, "host-signal");
}

/* -- what happens ------------------------------------------------------------------ */

static void event_came(struct machine *m, enum machine_event e)
{
	if (ending)
		return;
	switch (e) {
	case MACHINE_RESET:
		if (m->config->no_reboot) {
			shut_down(true, "guest-reset");
			break;
		}
		machine_reset(m);
		control_event_cause(control, "RESET", true, "guest-reset");
		break;
	case MACHINE_CRASHED:
		exit_status = 1;
		shut_down(true, "guest-panic");
		break;
	case MACHINE_SHUTDOWN:
		shut_down(true, "guest-shutdown");
		break;
	case MACHINE_QUIT:
		shut_down(false, "host-ui");
		break;
	}
}

static pid_t thread_id(unsigned cpu)
{
	return machine.vcpu[cpu].tid;
}

/* The disks, and what every machine has besides. */
static int add_disks(struct error *err)
{
	int rc = disks_add(&disks, &machine, err);

	return rc ? rc : rng_add(&machine, &rng, err);
}

static void look_at_sizes(void)
{
	disks_look(&disks, &ending);
}

static int add_sockets(struct error *err)
{
	const struct console_config ports = { .terminal = cmdline.console, .agent = cmdline.agent };
	const struct control_config config = {
		.machine = &machine, .path = cmdline.qmp, .merinod = cmdline.merinod_qmp,
		.disks = disks.names, .n_disks = disks.n,
		.look = disks.n ? look_at_sizes : NULL, .quit = quit, .thread_id = thread_id,
	};
	int rc = control_start(&config, &control, err);

	if (!rc && (ports.terminal || ports.agent))
		rc = console_start(&machine, &ports, &console, err);
	return rc;
}

static int add_nets(struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < cmdline.nets.n && !rc; i++)
		rc = virtio_net_add(&machine, cmdline.nets.text[i], i, &net[i], err);
	return rc;
}

/* -- the beginning ----------------------------------------------------------------- */

static int build(struct error *err)
{
	int rc = machine_make(&machine, &cmdline.machine, err);

	machine.event = event_came;
	if (!rc)
		rc = serial_start(&machine, cmdline.serial, err);
	if (!rc)
		rc = add_disks(err);
	if (!rc)
		rc = add_sockets(err);
	if (!rc)
		rc = add_nets(err);
	if (!rc)
		rc = machine_boot(&machine, err);
	machine_close_unneeded(&machine);
	return rc ? rc : sandbox_finish(&cmdline, err);
}

static void start_run(void *arg)
{
	struct error err = ERROR_INIT;
	int rc = build(&err);

	if (rc)
		fail(&err);
	else if (!cmdline.paused)
		machine_run(&machine);
	starting = false;
	if (rc || quit_wanted)
		quit();
}

static void start_message(struct loop_msg *m)
{
	co_start(start_run, NULL);
}

/* A queue, a connection of a disk, one of the guest's to the world are a descriptor each, and
 * more: the usual soft limit, 1024, is that of select(2). */
static void more_descriptors(void)
{
	enum { ENOUGH = 8192 };
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) < 0 || r.rlim_cur >= ENOUGH)
		return;
	r.rlim_cur = r.rlim_max < ENOUGH ? r.rlim_max : ENOUGH;
	if (setrlimit(RLIMIT_NOFILE, &r) < 0)
		log_debug("%u descriptors are all", (unsigned)r.rlim_cur);
}

static int prepare(struct error *err)
{
	int rc = disks_parse(&disks, &cmdline.disks, err);

	more_descriptors();

	if (!rc)
		rc = sandbox_begin(&cmdline, &disks, err);
	if (!rc) {
		loop = loop_new("main", err);
		rc = loop ? loop_signals(loop, signal_came, err) : err->code;
	}
	return rc;
}

int main(int argc, char **argv)
{
	static struct loop_msg start = { .fn = start_message };
	struct error err = ERROR_INIT;

	log_init("merino-vmm", LOG_LEVEL_INFO);
	signal(SIGPIPE, SIG_IGN);
	mallopt(M_MMAP_THRESHOLD, 128 << 10);
	cmdline_parse(&cmdline, argc, argv);
	if (prepare(&err)) {
		fail(&err);
		disks_end(&disks);
		loop_free(loop);
		return 1;
	}
	loop_post(loop, &start);
	loop_run(loop);
	end();
	loop_free(loop);
	if (dial_left_any())
		_exit(exit_status);
	return exit_status;
}
