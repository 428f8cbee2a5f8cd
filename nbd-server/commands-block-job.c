/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-block-job: query-block-jobs, block-job-*, and the events BLOCK_JOB_*: what
 * QEMU had for jobs that work on disks before it had jobs in general, and what most
 * clients still use.  Such jobs take the job-* commands, too.
 */
#include "nbd-server/commands.h"

#include <errno.h>

#include "backup/job.h"

static const char *const job_types[] = {
	"commit", "stream", "mirror", "backup", "create", "amend", "snapshot-load",
	"snapshot-save", "snapshot-delete", NULL,
};

static const char *const copy_modes[] = { "background", "write-blocking", NULL };

static const struct qmp_arg mirror_change[] = {
	{ "copy-mode", QMP_STR, true, "the only change there is, and no job here takes it",
	  .values = copy_modes },
	{ NULL },
};

static const struct qmp_case *change_cases(void)
{
	static struct qmp_case cases[sizeof(job_types) / sizeof(job_types[0])];

	for (unsigned i = 0; job_types[i]; i++)
		cases[i] = (struct qmp_case){ job_types[i],
					      i == 2 ? mirror_change : args_nothing };
	return cases;
}

const struct qmp_arg args_block_job[] = {
	{ "device", QMP_STR, true, "the job" },
	{ NULL },
};

const struct qmp_arg args_block_job_id[] = {
	{ "id", QMP_STR, true, "the job" },
	{ NULL },
};

const struct qmp_arg args_block_job_cancel[] = {
	{ "device", QMP_STR, true, "the job" },
	{ "force", QMP_BOOL, false, "also when it is paused; default false" },
	{ NULL },
};

const struct qmp_arg args_block_job_speed[] = {
	{ "device", QMP_STR, true, "the job" },
	{ "speed", QMP_INT, true, "bytes a second; 0: no limit" },
	{ NULL },
};

const struct qmp_arg args_block_job_change[] = {
	{ "id", QMP_STR, true, "the job" },
	{ "type", QMP_STR, true, "its type", .cases = change_cases },
	{ NULL },
};

/* -- events --------------------------------------------------------------------------- */

static void add_str(struct json_object *o, const char *key, const char *v)
{
	json_object_object_add(o, key, json_object_new_string(v));
}

static void add_u64(struct json_object *o, const char *key, uint64_t v)
{
	json_object_object_add(o, key, json_object_new_uint64(v));
}

static void add_bool(struct json_object *o, const char *key, bool v)
{
	json_object_object_add(o, key, json_object_new_boolean(v));
}

static struct json_object *progress_data(const struct job *j)
{
	struct json_object *data = json_object_new_object();

	add_str(data, "device", j->id);
	add_u64(data, "len", j->total);
	add_u64(data, "offset", j->current);
	add_u64(data, "speed", j->speed);
	add_str(data, "type", j->driver->type);
	return data;
}

static void tell_pending(const struct job *j)
{
	struct json_object *data = json_object_new_object();

	add_str(data, "type", j->driver->type);
	add_str(data, "id", j->id);
	qmp_event("BLOCK_JOB_PENDING", data);
}

static void tell_completed(const struct job *j)
{
	struct json_object *data = progress_data(j);

	if (j->error.code)
		add_str(data, "error", j->error.text);
	qmp_event("BLOCK_JOB_COMPLETED", data);
}

static void tell_event(const struct job *j, enum job_event e)
{
	switch (e) {
	case JOB_EVENT_READY:
		qmp_event("BLOCK_JOB_READY", progress_data(j));
		break;
	case JOB_EVENT_PENDING:
		tell_pending(j);
		break;
	case JOB_EVENT_COMPLETED:
		tell_completed(j);
		break;
	case JOB_EVENT_CANCELLED:
		qmp_event("BLOCK_JOB_CANCELLED", progress_data(j));
		break;
	}
}

static void tell_error(const struct job *j, bool is_read, enum job_action action)
{
	static const char *const actions[] = {
		[JOB_IGNORE] = "ignore", [JOB_REPORT] = "report", [JOB_STOP] = "stop",
	};
	struct json_object *data = json_object_new_object();

	add_str(data, "device", j->id);
	add_str(data, "operation", is_read ? "read" : "write");
	add_str(data, "action", actions[action]);
	qmp_event("BLOCK_JOB_ERROR", data);
}

void commands_block_job_init(void)
{
	job_event_hook = tell_event;
	job_error_hook = tell_error;
	job_lock_hook = qmp_lock_take;
}

/* -- query-block-jobs ------------------------------------------------------------------ */

static struct json_object *block_job_info(const struct job *j)
{
	static const char *const statuses[] = {
		[JOB_IO_OK] = "ok", [JOB_IO_FAILED] = "failed", [JOB_IO_NOSPACE] = "nospace",
	};
	struct json_object *o = progress_data(j);
	bool still = j->status == JOB_PAUSED || j->status == JOB_STANDBY;

	add_bool(o, "busy", j->working && !still && !j->asleep);
	add_bool(o, "paused", j->pause_count > 0);
	add_str(o, "io-status", statuses[j->io_status]);
	add_bool(o, "ready", j->status == JOB_READY || j->status == JOB_STANDBY);
	add_str(o, "status", job_status_name(j->status));
	add_bool(o, "auto-finalize", j->auto_finalize);
	add_bool(o, "auto-dismiss", j->auto_dismiss);
	if (j->done && j->error.code)
		add_str(o, "error", j->error.text);
	return o;
}

COMMAND(command_query_block_jobs)
{
	*ret = json_object_new_array();
	for (struct job *j = job_list(); j; j = j->next) {
		if (j->driver->block)
			json_object_array_add(*ret, block_job_info(j));
	}
	return 0;
}

/* -- verbs ------------------------------------------------------------------------------- */

static struct job *find(const char *id, struct error *err)
{
	struct job *j = job_find(id, NULL);

	if (j && j->driver->block)
		return j;
	error_set_class(err, ERROR_DEVICE_NOT_ACTIVE, -ENOENT, "Block job '%s' not found", id);
	return NULL;
}

static int ask(const char *id, int (*verb)(struct job *j, struct error *err), struct error *err)
{
	struct job *j = find(id, err);

	return j ? verb(j, err) : -ENOENT;
}

COMMAND(command_block_job_pause)
{
	return ask(qmp_str(args, "device"), job_user_pause, err);
}

COMMAND(command_block_job_resume)
{
	return ask(qmp_str(args, "device"), job_user_resume, err);
}

COMMAND(command_block_job_cancel)
{
	struct job *j = find(qmp_str(args, "device"), err);

	if (!j)
		return -ENOENT;
	if (j->user_paused && !qmp_bool(args, "force", false))
		return error_set(err, -EBUSY, "The block job for device '%s' is currently paused",
				 j->id);
	return job_user_cancel(j, err);
}

COMMAND(command_block_job_complete)
{
	return ask(qmp_str(args, "device"), job_user_complete, err);
}

COMMAND(command_block_job_finalize)
{
	return ask(qmp_str(args, "id"), job_user_finalize, err);
}

COMMAND(command_block_job_dismiss)
{
	return ask(qmp_str(args, "id"), job_user_dismiss, err);
}

COMMAND(command_block_job_change)
{
	return ask(qmp_str(args, "id"), job_user_change, err);
}

COMMAND(command_block_job_set_speed)
{
	int64_t speed = json_object_get_int64(json_object_object_get(args, "speed"));
	struct job *j = find(qmp_str(args, "device"), err);

	if (!j)
		return -ENOENT;
	if (speed < 0)
		return error_set(err, -EINVAL, "Parameter 'speed' expects a non-negative value");
	return job_user_set_speed(j, (uint64_t)speed, err);
}
