// SPDX-License-Identifier: BSD-3-Clause
/* control-watch: the machine's own connection to merinod, for the sizes of its disks.
 *
 * NBD does not announce a change of size.  merinod's control socket does, by an event, whoever
 * asked for the change.  The event is only a reason to look: the size that counts is the one
 * that the disk's own address has.  What happened while we were not connected has no event, so
 * each new connection is such a reason, too.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/control-int.h"

struct watch {
	struct forward *forward;
	void (*look)(void);
	bool resized, ended;
	struct co_queue end;
};

static void event_came(void *arg, const char *name, struct json_object *event)
{
	struct watch *w = arg;

	if (!strcmp(name, "BLOCK_EXPORT_RESIZED"))
		w->resized = true;
}

static void watch_run(void *arg)
{
	struct watch *w = arg;
	unsigned seen = 0;

	while (forward_wait(w->forward, &seen, &w->resized)) {
		w->resized = false;
		w->look();
	}
	w->ended = true;
	co_queue_wake_all(&w->end);
}

struct watch *watch_start(struct control *c)
{
	struct watch *w;

	if (!c->config.merinod || !c->config.look)
		return NULL;
	w = calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	w->look = c->config.look;
	w->forward = forward_start(c->config.merinod, event_came, w);
	if (!w->forward) {
		free(w);
		return NULL;
	}
	co_start(watch_run, w);
	return w;
}

void watch_end(struct watch *w)
{
	if (!w)
		return;
	forward_stop(w->forward);
	while (!w->ended)
		co_queue_wait(&w->end);
	forward_end(w->forward);
	free(w);
}
