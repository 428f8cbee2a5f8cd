// SPDX-License-Identifier: BSD-3-Clause
/* run-start: the merinod and the merino-vmm of a machine.  Both end with us, whatever we
 * die of; the machine first, so that its last writes have a server.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clients/own-daemon.h"
#include "clients/pull.h"
#include "clients/qmp-client.h"
#include "clients/run.h"
#include "common/json.h"
#include "common/uri.h"

enum { NAP_NS = 5000000, START_NAPS = 12000 };	/* a minute: repairing a large image takes long */

/* -- command lines ------------------------------------------------------------ */

struct args {
	char *v[RUN_ARGS_MAX + 1];	/* owned */
	unsigned n;
	bool failed;
};

static void add(struct args *a, const char *format, ...)
{
	va_list ap;
	char *s = NULL;

	va_start(ap, format);
	if (a->n == RUN_ARGS_MAX || vasprintf(&s, format, ap) < 0)
		a->failed = true;
	else
		a->v[a->n++] = s;
	va_end(ap);
}

static void add_option(struct args *a, const char *option, const char *value)
{
	if (!value)
		return;
	add(a, "%s", option);
	add(a, "%s", value);
}

static void args_free(struct args *a)
{
	for (unsigned i = 0; i < a->n; i++)
		free(a->v[i]);
}

static void add_json(struct args *a, const char *option, struct json_object *j)
{
	add_option(a, option, json_write(j));
	json_object_put(j);
}

static void put(struct json_object *o, const char *key, const char *value)
{
	json_object_object_add(o, key, json_object_new_string(value));
}

static struct json_object *blockdev(const struct run_disk *d)
{
	struct json_object *j = json_object_new_object(), *file = json_object_new_object();

	put(file, "driver", "file");
	put(file, "filename", d->what);
	json_object_object_add(file, "read-only", json_object_new_boolean(d->read_only));
	put(j, "driver", d->format);
	put(j, "node-name", d->id);
	put(j, "discard", "unmap");
	json_object_object_add(j, "read-only", json_object_new_boolean(d->read_only));
	json_object_object_add(j, "file", file);
	return j;
}

static struct json_object *export(const struct run_disk *d)
{
	struct json_object *j = json_object_new_object();

	put(j, "type", "nbd");
	put(j, "id", d->id);
	put(j, "node-name", d->id);
	put(j, "name", d->id);
	json_object_object_add(j, "writable", json_object_new_boolean(!d->read_only));
	return j;
}

static void merinod_args(const struct run *r, struct args *a)
{
	char *program = own_daemon_program(NULL);

	add(a, "%s", program ? program : "merinod");
	free(program);
	add(a, "--pidfile");
	add(a, "%s/merinod.pid", r->vm.dir);
	add(a, "--chardev");
	add(a, "socket,id=qmp,server=on,wait=off,path=%s/merinod.qmp", r->vm.dir);
	add(a, "--monitor");
	add(a, "chardev=qmp");
	add(a, "--nbd-server");
	add(a, "addr.type=unix,addr.path=%s/nbd", r->vm.dir);
	for (unsigned i = 0; i < r->n_disks; i++) {
		if (r->disk[i].uri)
			continue;
		add_json(a, "--blockdev", blockdev(&r->disk[i]));
		add_json(a, "--export", export(&r->disk[i]));
	}
}

/* The program beside this one, or the one in the PATH. */
static void add_vmm(struct args *a)
{
	char self[PATH_MAX], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - sizeof("merino-vmm"));

	self[n > 0 ? n : 0] = 0;
	slash = strrchr(self, '/');
	if (slash)
		strcpy(slash + 1, "merino-vmm");
	add(a, "%s", slash && access(self, X_OK) == 0 ? self : "merino-vmm");
}

static int add_disk(const struct run *r, const struct run_disk *d, struct args *a, struct error *err)
{
	char path[PATH_MAX], *uri = NULL;
	int rc = 0;

	vm_file(&r->vm, "nbd", path);
	if (!d->uri)
		rc = uri_build_unix(false, path, d->id, &uri, err);
	if (rc < 0)
		return rc;
	add(a, "--disk");
	add(a, "%s,id=%s%s", uri ? uri : d->what, d->id, d->read_only ? ",read-only=on" : "");
	free(uri);
	return 0;
}

static bool has_files(const struct run *r)
{
	for (unsigned i = 0; i < r->n_disks; i++)
		if (!r->disk[i].uri)
			return true;
	return false;
}

static int vmm_args(const struct run *r, struct args *a, struct error *err)
{
	int rc = 0;

	add_vmm(a);
	add_option(a, "--name", r->vm.name);
	add_option(a, "--memory", r->memory);
	add_option(a, "--cpus", r->cpus);
	add_option(a, "--kernel", r->kernel);
	add_option(a, "--initrd", r->initrd);
	add_option(a, "--append", r->append);
	add_option(a, "--bios", r->bios);
	if (r->paused)
		add(a, "--paused");
	for (unsigned i = 0; i < r->n_net; i++)
		add_option(a, "--net", r->net[i]);
	for (unsigned i = 0; i < r->n_disks && rc == 0; i++)
		rc = add_disk(r, &r->disk[i], a, err);
	add(a, "--qmp");
	add(a, "unix:%s/qmp", r->vm.dir);
	add(a, "--agent");
	add(a, "unix:%s/agent", r->vm.dir);
	if (r->socket || has_files(r)) {
		add(a, "--merinod-qmp");
		add(a, r->socket ? "unix:%s" : "unix:%s/merinod.qmp", r->socket ? r->socket : r->vm.dir);
	}
	add(a, "--serial");
	add(a, r->detach ? "unix:%s/serial" : "stdio", r->vm.dir);
	return rc;
}

/* -- processes ------------------------------------------------------------------ */

static const char *log_of(const struct run *r, char path[PATH_MAX])
{
	vm_file(&r->vm, "log", path);
	return r->detach ? path : NULL;
}

int run_restart_merinod(struct run *r, struct error *err)
{
	struct args a = { .n = 0 };
	char log[PATH_MAX], pidfile[PATH_MAX];
	int rc;

	vm_file(&r->vm, "merinod.pid", pidfile);
	unlink(pidfile);
	merinod_args(r, &a);
	rc = a.failed ? error_set(err, -E2BIG, "merinod: too many arguments")
		      : own_daemon_start(a.v, log_of(r, log), &r->merinod, err);
	args_free(&a);
	return rc;
}

/* The pid file is written when everything is in place. */
static int wait_merinod(struct run *r, struct error *err)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };
	char path[PATH_MAX];
	struct stat st;
	int status;

	vm_file(&r->vm, "merinod.pid", path);
	for (unsigned i = 0; stat(path, &st) < 0 || st.st_size == 0; i++) {
		if (own_daemon_ended(&r->merinod, &status))
			return error_set(err, -ECHILD, "merinod did not start: see above");
		if (pull_signalled())
			return error_set(err, -EINTR, "stopped by a signal");
		if (i == START_NAPS)
			return error_set(err, -ETIMEDOUT, "merinod is not ready after a minute");
		nanosleep(&nap, NULL);
	}
	return 0;
}

int run_start_merinod(struct run *r, struct error *err)
{
	int rc = has_files(r) ? run_restart_merinod(r, err) : 0;

	return rc || !has_files(r) ? rc : wait_merinod(r, err);
}

/* In the child: it has our terminal. */
static void become_vmm(char **argv, pid_t parent)
{
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(126);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGXFSZ, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execvp(argv[0], argv);
	dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

static int start_here(struct run *r, char **argv, struct error *err)
{
	pid_t self = getpid();

	r->vmm = fork();
	if (r->vmm == 0)
		become_vmm(argv, self);
	if (r->vmm > 0)
		return 0;
	r->vmm = 0;
	return error_errno(err, -errno, "fork");
}

/* Until its control socket answers. */
static int wait_vmm(struct run *r, struct error *err)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };
	char path[PATH_MAX];
	struct qmp *q = NULL;
	int status;

	vm_file(&r->vm, "qmp", path);
	while (qmp_connect(path, 0, &q, err) < 0) {
		if (own_daemon_ended(&r->vmm, &status)) {
			/* A guest may be done before we could ask. */
			if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
				return 0;
			return error_set(err, -ECHILD, "merino-vmm did not start: see above");
		}
		if (pull_signalled())
			return error_set(err, -EINTR, "stopped by a signal");
		nanosleep(&nap, NULL);
	}
	qmp_close(q);
	return 0;
}

int run_start_vmm(struct run *r, struct error *err)
{
	struct args a = { .n = 0 };
	char log[PATH_MAX];
	int rc = vmm_args(r, &a, err);

	if (rc == 0 && a.failed)
		rc = error_set(err, -E2BIG, "merino-vmm: too many arguments");
	if (rc == 0)
		rc = r->detach ? own_daemon_start(a.v, log_of(r, log), &r->vmm, err)
			       : start_here(r, a.v, err);
	args_free(&a);
	return rc ? rc : wait_vmm(r, err);
}
