/* SPDX-License-Identifier: BSD-3-Clause */
/* cmdline: merino-vmm's options. */
#ifndef MERINO_VMM_CMDLINE_H
#define MERINO_VMM_CMDLINE_H

#include <stdbool.h>

#include "vmm/machine.h"
#include "vmm/sandbox.h"

#define CMDLINE_NETS_MAX 8u
#define CMDLINE_LIST_MAX 32u		/* of one option that may be repeated */

/* Texts of an option that may be repeated, in order. */
struct cmdline_list {
	const char *text[CMDLINE_LIST_MAX];
	unsigned n;
};

struct cmdline {
	struct machine_config machine;
	struct cmdline_list disks;
	const char *serial;
	const char *qmp, *merinod_qmp;	/* paths of sockets; NULL: none */
	const char *console, *agent;
	struct cmdline_list nets;
	struct sandbox sandbox;
	bool paused;			/* -S */
};

/* Exits on its own after --help, --version and errors.  Keeps pointers into ARGV. */
void cmdline_parse(struct cmdline *c, int argc, char **argv);

#endif
