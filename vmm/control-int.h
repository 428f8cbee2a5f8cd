/* SPDX-License-Identifier: BSD-3-Clause */
/* control-int: what the files control*.c share. */
#ifndef MERINO_VMM_CONTROL_INT_H
#define MERINO_VMM_CONTROL_INT_H

#include <json-c/json.h>
#include <stddef.h>

#include "common/co.h"
#include "common/qmp-sender.h"
#include "vmm/control.h"

struct control {
	struct control_config config;
	int fd;				/* listens; -1: no socket */
	bool ending;			/* no command, no client any more */
	bool accepting;
	unsigned n_clients;
	struct control_client *clients;
	struct watch *watch;		/* of merinod's events; NULL: none */
	struct co_queue wait;		/* woken when a client or the acceptor has ended */
};

struct control_client {
	struct control_client *next;
	struct control *control;
	int fd;
	bool negotiated;
	struct forward *forward;	/* to merinod, since qmp_capabilities; NULL: none */
	struct qmp_sender out;
};

const char *run_state_name(enum run_state s);	/* the machine's */

/* control-commands.c: the answer to REQUEST, the caller's.  BAD, if not NULL, says why it
 * could not be read.  Coroutine. */
struct json_object *control_answer(struct control_client *c, struct json_object *request,
				   const struct error *bad);
/* Whether merinod's event of this name is not passed on, as the machine has its own. */
bool control_owns_event(const char *name);

/* control-forward.c: a connection to merinod; made anew when it breaks.  PATH stays. */
typedef void forward_event(void *arg, const char *name, struct json_object *event);
struct forward *forward_start(const char *path, forward_event *event, void *arg);
/* Coroutine: until a connection is ready that was not *SEEN, or *ALSO, which EVENT may set.
 * False: it stops. */
bool forward_wait(struct forward *f, unsigned *seen, const bool *also);
/* Coroutine: runs NAME there.  0 with *RET the caller's, or -errno. */
int forward_run(struct forward *f, const char *name, struct json_object *args,
		struct json_object **ret, struct error *err);
/* What runs there fails, nothing more is begun.  NULL is fine. */
void forward_stop(struct forward *f);
/* Coroutine: stops and frees.  NULL is fine. */
void forward_end(struct forward *f);

/* control-watch.c: calls config.look when disks may have another size.  NULL is fine. */
struct watch *watch_start(struct control *c);
void watch_end(struct watch *w);	/* coroutine */

#endif
