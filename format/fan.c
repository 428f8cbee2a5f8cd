// SPDX-License-Identifier: BSD-3-Clause
/* fan: see fan.h.  All state is on the caller's stack: it waits for the last one.
 */
#include "format/fan.h"

#include <stdbool.h>

#include "common/co.h"

struct fan {
	unsigned n, next, running;	/* RUNNING: without the caller */
	int (*fn)(void *arg, unsigned i);
	void *arg;
	int rc;
	struct co *caller;
	bool waiting;			/* the caller has no work left; only then may it be woken */
};

static void work(struct fan *f)
{
	while (f->next < f->n && !f->rc) {
		int rc = f->fn(f->arg, f->next++);

		if (rc && !f->rc)
			f->rc = rc;
	}
}

static void helper(void *arg)
{
	struct fan *f = arg;

	work(f);
	if (--f->running == 0 && f->waiting)
		co_wake(f->caller);
}

int fan_out(unsigned n, unsigned width, int (*fn)(void *arg, unsigned i), void *arg)
{
	struct fan f = { .n = n, .fn = fn, .arg = arg, .caller = co_self() };

	for (unsigned i = 1; f.caller && i < width && f.next < n; i++) {
		f.running++;
		co_start(helper, &f);
	}
	work(&f);
	f.waiting = true;
	while (f.running)
		co_suspend();
	return f.rc;
}
