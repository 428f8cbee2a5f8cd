/* SPDX-License-Identifier: BSD-3-Clause */
/* thread: threads with names, for top(1) and perf(1). */
#ifndef MERINO_VMM_THREAD_H
#define MERINO_VMM_THREAD_H

#include <pthread.h>

/* As pthread_create(3), -errno.  NAME has at most 15 bytes.  Before system calls are filtered. */
int thread_start(pthread_t *t, const char *name, const pthread_attr_t *attr, void *(*fn)(void *),
		 void *arg);

#endif
