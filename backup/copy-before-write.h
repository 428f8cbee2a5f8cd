/* SPDX-License-Identifier: BSD-3-Clause */
/* The nodes of QEMU's fleecing scheme: copy-before-write keeps, snapshot-access shows. */
#ifndef MERINO_COPY_BEFORE_WRITE_H
#define MERINO_COPY_BEFORE_WRITE_H

#include "backup/view.h"
#include "format/node.h"

extern const struct node_driver cbw_driver, snapshot_access_driver;

/* What the filter N keeps; NULL when it is another driver's. */
struct view *cbw_view(const struct node *n);

#endif
