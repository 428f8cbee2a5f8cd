// SPDX-License-Identifier: BSD-3-Clause
/* notify: the service manager's protocol: lines of NAME=VALUE in one datagram to
 * the unix socket that $NOTIFY_SOCKET names.
 *
 * The watchdog asks every loop: a message goes around, and only when all of them
 * have answered is the manager told that we live.
 */
#include "nbd-server/notify.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/log.h"
#include "common/loop.h"
#include "nbd-server/daemon.h"
#include "nbd-server/export.h"
#include "nbd-server/iothread.h"

static void notify(const char *lines)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct iovec v = { .iov_base = (void *)lines, .iov_len = strlen(lines) };
	struct msghdr mh = { .msg_name = &un, .msg_iov = &v, .msg_iovlen = 1 };
	size_t len = path ? strlen(path) : 0;
	int fd;

	if (!len || len >= sizeof(un.sun_path) || (*path != '/' && *path != '@'))
		return;
	memcpy(un.sun_path, path, len);
	if (*path == '@')
		un.sun_path[0] = '\0';	/* an abstract name */
	mh.msg_namelen = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (sendmsg(fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		log_debug("NOTIFY_SOCKET=%s: %s", path, strerror(errno));
	close(fd);
}

/* -- the watchdog -------------------------------------------------------------- */

static struct watchdog {
	struct loop_timer timer;
	struct loop_msg round;		/* goes from loop to loop */
	uint64_t every;			/* ns; 0: the manager does not ask */
	unsigned at;			/* index of the loop that has the message: disk loops … */
	unsigned n_iothreads;		/* … and then so many iothreads */
} watchdog;

static void watchdog_due(struct loop_timer *t);

static void watchdog_back(struct loop_msg *m)
{
	notify("WATCHDOG=1");
	loop_timer_set(&watchdog.timer, loop_now() + watchdog.every, watchdog_due);
}

static void watchdog_pass(struct loop_msg *m)
{
	struct daemon *d = &the_daemon;
	unsigned i = watchdog.at++;

	if (i < d->n_disk_loops) {
		loop_post(d->disk_loops[i], m);
	} else if (i < d->n_disk_loops + watchdog.n_iothreads) {
		loop_post(iothreads_at(i - d->n_disk_loops), m);
	} else {
		m->fn = watchdog_back;
		loop_post(d->main, m);
	}
}

static void watchdog_due(struct loop_timer *t)
{
	watchdog.at = 0;
	watchdog.n_iothreads = iothreads_count();
	watchdog.round.fn = watchdog_pass;
	watchdog_pass(&watchdog.round);
}

static void watchdog_start(void)
{
	const char *usec = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");

	if (!usec || (pid && strtol(pid, NULL, 10) != (long)getpid()))
		return;
	/* Twice as often as must be, as sd_watchdog_enabled(3) advises. */
	watchdog.every = strtoull(usec, NULL, 10) * 500;
	if (watchdog.every)
		watchdog_due(NULL);
}

/* -- what is told --------------------------------------------------------------- */

void notify_ready(void)
{
	char lines[128];
	unsigned n = 0;

	for (struct export *e = export_list(); e; e = e->next)
		n++;
	snprintf(lines, sizeof(lines), "READY=1\nMAINPID=%ld\nSTATUS=Serving (%u export%s at start)",
		 (long)getpid(), n, n == 1 ? "" : "s");
	notify(lines);
	watchdog_start();
}

void notify_stopping(void)
{
	notify("STOPPING=1\nSTATUS=Ending: requests in flight are finished, images closed");
}
