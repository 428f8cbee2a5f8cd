/* SPDX-License-Identifier: BSD-3-Clause */
/* cli: one table of options, from which getopt_long and --help are made. */
#ifndef MERINO_CLI_H
#define MERINO_CLI_H

#include <getopt.h>
#include <stdint.h>
#include <stdio.h>

enum { CLI_OPTIONS = 40, CLI_LONG = 256 };

/* A table ends with an entry without a name. */
struct cli_option {
	int id;				/* the short letter, or CLI_LONG and up: none */
	const char *name;		/* without the dashes */
	const char *value;		/* what --help calls its argument; NULL: none;
					 * "[=X]": optional */
	const char *help;
};

/* What getopt_long wants. */
struct cli {
	char shorts[2 * CLI_OPTIONS + 1];
	struct option longs[CLI_OPTIONS + 1];
};

void cli_init(struct cli *c, const struct cli_option *table);

/* The next option's id, -1 at the end, '?' after an error that was reported. */
int cli_next(struct cli *c, int argc, char **argv);

/* One line per option. */
void cli_help(FILE *f, const struct cli_option *table);

/* "merino 0.1.0" and a line end, on stdout. */
void cli_version(void);

/* A number within [MIN, MAX], or -1 after an error that was reported. */
int64_t cli_number(const char *option, const char *text, int64_t min, int64_t max);

#endif
