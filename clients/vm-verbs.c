// SPDX-License-Identifier: BSD-3-Clause
/* vm-verbs: merino stop, status and console: what is asked of a machine that runs. */
#include <dirent.h>
#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "clients/qmp-client.h"
#include "clients/verb.h"
#include "clients/vm.h"
#include "common/log.h"

enum { OPT_FORCE = CLI_LONG, OPT_JSON, NAP_NS = 20000000, NAPS_PER_SECOND = 50, LEAVE = 0x1d /* ^] */ };

struct ask {
	const char *base;
	long timeout;			/* seconds */
	bool force, json;
	struct vm vm;
};

static const struct cli_option stop_table[] = {
	{ VM_TIMEOUT, "timeout", "SECONDS", "how long the guest may take (default 60)" },
	{ OPT_FORCE, "force", NULL, "do not ask the guest: end the machine at once" },
	VM_ROWS_LAST
};
static const struct cli_option status_table[] = {
	{ OPT_JSON, "json", NULL, "print the result as JSON" },
	VM_ROWS_LAST
};
static const struct cli_option console_table[] = { VM_ROWS_LAST };

static void help(const struct cli_option *table)
{
	if (table == stop_table)
		printf("usage: merino stop [OPTIONS] NAME\n"
		       "Presses the power button of a machine, and waits until it is off.\n\n");
	else if (table == status_table)
		printf("usage: merino status [OPTIONS] [NAME]\n"
		       "Says which machines of this user run, or whether one does.\n\n");
	else
		printf("usage: merino console [OPTIONS] NAME\n"
		       "Connects this terminal with the console of a machine; ^] leaves it.\n\n");
	cli_help(stdout, table);
}

/* -1: go on; else the exit status. */
static int parse(struct ask *a, const struct cli_option *table, int argc, char **argv)
{
	struct error err = ERROR_INIT;
	struct cli cli;
	int id;

	cli_init(&cli, table);
	while ((id = cli_next(&cli, argc, argv)) != -1) {
		switch (id) {
		case VM_RUN_DIR: a->base = optarg; break;
		case VM_TIMEOUT:
			a->timeout = (long)cli_number("timeout", optarg, 1, 86400);
			if (a->timeout < 0)
				return EXIT_FAILURE;
			break;
		case OPT_FORCE: a->force = true; break;
		case OPT_JSON: a->json = true; break;
		case 'h': help(table); return EXIT_SUCCESS;
		case 'V': cli_version(); return EXIT_SUCCESS;
		default: return EXIT_FAILURE;
		}
	}
	if (argc - optind > 1 || (argc == optind && table != status_table)) {
		log_error("it takes one NAME; see %s --help", argv[0]);
		return EXIT_FAILURE;
	}
	if (optind < argc && vm_find(&a->vm, a->base, argv[optind], &err) < 0) {
		log_error("%s", err.text);
		return EXIT_FAILURE;
	}
	return -1;
}

static int fail(const struct error *err)
{
	log_error("%s", err->text);
	return EXIT_FAILURE;
}

/* Connects to the machine's control socket; one that does not run is an error. */
static int connect_qmp(const struct vm *vm, struct qmp **q, struct error *err)
{
	char path[PATH_MAX];

	if (!vm_runs(vm))
		return error_set(err, -ENOENT, "no machine '%s' runs", vm->name);
	vm_file(vm, "qmp", path);
	return qmp_connect(path, 2000, q, err);
}

/* -- stop ------------------------------------------------------------------------- */

static int wait_off(const struct ask *a, struct error *err)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };

	for (long i = 0; vm_runs(&a->vm); i++) {
		if (i >= a->timeout * NAPS_PER_SECOND)
			return error_set(err, -ETIMEDOUT, "%s did not power off within %ld s; --force ends it",
					 a->vm.name, a->timeout);
		nanosleep(&nap, NULL);
	}
	for (long i = 0; vm_is_leaving(&a->vm) && i < NAPS_PER_SECOND; i++)
		nanosleep(&nap, NULL);
	return 0;
}

int stop_main(int argc, char **argv)
{
	struct ask a = { .timeout = 60 };
	struct error err = ERROR_INIT;
	int code = parse(&a, stop_table, argc, argv);
	struct qmp *q = NULL;
	int rc;

	if (code >= 0)
		return code;
	rc = connect_qmp(&a.vm, &q, &err);
	if (rc == 0)
		rc = qmp_call(q, a.force ? "quit" : "system_powerdown", NULL, NULL, QMP_MUST_END, &err);
	qmp_close(q);
	if (rc == 0)
		rc = wait_off(&a, &err);
	return rc < 0 ? fail(&err) : EXIT_SUCCESS;
}

/* -- status ------------------------------------------------------------------------ */

/* "running", … or what hinders; RET says more. */
static const char *state_of(const struct vm *vm, struct json_object **ret)
{
	struct error err = ERROR_INIT;
	struct json_object *v;
	struct qmp *q = NULL;

	if (!vm_runs(vm))
		return "off";
	if (connect_qmp(vm, &q, &err) == 0)
		qmp_call(q, "query-status", NULL, ret, QMP_MUST_END, &err);
	qmp_close(q);
	if (json_object_is_type(*ret, json_type_object) && json_object_object_get_ex(*ret, "status", &v) &&
	    json_object_is_type(v, json_type_string))
		return json_object_get_string(v);
	return "unknown";
}

static void tell(const struct ask *a, const struct vm *vm, struct json_object *list)
{
	struct json_object *ret = NULL, *o;
	const char *state = state_of(vm, &ret);

	if (a->json) {
		o = json_object_new_object();
		verb_add_string(o, "name", vm->name);
		verb_add_string(o, "state", state);
		verb_add_string(o, "directory", vm->dir);
		json_object_array_add(list, o);
	} else {
		printf("%s: %s\n", vm->name, state);
	}
	json_object_put(ret);
}

/* All whose directory has a lock that is held. */
static int tell_all(const struct ask *a, struct json_object *list, struct error *err)
{
	char base[VM_PATH_MAX];
	int rc = vm_base(a->base, base, err);
	struct dirent **names = NULL;
	int n = rc ? rc : scandir(base, &names, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		struct error none = ERROR_INIT;
		struct vm vm;

		if (vm_find(&vm, a->base, names[i]->d_name, &none) == 0 && vm_runs(&vm))
			tell(a, &vm, list);
		free(names[i]);
	}
	free(names);
	return rc;
}

int status_main(int argc, char **argv)
{
	struct ask a = { 0 };
	struct error err = ERROR_INIT;
	int code = parse(&a, status_table, argc, argv), rc = 0;
	struct json_object *list;

	if (code >= 0)
		return code;
	list = json_object_new_array();
	if (a.vm.name[0])
		tell(&a, &a.vm, list);
	else
		rc = tell_all(&a, list, &err);
	code = a.vm.name[0] && !vm_runs(&a.vm) ? EXIT_FAILURE : EXIT_SUCCESS;
	if (a.json && rc == 0)
		code = verb_print(json_object_get(list), code);
	json_object_put(list);
	return rc < 0 ? fail(&err) : code;
}

/* -- console ------------------------------------------------------------------------ */

static int connect_console(const struct vm *vm, struct error *err)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	char path[PATH_MAX];
	int fd;

	if (!vm_runs(vm))
		return error_set(err, -ENOENT, "no machine '%s' runs", vm->name);
	vm_file(vm, "serial", path);
	snprintf(un.sun_path, sizeof(un.sun_path), "%.*s", (int)sizeof(un.sun_path) - 1, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&un, sizeof(un)) == 0)
		return fd;
	if (errno == ENOENT)
		error_set(err, -ENOENT, "the console of '%s' is the terminal where it was started", vm->name);
	else
		error_errno(err, -errno, "%s", path);
	if (fd >= 0)
		close(fd);
	return err->code;
}

static bool write_all(int fd, const char *p, ssize_t n)
{
	while (n > 0) {
		ssize_t done = write(fd, p, (size_t)n);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return false;
		p += done;
		n -= done;
	}
	return true;
}

/* What was typed, up to ^] on a terminal: false when this is the end. */
static bool type(int fd, bool terminal, bool *more)
{
	char buf[4096], *leave;
	ssize_t n = read(STDIN_FILENO, buf, sizeof(buf));

	if (n <= 0) {			/* the end of a pipe: the answers still come */
		*more = false;
		return !terminal;
	}
	leave = terminal ? memchr(buf, LEAVE, (size_t)n) : NULL;
	if (!write_all(fd, buf, leave ? leave - buf : n))
		return false;
	return !leave;
}

static void talk(int fd, bool terminal)
{
	struct pollfd p[2] = { { .fd = fd, .events = POLLIN }, { .fd = STDIN_FILENO, .events = POLLIN } };
	bool more = true;

	for (;;) {
		char buf[4096];
		ssize_t n;

		if (poll(p, more ? 2 : 1, -1) < 0) {
			if (errno == EINTR)
				continue;
			return;
		}
		if (more && p[1].revents && !type(fd, terminal, &more))
			return;
		if (!p[0].revents)
			continue;
		n = read(fd, buf, sizeof(buf));
		if (n <= 0 || !write_all(STDOUT_FILENO, buf, n))
			return;
	}
}

int console_main(int argc, char **argv)
{
	struct ask a = { 0 };
	struct error err = ERROR_INIT;
	int code = parse(&a, console_table, argc, argv), fd;
	struct termios old, raw;
	bool terminal;

	if (code >= 0)
		return code;
	fd = connect_console(&a.vm, &err);
	if (fd < 0)
		return fail(&err);
	terminal = tcgetattr(STDIN_FILENO, &old) == 0;
	if (terminal) {
		fprintf(stderr, "connected with %s; ^] leaves\n", a.vm.name);
		raw = old;
		cfmakeraw(&raw);
		tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
	}
	talk(fd, terminal);
	if (terminal) {
		tcsetattr(STDIN_FILENO, TCSADRAIN, &old);
		fputs("\n", stderr);
	}
	close(fd);
	return EXIT_SUCCESS;
}
