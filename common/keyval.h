/* SPDX-License-Identifier: BSD-3-Clause */
/* keyval: QEMU's "key=value,..." command-line syntax into a JSON object.
 *
 *	text     = '{' JSON object | [ value ',' ] [ pair { ',' pair } [ ',' ] ]
 *	pair     = name { '.' ( name | index ) } '=' value
 *	value    = any text, with ',,' for a comma
 *
 * Leaves are strings; an object whose keys are 0..n-1 becomes an array.  A key
 * given twice keeps its last value.  A value without key may come first where
 * the option has an implied key; it has no ',,'.  Texts are QEMU's.
 */
#ifndef MERINO_KEYVAL_H
#define MERINO_KEYVAL_H

#include <json-c/json.h>

#include "common/error.h"

/* IMPLIED_KEY (may be NULL) names a first value without key: "driver" makes
 * "file,node-name=x" {"driver":"file","node-name":"x"}.  A text that starts with
 * '{' is JSON.  The caller owns the result; NULL with ERR set. */
struct json_object *keyval_parse(const char *text, const char *implied_key, struct error *err);

/* For --chardev and other options that QEMU reads with QemuOpts: a bare NAME means
 * NAME=on, and noNAME means NAME=off. */
struct json_object *keyval_parse_bare(const char *text, const char *implied_key,
				      struct error *err);

#endif
