/* SPDX-License-Identifier: BSD-3-Clause */
/* io-sim-int: what io-sim.c (the machine) and io-sim-table.c (the operations and
 * files) share.  Nobody else includes it.
 */
#ifndef MERINO_IO_SIM_INT_H
#define MERINO_IO_SIM_INT_H

#include "common/co.h"
#include "common/io-beside.h"
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

/* Memory that outlives the process (io-mapped.h).  The dead do not write: what it
 * was at death is KEPT, and comes back with the machine. */
struct sim_mapped {
	struct sim_mapped *next;
	char *path;			/* of the image that it belongs to */
	uint8_t *mem, *kept;		/* KEPT: NULL while the process lives */
	size_t len;
	bool removed;
};

/* A piece of a file that is mapped.  What the process stores is noticed before each
 * operation, as an unsynced write of the sectors that differ from LAST. */
struct sim_map {
	struct sim_map *next;
	struct sim_file *file;		/* NULL: its process is dead */
	uint8_t *mem, *last;
	uint64_t off, len;
};

struct io_sim {
	struct io io;			/* first */
	struct sched sched;
	struct sim_file *files;
	struct sim_mapped *mapped;
	struct sim_map *maps;
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
	bool by_kill;			/* it is the process that dies: see io_sim_kill_at() */
	uint64_t boots;			/* power losses so far */
	struct sim_fault fault[SIM_MAX_FAULTS];
	FILE *trace;
};

extern const struct io_ops sim_ops;

/* io-sim-mapped.c */
int sim_identity(struct io_file *f, struct io_identity *id);
int sim_mapped_make(struct io_file *f, const char *dir, size_t len, struct io_mapped **out,
		    struct error *err);
int sim_mapped_read(struct io_file *f, const char *dir, size_t len, uint8_t **data);
void sim_mapped_end(struct io_mapped *m, bool remove);
void sim_mapped_clone(struct io_sim *to, const struct io_sim *from);
void sim_mapped_die(struct io_sim *sim);
void sim_mapped_revive(struct io_sim *sim);
void sim_mapped_free(struct io_sim *sim);

/* io-sim-beside.c */
void sim_beside(struct io_beside_job *j);
void sim_maps_notice(struct io_sim *sim);
void sim_maps_die(struct io_sim *sim);
void sim_maps_free(struct io_sim *sim);

/* io-sim-table.c */
struct io_file *sim_handle_new(struct io_sim *sim, struct sim_file *file, unsigned flags);
struct sim_file *sim_file_find(const struct io_sim *sim, const char *path);
struct sim_file *sim_file_create(struct io_sim *sim, const char *path);

/* Executes R, now or, in a coroutine, when its turn comes.  Its result. */
ssize_t sim_submit(struct io_sim *sim, struct sim_req *r);

#endif
