/* SPDX-License-Identifier: BSD-3-Clause */
/* objects: the list of what --object and object-add made. */
#include "common/objects.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"

struct object {
	struct object *next;
	char *id;
	const struct object_class *class;
	void *data;
	unsigned refs;			/* the list's, and its users' */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct object *objects;		/* in the order made */
static const struct object_class *classes;

void object_class_register(struct object_class *c)
{
	c->next = classes;
	classes = c;
}

const struct object_class *object_class_first(void)
{
	return classes;
}

static const struct object_class *class_find(const char *name)
{
	const struct object_class *c = classes;

	while (c && strcmp(c->name, name))
		c = c->next;
	return c;
}

/* With the lock held. */
static struct object *find(const char *id)
{
	struct object *o = objects;

	while (o && strcmp(o->id, id))
		o = o->next;
	return o;
}

static void object_free(struct object *o)
{
	if (o->data && o->class->destroy)
		o->class->destroy(o->data);
	free(o->id);
	free(o);
}

void object_put(struct object *o)
{
	bool last;

	if (!o)
		return;
	pthread_mutex_lock(&lock);
	last = --o->refs == 0;
	pthread_mutex_unlock(&lock);
	if (last)
		object_free(o);
}

/* Main loop: nobody adds another meanwhile. */
static bool id_taken(const char *id)
{
	bool taken;

	pthread_mutex_lock(&lock);
	taken = find(id);
	pthread_mutex_unlock(&lock);
	return taken;
}

static void append(struct object *o)
{
	struct object **p = &objects;

	pthread_mutex_lock(&lock);
	while (*p)
		p = &(*p)->next;
	*p = o;
	pthread_mutex_unlock(&lock);
}

static int create(struct object *o, const char *type, struct json_object *opts, struct error *err)
{
	int rc;

	o->class = class_find(type);
	if (!o->class)
		return error_set(err, -EINVAL, "Parameter 'qom-type' does not accept value '%s'", type);
	if (!id_wellformed(o->id))
		return error_set(err, -EINVAL, "Parameter 'id' expects an identifier");
	if (id_taken(o->id))
		return error_set(err, -EEXIST, "attempt to add duplicate property '%s' to object (type 'container')",
				 o->id);
	rc = o->class->create(o->id, opts, &o->data, err);
	return rc ? rc : opts_end(opts, err);
}

int object_add(struct json_object *opts, struct error *err)
{
	struct object *o = calloc(1, sizeof(*o));
	char *type = NULL;
	int rc;

	if (!o)
		return error_set(err, -ENOMEM, "Out of memory");
	o->refs = 1;
	rc = opts_require(opts, "qom-type", err);
	if (!rc)
		rc = opts_str(opts, "qom-type", &type, err);
	if (!rc)
		rc = opts_require(opts, "id", err);
	if (!rc)
		rc = opts_str(opts, "id", &o->id, err);
	if (!rc)
		rc = create(o, type, opts, err);
	free(type);
	if (rc)
		object_free(o);
	else
		append(o);
	return rc;
}

int object_del(const char *id, struct error *err)
{
	struct object *o;
	int rc = 0;

	pthread_mutex_lock(&lock);
	o = find(id);
	if (!o) {
		rc = error_set(err, -ENOENT, "object '%s' not found", id);
	} else if (o->refs > 1) {
		rc = error_set(err, -EBUSY, "object '%s' is in use, can not be deleted", id);
	} else {
		struct object **p = &objects;

		while (*p != o)
			p = &(*p)->next;
		*p = o->next;
	}
	pthread_mutex_unlock(&lock);
	if (!rc)
		object_free(o);
	return rc;
}

void *object_get(const char *id, const char *class, struct object **ref, struct error *err)
{
	struct object *o;

	pthread_mutex_lock(&lock);
	o = find(id);
	if (o && class && strcmp(o->class->name, class)) {
		error_set(err, -EINVAL, "Object '%s' is not a '%s' object", id, class);
		o = NULL;
	} else if (!o) {
		error_set(err, -ENOENT, "No object with id '%s'", id);
	} else {
		o->refs++;
	}
	pthread_mutex_unlock(&lock);
	*ref = o;
	return o ? o->data : NULL;
}

const struct object_class *object_class_of(const struct object *o)
{
	return o->class;
}

void *object_data(const struct object *o)
{
	return o->data;
}

void object_each(void (*fn)(const char *id, const struct object_class *c, void *data, void *arg),
		 void *arg)
{
	for (struct object *o = objects; o; o = o->next)
		fn(o->id, o->class, o->data, arg);
}

void object_del_all(void)
{
	struct object *o;

	while ((o = objects)) {
		objects = o->next;
		object_put(o);
	}
}
