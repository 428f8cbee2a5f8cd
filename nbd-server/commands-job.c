/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-job: query-jobs, and what people may ask of a job (backup/job.h). */
#include "nbd-server/commands.h"

#include <errno.h>

#include "backup/job.h"

const struct qmp_arg args_job[] = {
	{ "id", QMP_STR, true, "the job" },
	{ NULL },
};

/* Each state is told. */
static void tell_status(const struct job *j)
{
	struct json_object *data = json_object_new_object();

	json_object_object_add(data, "id", json_object_new_string(j->id));
	json_object_object_add(data, "status", json_object_new_string(job_status_name(j->status)));
	qmp_event("JOB_STATUS_CHANGE", data);
}

void commands_job_init(void)
{
	job_status_hook = tell_status;
}

static struct json_object *job_info(struct job *j)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "id", json_object_new_string(j->id));
	json_object_object_add(o, "type", json_object_new_string(j->driver->type));
	json_object_object_add(o, "status", json_object_new_string(job_status_name(j->status)));
	json_object_object_add(o, "current-progress", json_object_new_uint64(j->current));
	json_object_object_add(o, "total-progress", json_object_new_uint64(j->total));
	/* While the work goes on, its end is its own. */
	if (!j->working && j->error.code)
		json_object_object_add(o, "error", json_object_new_string(j->error.text));
	return o;
}

COMMAND(command_query_jobs)
{
	*ret = json_object_new_array();
	for (struct job *j = job_list(); j; j = j->next)
		json_object_array_add(*ret, job_info(j));
	return 0;
}

static int ask(struct json_object *args, int (*verb)(struct job *j, struct error *err),
	       struct error *err)
{
	struct job *j = job_find(qmp_str(args, "id"), err);

	return j ? verb(j, err) : -ENOENT;
}

COMMAND(command_job_pause)
{
	return ask(args, job_user_pause, err);
}

COMMAND(command_job_resume)
{
	return ask(args, job_user_resume, err);
}

COMMAND(command_job_cancel)
{
	return ask(args, job_user_cancel, err);
}

COMMAND(command_job_complete)
{
	return ask(args, job_user_complete, err);
}

COMMAND(command_job_finalize)
{
	return ask(args, job_user_finalize, err);
}

COMMAND(command_job_dismiss)
{
	return ask(args, job_user_dismiss, err);
}
