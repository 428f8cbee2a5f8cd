// SPDX-License-Identifier: BSD-3-Clause
/* thread: see thread.h.
 *
 * A thread has at first the name of the one that made it.  To give it another afterwards takes
 * a file in /proc (which the sandbox forbids) or a system call of its own (which may come when
 * the filter is there already).
 */
#include "vmm/thread.h"

int thread_start(pthread_t *t, const char *name, const pthread_attr_t *attr, void *(*fn)(void *),
		 void *arg)
{
	char ours[16] = "merino-vmm";
	int rc;

	pthread_getname_np(pthread_self(), ours, sizeof(ours));
	pthread_setname_np(pthread_self(), name);
	rc = -pthread_create(t, attr, fn, arg);
	pthread_setname_np(pthread_self(), ours);
	return rc;
}
