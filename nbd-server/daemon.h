/* SPDX-License-Identifier: BSD-3-Clause */
/* daemon: the process's few singletons, made by main.c before anything else. */
#ifndef MERINO_DAEMON_H
#define MERINO_DAEMON_H

#include "format/node.h"

struct loop;

struct daemon {
	struct graph graph;
	struct loop *main;		/* control socket, listeners, handshakes */
	struct loop **disk_loops;	/* where disks live; at least one */
	unsigned n_disk_loops;
};

extern struct daemon the_daemon;

/* Begins the end of the process; returns at once.  Main loop. */
void daemon_quit(void);

#endif
