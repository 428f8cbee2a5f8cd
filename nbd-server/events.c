/* SPDX-License-Identifier: BSD-3-Clause */
/* events: the table of events, and those that begin on a disk's loop.
 *
 * Whoever has something to tell must not wait for the main loop: the event is made
 * where it happens and posted.  At most PENDING_MAX are on their way; what comes on
 * top is dropped, since a storm of events says no more than its beginning.
 */
#include "nbd-server/events.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "common/loop.h"
#include "format/node.h"
#include "nbd-server/daemon.h"
#include "nbd-server/export.h"
#include "nbd-server/qmp-types.h"

#define PENDING_MAX 256
#define IO_ERROR_PERIOD 1000000000ull	/* ns, QEMU's */

/* -- the table -------------------------------------------------------------------- */

static const char *const operations[] = { "read", "write", NULL };
static const char *const actions[] = { "ignore", "report", "stop", NULL };
static const struct qmp_arg data_corrupted[] = {
	{ "device", QMP_STR, true },
	{ "node-name", QMP_STR, false },
	{ "msg", QMP_STR, true },
	{ "offset", QMP_INT, false },
	{ "size", QMP_INT, false },
	{ "fatal", QMP_BOOL, true },
	{ NULL },
};

static const struct qmp_arg data_io_error[] = {
	{ "qom-path", QMP_STR, false },
	{ "device", QMP_STR, true },
	{ "node-name", QMP_STR, false },
	{ "operation", QMP_STR, true, .values = operations },
	{ "action", QMP_STR, true, .values = actions },
	{ "nospace", QMP_BOOL, false },
	{ "reason", QMP_STR, true },
	{ NULL },
};

static const struct qmp_arg data_threshold[] = {
	{ "node-name", QMP_STR, true },
	{ "amount-exceeded", QMP_INT, true },
	{ "write-threshold", QMP_INT, true },
	{ NULL },
};

static const struct qmp_arg data_job[] = {
	{ "id", QMP_STR, true },
	{ "status", QMP_STR, true, .values = qmp_job_states },
	{ NULL },
};

static const struct qmp_arg data_block_job[] = {
	{ "type", QMP_STR, true, .values = qmp_job_types },
	{ "device", QMP_STR, true },
	{ "len", QMP_INT, true },
	{ "offset", QMP_INT, true },
	{ "speed", QMP_INT, true },
	{ NULL },
};

static const struct qmp_arg data_block_job_completed[] = {
	{ "type", QMP_STR, true, .values = qmp_job_types },
	{ "device", QMP_STR, true },
	{ "len", QMP_INT, true },
	{ "offset", QMP_INT, true },
	{ "speed", QMP_INT, true },
	{ "error", QMP_STR, false },
	{ NULL },
};

static const struct qmp_arg data_block_job_error[] = {
	{ "device", QMP_STR, true },
	{ "operation", QMP_STR, true, .values = operations },
	{ "action", QMP_STR, true, .values = actions },
	{ NULL },
};

static const struct qmp_arg data_block_job_pending[] = {
	{ "type", QMP_STR, true, .values = qmp_job_types },
	{ "id", QMP_STR, true },
	{ NULL },
};

static const struct qmp_arg data_export[] = {
	{ "id", QMP_STR, true },
	{ NULL },
};

static const char *const checkpoint_reasons[] = { "command", "lease", "quit", NULL };

static const struct qmp_arg data_checkpoint_ended[] = {
	{ "id", QMP_STR, true },
	{ "success", QMP_BOOL, true },
	{ "reason", QMP_STR, true, .values = checkpoint_reasons },
	{ NULL },
};

static const struct qmp_arg data_checkpoint_broken[] = {
	{ "id", QMP_STR, true },
	{ "reason", QMP_STR, true },
	{ NULL },
};

const struct qmp_event_def qmp_events[] = {
	{ "BLOCK_IMAGE_CORRUPTED", data_corrupted },
	{ "BLOCK_IO_ERROR", data_io_error },
	{ "BLOCK_WRITE_THRESHOLD", data_threshold },
	{ "BLOCK_JOB_COMPLETED", data_block_job_completed },
	{ "BLOCK_JOB_CANCELLED", data_block_job },
	{ "BLOCK_JOB_ERROR", data_block_job_error },
	{ "BLOCK_JOB_READY", data_block_job },
	{ "BLOCK_JOB_PENDING", data_block_job_pending },
	{ "JOB_STATUS_CHANGE", data_job },
	{ "BLOCK_EXPORT_DELETED", data_export },
	{ "CHECKPOINT_ENDED", data_checkpoint_ended },
	{ "CHECKPOINT_BROKEN", data_checkpoint_broken },
	{ "STOP", NULL },
	{ "RESUME", NULL },
	{ NULL },
};

/* -- posting ---------------------------------------------------------------------- */

struct event {
	struct loop_msg msg;
	const char *name;
	struct json_object *data;
};

static _Atomic unsigned pending;

static void event_arrived(struct loop_msg *m)
{
	struct event *e = (struct event *)m;

	pending--;
	qmp_event(e->name, e->data);
	free(e);
}

/* DATA is consumed.  Any loop. */
static void qmp_event_post(const char *name, struct json_object *data)
{
	struct event *e = atomic_fetch_add(&pending, 1) < PENDING_MAX ? malloc(sizeof(*e)) : NULL;

	if (!e) {
		pending--;
		json_object_put(data);
		return;
	}
	*e = (struct event){ .msg.fn = event_arrived, .name = name, .data = data };
	loop_post(the_daemon.main, &e->msg);
}

static void add_str(struct json_object *o, const char *key, const char *value)
{
	json_object_object_add(o, key, json_object_new_string(value));
}

static void add_u64(struct json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_uint64(value));
}

/* -- images ------------------------------------------------------------------------- */

static void corrupted(struct node *n, const char *msg, uint64_t off, uint64_t len, bool fatal)
{
	struct json_object *data = json_object_new_object();

	add_str(data, "device", "");
	if (n->name[0])
		add_str(data, "node-name", n->name);
	add_str(data, "msg", msg);
	if (off != UINT64_MAX)
		add_u64(data, "offset", off);
	if (len != UINT64_MAX)
		add_u64(data, "size", len);
	json_object_object_add(data, "fatal", json_object_new_boolean(fatal));
	qmp_event_post("BLOCK_IMAGE_CORRUPTED", data);
}

static void threshold_exceeded(struct node *n, uint64_t amount, uint64_t threshold)
{
	struct json_object *data = json_object_new_object();

	add_str(data, "node-name", n->name);
	add_u64(data, "amount-exceeded", amount);
	add_u64(data, "write-threshold", threshold);
	qmp_event_post("BLOCK_WRITE_THRESHOLD", data);
}

void events_init(void)
{
	static const struct node_event_hooks hooks = {
		.corrupted = corrupted,
		.threshold_exceeded = threshold_exceeded,
	};

	node_event_hooks = &hooks;
}

/* -- clients' requests that fail ------------------------------------------------------ */

static void tell_io_error(const struct export *e)
{
	const struct export_errors *x = &e->errors;
	struct json_object *data = json_object_new_object();
	char path[EXPORT_QDEV_SIZE];

	add_str(data, "qom-path", export_qdev(e, path, sizeof(path)));
	add_str(data, "device", "");
	add_str(data, "node-name", e->node->name);
	add_str(data, "operation", operations[x->is_write]);
	add_str(data, "action", "report");
	json_object_object_add(data, "nospace", json_object_new_boolean(x->rc == -ENOSPC));
	add_str(data, "reason", strerror(-x->rc));
	qmp_event_post("BLOCK_IO_ERROR", data);
}

/* The period is over: what came last in it is told now. */
static void period_over(struct loop_timer *t)
{
	struct export_errors *x = (struct export_errors *)t;

	if (!x->held_back)
		return;
	x->held_back = false;
	tell_io_error(x->export);
	loop_timer_set(t, loop_now() + IO_ERROR_PERIOD, period_over);
}

void event_io_error(struct export *e, bool is_write, int rc)
{
	struct export_errors *x = &e->errors;

	x->export = e;
	x->is_write = is_write;
	x->rc = rc;
	if (x->timer.armed) {
		x->held_back = true;
		return;
	}
	tell_io_error(e);
	loop_timer_set(&x->timer, loop_now() + IO_ERROR_PERIOD, period_over);
}

void event_io_errors_end(struct export *e)
{
	loop_timer_cancel(&e->errors.timer);
	if (e->errors.held_back)
		tell_io_error(e);
	e->errors.held_back = false;
}
