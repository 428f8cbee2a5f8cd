/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox-late: without a monitor nobody will ask for another file, so once all is
 * open the process shuts itself in, without having been told directories.
 *
 * What remains is: the directories of the images that are open (their crash logs are
 * removed at the end), and what the options imply.  A thread can only restrict itself
 * and those it starts: every loop does, and starts its workers anew.
 */
#include "nbd-server/sandbox.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/loop.h"
#include "format/node.h"
#include "nbd-server/daemon.h"
#include "nbd-server/iothread.h"

/* The directory of an image; of a device, itself. */
static int allow_node(const struct node *n, struct error *err)
{
	if (n->filename && !strcmp(n->driver->name, "file"))
		return sandbox_allow_parent(n->filename, ALLOW_READ | ALLOW_WRITE, err);
	if (n->filename && !strcmp(n->driver->name, "host_device"))
		return sandbox_allow(n->filename, ALLOW_READ | ALLOW_WRITE, err);
	return 0;
}

static int allow_nodes(struct error *err)
{
	struct graph *g = &the_daemon.graph;
	int rc = 0;

	pthread_mutex_lock(&g->lock);
	for (struct node *n = g->nodes; n && !rc; n = n->next)
		rc = allow_node(n, err);
	pthread_mutex_unlock(&g->lock);
	return rc;
}

struct shutting {
	int ruleset;
	struct error *err;
	int rc;
};

static void shut_this_loop(void *arg)
{
	struct shutting *s = arg;

	if (!s->rc)
		s->rc = landlock_start(s->ruleset, s->err);
	loop_workers_renew();
}

int sandbox_finish(const struct sandbox *s, struct error *err)
{
	struct shutting c = { .err = err };
	struct error none = ERROR_INIT;

	if (!s->late || sandbox_is_off(s)) {
		sandbox_forget();
		return 0;
	}
	c.ruleset = landlock_open(&none);
	if (c.ruleset < 0) {
		log_info("%s: files outside the images' directories stay in reach", none.text);
		return 0;
	}
	c.rc = allow_nodes(err);
	if (!c.rc)
		sandbox_allow_all(c.ruleset);
	for (unsigned i = 0; i < the_daemon.n_disk_loops && !c.rc; i++)
		loop_call(the_daemon.disk_loops[i], shut_this_loop, &c);
	if (!c.rc)
		iothreads_each(shut_this_loop, &c);
	if (!c.rc)
		shut_this_loop(&c);
	close(c.ruleset);
	return c.rc;
}
