// SPDX-License-Identifier: BSD-3-Clause
/* io-sim: the simulated machine, its order of events and its death.
 *
 * A request is executed in one instant: at once outside coroutines, else when
 * io_sim_run() draws it from the pending ones.  From execution on its effect is
 * seen by reads; its durability is io-sim-store.c's matter.  When the machine
 * dies, requests that were pending are noted as unsynced operations (they may
 * have reached storage) and fail like everything later.
 *
 * A power loss makes all handles stale (`life`); they can only be closed.
 */
#include "common/io-sim-int.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static uint64_t draw(struct io_sim *sim, uint64_t below)
{
	sim->rng += 0x9e3779b97f4a7c15;
	return mix(sim->rng) % below;
}

/* --- executing one request --- */

static const char *kind_name(unsigned kind)
{
	switch (kind) {
	case IO_SIM_READ: return "read";
	case IO_SIM_WRITE: return "write";
	case IO_SIM_FSYNC: return "fsync";
	case IO_SIM_ZERO: return "zero";
	case IO_SIM_DISCARD: return "discard";
	case IO_SIM_TRUNCATE: return "truncate";
	default: return "sleep";
	}
}

static void trace(struct io_sim *sim, const struct sim_req *r, const char *what)
{
	if (sim->trace && r->kind != SIM_SLEEP)
		fprintf(sim->trace, "sim seq=%llu sync=%llu op=%s file=%s off=%#llx len=%#llx%s%s%s\n",
			(unsigned long long)sim->seq, (unsigned long long)sim->syncs, kind_name(r->kind),
			r->file->path, (unsigned long long)r->off, (unsigned long long)r->len,
			r->kind == IO_SIM_WRITE && (r->flags & IO_DSYNC) ? " dsync" : "", *what ? " " : "",
			what);
}

/* Changes the current contents; the operation is unsynced from here on. */
static void mutate(struct io_sim *sim, struct sim_req *r)
{
	struct sim_file *f = r->file;
	uint64_t len = r->len;

	sim->seq++;
	switch (r->kind) {
	case IO_SIM_WRITE:
		sim_file_write(f, sim->seq, r->buf, r->off, len);
		break;
	case IO_SIM_ZERO:
		sim_file_zero(f, sim->seq, r->off, len, true);
		break;
	case IO_SIM_DISCARD:
		if (r->off >= f->cur_size)
			break;
		if (len > f->cur_size - r->off)
			len = f->cur_size - r->off;
		sim_file_zero(f, sim->seq, r->off, len, false);
		break;
	case IO_SIM_TRUNCATE:
		sim_file_truncate(f, sim->seq, r->off);
		break;
	}
}

static void finish(struct io_sim *sim, struct sim_req *r, ssize_t result)
{
	r->result = result;
	r->done = true;
	if (r->co)
		co_wake(r->co);
}

/* Takes R off the pending list. */
static void unlink_req(struct io_sim *sim, struct sim_req *r)
{
	struct sim_req **p = &sim->pending;

	while (*p != r)
		p = &(*p)->next;
	*p = r->next;
	if (r->kind != SIM_SLEEP)
		sim->n_pending--;
}

static struct sim_req *pending_nth(struct io_sim *sim, uint64_t n)
{
	struct sim_req *r = sim->pending;

	for (;; r = r->next)
		if (r->kind != SIM_SLEEP && n-- == 0)
			return r;
}

/* With the process, what is in flight goes, or half of it, or nothing. */
static bool cancelled(struct io_sim *sim, struct sim_req *r)
{
	unsigned what = draw(sim, 3);

	if (what == 1 && r->kind == IO_SIM_WRITE && r->len > SIM_SECTOR)
		r->len = draw(sim, r->len / SIM_SECTOR) * SIM_SECTOR;
	return what == 0 || !r->len;
}

/* Everything in flight may have reached storage, in any order; nobody hears. */
static void die(struct io_sim *sim)
{
	if (sim->dead)
		return;
	sim_maps_notice(sim);
	sim_maps_die(sim);
	sim->dead = true;
	sim_mapped_die(sim);
	if (sim->trace)
		fprintf(sim->trace, "sim dead\n");
	while (sim->n_pending) {
		struct sim_req *r = pending_nth(sim, draw(sim, sim->n_pending));

		unlink_req(sim, r);
		if (r->kind & SIM_MUTATES && !(sim->by_kill && cancelled(sim, r)))
			mutate(sim, r);
		trace(sim, r, "in flight");
		finish(sim, r, -EIO);
	}
}

/* The error that an injected fault has for R, or 0. */
static int fault_for(struct io_sim *sim, const struct sim_req *r)
{
	for (struct sim_fault *x = sim->fault; x < sim->fault + SIM_MAX_FAULTS; x++)
		if ((x->kinds & r->kind) && --x->left == 0) {
			x->kinds = 0;
			return -x->err;
		}
	return 0;
}

/* What a failed operation leaves behind: some of a write; after a failed fsync
 * pages that the kernel takes for clean. */
static void fail(struct io_sim *sim, struct sim_req *r)
{
	struct sim_req part = *r;

	if (r->kind == IO_SIM_FSYNC)
		sim_orphan(r->file, r->began);
	if (r->kind != IO_SIM_WRITE)
		return;
	part.len = draw(sim, r->len / SIM_SECTOR + 1) * SIM_SECTOR;
	if (part.len)
		mutate(sim, &part);
}

/* A sync point: makes durable what R says unless the machine dies before. */
static int sync_point(struct io_sim *sim, struct sim_req *r)
{
	sim->syncs++;
	if (sim->crash == IO_SIM_CRASH_BEFORE_SYNC && sim->syncs == sim->crash_n) {
		die(sim);
		return -EIO;
	}
	if (r->kind == IO_SIM_FSYNC)
		sim_settle_fsync(r->file, r->began);
	else
		sim_settle_dsync(r->file, sim->seq);
	if (sim->crash == IO_SIM_CRASH_AFTER_SYNC && sim->syncs == sim->crash_n) {
		die(sim);
		return -EIO;
	}
	return 0;
}

static ssize_t execute(struct io_sim *sim, struct sim_req *r)
{
	int rc;

	if (r->kind == SIM_SLEEP)
		return 0;
	if (sim->dead)
		return -EIO;
	sim_maps_notice(sim);
	rc = fault_for(sim, r);
	trace(sim, r, rc ? "fault" : "");
	if (rc) {
		fail(sim, r);
		return rc;
	}
	if (r->kind == IO_SIM_READ)
		return sim_file_read(r->file, r->buf, r->len, r->off);
	if (r->kind & SIM_MUTATES) {
		mutate(sim, r);
		sim->writes++;
		if (sim->crash == IO_SIM_CRASH_AT_WRITE && sim->writes == sim->crash_n) {
			die(sim);
			return -EIO;
		}
	}
	if (r->kind == IO_SIM_FSYNC || (r->kind == IO_SIM_WRITE && (r->flags & IO_DSYNC)))
		return sync_point(sim, r);
	return 0;
}

ssize_t sim_submit(struct io_sim *sim, struct sim_req *r)
{
	sim_maps_notice(sim);
	r->began = sim->seq;
	r->co = co_self();
	if (sim->dead && r->kind != SIM_SLEEP)
		return -EIO;
	if (!r->co) {
		if (r->kind == SIM_SLEEP && r->deadline > sim->now)
			sim->now = r->deadline;
		return execute(sim, r);
	}
	r->next = sim->pending;
	sim->pending = r;
	if (r->kind != SIM_SLEEP)
		sim->n_pending++;
	while (!r->done)
		co_suspend();
	return r->result;
}

/* --- the machine --- */

struct io_sim *io_sim_new(uint64_t seed)
{
	struct io_sim *sim = calloc(1, sizeof(*sim));

	if (!sim)
		abort();
	sim->io.ops = &sim_ops;
	sim->rng = mix(seed);
	return sim;
}

void io_sim_free(struct io_sim *sim)
{
	if (!sim)
		return;
	assert(!sim->open_files && !sim->pending);
	while (sim->files) {
		struct sim_file *next = sim->files->next;

		sim_file_free(sim->files);
		sim->files = next;
	}
	sim_mapped_free(sim);
	sim_maps_free(sim);
	free(sim);
}

struct io *io_sim_io(struct io_sim *sim)
{
	return &sim->io;
}

struct io_sim *io_sim_clone(const struct io_sim *sim)
{
	struct io_sim *c = io_sim_new(sim->rng);

	for (const struct sim_file *f = sim->files; f; f = f->next) {
		struct sim_file *copy = sim_file_clone(f);

		copy->next = c->files;
		c->files = copy;
	}
	c->now = sim->now;
	c->seq = sim->seq;
	c->syncs = sim->syncs;
	c->writes = sim->writes;
	c->dead = sim->dead;
	c->boots = sim->boots;
	sim_mapped_clone(c, sim);
	return c;
}

void io_sim_start(struct io_sim *sim, void (*fn)(void *arg), void *arg)
{
	struct sched *former = sched_set(&sim->sched);

	co_start(fn, arg);
	sched_set(former);
}

/* The pending request that goes next: any, but sleepers only when nobody else
 * waits, in the order of their deadlines. */
static struct sim_req *pick(struct io_sim *sim)
{
	struct sim_req *first = sim->pending;

	if (sim->n_pending)
		return pending_nth(sim, draw(sim, sim->n_pending));
	for (struct sim_req *r = sim->pending; r; r = r->next)
		if (r->deadline < first->deadline)
			first = r;
	return first;
}

uint64_t io_sim_run(struct io_sim *sim)
{
	struct sched *former = sched_set(&sim->sched);
	uint64_t n = 0;

	for (;; n++) {
		struct sim_req *r;

		while (sched_run(&sim->sched))
			;
		r = pick(sim);
		if (!r)
			break;
		unlink_req(sim, r);
		if (r->kind == SIM_SLEEP && r->deadline > sim->now)
			sim->now = r->deadline;
		finish(sim, r, execute(sim, r));
	}
	sched_set(former);
	return n;
}

uint64_t io_sim_now(const struct io_sim *sim)
{
	return sim->now;
}

void io_sim_crash_at(struct io_sim *sim, enum io_sim_crash when, uint64_t n)
{
	sim->crash = when;
	sim->crash_n = n;
}

void io_sim_kill_at(struct io_sim *sim, enum io_sim_crash when, uint64_t n)
{
	io_sim_crash_at(sim, when, n);
	sim->by_kill = true;
}

void io_sim_crash_now(struct io_sim *sim)
{
	die(sim);
}

bool io_sim_dead(const struct io_sim *sim)
{
	return sim->dead;
}

uint64_t io_sim_sync_points(const struct io_sim *sim)
{
	return sim->syncs;
}

uint64_t io_sim_writes(const struct io_sim *sim)
{
	return sim->writes;
}

uint64_t io_sim_unsynced(const struct io_sim *sim)
{
	uint64_t n = 0;

	for (const struct sim_file *f = sim->files; f; f = f->next)
		n += f->n_ops;
	return n;
}

void io_sim_fail(struct io_sim *sim, unsigned kinds, uint64_t n, int err)
{
	struct sim_fault *x = sim->fault;

	while (x < sim->fault + SIM_MAX_FAULTS - 1 && x->kinds)
		x++;
	assert(!x->kinds);
	*x = (struct sim_fault){ .kinds = kinds, .left = n, .err = err };
}

void io_sim_trace(struct io_sim *sim, FILE *out)
{
	sim->trace = out;
}

/* --- power loss --- */

struct loss {
	uint64_t seed;
	bool by_operation;
	unsigned chance;		/* in 256, that something reached storage */
};

static bool loss_keep(const struct sim_op *op, uint64_t sector, const void *arg)
{
	const struct loss *l = arg;
	uint64_t h = mix(l->seed ^ mix(op->seq));

	if (!l->by_operation)
		h = mix(h ^ sector);
	return h % 256 < l->chance;
}

static void revive(struct io_sim *sim)
{
	sim_mapped_revive(sim);
	sim->life++;
	sim->dead = false;
	sim->by_kill = false;
	sim->crash = IO_SIM_CRASH_NEVER;
	sim->syncs = sim->writes = 0;
	memset(sim->fault, 0, sizeof(sim->fault));
}

void io_sim_power_loss(struct io_sim *sim, uint64_t seed)
{
	static const struct loss style[8] = {
		{ .chance = 0 }, { .chance = 256 }, { .chance = 128 }, { .chance = 128 },
		{ .chance = 128, .by_operation = true }, { .chance = 32 }, { .chance = 224 },
		{ .chance = 224, .by_operation = true },
	};
	struct loss l = style[seed % 8];

	die(sim);
	l.seed = mix(seed);
	for (struct sim_file *f = sim->files; f; f = f->next)
		sim_settle_loss(f, loss_keep, &l);
	sim->boots++;
	revive(sim);
}

void io_sim_restart(struct io_sim *sim)
{
	die(sim);
	revive(sim);
}
