// SPDX-License-Identifier: BSD-3-Clause
/* virtio-net: the card and its thread.  See virtio-net.h. */
#include "vmm/virtio-net.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/machine.h"
#include "vmm/state.h"
#include "vmm/thread.h"
#include "vmm/virtio-net-int.h"

#define QUEUE_SIZE 256u			/* QEMU's */

/* -- the thread -------------------------------------------------------------------------- */

enum { POLL_WAKE, POLL_RX, POLL_TX, POLL_CARRIER };

static void drain(const struct pollfd *v)
{
	uint64_t count;

	if (v->revents & POLLIN && read(v->fd, &count, sizeof(count)) < 0)
		return;			/* somebody else read it: fine */
}

/* Says what happened since the last time.  Both calls take no lock. */
static void tell(struct virtio_net *n)
{
	for (unsigned i = 0; i < NET_QUEUES; i++) {
		if (n->active && n->used[i] && queue_wants_interrupt(&n->v.queue[i]))
			virtio_interrupt(&n->v, i);
		n->used[i] = false;
	}
	if (n->active && n->broke) {	/* silent until the driver has reset it */
		n->active = false;
		virtio_needs_reset(&n->v);
	}
}

static void *run(void *arg)
{
	struct virtio_net *n = arg;
	struct net *net = n->net;
	struct pollfd v[POLL_CARRIER + NET_POLL_MAX] = {
		[POLL_WAKE] = { .fd = n->wake, .events = POLLIN },
		[POLL_RX] = { .fd = n->v.doorbell[NET_RX], .events = POLLIN },
		[POLL_TX] = { .fd = n->v.doorbell[NET_TX], .events = POLLIN },
	};
	bool ending = false;
	unsigned more;
	int timeout;

	while (!ending) {
		pthread_mutex_lock(&n->lock);
		timeout = virtio_net_transmit(n) ? 0 : -1;
		more = net->class->poll(net, virtio_net_room(n), v + POLL_CARRIER, &timeout);
		tell(n);
		pthread_mutex_unlock(&n->lock);
		if (poll(v, POLL_CARRIER + more, timeout) < 0)
			continue;
		for (unsigned i = 0; i < POLL_CARRIER; i++)
			drain(&v[i]);
		pthread_mutex_lock(&n->lock);
		net->class->work(net, v + POLL_CARRIER, more);
		tell(n);
		ending = n->ending;
		pthread_mutex_unlock(&n->lock);
	}
	return NULL;
}

/* Signals are the main thread's. */
static int start_thread(struct virtio_net *n)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = thread_start(&n->thread, "net", NULL, run, n);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	n->started = !rc;
	return rc;
}

static void wake(struct virtio_net *n)
{
	uint64_t one = 1;

	if (write(n->wake, &one, sizeof(one)) < 0)
		return;			/* full: it will wake */
}

/* -- the device -------------------------------------------------------------------------- */

static int activate(struct virtio *v)
{
	struct virtio_net *n = (struct virtio_net *)v;

	pthread_mutex_lock(&n->lock);
	n->active = true;
	n->broke = false;
	pthread_mutex_unlock(&n->lock);
	wake(n);
	return 0;
}

static void reset(struct virtio *v)
{
	struct virtio_net *n = (struct virtio_net *)v;

	pthread_mutex_lock(&n->lock);
	n->active = n->resting = false;
	n->broke = false;
	n->used[NET_RX] = n->used[NET_TX] = false;
	pthread_mutex_unlock(&n->lock);
}

/* The world goes on meanwhile: frames for the guest wait in a tap device, libslirp loses them. */
static void rest(struct virtio *v, enum pci_rest step)
{
	struct virtio_net *n = (struct virtio_net *)v;

	pthread_mutex_lock(&n->lock);
	n->resting = step != REST_END;
	pthread_mutex_unlock(&n->lock);
	wake(n);
}

static int load(struct virtio *v, const struct device_state *s, struct error *err)
{
	struct virtio_net *n = (struct virtio_net *)v;

	if (memcmp(s->virtio.config, v->config, v->config_len))
		return error_set(err, -EINVAL, "device %s: the saved card has another address or MTU", v->id);
	pthread_mutex_lock(&n->lock);
	n->active = n->resting = true;
	n->broke = n->v.queue[NET_RX].s.broken || n->v.queue[NET_TX].s.broken;
	pthread_mutex_unlock(&n->lock);
	return virtio_refuse_taken(v, err);
}

static const struct virtio_class class = {
	.name = "virtio-net-pci", .id = 1, .class_code = { 0, 0, 2 },
	.activate = activate, .reset = reset, .rest = rest, .load = load,
};

static void set_config(struct virtio *v, const struct net_options *o)
{
	struct virtio_net_config c = { .status = VIRTIO_NET_S_LINK_UP, .mtu = o->mtu };

	memcpy(c.mac, o->mac, sizeof(c.mac));
	v->config_len = offsetof(struct virtio_net_config, speed);
	memcpy(v->config, &c, v->config_len);
	v->features = 1ull << VIRTIO_NET_F_MAC | 1ull << VIRTIO_NET_F_STATUS;
	if (o->mtu)
		v->features |= 1ull << VIRTIO_NET_F_MTU;
	v->n_queues = NET_QUEUES;
	v->queue_size = QUEUE_SIZE;
	strcpy(v->id, o->id);
}

static int add(struct machine *m, struct virtio_net *n, const char *text, unsigned index,
	       struct error *err)
{
	struct net_options o;
	int rc = net_open(text, index, &o, &n->net, err);

	if (rc)
		return rc;
	n->net->deliver = virtio_net_deliver;
	n->net->room = virtio_net_room;
	n->net->arg = n;
	n->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (n->wake < 0)
		return error_errno(err, -errno, "%s", o.id);
	set_config(&n->v, &o);
	rc = virtio_add(m, &n->v, &class, err);
	if (rc)
		return rc;
	n->added = true;
	rc = start_thread(n);
	return rc ? error_errno(err, rc, "%s: no thread", o.id) : 0;
}

int virtio_net_add(struct machine *m, const char *text, unsigned index, struct virtio_net **out,
		   struct error *err)
{
	struct virtio_net *n = calloc(1, sizeof(*n));
	int rc;

	if (!n)
		return error_errno(err, -ENOMEM, "--net");
	pthread_mutex_init(&n->lock, NULL);
	n->wake = -1;
	rc = add(m, n, text, index, err);
	if (rc)
		virtio_net_end(n);
	else
		*out = n;
	return rc;
}

void virtio_net_end(struct virtio_net *n)
{
	if (!n)
		return;
	if (n->started) {
		pthread_mutex_lock(&n->lock);
		n->ending = true;
		pthread_mutex_unlock(&n->lock);
		wake(n);
		pthread_join(n->thread, NULL);
	}
	if (n->added)
		virtio_remove(&n->v);
	net_close(n->net);
	if (n->wake >= 0)
		close(n->wake);
	pthread_mutex_destroy(&n->lock);
	free(n);
}
