// SPDX-License-Identifier: BSD-3-Clause
/* virtio-rng: random bytes for the guest.
 *
 * One thread waits for the doorbell and fills what is offered from the kernel's generator, at
 * most RNG_BYTES of a buffer: a device may give less than was asked for.  It works under the
 * lock, which reset() takes: afterwards nothing touches the guest's memory.
 */
#include "vmm/virtio-rng.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "common/checked.h"
#include "vmm/machine.h"
#include "vmm/thread.h"
#include "vmm/virtio.h"

enum { RNG_QUEUE_SIZE = 8, RNG_BYTES = 64 << 10, RNG_STACK = 64 << 10 };

struct rng {
	struct virtio v;
	pthread_mutex_t lock;		/* the queue */
	bool active, resting;
	pthread_t thread;
	int stop;			/* eventfd */
	struct iovec iov[QUEUE_SEGMENTS_MAX];
};

static struct rng *of(struct virtio *v)
{
	return (struct rng *)((char *)v - offsetof(struct rng, v));
}

static int activate(struct virtio *v)
{
	struct rng *r = of(v);

	pthread_mutex_lock(&r->lock);
	r->active = true;
	pthread_mutex_unlock(&r->lock);
	return 0;
}

static void reset(struct virtio *v)
{
	struct rng *r = of(v);

	pthread_mutex_lock(&r->lock);
	r->active = r->resting = false;
	pthread_mutex_unlock(&r->lock);
}

static void ring(int fd)
{
	uint64_t one = 1;

	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void rest(struct virtio *v, enum pci_rest step)
{
	struct rng *r = of(v);

	pthread_mutex_lock(&r->lock);
	r->resting = step != REST_END;
	pthread_mutex_unlock(&r->lock);
	if (step == REST_END)		/* the bell was not heard meanwhile */
		ring(v->doorbell[0]);
}

static int load(struct virtio *v, const struct device_state *s, struct error *err)
{
	struct rng *r = of(v);

	pthread_mutex_lock(&r->lock);
	r->active = r->resting = true;
	pthread_mutex_unlock(&r->lock);
	return virtio_refuse_taken(v, err);
}

static const struct virtio_class rng_class = {
	.name = "virtio-rng-pci", .id = 4, .class_code = { 0, 0xff, 0 },
	.activate = activate, .reset = reset, .rest = rest, .load = load,
};

/* How much of C is random now. */
static uint32_t fill(const struct queue_chain *c)
{
	uint32_t done = 0;

	for (unsigned i = 0; i < c->n_in && done < RNG_BYTES; i++) {
		const struct iovec *v = &c->iov[c->n_out + i];
		size_t want = min_u64(v->iov_len, RNG_BYTES - done), got = 0;

		while (got < want) {
			ssize_t n = getrandom((char *)v->iov_base + got, want - got, 0);

			if (n < 0 && errno != EINTR)
				return done + got;
			got += n > 0 ? (size_t)n : 0;
		}
		done += got;
	}
	return done;
}

/* One turn takes no more than the queue holds, and looks again when more came. */
static bool serve(struct rng *r)
{
	struct queue *q = &r->v.queue[0];
	struct queue_chain c = { .iov = r->iov };
	unsigned n = 0;
	int rc = 0;

	if (!r->active || r->resting || !q->s.enabled)
		return false;
	while (n < q->s.size && (rc = queue_pop(q, &c)) == 1) {
		queue_push(q, c.head, fill(&c));
		n++;
	}
	if (rc < 0)
		virtio_needs_reset(&r->v);
	if (n && queue_wants_interrupt(q))
		virtio_interrupt(&r->v, 0);
	queue_notifications(q, true);
	return !queue_is_empty(q);
}

static void drain(int fd)
{
	uint64_t n;

	while (read(fd, &n, sizeof(n)) < 0 && errno == EINTR)
		;
}

static void *work(void *arg)
{
	struct rng *r = arg;
	struct pollfd p[2] = { { .fd = r->stop, .events = POLLIN },
			       { .fd = r->v.doorbell[0], .events = POLLIN } };
	bool more = false;

	for (;;) {
		if (poll(p, 2, more ? 0 : -1) < 0)
			continue;
		if (p[0].revents)
			return NULL;
		if (p[1].revents)
			drain(p[1].fd);
		pthread_mutex_lock(&r->lock);
		more = serve(r);
		pthread_mutex_unlock(&r->lock);
	}
}

static int start(struct rng *r)
{
	sigset_t all, old;
	pthread_attr_t a;
	int rc;

	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, RNG_STACK);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = thread_start(&r->thread, "rng", &a, work, r);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&a);
	return rc;
}

int rng_add(struct machine *m, struct rng **out, struct error *err)
{
	struct rng *r = calloc(1, sizeof(*r));
	int rc;

	*out = NULL;
	if (!r)
		return error_set(err, -ENOMEM, "out of memory");
	pthread_mutex_init(&r->lock, NULL);
	r->v.n_queues = 1;
	r->v.queue_size = RNG_QUEUE_SIZE;
	strcpy(r->v.id, "rng0");
	r->stop = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (r->stop < 0) {
		rc = error_errno(err, -errno, "eventfd");
		goto no_stop;
	}
	if ((rc = virtio_add(m, &r->v, &rng_class, err)))
		goto no_device;
	if ((rc = start(r))) {
		error_errno(err, rc, "virtio-rng: thread");
		goto no_thread;
	}
	*out = r;
	return 0;
no_thread:
	virtio_remove(&r->v);
no_device:
	close(r->stop);
no_stop:
	free(r);
	return rc;
}

void rng_remove(struct rng *r)
{
	if (!r)
		return;
	ring(r->stop);
	pthread_join(r->thread, NULL);
	virtio_remove(&r->v);
	close(r->stop);
	pthread_mutex_destroy(&r->lock);
	free(r);
}
