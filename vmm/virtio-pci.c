// SPDX-License-Identifier: BSD-3-Clause
/* virtio-pci: the registers of a virtio 1.x device (virtio 1.2, section 4.1).
 *
 *	BAR 0	0000	common configuration
 *		1000	ISR status
 *		2000	the device's own configuration
 *		3000	notifications, 4 bytes for each queue: eventfds, no exit
 *		4000	MSI-X table and pending bits
 *
 * What the guest has negotiated is fixed when it says so: features at FEATURES_OK, a queue
 * when it is enabled.  Later writes do nothing until a reset, so that the threads of the
 * device may rely on what they found in activate().
 */
#include "vmm/virtio.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "common/checked.h"
#include "vmm/machine.h"

enum {
	AT_COMMON = 0x0000, AT_ISR = 0x1000, AT_DEVICE = 0x2000, AT_NOTIFY = 0x3000,
	AT_MSIX = 0x4000, BAR_LEN = 0x8000, AREA = 0x1000,
	NOTIFY_EACH = 4,
	ISR_QUEUE = 1, ISR_CONFIG = 2,
};

static struct virtio *of(struct pci_device *d)
{
	return (struct virtio *)((char *)d - offsetof(struct virtio, pci));
}

/* --- interrupts: any thread */

static void raise_vector(struct virtio *v, uint16_t vector, uint8_t isr)
{
	if (!pci_raise(&v->pci, vector))
		__atomic_or_fetch(&v->s.isr, isr, __ATOMIC_SEQ_CST);
}

void virtio_interrupt(struct virtio *v, unsigned i)
{
	raise_vector(v, __atomic_load_n(&v->queue[i].s.vector, __ATOMIC_RELAXED), ISR_QUEUE);
}

void virtio_config_changed(struct virtio *v)
{
	__atomic_add_fetch(&v->s.generation, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&v->s.status, __ATOMIC_SEQ_CST) & VIRTIO_CONFIG_S_DRIVER_OK)
		raise_vector(v, __atomic_load_n(&v->s.config_vector, __ATOMIC_RELAXED), ISR_CONFIG);
}

void virtio_needs_reset(struct virtio *v)
{
	if (!__atomic_exchange_n(&v->needs_reset, true, __ATOMIC_SEQ_CST))
		virtio_config_changed(v);
}

/* --- status */

static void queue_defaults(struct virtio *v, struct queue *q)
{
	*q = (struct queue){ .memory = &v->machine->memory };
	q->s.version = 1;
	q->s.size = v->queue_size;
	q->s.vector = VIRTIO_MSI_NO_VECTOR;
}

static void drain(int fd)
{
	uint64_t n;

	while (read(fd, &n, sizeof(n)) < 0 && errno == EINTR)
		;
}

static void reset(struct virtio *v)
{
	if (v->active)
		v->class->reset(v);
	v->active = false;
	v->s = (struct virtio_state){ .version = 1, .generation = v->s.generation,
				      .config_vector = VIRTIO_MSI_NO_VECTOR };
	for (unsigned i = 0; i < v->n_queues; i++) {
		queue_defaults(v, &v->queue[i]);
		drain(v->doorbell[i]);
	}
	v->needs_reset = v->config_news = false;
}

static void activate(struct virtio *v)
{
	for (unsigned i = 0; i < v->n_queues; i++) {
		struct queue *q = &v->queue[i];

		q->event_idx = virtio_has(v, VIRTIO_RING_F_EVENT_IDX);
		q->indirect = virtio_has(v, VIRTIO_RING_F_INDIRECT_DESC);
		if (q->s.enabled && queue_start(q)) {
			virtio_needs_reset(v);
			return;
		}
	}
	v->active = true;
	if (v->class->activate(v))
		virtio_needs_reset(v);
}

static bool features_fit(const struct virtio *v)
{
	return !(v->s.acked & ~v->features) && virtio_has(v, VIRTIO_F_VERSION_1);
}

static void status_write(struct virtio *v, uint8_t value)
{
	uint8_t was = v->s.status;

	if (value == 0) {
		reset(v);
		return;
	}
	value &= ~VIRTIO_CONFIG_S_NEEDS_RESET;
	value |= was;				/* bits go by a reset only */
	if ((value & ~was & VIRTIO_CONFIG_S_FEATURES_OK) && !features_fit(v))
		value &= ~VIRTIO_CONFIG_S_FEATURES_OK;
	if (!(value & VIRTIO_CONFIG_S_FEATURES_OK))
		value &= ~VIRTIO_CONFIG_S_DRIVER_OK;
	__atomic_store_n(&v->s.status, value, __ATOMIC_SEQ_CST);
	if (value & ~was & VIRTIO_CONFIG_S_DRIVER_OK)
		activate(v);
}

static uint8_t status_read(const struct virtio *v)
{
	bool bad = __atomic_load_n(&v->needs_reset, __ATOMIC_SEQ_CST);

	return v->s.status | (bad ? VIRTIO_CONFIG_S_NEEDS_RESET : 0);
}

/* --- the common configuration: one field in one access, as the specification wants */

static struct queue *selected(struct virtio *v)
{
	return v->s.queue_select < v->n_queues ? &v->queue[v->s.queue_select] : NULL;
}

static uint32_t feature_word(uint64_t features, uint32_t select)
{
	return select < 2 ? features >> 32 * select : 0;
}

static uint32_t queue_read(struct virtio *v, const struct queue *q, unsigned off)
{
	switch (off) {
	case VIRTIO_PCI_COMMON_Q_SIZE: return q->s.size;
	case VIRTIO_PCI_COMMON_Q_MSIX: return q->s.vector;
	case VIRTIO_PCI_COMMON_Q_ENABLE: return q->s.enabled;
	case VIRTIO_PCI_COMMON_Q_NOFF: return v->s.queue_select;
	case VIRTIO_PCI_COMMON_Q_DESCLO: return q->s.desc;
	case VIRTIO_PCI_COMMON_Q_DESCHI: return q->s.desc >> 32;
	case VIRTIO_PCI_COMMON_Q_AVAILLO: return q->s.avail;
	case VIRTIO_PCI_COMMON_Q_AVAILHI: return q->s.avail >> 32;
	case VIRTIO_PCI_COMMON_Q_USEDLO: return q->s.used;
	case VIRTIO_PCI_COMMON_Q_USEDHI: return q->s.used >> 32;
	default: return 0;
	}
}

static void refresh(struct virtio *v)
{
	if (v->class->refresh)
		v->class->refresh(v);
}

static uint32_t common_read(struct virtio *v, unsigned off)
{
	struct queue *q = selected(v);

	if (off == VIRTIO_PCI_COMMON_CFGGENERATION)
		refresh(v);
	switch (off) {
	case VIRTIO_PCI_COMMON_DFSELECT: return v->s.feature_select;
	case VIRTIO_PCI_COMMON_DF: return feature_word(v->features, v->s.feature_select);
	case VIRTIO_PCI_COMMON_GFSELECT: return v->s.driver_select;
	case VIRTIO_PCI_COMMON_GF: return feature_word(v->s.acked, v->s.driver_select);
	case VIRTIO_PCI_COMMON_MSIX: return v->s.config_vector;
	case VIRTIO_PCI_COMMON_NUMQ: return v->n_queues;
	case VIRTIO_PCI_COMMON_STATUS: return status_read(v);
	case VIRTIO_PCI_COMMON_CFGGENERATION:
		return __atomic_load_n(&v->s.generation, __ATOMIC_SEQ_CST);
	case VIRTIO_PCI_COMMON_Q_SELECT: return v->s.queue_select;
	default: return q ? queue_read(v, q, off) : 0;
	}
}

static void low(uint64_t *n, uint32_t value)
{
	*n = (*n & ~0xffffffffull) | value;
}

static void high(uint64_t *n, uint32_t value)
{
	*n = (*n & 0xffffffff) | (uint64_t)value << 32;
}

/* A vector that there is not reads back as none: so the driver learns it. */
static void vector_write(struct virtio *v, uint16_t *vector, uint32_t value)
{
	__atomic_store_n(vector, value < v->pci.n_vectors ? value : VIRTIO_MSI_NO_VECTOR,
			 __ATOMIC_RELAXED);
}

static void queue_write(struct virtio *v, struct queue *q, unsigned off, uint32_t value)
{
	if (off == VIRTIO_PCI_COMMON_Q_MSIX) {
		vector_write(v, &q->s.vector, value);
		return;
	}
	/* The rest is the device's once the queue is enabled. */
	if (q->s.enabled || v->s.status & VIRTIO_CONFIG_S_DRIVER_OK)
		return;
	switch (off) {
	case VIRTIO_PCI_COMMON_Q_SIZE:
		if (is_pow2(value) && value <= v->queue_size)
			q->s.size = value;
		break;
	case VIRTIO_PCI_COMMON_Q_ENABLE: q->s.enabled = value == 1; break;
	case VIRTIO_PCI_COMMON_Q_DESCLO: low(&q->s.desc, value); break;
	case VIRTIO_PCI_COMMON_Q_DESCHI: high(&q->s.desc, value); break;
	case VIRTIO_PCI_COMMON_Q_AVAILLO: low(&q->s.avail, value); break;
	case VIRTIO_PCI_COMMON_Q_AVAILHI: high(&q->s.avail, value); break;
	case VIRTIO_PCI_COMMON_Q_USEDLO: low(&q->s.used, value); break;
	case VIRTIO_PCI_COMMON_Q_USEDHI: high(&q->s.used, value); break;
	}
}

static void feature_write(struct virtio *v, uint32_t value)
{
	if (v->s.status & VIRTIO_CONFIG_S_FEATURES_OK)
		return;
	if (v->s.driver_select == 0)
		low(&v->s.acked, value);
	else if (v->s.driver_select == 1)
		high(&v->s.acked, value);
}

static void common_write(struct virtio *v, unsigned off, uint32_t value)
{
	struct queue *q = selected(v);

	switch (off) {
	case VIRTIO_PCI_COMMON_DFSELECT: v->s.feature_select = value; break;
	case VIRTIO_PCI_COMMON_GFSELECT: v->s.driver_select = value; break;
	case VIRTIO_PCI_COMMON_GF: feature_write(v, value); break;
	case VIRTIO_PCI_COMMON_MSIX: vector_write(v, &v->s.config_vector, value); break;
	case VIRTIO_PCI_COMMON_STATUS: status_write(v, value); break;
	case VIRTIO_PCI_COMMON_Q_SELECT: v->s.queue_select = value; break;
	default:
		if (q)
			queue_write(v, q, off, value);
	}
}

/* How long the field at OFF is; 0: none begins there. */
static unsigned field_size(uint64_t off)
{
	switch (off) {
	case VIRTIO_PCI_COMMON_DFSELECT: case VIRTIO_PCI_COMMON_DF:
	case VIRTIO_PCI_COMMON_GFSELECT: case VIRTIO_PCI_COMMON_GF:
	case VIRTIO_PCI_COMMON_Q_DESCLO: case VIRTIO_PCI_COMMON_Q_DESCHI:
	case VIRTIO_PCI_COMMON_Q_AVAILLO: case VIRTIO_PCI_COMMON_Q_AVAILHI:
	case VIRTIO_PCI_COMMON_Q_USEDLO: case VIRTIO_PCI_COMMON_Q_USEDHI:
		return 4;
	case VIRTIO_PCI_COMMON_STATUS: case VIRTIO_PCI_COMMON_CFGGENERATION:
		return 1;
	case VIRTIO_PCI_COMMON_MSIX: case VIRTIO_PCI_COMMON_NUMQ:
	case VIRTIO_PCI_COMMON_Q_SELECT: case VIRTIO_PCI_COMMON_Q_SIZE:
	case VIRTIO_PCI_COMMON_Q_MSIX: case VIRTIO_PCI_COMMON_Q_ENABLE:
	case VIRTIO_PCI_COMMON_Q_NOFF:
		return 2;
	default:
		return 0;
	}
}

/* --- the device's own configuration */

static uint64_t device_read(struct virtio *v, uint64_t off, unsigned size)
{
	uint64_t value = 0;

	refresh(v);
	if (checked_range(off, size, v->config_len))
		memcpy(&value, v->config + off, size);
	else if (off < v->config_len)
		memcpy(&value, v->config + off, v->config_len - off);
	return value;
}

static void device_write(struct virtio *v, uint64_t off, unsigned size, uint64_t value)
{
	if (!v->class->config_written || !checked_range(off, size, v->config_len))
		return;
	memcpy(v->config + off, &value, size);
	v->class->config_written(v, off, size);
}

/* --- the BAR */

static uint64_t isr_read(struct virtio *v)
{
	return __atomic_exchange_n(&v->s.isr, 0, __ATOMIC_SEQ_CST);
}

static uint64_t virtio_read(struct pci_device *d, uint64_t off, unsigned size)
{
	struct virtio *v = of(d);
	uint64_t value = 0;

	if (pci_msix_access(d, off, size, &value, false))
		return value;
	switch (off & ~(uint64_t)(AREA - 1)) {
	case AT_COMMON:
		return field_size(off) == size ? common_read(v, off) : 0;
	case AT_ISR:
		return off == AT_ISR ? isr_read(v) : 0;
	case AT_DEVICE:
		return device_read(v, off - AT_DEVICE, size);
	default:
		return 0;
	}
}

/* Only where the kernel does not ring the bell itself. */
static void notify(struct virtio *v, uint64_t i)
{
	uint64_t one = 1;

	if (i < v->n_queues)
		while (write(v->doorbell[i], &one, sizeof(one)) < 0 && errno == EINTR)
			;
}

static void virtio_write(struct pci_device *d, uint64_t off, unsigned size, uint64_t value)
{
	struct virtio *v = of(d);

	if (pci_msix_access(d, off, size, &value, true))
		return;
	switch (off & ~(uint64_t)(AREA - 1)) {
	case AT_COMMON:
		if (field_size(off) == size)
			common_write(v, off, value);
		break;
	case AT_DEVICE:
		device_write(v, off - AT_DEVICE, size, value);
		break;
	case AT_NOTIFY:
		notify(v, (off - AT_NOTIFY) / NOTIFY_EACH);
		break;
	}
}

static void doorbells(struct virtio *v, uint64_t base, bool on)
{
	for (unsigned i = 0; i < v->n_queues; i++)
		machine_doorbell(v->machine, base + AT_NOTIFY + NOTIFY_EACH * i, 0,
				 v->doorbell[i], on);
}

static void virtio_moved(struct pci_device *d, uint64_t base)
{
	doorbells(of(d), base ? base : d->bar.base, base != 0);
}

static void virtio_pci_reset(struct pci_device *d)
{
	reset(of(d));
}

static void virtio_pci_rest(struct pci_device *d, enum pci_rest step)
{
	struct virtio *v = of(d);

	if (v->active)
		v->class->rest(v, step);
	if (step == REST_END && v->config_news) {
		v->config_news = false;
		virtio_config_changed(v);
	}
}

static int virtio_pci_save(struct pci_device *d, struct device_state *s, struct error *err)
{
	return virtio_save(of(d), s, err);
}

static int virtio_pci_load(struct pci_device *d, const struct device_state *s, struct error *err)
{
	return virtio_load(of(d), s, err);
}

/* --- the window in configuration space: registers for who cannot reach the BAR */

static void window(struct pci_device *d, unsigned off, unsigned size, bool write)
{
	unsigned data = of(d)->cfg_cap + sizeof(struct virtio_pci_cap);
	struct virtio_pci_cap cap;
	uint32_t value = 0;

	if (off >= data + 4 || off + size <= data)
		return;
	memcpy(&cap, d->config + of(d)->cfg_cap, sizeof(cap));
	if (cap.bar != 0 || (cap.length != 1 && cap.length != 2 && cap.length != 4) ||
	    !is_aligned(cap.offset, cap.length) || !checked_range(cap.offset, cap.length, BAR_LEN))
		return;
	if (write) {
		memcpy(&value, d->config + data, cap.length);
		virtio_write(d, cap.offset, cap.length, value);
	} else {
		value = virtio_read(d, cap.offset, cap.length);
		memcpy(d->config + data, &value, cap.length);
	}
}

/* --- making one */

static uint8_t add_area(struct virtio *v, uint8_t type, uint32_t off, uint32_t len, uint8_t more)
{
	struct virtio_pci_cap cap = { .cap_len = sizeof(cap) + more, .cfg_type = type,
				      .offset = off, .length = len };
	uint8_t at = pci_add_capability(&v->pci, PCI_CAP_ID_VNDR, cap.cap_len);

	memcpy(v->pci.config + at + PCI_CAP_FLAGS, (char *)&cap + PCI_CAP_FLAGS,
	       sizeof(cap) - PCI_CAP_FLAGS);
	return at;
}

static void add_areas(struct virtio *v)
{
	struct pci_device *d = &v->pci;
	uint32_t each = NOTIFY_EACH;
	uint8_t at;

	add_area(v, VIRTIO_PCI_CAP_COMMON_CFG, AT_COMMON, sizeof(struct virtio_pci_common_cfg), 0);
	add_area(v, VIRTIO_PCI_CAP_ISR_CFG, AT_ISR, 1, 0);
	if (v->config_len)
		add_area(v, VIRTIO_PCI_CAP_DEVICE_CFG, AT_DEVICE, v->config_len, 0);
	at = add_area(v, VIRTIO_PCI_CAP_NOTIFY_CFG, AT_NOTIFY, NOTIFY_EACH * v->n_queues, 4);
	memcpy(d->config + at + sizeof(struct virtio_pci_cap), &each, sizeof(each));
	at = v->cfg_cap = add_area(v, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 4);
	d->writable[at + offsetof(struct virtio_pci_cap, bar)] = 0xff;
	memset(d->writable + at + offsetof(struct virtio_pci_cap, offset), 0xff, 4 + 4 + 4);
}

static int make_doorbells(struct virtio *v, struct error *err)
{
	for (unsigned i = 0; i < v->n_queues; i++) {
		v->doorbell[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		if (v->doorbell[i] < 0) {
			int rc = error_errno(err, -errno, "%s: eventfd", v->class->name);

			while (i-- > 0)
				close(v->doorbell[i]);
			return rc;
		}
	}
	return 0;
}

/* Each kind of device has its own PCI class, which firmware and kernels look at. */
static struct pci_class *pci_class_of(struct virtio *v)
{
	v->pci_class = (struct pci_class){
		.vendor = 0x1af4, .device = 0x1040 + v->class->id,
		.sub_vendor = 0x1af4, .sub_device = 0x1100,
		.revision = 1, .bar_len = BAR_LEN,
		.read = virtio_read, .write = virtio_write, .moved = virtio_moved,
		.reset = virtio_pci_reset, .rest = virtio_pci_rest, .save = virtio_pci_save,
		.load = virtio_pci_load, .config_access = window,
	};
	memcpy(v->pci_class.class_code, v->class->class_code, sizeof(v->class->class_code));
	return &v->pci_class;
}

int virtio_add(struct machine *m, struct virtio *v, const struct virtio_class *c, struct error *err)
{
	unsigned vectors = v->n_queues + 1;	/* and one for the configuration */
	int rc;

	assert(v->n_queues > 0 && v->n_queues <= VIRTIO_QUEUES_MAX);
	assert(is_pow2(v->queue_size) && v->queue_size <= QUEUE_SIZE_MAX);
	assert(v->config_len <= VIRTIO_CONFIG_MAX);
	v->class = c;
	v->machine = m;
	v->features |= 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC |
		       1ull << VIRTIO_RING_F_EVENT_IDX;
	if ((rc = make_doorbells(v, err)))
		return rc;
	reset(v);
	if ((rc = pci_add(m, &v->pci, pci_class_of(v), err)))
		goto no_device;
	rc = pci_add_msix(&v->pci, vectors, AT_MSIX, err);
	if (rc)
		goto no_vectors;
	add_areas(v);
	return 0;
no_vectors:
	pci_remove(&v->pci);
no_device:
	for (unsigned i = 0; i < v->n_queues; i++)
		close(v->doorbell[i]);
	return rc;
}

void virtio_remove(struct virtio *v)
{
	reset(v);
	pci_remove(&v->pci);
	for (unsigned i = 0; i < v->n_queues; i++)
		close(v->doorbell[i]);
}
