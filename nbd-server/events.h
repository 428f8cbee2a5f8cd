/* SPDX-License-Identifier: BSD-3-Clause */
/* events: from any loop to the clients of the monitors, without waiting. */
#ifndef MERINO_EVENTS_H
#define MERINO_EVENTS_H

#include <stdbool.h>
#include <stdint.h>

struct export;
struct node;

/* Tells format/ whom to call.  Once, at start. */
void events_init(void);

/* A request of E's clients failed with RC on storage (BLOCK_IO_ERROR, once a second
 * for each export).  On the export's loop. */
void event_io_error(struct export *e, bool is_write, int rc);

/* E is about to close: tells what was held back.  On the export's loop. */
void event_io_errors_end(struct export *e);

#endif
