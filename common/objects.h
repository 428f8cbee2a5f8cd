/* SPDX-License-Identifier: BSD-3-Clause */
/* objects: what --object and object-add make: typed, named by an id, counted
 * (QEMU's "User Creatable Objects").
 *
 * A class lives where its subject lives (TLS credentials and secrets in common/,
 * throttle groups in format/, ...) and is registered by main.c before anything
 * else runs.  Any thread may look objects up; they are made and deleted on the
 * main loop.
 */
#ifndef MERINO_OBJECTS_H
#define MERINO_OBJECTS_H

#include <json-c/json.h>

#include "common/error.h"

struct object;

struct object_class {
	const char *name;		/* QEMU's qom-type: "tls-creds-x509" */
	/* Names of its options beside qom-type and id, NULL-terminated: what help, man
	 * page and schema list. */
	const char *const *options;
	/* Takes its options out of OPTS (common/options.h; the caller runs opts_end). */
	int (*create)(const char *id, struct json_object *opts, void **data, struct error *err);
	/* With the last reference, on whatever thread drops it.  NULL is fine. */
	void (*destroy)(void *data);
	const struct object_class *next;	/* object_class_register()'s */
};

void object_class_register(struct object_class *c);
const struct object_class *object_class_first(void);	/* and by ->next */

/* {"qom-type":…,"id":…,…}; OPTS is consumed in place.  Errors in QEMU's words. */
int object_add(struct json_object *opts, struct error *err);

/* -ENOENT "object 'x' not found"; -EBUSY "object 'x' is in use, can not be deleted". */
int object_del(const char *id, struct error *err);

/* The object's data, with one more reference in *REF (object_put); CLASS NULL: any
 * class.  NULL with ERR set when there is none or it is of another class. */
void *object_get(const char *id, const char *class, struct object **ref, struct error *err);
void object_put(struct object *o);	/* NULL is fine */
const struct object_class *object_class_of(const struct object *o);
void *object_data(const struct object *o);

/* Lists ids and class names, in the order made: FN per object, main loop. */
void object_each(void (*fn)(const char *id, const struct object_class *c, void *data, void *arg),
		 void *arg);

/* At the end of the process. */
void object_del_all(void);

#endif
