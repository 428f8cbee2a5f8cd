/* SPDX-License-Identifier: BSD-3-Clause */
/* sidecar: what the drivers of images that can hold no bitmaps have for those that are
 * kept beside them: options, and when they are read and written (bitmaps/store-raw.c).
 */
#ifndef MERINO_SIDECAR_H
#define MERINO_SIDECAR_H

#include "format/node.h"

/* "sidecar-dir" and "trust-sidecar".  */
int sidecar_options(struct node *n, struct json_object *opts, struct error *err);
/* End of a driver's open: N's size is set.  N shows a file as it is. */
int sidecar_open(struct node *n, struct error *err);
/* Begin of its close. */
void sidecar_close(struct node *n);

#endif
