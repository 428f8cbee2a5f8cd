/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-machine: what programs ask of a virtual machine before they back up its
 * disks.  Its guests are the clients of writable exports: stop makes them wait.
 */
#include "nbd-server/commands.h"

#include <errno.h>

#include "common/loop.h"
#include "nbd-server/export.h"
#include "nbd-server/iothread.h"

#define STOP_LIMIT 5000000000ull	/* ns that requests may take to end */

static bool stopped;

COMMAND(command_query_status)
{
	*ret = json_object_new_object();
	json_object_object_add(*ret, "status", json_object_new_string(stopped ? "paused" : "running"));
	json_object_object_add(*ret, "singlestep", json_object_new_boolean(false));
	json_object_object_add(*ret, "running", json_object_new_boolean(!stopped));
	return 0;
}

COMMAND(command_query_name)
{
	return 0;
}

COMMAND(command_query_tpm)
{
	*ret = json_object_new_array();
	return 0;
}

COMMAND(command_query_iothreads)
{
	*ret = iothread_query();
	return 0;
}

struct stopping {
	struct export *export;
	int rc;
};

static void stop_on_loop(void *arg)
{
	struct stopping *s = arg;

	s->rc = export_stop(s->export, STOP_LIMIT);
}

static void resume_on_loop(void *arg)
{
	export_resume(arg);
}

static void resume_all(void)
{
	for (struct export *e = export_list(), *next; e; e = next) {
		next = e->next;
		if (!e->machine_stopped || !e->refs)
			continue;
		export_ref(e);
		e->machine_stopped = false;
		loop_call(e->loop, resume_on_loop, e);
		next = e->next;
		export_unref(e);
	}
}

static int stop_one(struct export *e)
{
	struct stopping s = { e };

	export_ref(e);
	loop_call(e->loop, stop_on_loop, &s);
	e->machine_stopped = !s.rc;
	export_unref(e);
	return s.rc;
}

int machine_stop_new(const char *id)
{
	struct export *e = export_find_id(id);

	return stopped && e && e->writable ? stop_one(e) : 0;
}

COMMAND(command_stop)
{
	if (stopped)
		return 0;
	for (struct export *e = export_next(0); e; e = export_next(e->serial)) {
		int rc = e->writable ? stop_one(e) : 0;

		if (rc) {
			error_set(err, rc, "The disk of export '%s' was busy all the time; nothing was stopped",
				  e->id);
			resume_all();
			return rc;
		}
	}
	stopped = true;
	qmp_event("STOP", NULL);
	return 0;
}

COMMAND(command_cont)
{
	if (!stopped)
		return 0;
	stopped = false;
	resume_all();
	qmp_event("RESUME", NULL);
	return 0;
}
