// SPDX-License-Identifier: BSD-3-Clause
/* backup-images: images that nothing has open: a merinod of our own, for as long as it takes.
 *
 * It listens in a directory that only this user can enter, ends with us whatever we die of,
 * and locks the images as any other daemon does: one that a virtual machine has open is
 * refused.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clients/backup-checkpoint.h"
#include "clients/own-daemon.h"
#include "common/json.h"
#include "common/log.h"
#include "common/private-dir.h"

enum { START_MS = 20000, END_S = 60, ARGS = 16, PATH_LONG = 256 };

static struct {
	struct checkpoint_run run;
	char dir[PATH_LONG], socket[PATH_LONG + 16], log[PATH_LONG + 16];
	pid_t pid;			/* 0: none */
	bool ready;			/* it has answered */
} own;

/* --- what to open */

static bool ends_with(const char *s, const char *tail)
{
	size_t n = strlen(s), m = strlen(tail);

	return n >= m && !strcmp(s + n - m, tail);
}

static struct json_object *text(const char *s)
{
	return json_object_new_string(s);
}

/* --blockdev's value for PATH as node NODE; malloc'd. */
static char *blockdev(const char *path, const char *node)
{
	struct json_object *o = json_object_new_object(), *file = json_object_new_object();
	struct stat st;
	bool device = stat(path, &st) == 0 && S_ISBLK(st.st_mode);
	char *out;

	json_object_object_add(o, "driver", text(ends_with(path, ".qcow2") ? "qcow2" : "raw"));
	json_object_object_add(o, "node-name", text(node));
	json_object_object_add(file, "driver", text(device ? "host_device" : "file"));
	json_object_object_add(file, "filename", text(path));
	json_object_object_add(o, "file", file);
	out = strdup(json_write(o));
	json_object_put(o);
	return out;
}

/* [NAME=]IMAGE, a file that exists; the name is the file's without its suffix. */
static int want_image(const char *what, unsigned i, char **arg, struct error *err)
{
	const char *eq = access(what, F_OK) == 0 ? NULL : strchr(what, '='), *name = what, *dot;
	char *full = realpath(eq ? eq + 1 : what, NULL), node[16];
	size_t n;
	int rc;

	if (!full)
		return error_errno(err, -errno, "%s", eq ? eq + 1 : what);
	if (!eq) {
		name = strrchr(full, '/') + 1;
		dot = strrchr(name, '.');
		n = dot && dot != name ? (size_t)(dot - name) : strlen(name);
	} else {
		n = eq - what;
	}
	snprintf(node, sizeof(node), "disk%u", i);
	rc = checkpoint_want(&own.run, name, n, node, NULL, full, err);
	*arg = blockdev(full, node);
	free(full);
	return rc == 0 && !*arg ? error_errno(err, -ENOMEM, "%s", what) : rc;
}

/* --- the daemon */

static int make_dir(struct error *err)
{
	char *dir;
	int rc = private_dir_make(getenv("XDG_RUNTIME_DIR"), "/tmp", "merino", &dir, err);

	if (rc < 0)
		return rc;
	snprintf(own.dir, sizeof(own.dir), "%s", dir);
	snprintf(own.socket, sizeof(own.socket), "%s/qmp", own.dir);
	snprintf(own.log, sizeof(own.log), "%s/log", own.dir);
	free(dir);
	return 0;
}

static int start(struct backup *b, char **blockdevs, struct error *err)
{
	char listen[PATH_LONG + 64], chardev[PATH_LONG + 64];
	unsigned n = 0;
	char **argv = calloc(2 * b->o->n_what + ARGS, sizeof(*argv)), *program = own_daemon_program(b->o->merinod);
	int rc = argv && program ? make_dir(err) : error_errno(err, -ENOMEM, "merinod");

	if (rc == 0) {
		snprintf(listen, sizeof(listen), "addr.type=unix,addr.path=%s/nbd", own.dir);
		snprintf(chardev, sizeof(chardev), "socket,id=m,path=%s,server=on,wait=off", own.socket);
		argv[n++] = program;
		for (unsigned i = 0; i < b->o->n_what; i++) {
			argv[n++] = "--blockdev";
			argv[n++] = blockdevs[i];
		}
		argv[n++] = "--nbd-server";
		argv[n++] = listen;
		argv[n++] = "--chardev";
		argv[n++] = chardev;
		argv[n++] = "--monitor";
		argv[n++] = "chardev=m";
		rc = own_daemon_start(argv, own.log, &own.pid, err);
	}
	free(program);
	free(argv);
	return rc;
}

/* What the daemon said first that is more than an information, without its name. */
static void its_words(char *out, size_t n)
{
	FILE *f = fopen(own.log, "re");
	char line[1024];

	out[0] = 0;
	while (f && !out[0] && fgets(line, sizeof(line), f)) {
		const char *text = strncmp(line, "merinod: ", 9) ? line : line + 9;

		line[strcspn(line, "\n")] = 0;
		if (!strstr(line, " info: "))
			snprintf(out, n, "%.*s", (int)n - 1, text);
	}
	if (f)
		fclose(f);
}

/* Until its socket answers, or it has ended: then it has said why. */
static int wait_ready(struct error *err)
{
	uint64_t until = progress_now() + START_MS * 1000000ull;
	int rc = -ENOENT, status;

	while (rc < 0 && progress_now() < until) {
		if (own_daemon_ended(&own.pid, &status)) {
			char words[512];

			its_words(words, sizeof(words));
			return error_set(err, -ECHILD, "the merinod for the images ended at once: %s", words);
		}
		*err = ERROR_INIT;
		rc = qmp_connect(own.socket, 100, &own.run.q, err);
		if (rc == -EINTR)
			return rc;
	}
	return rc;
}

static void stop_daemon(void)
{
	struct error err = ERROR_INIT;
	char path[PATH_LONG + 16], words[512];
	int status;

	if (own.run.q)
		qmp_call(own.run.q, "quit", NULL, NULL, QMP_MUST_END, &err);
	if (own.pid) {
		status = own_daemon_end(&own.pid, END_S);
		its_words(words, sizeof(words));
		if (own.ready && (!WIFEXITED(status) || WEXITSTATUS(status)))
			log_warning("the merinod for the images did not end well: %s", words);
	}
	snprintf(path, sizeof(path), "%s/nbd", own.dir);
	if (own.dir[0]) {
		unlink(path);
		unlink(own.socket);
		unlink(own.log);
		rmdir(own.dir);
	}
	own.dir[0] = 0;
}

/* --- the source */

static int open_images(struct backup *b, struct error *err)
{
	char **blockdevs = calloc(b->o->n_what, sizeof(char *));
	int rc = blockdevs ? 0 : error_errno(err, -ENOMEM, "images");

	for (unsigned i = 0; i < b->o->n_what && rc == 0; i++)
		rc = want_image(b->o->what[i], i, &blockdevs[i], err);
	if (rc == 0)
		rc = start(b, blockdevs, err);
	for (unsigned i = 0; blockdevs && i < b->o->n_what; i++)
		free(blockdevs[i]);
	free(blockdevs);
	own.run.socket = own.socket;
	if (rc == 0)
		rc = wait_ready(err);
	own.ready = rc == 0;
	return rc ? rc : checkpoint_open(b, &own.run, err);
}

static int keep_images(struct backup *b, struct error *err)
{
	return checkpoint_keep(b, &own.run, err);
}

static int end_images(struct backup *b, bool success, struct error *err)
{
	int rc = checkpoint_close(b, &own.run, success, err);

	stop_daemon();
	checkpoint_run_clear(&own.run);
	return rc;
}

const struct backup_source backup_images = { open_images, keep_images, end_images };
