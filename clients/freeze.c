// SPDX-License-Identifier: BSD-3-Clause
/* freeze: merino freeze and thaw: a guest's file systems come to rest, for a while.
 *
 * A guest that stays frozen is worse than a backup that is not quiesced.  So before it is
 * frozen a guard is there: a process of its own that thaws it when its time is over, when it is
 * told to end, and when we are gone before we could say that the guest is frozen; and goes on
 * trying while the machine runs.  The file "frozen" in the run directory is the guard's order:
 * who removes it relieves the guard.  A guest that somebody else has frozen is left alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "clients/agent.h"
#include "clients/progress.h"
#include "clients/vm.h"
#include "common/log.h"

enum { OPT_LIMIT = CLI_LONG, NAP_MS = 100, GUARD_CALL_S = 10, GUARD_RETRY_S = 1 };

struct freeze {
	const char *base;
	unsigned limit, timeout;	/* seconds */
	struct vm vm;
	char agent[PATH_MAX], order[PATH_MAX];
	struct timespec given;		/* when the order that is ours was made; inodes come again */
	int posted;			/* to the guard: a byte when the guest is frozen; its end: too early */
};

static const struct cli_option freeze_table[] = {
	{ OPT_LIMIT, "limit", "SECONDS", "thaw it after so long, whatever happens (default 60)" },
	{ VM_TIMEOUT, "timeout", "SECONDS", "how long the agent may take to answer (default 10)" },
	VM_ROWS_LAST
};
static const struct cli_option thaw_table[] = {
	{ VM_TIMEOUT, "timeout", "SECONDS", "how long the agent may take to answer (default 10)" },
	VM_ROWS_LAST
};

static void help(const struct cli_option *table)
{
	if (table == freeze_table)
		printf("usage: merino freeze [OPTIONS] NAME\n"
		       "Brings the file systems of a machine's guest to rest, for a while.\n\n");
	else
		printf("usage: merino thaw [OPTIONS] NAME\n"
		       "Lets the file systems of a machine's guest go on.\n\n");
	cli_help(stdout, table);
}

static bool seconds(const char *option, unsigned *out)
{
	int64_t n = cli_number(option, optarg, 1, 3600);

	if (n > 0)
		*out = (unsigned)n;
	return n > 0;
}

static int find(struct freeze *f, const char *name, struct error *err)
{
	int rc = vm_find(&f->vm, f->base, name, err);

	if (rc < 0)
		return rc;
	if (!vm_runs(&f->vm))
		return error_set(err, -ENOENT, "no machine '%s' runs", name);
	vm_file(&f->vm, "agent", f->agent);
	vm_file(&f->vm, "frozen", f->order);
	return 0;
}

/* -1: go on; else the exit status. */
static int parse(struct freeze *f, const struct cli_option *table, int argc, char **argv)
{
	struct error err = ERROR_INIT;
	struct cli cli;
	int id;

	cli_init(&cli, table);
	while ((id = cli_next(&cli, argc, argv)) != -1) {
		bool good = true;

		switch (id) {
		case VM_RUN_DIR: f->base = optarg; break;
		case VM_TIMEOUT: good = seconds("timeout", &f->timeout); break;
		case OPT_LIMIT: good = seconds("limit", &f->limit); break;
		case 'h': help(table); return EXIT_SUCCESS;
		case 'V': cli_version(); return EXIT_SUCCESS;
		default: good = false;
		}
		if (!good)
			return EXIT_FAILURE;
	}
	if (argc - optind != 1) {
		log_error("it takes one NAME; see %s --help", argv[0]);
		return EXIT_FAILURE;
	}
	if (find(f, argv[optind], &err) < 0) {
		log_error("%s", err.text);
		return EXIT_FAILURE;
	}
	return -1;
}

/* -- the order, and its guard --------------------------------------------------- */

static int give_order(struct freeze *f, struct error *err)
{
	struct stat st;
	int fd = open(f->order, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0 && errno == EEXIST)
		return error_set(err, -EBUSY, "%s is frozen already: see merino thaw", f->vm.name);
	if (fd < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "%s", f->order);
	f->given = st.st_mtim;
	close(fd);
	return 0;
}

static bool order_stands(const struct freeze *f)
{
	struct stat st;

	return stat(f->order, &st) == 0 && st.st_mtim.tv_sec == f->given.tv_sec &&
	       st.st_mtim.tv_nsec == f->given.tv_nsec;
}

static void relieve(const struct freeze *f)
{
	if (order_stands(f))
		unlink(f->order);
}

static int thaw(const struct freeze *f, unsigned timeout, int64_t *count, struct error *err)
{
	struct json_object *ret = NULL;
	struct agent *a = NULL;
	int rc = agent_open(f->agent, timeout, &a, err);

	if (rc == 0)
		rc = agent_call(a, "guest-fsfreeze-thaw", timeout, &ret, err);
	*count = json_object_is_type(ret, json_type_int) ? json_object_get_int64(ret) : 0;
	json_object_put(ret);
	agent_close(a);
	return rc;
}

static volatile sig_atomic_t told_to_end;

static void end_early(int signo)
{
	(void)signo;
	told_to_end = true;
}

/* Until its time is over, or comes early. */
static void keep_watch(const struct freeze *f, int from)
{
	uint64_t until = progress_now() + f->limit * 1000000000ull;
	struct pollfd p = { .fd = from, .events = POLLIN };

	while (order_stands(f) && progress_now() < until && !told_to_end) {
		char frozen;

		if (poll(&p, 1, NAP_MS) <= 0)
			continue;
		if (read(from, &frozen, 1) != 1)
			return;		/* who has asked for it does not know that it is frozen */
		p.fd = -1;
	}
}

static void guard(const struct freeze *f, int from)
{
	const struct timespec retry = { .tv_sec = GUARD_RETRY_S };
	int64_t n;

	keep_watch(f, from);
	while (order_stands(f) && vm_runs(&f->vm)) {
		struct error err = ERROR_INIT;

		if (thaw(f, GUARD_CALL_S, &n, &err) == 0)
			relieve(f);
		else
			nanosleep(&retry, NULL);
	}
}

/* It has nothing of ours: neither the conversation, for the port takes one client at a time,
 * nor a lock or a pipe of a caller's. */
static _Noreturn void become_guard(const struct freeze *f, int from)
{
	const struct sigaction end = { .sa_handler = end_early };
	int null;

	setsid();
	sigaction(SIGTERM, &end, NULL);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	from = fcntl(from, F_DUPFD, 4);
	null = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	if (dup2(from, 3) < 0)
		_exit(1);
	close_range(4, ~0u, 0);
	guard(f, 3);
	_exit(0);
}

static int post_guard(struct freeze *f, struct error *err)
{
	int pair[2];
	pid_t pid;

	if (pipe2(pair, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "pipe");
	f->posted = pair[1];
	pid = fork();
	if (pid == 0) {
		close(pair[1]);
		become_guard(f, pair[0]);
	}
	close(pair[0]);
	return pid < 0 ? error_errno(err, -errno, "fork") : 0;
}

/* -- the verbs -------------------------------------------------------------------- */

/* The guard is there. */
static int ask(struct freeze *f, struct agent *a, int64_t *count, struct error *err)
{
	struct json_object *ret = NULL;
	int rc = agent_call(a, "guest-fsfreeze-freeze", f->limit, &ret, err);

	if (rc == 0 && !json_object_is_type(ret, json_type_int))
		rc = error_set(err, -EPROTO, "the guest agent: no answer that could be understood");
	*count = rc ? 0 : json_object_get_int64(ret);
	json_object_put(ret);
	if (rc == 0 && write(f->posted, "", 1) != 1)
		rc = error_set(err, -ECHILD, "the process that was to thaw the guest is gone");
	return rc;
}

/* It may be half frozen, or about to be. */
static void undo(struct freeze *f)
{
	struct error err = ERROR_INIT;
	int64_t n;

	if (thaw(f, f->timeout, &n, &err) == 0)
		relieve(f);
	else
		log_warning("%s; a process that stays behind goes on trying to thaw it", err.text);
}

static int freeze(struct freeze *f, int64_t *count, struct error *err)
{
	struct agent *a = NULL;
	int rc = agent_open(f->agent, f->timeout, &a, err);

	if (rc == 0)
		rc = give_order(f, err);
	if (rc < 0) {
		agent_close(a);
		return rc;
	}
	rc = agent_check_thawed(a, f->timeout, err);
	if (rc == 0)
		rc = post_guard(f, err);
	if (rc < 0) {
		relieve(f);
		agent_close(a);
		return rc;
	}
	rc = ask(f, a, count, err);
	agent_close(a);
	if (rc < 0)
		undo(f);
	return rc;
}

int freeze_main(int argc, char **argv)
{
	struct freeze f = { .limit = 60, .timeout = 10, .posted = -1 };
	struct error err = ERROR_INIT;
	int code = parse(&f, freeze_table, argc, argv);
	int64_t n = 0;

	if (code >= 0)
		return code;
	signal(SIGPIPE, SIG_IGN);	/* a guard that was killed */
	if (freeze(&f, &n, &err) < 0) {
		log_error("%s", err.text);
		return EXIT_FAILURE;
	}
	printf("%s: %lld file systems are frozen, for %u s at most\n", f.vm.name, (long long)n, f.limit);
	return EXIT_SUCCESS;
}

int thaw_main(int argc, char **argv)
{
	struct freeze f = { .timeout = 10 };
	struct error err = ERROR_INIT;
	int code = parse(&f, thaw_table, argc, argv);
	int64_t n = 0;

	if (code >= 0)
		return code;
	if (thaw(&f, f.timeout, &n, &err) < 0) {
		log_error("%s", err.text);
		return EXIT_FAILURE;
	}
	if (unlink(f.order) < 0 && errno != ENOENT)
		log_warning("%s: %s", f.order, strerror(errno));
	printf("%s: %lld file systems go on\n", f.vm.name, (long long)n);
	return EXIT_SUCCESS;
}
