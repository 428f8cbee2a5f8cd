/* SPDX-License-Identifier: BSD-3-Clause */
/* verb: what the verbs that work on a repository have in common: options, the part
 * "DIR[@WHEN]" of their command line, a limit on the rate, exit codes, JSON.
 */
#ifndef MERINO_VERB_H
#define MERINO_VERB_H

#include <stdbool.h>
#include <stdint.h>

#include "clients/cli.h"
#include "clients/progress.h"
#include "common/error.h"

struct json_object;
struct repo;
struct repo_point;

enum verb_exit {
	VERB_OK = 0,
	VERB_NO = 1,			/* verify: damaged.  Else: the work could not be done */
	VERB_TROUBLE = 2,		/* verify: it could not be found out */
};

enum {
	VERB_JSON = CLI_LONG + 64,
	VERB_LIMIT,
};

/* Rows for a verb's table of options. */
#define VERB_ROW_PROGRESS { 'p', "progress", "[=FD]", "show a progress bar, or write N/100 lines to FD" }
#define VERB_ROW_LIMIT { VERB_LIMIT, "limit", "N", "read at most so many bytes a second" }
#define VERB_ROWS_LAST \
	{ VERB_JSON, "json", NULL, "print the result as JSON" }, \
	{ 'q', "quiet", NULL, "print no summary" }, \
	{ 'h', "help", NULL, "print this text and exit" }, \
	{ 'V', "version", NULL, "print the version and exit" }, \
	{ 0 }

struct verb_options {
	enum progress_mode progress;
	int progress_fd;
	uint64_t limit;			/* bytes a second; 0: none */
	bool json, quiet;
};

enum verb_go { VERB_GO, VERB_EXIT_OK, VERB_EXIT_BAD };

/* One of the rows above, or '?'; HELP prints the verb's. */
enum verb_go verb_take(struct verb_options *o, int id, void (*help)(void));

/* "DIR@WHEN", or DIR alone (*WHEN NULL).  A directory that has an @ in its name is found,
 * too.  Both are malloc'd. */
int verb_where(const char *text, char **dir, char **when, struct error *err);

/* The point that WHEN names: its id; "latest", or NULL: the last good one; else the last of
 * those whose time or id begin so.  DISK (may be NULL): one that has that disk.  Warns where a
 * newer one is passed over because it is damaged. */
const struct repo_point *verb_point(const struct repo *r, const char *when, const char *disk,
				    struct error *err);

/* The rate is kept over seconds, not over single reads. */
struct verb_limit {
	uint64_t rate, bytes, start;	/* start: ns, of the first bytes */
};

/* BYTES were read: waits as long as that takes.  Returns early after a signal. */
void verb_limit_wait(struct verb_limit *l, uint64_t bytes);

/* Dies of the signal that came, if one did; else returns. */
void verb_die_of_signal(void);

void verb_add_u64(struct json_object *o, const char *key, uint64_t v);
void verb_add_string(struct json_object *o, const char *key, const char *v);	/* NULL: not added */
void verb_add_bool(struct json_object *o, const char *key, bool v);
void verb_add_hash(struct json_object *o, const char *key, const uint8_t hash[32]);
/* Prints O and frees it; the exit code: VERB_TROUBLE when it could not be printed. */
int verb_print(struct json_object *o, int code);

#endif
