/* SPDX-License-Identifier: BSD-3-Clause */
/* fan: pieces of one request are worked on at the same time.
 */
#ifndef MERINO_FAN_H
#define MERINO_FAN_H

/* Calls FN(ARG, I) for each I below N, in up to WIDTH coroutines, the caller one of
 * them.  Returns when all have ended: the first error, after which no more are
 * begun.  Outside coroutines one after the other. */
int fan_out(unsigned n, unsigned width, int (*fn)(void *arg, unsigned i), void *arg);

#endif
