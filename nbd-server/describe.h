/* SPDX-License-Identifier: BSD-3-Clause */
/* describe: the table of commands as documentation. */
#ifndef MERINO_DESCRIBE_H
#define MERINO_DESCRIBE_H

#include <stdbool.h>
#include <stdio.h>

/* Prints all commands to F in FORMAT: "pod", the list in merinod-qmp(7).  false: no such format. */
bool describe_commands(FILE *f, const char *format);

#endif
