/* SPDX-License-Identifier: BSD-3-Clause */
/* cmdline: merinod's options.  One table, from which --help is printed, too. */
#ifndef MERINO_CMDLINE_H
#define MERINO_CMDLINE_H

#include <stdbool.h>

#include "common/error.h"
#include "nbd-server/quick.h"
#include "nbd-server/sandbox.h"
#include "nbd-server/state.h"

struct json_object;

/* What has to be known before anything runs. */
struct cmdline {
	bool daemonize;
	const char *pidfile;		/* NULL: none */
	const char *fleece_dir;		/* NULL: beside the image */
	uint64_t fleece_max;		/* bytes of one log; 0: no limit */
	unsigned loops;			/* threads for disks */
	struct sandbox sandbox;
	struct state_options state;
	struct quick quick;		/* merinod disk.qcow2 */
	const char *config_path;	/* NULL: none */
	struct json_object *config;	/* what is in it */
	struct setting *settings;	/* the rest, in order */
	unsigned n_settings;
};

/* Reads ARGV.  Prints and ends the process for --help, --version and for usage
 * errors (status 1). */
void cmdline_parse(struct cmdline *c, int argc, char **argv);

/* Before any thread: gives up what the options do not need. */
int cmdline_sandbox(struct cmdline *c, struct error *err);
/* When everything is in place: says what is not restricted. */
void cmdline_sandbox_tell(const struct cmdline *c);

/* Coroutine on the main loop: does what the options say, strictly in order. */
int cmdline_run(struct cmdline *c, struct error *err);

void cmdline_free(struct cmdline *c);

#endif
