/* SPDX-License-Identifier: BSD-3-Clause */
/* job: states and verbs, and the way from one to the next: see job.h.
 *
 * Which state may follow which, and which verb a state takes, are QEMU's tables
 * (its docs of QAPI's JobStatus and JobVerb).
 */
#include "backup/job.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "common/options.h"

void (*job_status_hook)(const struct job *j);
void (*job_event_hook)(const struct job *j, enum job_event e);
void (*job_error_hook)(const struct job *j, bool is_read, enum job_action action);
void (*job_lock_hook)(bool lock);

static struct job *jobs;
static struct co_queue jobs_gone;	/* woken when a job has ended or gone */

/* -- tables ------------------------------------------------------------------------ */

static const char *const status_names[JOB_STATUS_COUNT] = {
	"undefined", "created", "running", "paused", "ready", "standby", "waiting", "pending",
	"aborting", "concluded", "null",
};

#define BIT(s) (1u << JOB_##s)

static const unsigned may_follow[JOB_STATUS_COUNT] = {
	[JOB_UNDEFINED] = BIT(CREATED),
	[JOB_CREATED] = BIT(RUNNING) | BIT(ABORTING) | BIT(NULL),
	[JOB_RUNNING] = BIT(PAUSED) | BIT(READY) | BIT(WAITING) | BIT(ABORTING),
	[JOB_PAUSED] = BIT(RUNNING),
	[JOB_READY] = BIT(STANDBY) | BIT(WAITING) | BIT(ABORTING),
	[JOB_STANDBY] = BIT(READY),
	[JOB_WAITING] = BIT(PENDING) | BIT(ABORTING),
	[JOB_PENDING] = BIT(ABORTING) | BIT(CONCLUDED),
	[JOB_ABORTING] = BIT(CONCLUDED),
	[JOB_CONCLUDED] = BIT(NULL),
};

enum verb {
	CANCEL, PAUSE, RESUME, SET_SPEED, COMPLETE, FINALIZE, DISMISS, CHANGE, VERB_COUNT,
};

static const struct {
	const char *name;
	unsigned states;		/* that take it */
} verbs[VERB_COUNT] = {
	[CANCEL] = { "cancel", BIT(CREATED) | BIT(RUNNING) | BIT(PAUSED) | BIT(READY) |
			       BIT(STANDBY) | BIT(WAITING) | BIT(PENDING) },
	[PAUSE] = { "pause", BIT(CREATED) | BIT(RUNNING) | BIT(PAUSED) | BIT(READY) |
			     BIT(STANDBY) },
	[RESUME] = { "resume", BIT(CREATED) | BIT(RUNNING) | BIT(PAUSED) | BIT(READY) |
			       BIT(STANDBY) },
	[SET_SPEED] = { "set-speed", BIT(CREATED) | BIT(RUNNING) | BIT(PAUSED) | BIT(READY) |
				     BIT(STANDBY) },
	[COMPLETE] = { "complete", BIT(READY) },
	[FINALIZE] = { "finalize", BIT(PENDING) },
	[DISMISS] = { "dismiss", BIT(CONCLUDED) },
	[CHANGE] = { "change", BIT(CREATED) | BIT(RUNNING) | BIT(PAUSED) | BIT(READY) |
			       BIT(STANDBY) },
};

const char *job_status_name(enum job_status s)
{
	return status_names[s];
}

static int check_verb(const struct job *j, enum verb v, struct error *err)
{
	if (verbs[v].states & (1u << j->status))
		return 0;
	return error_set(err, -EPERM, "Job '%s' in state '%s' cannot accept command verb '%s'",
			 j->id, status_names[j->status], verbs[v].name);
}

static void set_status(struct job *j, enum job_status s)
{
	assert(may_follow[j->status] & (1u << s));
	j->status = s;
	if (job_status_hook)
		job_status_hook(j);
}

static void tell(const struct job *j, enum job_event e)
{
	if (job_event_hook && j->driver->block)
		job_event_hook(j, e);
}

static void lock(bool on)
{
	if (job_lock_hook)
		job_lock_hook(on);
}

/* -- the list ------------------------------------------------------------------------ */

struct job *job_list(void)
{
	return jobs;
}

static struct job *lookup(const char *id)
{
	struct job *j = jobs;

	while (j && strcmp(j->id, id))
		j = j->next;
	return j;
}

struct job *job_find(const char *id, struct error *err)
{
	struct job *j = lookup(id);

	if (!j)
		error_set(err, -ENOENT, "Job not found");
	return j;
}

static void job_free(struct job *j)
{
	if (j->driver->free)
		j->driver->free(j);
	free(j->id);
	free(j);
}

struct job *job_new(const struct job_driver *driver, const char *id, struct loop *loop,
		    void *data, struct error *err)
{
	struct job *j = NULL;

	if (!id_wellformed(id))
		error_set(err, -EINVAL, "Invalid job ID '%s'", id);
	else if (lookup(id))
		error_set(err, -EEXIST, "Job ID '%s' already in use", id);
	else
		j = calloc(1, sizeof(*j));
	if (!j || !(j->id = strdup(id))) {
		if (err && !err->code)
			error_set(err, -ENOMEM, "Out of memory");
		free(j);
		return NULL;
	}
	j->driver = driver;
	j->data = data;
	j->main = loop_self();
	j->loop = loop;
	j->auto_finalize = j->auto_dismiss = true;
	j->next = jobs;			/* the newest first, as QEMU lists them */
	jobs = j;
	set_status(j, JOB_CREATED);
	return j;
}

static void job_remove(struct job *j)
{
	struct job **p = &jobs;

	set_status(j, JOB_NULL);
	while (*p != j)
		p = &(*p)->next;
	*p = j->next;
	while (j->wakers)
		co_queue_wait(&jobs_gone);
	job_free(j);
	co_queue_wake_all(&jobs_gone);
}

/* -- groups ---------------------------------------------------------------------------- */

struct job_group *job_group_new(void)
{
	struct job_group *g = calloc(1, sizeof(*g));

	if (g)
		g->refs = 1;
	return g;
}

void job_group_unref(struct job_group *g)
{
	if (g && --g->refs == 0)
		free(g);
}

void job_join(struct job *j, struct job_group *g)
{
	assert(!j->started && !j->group);
	j->group = g;
	if (g)
		g->refs++;
}

static bool are_together(const struct job *a, const struct job *b)
{
	return a == b || (a->group && a->group == b->group);
}

/* The first (or, after LAST, the next) of the jobs that end with J. */
static struct job *group_next(const struct job *j, const struct job *last)
{
	struct job *o = last ? last->next : jobs;

	while (o && !are_together(j, o))
		o = o->next;
	return o;
}

static bool group_is_done(const struct job *j)
{
	for (struct job *o = group_next(j, NULL); o; o = group_next(j, o)) {
		if (!o->done)
			return false;
	}
	return true;
}

/* -- the end of the work, on the main loop, under the lock ------------------------------ */

static void set_aborting(struct job *j)
{
	if (!j->error.code)
		error_set(&j->error, -ECANCELED, "%s", strerror(ECANCELED));
	if (j->status != JOB_ABORTING)
		set_status(j, JOB_ABORTING);
}

/* Takes effect, or is undone; J may be gone afterwards. */
static void job_settle(struct job *j)
{
	if (j->error.code || job_is_cancelled(j)) {
		set_aborting(j);
		if (j->driver->abort)
			j->driver->abort(j);
	} else if (j->driver->commit) {
		j->driver->commit(j);
	}
	if (j->driver->clean)
		j->driver->clean(j);
	if (j->started)
		tell(j, job_is_cancelled(j) ? JOB_EVENT_CANCELLED : JOB_EVENT_COMPLETED);
	job_group_unref(j->group);
	j->group = NULL;
	j->settling = false;
	set_status(j, JOB_CONCLUDED);
	co_queue_wake_all(&jobs_gone);
	if (j->auto_dismiss)
		job_remove(j);
}

static void group_settle(struct job *j)
{
	struct job_group *g = j->group;
	struct job *o = j;

	for (o = group_next(j, NULL); o; o = group_next(j, o))
		o->settling = true;
	if (!g) {
		job_settle(j);
		return;
	}
	g->refs++;
	do {
		for (o = jobs; o && o->group != g; o = o->next)
			;
		if (o)
			job_settle(o);
	} while (o);
	job_group_unref(g);
}

static void wake(struct job *j);

/* J failed, or was cancelled: so are the others.  The last one that ends settles all. */
static void group_abort(struct job *j)
{
	for (struct job *o = group_next(j, NULL); o; o = group_next(j, o)) {
		if (o == j || job_is_cancelled(o) || o->status == JOB_ABORTING)
			continue;
		o->cancelled = true;
		if (o->working)
			wake(o);
		else
			o->done = true;
	}
	if (group_is_done(j))
		group_settle(j);
}

static void group_finalize(struct job *j)
{
	for (struct job *o = group_next(j, NULL); o; o = group_next(j, o))
		o->settling = true;
	for (struct job *o = group_next(j, NULL); o; o = group_next(j, o)) {
		struct error err = ERROR_INIT;

		if (!o->driver->prepare || !o->driver->prepare(o, &err))
			continue;
		o->error = err;
		group_abort(o);
		return;
	}
	group_settle(j);
}

static void group_succeeded(struct job *j)
{
	bool by_hand = false;

	if (!group_is_done(j))
		return;
	for (struct job *o = group_next(j, NULL); o; o = group_next(j, o)) {
		set_status(o, JOB_PENDING);
		by_hand |= !o->auto_finalize;
		if (!o->auto_finalize)
			tell(o, JOB_EVENT_PENDING);
	}
	if (!by_hand)
		group_finalize(j);
}

static void job_completed(struct job *j)
{
	j->done = true;
	if (j->error.code || job_is_cancelled(j)) {
		set_aborting(j);
		group_abort(j);
	} else {
		set_status(j, JOB_WAITING);
		group_succeeded(j);
	}
}

static void job_worked(struct job *j)
{
	j->working = false;
	while (j->wakers)		/* they look at what the work has */
		co_queue_wait(&jobs_gone);
	lock(true);
	job_completed(j);
	lock(false);
}

/* -- between the loops ------------------------------------------------------------------- */

static void worked_on_main(void *arg)
{
	job_worked(arg);
}

static void work(void *arg)
{
	struct job *j = arg;
	struct error err = ERROR_INIT;
	int rc = job_pause_point(j);

	if (!rc)
		rc = j->driver->run(j, &err);
	if (rc && !err.code)
		error_set(&err, rc, "%s", strerror(-rc));
	j->error = err;			/* the main loop looks at it from here on */
	loop_call(j->main, worked_on_main, j);
}

static void start_on_loop(struct loop_msg *m)
{
	co_start(work, (struct job *)((char *)m - offsetof(struct job, start)));
}

/* Nobody waits for the end of the work. */
void job_start(struct job *j)
{
	j->start.fn = start_on_loop;
	j->started = j->working = true;
	set_status(j, JOB_RUNNING);
	loop_post(j->loop, &j->start);
}

static void wake_on_loop(void *arg)
{
	struct job *j = arg;

	if (job_is_cancelled(j) && j->driver->cancel)
		j->driver->cancel(j);
	co_queue_wake_all(&j->wake);
}

/* The work may end, and the job with it, while the call is under way: it waits for us. */
static void wake(struct job *j)
{
	if (!j->working)
		return;
	j->wakers++;
	loop_call(j->loop, wake_on_loop, j);
	j->wakers--;
	co_queue_wake_all(&jobs_gone);
}

/* -- the work's side ------------------------------------------------------------------------ */

static void paused_on_main(void *arg)
{
	struct job *j = arg;

	if (j->pause_count && (j->status == JOB_READY || j->status == JOB_RUNNING))
		set_status(j, j->status == JOB_READY ? JOB_STANDBY : JOB_PAUSED);
}

static void resumed_on_main(void *arg)
{
	struct job *j = arg;

	if (j->status == JOB_STANDBY)
		set_status(j, JOB_READY);
	else if (j->status == JOB_PAUSED)
		set_status(j, JOB_RUNNING);
}

static void ready_on_main(void *arg)
{
	struct job *j = arg;

	if (j->status != JOB_RUNNING)
		return;
	set_status(j, JOB_READY);
	tell(j, JOB_EVENT_READY);
}

static bool should_pause(const struct job *j)
{
	return atomic_load_explicit(&j->pause_wanted, memory_order_relaxed) && !job_is_cancelled(j);
}

int job_pause_point(struct job *j)
{
	if (should_pause(j)) {
		if (!j->pausing++)
			loop_call(j->main, paused_on_main, j);
		while (should_pause(j))
			co_queue_wait(&j->wake);
		if (!--j->pausing)
			loop_call(j->main, resumed_on_main, j);
	}
	return job_is_cancelled(j) ? -ECANCELED : 0;
}

int job_sleep(struct job *j, uint64_t ns)
{
	uint64_t end = loop_now() + ns;
	bool early = true;

	j->asleep = true;
	while (early && !j->nudged && !job_is_cancelled(j) && !should_pause(j))
		early = loop_queue_wait(&j->wake, end);
	j->asleep = j->nudged = false;
	return job_pause_point(j);
}

void job_nudge(struct job *j)
{
	j->nudged = true;
	co_queue_wake_all(&j->wake);
}

struct failure {
	struct job *job;
	int rc;
	bool is_read;
	enum job_action action;
};

static void pause_by_error(struct job *j, int rc)
{
	if (!j->user_paused) {
		j->user_paused = true;
		j->pause_count++;
		j->pause_wanted = true;
	}
	if (j->io_status == JOB_IO_OK)
		j->io_status = rc == -ENOSPC ? JOB_IO_NOSPACE : JOB_IO_FAILED;
}

static void failed_on_main(void *arg)
{
	struct failure *f = arg;

	if (job_error_hook && f->job->driver->block)
		job_error_hook(f->job, f->is_read, f->action);
	if (f->action == JOB_STOP)
		pause_by_error(f->job, f->rc);
}

enum job_action job_error(struct job *j, enum job_on_error on_error, bool is_read, int rc)
{
	static const enum job_action actions[] = {
		[JOB_ON_REPORT] = JOB_REPORT, [JOB_ON_IGNORE] = JOB_IGNORE, [JOB_ON_STOP] = JOB_STOP,
	};
	struct failure f = { j, rc, is_read, JOB_REPORT };

	if (on_error == JOB_ON_ENOSPC || on_error == JOB_ON_AUTO)
		f.action = rc == -ENOSPC ? JOB_STOP : JOB_REPORT;
	else
		f.action = actions[on_error];
	loop_call(j->main, failed_on_main, &f);
	if (f.action == JOB_STOP)
		job_pause_point(j);
	return f.action;
}

void job_set_ready(struct job *j)
{
	loop_call(j->main, ready_on_main, j);
}

/* -- verbs ------------------------------------------------------------------------------------ */

int job_user_pause(struct job *j, struct error *err)
{
	int rc = check_verb(j, PAUSE, err);

	if (rc)
		return rc;
	if (j->user_paused)
		return error_set(err, -EBUSY, "Job is already paused");
	j->user_paused = true;
	j->pause_count++;
	j->pause_wanted = true;
	wake(j);			/* out of its sleep, to its pause point */
	return 0;
}

static void unpause(struct job *j)
{
	if (!j->user_paused)
		return;
	j->io_status = JOB_IO_OK;
	j->user_paused = false;
	j->pause_count--;
	j->pause_wanted = j->pause_count > 0;
}

int job_user_resume(struct job *j, struct error *err)
{
	int rc;

	if (!j->user_paused)
		return error_set(err, -EPERM, "Can't resume a job that was not paused");
	rc = check_verb(j, RESUME, err);
	if (rc)
		return rc;
	unpause(j);
	wake(j);
	return 0;
}

/* What made the group takes back each of its jobs, one by one. */
static void cancel_unstarted(struct job *j)
{
	job_group_unref(j->group);
	j->group = NULL;
	job_completed(j);
}

int job_user_cancel(struct job *j, struct error *err)
{
	int rc = check_verb(j, CANCEL, err);

	if (rc)
		return rc;
	unpause(j);
	j->cancelled = true;
	if (j->working)
		wake(j);
	else if (!j->started)
		cancel_unstarted(j);
	else if (!j->settling)
		group_abort(j);
	return 0;
}

int job_user_complete(struct job *j, struct error *err)
{
	int rc = check_verb(j, COMPLETE, err);

	if (rc)
		return rc;
	if (j->pause_count || job_is_cancelled(j) || !j->driver->complete)
		return error_set(err, -EPERM, "The active block job '%s' cannot be completed", j->id);
	return j->driver->complete(j, err);
}

int job_user_finalize(struct job *j, struct error *err)
{
	int rc = check_verb(j, FINALIZE, err);

	if (!rc && j->settling)
		rc = error_set(err, -EBUSY, "Job '%s' is being finalized", j->id);
	if (!rc)
		group_finalize(j);
	return rc;
}

int job_user_dismiss(struct job *j, struct error *err)
{
	int rc = check_verb(j, DISMISS, err);

	if (!rc)
		job_remove(j);
	return rc;
}

static void speed_on_loop(void *arg)
{
	struct job *j = arg;

	j->driver->set_speed(j);
}

int job_user_set_speed(struct job *j, uint64_t speed, struct error *err)
{
	int rc = check_verb(j, SET_SPEED, err);

	if (rc)
		return rc;
	j->speed = speed;
	if (!j->driver->set_speed || !j->working)
		return 0;
	j->wakers++;
	loop_call(j->loop, speed_on_loop, j);
	j->wakers--;
	co_queue_wake_all(&jobs_gone);
	return 0;
}

int job_user_change(struct job *j, struct error *err)
{
	int rc = check_verb(j, CHANGE, err);

	return rc ? rc : error_set(err, -ENOTSUP, "Job type does not support change");
}

static struct job *any_unfinished(void)
{
	struct job *j = jobs;

	while (j && j->status == JOB_CONCLUDED)
		j = j->next;
	return j;
}

void job_cancel_all(void)
{
	struct job *j;

	while ((j = any_unfinished())) {
		struct error err = ERROR_INIT;

		lock(true);
		j = any_unfinished();	/* it may have ended while we waited */
		if (j && !job_is_cancelled(j) && !j->settling && !job_user_cancel(j, &err))
			j = NULL;
		lock(false);
		if (j)
			co_queue_wait(&jobs_gone);
	}
	while (jobs)
		job_remove(jobs);
}
