/* SPDX-License-Identifier: BSD-3-Clause */
/* io-sim-int: what io-sim.c (the machine) and io-sim-table.c (the operations and
 * files) share.  Nobody else includes it.
 */
#ifndef MERINO_IO_SIM_INT_H
#define MERINO_IO_SIM_INT_H

#include "common/co.h"
#include "common/io-sim-store.h"
#include "common/io-sim.h"

enum { SIM_SLEEP = 64, SIM_MAX_FAULTS = 8 };
#define SIM_MUTATES (IO_SIM_WRITE | IO_SIM_ZERO | IO_SIM_DISCARD | IO_SIM_TRUNCATE)

struct sim_handle {
	struct io_file f;		/* first: the ops get a pointer to it */
	struct sim_file *file;
	uint64_t life;			/* of the simulation, when it was opened */
};

/* One call of an operation; lives on its caller's stack. */
struct sim_req {
	struct sim_req *next;		/* pending */
	struct sim_file *file;
	unsigned kind;			/* enum io_sim_op, SIM_SLEEP */
	unsigned flags;
	void *buf;
	uint64_t off, len;
	uint64_t began;			/* the last operation executed before the call */
	uint64_t deadline;		/* SIM_SLEEP, virtual ns */
	struct co *co;
	bool done;
	ssize_t result;
};

struct sim_fault {
	unsigned kinds;			/* 0: free */
	uint64_t left;			/* matching operations until it strikes */
	int err;
};

struct io_sim {
	struct io io;			/* first */
	struct sched sched;
	struct sim_file *files;
	struct sim_req *pending;	/* in no order */
	uint64_t n_pending;		/* without sleepers */
	uint64_t open_files;
	uint64_t life;			/* grows at each power loss */
	uint64_t rng;
	uint64_t now;			/* virtual ns */
	uint64_t seq;			/* of the last operation executed */
	uint64_t syncs, writes;
	enum io_sim_crash crash;
	uint64_t crash_n;
	bool dead;
	struct sim_fault fault[SIM_MAX_FAULTS];
	FILE *trace;
};

extern const struct io_ops sim_ops;

/* Executes R, now or, in a coroutine, when its turn comes.  Its result. */
ssize_t sim_submit(struct io_sim *sim, struct sim_req *r);

#endif
