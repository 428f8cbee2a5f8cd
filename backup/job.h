/* SPDX-License-Identifier: BSD-3-Clause */
/* job: a long operation with QEMU's job states (QAPI's JobStatus).
 *
 *	created ─▶ running ⇄ paused
 *	              │  └─▶ ready ⇄ standby
 *	              ├──▶ waiting ─▶ pending ─▶ concluded ─▶ null
 *	              └──▶ aborting ──────────────┘
 *
 * A job lives on two loops.  Its state, its id and what people ask of it belong to
 * the main loop, the one that made it.  Its work is one coroutine (with helpers, which
 * end before it does) on the loop of its source, which never touches the state: it reads
 * two flags at its pause points, and writes its progress.
 *
 * Jobs of a group end together: none takes effect before all have done their work, and
 * when one fails or is cancelled the others are cancelled (QEMU's completion-mode
 * "grouped").  A job without a group is one of its own.
 */
#ifndef MERINO_JOB_H
#define MERINO_JOB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/co.h"
#include "common/error.h"
#include "common/loop.h"

struct job;

enum job_status {
	JOB_UNDEFINED, JOB_CREATED, JOB_RUNNING, JOB_PAUSED, JOB_READY, JOB_STANDBY,
	JOB_WAITING, JOB_PENDING, JOB_ABORTING, JOB_CONCLUDED, JOB_NULL, JOB_STATUS_COUNT,
};

/* What is done about a request that failed (QAPI's BlockdevOnError). */
enum job_on_error { JOB_ON_REPORT, JOB_ON_IGNORE, JOB_ON_ENOSPC, JOB_ON_STOP, JOB_ON_AUTO };
/* What that comes to (BlockErrorAction). */
enum job_action { JOB_IGNORE, JOB_REPORT, JOB_STOP };

enum job_io_status { JOB_IO_OK, JOB_IO_FAILED, JOB_IO_NOSPACE };

/* Jobs that end together.  References: the maker's, and one of each job. */
struct job_group {
	unsigned refs;
};

struct job_driver {
	const char *type;		/* QAPI's JobType */
	bool block;			/* a block job: BLOCK_JOB_* events and block-job-* verbs */
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
	/* On the job's loop: a cancel has come; what the work waits for should end soon. */
	void (*cancel)(struct job *j);
	/* On the job's loop: J->speed is another one. */
	void (*set_speed)(struct job *j);
	void (*free)(struct job *j);	/* frees ->data */
};

struct job {
	struct job *next;
	char *id;
	const struct job_driver *driver;
	void *data;			/* the driver's */
	struct loop *main, *loop;
	struct loop_msg start;
	/* Main loop: */
	enum job_status status;
	bool auto_finalize, auto_dismiss;
	bool user_paused;
	bool started;
	bool working;			/* the coroutine has not ended */
	bool done;			/* it has, or never began */
	bool settling;			/* prepare, commit or abort runs */
	struct job_group *group;	/* NULL: alone */
	enum job_io_status io_status;
	unsigned pause_count;
	unsigned wakers;		/* calls to the job's loop that are under way */
	struct error error;		/* code 0: none */
	/* Both: */
	_Atomic bool cancelled, pause_wanted;
	_Atomic uint64_t current, total;	/* progress, in the driver's unit */
	_Atomic uint64_t speed;		/* bytes a second; 0: no limit */
	_Atomic bool asleep;		/* nothing is to be done at present */
	/* The job's loop: */
	bool nudged;
	unsigned pausing;		/* coroutines at a pause point */
	struct co_queue wake;
};

/* What the daemon wants to be told of: every change of state.  Main loop. */
extern void (*job_status_hook)(const struct job *j);
/* … what happens to block jobs (QMP's BLOCK_JOB_*).  Main loop. */
enum job_event { JOB_EVENT_READY, JOB_EVENT_PENDING, JOB_EVENT_COMPLETED, JOB_EVENT_CANCELLED };
extern void (*job_event_hook)(const struct job *j, enum job_event e);
extern void (*job_error_hook)(const struct job *j, bool is_read, enum job_action action);
/* A job takes effect, or is undone: no command may run meanwhile, and none may be under
 * way.  LOCK may wait; the lock may be taken again by who has it. */
extern void (*job_lock_hook)(bool lock);

struct job_group *job_group_new(void);	/* NULL: out of memory */
void job_group_unref(struct job_group *g);	/* NULL is fine */
/* Before J starts. */
void job_join(struct job *j, struct job_group *g);

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
int job_user_set_speed(struct job *j, uint64_t speed, struct error *err);
/* block-job-change: no driver has what could be changed. */
int job_user_change(struct job *j, struct error *err);

/* The end of the process: cancels all jobs and waits until they are gone. */
void job_cancel_all(void);

/* -- for the work, on the job's loop ---------------------------------------------- */

/* Waits while the job is paused.  0, or -ECANCELED.  Helpers may be at one, too. */
int job_pause_point(struct job *j);
/* The same after NS at the latest; a cancel ends the sleep, and so does job_nudge(). */
int job_sleep(struct job *j, uint64_t ns);
void job_nudge(struct job *j);
/* A request failed with RC (-errno).  Tells BLOCK_JOB_ERROR; JOB_STOP has waited until
 * people let the job go on, or cancelled it. */
enum job_action job_error(struct job *j, enum job_on_error on_error, bool is_read, int rc);
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
