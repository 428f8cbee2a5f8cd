/* SPDX-License-Identifier: BSD-3-Clause */
/* console-int: what virtio-console.c (the device) and console-port.c (sockets) share. */
#ifndef MERINO_VMM_CONSOLE_INT_H
#define MERINO_VMM_CONSOLE_INT_H

#include <pthread.h>
#include <stdbool.h>

#include "common/co.h"
#include "vmm/console.h"
#include "vmm/virtio.h"

#define CONSOLE_CONTROL_IN 2u
#define CONSOLE_CONTROL_OUT 3u
#define CONSOLE_QUEUES (2 * CONSOLE_PORTS + 2)	/* ports', and two for control */

/* Messages to the guest that are due, in the order in which they go out. */
enum console_due { DUE_ADD = 1, DUE_CONSOLE = 2, DUE_NAME = 4, DUE_OPEN = 8, DUE_ALL = 15 };

/* A buffer of the guest's that was taken from a queue and not given back.  Under the lock;
 * a reset forgets it. */
struct console_buffer {
	bool taken;
	struct queue_chain chain;
	unsigned at;			/* the segment … */
	size_t skip;			/* … and how much of it was sent */
	struct iovec iov[QUEUE_SEGMENTS_MAX];
};

struct console_port {
	struct console *console;
	unsigned id;
	bool there;			/* it was asked for */
	bool is_terminal;
	const char *name, *path;
	/* Under the lock: */
	unsigned due;			/* enum console_due */
	bool guest_open;
	struct console_buffer in, out;	/* as the guest sees it */
	/* The main loop's: */
	int listener, client;		/* -1: none */
	bool receiving;			/* waits for the client's bytes */
	bool sending;			/* waits until the client takes some */
	struct co_queue change;		/* any of these has changed */
};

struct console {
	struct virtio virtio;		/* first */
	pthread_mutex_t lock;		/* the queues, while active; taken after machine->lock */
	bool active;			/* between activate() and reset() */
	bool resting;			/* the machine is paused */
	struct console_port port[CONSOLE_PORTS];
	struct iovec iov[QUEUE_SEGMENTS_MAX];	/* control's */
	/* The main loop's: */
	bool ending;
	unsigned running;		/* coroutines */
	struct co_queue wait;
};

static inline unsigned console_in_queue(unsigned port)
{
	return port ? 2 * port + 2 : 0;
}

static inline unsigned console_out_queue(unsigned port)
{
	return console_in_queue(port) + 1;
}

/* virtio-console.c, under the lock.  The device may look at guest memory. */
bool console_may(const struct console *c);
/* The next buffer of queue I: false when there is none. */
bool console_pop(struct console *c, unsigned i, struct queue_chain *chain);
void console_push(struct console *c, unsigned i, uint16_t head, uint32_t written);
/* Main loop, without it: sends what is due. */
void console_control(struct console *c);
/* A coroutine of the device has ended. */
void console_leave(struct console *c);

/* console-state.c */
int console_save(struct virtio *v, struct device_state *s, struct error *err);
int console_load(struct virtio *v, const struct device_state *s, struct error *err);

/* console-port.c */
int console_port_listen(struct console_port *p, struct error *err);
/* Skips N bytes of B: true when there is no more. */
bool console_advance(struct console_buffer *b, size_t n);
void console_port_run(void *port);		/* a coroutine: clients, and their bytes */
void console_port_send(struct console_port *p);	/* coroutine: what the guest wrote */
void console_port_changed(struct console_port *p);	/* the guest is ready, or is no more */
void console_port_stop(struct console_port *p);
void console_port_close(struct console_port *p);

#endif
