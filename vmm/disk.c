// SPDX-License-Identifier: BSD-3-Clause
/* disk: the disk as a whole: opening, what the server offers, size, cancelling.
 *
 * A server that comes back must offer at least what it offered: the guest was told once.
 * The size may be another one, and the guest is told.
 */
#include "vmm/disk-int.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/log.h"

int64_t disk_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static uint32_t block_size(struct nbd_handle *h, int which, uint32_t unsaid, uint32_t most)
{
	int64_t n = nbd_get_block_size(h, which);

	return n <= 0 ? unsaid : min_u64(n, most);
}

static int read_facts(struct nbd_handle *h, struct disk_facts *f, struct error *err)
{
	int64_t size = nbd_get_size(h);

	if (size < 0)
		return error_set(err, -EINVAL, "%s", nbd_get_error());
	*f = (struct disk_facts){
		.size = size,
		.block_min = block_size(h, LIBNBD_SIZE_MINIMUM, 1, UINT32_MAX),
		.block_preferred = block_size(h, LIBNBD_SIZE_PREFERRED, 4096, UINT32_MAX),
		.block_max = block_size(h, LIBNBD_SIZE_MAXIMUM, 32 << 20, 32 << 20),
		.read_only = nbd_is_read_only(h) > 0,
		.can_flush = nbd_can_flush(h) > 0,
		.can_fua = nbd_can_fua(h) > 0,
		.can_discard = nbd_can_trim(h) > 0,
		.can_zero = nbd_can_zero(h) > 0,
		.multi_conn = nbd_can_multi_conn(h) > 0,
	};
	if (!is_pow2(f->block_min) || f->block_min > 65536 || f->block_max < f->block_min)
		return error_set(err, -EINVAL, "the server wants blocks of %u to %u bytes",
				 f->block_min, f->block_max);
	return 0;
}

/* What was promised to the guest and is no more, or NULL. */
static const char *missing(const struct disk *d, const struct disk_facts *f)
{
	const struct disk_facts *was = &d->facts;

	return f->read_only && !was->read_only ? "it is read-only now"
	     : !f->can_fua && was->can_fua ? "it offers no FUA any more"
	     : !f->can_flush && was->can_flush ? "it offers no flush any more"
	     : !f->can_discard && was->can_discard ? "it offers no discard any more"
	     : !f->can_zero && was->can_zero ? "it offers no write zeroes any more"
	     : !f->multi_conn && d->n_channels > 1 ? "it offers no multi-conn any more"
	     : f->block_min > max_u64(was->block_min, 512) ? "its blocks are larger now"
							   : NULL;
}

void disk_set_size(struct disk *d, uint64_t size)
{
	bool other;

	pthread_mutex_lock(&d->lock);
	other = d->facts.size != size;
	d->facts.size = size;
	if (other && d->resized)
		d->resized(d->resized_arg, size);
	pthread_mutex_unlock(&d->lock);
}

/* H is ready: are its facts what we can live with? */
int disk_learn(struct disk *d, struct nbd_handle *h, bool first, struct error *err)
{
	struct disk_facts f;
	const char *why;
	int rc = read_facts(h, &f, err);

	if (rc)
		return rc;
	if (first) {
		f.read_only |= d->read_only;
		d->facts = f;
		return 0;
	}
	if ((why = missing(d, &f)))
		return error_set(err, -EINVAL, "%s", why);
	disk_set_size(d, f.size);
	return 0;
}

static void channel_free(struct disk_channel *c)
{
	if (!c)
		return;
	conn_close(c);
	cmd_free(c);
	if (c->wake >= 0)
		close(c->wake);
	free(c);
}

static int channel_make(struct disk *d, unsigned i, struct error *err)
{
	struct disk_channel *c = calloc(1, sizeof(*c));

	if (!c)
		return error_set(err, -ENOMEM, "out of memory");
	c->disk = d;
	c->index = i;
	c->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	cmd_init(c);
	d->channel[i] = c;
	if (c->wake < 0)
		return error_errno(err, -errno, "eventfd");
	return conn_open(c, err);
}

static int take_uris(struct disk *d, const char *const *uris, struct error *err)
{
	for (; uris && *uris; uris++) {
		if (d->n_uris == DISK_URIS_MAX)
			return error_set(err, -EINVAL, "a disk has at most %u addresses", DISK_URIS_MAX);
		d->uri[d->n_uris] = strdup(*uris);
		if (!d->uri[d->n_uris])
			return error_set(err, -ENOMEM, "out of memory");
		d->n_uris++;
	}
	return d->n_uris ? 0 : error_set(err, -EINVAL, "a disk needs an address");
}

static int open_channels(struct disk *d, unsigned wanted, struct error *err)
{
	int rc = channel_make(d, 0, err);

	d->n_channels = 1;
	if (rc || !d->facts.multi_conn)
		return rc;
	for (; d->n_channels < wanted; d->n_channels++)
		if ((rc = channel_make(d, d->n_channels, err)))
			return rc;
	return 0;
}

int disk_open(const struct disk_config *config, struct disk **out, struct error *err)
{
	struct disk *d = calloc(1, sizeof(*d));
	int rc;

	assert(config->channels > 0 && config->channels <= DISK_CHANNELS_MAX);
	*out = NULL;
	if (!d)
		return error_set(err, -ENOMEM, "out of memory");
	pthread_mutex_init(&d->lock, NULL);
	strncpy(d->id, config->id ? config->id : "disk", sizeof(d->id) - 1);
	d->reconnect_delay = config->reconnect_delay;
	d->read_only = config->read_only;
	rc = take_uris(d, config->uris, err);
	if (!rc)
		rc = open_channels(d, config->channels, err);
	if (rc) {
		disk_close(d);
		return rc;
	}
	*out = d;
	return 0;
}

void disk_close(struct disk *d)
{
	if (!d)
		return;
	for (unsigned i = 0; i < DISK_CHANNELS_MAX; i++)
		channel_free(d->channel[i]);
	for (unsigned i = 0; i < d->n_uris; i++)
		free(d->uri[i]);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

void disk_facts(struct disk *d, struct disk_facts *f)
{
	pthread_mutex_lock(&d->lock);
	*f = d->facts;
	pthread_mutex_unlock(&d->lock);
}

unsigned disk_channels(const struct disk *d)
{
	return d->n_channels;
}

void disk_on_resize(struct disk *d, void (*fn)(void *arg, uint64_t size), void *arg)
{
	pthread_mutex_lock(&d->lock);
	d->resized = fn;
	d->resized_arg = arg;
	pthread_mutex_unlock(&d->lock);
}

struct disk_channel *disk_channel(struct disk *d, unsigned i)
{
	assert(i < d->n_channels);
	return d->channel[i];
}

void disk_wake(struct disk *d)
{
	uint64_t one = 1;

	for (unsigned i = 0; i < d->n_channels; i++)
		while (write(d->channel[i]->wake, &one, sizeof(one)) < 0 && errno == EINTR)
			;
}

void disk_cancel(struct disk *d)
{
	__atomic_store_n(&d->cancelled, true, __ATOMIC_SEQ_CST);
	disk_wake(d);
}

bool disk_is_connected(const struct disk_channel *c)
{
	return c->state == CHANNEL_READY;
}

static bool is_cancelled(const struct disk_channel *c)
{
	return __atomic_load_n(&c->disk->cancelled, __ATOMIC_SEQ_CST);
}

/* When the requests of a channel without a connection fail; -1: never. */
static int64_t failing_at(const struct disk_channel *c)
{
	if (!c->disk->reconnect_delay || !c->lost_at || !c->in_flight || c->state == CHANNEL_READY)
		return -1;
	return c->lost_at + (int64_t)c->disk->reconnect_delay * 1000;
}

static int wait_ms(const struct disk_channel *c)
{
	int64_t at = c->state == CHANNEL_READY ? INT64_MAX : c->deadline, fail = failing_at(c), left;

	if (is_cancelled(c))
		return c->in_flight ? 0 : -1;
	if (c->answered || c->drop_why)
		return 0;
	at = fail >= 0 && fail < at ? fail : at;
	if (at == INT64_MAX)
		return -1;
	left = at - disk_now();
	return left < 0 ? 0 : min_u64(left, 60000);
}

int disk_poll(struct disk_channel *c, struct pollfd *v, int *timeout_ms)
{
	int fd = conn_fd(c);

	*timeout_ms = c->h && fd < 0 ? 0 : wait_ms(c);
	v[0] = (struct pollfd){ .fd = c->wake, .events = POLLIN };
	if (fd < 0)
		return 1;
	v[1] = (struct pollfd){ .fd = fd, .events = conn_events(c) };
	return 2;
}

static void fail_late(struct disk_channel *c)
{
	int64_t at = failing_at(c);

	if (at < 0 || disk_now() < at)
		return;
	if (!c->told_failing)
		log_error("disk %s: no server for %u s: requests fail", c->disk->id,
			  c->disk->reconnect_delay);
	c->told_failing = true;
	cmd_fail(c, -EIO);
}

static void drain(int fd)
{
	uint64_t n;

	while (read(fd, &n, sizeof(n)) < 0 && errno == EINTR)
		;
}

void disk_work(struct disk_channel *c, const struct pollfd *v, int n)
{
	if (n > 0 && v[0].revents)
		drain(c->wake);
	if (is_cancelled(c)) {
		conn_close(c);
		cmd_unsend(c);
		cmd_fail(c, -ECANCELED);
		return;
	}
	if (n > 1 && v[1].revents)
		conn_notify(c, v[1].revents);
	do {
		cmd_answers(c);
		conn_check(c);
		if (c->state == CHANNEL_DOWN && disk_now() >= c->deadline)
			conn_start(c);
		if (c->state != CHANNEL_READY)
			fail_late(c);
		cmd_send(c);
	} while (c->answered);
}

void disk_go_on(struct disk_channel *c)
{
	int64_t now = disk_now();

	if (c->lost_at)
		c->lost_at = now;
	if (c->state == CHANNEL_CONNECTING)
		c->deadline = now + CONNECT_MS;
}

void disk_abandon(struct disk_channel *c)
{
	if (c->state == CHANNEL_READY && c->first && c->first != c->unsent) {
		conn_drop(c, "its requests are abandoned");
		__atomic_add_fetch(&c->disk->abandoned, 1, __ATOMIC_SEQ_CST);
		disk_wake(c->disk);
	}
	cmd_fail(c, -ECANCELED);
}
