/* SPDX-License-Identifier: BSD-3-Clause */
/* virtio-console: the device: its queues, and the control messages of several ports
 * (virtio 1.2, section 5.3).
 *
 *	queue 0, 1	port 0: to the guest, from the guest
 *	queue 2, 3	control: to the guest, from the guest
 *	queue 4, 5	port 1
 *
 * The guest may ask for a port's messages as often as it likes: what is due is a set of
 * bits, so that nothing grows.
 */
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>

#include "common/io.h"
#include "common/loop.h"
#include "vmm/console-int.h"

#define QUEUE_SIZE 128
#define NAME_MAX_BYTES 64

/* -- queues; under the lock -------------------------------------------------- */

bool console_may(const struct console *c)
{
	return c->active && !c->resting;
}

static struct queue *usable(struct console *c, unsigned i)
{
	struct queue *q = &c->virtio.queue[i];

	return console_may(c) && q->s.enabled && !q->s.broken ? q : NULL;
}

bool console_pop(struct console *c, unsigned i, struct queue_chain *chain)
{
	struct queue *q = usable(c, i);
	int rc = q ? queue_pop(q, chain) : 0;

	if (q && !rc) {			/* ask for a doorbell, and look again */
		queue_notifications(q, true);
		rc = queue_pop(q, chain);
	}
	if (rc < 0)
		virtio_needs_reset(&c->virtio);
	return rc > 0;
}

void console_push(struct console *c, unsigned i, uint16_t head, uint32_t written)
{
	struct queue *q = usable(c, i);

	if (!q)
		return;
	queue_push(q, head, written);
	if (queue_wants_interrupt(q))
		virtio_interrupt(&c->virtio, i);
}

static void ring(int fd)
{
	const uint64_t one = 1;
	ssize_t n = write(fd, &one, sizeof(one));	/* it fails when it has been rung often */

	(void)n;
}

/* -- control ----------------------------------------------------------------- */

static size_t gather(const struct iovec *v, unsigned n, void *to, size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		size_t part = v[i].iov_len < len - done ? v[i].iov_len : len - done;

		memcpy((char *)to + done, v[i].iov_base, part);
		done += part;
	}
	return done;
}

static size_t scatter(const struct iovec *v, unsigned n, const void *from, size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		size_t part = v[i].iov_len < len - done ? v[i].iov_len : len - done;

		memcpy(v[i].iov_base, (const char *)from + done, part);
		done += part;
	}
	return done;
}

struct message {
	struct virtio_console_control head;
	char name[NAME_MAX_BYTES];
};

/* The first message that is due: its length and bit, or 0. */
static size_t message_of(const struct console_port *p, struct message *m, unsigned *bit)
{
	static const uint16_t events[] = {
		VIRTIO_CONSOLE_PORT_ADD, VIRTIO_CONSOLE_CONSOLE_PORT, VIRTIO_CONSOLE_PORT_NAME,
		VIRTIO_CONSOLE_PORT_OPEN,
	};
	size_t len = sizeof(m->head);
	unsigned i = 0;

	if (!p->due)
		return 0;
	while (!(p->due & 1u << i))
		i++;
	*bit = 1u << i;
	m->head.id = htole32(p->id);
	m->head.event = htole16(events[i]);
	m->head.value = htole16(1);
	if (*bit == DUE_OPEN)
		m->head.value = htole16(p->is_terminal || p->client >= 0);
	if (*bit == DUE_NAME) {
		size_t n = strnlen(p->name, NAME_MAX_BYTES - 1);

		memcpy(m->name, p->name, n);
		m->name[n] = 0;
		len += n + 1;
	}
	return len;
}

static void send_due(struct console *c)
{
	for (unsigned i = 0; i < CONSOLE_PORTS; i++) {
		struct console_port *p = &c->port[i];
		struct queue_chain chain = { .iov = c->iov };
		struct message m;
		unsigned bit;
		size_t len;

		while ((len = message_of(p, &m, &bit)) != 0) {
			size_t done;

			if (!console_pop(c, CONSOLE_CONTROL_IN, &chain))
				return;
			done = scatter(chain.iov + chain.n_out, chain.n_in, &m, len);
			console_push(c, CONSOLE_CONTROL_IN, chain.head, (uint32_t)done);
			if (done >= sizeof(m.head))
				p->due &= ~bit;
		}
	}
}

void console_control(struct console *c)
{
	pthread_mutex_lock(&c->lock);
	if (c->active && virtio_has(&c->virtio, VIRTIO_CONSOLE_F_MULTIPORT))
		send_due(c);
	pthread_mutex_unlock(&c->lock);
}

static void port_ready(struct console_port *p)
{
	p->due |= p->is_terminal ? DUE_CONSOLE | DUE_OPEN : 0;
	p->due |= p->name ? DUE_NAME : 0;
	p->due |= p->client >= 0 ? DUE_OPEN : 0;
}

static void take_message(struct console *c, const struct virtio_console_control *m)
{
	uint32_t id = le32toh(m->id);
	uint16_t event = le16toh(m->event), value = le16toh(m->value);

	if (event == VIRTIO_CONSOLE_DEVICE_READY) {
		for (unsigned i = 0; i < CONSOLE_PORTS && value; i++)
			c->port[i].due |= c->port[i].there ? DUE_ADD : 0;
	} else if (id >= CONSOLE_PORTS || !c->port[id].there) {
		return;
	} else if (event == VIRTIO_CONSOLE_PORT_READY && value) {
		port_ready(&c->port[id]);
	} else if (event == VIRTIO_CONSOLE_PORT_OPEN) {
		c->port[id].guest_open = value;
	}
}

/* What the guest says; at most a queue full at a time. */
static void take_messages(struct console *c)
{
	struct queue_chain chain = { .iov = c->iov };
	unsigned i;

	pthread_mutex_lock(&c->lock);
	for (i = 0; i < QUEUE_SIZE && console_pop(c, CONSOLE_CONTROL_OUT, &chain); i++) {
		struct virtio_console_control m;

		if (gather(chain.iov, chain.n_out, &m, sizeof(m)) == sizeof(m))
			take_message(c, &m);
		console_push(c, CONSOLE_CONTROL_OUT, chain.head, 0);
	}
	pthread_mutex_unlock(&c->lock);
	if (i == QUEUE_SIZE)
		ring(c->virtio.doorbell[CONSOLE_CONTROL_OUT]);
	console_control(c);
	for (i = 0; i < CONSOLE_PORTS; i++)
		console_port_changed(&c->port[i]);
}

/* -- doorbells --------------------------------------------------------------- */

struct bell {
	struct console *console;
	unsigned queue;
};

static void rung(struct console *c, unsigned i)
{
	unsigned port = i < CONSOLE_CONTROL_IN ? 0 : i / 2 - 1;

	if (i == CONSOLE_CONTROL_IN)
		console_control(c);
	else if (i == CONSOLE_CONTROL_OUT)
		take_messages(c);
	else if (i == console_in_queue(port))
		console_port_changed(&c->port[port]);
	else
		console_port_send(&c->port[port]);
}

static void bell_run(void *arg)
{
	struct bell *b = arg;
	struct console *c = b->console;
	struct io *io = loop_io(loop_self());
	unsigned queue = b->queue;
	int fd = c->virtio.doorbell[queue];

	free(b);
	while (!c->ending) {
		uint64_t n;

		if (io_poll(io, fd, POLLIN) < 0 || c->ending)
			break;
		if (read(fd, &n, sizeof(n)) == sizeof(n))
			rung(c, queue);
		co_yield();		/* others have their turn, however often it rings */
	}
	console_leave(c);
}

static int bells_start(struct console *c, struct error *err)
{
	for (unsigned i = 0; i < CONSOLE_QUEUES; i++) {
		struct bell *b = malloc(sizeof(*b));

		if (!b)
			return error_set(err, -ENOMEM, "Out of memory");
		*b = (struct bell){ c, i };
		c->running++;
		co_start(bell_run, b);
	}
	return 0;
}

void console_leave(struct console *c)
{
	c->running--;
	co_queue_wake_all(&c->wait);
}

/* -- the driver comes and goes; vCPU threads, with machine->lock ---------------- */

static int console_activate(struct virtio *v)
{
	struct console *c = (struct console *)v;

	pthread_mutex_lock(&c->lock);
	c->active = true;
	/* Without several ports there is one, and it has no messages. */
	c->port[0].guest_open = !virtio_has(v, VIRTIO_CONSOLE_F_MULTIPORT);
	pthread_mutex_unlock(&c->lock);
	for (unsigned i = 0; i < CONSOLE_QUEUES; i++)
		ring(v->doorbell[i]);
	return 0;
}

static void console_reset(struct virtio *v)
{
	struct console *c = (struct console *)v;

	pthread_mutex_lock(&c->lock);
	c->active = c->resting = false;
	for (unsigned i = 0; i < CONSOLE_PORTS; i++) {
		struct console_port *p = &c->port[i];

		p->due = 0;
		p->guest_open = false;
		p->in.taken = p->out.taken = false;
	}
	pthread_mutex_unlock(&c->lock);
}

/* Main loop.  The bells make all coroutines look again. */
static void console_rest(struct virtio *v, enum pci_rest step)
{
	struct console *c = (struct console *)v;

	pthread_mutex_lock(&c->lock);
	c->resting = step != REST_END;
	pthread_mutex_unlock(&c->lock);
	for (unsigned i = 0; i < CONSOLE_QUEUES && step == REST_END; i++)
		ring(v->doorbell[i]);
}

static const struct virtio_class console_class = {
	.name = "virtio-serial-pci",
	.id = VIRTIO_ID_CONSOLE,
	.class_code = { 0x00, 0x80, 0x07 },	/* a communication controller, of another kind */
	.activate = console_activate,
	.reset = console_reset,
	.rest = console_rest,
	.save = console_save,
	.load = console_load,
};

/* -- life --------------------------------------------------------------------- */

static void port_init(struct console *c, unsigned id, const char *path, const char *name)
{
	struct console_port *p = &c->port[id];

	p->console = c;
	p->id = id;
	p->there = path != NULL;
	p->is_terminal = id == 0;
	p->name = name;
	p->path = path;
	p->listener = p->client = -1;
	p->in.chain.iov = p->in.iov;
	p->out.chain.iov = p->out.iov;
}

static int ports_listen(struct console *c, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < CONSOLE_PORTS && !rc; i++)
		rc = c->port[i].there ? console_port_listen(&c->port[i], err) : 0;
	return rc;
}

int console_start(struct machine *m, const struct console_config *config, struct console **out,
		  struct error *err)
{
	struct console *c = calloc(1, sizeof(*c));
	struct virtio_console_config shape = { .max_nr_ports = htole32(CONSOLE_PORTS) };
	int rc;

	if (!c)
		return error_set(err, -ENOMEM, "Out of memory");
	pthread_mutex_init(&c->lock, NULL);
	port_init(c, 0, config->terminal, NULL);
	port_init(c, 1, config->agent, "org.qemu.guest_agent.0");
	c->virtio.n_queues = CONSOLE_QUEUES;
	c->virtio.queue_size = QUEUE_SIZE;
	c->virtio.features = 1ull << VIRTIO_CONSOLE_F_MULTIPORT;
	memcpy(c->virtio.config, &shape, sizeof(shape));
	c->virtio.config_len = sizeof(shape);
	strcpy(c->virtio.id, "console");
	rc = ports_listen(c, err);
	if (!rc)
		rc = virtio_add(m, &c->virtio, &console_class, err);
	if (rc) {
		for (unsigned i = 0; i < CONSOLE_PORTS; i++)
			console_port_close(&c->port[i]);
		free(c);
		return rc;
	}
	*out = c;
	rc = bells_start(c, err);
	for (unsigned i = 0; i < CONSOLE_PORTS && !rc; i++) {
		if (!c->port[i].there)
			continue;
		c->running++;
		co_start(console_port_run, &c->port[i]);
	}
	return rc;
}

void console_end(struct console *c)
{
	if (!c)
		return;
	c->ending = true;
	for (unsigned i = 0; i < CONSOLE_PORTS; i++)
		console_port_stop(&c->port[i]);
	for (unsigned i = 0; i < CONSOLE_QUEUES; i++)
		ring(c->virtio.doorbell[i]);
	while (c->running)
		co_queue_wait(&c->wait);
	for (unsigned i = 0; i < CONSOLE_PORTS; i++)
		console_port_close(&c->port[i]);
	virtio_remove(&c->virtio);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
