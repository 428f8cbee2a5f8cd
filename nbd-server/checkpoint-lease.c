/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoint-lease: a checkpoint whose client is gone ends by itself.
 *
 * Clients' requests to its exports renew the lease.  They are counted on the disks'
 * loops; now and then the count is looked at here.
 */
#include <errno.h>
#include <json-c/json.h>

#include "nbd-server/checkpoints-int.h"
#include "nbd-server/export.h"
#include "nbd-server/qmp.h"

#define LOOK_MAX 5000000000ull		/* ns between two looks */
#define LOOK_SHARE 8			/* … and this many in a lease */

static bool was_used(struct checkpoint *c)
{
	bool used = false;

	for (unsigned i = 0; i < c->n; i++) {
		struct export *e = export_find_serial(c->parts[i].export);
		uint64_t requests = e ? atomic_load_explicit(&e->requests, memory_order_relaxed) : 0;

		used = used || (e && requests != c->parts[i].requests);
		c->parts[i].requests = requests;
	}
	return used;
}

static void tell_broken(const struct checkpoint *c, const struct error *why)
{
	struct json_object *data = json_object_new_object();

	json_object_object_add(data, "id", json_object_new_string(c->name));
	json_object_object_add(data, "reason", json_object_new_string(why->text));
	qmp_event("CHECKPOINT_BROKEN", data);
}

static void look_for_break(struct checkpoint *c)
{
	struct error why = ERROR_INIT;

	if (c->broken || !checkpoint_check(c, &why))
		return;
	c->broken = true;
	tell_broken(c, &why);
}

static void arm(struct checkpoint *c);

/* In a coroutine, because a command may have to end first. */
static void look(void *arg)
{
	struct checkpoint *c;

	qmp_lock_take(true);
	c = checkpoint_find_serial((uintptr_t)arg);
	if (c && was_used(c))
		c->expires = loop_now() + c->lease;
	if (c)
		look_for_break(c);	/* said before the end, however late this look is */
	if (c && loop_now() >= c->expires)
		checkpoint_end(c, false, "lease", NULL);
	else if (c)
		arm(c);
	qmp_lock_take(false);
}

static void time_to_look(struct loop_timer *t)
{
	struct checkpoint *c = (struct checkpoint *)t;

	co_start(look, (void *)(uintptr_t)c->serial);
}

static void arm(struct checkpoint *c)
{
	uint64_t step = c->lease / LOOK_SHARE, at;

	loop_timer_cancel(&c->timer);
	at = loop_now() + (step < LOOK_MAX ? step : LOOK_MAX);
	loop_timer_set(&c->timer, at < c->expires ? at : c->expires, time_to_look);
}

void checkpoint_watch(struct checkpoint *c)
{
	was_used(c);
	c->expires = loop_now() + c->lease;
	arm(c);
}

void checkpoint_renew(struct checkpoint *c, uint64_t seconds)
{
	if (seconds)
		c->lease = seconds * 1000000000;
	checkpoint_watch(c);
}

uint64_t checkpoint_lease_left(const struct checkpoint *c)
{
	uint64_t now = loop_now();

	return now < c->expires ? (c->expires - now) / 1000000000 : 0;
}
