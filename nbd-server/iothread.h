/* SPDX-License-Identifier: BSD-3-Clause */
/* iothread: the objects "iothread": loops that are made while the daemon runs. */
#ifndef MERINO_IOTHREAD_H
#define MERINO_IOTHREAD_H

#include "common/objects.h"

struct loop;

extern struct object_class iothread_class;

/* The loop of the object ID; NULL with QEMU's words in ERR when there is none. */
struct loop *iothread_loop(const char *id, struct error *err);

/* query-iothreads: an array. */
struct json_object *iothread_query(void);

/* Runs FN on each of their loops, one after another.  Coroutine. */
void iothreads_each(void (*fn)(void *arg), void *arg);

/* Main loop: how many there are.  None goes before the end, so that any thread may ask
 * for the loops below that number. */
unsigned iothreads_count(void);
struct loop *iothreads_at(unsigned i);

/* At the end of the process, when no node is left. */
void iothreads_end(void);

#endif
