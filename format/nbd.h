/* SPDX-License-Identifier: BSD-3-Clause */
/* nbd: what others may ask of the nbd driver. */
#ifndef MERINO_NBD_H
#define MERINO_NBD_H

#include "common/error.h"

struct json_object;

/* The options (driver, server, export) of a node for the export that URI names; NULL
 * with ERR.  TLS needs credentials, which a URI has not: refused. */
struct json_object *nbd_options_of_uri(const char *uri, struct error *err);

#endif
