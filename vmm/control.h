/* SPDX-License-Identifier: BSD-3-Clause */
/* control: the VMM's QMP socket.  Main loop only.
 *
 * Several clients at a time, each with its own session; all get all events.  Commands that
 * are about the machine are run here.  All others go on to the merinod that serves the
 * disks, over a connection of the client's own: its replies and events come back as if
 * both were one QEMU.
 */
#ifndef MERINO_VMM_CONTROL_H
#define MERINO_VMM_CONTROL_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/error.h"
#include "vmm/machine.h"

struct control;
struct json_object;

/* A disk of the machine, for query-block. */
struct control_disk {
	const char *id;			/* merinod's export or node of this name is what it holds */
	const char *node;		/* the export's name in its URI */
};

struct control_config {
	struct machine *machine;
	const char *path;		/* the socket to make; NULL: none, events go nowhere */
	const char *merinod;		/* merinod's QMP socket; NULL: none */
	const struct control_disk *disks;
	unsigned n_disks;
	/* Coroutine: the disks' sizes may have changed.  NULL: nobody wants to know. */
	void (*look)(void);
	void (*quit)(void);		/* "quit": ends the process, on the main loop */
	pid_t (*thread_id)(unsigned cpu);
};

/* Listens.  The path's file is the owner's alone (0600). */
int control_start(const struct control_config *c, struct control **out, struct error *err);
/* Coroutine: sends what is queued, for a second at most, disconnects all and frees. */
void control_end(struct control *c);

/* Tells every client that has negotiated.  DATA (NULL: none) is taken over; C may be NULL. */
void control_event(struct control *c, const char *name, struct json_object *data);

/* SHUTDOWN and RESET, as QEMU words them: REASON is one of its ShutdownCause ("guest-reset",
 * "host-signal", …); GUEST: the guest did it. */
void control_event_cause(struct control *c, const char *name, bool guest, const char *reason);

/* STOP and RESUME, after machine_pause() and machine_run(), when the state has changed. */
void control_pause(struct control *c, struct machine *m);
void control_run(struct control *c, struct machine *m);

#endif
