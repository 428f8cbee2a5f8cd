// SPDX-License-Identifier: BSD-3-Clause
/* main: the program `merino`: one verb, one entry in the table below.
 *
 * A verb's function gets argv with its own name ("merino pull") as argv[0].
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps/bitmap.h"
#include "clients/backup.h"
#include "clients/cli.h"
#include "clients/prune.h"
#include "clients/pull.h"
#include "clients/restore.h"
#include "clients/serve.h"
#include "clients/verify.h"
#include "clients/vm.h"
#include "common/log.h"

struct verb {
	const char *name;
	const char *full;		/* for messages */
	int (*main)(int argc, char **argv);
	const char *help;
};

static const struct verb verbs[] = {
	{ "pull", "merino pull", pull_main, "copy a disk, or what changed on it, from an NBD server" },
	{ "backup", "merino backup", backup_main, "make a restore point of disks, live or not" },
	{ "list", "merino list", list_main, "show the restore points of a backup repository" },
	{ "restore", "merino restore", restore_main, "bring disks back from a backup repository" },
	{ "verify", "merino verify", verify_main, "prove a backup repository, or say what is damaged" },
	{ "prune", "merino prune", prune_main, "remove restore points, by number or schedule" },
	{ "serve", "merino serve", serve_main, "serve a restore point over NBD at once" },
	{ "run", "merino run", run_main, "run a virtual machine whose disks a merinod serves" },
	{ "stop", "merino stop", stop_main, "power a virtual machine off" },
	{ "status", "merino status", status_main, "say which virtual machines run" },
	{ "console", "merino console", console_main, "connect this terminal with a virtual machine's console" },
	{ "freeze", "merino freeze", freeze_main, "bring a guest's file systems to rest, for a while" },
	{ "thaw", "merino thaw", thaw_main, "let a guest's file systems go on" },
	{ NULL },
};

static void help(FILE *f)
{
	fprintf(f, "usage: merino VERB [OPTIONS] ...\n\nverbs:\n");
	for (const struct verb *v = verbs; v->name; v++)
		fprintf(f, "  %-12s %s\n", v->name, v->help);
	fprintf(f, "\nmerino VERB --help tells more; merino --version prints the version.\n");
}

int main(int argc, char **argv)
{
	const char *word = argc > 1 ? argv[1] : NULL;

	log_init("merino", LOG_LEVEL_INFO);
	bitmaps_init();
	if (word && (!strcmp(word, "--help") || !strcmp(word, "-h"))) {
		help(stdout);
		return EXIT_SUCCESS;
	}
	if (word && (!strcmp(word, "--version") || !strcmp(word, "-V"))) {
		cli_version();
		return EXIT_SUCCESS;
	}
	for (const struct verb *v = verbs; word && v->name; v++) {
		if (strcmp(word, v->name) == 0) {
			log_init(v->full, LOG_LEVEL_INFO);
			argv[1] = (char *)v->full;
			return v->main(argc - 1, argv + 1);
		}
	}
	if (word)
		log_error("there is no verb '%s'; see merino --help", word);
	else
		help(stderr);
	return EXIT_FAILURE;
}
