/* SPDX-License-Identifier: BSD-3-Clause */
/* cmdline: reads the command line into settings, and runs them in order.
 *
 * Names and values are qemu-storage-daemon's; what it has and we have not is
 * refused by name.  Reading comes first and as a whole, so that a typing error
 * at the end leaves nothing half done; --daemonize, --pidfile and --loops take
 * effect before everything else, wherever they stand.
 */
#include "nbd-server/cmdline-int.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/keyval.h"
#include "common/log.h"
#include "common/options.h"
#include "common/size.h"
#include "format/node.h"
#include "nbd-server/commands.h"
#include "nbd-server/describe.h"
#include "nbd-server/monitor.h"

#define LOOPS_MAX 64
#define LOCK_WAIT_MAX 60000u		/* ms */

void cmdline_refuse(const char *what, const char *reason)
{
	fprintf(stderr, "merinod: %s: %s\nTry 'merinod --help'.\n", what, reason);
	exit(1);
}

static void *grow(void *v, unsigned n, size_t size)
{
	v = reallocarray(v, n + 1, size);
	if (!v)
		cmdline_refuse("command line", "Out of memory");
	return v;
}

/* -- what takes effect while reading ------------------------------------------ */

static void take_help(struct cmdline *c, const char *text);

static void take_version(struct cmdline *c, const char *text)
{
	puts("merinod " MERINO_VERSION);
	exit(0);
}

static void take_daemonize(struct cmdline *c, const char *text)
{
	c->daemonize = true;
}

static void take_pidfile(struct cmdline *c, const char *text)
{
	if (c->pidfile)
		cmdline_refuse("--pidfile", "may be given once");
	c->pidfile = text;
}

static void take_loops(struct cmdline *c, const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || n < 1 || n > LOOPS_MAX)
		cmdline_refuse("--loops", "must be a number from 1 to 64");
	c->loops = (unsigned)n;
}

static void take_send_timeout(struct cmdline *c, const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || n > 86400)
		cmdline_refuse("--send-timeout", "must be a number of seconds, up to 86400");
	nbd_server_send_timeout = (unsigned)n;
}

static void take_fleece_max(struct cmdline *c, const char *text)
{
	struct error err = ERROR_INIT;

	if (size_parse(text, &c->fleece_max, &err))
		cmdline_refuse("--fleece-max", err.text);
}

static void take_fleece_dir(struct cmdline *c, const char *text)
{
	if (text[0] != '/')
		cmdline_refuse("--fleece-dir", "must be an absolute path");
	c->fleece_dir = text;
}

static void take_state(struct cmdline *c, const char *text)
{
	c->state.dir = text;
}

static void take_state_reset(struct cmdline *c, const char *text)
{
	c->state.reset = true;
}

static void take_state_skip(struct cmdline *c, const char *text)
{
	c->state.skip = true;
}

static void take_lock_wait(struct cmdline *c, const char *text)
{
	char *end;
	unsigned long ms = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || ms > LOCK_WAIT_MAX)
		cmdline_refuse("--lock-wait", "must be a number of milliseconds, 60000 at most");
	file_lock_patience(ms * 1000000u);
}

static void take_trace(struct cmdline *c, const char *text)
{
	fprintf(stderr, "merinod: warning: --trace %s: there are no trace events; ignored\n", text);
}

/* For the build: see describe.c. */
static void take_qmp_commands(struct cmdline *c, const char *text)
{
	if (!describe_commands(stdout, text))
		cmdline_refuse("--qmp-commands", "must be pod");
	exit(0);
}

static void take_read_only(struct cmdline *c, const char *text)
{
	c->quick.read_only = true;
}

static void take_format(struct cmdline *c, const char *text)
{
	c->quick.format = text;
}

static void take_socket(struct cmdline *c, const char *text)
{
	c->quick.socket = text;
}

static void take_bitmap(struct cmdline *c, const char *text)
{
	struct quick *q = &c->quick;

	q->bitmaps = grow(q->bitmaps, q->n_bitmaps, sizeof(*q->bitmaps));
	q->bitmaps[q->n_bitmaps++] = text;
}

/* -- what is run in order; O is consumed in place ------------------------------- */

static int run_blockdev(struct json_object *o, struct error *err)
{
	return qmp_run_keyval("blockdev-add", o, err);
}

/* "bitmap" is what older manuals call the first of "bitmaps". */
static int run_export(struct json_object *o, struct error *err)
{
	struct json_object *bitmap = json_object_object_get(o, "bitmap");

	if (bitmap && !json_object_object_get_ex(o, "bitmaps", NULL)) {
		struct json_object *list = json_object_new_array();

		json_object_array_add(list, json_object_get(bitmap));
		json_object_object_add(o, "bitmaps", list);
		json_object_object_del(o, "bitmap");
	}
	return qmp_run_keyval("block-export-add", o, err);
}

static int run_object(struct json_object *o, struct error *err)
{
	return qmp_run_keyval("object-add", o, err);
}

const struct option_def cmdline_options[] = {
	{ .help = "Serve images to people:" },
	{ "read-only", 'r', NULL, "serve them read only", .take = take_read_only },
	{ "format", 'f', "FORMAT", "their format, raw or qcow2; without it, qcow2 that names no\n"
	  "other file is recognised and anything else is served raw and read only", .take = take_format },
	{ "socket", 'k', "PATH", "listen on this unix socket; without it, on a private one",
	  .take = take_socket },
	{ "bitmap", 'B', "NAME", "offer this dirty bitmap of theirs; may be repeated",
	  .take = take_bitmap },
	{ .help = "Serve as qemu-storage-daemon does:" },
	{ "add-fd", 0, "fd=N,set=ID[,opaque=TEXT]",
	  "put a descriptor that merinod was started with into a set: the file /dev/fdset/ID",
	  .run = add_fd_option },
	{ "blockdev", 0, "DRIVER,node-name=N,...", "open an image, as QMP's blockdev-add",
	  .run = run_blockdev, .implied = "driver", .member = "blockdevs", .list = true },
	{ "chardev", 0, "socket,id=ID,path=PATH,server=on,wait=off",
	  "make a socket for a monitor (or host=,port=; or fd=); or stdio,id=ID",
	  .run = chardev_add, .implied = "backend", .bare = true, .member = "chardevs", .list = true },
	{ "export", 0, "nbd,id=ID,node-name=N,...", "offer a node, as QMP's block-export-add",
	  .run = run_export, .implied = "type", .member = "exports", .list = true },
	{ "monitor", 0, "ID[,pretty=on]", "serve QMP clients on a chardev",
	  .run = monitor_add, .implied = "chardev", .bare = true, .member = "monitors", .list = true },
	{ "nbd-server", 0, "addr.type=unix,addr.path=PATH,...",
	  "listen for NBD clients (or addr.type=inet,addr.host=,addr.port=; or\n"
	  "addr.type=fd,addr.str=; or addr.type=vsock,addr.cid=,addr.port=);\n"
	  "max-connections=N, handshake-max-seconds=N, send-timeout=N; tls-creds=ID, tls-authz=ID, tls=on;\n"
	  "may be repeated", .run = nbd_server_start_keyval,
	  .member = "nbd-servers", .list = true },
	{ "object", 0, "CLASS,id=ID,...", "make an object, as QMP's object-add: tls-creds-x509, tls-creds-psk,\n"
	  "authz-list, authz-listfile, authz-simple, secret, throttle-group, iothread",
	  .run = run_object, .implied = "qom-type", .member = "objects", .list = true,
	  .private = true },
	{ .help = "The process:" },
	{ "config", 0, "FILE", "read options from this file, which is JSON",
	  .take = cmdline_take_config },
	{ "state", 0, "DIR", "keep what there is in this directory, and make it again at the\n"
	  "next start", .take = take_state, .member = "state" },
	{ "state-reset", 0, NULL, "put aside what it has, and begin with the options",
	  .take = take_state_reset },
	{ "state-skip", 0, NULL, "start without what cannot be made again",
	  .take = take_state_skip, .member = "state-skip" },
	{ "allow-dir", 0, "DIR", "open no file outside of this directory, or of others given so",
	  .take = cmdline_take_allow_dir, .member = "allow-dirs", .list = true },
	{ "fleece-dir", 0, "DIR", "where backups keep what guests overwrite meanwhile; default\n"
	  "beside the image", .take = take_fleece_dir, .member = "fleece-dir" },
	{ "fleece-max", 0, "SIZE", "how much of that one disk's backup may keep; default no limit",
	  .take = take_fleece_max, .member = "fleece-max" },
	{ "user", 0, "NAME|UID[:GROUP|GID]", "become this user when everything is open",
	  .take = cmdline_take_user, .member = "user" },
	{ "sandbox", 0, "on|off", "filter system calls, and mind --allow-dir; default on",
	  .take = cmdline_take_sandbox, .member = "sandbox" },
	{ "core", 0, NULL, "allow core files, which hold guests' data",
	  .take = cmdline_take_core, .member = "core" },
	{ "daemonize", 0, NULL, "go to the background when everything is in place",
	  .take = take_daemonize, .member = "daemonize" },
	{ "pidfile", 0, "PATH", "hold this file, with the process id, while running",
	  .take = take_pidfile, .member = "pidfile" },
	{ "loops", 0, "N", "threads that disks are spread over; default 1", .take = take_loops,
	  .member = "loops" },
	{ "send-timeout", 0, "SECONDS", "drop clients that take no reply for so long; default 0: never",
	  .take = take_send_timeout, .member = "send-timeout" },
	{ "lock-wait", 0, "MS", "wait so long for an image that another process has locked;\ndefault 2000",
	  .take = take_lock_wait, .member = "lock-wait" },
	{ "trace", 'T', "...", "accepted for qemu-storage-daemon's sake; does nothing",
	  .take = take_trace },
	{ "qmp-commands", 0, "FORMAT", NULL, .take = take_qmp_commands },
	{ "help", 'h', NULL, "print this and exit", .take = take_help },
	{ "version", 'V', NULL, "print the version and exit", .take = take_version },
};

#define N_OPTIONS (sizeof(cmdline_options) / sizeof(cmdline_options[0]))

const unsigned cmdline_n_options = N_OPTIONS;

static void print_option(const struct option_def *d)
{
	const char *line = d->help;

	printf("  ");
	if (d->letter)
		printf("-%c, ", d->letter);
	printf("--%s%s%s\n", d->name, d->arg ? " " : "", d->arg ? d->arg : "");
	while (line) {
		const char *end = strchr(line, '\n');

		printf("          %.*s\n", (int)(end ? (size_t)(end - line) : strlen(line)), line);
		line = end ? end + 1 : NULL;
	}
}

static void take_help(struct cmdline *c, const char *text)
{
	puts("Usage: merinod [-r] [-f FORMAT] [-k PATH] [--bitmap NAME] DISK...\n"
	     "       merinod OPTIONS...\n"
	     "Serves disk images over NBD, with live bitmaps; speaks QMP.");
	for (unsigned i = 0; i < N_OPTIONS; i++) {
		if (!cmdline_options[i].name)
			printf("\n%s\n", cmdline_options[i].help);
		else if (cmdline_options[i].help)
			print_option(&cmdline_options[i]);
	}
	puts("\nOptions are processed in the order given.  See merinod(8).");
	exit(0);
}

/* -- reading ------------------------------------------------------------------- */

/* getopt's tables; a long option's value is its index behind 256. */
static void make_getopt(struct option *longs, char *shorts)
{
	*shorts++ = '-';		/* other words in their place, as option 1 */
	for (unsigned i = 0; i < N_OPTIONS; i++) {
		const struct option_def *d = &cmdline_options[i];

		if (!d->name)
			continue;
		*longs++ = (struct option){
			.name = d->name,
			.has_arg = d->arg ? required_argument : no_argument,
			.val = 256 + (int)i,
		};
		if (d->letter)
			*shorts++ = d->letter;
		if (d->letter && d->arg)
			*shorts++ = ':';
	}
	*longs = (struct option){ 0 };
	*shorts = '\0';
}

static const struct option_def *find_option(int c)
{
	if (c >= 256)
		return &cmdline_options[c - 256];
	for (unsigned i = 0; i < N_OPTIONS; i++) {
		if (cmdline_options[i].name && cmdline_options[i].letter == c)
			return &cmdline_options[i];
	}
	return NULL;
}

static void take_file(struct cmdline *c, char *name)
{
	struct quick *q = &c->quick;

	q->files = grow(q->files, q->n_files, sizeof(*q->files));
	q->files[q->n_files++] = name;
}

void cmdline_queue(struct cmdline *c, const struct setting *s)
{
	c->settings = grow(c->settings, c->n_settings, sizeof(*c->settings));
	c->settings[c->n_settings++] = *s;
}

void cmdline_take(struct cmdline *c, const struct option_def *d, const char *text)
{
	if (d->take)
		d->take(c, text);
	else
		cmdline_queue(c, &(struct setting){ .def = d, .text = text });
}

/* All refusals about options that do not go together. */
static void check(const struct cmdline *c)
{
	const struct quick *q = &c->quick;

	if (!q->n_files && (q->read_only || q->format || q->socket || q->n_bitmaps))
		cmdline_refuse("-r, -f, -k, -B", "no disk is named");
	if (q->n_files && c->state.dir)
		cmdline_refuse("--state", "goes with --blockdev and --export, not with disks");
	if (!c->state.dir && (c->state.reset || c->state.skip))
		cmdline_refuse("--state-reset, --state-skip", "there is no --state");
	if (q->format && strcmp(q->format, "raw") && strcmp(q->format, "qcow2"))
		cmdline_refuse("--format", "must be raw or qcow2");
}

void cmdline_parse(struct cmdline *c, int argc, char **argv)
{
	struct option longs[N_OPTIONS + 1];
	char shorts[2 * N_OPTIONS + 2];
	int o;

	*c = (struct cmdline){ .loops = 1 };
	make_getopt(longs, shorts);
	argv[0] = (char *)"merinod";		/* getopt's messages begin with it */
	while ((o = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
		const struct option_def *d = o == 1 ? NULL : find_option(o);

		if (o == '?')
			exit(1);	/* getopt has said why */
		if (d)
			cmdline_take(c, d, optarg);
		else
			take_file(c, optarg);
	}
	while (optind < argc)
		take_file(c, argv[optind++]);
	if (argc < 2)
		cmdline_refuse("nothing to serve", "name a disk, or options");
	check(c);
}

struct json_object *cmdline_object(const struct setting *s, struct error *err)
{
	struct json_object *o;

	if (s->text && s->def->bare)
		return keyval_parse_bare(s->text, s->def->implied, err);
	if (s->text)
		return keyval_parse(s->text, s->def->implied, err);
	o = opts_copy(s->object);
	if (!o)
		error_set(err, -ENOMEM, "Out of memory");
	return o;
}

int cmdline_run_setting(const struct cmdline *c, const struct setting *s, struct error *err)
{
	struct json_object *o = cmdline_object(s, err);
	int rc = o ? s->def->run(o, err) : err->code;

	json_object_put(o);
	if (rc && s->text && s->def->private)
		error_prefix(err, "--%s: ", s->def->name);
	else if (rc && s->text)
		error_prefix(err, "--%s %s: ", s->def->name, s->text);
	else if (rc)
		error_prefix(err, "%s: %s[%u]: ", c->config_path, s->def->member, s->index);
	return rc;
}

int cmdline_run(struct cmdline *c, struct error *err)
{
	if (state_is_on())
		return state_start(c, err);
	for (unsigned i = 0; i < c->n_settings; i++) {
		int rc = cmdline_run_setting(c, &c->settings[i], err);

		if (rc)
			return rc;
	}
	return c->quick.n_files ? quick_run(&c->quick, err) : 0;
}

void cmdline_free(struct cmdline *c)
{
	free(c->settings);
	free(c->sandbox.dirs);
	free(c->quick.files);
	free(c->quick.bitmaps);
	json_object_put(c->config);
}
