/* SPDX-License-Identifier: BSD-3-Clause */
/* job: a long operation with QEMU's job states (QAPI's JobStatus).
 *
 *	created ─▶ running ⇄ paused
 *	              │  └─▶ ready ⇄ standby
 *	              ├──▶ waiting ─▶ pending ─▶ concluded ─▶ null
 *	              └──▶ aborting ──────────────┘
 *
 * A job lives on two loops.  Its state, its id and what people ask of it belong to
 * the main loop, the one that made it.  Its work is one coroutine on the loop of its
 * source, which never touches the state: it reads two flags at its pause points, and
 * writes its progress.
 */
#ifndef MERINO_JOB_H
#define MERINO_JOB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/co.h"
#include "common/error.h"

struct job;
struct loop;

enum job_status {
	JOB_UNDEFINED, JOB_CREATED, JOB_RUNNING, JOB_PAUSED, JOB_READY, JOB_STANDBY,
	JOB_WAITING, JOB_PENDING, JOB_ABORTING, JOB_CONCLUDED, JOB_NULL, JOB_STATUS_COUNT,
};

struct job_driver {
	const char *type;		/* QAPI's JobType */
	/* The work, on the job's loop.  0 or -errno; looks in at job_pause_point() and
	 * ends with -ECANCELED when that says so. */
	int (*run)(struct job *j, struct error *err);
	/* On the main loop, in coroutines; NULL: nothing to do. */
	int (*prepare)(struct job *j, struct error *err);	/* the last that may fail */
	void (*commit)(struct job *j);
	void (*abort)(struct job *j);
	void (*clean)(struct job *j);	/* after either: gives back what the job holds */
	/* job-complete: asks a ready job to come to its end. */
	int (*complete)(struct job *j, struct error *err);
	void (*free)(struct job *j);	/* frees ->data */
};

struct job {
	struct job *next;
	char *id;
	const struct job_driver *driver;
	void *data;			/* the driver's */
	struct loop *main, *loop;
	/* Main loop: */
	enum job_status status;
	bool auto_finalize, auto_dismiss;
	bool user_paused;
	bool working;			/* the coroutine has not ended */
	bool settling;			/* prepare, commit or abort runs */
	unsigned pause_count;
	unsigned wakers;		/* calls to the job's loop that are under way */
	struct error error;		/* code 0: none */
	/* Both: */
	_Atomic bool cancelled, pause_wanted;
	_Atomic uint64_t current, total;	/* progress, in the driver's unit */
	/* The job's loop: */
	struct co_queue wake;
};

/* What the daemon wants to be told of: every change of state.  Main loop. */
extern void (*job_status_hook)(const struct job *j);

/* Main loop.  A job in state created; DATA is freed with it.  NULL: "Invalid job ID",
 * "Job ID 'x' already in use". */
struct job *job_new(const struct job_driver *driver, const char *id, struct loop *loop,
		    void *data, struct error *err);
/* Starts the work; J may be gone when it returns. */
void job_start(struct job *j);

struct job *job_find(const char *id, struct error *err);	/* NULL: "Job not found" */
struct job *job_list(void);		/* the first, and by ->next */
const char *job_status_name(enum job_status s);

/* What people ask (QMP's job-*), checked against QEMU's table of verbs and states.
 * Coroutines on the main loop; J may be gone afterwards. */
int job_user_pause(struct job *j, struct error *err);
int job_user_resume(struct job *j, struct error *err);
int job_user_cancel(struct job *j, struct error *err);
int job_user_complete(struct job *j, struct error *err);
int job_user_finalize(struct job *j, struct error *err);
int job_user_dismiss(struct job *j, struct error *err);

/* The end of the process: cancels all jobs and waits until they are gone. */
void job_cancel_all(void);

/* -- for the work, on the job's loop ---------------------------------------------- */

/* Waits while the job is paused.  0, or -ECANCELED. */
int job_pause_point(struct job *j);
/* The same after NS at the latest; a cancel ends the sleep. */
int job_sleep(struct job *j, uint64_t ns);
/* The state ready: what is left to do is done as it comes, until job-complete. */
void job_set_ready(struct job *j);

static inline bool job_is_cancelled(const struct job *j)
{
	return atomic_load_explicit(&j->cancelled, memory_order_relaxed);
}

/* It is cancelled, or to be paused: the work should come to its next pause point. */
static inline bool job_wants_stop(const struct job *j)
{
	return job_is_cancelled(j) || atomic_load_explicit(&j->pause_wanted, memory_order_relaxed);
}

static inline void job_set_total(struct job *j, uint64_t total)
{
	atomic_store_explicit(&j->total, total, memory_order_relaxed);
}

static inline void job_progress(struct job *j, uint64_t done)
{
	atomic_fetch_add_explicit(&j->current, done, memory_order_relaxed);
}

#endif
