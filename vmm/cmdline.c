/* SPDX-License-Identifier: BSD-3-Clause */
/* cmdline: reads the options, names and values as QEMU's users expect them.
 *
 * One table has them all: a take function stores what it was given, and refuses what
 * makes no sense by itself.  Devices parse their own texts when they are made.
 */
#include "vmm/cmdline.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/size.h"

#define DEFAULT_MEMORY (128ull << 20)	/* QEMU's */

struct option_def {
	const char *name;		/* NULL: help is a heading */
	char letter;			/* 0: none */
	const char *arg;		/* NULL: none */
	const char *help;
	void (*take)(struct cmdline *c, const char *text);
};

static void refuse(const char *what, const char *reason)
{
	fprintf(stderr, "merino-vmm: %s: %s\nTry 'merino-vmm --help'.\n", what, reason);
	exit(1);
}

static void take_help(struct cmdline *c, const char *text);

static void take_version(struct cmdline *c, const char *text)
{
	puts("merino-vmm " MERINO_VERSION);
	exit(0);
}

static void take_name(struct cmdline *c, const char *text)
{
	c->machine.name = text;
}

/* A bare number is MiB, as QEMU's -m has it. */
static void take_memory(struct cmdline *c, const char *text)
{
	struct error err = ERROR_INIT;
	char *end;

	strtoull(text, &end, 10);
	if (size_parse(text, &c->machine.memory, &err))
		refuse("--memory", err.text);
	if (!*end && c->machine.memory < UINT64_MAX >> 20)
		c->machine.memory <<= 20;
}

static void take_cpus(struct cmdline *c, const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || n < 1 || n > MACHINE_VCPUS_MAX)
		refuse("--cpus", "must be a number from 1 to 64");
	c->machine.vcpus = (unsigned)n;
}

static void take_kernel(struct cmdline *c, const char *text)
{
	c->machine.kernel = text;
}

static void take_bios(struct cmdline *c, const char *text)
{
	c->machine.firmware = text;
}

static void take_initrd(struct cmdline *c, const char *text)
{
	c->machine.initrd = text;
}

static void take_append(struct cmdline *c, const char *text)
{
	c->machine.cmdline = text;
}

static void list_add(const char *option, struct cmdline_list *l, const char *text)
{
	if (l->n == CMDLINE_LIST_MAX)
		refuse(option, "given too often");
	l->text[l->n++] = text;
}

static void take_disk(struct cmdline *c, const char *text)
{
	list_add("--disk", &c->disks, text);
}

static void take_serial(struct cmdline *c, const char *text)
{
	c->serial = text;
}

static const char *unix_path(const char *option, const char *text)
{
	if (strncmp(text, "unix:", 5) || !text[5])
		refuse(option, "must be unix:PATH");
	return text + 5;
}

static void take_console(struct cmdline *c, const char *text)
{
	c->console = unix_path("--console", text);
}

static void take_agent(struct cmdline *c, const char *text)
{
	c->agent = unix_path("--agent", text);
}

static void take_qmp(struct cmdline *c, const char *text)
{
	c->qmp = unix_path("--qmp", text);
}

static void take_merinod_qmp(struct cmdline *c, const char *text)
{
	c->merinod_qmp = unix_path("--merinod-qmp", text);
}

static void take_net(struct cmdline *c, const char *text)
{
	if (c->nets.n == CMDLINE_NETS_MAX)
		refuse("--net", "there are too many");
	c->nets.text[c->nets.n++] = text;
}

static void take_no_reboot(struct cmdline *c, const char *text)
{
	c->machine.no_reboot = true;
}

static void take_paused(struct cmdline *c, const char *text)
{
	c->paused = true;
}

static void take_sandbox(struct cmdline *c, const char *text)
{
	if (strcmp(text, "on") && strcmp(text, "off") && strcmp(text, "trap"))
		refuse("--sandbox", "must be on, off or trap");
	c->sandbox.off = !strcmp(text, "off");
	c->sandbox.trap = !strcmp(text, "trap");
}

static void take_user(struct cmdline *c, const char *text)
{
	c->sandbox.user = text;
}

static void take_core(struct cmdline *c, const char *text)
{
	c->sandbox.core = true;
}

static const struct option_def options[] = {
	{ .help = "The machine:" },
	{ "name", 'n', "NAME", "what to call it", take_name },
	{ "memory", 'm', "SIZE", "its memory, 2G or 512M; a bare number is MiB; default 128M",
	  take_memory },
	{ "cpus", 'c', "N", "its CPUs; default 1", take_cpus },
	{ .help = "What it boots:" },
	{ "kernel", 'k', "FILE", "a Linux bzImage, or an ELF kernel with a PVH or a 64-bit entry",
	  take_kernel },
	{ "initrd", 'i', "FILE", "the kernel's initrd", take_initrd },
	{ "append", 'a', "TEXT", "the kernel's command line", take_append },
	{ "bios", 0, "FILE", "or the firmware that boots a disk; default " FIRMWARE_DEFAULT, take_bios },
	{ .help = "Devices:" },
	{ "disk", 'd', "URI[,KEY=VALUE...]",
	  "a disk: NBD URI, id, serial, read-only, queues, queue-size, reconnect-delay", take_disk },
	{ "serial", 0, "stdio|none|file:PATH|unix:PATH",
	  "where the serial line goes; default stdio", take_serial },
	{ "console", 0, "unix:PATH", "a virtio console (hvc0) for the client of this socket",
	  take_console },
	{ "agent", 0, "unix:PATH", "a port org.qemu.guest_agent.0 for the client of this socket",
	  take_agent },
	{ "net", 0, "user|tap[,...]", "a network card; may be repeated", take_net },
	{ .help = "The process:" },
	{ "qmp", 0, "unix:PATH", "serve QMP on this socket", take_qmp },
	{ "merinod-qmp", 0, "unix:PATH",
	  "pass commands about disks on to the merinod that serves QMP here", take_merinod_qmp },
	{ "no-reboot", 0, NULL, "end when the guest resets", take_no_reboot },
	{ "paused", 'S', NULL, "do not start the CPUs before QMP's cont", take_paused },
	{ "user", 0, "NAME|UID[:GROUP|GID]", "become this user when all is open", take_user },
	{ "sandbox", 0, "on|off|trap", "give up what the machine does not need; default on", take_sandbox },
	{ "core", 0, NULL, "leave the limit on core files as it is", take_core },
	{ "help", 'h', NULL, "this text", take_help },
	{ "version", 'V', NULL, "the version", take_version },
};
#define N_OPTIONS (sizeof(options) / sizeof(options[0]))

static void help_one(const struct option_def *o)
{
	char head[128];
	int n = 0;

	if (o->letter)
		n = snprintf(head, sizeof(head), "-%c, ", o->letter);
	snprintf(head + n, sizeof(head) - (size_t)n, "--%s%s%s", o->name, o->arg ? " " : "",
		 o->arg ? o->arg : "");
	printf(strlen(head) > 24 ? "  %s\n%28s%s\n" : "  %-24s%2s%s\n", head, "", o->help);
}

static void take_help(struct cmdline *c, const char *text)
{
	puts("usage: merino-vmm [OPTION]...\n\nA virtual machine on KVM whose disks are NBD clients.\n");
	for (unsigned i = 0; i < N_OPTIONS; i++) {
		if (options[i].name)
			help_one(&options[i]);
		else
			printf("%s%s\n", i ? "\n" : "", options[i].help);
	}
	exit(0);
}

static const struct option_def *by_letter(int letter)
{
	for (unsigned i = 0; i < N_OPTIONS; i++)
		if (options[i].name && options[i].letter == letter)
			return &options[i];
	return NULL;
}

void cmdline_parse(struct cmdline *c, int argc, char **argv)
{
	struct option longs[N_OPTIONS + 1] = { 0 };
	char letters[3 * N_OPTIONS + 2] = "";
	int opt, index;

	*c = (struct cmdline){
		.machine = { .vcpus = 1, .memory = DEFAULT_MEMORY }, .serial = "stdio",
	};
	for (unsigned i = 0, n = 0; i < N_OPTIONS; i++) {
		const struct option_def *o = &options[i];

		if (!o->name)
			continue;
		longs[n++] = (struct option){ o->name, o->arg ? required_argument : no_argument,
					      NULL, 256 + (int)i };
		if (o->letter)
			sprintf(letters + strlen(letters), "%c%s", o->letter, o->arg ? ":" : "");
	}
	while ((opt = getopt_long(argc, argv, letters, longs, &index)) != -1) {
		const struct option_def *o = opt >= 256 ? &options[opt - 256] : by_letter(opt);

		if (!o || opt == '?') {
			fputs("Try 'merino-vmm --help'.\n", stderr);
			exit(1);
		}
		o->take(c, optarg);
	}
	if (optind < argc)
		refuse(argv[optind], "not an option");
}
