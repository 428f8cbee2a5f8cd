/* SPDX-License-Identifier: BSD-3-Clause */
/* powerloss-rig: a qcow2 disk on a simulated machine, a workload on it, and the
 * verdict on what a power loss left.
 *
 * Several coroutines write, zero, discard, flush and read; each owns segments
 * of the disk, in blocks of 512 bytes, whose borders ignore clusters, so that
 * they meet in clusters but never in a block.  The same seed gives the same run.
 */
#ifndef MERINO_POWERLOSS_RIG_H
#define MERINO_POWERLOSS_RIG_H

#include <errno.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdio.h>

#include "common/io-sim.h"
#include "format/node.h"
#include "format/qcow2.h"
#include "powerloss-model.h"
#include "qcow2-checker.h"

enum { MAX_SEGMENT = 400, MAX_WORKERS = 4, MAX_HELD = 64 };	/* blocks; coroutines; clusters */

/* What went before, and so what may be gone. */
enum death {
	NO_DEATH,
	POWER_LOSS,			/* what was not flushed */
	KILL,				/* nothing that was acknowledged */
};

struct config {
	const char *name;
	uint64_t seed;
	uint32_t cluster;		/* bytes */
	uint32_t blocks;		/* size of the disk, when it is fully grown */
	uint32_t grow;			/* of these, what it does not have at first */
	uint32_t backing;		/* blocks that the backing image has; 0: no overlay */
	uint32_t prefill;		/* blocks that are written, and flushed, before it begins */
	bool snapshot;			/* then qemu-img makes an internal snapshot "s" of that */
	bool no_log;			/* crash-log=off */
	bool version_2, subclusters;
	bool pack;			/* every other write asks for compression */
	bool aside;			/* somebody wants old clusters, now and then */
	unsigned refcount_bits;		/* 0: 16 */
	unsigned workers, ops;		/* ops of each */
	unsigned slice;			/* bytes of an L2 slice; the cache has 8, its least */
	unsigned fail_kinds;		/* enum io_sim_op: one of these fails (see rig_run) */
	unsigned fail_n;
};

struct segment {
	uint32_t first, n;
	unsigned owner;
};

/* Who wants old clusters. */
struct holder {
	struct qcow2_aside ask;
	struct {
		uint64_t off, host;
	} held[MAX_HELD];
	unsigned n, moved;
};

struct rig {
	const struct config *cfg;
	struct io_sim *sim;
	struct graph graph;
	struct node *node;		/* NULL: not open */
	struct node_use use;
	struct model model;
	struct segment *segment;
	unsigned n_segments;
	uint64_t rng;
	uint32_t blocks;		/* that the disk has for certain */
	struct holder holder;
	unsigned errors;		/* operations that failed, the machine being alive */
	char why[320];			/* the first thing that is wrong; empty: nothing */
};

struct worker {
	struct rig *rig;
	unsigned id;
};

static inline uint64_t rig_draw(struct rig *r, uint64_t below)
{
	r->rng ^= r->rng << 13;
	r->rng ^= r->rng >> 7;
	r->rng ^= r->rng << 17;
	return (r->rng >> 11) % below;
}

static inline void __attribute__((format(printf, 2, 3))) rig_wrong(struct rig *r, const char *fmt, ...)
{
	va_list ap;

	if (r->why[0])
		return;
	va_start(ap, fmt);
	vsnprintf(r->why, sizeof(r->why), fmt, ap);
	va_end(ap);
}

/* --- old clusters --- */

static inline struct rig *rig_of(struct qcow2_aside *a)
{
	return (struct rig *)((char *)a - offsetof(struct rig, holder.ask));
}

static inline bool rig_moves(struct qcow2_aside *a, uint64_t off, uint64_t len, uint64_t *n)
{
	struct rig *r = rig_of(a);

	*n = r->cfg->cluster * (1 + rig_draw(r, len / r->cfg->cluster));
	return rig_draw(r, 3);
}

static inline bool rig_moved(struct qcow2_aside *a, uint64_t off, uint64_t host)
{
	struct holder *h = &rig_of(a)->holder;

	if (h->n == MAX_HELD)
		return false;
	h->held[h->n].off = off;
	h->held[h->n++].host = host;
	h->moved++;
	return true;
}

static inline bool rig_wants(struct qcow2_aside *a, uint64_t off, uint64_t len)
{
	return false;
}

/* What is held is what was at that place of the disk: then it is free. */
static inline void rig_let_go(struct rig *r, unsigned i)
{
	struct holder *h = &r->holder;
	uint64_t off = h->held[i].off, host = h->held[i].host;
	uint8_t *buf = malloc(r->cfg->cluster);

	h->held[i] = h->held[--h->n];
	if (!qcow2_aside_read(r->node, buf, host, r->cfg->cluster))
		for (uint32_t at = 0; at < r->cfg->cluster; at += BLOCK)
			if (tag_read(buf + at, (off + at) / BLOCK) == VAL_GARBAGE)
				rig_wrong(r, "an old cluster of block %u was used again", (unsigned)(off / BLOCK));
	qcow2_aside_free(r->node, host, 1);
	free(buf);
}

static inline void rig_let_go_all(struct qcow2_aside *a)
{
	struct rig *r = rig_of(a);

	while (r->holder.n)
		rig_let_go(r, r->holder.n - 1);
}

static inline void rig_no_room(struct qcow2_aside *a, bool for_guest)
{
	if (for_guest)
		rig_let_go_all(a);
}

static inline void rig_hold(struct rig *r)
{
	r->holder = (struct holder){ .ask = { .moves = rig_moves, .moved = rig_moved, .wants = rig_wants,
					      .no_room = rig_no_room, .ends = rig_let_go_all } };
	if (r->cfg->aside && !qcow2_aside_set(r->node, &r->holder.ask))
		abort();
}

/* --- opening and closing --- */

/* Opens the image in r->sim; -errno leaves it closed. */
static inline int rig_open(struct rig *r, struct error *err)
{
	char text[500], backing[128] = "null";
	struct node_place where = { .graph = &r->graph, .io = io_sim_io(r->sim) };
	struct json_object *opts;
	int rc;

	graph_init(&r->graph);
	if (r->cfg->backing)
		snprintf(backing, sizeof(backing),
			 "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"base\"}}");
	snprintf(text, sizeof(text),
		 "{\"driver\":\"qcow2\",\"node-name\":\"disk\",\"discard\":\"unmap\",\"l2-cache-size\":1,"
		 "\"l2-cache-entry-size\":%u,\"file\":{\"driver\":\"file\",\"filename\":\"image\"},"
		 "\"crash-log\":\"%s\",\"backing\":%s}", r->cfg->slice, r->cfg->no_log ? "off" : "auto", backing);
	opts = json_tokener_parse(text);
	rc = node_open(&where, opts, &r->node, err);
	json_object_put(opts);
	if (rc) {
		r->node = NULL;
		return rc;
	}
	rig_hold(r);
	return node_use_add(&r->use, r->node, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, err, "the test");
}

static inline void rig_close(struct rig *r)
{
	node_use_drop(&r->use);
	node_unref(r->node);
	r->node = NULL;
	r->use = (struct node_use){ 0 };
}

static inline void rig_close_co(void *arg)
{
	rig_close(arg);
}

static inline void rig_prefill(const struct config *cfg, struct io_sim *sim)
{
	struct rig r = { .cfg = cfg, .sim = sim };
	struct error err = ERROR_INIT;
	uint8_t tags[8 * BLOCK];

	if (!cfg->prefill)
		return;
	if (rig_open(&r, &err))
		abort();
	for (uint32_t i = 0; i < cfg->prefill; i += 8) {
		tag_fill(tags, i, 8, VAL_BACKING);
		if (node_write(r.node, tags, (uint64_t)i * BLOCK, sizeof(tags), 0))
			abort();
	}
	rig_close(&r);
}

/* An internal snapshot, which only qemu-img can make. */
static inline void rig_snapshot(struct io_sim *sim)
{
	char dir[] = "/tmp/merino-rig.XXXXXX", path[64], cmd[200];

	if (!mkdtemp(dir))
		abort();
	snprintf(path, sizeof(path), "%s/image", dir);
	snprintf(cmd, sizeof(cmd), "qemu-img snapshot -c s %s", path);
	if (io_sim_dump(sim, "image", path) || system(cmd) || io_sim_load(sim, "image", path))
		abort();
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	if (system(cmd))
		abort();
}

/* A machine with an empty image, and a backing image full of tags. */
static inline struct io_sim *rig_template(const struct config *cfg)
{
	struct io_sim *sim = io_sim_new(cfg->seed);
	struct qcow2_create o = { .size = (uint64_t)(cfg->blocks - cfg->grow) * BLOCK,
				  .cluster_size = cfg->cluster, .refcount_bits = cfg->refcount_bits,
				  .version = cfg->version_2 ? 2 : 3, .extended_l2 = cfg->subclusters };
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io_sim_io(sim), "image", IO_RDWR | IO_CREATE, &err);
	uint8_t *tags = malloc((size_t)cfg->backing * BLOCK + 1);
	int rc;

	if (cfg->backing) {
		o.backing_file = "base";
		o.backing_format = "raw";
	}
	rc = qcow2_create(f, &o, &err);
	io_file_unref(f);
	f = io_open(io_sim_io(sim), "base", IO_RDWR | IO_CREATE, &err);
	tag_fill(tags, 0, cfg->backing, VAL_BACKING);
	if (rc || io_pwrite(f, tags, (size_t)cfg->backing * BLOCK, 0, 0) || io_fsync(f)) {
		fprintf(stderr, "template: %s\n", err.text);
		abort();
	}
	io_file_unref(f);
	free(tags);
	io_sim_power_loss(sim, 0);	/* qcow2_create() has synced it */
	rig_prefill(cfg, sim);
	if (cfg->snapshot)
		rig_snapshot(sim);
	return sim;
}

/* --- the workload --- */

static inline void rig_cut_segments(struct rig *r)
{
	uint32_t per_cluster = r->cfg->cluster / BLOCK, at = 0;
	uint32_t longest = 3 * (per_cluster < 8 ? 8 : per_cluster);

	r->segment = calloc(r->cfg->blocks, sizeof(*r->segment));
	while (at < r->cfg->blocks) {
		uint32_t n = 1 + rig_draw(r, rig_draw(r, 2) ? longest : per_cluster / 2 + 2);

		if (rig_draw(r, 2))	/* ends with a cluster, so that discards find whole ones */
			n += per_cluster - (at + n + per_cluster - 1) % per_cluster - 1;
		if (n > MAX_SEGMENT)
			n = MAX_SEGMENT;
		if (n > r->cfg->blocks - at)
			n = r->cfg->blocks - at;
		r->segment[r->n_segments] = (struct segment){ at, n, r->n_segments % r->cfg->workers };
		r->n_segments++;
		at += n;
	}
}

/* A random piece of a segment of WORKER; every other time a whole one. */
static inline void rig_pick(struct rig *r, unsigned worker, uint32_t *first, uint32_t *n)
{
	struct segment *s;
	uint32_t skip;

	do
		s = &r->segment[rig_draw(r, r->n_segments)];
	while (s->owner != worker || s->first + s->n > r->blocks);
	skip = rig_draw(r, 2) ? rig_draw(r, s->n) : 0;
	*first = s->first + skip;
	*n = skip ? 1 + rig_draw(r, s->n - skip) : s->n;
}

/* A failure is only right when the machine died, or a fault was asked for. */
static inline bool rig_ok(struct rig *r, int rc, const char *what)
{
	if (rc && !io_sim_dead(r->sim)) {
		r->errors++;
		if (!r->cfg->fail_kinds)
			rig_wrong(r, "%s failed: %s", what, strerror(-rc));
	}
	return !rc && !io_sim_dead(r->sim);	/* the dead acknowledge nothing */
}

static inline void rig_write(struct rig *r, uint32_t first, uint32_t n, bool fua)
{
	uint8_t *buf = calloc(n, BLOCK);
	uint32_t val = r->model.next_val++;
	unsigned flags = (fua ? NODE_FUA : 0) | (r->cfg->pack && val % 2 ? NODE_COMPRESS : 0);

	tag_fill(buf, first, n, val);
	model_issue(&r->model, first, n, val);
	if (rig_ok(r, node_write(r->node, buf, (uint64_t)first * BLOCK, (size_t)n * BLOCK, flags), "write"))
		model_ack(&r->model, first, n, fua);
	free(buf);
}

static inline void rig_zero(struct rig *r, uint32_t first, uint32_t n, unsigned flags)
{
	model_issue(&r->model, first, n, VAL_ZERO);
	if (rig_ok(r, node_zero(r->node, (uint64_t)first * BLOCK, (uint64_t)n * BLOCK, flags), "zero"))
		model_ack(&r->model, first, n, flags & NODE_FUA);
}

static inline void rig_discard(struct rig *r, uint32_t first, uint32_t n)
{
	model_issue(&r->model, first, n, VAL_DISCARD);
	if (rig_ok(r, node_discard(r->node, (uint64_t)first * BLOCK, (uint64_t)n * BLOCK), "discard"))
		model_ack(&r->model, first, n, false);
}

static inline void rig_flush(struct rig *r)
{
	uint64_t acks = r->model.acks;

	if (rig_ok(r, node_flush(r->node), "flush"))
		model_flushed(&r->model, acks);
}

/* Reads [FIRST, FIRST+N) and compares with what may be there; after a death that is
 * what is there from now on. */
static inline void rig_read(struct rig *r, uint32_t first, uint32_t n, enum death death)
{
	uint8_t *buf = malloc((size_t)n * BLOCK);
	int rc = node_read(r->node, buf, (uint64_t)first * BLOCK, (size_t)n * BLOCK);

	for (uint32_t i = 0; rig_ok(r, rc, "read") && i < n; i++) {
		uint32_t val = tag_read(buf + i * BLOCK, first + i);
		const struct block *b = &r->model.block[first + i];

		if (!model_allows(&r->model, first + i, val, death == POWER_LOSS)) {
			rig_wrong(r, "block %u reads %u (write of block %u), not %u or %u", first + i, val,
				  ((uint32_t *)(buf + i * BLOCK))[2], b->op[0].val, b->op[b->n - 1].val);
			break;
		}
		if (death)
			model_reset(&r->model, first + i, val);
	}
	free(buf);
}

static inline void rig_step(struct rig *r, unsigned worker)
{
	unsigned kind = rig_draw(r, 100);
	uint32_t first, n;

	rig_pick(r, worker, &first, &n);
	if (r->holder.n && rig_draw(r, 4) == 0)
		rig_let_go(r, rig_draw(r, r->holder.n));
	if (kind < 50)
		rig_write(r, first, n, false);
	else if (kind < 55)
		rig_write(r, first, n, true);
	else if (kind < 67)
		rig_zero(r, first, n, (rig_draw(r, 2) ? NODE_MAY_UNMAP : 0) | (kind < 57 ? NODE_FUA : 0));
	else if (kind < 82)
		rig_discard(r, first, n);
	else if (kind < 90)
		rig_flush(r);
	else
		rig_read(r, first, n, NO_DEATH);
}

/* A fifth of what is missing, and at least a block. */
static inline void rig_grow(struct rig *r)
{
	uint32_t blocks = r->blocks + (r->cfg->blocks - r->blocks + 4) / 5;
	struct error err = ERROR_INIT;

	if (rig_ok(r, node_truncate(r->node, (uint64_t)blocks * BLOCK, &err), "grow"))
		r->blocks = blocks;
}

static inline void rig_worker(void *arg)
{
	struct worker *w = arg;
	struct rig *r = w->rig;

	for (unsigned i = 0; i < r->cfg->ops; i++) {
		if (io_sim_dead(r->sim) || r->why[0])
			return;
		if (r->blocks < r->cfg->blocks && w->id == 0 && i % 5 == 4)
			rig_grow(r);
		rig_step(r, w->id);
	}
}

static inline void rig_init(struct rig *r, const struct config *cfg, struct io_sim *sim)
{
	*r = (struct rig){ .cfg = cfg, .sim = sim, .rng = cfg->seed * 2654435761u + 1 };
	model_init(&r->model, cfg->blocks);
	r->blocks = cfg->blocks - cfg->grow;
	for (uint32_t i = 0; i < cfg->blocks; i++)
		model_reset(&r->model, i, i < r->blocks && (i < cfg->backing || i < cfg->prefill) ? VAL_BACKING
											  : VAL_ZERO);
	rig_cut_segments(r);
}

static inline void rig_free(struct rig *r)
{
	model_free(&r->model);
	free(r->segment);
	io_sim_free(r->sim);
}

/* Opens, works, closes: to the end or until the machine dies. */
static inline void rig_run(struct rig *r)
{
	struct worker w[MAX_WORKERS];
	struct error err = ERROR_INIT;
	int rc = rig_open(r, &err);

	if (rc) {
		if (!io_sim_dead(r->sim))
			rig_wrong(r, "open: %s", err.text);
	} else {
		if (r->cfg->fail_kinds)
			io_sim_fail(r->sim, r->cfg->fail_kinds, r->cfg->fail_n, EIO);
		for (unsigned i = 0; i < r->cfg->workers; i++) {
			w[i] = (struct worker){ r, i };
			io_sim_start(r->sim, rig_worker, &w[i]);
		}
		io_sim_run(r->sim);
	}
	if (r->node) {
		io_sim_start(r->sim, rig_close_co, r);
		io_sim_run(r->sim);
	}
	if (r->cfg->aside && !io_sim_dead(r->sim) && !r->errors && !r->holder.moved)
		rig_wrong(r, "no cluster stayed");
}

/* --- the verdict --- */

/* At most LEAKS are tolerated.  Returns how many there are. */
static inline unsigned rig_check(struct rig *r, unsigned leaks, const char *when)
{
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io_sim_io(r->sim), "image", 0, &err);
	struct checker c;

	checker_run(&c, f);
	io_file_unref(f);
	if (c.errors)
		rig_wrong(r, "%s: %s, %u errors", when, c.first, c.errors);
	else if (c.leaks > leaks)
		rig_wrong(r, "%s: %u leaked clusters", when, c.leaks);
	return c.leaks;
}

/* What the snapshot has is what the prefill wrote. */
static inline void rig_read_snapshot(struct rig *r)
{
	struct node_place where = { .graph = &r->graph, .io = io_sim_io(r->sim) };
	struct json_object *opts = json_tokener_parse(
		"{\"driver\":\"qcow2\",\"read-only\":true,\"internal-snapshot\":\"s\",\"backing\":null,"
		"\"file\":{\"driver\":\"file\",\"filename\":\"image\"}}");
	struct error err = ERROR_INIT;
	uint8_t block[BLOCK];
	struct node *n;

	graph_init(&r->graph);
	if (node_open(&where, opts, &n, &err)) {
		rig_wrong(r, "open of the snapshot: %s", err.text);
		n = NULL;
	}
	json_object_put(opts);
	for (uint32_t i = 0; n && i < r->cfg->blocks; i++)
		if (node_read(n, block, (uint64_t)i * BLOCK, BLOCK) ||
		    tag_read(block, i) != (i < r->cfg->prefill ? VAL_BACKING : VAL_ZERO))
			rig_wrong(r, "block %u of the snapshot has changed", i);
	node_unref(n);
}

/* r->sim is alive after DEATH, or a clean close.  Reads the disk, and writes a little
 * to see that it goes on.  Whatever was leaked is found at the open. */
static inline void rig_verify(struct rig *r, enum death death)
{
	struct error err = ERROR_INIT;

	unsigned leaks = rig_check(r, death ? UINT32_MAX : 0, death ? "after the crash" : "after the close");

	if (!r->cfg->version_2)
		leaks = 0;		/* version 2 cannot say that it was not closed */
	if (!r->why[0] && rig_open(r, &err))
		rig_wrong(r, "open after: %s", err.text);
	if (r->node && r->node->size < (uint64_t)r->blocks * BLOCK)
		rig_wrong(r, "the disk has %llu bytes, not %u blocks", (unsigned long long)r->node->size, r->blocks);
	else if (r->node)
		r->blocks = r->node->size / BLOCK;
	for (uint32_t at = 0; !r->why[0] && at < r->blocks; at += 256)
		rig_read(r, at, r->blocks - at < 256 ? r->blocks - at : 256, death);
	for (int i = 0; !r->why[0] && i < 4; i++)
		rig_step(r, i % r->cfg->workers);
	if (r->node)
		rig_close(r);
	rig_check(r, leaks, "after another close");
	if (!r->why[0] && r->cfg->snapshot)
		rig_read_snapshot(r);
}

/* A rig with what R knows, on another machine (its own from now on). */
static inline void rig_fork(struct rig *to, const struct rig *r, struct io_sim *sim)
{
	*to = *r;
	to->sim = sim;
	to->node = NULL;
	to->use = (struct node_use){ 0 };
	to->segment = malloc(r->n_segments * sizeof(*r->segment));
	memcpy(to->segment, r->segment, r->n_segments * sizeof(*r->segment));
	to->model.block = calloc(r->model.n_blocks, sizeof(*r->model.block));
	for (uint32_t i = 0; i < r->model.n_blocks; i++)
		for (unsigned k = 0; k < r->model.block[i].n; k++)
			block_add(&to->model.block[i], r->model.block[i].op[k]);
}

#endif
