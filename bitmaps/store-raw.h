/* SPDX-License-Identifier: BSD-3-Clause */
/* store-raw: the store of persistent bitmaps beside an image that can hold none.
 *
 * What store.c does for qcow2 images.  All of it may suspend.
 */
#ifndef MERINO_STORE_RAW_H
#define MERINO_STORE_RAW_H

#include "bitmaps/bitmap-int.h"

/* N is a file, or shows all of one as it is. */
bool store_is_raw(const struct node *n);
/* node_bitmap_hooks.load and store: at the end of N's open, and before its close. */
int store_raw_load(struct node *n, struct error *err);
int store_raw_store(struct node *n, struct error *err);
/* May N have a persistent bitmap; then the sidecar is there. */
int store_raw_can_add(struct node *n, const char *name, unsigned granularity_bits,
		      struct error *err);
int store_raw_expect(struct node *n, struct error *err);
/* B is about to be freed. */
int store_raw_remove(struct bitmap *b);

#endif
