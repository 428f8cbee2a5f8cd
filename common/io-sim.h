/* SPDX-License-Identifier: BSD-3-Clause */
/* io-sim: struct io on files in memory whose machine may lose power.
 *
 * What a power loss may do: of everything that was not made durable, each
 * 512-byte sector has on storage any one of the contents that it had in memory
 * since it was last durable, independently of all other sectors.  So unsynced
 * writes are lost, torn and reordered.  The file's size behaves like one more
 * such sector, and cuts what lies behind it.  Creating a file is durable at once.
 *
 *   fsync      everything written to that file before the call *began* is durable
 *   IO_DSYNC   that range is durable (with the size that it needs), no other byte
 *   in flight  an operation that had not returned when power failed counts as
 *              unsynced: it may have reached storage, or parts of it
 *
 * In a coroutine started with io_sim_start() every operation is a suspension
 * point; io_sim_run() executes those that wait one by one in a seeded random
 * order.  Outside coroutines everything is synchronous.  One thread only.
 *
 * A crash test: run the workload once and count io_sim_sync_points(); for each
 * of them run it again with io_sim_crash_at() until it dies; derive states with
 * io_sim_clone() and io_sim_power_loss(), open each and verify it.
 */
#ifndef MERINO_IO_SIM_H
#define MERINO_IO_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/io.h"

struct io_sim;

struct io_sim *io_sim_new(uint64_t seed);
void io_sim_free(struct io_sim *sim);		/* NULL is fine; close the files first */
struct io *io_sim_io(struct io_sim *sim);

/* The same files, durable and not, crash or no crash; no open files, no pending
 * operations, no faults.  Cheap: contents are shared until written. */
struct io_sim *io_sim_clone(const struct io_sim *sim);

/* Starts FN(ARG) in a coroutine of the simulation; runs it to its first wait. */
void io_sim_start(struct io_sim *sim, void (*fn)(void *arg), void *arg);
/* Runs the coroutines until none can go on.  Returns how many operations ran. */
uint64_t io_sim_run(struct io_sim *sim);
/* Virtual time, ns: moves only when nothing is left to do but to sleep. */
uint64_t io_sim_now(const struct io_sim *sim);

enum io_sim_crash {
	IO_SIM_CRASH_NEVER,
	IO_SIM_CRASH_BEFORE_SYNC,	/* the N-th sync point does not take effect */
	IO_SIM_CRASH_AFTER_SYNC,	/* it does, but its caller never hears of it */
	IO_SIM_CRASH_AT_WRITE,		/* the N-th write, zero, discard or truncate is the last */
};

/* When to die; N counts from 1 since io_sim_new() or io_sim_power_loss().  From
 * then on every operation fails with -EIO. */
void io_sim_crash_at(struct io_sim *sim, enum io_sim_crash when, uint64_t n);
/* The same for the process alone: what was handed over stays, durable or not, also
 * what io_mapped_make() gave; what is in flight is done, done in part, or not done.
 * io_sim_restart() then, where a power loss would follow io_sim_crash_at(). */
void io_sim_kill_at(struct io_sim *sim, enum io_sim_crash when, uint64_t n);
void io_sim_crash_now(struct io_sim *sim);
bool io_sim_dead(const struct io_sim *sim);

/* Collapses what is unsynced into one state that storage may be left in, chosen
 * by SEED, and revives the machine; counters start again, files that were open
 * only fail.  SEED mod 8 picks the style: 0 loses everything, 1 keeps everything,
 * 2 and 3 toss for each sector, 4 for each operation, 5 keeps an eighth of the
 * sectors, 6 loses an eighth of them, 7 loses an eighth of the operations. */
void io_sim_power_loss(struct io_sim *sim, uint64_t seed);

/* The process is dead (or dies now) and another one starts on the same machine, with
 * the same boot id; what was unsynced is so still. */
void io_sim_restart(struct io_sim *sim);

uint64_t io_sim_sync_points(const struct io_sim *sim);	/* fsync and IO_DSYNC so far */
uint64_t io_sim_writes(const struct io_sim *sim);	/* write, zero, discard, truncate so far */
uint64_t io_sim_unsynced(const struct io_sim *sim);	/* of these, not (all) durable */

enum io_sim_op {
	IO_SIM_READ = 1,
	IO_SIM_WRITE = 2,
	IO_SIM_FSYNC = 4,
	IO_SIM_ZERO = 8,
	IO_SIM_DISCARD = 16,
	IO_SIM_TRUNCATE = 32,
};

/* The N-th operation from now (1: the next) of the KINDS given (a mask) fails
 * with -ERR.  A failed write may have written a part.  After a failed fsync the
 * kernel does not try again: a later one that succeeds does not cover it.
 * Up to 8 such faults wait at a time. */
void io_sim_fail(struct io_sim *sim, unsigned kinds, uint64_t n, int err);

/* One line per operation to OUT (NULL: none): the history of a failure. */
void io_sim_trace(struct io_sim *sim, FILE *out);

/* Copies a simulated file (its current contents) to a real one, or a real one
 * into the simulation (durable, replacing PATH).  0 or -errno. */
int io_sim_dump(struct io_sim *sim, const char *path, const char *realfile);
int io_sim_load(struct io_sim *sim, const char *path, const char *realfile);

#endif
