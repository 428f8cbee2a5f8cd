// SPDX-License-Identifier: BSD-3-Clause
/* serve: the verb: start, print the URIs, wait for ^C or for a command, clean up.
 *
 * Exit status: 0 after SIGINT, SIGTERM or SIGHUP, which is how it is ended; with --run that
 * of the command; 1 on any error.
 */
#include "clients/serve.h"

#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clients/own-daemon.h"
#include "clients/pull.h"
#include "common/log.h"

enum { OPT_BIND = CLI_LONG, OPT_PORT, OPT_RUN, OPT_WRITABLE, NAP_NS = 10000000 };

static const struct cli_option table[] = {
	{ 'k', "socket", "PATH", "listen on this unix socket (default: one in a private directory)" },
	{ OPT_PORT, "port", "N", "listen on this TCP port instead" },
	{ OPT_BIND, "bind", "ADDR", "... of this address (default 127.0.0.1)" },
	{ OPT_WRITABLE, "writable", NULL, "take writes; they are thrown away at the end" },
	{ OPT_RUN, "run", "CMD", "run this shell command with $uri, and end with it" },
	VERB_ROWS_LAST
};

static void help(void)
{
	printf("usage: merino serve [OPTIONS] DIR[@WHEN] [DISK]\n"
	       "Serves a restore point over NBD at once, and prints its URIs.  ^C ends it.\n\n");
	cli_help(stdout, table);
	printf("\nexamples:\n"
	       "  merino serve /srv/backups@2026-11-20\n"
	       "  merino serve --run 'nbdcopy \"$uri\" - | file -' /srv/backups vda\n");
}

static enum verb_go bad(const char *text)
{
	log_error("%s; see merino serve --help", text);
	return VERB_EXIT_BAD;
}

static enum verb_go take(struct serve *o, int id)
{
	switch (id) {
	case 'k': o->socket = optarg; return *optarg ? VERB_GO : bad("--socket needs a path");
	case OPT_PORT:
		o->port = cli_number("port", optarg, 1, 65535);
		return o->port < 0 ? VERB_EXIT_BAD : VERB_GO;
	case OPT_BIND: o->bind = optarg; return VERB_GO;
	case OPT_WRITABLE: o->writable = true; return VERB_GO;
	case OPT_RUN: o->run = optarg; return VERB_GO;
	default: return verb_take(&o->v, id, help);
	}
}

static enum verb_go parse(struct serve *o, int argc, char **argv)
{
	struct cli cli;
	int id, n;

	cli_init(&cli, table);
	while ((id = cli_next(&cli, argc, argv)) != -1) {
		enum verb_go go = take(o, id);

		if (go != VERB_GO)
			return go;
	}
	n = argc - optind;
	if (n != 1 && n != 2)
		return bad("give a repository, and perhaps a disk");
	if (o->socket && o->port >= 0)
		return bad("--socket and --port do not go together");
	if (o->bind && o->port < 0)
		return bad("--bind needs --port");
	if (!o->bind)
		o->bind = "127.0.0.1";
	o->where = argv[optind];
	o->disk = n == 2 ? argv[optind + 1] : NULL;
	return VERB_GO;
}

static int open_point(struct serve *o, struct error *err)
{
	char *dir = NULL, *when = NULL;
	int rc = verb_where(o->where, &dir, &when, err);

	if (rc == 0)
		rc = repo_open(&o->repo, dir, REPO_READ, err);
	if (rc == 0) {
		o->point = verb_point(&o->repo, when, o->disk, err);
		rc = o->point ? 0 : err->code;
	}
	free(dir);
	free(when);
	if (rc == 0 && o->point->state == REPO_DAMAGED)
		log_warning("point %s is damaged (%s): not all that is served is what was backed up", o->point->id,
			    o->point->why);
	if (rc == 0 && o->run && !o->disk && o->point->n > 1)
		rc = error_set(err, -EINVAL, "point %s has several disks: with --run, say which one", o->point->id);
	return rc;
}

static int tell_json(const struct serve *o, struct error *err)
{
	struct json_object *j = json_object_new_object(), *disks = json_object_new_array();
	int rc = 0;

	verb_add_string(j, "point", o->point->id);
	json_object_object_add(j, "disks", disks);
	for (unsigned i = 0; i < o->point->n && rc == 0; i++) {
		struct json_object *d = json_object_new_object();
		char *uri = NULL;

		if (serve_wanted(o, &o->point->disk[i])) {
			rc = serve_uri(o, o->point->disk[i].name, &uri, err);
			verb_add_string(d, "disk", o->point->disk[i].name);
			verb_add_string(d, "uri", uri);
			verb_add_u64(d, "virtual-size", o->point->disk[i].size);
			json_object_array_add(disks, json_object_get(d));
		}
		json_object_put(d);
		free(uri);
	}
	return verb_print(j, VERB_OK) == VERB_OK ? rc : -EIO;
}

static int tell(const struct serve *o, struct error *err)
{
	int rc = 0;

	if (o->v.json)
		return tell_json(o, err);
	for (unsigned i = 0; i < o->point->n && rc == 0 && !o->v.quiet; i++) {
		char *uri = NULL;

		if (!serve_wanted(o, &o->point->disk[i]))
			continue;
		rc = serve_uri(o, o->point->disk[i].name, &uri, err);
		if (rc == 0)
			printf("%s\n", uri);
		free(uri);
	}
	return rc == 0 && fflush(stdout) != 0 ? error_set(err, -EIO, "the URI could not be printed") : rc;
}

/* Until a signal comes, the daemon ends, or CMD does (*STATUS: how). */
static int wait_end(struct serve *o, pid_t cmd, int *status, struct error *err)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };

	while (!pull_signalled()) {
		if (waitpid(o->daemon, NULL, WNOHANG) == o->daemon) {
			o->daemon = 0;
			return error_set(err, -ECHILD, "merinod has ended");
		}
		if (cmd && waitpid(cmd, status, WNOHANG) == cmd)
			return 0;
		nanosleep(&nap, NULL);
	}
	if (!cmd)
		return 0;
	kill(cmd, SIGTERM);
	waitpid(cmd, status, 0);
	return 0;
}

static int run(struct serve *o, int *code, struct error *err)
{
	const char *disk = o->disk ? o->disk : o->point->disk[0].name;
	int status = 0, rc;
	char *uri = NULL;
	pid_t cmd;

	rc = serve_uri(o, disk, &uri, err);
	if (rc < 0)
		return rc;
	setenv("uri", uri, 1);
	setenv("point", o->point->id, 1);
	setenv("disk", disk, 1);
	if (o->listen)
		setenv("unixsocket", o->listen, 1);
	free(uri);
	cmd = fork();
	if (cmd == 0) {
		own_daemon_reset_signals();
		execl("/bin/sh", "sh", "-c", o->run, NULL);
		_exit(127);
	}
	if (cmd < 0)
		return error_errno(err, -errno, "fork");
	rc = wait_end(o, cmd, &status, err);
	*code = rc < 0 ? EXIT_FAILURE : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	return rc;
}

static int serve(struct serve *o, int *code, struct error *err)
{
	int rc = open_point(o, err);

	if (rc < 0)
		return rc;
	pull_signals_hold();
	rc = serve_start(o, err);
	if (rc == 0 && o->run)
		return run(o, code, err);
	if (rc == 0)
		rc = tell(o, err);
	return rc ? rc : wait_end(o, 0, NULL, err);
}

int serve_main(int argc, char **argv)
{
	struct serve o = { .port = -1, .repo = { .dir = -1, .lock = -1, .in_use = -1 } };
	struct error err = ERROR_INIT;
	enum verb_go go = parse(&o, argc, argv);
	int rc, code = EXIT_SUCCESS;

	if (go != VERB_GO)
		return go == VERB_EXIT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
	rc = serve(&o, &code, &err);
	serve_stop(&o);
	repo_close(&o.repo);
	if (rc == -EINTR)
		return EXIT_SUCCESS;
	if (rc < 0)
		log_error("%s", err.text);
	return rc < 0 ? EXIT_FAILURE : code;
}
