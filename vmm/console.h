/* SPDX-License-Identifier: BSD-3-Clause */
/* console: virtio-console with ports on unix sockets: a terminal (hvc0) and the guest
 * agent's ("org.qemu.guest_agent.0").
 *
 * All of it runs on the main loop; only activate() and reset() come from vCPU threads, and
 * the device's own lock keeps them apart.  A port's socket serves one client at a time.
 */
#ifndef MERINO_VMM_CONSOLE_H
#define MERINO_VMM_CONSOLE_H

#include "common/error.h"
#include "vmm/machine.h"

struct console;

struct console_config {
	const char *terminal;		/* unix socket of port 0; NULL: no such port */
	const char *agent;		/* unix socket of port 1; NULL: no such port */
};

#define CONSOLE_PORTS 2u

/* What is saved with the machine, besides its registers and queues.  Clients are the host's. */
struct console_state {
	uint32_t version;		/* 1 */
	struct {
		uint8_t there, due, guest_open;		/* due: bits of enum console_due */
		uint8_t in_taken, out_taken;	/* a buffer of the queue's is lent out: */
		uint16_t in_head, out_head;
		uint64_t out_sent;	/* bytes of it that have gone */
	} port[CONSOLE_PORTS];
};

/* Main loop, before the machine runs: listens, and puts the device on the bus. */
int console_start(struct machine *m, const struct console_config *config, struct console **out,
		  struct error *err);
/* Coroutine on the main loop, no vCPU in the guest.  NULL is fine. */
void console_end(struct console *c);

#endif
