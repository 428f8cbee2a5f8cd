/* SPDX-License-Identifier: BSD-3-Clause */
/* main: the life of merino-vmm.
 *
 *	options ─▶ loop ─▶ machine ─▶ devices ─▶ kernel ─▶ vCPUs run ─▶ … ─▶ end
 *
 * The end is the same after a power-off, SIGTERM and a failed start.
 */
#include <malloc.h>
#include <signal.h>
#include <stdio.h>

#include "common/co.h"
#include "common/log.h"
#include "common/loop.h"
#include "vmm/cmdline.h"
#include "vmm/serial.h"

static struct cmdline cmdline;
static struct machine machine;
static struct loop *loop;
static int exit_status;

static void fail(const struct error *err)
{
	fprintf(stderr, "merino-vmm: %s\n", err->text);
	if (err->hint[0])
		fprintf(stderr, "merino-vmm: %s\n", err->hint);
	exit_status = 1;
}

static void signal_came(int signo)
{
	loop_stop(loop);
}

static void event_came(struct machine *m, enum machine_event e)
{
	switch (e) {
	case MACHINE_SHUTDOWN:
		loop_stop(loop);
		break;
	case MACHINE_RESET:
		if (m->config->no_reboot)
			loop_stop(loop);
		else
			machine_reset(m);
		break;
	case MACHINE_CRASHED:
		exit_status = 1;
		loop_stop(loop);
		break;
	}
}

static int build(struct error *err)
{
	int rc = machine_make(&machine, &cmdline.machine, err);

	machine.event = event_came;
	if (!rc)
		rc = serial_start(&machine, cmdline.serial, err);
	if (!rc)
		rc = machine_boot(&machine, err);
	return rc;
}

static void start_run(void *arg)
{
	struct error err = ERROR_INIT;

	if (build(&err)) {
		fail(&err);
		loop_stop(loop);
	} else if (!cmdline.paused) {
		machine_run(&machine);
	}
}

static void start_message(struct loop_msg *m)
{
	co_start(start_run, NULL);
}

static void end(void)
{
	machine_pause(&machine);
	serial_end(&machine);
	machine_end(&machine);
}

int main(int argc, char **argv)
{
	static struct loop_msg start = { .fn = start_message };
	struct error err = ERROR_INIT;

	log_init("merino-vmm", LOG_LEVEL_INFO);
	signal(SIGPIPE, SIG_IGN);
	mallopt(M_MMAP_THRESHOLD, 128 << 10);
	cmdline_parse(&cmdline, argc, argv);
	loop = loop_new("main", &err);
	if (!loop || loop_signals(loop, signal_came, &err)) {
		fail(&err);
		loop_free(loop);
		return 1;
	}
	loop_post(loop, &start);
	loop_run(loop);
	end();
	loop_free(loop);
	return exit_status;
}
