/* SPDX-License-Identifier: BSD-3-Clause */
/* pull-sink-int: what pull-sink.c and pull-sink-open.c share. */
#ifndef MERINO_PULL_SINK_INT_H
#define MERINO_PULL_SINK_INT_H

#include "clients/pull-sink.h"
#include "format/node.h"

struct sink {
	const struct pull_options *o;
	uint64_t size;			/* of the export, bytes */
	uint64_t previous_size;		/* of the previous backup; SIZE where there is none */
	bool fresh;			/* what is not written reads as zeroes, and need not say so */
	uint32_t granule;		/* bytes: zeroes are looked for in pieces of this size */
	char *temp;			/* the new image's name for now; NULL: it has its own */
	char *dir;			/* where OUT is; new images only */
	struct io_file *file;		/* the new image, for the last sync */
	uint64_t unsynced;		/* bytes written since the kernel was last told to store them */
	struct graph graph;		/* of NODE and what is below it */
	struct node *node;
	struct node_use use;
	struct node *replaced;		/* --force: the file that has OUT's name until the end */
	struct node_use replaced_use;	/* keeps others from it meanwhile */
};

#endif
