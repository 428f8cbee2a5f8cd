/* SPDX-License-Identifier: BSD-3-Clause */
/* options: take options out of a JSON object by name and type.
 *
 * The object is the caller's private copy: a key that was taken is removed, and
 * opts_end refuses what nobody took, so nothing is accepted and ignored.  One set
 * of functions serves QMP arguments (typed) and keyval options (all strings).
 *
 * All return 0, or -EINVAL with QEMU's words ("Invalid parameter type for 'x',
 * expected: boolean"), or -ENOMEM.  An absent key: 0, and *OUT is untouched.  On
 * an error the key stays and *OUT is untouched.  Pointers in *OUT must be NULL or
 * owned: a new value frees the previous one.
 */
#ifndef MERINO_OPTIONS_H
#define MERINO_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <json-c/json.h>

#include "common/error.h"

/* A string, malloc'd; the caller frees it. */
int opts_str(struct json_object *o, const char *key, char **out, struct error *err);

/* true or false, or a string on, yes, y, true, off, no, n, false. */
int opts_bool(struct json_object *o, const char *key, bool *out, struct error *err);

/* An integer >= 0, or a string for size_parse. */
int opts_u64(struct json_object *o, const char *key, uint64_t *out, struct error *err);

/* An object; the caller owns a reference. */
int opts_object(struct json_object *o, const char *key, struct json_object **out,
		struct error *err);

/* One of NAMES (NULL-terminated); *OUT is its index. */
int opts_enum(struct json_object *o, const char *key, const char *const *names, int *out,
	      struct error *err);

/* Any value; the caller owns a reference.  null is NULL in json-c: to tell it from
 * an absent key, ask json_object_object_get_ex first. */
int opts_value(struct json_object *o, const char *key, struct json_object **out,
	       struct error *err);

/* "Parameter 'x' is missing" when KEY is absent. */
int opts_require(struct json_object *o, const char *key, struct error *err);

/* "Parameter 'x' is unexpected" when anything is left. */
int opts_end(struct json_object *o, struct error *err);

/* O is PARENT's member KEY: error texts about it say "KEY.x" from now on.  0 or -ENOMEM. */
int opts_set_path(struct json_object *o, struct json_object *parent, const char *key);

/* A deep private copy; NULL when out of memory (or for null). */
struct json_object *opts_copy(struct json_object *o);

/* QEMU's rule for ids and node names: a letter, then letters, digits, "-", "." and "_". */
bool id_wellformed(const char *id);

#endif
