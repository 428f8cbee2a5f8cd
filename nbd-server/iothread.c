/* SPDX-License-Identifier: BSD-3-Clause */
/* iothread: loops by name.
 *
 * An export that names one brings its disk there.  Deleting the object takes the
 * name away; the loop stays, with the disks that live on it, until the process ends
 * or another object takes it over: no disk is ever without a thread.
 */
#include "nbd-server/iothread.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "common/loop.h"

#define IOTHREADS_MAX 64
#define POLL_MAX_NS 32768		/* a loop looks that long before it sleeps */

struct iothread {
	struct loop *loop;		/* NULL: never made */
	int tid;			/* of its thread */
	bool named;			/* an object has it */
};

static struct iothread threads[IOTHREADS_MAX];

static void take_tid(void *arg)
{
	struct iothread *t = arg;

	t->tid = gettid();
}

static int iothread_create(const char *id, struct json_object *opts, void **data,
			   struct error *err)
{
	for (unsigned i = 0; i < IOTHREADS_MAX; i++) {
		struct iothread *t = &threads[i];
		char name[32];

		if (t->named)
			continue;
		snprintf(name, sizeof(name), "IO %s", id);
		if (!t->loop)
			t->loop = loop_spawn(name, err);
		if (!t->loop)
			return err->code ? err->code : -EAGAIN;
		loop_call(t->loop, take_tid, t);
		t->named = true;
		*data = t;
		return 0;
	}
	return error_set(err, -ENOSPC, "There are %d iothreads already", IOTHREADS_MAX);
}

static void iothread_destroy(void *data)
{
	struct iothread *t = data;

	if (t)
		t->named = false;
}

struct object_class iothread_class = {
	.name = "iothread",
	.options = (const char *const[]){ NULL },
	.create = iothread_create,
	.destroy = iothread_destroy,
};

struct loop *iothread_loop(const char *id, struct error *err)
{
	struct object *ref = NULL;
	struct iothread *t = object_get(id, iothread_class.name, &ref, NULL);

	object_put(ref);
	if (!t)
		error_set(err, -ENOENT, "iothread \"%s\" not found", id);
	return t ? t->loop : NULL;
}

static void add_one(const char *id, const struct object_class *c, void *data, void *arg)
{
	const struct iothread *t = data;
	struct json_object *list = arg, *o;

	if (c != &iothread_class)
		return;
	o = json_object_new_object();
	json_object_object_add(o, "id", json_object_new_string(id));
	json_object_object_add(o, "thread-id", json_object_new_int(t->tid));
	json_object_object_add(o, "poll-max-ns", json_object_new_int(POLL_MAX_NS));
	json_object_object_add(o, "poll-grow", json_object_new_int(0));
	json_object_object_add(o, "poll-shrink", json_object_new_int(0));
	json_object_object_add(o, "aio-max-batch", json_object_new_int(0));
	json_object_array_add(list, o);
}

struct json_object *iothread_query(void)
{
	struct json_object *list = json_object_new_array();

	object_each(add_one, list);
	return list;
}

unsigned iothreads_count(void)
{
	unsigned n = 0;

	while (n < IOTHREADS_MAX && threads[n].loop)
		n++;
	return n;
}

struct loop *iothreads_at(unsigned i)
{
	return threads[i].loop;
}

void iothreads_each(void (*fn)(void *arg), void *arg)
{
	for (unsigned i = 0; i < IOTHREADS_MAX; i++) {
		if (threads[i].loop)
			loop_call(threads[i].loop, fn, arg);
	}
}

void iothreads_end(void)
{
	for (unsigned i = 0; i < IOTHREADS_MAX; i++) {
		loop_free(threads[i].loop);
		threads[i].loop = NULL;
	}
}
