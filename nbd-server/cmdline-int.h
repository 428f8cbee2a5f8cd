/* SPDX-License-Identifier: BSD-3-Clause */
/* cmdline-int: the option table, shared by cmdline.c (words of a command line)
 * and cmdline-config.c (members of a configuration file). */
#ifndef MERINO_CMDLINE_INT_H
#define MERINO_CMDLINE_INT_H

#include <json-c/json.h>

#include "nbd-server/cmdline.h"

struct option_def {
	const char *name;		/* NULL: a heading of --help */
	char letter;			/* 0: none */
	const char *arg;		/* what --help calls its value; NULL: takes none */
	const char *help;		/* lines are broken with \n; NULL: not shown */
	/* Takes effect while reading … */
	void (*take)(struct cmdline *c, const char *text);
	/* … or in its turn, with an object that is consumed in place.  IMPLIED: the key
	 * of a first value without one; BARE: NAME means NAME=on. */
	int (*run)(struct json_object *o, struct error *err);
	const char *implied;
	bool bare;
	bool private;			/* its text is not for logs */
	/* In a configuration file: the member that means the same.  LIST: it is a list,
	 * of objects for RUN and of texts for TAKE.  NULL: not in a file. */
	const char *member;
	bool list;
};

/* Something to run: as it stands on the command line, or in the file. */
struct setting {
	const struct option_def *def;
	const char *text;		/* NULL: … */
	struct json_object *object;	/* … this; belongs to cmdline.config */
	unsigned index;			/* in its list there */
};

extern const struct option_def cmdline_options[];
extern const unsigned cmdline_n_options;

/* Does at once what takes effect while reading, and queues the rest. */
void cmdline_take(struct cmdline *c, const struct option_def *d, const char *text);
void cmdline_queue(struct cmdline *c, const struct setting *s);

/* Prints and ends the process with status 1. */
void cmdline_refuse(const char *what, const char *reason)
	__attribute__((noreturn));

int cmdline_run_setting(const struct cmdline *c, const struct setting *s, struct error *err);
/* The object that S is run with, a private copy; NULL with ERR set. */
struct json_object *cmdline_object(const struct setting *s, struct error *err);

/* cmdline-sandbox.c */
void cmdline_take_sandbox(struct cmdline *c, const char *text);
void cmdline_take_allow_dir(struct cmdline *c, const char *text);
void cmdline_take_user(struct cmdline *c, const char *text);
void cmdline_take_core(struct cmdline *c, const char *text);

/* cmdline-config.c: --config.  Reads the file and takes all its members. */
void cmdline_take_config(struct cmdline *c, const char *path);

#endif
