/* SPDX-License-Identifier: BSD-3-Clause */
/* secret: the object class "secret": a password or key that other objects name. */
#ifndef MERINO_SECRET_H
#define MERINO_SECRET_H

#include <stddef.h>
#include <stdint.h>

#include "common/objects.h"

struct secret {
	uint8_t *bytes;			/* LEN of them and a zero byte */
	size_t len;
};

extern struct object_class secret_class;

/* The secret ID with one more reference in *REF (object_put).  NULL with ERR in QEMU's
 * words: "No secret with id 'x'". */
const struct secret *secret_get(const char *id, struct object **ref, struct error *err);

/* The same for what must be text: NULL also when it is not UTF-8 without zero bytes. */
const char *secret_get_text(const char *id, struct object **ref, struct error *err);

#endif
