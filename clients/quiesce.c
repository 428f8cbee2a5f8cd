// SPDX-License-Identifier: BSD-3-Clause
/* quiesce: see quiesce.h.
 *
 * A guest that stays frozen is worse than a backup that is not quiesced, and the agent knows
 * no lease.  So a process of its own, the guard, has the conversation with the agent, from
 * before the freeze to the thaw.  It thaws when it is told to, when its time is over, and when
 * we are gone, whatever killed us: then the socket between us says so.  Where the agent does
 * not answer it goes on trying for as long as the machine has a socket.
 *
 *	guard: hook before, freeze --READY--> instant --END_INSTANT--> thaw, hook after --END-->
 *
 * If the guard is killed we thaw.  A port of the agent's has one client at a time, so two
 * backups of one guest freeze it one after the other.  A guest that somebody else has frozen
 * is left alone: they may thaw it at any time.
 */
#include "clients/quiesce.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clients/agent.h"
#include "clients/hook.h"
#include "clients/progress.h"
#include "clients/pull.h"
#include "common/checked.h"
#include "common/log.h"

enum {
	AGENT_S = 10,			/* for an answer, but to the freeze; or a part of the limit */
	AGENT_PART = 4,
	MARGIN_S = 5,			/* how late the guard may be */
	RETRY_S = 1,
	GONE = 3,			/* tries in a row that find no listening socket */
	SLICE_MS = 100,
};

enum what { WARNING, READY, END };

/* What the guard tells us. */
struct word {
	enum what what;
	bool frozen;			/* READY: it is; END: it was, until WHEN */
	uint64_t when;			/* END: the thaw began */
	char text[1024];		/* WARNING */
};

struct quiesce {
	struct quiesce_config c;
	pid_t guard;
	int fd;				/* to the guard */
};

struct guard {
	const struct quiesce_config *c;
	int fd, out;			/* to the backup; the hooks' output */
	struct agent *agent;
	bool asked;			/* the guest may be frozen by us */
	int64_t n_frozen;		/* file systems */
	uint64_t until;
};

/* --- the guard: what it does */

static void say(const struct guard *g, enum what what, bool frozen, uint64_t when)
{
	struct word w = { .what = what, .frozen = frozen, .when = when };

	send(g->fd, &w, sizeof(w), MSG_NOSIGNAL);
}

static void warn(const struct guard *g, const char *format, const char *text)
{
	struct word w = { .what = WARNING };

	snprintf(w.text, sizeof(w.text), format, text);
	send(g->fd, &w, sizeof(w), MSG_NOSIGNAL);
}

static bool hook(const struct guard *g, const char *which, const char *command)
{
	const struct hook_variable v[] = {
		{ "MERINO_HOOK", which }, { "MERINO_REPOSITORY", g->c->repository },
		{ "MERINO_POINT", g->c->point }, { "MERINO_SOCKET", g->c->socket }, { NULL, NULL }
	};
	struct error err = ERROR_INIT;

	if (!command || hook_run(command, v, g->c->limit, g->out, &err) == 0)
		return true;
	error_prefix(&err, "the hook %s: ", which);
	warn(g, "%s", err.text);
	return false;
}

static int call_for_count(struct guard *g, const char *command, unsigned seconds, int64_t *n, struct error *err)
{
	struct json_object *ret = NULL;
	int rc = agent_call(g->agent, command, seconds, &ret, err);

	if (rc == 0 && !json_object_is_type(ret, json_type_int))
		rc = error_set(err, -EPROTO, "the guest agent: no answer that could be understood");
	*n = rc ? 0 : json_object_get_int64(ret);
	json_object_put(ret);
	return rc;
}

static unsigned patience(const struct quiesce_config *c)
{
	return min_u64(c->limit, max_u64(AGENT_S, c->limit / AGENT_PART));
}

static bool freeze(struct guard *g)
{
	unsigned limit = g->c->limit;
	struct error err = ERROR_INIT;
	int rc = agent_open(g->c->agent, patience(g->c), &g->agent, &err);

	if (rc == 0)
		rc = agent_check_thawed(g->agent, patience(g->c), &err);
	if (rc == 0) {
		g->asked = true;
		g->until = progress_now() + limit * 1000000000ull;
		rc = call_for_count(g, "guest-fsfreeze-freeze", limit, &g->n_frozen, &err);
	}
	if (rc == 0 && g->n_frozen < 1)
		rc = error_set(&err, -ENOTSUP, "it has no file system that can be frozen");
	if (rc == 0)
		return true;
	agent_close(g->agent);		/* an answer may come yet, and would be taken for another's */
	g->agent = NULL;
	warn(g, "the guest is not quiesced: %s", err.text);
	return false;
}

static int thaw(struct guard *g, unsigned seconds, int64_t *n, struct error *err)
{
	int rc = g->agent ? 0 : agent_open(g->c->agent, seconds, &g->agent, err);

	if (rc == 0)
		rc = call_for_count(g, "guest-fsfreeze-thaw", seconds, n, err);
	if (rc < 0) {
		agent_close(g->agent);
		g->agent = NULL;
	}
	return rc;
}

/* A machine that has ended, and its guest with it, listens no more. */
static void thaw_at_last(struct guard *g)
{
	const struct timespec pause = { .tv_sec = RETRY_S };
	unsigned gone = 0;
	int64_t n;

	while (gone < GONE) {
		struct error err = ERROR_INIT;
		int rc;

		nanosleep(&pause, NULL);
		rc = thaw(g, AGENT_S, &n, &err);
		if (rc == 0)
			return;
		gone = rc == -ENOENT || rc == -ECONNREFUSED ? gone + 1 : 0;
	}
}

/* --- the guard: its life */

static bool backup_lives(const struct guard *g)
{
	struct pollfd p = { .fd = g->fd, .events = POLLIN };

	return poll(&p, 1, 0) <= 0 || !(p.revents & POLLHUP);
}

/* Until the instant is taken, or nobody waits for it, or it is late. */
static void wait_for_instant(const struct guard *g)
{
	struct pollfd p = { .fd = g->fd, .events = POLLIN };

	for (;;) {
		uint64_t now = progress_now();
		char word;

		if (now >= g->until)
			return;
		if (poll(&p, 1, (int)((g->until - now) / 1000000) + 1) > 0) {
			recv(g->fd, &word, 1, MSG_DONTWAIT);
			return;
		}
	}
}

/* Whether the guest was frozen until now, and goes on. */
static bool end_rest(struct guard *g, bool *thawed)
{
	struct error err = ERROR_INIT;
	int64_t n = 0;
	int rc = thaw(g, patience(g->c), &n, &err);

	*thawed = rc == 0;
	if (rc < 0)
		warn(g, "the guest may still be frozen: %s; a process that stays behind goes on trying to thaw it",
		     err.text);
	else if (n < g->n_frozen)
		warn(g, "the guest is not quiesced: %s", "it has thawed file systems by itself meanwhile");
	return rc == 0 && n >= g->n_frozen;
}

static void keep_guard(struct guard *g)
{
	bool frozen = false, thawed = true;
	uint64_t when;

	if (hook(g, "before", g->c->before) && g->c->agent && backup_lives(g))
		frozen = freeze(g);
	if (!g->asked)
		g->until = progress_now() + g->c->limit * 1000000000ull;
	say(g, READY, frozen, 0);
	if (frozen || !g->asked)
		wait_for_instant(g);
	when = progress_now();
	if (g->asked)
		frozen &= end_rest(g, &thawed);
	hook(g, "after", g->c->after);
	say(g, END, frozen, when);
	close(g->fd);
	close(g->out);
	if (!thawed)
		thaw_at_last(g);
}

/* Of what the backup has open the guard keeps stderr, for the hooks, until they have run:
 * neither a lock nor a connection, and no pipe at which somebody waits for the backup's end. */
static _Noreturn void become_guard(const struct quiesce_config *c, int fd)
{
	struct guard g = { .c = c, .fd = 3, .out = 4 };
	int out = fcntl(STDERR_FILENO, F_DUPFD, 10), from = fcntl(fd, F_DUPFD, 10), null;

	setsid();
	prctl(PR_SET_NAME, "merino-guard");
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_DFL);
	null = open("/dev/null", O_RDWR);
	for (int i = 0; i < 3; i++)
		dup2(null, i);
	if (dup3(from, g.fd, O_CLOEXEC) < 0)
		_exit(1);
	dup3(out >= 0 ? out : 2, g.out, O_CLOEXEC);
	close_range(5, ~0u, 0);
	keep_guard(&g);
	_exit(0);
}

/* --- the backup's side */

enum heard { HEARD, GUARD_DIED, GUARD_LATE, STOPPED };

/* Until WHAT is said; warnings are passed on. */
static enum heard listen_for(struct quiesce *q, enum what what, unsigned seconds, struct word *w)
{
	uint64_t until = progress_now() + seconds * 1000000000ull;
	struct pollfd p = { .fd = q->fd, .events = POLLIN };

	for (;;) {
		int rc = poll(&p, 1, SLICE_MS);

		if (rc > 0) {
			ssize_t n = recv(q->fd, w, sizeof(*w), MSG_DONTWAIT);

			/* A reset: it went before it read our word; its own come yet. */
			if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNRESET))
				return GUARD_DIED;
			if (n == sizeof(*w) && w->what == WARNING)
				log_warning("%s", w->text);
			else if (n == sizeof(*w) && w->what == what)
				return HEARD;
		}
		if (pull_signalled())
			return STOPPED;
		if (progress_now() >= until)
			return GUARD_LATE;
	}
}

static void forget(struct quiesce *q)
{
	close(q->fd);
	waitpid(q->guard, NULL, WNOHANG);
	free(q);
}

/* The guard was killed. */
static void thaw_ourselves(const struct quiesce_config *c)
{
	struct guard g = { .c = c, .fd = -1, .out = -1 };
	struct error err = ERROR_INIT;
	int64_t n;

	log_warning("the process that guards the frozen guest was killed: the guest is not quiesced");
	if (c->agent && thaw(&g, patience(c), &n, &err) < 0)
		log_warning("the guest may still be frozen: %s", err.text);
	agent_close(g.agent);
}

struct quiesce *quiesce_begin(const struct quiesce_config *c)
{
	struct quiesce *q = calloc(1, sizeof(*q));
	struct word w;
	int pair[2];

	if (!q || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		log_warning("the guest is not quiesced: %s", strerror(errno));
		free(q);
		return NULL;
	}
	q->c = *c;
	q->fd = pair[0];
	q->guard = fork();
	if (q->guard == 0)
		become_guard(c, pair[1]);
	close(pair[1]);
	if (q->guard < 0) {
		log_warning("the guest is not quiesced: fork: %s", strerror(errno));
		forget(q);
		return NULL;
	}
	switch (listen_for(q, READY, 2 * c->limit + 2 * patience(c) + MARGIN_S, &w)) {
	case HEARD:
		return q;
	case GUARD_DIED:
		thaw_ourselves(c);
		break;
	case GUARD_LATE:
		log_warning("the guest is not quiesced: its guard does not answer");
		break;
	case STOPPED:			/* it thaws when it sees that we are gone */
		break;
	}
	forget(q);
	return NULL;
}

bool quiesce_end(struct quiesce *q, uint64_t when)
{
	bool quiesced = false;
	struct word w;

	if (!q)
		return false;
	send(q->fd, "", 1, MSG_NOSIGNAL);
	switch (listen_for(q, END, q->c.limit + 2 * patience(&q->c) + MARGIN_S, &w)) {
	case HEARD:
		quiesced = w.frozen && w.when >= when;
		if (w.frozen && !quiesced)
			log_warning("the guest is not quiesced: its %u s were over before the instant was taken",
				    q->c.limit);
		break;
	case GUARD_DIED:
		thaw_ourselves(&q->c);
		break;
	case GUARD_LATE:
		log_warning("the guest is not quiesced, and may still be frozen: its guard does not answer");
		break;
	case STOPPED:
		break;
	}
	forget(q);
	return quiesced;
}
