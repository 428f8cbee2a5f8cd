// SPDX-License-Identifier: BSD-3-Clause
/* virtio-blk: the device: what it offers, and its life.
 *
 * Each queue has a thread and a connection of its own; where the server does not offer
 * multi-conn, one thread with one connection serves them all.
 */
#include "vmm/virtio-blk-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/log.h"
#include "vmm/state.h"

static struct blk *of(struct virtio *v)
{
	return (struct blk *)((char *)v - offsetof(struct blk, v));
}

static void want_all(struct blk *b, enum worker_state s)
{
	for (unsigned i = 0; i < b->n_workers; i++)
		blk_worker_want(&b->worker[i], s);
}

static void wait_all(struct blk *b, enum worker_state s)
{
	for (unsigned i = 0; i < b->n_workers; i++)
		blk_worker_wait(&b->worker[i], s);
}

static int activate(struct virtio *v)
{
	struct blk *b = of(v);

	b->write_through = !virtio_has(v, VIRTIO_BLK_F_FLUSH);
	want_all(b, WORKER_RUNS);
	wait_all(b, WORKER_RUNS);
	return 0;
}

static void reset(struct virtio *v)
{
	struct blk *b = of(v);

	want_all(b, WORKER_PARKED);
	wait_all(b, WORKER_PARKED);
	for (unsigned i = 0; i < v->n_queues; i++)
		b->queue[i].redo = false;
}

static void rest(struct virtio *v, enum pci_rest step)
{
	struct blk *b = of(v);

	if (step == REST_BEGIN) {
		want_all(b, WORKER_RESTS);
	} else if (step == REST_WAIT) {
		wait_all(b, WORKER_RESTS);
	} else {
		want_all(b, WORKER_RUNS);
		wait_all(b, WORKER_RUNS);
	}
}

/* Capacity is the configuration's first field.  A driver reads it in two halves, between two
 * looks at the generation: so both change at once, on a vCPU's thread, when it looks. */
static void refresh(struct virtio *v)
{
	uint64_t sectors = __atomic_load_n(&of(v)->sectors, __ATOMIC_SEQ_CST);

	if (!memcmp(v->config, &sectors, sizeof(sectors)))
		return;
	memcpy(v->config, &sectors, sizeof(sectors));
	__atomic_add_fetch(&v->s.generation, 1, __ATOMIC_SEQ_CST);
}

/* What a server has got and not answered it may still do: a machine that did it again would have
 * old data come over new.  Without a connection there is no such server. */
static int save(struct virtio *v, struct device_state *s, struct error *err)
{
	struct blk *b = of(v);

	for (unsigned i = 0; i < b->n_workers; i++) {
		const struct disk_channel *c = b->worker[i].channel;

		if (v->active && disk_in_flight(c) && disk_is_connected(c))
			return error_set(err, -EBUSY, "disk %s: the server has not answered %u requests",
					 v->id, disk_in_flight(c));
	}
	return 0;
}

/* The driver knows the disk: only its size may be another one. */
static int load(struct virtio *v, const struct device_state *s, struct error *err)
{
	struct blk *b = of(v);
	const size_t size = sizeof(((struct virtio_blk_config *)0)->capacity);

	if (memcmp(s->virtio.config + size, v->config + size, v->config_len - size))
		return error_set(err, -EINVAL, "disk %s: it has not the blocks of the saved one", v->id);
	if (b->read_only && !virtio_has(v, VIRTIO_BLK_F_RO))
		return error_set(err, -EINVAL, "disk %s: it is read-only, the saved one is not", v->id);
	b->write_through = !virtio_has(v, VIRTIO_BLK_F_FLUSH);
	for (unsigned i = 0; i < v->n_queues; i++)
		b->queue[i].redo = v->queue[i].n_taken;
	return 0;
}

static const struct virtio_class blk_class = {
	.name = "virtio-blk-pci", .id = 2, .class_code = { 0, 0, 1 },
	.activate = activate, .reset = reset, .rest = rest, .refresh = refresh, .save = save,
	.load = load,
};

static void resized(void *arg, uint64_t size)
{
	struct blk *b = arg;

	__atomic_store_n(&b->sectors, size / SECTOR, __ATOMIC_SEQ_CST);
	log_info("disk %s: %llu bytes now", b->v.id, (unsigned long long)size);
	virtio_config_changed(&b->v);
}

static void fill_config(struct blk *b)
{
	const struct disk_facts *f = &b->facts;
	uint32_t block = max_u64(f->block_min, SECTOR);
	uint32_t physical = max_u64(min_u64(f->block_preferred, 4096), block);
	struct virtio_blk_config c = {
		.capacity = b->sectors,
		.seg_max = BLK_SEGMENTS,
		.blk_size = block,
		.physical_block_exp = is_pow2(physical) ? __builtin_ctz(physical / block) : 0,
		.min_io_size = min_u64(physical / block, UINT16_MAX),
		.wce = 1,
		.num_queues = b->v.n_queues,
		.max_discard_sectors = BLK_RANGE_SECTORS,
		.max_discard_seg = BLK_RANGES_MAX,
		.discard_sector_alignment = physical / SECTOR,
		.max_write_zeroes_sectors = BLK_RANGE_SECTORS,
		.max_write_zeroes_seg = BLK_RANGES_MAX,
		.write_zeroes_may_unmap = 1,
	};

	/* Secure erase, which follows, is not offered. */
	b->v.config_len = offsetof(struct virtio_blk_config, max_secure_erase_sectors);
	memcpy(b->v.config, &c, b->v.config_len);
}

static uint64_t features(const struct blk *b)
{
	uint64_t f = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE |
		     1ull << VIRTIO_BLK_F_TOPOLOGY | 1ull << VIRTIO_BLK_F_FLUSH;

	if (b->v.n_queues > 1)
		f |= 1ull << VIRTIO_BLK_F_MQ;
	if (b->read_only)
		return f | 1ull << VIRTIO_BLK_F_RO;
	if (b->facts.can_discard)
		f |= 1ull << VIRTIO_BLK_F_DISCARD;
	if (b->facts.can_zero)
		f |= 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
	return f;
}

/* Requests and their places: as many as a queue has heads. */
static int make_queue(struct blk *b, unsigned i, struct error *err)
{
	struct blk_queue *q = &b->queue[i];
	struct blk_worker *w = &b->worker[i % b->n_workers];

	q->q = &b->v.queue[i];
	q->index = i;
	q->doorbell = b->v.doorbell[i];
	q->pool = calloc(b->v.queue_size, sizeof(*q->pool));
	if (!q->pool)
		return error_set(err, -ENOMEM, "out of memory");
	for (unsigned j = 0; j < b->v.queue_size; j++) {
		q->pool[j].queue = q;
		q->pool[j].next_free = q->free;
		q->free = &q->pool[j];
	}
	w->queue[w->n_queues++] = q;
	return 0;
}

static int make_workers(struct blk *b, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < b->v.n_queues && !rc; i++)
		rc = make_queue(b, i, err);
	for (unsigned i = 0; i < b->n_workers && !rc; i++) {
		b->worker[i].blk = b;
		b->worker[i].channel = disk_channel(b->disk, i);
		rc = blk_worker_start(&b->worker[i], err);
	}
	return rc;
}

static unsigned queues_of(const struct machine *m, const struct blk_options *o)
{
	if (o->queues)
		return o->queues;
	return m->config ? min_u64(m->config->vcpus, 4) : 1;
}

static int connect_disk(struct blk *b, const struct blk_options *o, struct error *err)
{
	struct disk_config config = {
		.id = o->id, .uris = (const char *const *)o->uri, .channels = b->v.n_queues,
		.reconnect_delay = o->reconnect_delay, .read_only = o->read_only,
	};
	int rc = disk_open(&config, &b->disk, err);

	if (rc) {
		error_prefix(err, "disk %s: ", o->id);
		return rc;
	}
	disk_facts(b->disk, &b->facts);
	b->n_workers = disk_channels(b->disk);
	b->sectors = b->facts.size / SECTOR;
	b->read_only = b->facts.read_only;
	return 0;
}

int blk_add(struct machine *m, const struct blk_options *o, struct blk **out, struct error *err)
{
	struct blk *b = aligned_alloc(64, align_up(sizeof(*b), 64));
	struct disk_facts now;
	int rc;

	*out = NULL;
	if (!b)
		return error_set(err, -ENOMEM, "out of memory");
	memset(b, 0, sizeof(*b));
	pthread_mutex_init(&b->lock, NULL);
	pthread_cond_init(&b->changed, NULL);
	b->v.n_queues = queues_of(m, o);
	b->v.queue_size = o->queue_size;
	strcpy(b->v.id, o->id);
	memcpy(b->serial, o->serial, sizeof(b->serial));
	if ((rc = connect_disk(b, o, err)))
		goto fail;
	b->v.features = features(b);
	fill_config(b);
	if ((rc = virtio_add(m, &b->v, &blk_class, err)))
		goto fail;
	if ((rc = make_workers(b, err))) {
		blk_remove(b);
		return rc;
	}
	disk_on_resize(b->disk, resized, b);
	disk_facts(b->disk, &now);
	if (now.size != b->facts.size)	/* meanwhile */
		resized(b, now.size);
	*out = b;
	return 0;
fail:
	disk_close(b->disk);
	free(b);
	return rc;
}

void blk_remove(struct blk *b)
{
	if (!b)
		return;
	disk_on_resize(b->disk, NULL, NULL);
	for (unsigned i = 0; i < b->n_workers; i++)
		if (b->worker[i].started)
			blk_worker_want(&b->worker[i], WORKER_ENDS);
	for (unsigned i = 0; i < b->n_workers; i++) {
		if (b->worker[i].started)
			pthread_join(b->worker[i].thread, NULL);
		if (b->worker[i].started || b->worker[i].control > 0)
			close(b->worker[i].control);
	}
	b->v.active = false;		/* its threads are gone */
	virtio_remove(&b->v);
	for (unsigned i = 0; i < b->v.n_queues; i++)
		free(b->queue[i].pool);
	disk_close(b->disk);
	pthread_mutex_destroy(&b->lock);
	pthread_cond_destroy(&b->changed);
	free(b);
}

const char *blk_id(const struct blk *b)
{
	return b->v.id;
}

struct disk *blk_disk(struct blk *b)
{
	return b->disk;
}
