/* SPDX-License-Identifier: BSD-3-Clause */
/* successor: a bitmap that is being backed up, and what changes meanwhile.
 *
 * The bitmap itself goes on recording: whatever happens to the process, its bits cover
 * all that changed since the last backup.  Beside it an unnamed bitmap (QEMU's
 * successor) records from the instant of the backup on.  When the backup is good, the
 * bitmap keeps the successor's bits only; else nothing has to be done.
 */
#ifndef MERINO_SUCCESSOR_H
#define MERINO_SUCCESSOR_H

#include "bitmaps/bitmap.h"

/* The gates above are closed.  B is busy until one of the other two. */
int successor_begin(struct bitmap *b, struct bitmap **out, struct error *err);

/* On the node's loop; gates may be open, nothing suspends.  B keeps its bits. */
void successor_drop(struct bitmap *b, struct bitmap *s);
/* B has S's bits from now on, no more and no less. */
void successor_take_over(struct bitmap *b, struct bitmap *s);

#endif
