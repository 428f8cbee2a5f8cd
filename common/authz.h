/* SPDX-License-Identifier: BSD-3-Clause */
/* authz: the object classes "authz-simple", "authz-list" and "authz-listfile": which
 * clients, that have proven who they are, may come in.  Main loop only.
 */
#ifndef MERINO_AUTHZ_H
#define MERINO_AUTHZ_H

#include <stdbool.h>

#include "common/objects.h"

extern struct object_class authz_simple_class, authz_list_class, authz_listfile_class;

/* The object ID with one more reference (object_put); NULL with ERR in QEMU's words. */
struct object *authz_get(const char *id, struct error *err);

/* Whether IDENTITY, a peer's bytes, may (coroutine: a file may be read again).  O is
 * authz_get()'s.  Whatever cannot be decided is refused. */
bool authz_allows(struct object *o, const char *identity);

#endif
