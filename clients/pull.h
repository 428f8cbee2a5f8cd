/* SPDX-License-Identifier: BSD-3-Clause */
/* pull: what the command line of `merino pull` says, and what became of it. */
#ifndef MERINO_PULL_H
#define MERINO_PULL_H

#include <stdbool.h>
#include <stdint.h>

#include "clients/progress.h"
#include "common/error.h"

struct source;
struct sink;

enum pull_format { PULL_QCOW2, PULL_RAW };

struct pull_options {
	const char *uri, *out;
	const char *bitmap;		/* NULL: everything that is allocated */
	const char *backing;		/* the previous backup; NULL: none */
	const char *backing_format;	/* "qcow2" or "raw"; never NULL */
	enum pull_format format;
	bool format_given;
	bool onto;			/* OUT exists and is brought up to date */
	bool force;			/* an existing OUT is replaced */
	bool no_flush;
	bool json, quiet;
	unsigned connections;		/* 0: as many as help */
	unsigned requests;		/* in flight on each connection */
	uint64_t request_size;		/* bytes, a power of two */
	enum progress_mode progress;
	int progress_fd;
};

/* All in bytes, but for the counts. */
struct pull_stats {
	uint64_t size;			/* of the export */
	uint64_t read;			/* came over the wire */
	uint64_t zero;			/* said to be zero by the server: not read */
	uint64_t skipped;		/* clean: not part of this copy */
	uint64_t written;		/* data that was stored */
	uint64_t requests;		/* reads */
	unsigned connections;		/* that were in use at the end */
	double seconds;
};

/* What the caller is to do after the options were read. */
enum pull_go { PULL_GO, PULL_EXIT_OK, PULL_EXIT_BAD };
enum pull_go pull_parse(struct pull_options *o, int argc, char **argv);

/* Copies all that O asks for from S to K; counts in ST, which P shows.  0, or
 * -errno with the text; -EINTR after SIGINT, SIGTERM or SIGHUP. */
int pull_copy(const struct pull_options *o, struct source *s, struct sink *k,
	      struct pull_stats *st, struct progress *p, struct error *err);

/* Blocks the three signals; they are then seen only where pull_copy waits and
 * where pull_signalled() asks.  The number of the one that came, or 0. */
void pull_signals_hold(void);
int pull_signalled(void);
/* After one came. */
void pull_die_of_signal(void);

/* The verb. */
int pull_main(int argc, char **argv);

#endif
