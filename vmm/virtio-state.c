// SPDX-License-Identifier: BSD-3-Clause
/* virtio-state: a virtio device's registers and queues, saved and loaded.
 *
 * What a driver was told stays true: the device that loads a state offers at least the features
 * that were taken, as many queues, and a configuration that its class finds the same.  What
 * changed in it all the same (a disk's size) is told when the machine goes on.
 */
#include "vmm/virtio.h"

#include <errno.h>
#include <string.h>

#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "vmm/state.h"

enum {
	STATUS_ALL = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK |
		     VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED,
	ISR_ALL = 3,
};

int virtio_save(struct virtio *v, struct device_state *s, struct error *err)
{
	s->virtio = v->s;
	s->virtio.id = v->class->id;
	s->virtio.n_queues = v->n_queues;
	s->virtio.active = v->active;
	s->virtio.needs_reset = __atomic_load_n(&v->needs_reset, __ATOMIC_SEQ_CST);
	s->virtio.config_len = v->config_len;
	memcpy(s->virtio.config, v->config, v->config_len);
	for (unsigned i = 0; i < v->n_queues; i++)
		s->queue[i] = v->queue[i].s;
	return v->class->save ? v->class->save(v, s, err) : 0;
}

static bool is_vector(const struct virtio *v, uint16_t vector)
{
	return vector < v->pci.n_vectors || vector == VIRTIO_MSI_NO_VECTOR;
}

/* A state that this driver and this device can be in. */
static bool is_sound(const struct virtio *v, const struct virtio_state *s)
{
	bool features_ok = s->status & VIRTIO_CONFIG_S_FEATURES_OK;
	bool driver_ok = s->status & VIRTIO_CONFIG_S_DRIVER_OK;

	if (s->version != 1 || s->active > 1 || s->needs_reset > 1)
		return false;
	if (s->status & ~STATUS_ALL || s->isr & ~ISR_ALL || !is_vector(v, s->config_vector))
		return false;
	if (features_ok && !(s->acked >> VIRTIO_F_VERSION_1 & 1))
		return false;
	/* Rings that make no sense at DRIVER_OK leave the device idle. */
	if (driver_ok ? !features_ok || (!s->active && !s->needs_reset) : s->active)
		return false;
	return true;
}

static int check(const struct virtio *v, const struct device_state *s, struct error *err)
{
	const struct virtio_state *t = &s->virtio;

	if (t->id != v->class->id || t->n_queues != v->n_queues || t->config_len != v->config_len)
		return error_set(err, -EINVAL, "device %s: the state is another device's", v->id);
	if (t->status & VIRTIO_CONFIG_S_FEATURES_OK && t->acked & ~v->features)
		return error_set(err, -EINVAL, "device %s: features 0x%llx are not offered", v->id,
				 (unsigned long long)(t->acked & ~v->features));
	if (!is_sound(v, t))
		return error_set(err, -EINVAL, "device %s: a state that there is not", v->id);
	for (unsigned i = 0; i < v->n_queues; i++)
		if (!is_vector(v, s->queue[i].vector))
			return error_set(err, -EINVAL, "device %s: queue %u: no such vector", v->id, i);
	return 0;
}

int virtio_load(struct virtio *v, const struct device_state *s, struct error *err)
{
	const struct virtio_state *t = &s->virtio;
	int rc = check(v, s, err);

	if (rc)
		return rc;
	v->s = *t;
	v->needs_reset = t->needs_reset;
	v->config_news = memcmp(t->config, v->config, v->config_len) != 0;
	for (unsigned i = 0; i < v->n_queues; i++) {
		struct queue *q = &v->queue[i];

		q->event_idx = virtio_has(v, VIRTIO_RING_F_EVENT_IDX);
		q->indirect = virtio_has(v, VIRTIO_RING_F_INDIRECT_DESC);
		if (queue_load(q, &s->queue[i], v->queue_size, t->active))
			return error_set(err, -EINVAL, "device %s: queue %u: a state that there is not",
					 v->id, i);
	}
	if (!t->active)
		return 0;
	rc = v->class->load(v, s, err);
	if (rc)
		v->class->reset(v);
	v->active = !rc;
	return rc;
}

int virtio_refuse_taken(const struct virtio *v, struct error *err)
{
	for (unsigned i = 0; i < v->n_queues; i++)
		if (v->queue[i].n_taken)
			return error_set(err, -EINVAL, "device %s: queue %u: a request is under way", v->id, i);
	return 0;
}
