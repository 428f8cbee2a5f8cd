/* SPDX-License-Identifier: BSD-3-Clause */
/* main: the life of merinod.
 *
 *	options ─▶ background ─▶ pid file, state ─▶ sandbox ─▶ loops ─▶ images, exports
 *	        ─▶ user ─▶ ready ─▶ … ─▶ end
 *
 * The main thread's loop serves the control sockets, the listeners and the
 * handshakes; disks live on the other loops.  What the options ask for runs in
 * a coroutine, because opening images waits.  The end runs in one, too, and in
 * the opposite order; it is the same after SIGTERM, quit or a failed start.
 */
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/job.h"
#include "backup/view.h"
#include "bitmaps/bitmap.h"
#include "common/authz.h"
#include "common/log.h"
#include "common/loop.h"
#include "format/throttle.h"
#include "nbd-server/activation.h"
#include "common/objects.h"
#include "common/secret.h"
#include "common/tls-creds.h"
#include "nbd-server/checkpoints.h"
#include "nbd-server/cmdline.h"
#include "nbd-server/commands.h"
#include "nbd-server/daemon.h"
#include "nbd-server/events.h"
#include "nbd-server/export.h"
#include "nbd-server/iothread.h"
#include "nbd-server/listener.h"
#include "nbd-server/monitor.h"
#include "nbd-server/notify.h"
#include "nbd-server/process.h"
#include "nbd-server/state.h"
#include "common/user.h"

struct daemon the_daemon;

static struct cmdline cmdline;
static bool starting = true, quit_wanted, ending;
static int exit_status;

/* -- the end ------------------------------------------------------------------ */

static void end_run(void *arg)
{
	monitor_quiesce();
	listener_stop_all(NULL);
	export_close_all();
	job_cancel_all();
	checkpoint_end_all();
	command_nodes_close();
	monitor_close_all();
	chardev_close_all();
	fds_close_all();
	quick_end();
	object_del_all();
	loop_stop(the_daemon.main);
}

void daemon_quit(void)
{
	quit_wanted = true;
	if (starting || ending)
		return;
	ending = true;
	notify_stopping();
	co_start(end_run, NULL);
}

static void signal_came(int signo)
{
	log_debug("signal=%d", signo);
	daemon_quit();
}

/* -- the beginning ------------------------------------------------------------- */

static void fail(const struct error *err)
{
	fprintf(stderr, "merinod: %s\n", err->text);
	if (err->hint[0])
		fprintf(stderr, "merinod: %s\n", err->hint);
	exit_status = 1;
}

static void start_run(void *arg)
{
	struct error err = ERROR_INIT;
	int rc = cmdline_run(&cmdline, &err);

	if (!rc)
		rc = user_drop(&err);
	if (!rc)
		rc = sandbox_finish(&cmdline.sandbox, &err);
	if (!rc)
		rc = state_started(&err);
	if (!rc)
		cmdline_sandbox_tell(&cmdline);
	/* Who waits for the file finds everything said and done. */
	if (!rc)
		rc = pidfile_write(&err);
	if (rc) {
		fail(&err);
	} else {
		listener_accept_all();
		monitor_admit_all();
		process_ready();
		notify_ready();
	}
	starting = false;
	if (rc || quit_wanted)
		daemon_quit();
}

static void start_message(struct loop_msg *m)
{
	co_start(start_run, NULL);
}

static int spawn_loops(struct error *err)
{
	struct daemon *d = &the_daemon;

	d->main = loop_new("main", err);
	if (!d->main)
		return err->code;
	if (loop_signals(d->main, signal_came, err))
		return err->code;
	d->disk_loops = calloc(cmdline.loops, sizeof(struct loop *));
	if (!d->disk_loops)
		return error_set(err, -ENOMEM, "Out of memory");
	while (d->n_disk_loops < cmdline.loops) {
		char name[32];

		snprintf(name, sizeof(name), "disk%u", d->n_disk_loops);
		d->disk_loops[d->n_disk_loops] = loop_spawn(name, err);
		if (!d->disk_loops[d->n_disk_loops])
			return err->code;
		d->n_disk_loops++;
	}
	return 0;
}

static void free_loops(void)
{
	struct daemon *d = &the_daemon;

	iothreads_end();
	while (d->n_disk_loops)
		loop_free(d->disk_loops[--d->n_disk_loops]);
	free(d->disk_loops);
	loop_free(d->main);
}

static int prepare(struct error *err)
{
	int rc = activation_take(err);

	if (!rc && cmdline.daemonize)
		rc = process_daemonize(err);

	if (!rc && cmdline.pidfile)
		rc = pidfile_take(cmdline.pidfile, err);
	if (!rc && cmdline.sandbox.user)
		rc = user_find(cmdline.sandbox.user, err);
	if (!rc)
		rc = state_open(&cmdline.state, err);
	if (!rc)
		rc = cmdline_sandbox(&cmdline, err);
	if (!rc)
		rc = spawn_loops(err);
	return rc;
}

/* What --object and object-add can make. */
static void register_classes(void)
{
	object_class_register(&authz_listfile_class);
	object_class_register(&authz_list_class);
	object_class_register(&authz_simple_class);
	object_class_register(&tls_creds_psk_class);
	object_class_register(&tls_creds_x509_class);
	object_class_register(&secret_class);
	object_class_register(&throttle_group_class);
	object_class_register(&iothread_class);
}

int main(int argc, char **argv)
{
	static struct loop_msg start = { .fn = start_message };
	struct error err = ERROR_INIT;

	log_init("merinod", LOG_LEVEL_INFO);
	signal(SIGPIPE, SIG_IGN);
	/* Large buffers go back to the system when they are freed. */
	mallopt(M_MMAP_THRESHOLD, 128 << 10);
	listener_init();
	cmdline_parse(&cmdline, argc, argv);
	graph_init(&the_daemon.graph);
	bitmaps_init();
	views_init();
	view_defaults(cmdline.fleece_dir, cmdline.fleece_max);
	register_classes();
	events_init();
	commands_job_init();
	commands_block_job_init();
	if (prepare(&err)) {
		fail(&err);
		quick_end();
	} else {
		loop_post(the_daemon.main, &start);
		loop_run(the_daemon.main);
	}
	free_loops();
	pidfile_drop();
	state_close();
	cmdline_free(&cmdline);
	return exit_status;
}
