/* SPDX-License-Identifier: BSD-3-Clause */
/* progress: how far a long operation is, for a person or for a program.
 *
 * A person gets a bar on stderr that is redrawn ten times a second: percent,
 * bytes copied, rate, and the time that is left.  Where stderr is no terminal
 * there is a plain line at every tenth.  A program gets lines "N/100" on a
 * descriptor of its choice, as nbdcopy(1) writes them.
 */
#ifndef MERINO_PROGRESS_H
#define MERINO_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

enum progress_mode { PROGRESS_NONE, PROGRESS_BAR, PROGRESS_FD };

struct progress {
	enum progress_mode mode;
	int fd;				/* where to */
	bool tty;			/* may be redrawn in place */
	bool drawn;			/* a bar stands on the terminal's last line */
	int percent;			/* last one told; -1: none */
	uint64_t start, last;		/* CLOCK_MONOTONIC, ns */
};

uint64_t progress_now(void);		/* CLOCK_MONOTONIC, ns */

/* FD counts for PROGRESS_FD only. */
void progress_init(struct progress *p, enum progress_mode mode, int fd);

/* DONE of TOTAL bytes are dealt with; COPIED of them went over the wire. */
void progress_update(struct progress *p, uint64_t done, uint64_t total, uint64_t copied);

/* The last word: all is done, or (not OK) the line is only ended. */
void progress_end(struct progress *p, bool ok, uint64_t total, uint64_t copied);

#endif
